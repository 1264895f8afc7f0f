# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The part of the safety filter's node that latches: e-stop by topic and service, latch over restarts, reset.

A mixin of SafetyFilterNode, and of use to nobody else. It works in every state of the lifecycle, since neither a
cleanup nor a restart may forget a press or a latch.
"""

import dataclasses
import threading
import time

from std_srvs.srv import SetBool, Trigger

from fosp_core.safety import filter as safety
from fosp_core.safety.filter import FilterState
from fosp_core.safety.reasons import Reason
from fosp_ros import filter_parameters
from fosp_ros.estop import Buttons
from fosp_ros.filter_witness import Witness
from fosp_ros.latch_file import LatchFile


class Latching:
    """E-stop, latch and reset; what else it needs (senses, `_inputs`, `_stop_now`) is the node's."""

    def _begin_latching(self) -> None:
        """Hear the e-stop from now on; called once, by the node's constructor."""
        self._gate = threading.RLock()      # between the executor and the watchdog's thread
        self._estop_topic = self._estop_service = False
        self.state = FilterState.initial(0)
        self.witness: Witness | None = None
        self._recall_latch()
        # First of all, as an executor serves in this order.
        self.buttons = Buttons(self, lambda pressed: self._press(topic=pressed))
        self.create_service(SetBool, 'safety_filter/estop', self._on_estop_service)

    def _serve_reset(self) -> None:
        self.serve(Trigger, 'safety_filter/reset', self._on_reset)

    def _recall_latch(self) -> None:
        """Begin with what an earlier process of this name left latched; from now on a press outlives this one, too."""
        self.latch_file = LatchFile(filter_parameters.latch_path(self.p, self.get_fully_qualified_name()),
                                    self.get_logger().warning)
        latched, service = self.latch_file.read()
        with self._gate:
            self._estop_service = self._estop_service or service
            self._latch(*latched)
            self._keep_latch()
        if latched:
            words = ', '.join(reason.word for reason in latched)
            self.get_logger().warning(f'latched since before this start: {words}; see {self.latch_file.path}')

    def _latch(self, *reasons: Reason) -> None:
        """Add to the latch without `decide`; the gate is held, and who calls this sends a stop and keeps the latch."""
        latched = tuple(sorted({*self.state.latched, *reasons}, key=lambda reason: reason.rank))
        self.state = dataclasses.replace(self.state, latched=latched, released=False, clean_since=None)

    def _keep_latch(self) -> None:
        """Let the latch outlive the process; after the stop has gone out, before anybody is told that it latched."""
        self.latch_file.put(self.state.latched, self._estop_service)

    def destroy_node(self) -> None:
        """End the thread of the latch file: not before, as an e-stop is heard until the end."""
        self.latch_file.close()
        super().destroy_node()

    def _on_estop_service(self, request, response):
        self._press(service=bool(request.data))
        response.success = True
        response.message = 'stopped; release, then call safety_filter/reset' if request.data else \
            'released; stays stopped until safety_filter/reset is called'
        return response

    def _press(self, topic: bool | None = None, service: bool | None = None) -> None:
        with self._gate:
            before = self._estop_topic, self._estop_service
            self._estop_topic = self._estop_topic if topic is None else topic
            self._estop_service = self._estop_service if service is None else service
            pressed = self._estop_topic or self._estop_service
            # The topic is heard several times.
            if before != (self._estop_topic, self._estop_service) and self.witness is not None:
                self.witness.event('estop', 'pressed' if pressed else 'released', pressed=pressed)
            if topic or service:
                self._latch(Reason.ESTOP)
            try:
                if self.active and pressed:
                    self._stop_now()
            finally:
                self._keep_latch()

    def _on_reset(self, _request, response):
        with self._gate:
            now = time.monotonic()
            latched = self.state.latched
            self.state, present = safety.reset(self._inputs(now), self.limits, self.state, now)
            self._keep_latch()
            if not present:     # what led to the latch, the arm moved by hand since: the model starts from nothing
                self._anew = True
                self.senses.forget()
                self.state = dataclasses.replace(self.state, ticks_since_first=0)
        response.success = not present
        if present:
            response.message = 'refused, still present: ' + '; '.join(f'{r.word}: {r.advice}' for r in present)
            if self.buttons.pressed:    # its node may be gone: see what the others say now
                response.message += f' (e-stop buttons are asked again, {self.buttons.doubt or "a second from now"})'
                self.buttons.ask()
        else:
            response.message = f'cleared: {", ".join(r.word for r in latched) or "nothing was latched"}'
        self.get_logger().info(f'reset: {response.message}')
        self.witness.event('reset', response.message, done=response.success)
        return response
