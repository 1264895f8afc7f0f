# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Holds the live model of a node and swaps in a new one between two ticks. No rclpy; learner and filter may use it.

A packed bundle is verified, loaded and warmed up in a thread, beside the live model; the recurrent state of the new one
is rebuilt from the observations of this episode. The control thread only ever takes over a finished model.
"""

import collections
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fosp_core.contract import Contract
from fosp_core.deploy.bundle import Bundle
from fosp_core.errors import FospError

CATCH_UP = 2  # steps that the control thread may replay itself when it takes over


class ModelSlot:
    """The live runtime and the way a new one comes in.

    Parameters
    ----------
    make : callable
        `Bundle -> runtime`, with `warm_up()`; e.g. PolicyRuntime.
    replay : callable
        `(runtime, record) -> None`: advance `runtime` by one remembered record.
    contract : Contract
        The contract in force; a bundle for another one is refused.
    calibrated : bool
        Refuse a bundle without a usable calibration.
    history : int
        Newest records of the episode that are remembered.

    """

    def __init__(self, make: Callable[[Bundle], Any], replay: Callable[[Any, Any], None], contract: Contract,
                 calibrated: bool = False, history: int = 128):
        self._make, self._replay = make, replay
        self._contract, self._calibrated = contract, calibrated
        self._records: collections.deque = collections.deque(maxlen=history)
        self._total = 0                      # records remembered so far, forgotten ones included
        self._lock = threading.Lock()
        self._offered: bytes | None = None
        self._ready: tuple[Any, Bundle, int] | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self.runtime: Any = None
        self.bundle: Bundle | None = None
        self.swaps = 0
        self.refused = 0
        self.refusal = ''                    # why the last offered bundle was refused

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
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name='model-loader', daemon=True)
                self._thread.start()

    def swap(self) -> bool:
        """Make the loaded model the live one if there is one; call it between two ticks. True after a swap."""
        with self._lock:
            if self._ready is None:
                return False
            runtime, bundle, done = self._ready
            missing = self._since(done)
            if len(missing) > CATCH_UP and self._thread is None:
                self._ready = None  # too far behind for this thread: let the loader catch up once more
                self._thread = threading.Thread(target=self._catch_up, args=(runtime, bundle, done), daemon=True)
                self._thread.start()
                return False
            if len(missing) > CATCH_UP:
                return False
            self._ready = None
        for record in missing:
            self._replay(runtime, record)
        self.runtime, self.bundle = runtime, bundle
        self.swaps += 1
        return True

    def close(self) -> None:
        """Take no more offers and wait for the loader."""
        with self._lock:
            self._closed, self._offered, thread = True, None, self._thread
        if thread is not None:
            thread.join(5.0)

    def _since(self, done: int) -> list:
        fresh = self._total - done
        records = list(self._records)
        return records[max(0, len(records) - fresh):] if fresh else []

    def _work(self) -> None:
        while True:
            with self._lock:
                data, self._offered = self._offered, None
                if data is None:
                    self._thread = None
                    return
            try:
                loaded = self._load(data)
            except FospError as error:
                loaded, self.refusal = None, str(error)
                self.refused += 1
            except Exception as error:  # noqa: BLE001 - whatever is wrong with it, the live model goes on
                loaded, self.refusal = None, f'{type(error).__name__}: {error}'
                self.refused += 1
            if loaded is not None:
                self._settle(*loaded, done=0)

    def _load(self, data: bytes) -> tuple[Any, Bundle] | None:
        with tempfile.TemporaryDirectory(prefix='fosp_model_') as folder:
            bundle = Bundle.unpack(data, folder, self._contract, self._calibrated)
            if self.bundle is not None and bundle.sha256 == self.bundle.sha256:
                return None
            runtime = self._make(bundle)  # reads what it needs: the folder may go
            runtime.warm_up()
            return runtime, bundle

    def _catch_up(self, runtime: Any, bundle: Bundle, done: int) -> None:
        self._settle(runtime, bundle, done)
        with self._lock:
            again = self._offered is not None and not self._closed
            if not again:
                self._thread = None
        if again:
            self._work()

    def _settle(self, runtime: Any, bundle: Bundle, done: int) -> None:
        """Replay what is remembered until at most one record is missing, then offer the model for the swap."""
        while True:
            with self._lock:
                missing = self._since(done)
                total = self._total
                if len(missing) <= 1 or self._closed:
                    self._ready = (runtime, bundle, done)
                    return
            for record in missing:
                self._replay(runtime, record)
            done = total
