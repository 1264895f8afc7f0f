# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Makes safety-gymnasium 1.0.0 run on today's Python, mujoco, gymnasium and numpy, and draw fast. For `safetygym`.

Its metadata pins versions that exclude Python 3.11 and later, and its own start-up code imports what gymnasium has
removed since. So only its builder and tasks are imported, with a few substitutions at run time; each one is asserted,
for one exact version: another release, or another wheel, is refused with a sentence and never drawn wrongly.
"""

import contextlib
import dataclasses
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import sys
import types
import warnings
from collections.abc import Iterator
from xml.etree import ElementTree

import numpy as np

from fosp_core.errors import FospError

DISTRIBUTION, PACKAGE, VERSION = 'safety-gymnasium', 'safety_gymnasium', '1.0.0'
REMEDY = 'run: make sim-gym'
VISION, VISION_BACK = 'vision', 'vision_back'
VISUAL = """<visual><quality offsamples="0" shadowsize="0" numslices="12" numstacks="8" numquads="1"/>
<global offwidth="64" offheight="64"/></visual>"""
# The starry sky is six pictures of 3259 x 3259: seconds and 190 MB at each reset, for black with a rare dim dot.
SKY = {'type': 'skybox', 'builtin': 'flat', 'rgb1': '0 0 0', 'rgb2': '0 0 0', 'width': '8', 'height': '48'}
# Cameras of the project's main branch, which the FOSP authors used and PyPI never got. By the wheel's front camera:
# (pos, xyaxes, fovy) -> front, back.
CAMERAS = {
    ('0 0 .15', '0 -1 0 .4 0 1', '90'): (
        {'pos': '0 0 .15', 'xyaxes': '0 -1 0 .4 0 1', 'fovy': '90'},
        {'pos': '0 0 .15', 'xyaxes': '0 1 0 0 0 1', 'fovy': '90'}),
    ('0 0.1 .2', '-1 0 0 0 -.4 1', None): (
        {'pos': '0 0 .2', 'xyaxes': '-1 0 0 0 -.4 1', 'fovy': '90'},
        {'pos': '0 0 .2', 'xyaxes': '1 0 0 0 0 1', 'fovy': '90'}),
}


def found_version() -> str | None:
    """Return the version of the installed package, None without one; imports nothing of it."""
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return None


def require() -> None:
    """Raise FospError with one sentence unless the known version is installed."""
    found = found_version()
    if found is None:
        raise FospError(f'Safety-Gymnasium is not installed here; {REMEDY}')
    if found != VERSION:
        raise FospError(f'{DISTRIBUTION} {found} is installed, expected exactly {VERSION}; {REMEDY}')


def _assert(condition: bool, what: str) -> None:
    if not condition:
        raise FospError(f'{DISTRIBUTION} {VERSION} is not as it was published: {what}; {REMEDY}')


@contextlib.contextmanager
def _replaced(owner, name: str, value) -> Iterator[None]:
    """Let `owner.name` be `value` for a while."""
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def _tolerant_dataclass(original):
    """Return `dataclass` that takes arrays as defaults, each instance getting a copy (Python 3.11 refuses them)."""
    def mend(cls):
        for name in getattr(cls, '__annotations__', {}):
            value = cls.__dict__.get(name)
            if isinstance(value, np.ndarray):
                setattr(cls, name, dataclasses.field(default_factory=value.copy))
        return cls

    def dataclass(cls=None, **options):
        if cls is None:
            return lambda later: original(mend(later), **options)
        return original(mend(cls), **options)
    return dataclass


def _only(parent: ElementTree.Element, path: str) -> ElementTree.Element:
    found = parent.findall(path)
    _assert(len(found) == 1, f'{len(found)} elements {path} in its scene, expected 1')
    return found[0]


def rewrite(xml: str) -> str:
    """Return the MJCF of a world with a black sky, cheap rendering and two cameras; raise FospError if it differs."""
    root = ElementTree.fromstring(xml)
    sky = _only(root, "asset/texture[@type='skybox']")
    _assert(len([key for key in sky.attrib if key.startswith('file')]) == 6, 'its sky is not of six files')
    sky.attrib.clear()
    sky.attrib.update(SKY)
    _assert(root.find('visual') is None, 'its scene has a visual section')
    root.insert(0, ElementTree.fromstring(VISUAL))
    agent = _only(root, "worldbody/body[@name='agent']")
    _assert(not agent.findall(f"camera[@name='{VISION_BACK}']"), f'it has a camera {VISION_BACK}')
    camera = _only(agent, f"camera[@name='{VISION}']")
    key = camera.get('pos'), camera.get('xyaxes'), camera.get('fovy')
    _assert(key in CAMERAS, f'its camera is at {key}')
    front, back = CAMERAS[key]
    camera.attrib.update(front)
    agent.insert(list(agent).index(camera) + 1, ElementTree.Element('camera', {'name': VISION_BACK, **back}))
    return ElementTree.tostring(root, encoding='unicode')


class _Models:
    """Stands for `mujoco.MjModel` in the module that compiles worlds."""

    def __init__(self, original):
        self._original = original

    def __getattr__(self, name: str):
        return getattr(self._original, name)

    def from_xml_string(self, xml: str, *args, **kwargs):
        """Compile the world as `rewrite` leaves it."""
        return self._original.from_xml_string(rewrite(xml), *args, **kwargs)


class _Mujoco:
    """Stands for the module `mujoco` there."""

    def __init__(self, original):
        self._original = original
        self.MjModel = _Models(original.MjModel)

    def __getattr__(self, name: str):
        return getattr(self._original, name)


def _import() -> types.ModuleType:
    """Import the builder without the package's own `__init__`, and hook the world's compiler."""
    require()
    if PACKAGE in sys.modules:
        raise FospError(f'{PACKAGE} was imported in this process before; only fosp_sim may import it')
    spec = importlib.util.find_spec(PACKAGE)
    _assert(spec is not None and bool(spec.submodule_search_locations), 'no package folder')
    bare = types.ModuleType(PACKAGE)
    bare.__path__, bare.__file__, bare.__spec__ = list(spec.submodule_search_locations), spec.origin, spec
    sys.modules[PACKAGE] = bare
    try:
        with _replaced(dataclasses, 'dataclass', _tolerant_dataclass(dataclasses.dataclass)):
            builder = importlib.import_module(f'{PACKAGE}.builder')
        world = importlib.import_module(f'{PACKAGE}.world')
        _assert(getattr(world, 'mujoco', None) is importlib.import_module('mujoco'), 'its world does not use mujoco')
    except BaseException as error:
        for name in [n for n in sys.modules if n.split('.')[0] == PACKAGE]:
            del sys.modules[name]
        if isinstance(error, ModuleNotFoundError):
            raise FospError(f'Safety-Gymnasium needs the Python module {error.name}; {REMEDY}') from None
        raise
    world.mujoco = _Mujoco(world.mujoco)
    bare.fosp_builder = builder
    return builder


def _lone_number(original):
    """Return `MjModel.jnt` that takes an array of one entry, as the joint sensors pass it (numpy 2.4 refuses it)."""
    def jnt(model, which=0):
        return original(model, int(which.item()) if isinstance(which, np.ndarray) and which.size == 1 else which)
    return jnt


def make_builder(task_id: str, robot: str):
    """Return the package's `Builder` of `SafetyPointGoal1-v0` and robot `Point`: six values, no pictures.

    Raises
    ------
    FospError
        When the package is absent, of another version or not as published.

    """
    import mujoco
    builder = getattr(sys.modules.get(PACKAGE), 'fosp_builder', None) or _import()
    with _replaced(mujoco.MjModel, 'jnt', _lone_number(mujoco.MjModel.jnt)), warnings.catch_warnings():
        warnings.simplefilter('ignore')     # of gymnasium, about observation spaces that nobody sees
        made = builder.Builder(task_id=task_id, config={'agent_name': robot})
        for thing in made.task._obstacles:
            # A third of the time goes into lidars that no picture shows; the buttons' one is asked for by name.
            thing.is_lidar_observed = thing.name == 'buttons'
        made.task.build_observation_space()
    return made
