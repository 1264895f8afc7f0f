# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""One episode of replay records, in the arrival convention. Anyone may import it.

`reward[t]` and `cost[t]` were received on arrival at observation t; `action[t]` was chosen at observation t. The reward
of the pair (s_t, a_t) is therefore `reward[t + 1]`. The last action is zero.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from fosp_core.contract import Contract
from fosp_core.errors import DataError


@dataclasses.dataclass
class Episode:
    """T consecutive records, one control period apart.

    images: name -> uint8 (T, height, width, channels); vectors: name -> float32 (T, n); action: float32 (T, A) in
    [-1, 1]; reward, cost: float32 (T,); is_first, is_last, is_terminal: bool (T,); stamp: int64 (T,) nanoseconds;
    step: int64 (T,) counter that rises by one per record; meta: free strings and numbers (seed, policy, task).
    """

    images: dict[str, np.ndarray]
    vectors: dict[str, np.ndarray]
    action: np.ndarray
    reward: np.ndarray
    cost: np.ndarray
    is_first: np.ndarray
    is_last: np.ndarray
    is_terminal: np.ndarray
    stamp: np.ndarray
    step: np.ndarray
    meta: dict = dataclasses.field(default_factory=dict)
    # Set by a reader that knows (`fosp_core.data.pack`); `dataclasses.replace` forgets them, as it must: the hash of
    # the content, and a function that tells the disk which records, from the first to before the last, come next.
    digest: str | None = dataclasses.field(default=None, init=False, repr=False, compare=False)
    will_need: Callable[[int, int], None] | None = dataclasses.field(default=None, init=False, repr=False,
                                                                     compare=False)

    def __len__(self) -> int:
        return len(self.reward)

    @property
    def success(self) -> bool:
        """True when a positive reward was received (SafeReach: the goal was reached)."""
        return bool((self.reward > 0).any())

    @property
    def violation(self) -> bool:
        """True when any cost was received."""
        return bool((self.cost > 0).any())

    def validate(self, contract: Contract, where: str = 'episode') -> None:
        """Raise DataError naming key and step for a wrong shape, dtype, NaN, Inf or flag."""
        if np.ndim(self.reward) != 1:
            raise DataError(f'{where}: key reward has shape {np.shape(self.reward)}, expected one number per record')
        t = len(self)
        if t < 2:
            raise DataError(f'{where}: {t} steps, expected at least 2')
        expected = {c.name: ((t, *c.shape), np.uint8, self.images) for c in contract.cameras}
        expected |= {v.name: ((t, v.size), np.float32, self.vectors) for v in contract.vectors}
        arrays = {}
        for name, (shape, dtype, source) in expected.items():
            if name not in source:
                raise DataError(f'{where}: key {name} is missing')
            arrays[name] = (source[name], shape, dtype)
        arrays |= {'action': (self.action, (t, contract.action.size), np.float32),
                   'reward': (self.reward, (t,), np.float32), 'cost': (self.cost, (t,), np.float32)}
        arrays |= {k: (getattr(self, k), (t,), np.bool_) for k in ('is_first', 'is_last', 'is_terminal')}
        arrays |= {k: (getattr(self, k), (t,), np.int64) for k in ('stamp', 'step')}
        for name, (array, shape, dtype) in arrays.items():
            bad = _first_not_finite(array)
            if array.shape != shape or array.dtype != dtype:
                raise DataError(f'{where}: key {name} is {array.dtype} {array.shape}, expected '
                                f'{np.dtype(dtype).name} {shape}{"" if bad is None else f"; not finite at step {bad}"}')
            if bad is not None:
                raise DataError(f'{where}: key {name} is not finite at step {bad}')
        if np.abs(self.action).max() > 1.0 + 1e-6:
            bad = int(np.argmax(np.abs(self.action).max(1) > 1.0 + 1e-6))
            raise DataError(f'{where}: key action leaves [-1, 1] at step {bad}')
        if (self.cost < 0).any():
            raise DataError(f'{where}: key cost is negative at step {int(np.argmax(self.cost < 0))}')
        if not self.is_first[0] or self.is_first[1:].any():
            raise DataError(f'{where}: is_first must be set at step 0 and nowhere else')
        if self.is_last[:-1].any():
            raise DataError(f'{where}: is_last is set at step {int(np.argmax(self.is_last))} of {t}')
        if (np.diff(self.step) != 1).any() or (np.diff(self.stamp) <= 0).any():
            raise DataError(f'{where}: step must rise by one and stamp must rise at each record')


def _first_not_finite(array: np.ndarray) -> int | None:
    """Index on the first axis of the first NaN or Inf; None when there is none, or nothing of floats."""
    if array.dtype.kind != 'f' or np.isfinite(array).all():
        return None
    return int(np.argmax(~np.isfinite(array.reshape(len(array), -1)).all(1)))
