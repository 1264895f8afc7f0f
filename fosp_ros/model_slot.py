# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Holds the live model of a node and swaps in a new one between two ticks. No rclpy; learner and filter may use it.

A packed bundle is verified, loaded and warmed up in a thread, beside the live model; the recurrent state of the new one
is rebuilt from the observations of this episode. Then it runs in shadow: the same thread gives it what the live model
has processed, tick for tick and after the command is out, and only a judge hears its outputs. The control thread takes
over a model that has passed, and no other.
"""

import collections
import dataclasses
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fosp_core.contract import Contract
from fosp_core.deploy.bundle import Bundle
from fosp_core.errors import FospError
from fosp_ros.parameters import P

IDLE_S, IDLE_PERIODS = 0.5, 3       # without a tick for so long, and so many periods, a node swaps between none
CATCH_UP = 2  # steps that the control thread may replay itself when it takes over
RISKS = ('risk', 'offline_risk')
SHADOW_TICKS = P('shadow_ticks', 'int', 5, 'Ticks that an offered model runs beside the live one before it is swapped '
                 'in; one that gives no number, or a risk outside [0, 1], is refused.', low=0, high=1000,
                 read_only=True)


def unfit(output: Any) -> str:
    """Return why a runtime's output is none to act on, or an empty string: numbers finite, probabilities in [0, 1]."""
    for field in dataclasses.fields(output):
        values = np.asarray(getattr(output, field.name), np.float64)
        if not np.isfinite(values).all():
            return f'{field.name} is not finite'
        if field.name in RISKS and values.size and not 0.0 <= values.min() <= values.max() <= 1.0:
            return f'{field.name} is {values.min():g} to {values.max():g}, expected 0 to 1'
    return ''


@dataclasses.dataclass
class _Offered:
    """A loaded model on its way in: records that it has processed (of all), and how many of them in shadow."""

    runtime: Any
    bundle: Bundle
    done: int = 0
    shadowed: int = 0
    number: int = 0         # of its offer
    live: bool = False      # has caught up with the history once


