# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The safety filter's decision: one pure function of everything. No ROS, no clock, no file; anyone may import it.

`decide(inputs, model_output, limits, state, now)` returns the command, the reason and the next state. Stop is the
initial state: each condition must be proved before anything moves, and whatever is missing counts against moving.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from fosp_core.safety.calibration import SURPRISE_SKIP, SURPRISE_TICKS
from fosp_core.safety.candidates import Candidates
from fosp_core.safety.limits import (
    FilterLimits,
    Situation,
    apply_limits,
    checked_command,
    measured_faults,
    violations,
)
from fosp_core.safety.reasons import Reason, most_restrictive

RAMP_START = 0.2        # of the speed, when motion resumes
LATE_RUN = 3            # late ticks in a row that stop
LATE_MANY, LATE_WINDOW = 8, 32  # late ticks among so many that stop
PATH_LENGTH = 20        # positions remembered for the retreat
STALE = {'camera': Reason.CAMERA_STALE, 'pose': Reason.POSE_STALE, 'joints': Reason.JOINTS_STALE,
         'command': Reason.COMMAND_STALE}


@dataclasses.dataclass(frozen=True, eq=False)
class FilterInputs:
    """What the node gathered for one tick.

    proposal: the command as received, or None; ages: kind of source ('camera', 'pose', 'joints', 'command') -> age of
    its oldest member in s; faults: what the node itself saw; late: this tick has missed its time; versions_differ: the
    learner runs another model, which is told and decides nothing.
    """

    proposal: object | None
    ages: Mapping[str, float]
    situation: Situation = Situation()
    faults: tuple[Reason, ...] = ()
    estop: bool = False
    model_ready: bool = False
    late: bool = False
    is_first: bool = False
    enabled: bool = True
    versions_differ: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class ModelOutput:
    """What the model says: risk (N,) of each candidate, surprise in nats, and the calibrated levels."""

    candidates: Candidates
    risk: np.ndarray
    surprise: float
    level: float
    level_slow: float
    level_stop: float


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """What one tick did, for topic and audit. Numbers that were not to be had are NaN; `level` is the one in force.

    altered: one of `reasons.STAGES` when what was sent is not what was proposed, else empty; 'risk' is an intervention.
    """

    reason: Reason = Reason.STARTING
    rules: tuple[Reason, ...] = ()
    nominal: tuple[float, ...] | None = None
    sent: tuple[float, ...] = ()
    risk: float = math.nan
    risk_nominal: float = math.nan
    level: float = math.nan
    surprise: float = math.nan
    altered: str = ''


@dataclasses.dataclass(frozen=True, eq=False)
class FilterState:
    """What is carried from tick to tick. `FilterState.initial` is stop."""

    last: np.ndarray
    sent_at: float = -math.inf
    path: tuple[np.ndarray, ...] = ()
    latched: tuple[Reason, ...] = ()
    released: bool = False
    clean_since: float | None = None
    resumed_at: float = -math.inf
    late: tuple[bool, ...] = ()
    ticks_since_first: int = 0
    slow_run: int = 0
    stop_run: int = 0
    strange_since: float | None = None
    alert_until: float = -math.inf
    ticks: int = 0
    interventions: int = 0
    counts: Mapping[Reason, int] = dataclasses.field(default_factory=dict)
    record: Record = Record()

    @classmethod
    def initial(cls, size: int) -> 'FilterState':
        """Nothing proved, nothing sent."""
        return cls(np.zeros(size))


