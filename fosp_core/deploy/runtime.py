# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Run a bundle's graphs on ONNX Runtime, one thread, no spinning. Numpy and onnxruntime only: no torch.

The learner holds a PolicyRuntime, the safety filter a FilterRuntime; each keeps its own recurrent state.
"""

import dataclasses
import os

import numpy as np

from fosp_core.contract import Contract
from fosp_core.deploy.bundle import Bundle
from fosp_core.errors import BundleError


@dataclasses.dataclass(frozen=True)
class PolicyOutput:
    """One decision of the policy expansion.

    action (A,) float32 in [-1, 1], equal to candidates[index]; index 0 offline, 1 online; candidates (2, A);
    scores (2,); risk (2,) in [0, 1]; surprise: KL of posterior and prior, nats.
    """

    action: np.ndarray
    index: int
    candidates: np.ndarray
    scores: np.ndarray
    risk: np.ndarray
    surprise: float


@dataclasses.dataclass(frozen=True)
class FilterOutput:
    """Risk of each candidate (N,) in [0, 1], the frozen offline policy's action and its risk, surprise in nats."""

    risk: np.ndarray
    offline_action: np.ndarray
    offline_risk: float
    surprise: float


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), '')


def make_session(model: bytes, where: str):
    """Build an ONNX Runtime session with one thread and spinning off; raise BundleError naming the file."""
    os.environ.setdefault('ORT_DISABLE_TELEMETRY', '1')     # read at its import; a robot reports to nobody
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # A spinning thread burns the core that the simulator or the trainer needs, and lengthens the tail.
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    options.add_session_config_entry('session.inter_op.allow_spinning', '0')
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(model, options, providers=['CPUExecutionProvider'])
    except Exception as error:  # noqa: BLE001 - onnxruntime raises several unrelated types for a bad model
        raise BundleError(f'{where}: ONNX Runtime cannot load it: {_first_line(error)}') from None


class _Runtime:
    graph = ''

    def __init__(self, bundle: Bundle, seed: int = 0):
        self.contract: Contract = bundle.contract
        self.version = bundle.version
        network = bundle.manifest['network']
        self.deter_size, self.stoch, self.classes = network['deter'], network['stoch'], network['classes']
        self.session = make_session(bundle.read(f'{self.graph}.onnx'), f'{bundle.path}/{self.graph}.onnx')
        self._names = {i.name for i in self.session.get_inputs()}
        self.rng = np.random.default_rng(seed)
        self._no_noise = np.zeros((1, self.stoch, self.classes), np.float32)
        self.reset()

    def reset(self, seed: int | None = None) -> None:
        """Forget the history; the next step starts from the learned initial state, with `seed` the random draws too."""
        self.rng = self.rng if seed is None else np.random.default_rng(seed)
        self.deter = np.zeros((1, self.deter_size), np.float32)
        self.latent = np.zeros((1, self.stoch * self.classes), np.float32)
        self._fresh = True

    @property
    def state(self) -> tuple[np.ndarray, np.ndarray]:
        """Recurrent state: deter (1, D), stoch (1, S*K)."""
        return self.deter, self.latent

    def warm_up(self, n: int = 5) -> None:
        """Run n steps on a blank observation and reset, so that the first real step has no start-up cost."""
        observation = {c.name: np.zeros(c.shape, np.uint8) for c in self.contract.cameras}
        observation |= {v.name: np.zeros(v.size, np.float32) for v in self.contract.vectors}
        for _ in range(n):
            self._warm_step(observation, np.zeros(self.contract.action.size, np.float32))
        self.reset()

    def _inputs(self, observation: dict[str, np.ndarray], prev_action: np.ndarray, is_first: bool,
                gumbel: np.ndarray | None) -> dict[str, np.ndarray]:
        inputs = {}
        for camera in self.contract.cameras:
            picture = np.ascontiguousarray(observation[camera.name])
            if picture.shape != camera.shape or picture.dtype != np.uint8:
                raise ValueError(f'{camera.name}: {picture.dtype} {picture.shape}, expected uint8 {camera.shape}')
            inputs[camera.name] = picture[None]
        for vector in self.contract.vectors:
            inputs[vector.name] = np.asarray(observation[vector.name], np.float32).reshape(1, vector.size)
        inputs |= {'prev_action': np.asarray(prev_action, np.float32).reshape(1, -1),
                   'is_first': np.full((1, 1), float(is_first or self._fresh), np.float32), 'deter': self.deter,
                   'stoch': self.latent, 'gumbel': self._no_noise if gumbel is None else gumbel}
        for name, value in inputs.items():
            if value.dtype == np.float32 and not np.isfinite(value).all():
                raise ValueError(f'{name}: not finite')
        return inputs

    def _run(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        # The exporter drops inputs that a graph does not use (expansion off: noise of one candidate).
        used = {k: v for k, v in inputs.items() if k in self._names}
        try:
            return self.session.run(None, used)
        except Exception as error:  # onnxruntime raises several unrelated types
            raise ValueError(f'{self.graph}.onnx: {type(error).__name__}: {_first_line(error)}') from error


class PolicyRuntime(_Runtime):
    """The learner's side: observation -> proposed action."""

    graph = 'policy'

    def step(self, observation: dict[str, np.ndarray], prev_action: np.ndarray, is_first: bool,
             explore: bool = False, gumbel: np.ndarray | None = None) -> PolicyOutput:
        """Advance one control period.

        observation: camera uint8 (H, W, C), vector float32 (n,); prev_action (A,) in [-1, 1], the one really executed.
        `explore` samples the actors, else their modes are the candidates. Raises ValueError naming a bad input, or
        the graph that failed.
        """
        a = self.contract.action.size
        inputs = self._inputs(observation, prev_action, is_first, gumbel)
        noise = self.rng.standard_normal((1, 2, a)) if explore else np.zeros((1, 2, a))
        inputs |= {'noise': noise.astype(np.float32), 'uniform': self.rng.random((1, 1)).astype(np.float32)}
        deter, latent, action, index, candidates, scores, risk, surprise = self._run(inputs)
        if not np.isfinite(action).all():
            raise ValueError('policy.onnx: action not finite')
        self.deter, self.latent, self._fresh = deter, latent, False
        return PolicyOutput(action[0], int(index[0]), candidates[0], scores[0], risk[0], float(surprise[0]))

    def _warm_step(self, observation, action):
        self.step(observation, action, True)


class FilterRuntime(_Runtime):
    """The safety filter's side: observation and candidate commands -> their risk."""

    graph = 'filter'

    def step(self, observation: dict[str, np.ndarray], prev_action: np.ndarray, is_first: bool,
             candidates: np.ndarray, commit: bool = True, gumbel: np.ndarray | None = None) -> FilterOutput:
        """Advance one control period and score candidates (N, A) in [-1, 1], N >= 1.

        `commit=False` leaves the recurrent state as it was. Raises ValueError naming a bad input, or the graph that
        failed.
        """
        inputs = self._inputs(observation, prev_action, is_first, gumbel)
        inputs['candidates'] = np.asarray(candidates, np.float32)[None]
        deter, latent, risk, action, offline_risk, surprise = self._run(inputs)
        if not (np.isfinite(risk).all() and np.isfinite(action).all() and np.isfinite(surprise).all()):
            raise ValueError('filter.onnx: output not finite')
        if commit:
            self.deter, self.latent, self._fresh = deter, latent, False
        return FilterOutput(risk[0], action[0], float(offline_risk.reshape(-1)[0]), float(surprise.reshape(-1)[0]))

    def _warm_step(self, observation, action):
        self.step(observation, action, True, np.zeros((12, len(action)), np.float32))