class ModelSlot:
    """The live runtime and the way a new one comes in.

    Parameters
    ----------
    make : callable
        `Bundle -> runtime`, with `warm_up()`; e.g. PolicyRuntime.
    replay : callable
        `(runtime, record) -> output`: advance `runtime` by one remembered record; what raises an exception, or gives an
        output that is `unfit`, refuses the model.
    contract : Contract
        The contract in force; a bundle for another one is refused.
    calibrated : bool
        Refuse a bundle without a usable calibration.
    history : int
        Newest records of the episode that are remembered.
    shadow_ticks : int
        Ticks that an offered model runs in shadow before it is swapped in.
    judge : callable
        `output -> str`: why it is not fit, or an empty string.

    """

    def __init__(self, make: Callable[[Bundle], Any], replay: Callable[[Any, Any], Any], contract: Contract,
                 calibrated: bool = False, history: int = 128, shadow_ticks: int = 0,
                 judge: Callable[[Any], str] = unfit):
        self._make, self._replay, self._judge = make, replay, judge
        self.shadow_ticks = shadow_ticks
        self._contract, self._calibrated = contract, calibrated
        self._records: collections.deque = collections.deque(maxlen=history)
        self._total = 0                      # records remembered so far, forgotten ones included
        self._lock = threading.Lock()
        self._ticked = threading.Condition(self._lock)      # a tick is over: the loader may work on its record
        self._resting = False                # no ticks come
        self._offered: bytes | None = None
        self._ready: _Offered | None = None
        self._taking: Bundle | None = None   # on its way from `_ready` to `bundle`: the control thread replays the rest
        self._thread: threading.Thread | None = None
        self._closed = False
        self.runtime: Any = None
        self.bundle: Bundle | None = None
        self.swaps = 0
        self.refused = 0
        self._number = self._refused_number = 0     # of the offer that was taken up last, and of the one refused last
        self.refusal = ''                    # why the newest offered bundle was refused; empty when it is the live one

    def open(self, path: Path | str) -> None:
        """Load the first model in the calling thread; raise BundleError when it is not fit to run."""
        bundle = Bundle.open(path, self._contract, self._calibrated)
        runtime = self._make(bundle)
        runtime.warm_up()
        self.runtime, self.bundle = runtime, bundle

    @property
    def version(self) -> str:
        """Version of the live model; empty before `open`."""
        return self.bundle.version if self.bundle else ''

    @property
    def loading(self) -> bool:
        """True while an offered bundle is being loaded or waits for its swap."""
        with self._lock:
            return self._thread is not None or self._ready is not None

    def remember(self, record: Any, is_first: bool) -> None:
        """Note a record that the live model has processed; the first of an episode begins a new history."""
        with self._lock:
            if is_first:
                self._records.clear()
            self._records.append(record)
            self._total += 1

    def offer(self, data: bytes) -> None:
        """Take a packed bundle and load it in the background; the newest offer wins."""
        with self._lock:
            if self._closed:
                return
            self._offered = data
            self._ticked.notify_all()       # whatever is in shadow is outdated
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name='model-loader', daemon=True)
                self._thread.start()

    def swap(self, idle: bool = False) -> bool:
        """Make the model that has passed the live one if there is one; call it between two ticks. True after a swap.

        `idle`: no ticks come. Then the shadow is not waited for: nothing moves, and there is nothing to compare with.
        """
        with self._lock:
            self._resting = idle
            self._ticked.notify_all()
            ready = self._ready
            if ready is None:
                return False
            missing = self._since(ready.done)
            if len(missing) > CATCH_UP or (ready.shadowed < self.shadow_ticks and not idle):
                if self._thread is None:    # too far behind for this thread, or ticks come again: back to the loader
                    self._ready = None
                    self._thread = threading.Thread(target=self._work, args=(ready,), name='model-loader', daemon=True)
                    self._thread.start()
                return False
            self._ready, self._taking = None, ready.bundle
        taken = self._advance(ready, missing)
        with self._lock:
            self._taking = None
            if taken:
                self.runtime, self.bundle = ready.runtime, ready.bundle
                self.swaps += 1
                if ready.number >= self._refused_number:
                    self.refusal = ''
        return taken

    def close(self) -> None:
        """Take no more offers and wait for the loader."""
        with self._lock:
            self._closed, self._offered, thread = True, None, self._thread
            self._ticked.notify_all()
        if thread is not None:
            thread.join(5.0)

    def _since(self, done: int) -> list:
        fresh = self._total - done
        records = list(self._records)
        return records[max(0, len(records) - fresh):] if fresh else []

    def _work(self, model: _Offered | None = None) -> None:
        """Run in the loader thread: settle `model`, then whatever has been offered, the newest first."""
        while True:
            if model is not None:
                self._settle(model)
            with self._lock:
                data, self._offered = self._offered, None
                if data is None:
                    self._thread = None
                    return
                self._number += 1
                number = self._number
            try:
                model = self._load(data)
                if model is not None:
                    model.number = number
            except FospError as error:
                model = self._refuse(str(error), number)
            except Exception as error:  # noqa: BLE001 - whatever is wrong with it, the live model goes on
                model = self._refuse(f'{type(error).__name__}: {error}', number)

    def _refuse(self, why: str, number: int) -> None:
        with self._lock:
            self.refused += 1
            if number >= self._refused_number:
                self.refusal, self._refused_number = why, number

    def _stays(self, bundle: Bundle) -> bool:
        """Tell whether this bundle is the live one, or is about to be; then what waited for its swap is outdated.

        One step with the drop of `_ready`: else a swap in between would make the outdated one live.
        """
        with self._lock:
            last = self._taking or self.bundle
            if last is None or bundle.sha256 != last.sha256:
                return False
            self._ready = None
            self.refusal = ''
            return True

    def _load(self, data: bytes) -> _Offered | None:
        with tempfile.TemporaryDirectory(prefix='fosp_model_') as folder:
            bundle = Bundle.unpack(data, folder, self._contract, self._calibrated)
            if self._stays(bundle):
                return None
            runtime = self._make(bundle)  # reads what it needs: the folder may go
            runtime.warm_up()
            return _Offered(runtime, bundle)

    def _settle(self, model: _Offered) -> None:
        """Replay what is remembered, follow the live model for the shadow ticks, then offer the model for the swap."""
        while True:
            with self._lock:
                missing = self._since(model.done)
                while not missing and model.live and model.shadowed < self.shadow_ticks and not (
                        self._resting or self._closed or self._offered):
                    self._ticked.wait()
                    missing = self._since(model.done)
                if self._offered is not None:
                    return      # a newer one is here
                if self._closed:
                    return
                model.live |= not missing
                if len(missing) <= 1 and (self._resting or model.shadowed >= self.shadow_ticks):
                    self._ready = model
                    return
                total = self._total
            if not self._advance(model, missing):
                return
            model.done = total

    def _advance(self, model: _Offered, records: list) -> bool:
        """Give the model these records; refuse it when an output is not fit."""
        for record in records:
            try:
                why = self._judge(self._replay(model.runtime, record))
            except Exception as error:  # noqa: BLE001 - whatever is wrong with it, the live model goes on
                why = f'{type(error).__name__}: {error}'
            if why:
                self._refuse(f'model {getattr(model.bundle, "version", model.bundle)}: in shadow, '
                             f'after {model.shadowed} ticks: {why}', model.number)
                return False
            model.shadowed += model.live
        return True
