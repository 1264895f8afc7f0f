# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Headless rendering: chooses a working OpenGL platform and draws small pictures fast. For the simulator alone.

mujoco binds its `GLContext` to a platform when it is first imported; this module takes the class from the chosen
platform's own module instead, so that the order of imports does not matter.
"""

import importlib
import os
import subprocess
import sys

import numpy as np

from fosp_core.errors import RenderError

PLATFORMS = ('egl', 'osmesa')
PROBE_TIMEOUT_S = 60.0

# The child really draws: that a library loads says nothing about a context, and a context nothing about a picture.
_PROBE = """
import mujoco
model = mujoco.MjModel.from_xml_string('''<mujoco>
  <visual><quality shadowsize="0" offsamples="0"/><global offwidth="16" offheight="16"/></visual>
  <worldbody><light pos="0 0 3"/>
  <camera name="c" pos="0 -2 1" xyaxes="1 0 0 0 .45 .9"/>
  <geom type="plane" size="2 2 .1" rgba="0 0 1 1"/><geom type="sphere" size=".4" rgba="1 0 0 1"/>
  </worldbody></mujoco>''')
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 16, 16)
renderer.update_scene(data, camera='c')
picture = renderer.render()
renderer.close()
raise SystemExit(0 if picture.std() > 1 else 3)
"""


def _probe(platform: str) -> str:
    """Draw one picture with `platform` in a child process; return '' or the reason of the failure in one line."""
    environment = {**os.environ, 'MUJOCO_GL': platform, 'PYOPENGL_PLATFORM': platform}
    try:
        child = subprocess.run([sys.executable, '-c', _PROBE], env=environment, capture_output=True, text=True,
                               timeout=PROBE_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return f'no picture within {PROBE_TIMEOUT_S:.0f} s'
    if child.returncode == 0:
        return ''
    lines = [line.strip() for line in child.stderr.splitlines() if line.strip()]
    return lines[-1][:160] if lines else f'exit code {child.returncode}'


def choose_gl() -> str:
    """Return the first platform of EGL and OSMesa that draws a picture, and set MUJOCO_GL to it.

    A MUJOCO_GL that the user has set is the only one tried. The answer is kept in the environment (with
    FOSP_GL_PROBED), so that children of this process do not probe again.

    Raises
    ------
    RenderError
        When none draws; names each platform and its reason in one line.

    """
    wanted = os.environ.get('MUJOCO_GL', '').lower()
    if wanted and os.environ.get('FOSP_GL_PROBED') == wanted:
        return wanted
    reasons = []
    for platform in (wanted,) if wanted else PLATFORMS:
        reason = _probe(platform)
        if not reason:
            os.environ['MUJOCO_GL'] = os.environ['PYOPENGL_PLATFORM'] = os.environ['FOSP_GL_PROBED'] = platform
            return platform
        reasons.append(f'{platform} ({reason})')
    raise RenderError(f'no headless OpenGL platform draws a picture: {"; ".join(reasons)}; '
                      'install libegl1 and libgl1-mesa-dri, or libosmesa6')


class OffscreenRenderer:
    """One GL context of a fixed picture size, reused for each model that a reset compiles.

    Parameters
    ----------
    model
        Any model of the scene family; its textures (none here) are what the context keeps.
    height, width
        Size of the picture in pixels; the model's offscreen buffer must be at least as large.
    max_geoms
        Most geoms that a scene may have.
    all_groups
        Draw the geoms of groups 3 to 5 too, which mujoco leaves out.

    """

    def __init__(self, model, height: int, width: int, max_geoms: int = 200, all_groups: bool = False):
        import mujoco
        self._mujoco = mujoco
        self.height, self.width = height, width
        self._gl = self._context = None
        platform = importlib.import_module(f'mujoco.{choose_gl()}')
        try:
            self._gl = platform.GLContext(width, height)
            self._gl.make_current()
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        except Exception as error:  # noqa: BLE001 - types differ by platform, and all mean: no GL
            self.close()
            raise RenderError(f'cannot make an OpenGL context: {" ".join(str(error).split())[:160]}') from None
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=max_geoms)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._scene.flags[flag] = 0
        self._option = mujoco.MjvOption()
        if all_groups:
            self._option.geomgroup[:] = 1
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._viewport = mujoco.MjrRect(0, 0, width, height)
        self._buffer = np.empty((height, width, 3), np.uint8)

    def render(self, model, data, camera: str = 'front', segment: bool = False) -> np.ndarray:
        """Return a fresh uint8 (height, width, 3) picture; with `segment`, each pixel's geom id + 1 as int32 (h, w)."""
        mujoco = self._mujoco
        camera_id = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, camera)
        if camera_id < 0:  # mujoco itself would silently draw the free camera
            raise RenderError(f'no camera {camera!r} in the scene')
        self._gl.make_current()
        self._camera.fixedcamid = camera_id
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = segment
        self._scene.flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = segment
        mujoco.mjv_updateScene(model, data, self._option, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene)
        mujoco.mjr_render(self._viewport, self._scene, self._context)
        mujoco.mjr_readPixels(self._buffer, None, self._viewport, self._context)
        picture = np.ascontiguousarray(self._buffer[::-1])
        if not segment:
            return picture
        index = picture.astype(np.int32) @ np.array([1, 256, 65536], np.int32)
        table = np.zeros(self._scene.ngeom + 2, np.int32)
        for geom in self._scene.geoms[:self._scene.ngeom]:
            if geom.objtype == mujoco.mjtObj.mjOBJ_GEOM:
                table[geom.segid + 1] = geom.objid + 1
        return table[np.minimum(index, len(table) - 1)]

    def close(self) -> None:
        """Free the context; may be called twice."""
        if self._context is not None:
            self._gl.make_current()
            self._context.free()
        if self._gl is not None:
            self._gl.free()
        self._context = self._gl = None

    def __enter__(self):
        return self

    def __exit__(self, *_exc) -> None:
        self.close()