def decide(inputs: FilterInputs, model_output: ModelOutput | None, limits: FilterLimits, state: FilterState,
           now: float) -> tuple[np.ndarray, Reason, FilterState]:
    """Decide what leaves on this tick.

    Parameters
    ----------
    inputs : FilterInputs
        What was gathered.
    model_output : ModelOutput or None
        None when the model did not run or failed on this tick.
    limits : FilterLimits
        What is allowed.
    state : FilterState
        The state that the previous tick returned.
    now : float
        Monotonic time, s.

    Returns
    -------
    tuple
        Command (A,) float64 in m/s, the reason that won, and the next state.

    """
    state = _remember(inputs, model_output, state, now)
    # The reach of the acceleration is one of time: a camera of three times the rate must not treble it.
    passed = min(max(now - state.sent_at, 0.0), limits.period)
    limits = dataclasses.replace(limits, max_acceleration=max(limits.max_acceleration * passed / limits.period, 1e-6))
    state = dataclasses.replace(state, sent_at=now)
    state, level = _alert(inputs, model_output, limits, state, now)
    blockers = _blockers(inputs, model_output, limits, state, now)
    latched = tuple(sorted({*state.latched, *(b for b in blockers if b.latching)}, key=lambda reason: reason.rank))
    state = dataclasses.replace(state, latched=latched)
    rules: tuple[Reason, ...] = (*latched, *(b for b in blockers if b not in latched))
    if rules:
        state = dataclasses.replace(state, released=False, clean_since=None)
        if Reason.REPEATED_LATE in rules:
            state = dataclasses.replace(state, late=())
        return _finish(np.zeros(limits.size), rules, inputs, model_output, None, state)
    state, wait = _release(inputs, limits, state, now)
    if wait is not None:
        return _finish(np.zeros(limits.size), (wait,), inputs, model_output, None, state)
    if inputs.late or inputs.proposal is None:
        return _finish(np.zeros(limits.size), (Reason.LATE_HOLD,), inputs, model_output, None, state)
    command, rules, index = _command(inputs, model_output, level, limits, state, now)
    broken = violations(command, limits, inputs.situation, state.last)
    if broken:  # cannot happen; if it does, nothing is believed any more
        state = dataclasses.replace(state, latched=(Reason.INTERNAL_FAULT,), released=False, clean_since=None)
        return _finish(np.zeros(limits.size), (Reason.INTERNAL_FAULT, *broken), inputs, model_output, None, state)
    return _finish(command, rules, inputs, model_output, index, state, level)


def choose(risk: np.ndarray, commands: np.ndarray, level: float) -> int:
    """Return the candidate nearest to the first one among those within the level; if none is, the least risky.

    Equal distances go to the lower risk, equal risks to the smaller distance.
    """
    risk = np.asarray(risk, np.float64)  # a float32 comparison would round the level
    distance = np.linalg.norm(commands - commands[0], axis=1)
    within = np.flatnonzero(risk <= level)
    if len(within):
        if within[0] == 0:  # not by distance: the offline policy may propose the very same command at a lower risk
            return 0
        return int(min(within, key=lambda i: (distance[i], risk[i], i)))
    return int(min(range(len(risk)), key=lambda i: (risk[i], distance[i], i)))


def reset(inputs: FilterInputs, limits: FilterLimits, state: FilterState,
          now: float) -> tuple[FilterState, tuple[Reason, ...]]:
    """Clear the latch unless a cause is still present; return the state and those causes.

    Motion then resumes from zero, after the release interval, along the ramp.
    """
    present = set(measured_faults(limits, inputs.situation))
    if inputs.estop:
        present.add(Reason.ESTOP)
    if Reason.OUT_OF_DISTRIBUTION in state.latched and state.strange_since is not None:
        present.add(Reason.OUT_OF_DISTRIBUTION)
    if present:
        return state, tuple(sorted(present, key=lambda reason: reason.rank))
    cleared = dataclasses.replace(state, latched=(), released=False, clean_since=None, last=np.zeros(limits.size),
                                  path=(), late=())
    return cleared, ()


def _remember(inputs: FilterInputs, output: ModelOutput | None, state: FilterState, now: float) -> FilterState:
    """Advance what must advance on every tick, whatever is decided."""
    if inputs.is_first:
        # Not `last`: the arm goes on with it, whatever the label says.
        state = dataclasses.replace(state, path=(), ticks_since_first=0, slow_run=0, stop_run=0, strange_since=None,
                                    alert_until=-math.inf)
    slow, stop, strange = state.slow_run, state.stop_run, state.strange_since
    since = state.ticks_since_first
    if output is not None:
        counts = since >= SURPRISE_SKIP
        slow = slow + 1 if counts and not output.surprise <= output.level_slow else 0
        stop = stop + 1 if counts and not output.surprise <= output.level_stop else 0
        strange = (now if strange is None else strange) if stop >= SURPRISE_TICKS else None
        since += 1
    path = state.path
    position = inputs.situation.position
    if position is not None and np.isfinite(position).all() \
            and (not path or np.linalg.norm(position - path[-1]) > 1e-3):
        path = (*path[-(PATH_LENGTH - 1):], position.copy())
    return dataclasses.replace(state, path=path, ticks_since_first=since, slow_run=slow, stop_run=stop,
                               strange_since=strange, late=(*state.late[-(LATE_WINDOW - 1):], bool(inputs.late)),
                               ticks=state.ticks + 1)


