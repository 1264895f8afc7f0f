# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The contract: what a robot's cameras, vectors and actions mean. No ROS import; anyone may import it."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fosp_core.errors import ContractError

SCHEMA = 1
CHANNELS = {'rgb8': 3, 'bgr8': 3, 'mono8': 1}


@dataclasses.dataclass(frozen=True)
class CameraSpec:
    """One camera: network input `name` of shape (height, width, channels), uint8."""

    name: str
    topic: str
    height: int
    width: int
    encoding: str = 'rgb8'

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (height, width, channels) of one frame."""
        return self.height, self.width, CHANNELS[self.encoding]


@dataclasses.dataclass(frozen=True)
class VectorSpec:
    """One vector input `name` of shape (len(fields),), float32, in `unit`."""

    name: str
    topic: str
    type: str
    fields: tuple[str, ...]
    unit: str
    frame: str

    @property
    def size(self) -> int:
        """Number of entries."""
        return len(self.fields)


@dataclasses.dataclass(frozen=True)
class ActionSpec:
    """The commanded vector; networks see it normalised to [-1, 1] per entry."""

    type: str
    fields: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    unit: str
    frame: str

    @property
    def size(self) -> int:
        """Number of entries."""
        return len(self.fields)

    def normalise(self, command) -> np.ndarray:
        """Map a command in `unit`, (..., size), to [-1, 1], float32; values outside the limits are clipped.

        For limits that are symmetric about zero it undoes `denormalise` bit for bit, for every float32: what is
        recorded in `unit` comes back as the very action that the policy chose.
        """
        centre, half = self._centre_and_half()
        return np.clip((np.asarray(command, np.float64) - centre) / half, -1.0, 1.0).astype(np.float32)

    def denormalise(self, action) -> np.ndarray:
        """Map an action in [-1, 1], (..., size), to a command in `unit`, float64; clipped to the limits."""
        centre, half = self._centre_and_half()
        command = np.clip(np.asarray(action, np.float64), -1.0, 1.0) * half
        # Adding a zero centre would turn -0.0 into 0.0; scaling (a + 1) instead would lose the small actions.
        return np.clip(np.where(centre == 0.0, command, command + centre), self.low, self.high)

    def _centre_and_half(self) -> tuple[np.ndarray, np.ndarray]:
        low, high = np.asarray(self.low), np.asarray(self.high)
        return low + 0.5 * (high - low), 0.5 * (high - low)


@dataclasses.dataclass(frozen=True)
class Contract:
    """Everything that recorder, learner, filter and simulator must agree on."""

    schema: int
    name: str
    rate_hz: float
    staleness_s: float
    cameras: tuple[CameraSpec, ...]
    vectors: tuple[VectorSpec, ...]
    action: ActionSpec
    label_topic: str = 'label'
    # Where foreign bags have all this (`fosp_core.data.import_spec`): no part of what it means, nor of the hash.
    imports: Any = dataclasses.field(default=None, compare=False, repr=False)
    # Fields, of all vectors and the action, that change sign when the scene is seen in a mirror
    # (`fosp_core.data.mirror`); empty: no mirror image of a scene is one. It says what may be learned from the data and
    # not what the data means: no part of the hash.
    mirror: tuple[str, ...] = dataclasses.field(default=(), compare=False)

    @property
    def period(self) -> float:
        """Control period in seconds."""
        return 1.0 / self.rate_hz

    @property
    def observation_names(self) -> tuple[str, ...]:
        """Names of all cameras, then of all vectors."""
        return tuple(c.name for c in self.cameras) + tuple(v.name for v in self.vectors)

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, dicts and numbers."""
        unsaid = {'imports'} if self.mirror else {'imports', 'mirror'}
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in unsaid}
        return json.loads(json.dumps(plain, default=dataclasses.asdict))

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical JSON, hex."""
        hashed = {k: v for k, v in self.to_dict().items() if k != 'mirror'}
        text = json.dumps(hashed, sort_keys=True, separators=(',', ':'))
        return hashlib.sha256(text.encode()).hexdigest()

    def require_same(self, other_hash: str, where: str, other: dict[str, Any] | None = None) -> None:
        """Raise ContractError, naming both hashes, when `other_hash` is not this contract's.

        With the other contract's `to_dict` the error also names the keys that differ.
        """
        if other_hash != self.hash:
            mine = self.to_dict()
            keys = ', '.join(k for k in mine if k != 'mirror' and other is not None and other.get(k) != mine[k])
            raise ContractError(f'{where}: made for contract {other_hash[:12]}, but contract {self.name!r} '
                                f'here is {self.hash[:12]}{keys and f"; they differ in {keys}"}')

    @classmethod
    def from_dict(cls, data: dict[str, Any], where: str = 'contract') -> 'Contract':
        """Build from the dict of `to_dict` or of a YAML file; raise ContractError naming the key."""
        try:
            if data['schema'] != SCHEMA:
                raise ContractError(f'{where}: key schema is {data["schema"]!r}, expected {SCHEMA}')
            cameras = tuple(CameraSpec(**c) for c in data['cameras'])
            vectors = tuple(VectorSpec(**{**v, 'fields': tuple(v['fields'])}) for v in data.get('vectors', ()))
            a = data['action']
            action = ActionSpec(type=a['type'], fields=tuple(a['fields']), low=tuple(map(float, a['low'])),
                                high=tuple(map(float, a['high'])), unit=a['unit'], frame=a['frame'])
            mirror = data.get('mirror', [])
            if not isinstance(mirror, list | tuple):
                raise ContractError(f'{where}: key mirror is {mirror!r}, expected a list of fields')
            label = data.get('label_topic') or data.get('label', {}).get('topic', 'label')
            contract = cls(schema=SCHEMA, name=str(data['name']), rate_hz=float(data['rate_hz']),
                           staleness_s=float(data['staleness_s']), cameras=cameras, vectors=vectors, action=action,
                           label_topic=label, mirror=tuple(mirror))
        except KeyError as error:
            raise ContractError(f'{where}: key {error.args[0]} is missing') from None
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ContractError(f'{where}: {error}') from None
        contract._check(where)
        if 'import' not in data:
            return contract
        from fosp_core.data.import_spec import parse  # late: robots have no such section
        return dataclasses.replace(contract, imports=parse(data['import'], contract, where))

    @classmethod
    def load(cls, path: Path | str) -> 'Contract':
        """Read a YAML contract; raise ContractError naming file and key."""
        path = Path(path)
        try:
            data = yaml.safe_load(path.read_text())
        except OSError as error:
            raise ContractError(f'{path}: {error.strerror}') from None
        except UnicodeDecodeError as error:
            raise ContractError(f'{path}: not UTF-8 text: {error.reason} at byte {error.start}') from None
        except yaml.YAMLError as error:
            raise ContractError(f'{path}: not YAML: {" ".join(str(error).split())}') from None
        if not isinstance(data, dict):
            raise ContractError(f'{path}: expected a mapping of contract keys')
        return cls.from_dict(data, str(path))

    def _check(self, where: str) -> None:
        for spec in (*self.cameras, *self.vectors, self.action):
            for key, value in vars(spec).items():
                here = f'{where}: {getattr(spec, "name", "action")}: key {key} is {value!r}, expected'
                if key in ('height', 'width') and (type(value) is not int or value < 1):
                    raise ContractError(f'{here} a whole number above 0')
                if key in ('name', 'topic', 'type', 'encoding', 'unit', 'frame') and not isinstance(value, str):
                    raise ContractError(f'{here} text')
                if key == 'fields' and not all(isinstance(field, str) for field in value):
                    raise ContractError(f'{here} a list of names')
        fields = [f for spec in (*self.vectors, self.action) for f in spec.fields]
        names = self.observation_names
        if not self.cameras:
            raise ContractError(f'{where}: key cameras is empty, expected at least one camera')
        if len(set(names)) != len(names):
            raise ContractError(f'{where}: observation names {names} are not unique')
        for camera in self.cameras:
            if camera.encoding not in CHANNELS:
                raise ContractError(f'{where}: camera {camera.name}: encoding {camera.encoding!r}, expected one of '
                                    f'{", ".join(CHANNELS)}')
        n = self.action.size
        if not n or len(self.action.low) != n or len(self.action.high) != n:
            raise ContractError(f'{where}: action: keys low and high have {len(self.action.low)} and '
                                f'{len(self.action.high)} entries, expected one for each of its {n} fields')
        for field, low, high in zip(self.action.fields, self.action.low, self.action.high):
            if not (np.isfinite(low) and np.isfinite(high) and low < high):
                raise ContractError(f'{where}: action: limits of {field} are {low} and {high}, expected finite ones '
                                    'with low < high')
        limits = dict(zip(self.action.fields, zip(self.action.low, self.action.high)))
        for field in self.mirror:
            if field not in fields:
                raise ContractError(f'{where}: key mirror has {field!r}, expected some of {", ".join(fields)}')
            low, high = limits.get(field, (-1.0, 1.0))
            if low != -high:
                raise ContractError(f'{where}: key mirror has {field}, whose limits are {low} and {high}, expected '
                                    'limits that are symmetric about 0')
        if not (np.isfinite(self.rate_hz) and self.rate_hz > 0 and self.staleness_s > 0):
            raise ContractError(f'{where}: keys rate_hz and staleness_s are {self.rate_hz} and {self.staleness_s}, '
                                'expected numbers above 0')
