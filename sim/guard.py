# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The safety filter without ROS: the node's parameters, runtime and `decide` around one environment, in lockstep.

For `fosp evaluate`. No deadlines here, since simulated time waits; what the filter decides is the node's decision.
"""

import dataclasses
import types

import numpy as np
import yaml

from fosp_core import paths
from fosp_core.safety import filter as safety
from fosp_core.safety.candidates import candidates
from fosp_core.safety.limits import Situation, apply_limits
from fosp_core.safety.reasons import Reason
from fosp_ros import filter_parameters
from fosp_ros.parameters import check_values


def filter_settings() -> types.SimpleNamespace:
    """Return the filter's parameters as `config/safety_filter.yaml` sets them."""
    file = paths.config_file('safety_filter.yaml')
    (node,) = yaml.safe_load(file.read_text()).values()
    values = {p.name: p.default for p in filter_parameters.PARAMETERS}
    known = {k: v for k, v in node['ros__parameters'].items() if k != 'autostart'}
    return types.SimpleNamespace(**(values | check_values(filter_parameters.PARAMETERS, known, str(file))))


class Guard:
    """Calls the filter once per step. Each episode begins like the first, so that it ends the same in any order.

    The node's state goes on from episode to episode: after one that ended in a stop the next begins with the release
    wait and the ramp, after a latched stop with an operator's reset. These waits an evaluation does not count.
    """

    def __init__(self, bundle):
        from fosp_core.deploy.runtime import FilterRuntime
        self.contract = bundle.contract
        self.runtime = FilterRuntime(bundle)
        self.limits = filter_parameters.limits_of(filter_settings(), self.contract)
        calibration = bundle.calibration
        self.levels = (calibration['reachability']['level'], calibration['surprise']['level_slow'],
                       calibration['surprise']['level_stop'])
        self.reset()

    def reset(self) -> None:
        """Begin an episode: a resting arm, nothing latched. The clock too, for times that are summed up round."""
        self.runtime.reset()
        self.now = 0.0
        self.state = safety.FilterState.initial(self.limits.size)
        self._settled = False

    def __call__(self, env, observation: dict, previous: np.ndarray, is_first: bool,
                 action: np.ndarray) -> tuple[np.ndarray, str]:
        """Filter one proposed action (A,) in [-1, 1]; return what is sent, in [-1, 1], and which stage altered
        it: one of `reasons.STAGES`, 'risk' for an intervention, or empty.
        """
        limits, contract = self.limits, self.contract
        self.now += limits.period
        last = self.state.last
        path = () if is_first else self.state.path
        situation = self._situation(env, observation)
        proposal = contract.action.denormalise(action)
        made = candidates(proposal, limits, situation, last, path)
        scored = self.runtime.step(observation, contract.action.normalise(last), is_first,
                                   contract.action.normalise(made.commands))
        offline = apply_limits(contract.action.denormalise(scored.offline_action), limits, situation, last)[0]
        risk = np.append(np.asarray(scored.risk, np.float64), scored.offline_risk)
        output = safety.ModelOutput(made.with_command(offline, Reason.RISK_OFFLINE), risk, scored.surprise,
                                    *self.levels)
        ages = dict.fromkeys(('camera', 'command', 'pose', 'joints'), 0.0)
        inputs = safety.FilterInputs(proposal=proposal, ages=ages, situation=situation, model_ready=True,
                                     is_first=is_first)
        if not self._settled:
            self._settle(inputs, output)
        command, _, self.state = safety.decide(inputs, output, limits, self.state, self.now)
        return contract.action.normalise(command), self.state.record.altered

    def _settle(self, inputs, output) -> None:
        """Let the release interval and the ramp pass while the arm rests: an evaluation does not count that wait."""
        standing = safety.FilterInputs(**{**vars(inputs), 'proposal': np.zeros(self.limits.size)})
        for _ in range(int((self.limits.release + self.limits.ramp) / self.limits.period) + 2):
            _, _, self.state = safety.decide(standing, output, self.limits, self.state, self.now)
            self.now += self.limits.period
        # What it would have sent meanwhile moved nothing: the arm rests.
        self.state = dataclasses.replace(self.state, last=np.zeros(self.limits.size))
        self._settled = True

    def _situation(self, env, observation: dict) -> Situation:
        names, position, velocity = env.joint_state()
        index = [names.index(name) for name in self.limits.joint_names]
        return Situation(observation['ee_pose'].astype(np.float64), position[index], velocity[index])