def _blockers(inputs: FilterInputs, output: ModelOutput | None, limits: FilterLimits, state: FilterState,
              now: float) -> list[Reason]:
    """Return every cause that forbids motion on this tick."""
    found = list(inputs.faults)
    if inputs.estop:
        found.append(Reason.ESTOP)
    if inputs.enabled and not inputs.model_ready:
        found.append(Reason.NO_MODEL)
    stale = [kind for kind, age in inputs.ages.items() if not age <= limits.staleness]
    silent = [kind for kind in inputs.ages if kind != 'command']
    if silent and all(kind in stale for kind in silent):
        found.append(Reason.IDLE)
    else:
        found += [STALE[kind] for kind in stale]
    # A source that a limit needs and that nobody mentions is as good as dead.
    needed = {'camera', 'command'} | ({'pose'} if limits.box_low else set()) | ({'joints'} if limits.joint_names
                                                                                 else set())
    found += [STALE[kind] for kind in needed - set(inputs.ages)]
    situation = inputs.situation
    if situation.position is not None and not np.isfinite(situation.position).all():
        found.append(Reason.POSE_INVALID)
    for joints in (situation.joint_position, situation.joint_velocity):
        if joints is not None and (joints.shape != (len(limits.joint_names),) or not np.isfinite(joints).all()):
            found.append(Reason.JOINTS_INVALID)
    if not {Reason.POSE_INVALID, Reason.JOINTS_INVALID} & set(found):
        found += measured_faults(limits, situation)
    if inputs.proposal is not None and checked_command(inputs.proposal, limits.size) is None:
        found.append(Reason.COMMAND_INVALID)
    if inputs.enabled and output is not None:
        if not _numbers(output, limits.size):
            found.append(Reason.MODEL_FAULT)
        elif state.strange_since is not None:
            found.append(Reason.SURPRISE_STOP)
            if now - state.strange_since >= limits.latch_after:
                found.append(Reason.OUT_OF_DISTRIBUTION)
    elif inputs.enabled and not inputs.late and inputs.proposal is not None and Reason.COMMAND_INVALID not in found:
        found.append(Reason.MODEL_FAULT)
    if all(state.late[-LATE_RUN:]) and len(state.late) >= LATE_RUN or sum(state.late) >= LATE_MANY:
        found.append(Reason.REPEATED_LATE)
    return sorted(set(found), key=lambda reason: reason.rank)


def _numbers(output: ModelOutput, size: int) -> bool:
    """Return whether the model's answer is complete and finite."""
    commands = output.candidates.commands
    levels = (output.surprise, output.level, output.level_slow, output.level_stop)
    return (commands.ndim == 2 and commands.shape[1] == size and len(commands) == len(output.candidates.labels) > 0
            and output.risk.shape == (len(commands),) and bool(np.isfinite(commands).all())
            and bool(np.isfinite(output.risk).all()) and all(math.isfinite(level) for level in levels))


def _release(inputs: FilterInputs, limits: FilterLimits, state: FilterState,
             now: float) -> tuple[FilterState, Reason | None]:
    """Debounce: motion resumes when all was well for `release` seconds; a trigger is never delayed."""
    if state.released:
        return state, None
    if inputs.late or inputs.proposal is None:
        return dataclasses.replace(state, clean_since=None), Reason.LATE_HOLD
    since = now if state.clean_since is None else state.clean_since
    if now - since < limits.release:
        return dataclasses.replace(state, clean_since=since), Reason.RELEASING
    # The path of before the stop is forgotten: the arm may have been moved by hand meanwhile.
    return dataclasses.replace(state, released=True, resumed_at=now, path=state.path[-1:]), None


