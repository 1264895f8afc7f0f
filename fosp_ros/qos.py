# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Every quality-of-service profile of the graph, by name and by topic. Nodes import it, nothing else does.

Subscriptions use the same profile as the publisher, without its deadline: a request that a plain `ros2 topic pub`
does not offer would silently keep it out. Deadlines that protect are kept on a monotonic clock by the filter.
"""

from rclpy.duration import Duration
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

REPLAY_DEPTH = 256  # more than three episodes of 80 steps: a trainer that starts late or stalls loses nothing


def _profile(depth: int, reliable: bool, latched: bool = False) -> QoSProfile:
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST, depth=depth,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE)


IMAGE = _profile(2, reliable=False)       # only the newest picture counts; a late one must not delay the next
STATE = _profile(5, reliable=False)       # poses and joint states
COMMAND = _profile(1, reliable=True)      # an old command is never worth delivering
PROPOSALS = _profile(4, reliable=True)    # the ears for command_in and command_out: of two at once both must be heard
LABEL = _profile(10, reliable=True)       # reward, cost and episode borders: a lost one would corrupt an episode
REPLAY = _profile(REPLAY_DEPTH, reliable=True)
EVENT = _profile(100, reliable=True)      # one message per finished episode
STATUS = _profile(1, reliable=True)       # the filter's state, every cycle
LATCHED = _profile(1, reliable=True, latched=True)  # model, progress, e-stop: late joiners must see the last one
ANY = _profile(10, reliable=False)        # a subscription that every publisher matches
DIAGNOSTICS = _profile(10, reliable=True)
# A latched subscription does not match a volatile publisher, a best-effort one gets no repetition of what was lost:
# whatever a button offers, one of these hears it as well as it can be heard. What is heard twice does no harm.
# Deep: a subscription of depth 1 keeps one last word, not that of each button.
ESTOP_EARS = (_profile(100, reliable=True, latched=True), ANY, _profile(10, reliable=True))


def with_deadline(profile: QoSProfile, seconds: float) -> QoSProfile:
    """Return a copy of `profile` that offers a deadline of `seconds`; for publishers only."""
    return QoSProfile(history=profile.history, depth=profile.depth, reliability=profile.reliability,
                      durability=profile.durability, deadline=Duration(seconds=seconds))
