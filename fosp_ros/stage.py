# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A running graph from outside, as an operator has it: its services, scored runs, resets between episodes.

For commands that start the graph and judge it: `fosp demo`, `fosp evaluate --through ros`, `fosp bench swap`.
"""

import dataclasses
import time
from collections.abc import Callable

from fosp_core.errors import FospError
from fosp_core.evaluate.statistics import summary_row
from fosp_ros.runner import GraphRunner

EPISODE_S = 12.0            # a full episode at real time with its reset, generously


@dataclasses.dataclass
class Phase:
    """One block of scored episodes; with `warm_up` after one of the layout before, which is not scored.

    Where nothing moved before, the filter first waits for all to be well: time that the first episode would lack.
    """

    task: str
    phase: str
    seeds: range
    episodes: list = dataclasses.field(default_factory=list)
    interventions: int = 0
    warm_up: bool = False

    def row(self) -> dict:
        """Return its row of the table."""
        return summary_row(self.task, self.phase, [e.success for e in self.episodes],
                           [e.violation for e in self.episodes], self.interventions)


class Stage:
    """The running graph with its services; `check` raises as soon as a node has died."""

    def __init__(self, runner: GraphRunner, observer, realtime: float):
        from rcl_interfaces.srv import SetParameters
        from std_srvs.srv import Trigger
        self.runner, self.observer, self.realtime = runner, observer, realtime
        self._trigger_type = Trigger
        self._parameters = {name: observer.node.create_client(SetParameters, f'{name}/set_parameters')
                            for name in ('sim_bridge', 'trainer')}
        self._clients = {name: observer.node.create_client(Trigger, name) for name in
                         ('sim_bridge/start', 'sim_bridge/halt', 'trainer/fine_tune', 'safety_filter/reset')}
        self.resets: list[str] = []     # latched causes that were reset, as an operator would between two episodes
        self._asked: tuple | None = None

    def check(self) -> None:
        """Raise FospError when a node has ended."""
        self.runner.check()

    def wait(self, condition: Callable[[], object], timeout: float, what: str):
        """Return the first true value; raise FospError naming what did not come."""
        value = self.observer.wait(condition, timeout, self.check)
        if not value:
            raise FospError(f'{what} did not come within {timeout:.0f} s (filter says: '
                            f'{self.observer.state.get("reason", "nothing")})')
        return value

    def ready(self, timeout: float = 90.0) -> None:
        """Wait until every service is there and the filter has a model."""
        def connected():
            return all(c.service_is_ready() for c in (*self._parameters.values(), *self._clients.values()))
        self.wait(connected, timeout, 'a service of the graph')
        self.wait(lambda: self.observer.state and self.observer.state['reason'] not in ('no_model', 'not_active'),
                  timeout, 'a filter with a model')

    def _call(self, client, request):
        future = client.call_async(request)
        self.wait(future.done, 30.0, f'the answer of {client.srv_name}')
        return future.result()

    def trigger(self, name: str) -> str:
        """Call a Trigger service; return its message or raise FospError with it."""
        answer = self._call(self._clients[name], self._trigger_type.Request())
        if not answer.success:
            raise FospError(f'{name}: {answer.message}')
        return answer.message

    def configure(self, **values) -> None:
        """Set parameters of the simulation bridge."""
        self._set('sim_bridge', values)

    def collect(self, wanted: bool) -> None:
        """Tell the trainer whether episodes that begin from now on are for it to learn from."""
        self._set('trainer', {'collect': wanted})

    def _set(self, node: str, values: dict) -> None:
        from rclpy.parameter import Parameter
        client = self._parameters[node]
        request = client.srv_type.Request(
            parameters=[Parameter(name, value=value).to_parameter_msg() for name, value in values.items()])
        for result, name in zip(self._call(client, request).results, values):
            if not result.successful:
                raise FospError(f'{node} parameter {name}: {result.reason}')

    def begin(self, task: str, seeds: range) -> None:
        """Start a run of one episode per seed."""
        self.configure(task=task, episodes=len(seeds), seed=seeds[0])
        self.trigger('sim_bridge/start')

    def finished(self, task: str, seeds: range) -> list:
        """Return the episodes of this task and these seeds that have ended, in order."""
        wanted = set(seeds)
        return [e for e in self.observer.episodes if e.task == task and e.seed in wanted]

    def unlatch(self) -> None:
        """Ask for a reset while the filter has latched; it refuses as long as the cause is present."""
        now = time.monotonic()
        if self._asked is not None:
            future, asked, cause = self._asked
            if future.done() and future.result().success:
                self.resets.append(cause)
                self._asked = None
            elif now - asked > 1.0:
                self._asked = None
        elif self.observer.state.get('latched'):
            client = self._clients['safety_filter/reset']
            self._asked = client.call_async(self._trigger_type.Request()), now, self.observer.state['latched']

    def interventions(self) -> int:
        """Interventions of the filter since it was started."""
        return int(float(self.observer.state.get('interventions', 0)))

    def run(self, phase: Phase, progress) -> Phase:
        """Run one scored phase to its end."""
        before, seen = self.interventions(), len(self.observer.episodes)
        self.begin(phase.task, range(phase.seeds[0] - phase.warm_up, phase.seeds.stop))
        shown = 0

        def done():
            nonlocal shown
            self.unlatch()
            episodes = [e for e in self.observer.episodes[seen:] if e.task == phase.task and e.seed in phase.seeds]
            for _ in episodes[shown:]:
                progress.update(1)
            shown = len(episodes)
            return episodes if shown >= len(phase.seeds) else None
        limit = 60.0 + (len(phase.seeds) + phase.warm_up) * EPISODE_S / min(self.realtime, 1.0)
        phase.episodes = self.wait(done, limit, f'the end of {len(phase.seeds)} episodes of {phase.task}')
        time.sleep(0.3)     # the state after the last tick
        phase.interventions = self.interventions() - before
        return phase

    def tune(self, advanced: Callable[[int], None]) -> tuple[str, dict]:
        """Call the service and wait for the end of the job; `advanced` is given the step.

        Returns the phase in which it ended and the trainer's values, with `seconds` from the call to its end.
        """
        began = time.monotonic()
        job = self.trigger('trainer/fine_tune')

        def over():
            self.unlatch()
            message, values = self.observer.progress
            if values.get('job') != job:
                return None
            advanced(int(float(values.get('step', 0))))
            return (message, values) if message in ('published', 'failed', 'refused', 'cancelled') else None
        phase, values = self.wait(over, 600.0, f'the end of fine-tune {job}')
        return phase, values | {'seconds': time.monotonic() - began}

    def swapped(self, version: str) -> dict[str, float]:
        """Wait until learner and filter run this version; return after how many seconds each did.

        A model that is rolled back meanwhile is waited for no longer: it is missing in the answer.
        """
        began, times = time.monotonic(), {}

        def back():
            return self.observer.progress[0] == 'rolled back'

        def there(read):
            self.unlatch()
            return read() == version or back()
        for node, read in (('learner', lambda: self.observer.diagnostics.get('learner', {}).get('version')),
                           ('safety_filter', lambda: self.observer.state.get('version'))):
            self.wait(lambda read=read: there(read), 60.0, f'the new model in {node}')
            if not back():
                times[node] = time.monotonic() - began
        return times

    def fine_tune(self, task: str, seeds: range, progress) -> dict:
        """Fine-tune while the arm goes on moving; wait until learner and filter run the new model.

        One that a gate refuses is an outcome, not a fault: the arm goes on with its parent, and `refused` says why.
        """
        self.begin(task, seeds)
        phase, values = self.tune(lambda step: step > progress.n and progress.update(step - progress.n))
        if phase == 'refused':
            self.trigger('sim_bridge/halt')
            time.sleep(1.0)
            return {'job': values['job'], 'refused': values.get('reason', 'no reason given'),
                    'seconds': values['seconds']}
        if phase != 'published':
            raise FospError(f'fine-tune {values["job"]} {phase}: {values.get("reason", "no reason given")}')
        times = self.swapped(values['version'])
        self.trigger('sim_bridge/halt')
        time.sleep(1.0)
        return {'job': values['job'], 'version': values['version'], 'sha256': values.get('sha256', ''),
                'seconds': values['seconds'], 'swap': times}