def _alert(inputs: FilterInputs, output: ModelOutput | None, limits: FilterLimits, state: FilterState,
           now: float) -> tuple[FilterState, float]:
    """Return the level of this tick: a part of the calibrated one from a proposal beyond it until `alert_hold` later.

    The nearest of a dozen candidates within the level tends to be one whose estimate errs low: an arm that is let
    through there slides along the obstacle, tick after tick, until it touches. So once too risky, it must back off
    clearly.
    """
    if output is None or not inputs.enabled or not _numbers(output, limits.size):
        return state, math.nan
    if not float(output.risk[0]) <= output.level:
        state = dataclasses.replace(state, alert_until=now + limits.alert_hold)
    return state, output.level * (limits.alert_factor if now < state.alert_until else 1.0)


def _command(inputs: FilterInputs, output: ModelOutput | None, level: float, limits: FilterLimits,
             state: FilterState, now: float) -> tuple[np.ndarray, tuple[Reason, ...], int | None]:
    """Choose, slow down, limit: in this order, so that the limits see what is about to leave."""
    proposal = checked_command(inputs.proposal, limits.size)
    rules: list[Reason] = []
    index = None
    if not inputs.enabled:
        command = proposal
        rules.append(Reason.LIMITS_ONLY)
    else:
        index = choose(output.risk, output.candidates.commands, level)
        command = output.candidates.commands[index]
        if not float(output.risk[index]) <= level:
            rules.append(Reason.RISK_LEAST)
        elif index > 0:
            rules.append(output.candidates.labels[index])
        # The candidates were limited before they were scored; the limits that shaped the proposal are named here.
        _, shaped = apply_limits(proposal, limits, inputs.situation, state.last)
        rules += shaped if index == 0 else ()
        if state.slow_run >= SURPRISE_TICKS:
            command = limits.slow_factor * command
            rules.append(Reason.SURPRISE_SLOW)
    ramp = _ramp(limits, state, now)
    if ramp < 1.0:
        command = ramp * command
        rules.append(Reason.RAMP)
    command, acted = apply_limits(command, limits, inputs.situation, state.last)
    return command, tuple(dict.fromkeys((*rules, *acted))), index


def _ramp(limits: FilterLimits, state: FilterState, now: float) -> float:
    """Return the part of the speed that is allowed; 1 and more: all of it."""
    if limits.ramp <= 0:
        return 1.0
    return RAMP_START + (1.0 - RAMP_START) * (now - state.resumed_at) / limits.ramp


def _finish(command: np.ndarray, rules: tuple[Reason, ...], inputs: FilterInputs, output: ModelOutput | None,
            index: int | None, state: FilterState,
            level: float | None = None) -> tuple[np.ndarray, Reason, FilterState]:
    """Write the record of this tick and count."""
    rules = (*rules, Reason.VERSIONS_DIFFER) if inputs.versions_differ else rules
    reason = most_restrictive(rules)
    nominal = checked_command(inputs.proposal, len(command))
    changed = any(r.learned for r in rules) and index != 0
    known = output is not None and output.risk.ndim == 1 and len(output.risk) > 0
    record = Record(reason=reason, rules=rules, nominal=None if nominal is None else tuple(map(float, nominal)),
                    sent=tuple(map(float, command)), risk=float(output.risk[index]) if known and index is not None
                    else math.nan, risk_nominal=float(output.risk[0]) if known else math.nan,
                    level=math.nan if output is None else output.level if level is None else level,
                    surprise=output.surprise if output is not None else math.nan,
                    altered='risk' if changed else _altered(command, rules, nominal, inputs.proposal))
    counts = dict(state.counts)
    for rule in rules or (Reason.PASS,):
        counts[rule] = counts.get(rule, 0) + 1
    state = dataclasses.replace(state, last=command.copy(), record=record, counts=counts,
                                interventions=state.interventions + changed)
    return command, reason, state


def _altered(command: np.ndarray, rules: tuple[Reason, ...], nominal: np.ndarray | None, proposal: object) -> str:
    """Return which stage but the risk made the command another one than the proposed; empty when none did."""
    if proposal is None or nominal is not None and np.allclose(command, nominal, rtol=0.0, atol=1e-9):
        return ''
    # The least risky one may be the proposal itself: what then altered it was named after it.
    return most_restrictive(r for r in rules if not r.learned).stage
