# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Every reason for which the filter lets a command pass, alters it or stops. Pure; anyone may import it.

The code word is the same in the state topic, the log, the diagnostics, the documentation and the audit. The order of
the members is their rank: where several apply, the first one in this file wins. `python -m fosp_core.safety.reasons`
prints the table of docs/safety.md.
"""

import enum
from collections.abc import Iterable

OK, WARN, ERROR = 0, 1, 2
RESET = 'call `safety_filter/reset`'
CLOCK = f'; when all of it is late and its clock is known to be right, {RESET}.'
STAGES = ('risk', 'surprise', 'limits', 'stopped')     # that alter a command; the first is what counts as intervention


class Effect(enum.Enum):
    """What a reason does to the command."""

    STOP = 'stop'      # zero, and motion resumes only after all was well for a while
    HOLD = 'hold'      # zero for this tick alone
    ALTER = 'alter'    # another command than the proposed one
    PASS = 'pass'      # the proposed command


class Reason(enum.Enum):
    """One reason: code word, effect, severity, whether it latches, what it means, what the operator should do."""

    ESTOP = ('estop', Effect.STOP, ERROR, True, 'The emergency stop is pressed, or was.',
             f'Make the cell safe, release the e-stop, then {RESET}; releasing alone does not resume.')
    INTERNAL_FAULT = ('internal_fault', Effect.STOP, ERROR, True, 'The filter itself failed; the log has the trace.',
                      f'Report it; {RESET} once it is understood.')
    JOINT_LIMIT_MEASURED = ('joint_limit_measured', Effect.STOP, ERROR, True,
                            'A joint was measured beyond its position or speed limit.',
                            f'Jog the arm back within its limits, then {RESET}.')
    WORKSPACE_MEASURED = ('workspace_measured', Effect.STOP, ERROR, True,
                          'The end effector was measured outside the workspace box.',
                          f'Jog the arm back into the box, then {RESET}.')
    OUT_OF_DISTRIBUTION = ('out_of_distribution', Effect.STOP, ERROR, True,
                           'The world model went on being surprised far beyond its calibration.',
                           f'See what changed in the scene (light, camera, objects), then {RESET}; fine-tune.')
    NOT_ACTIVE = ('not_active', Effect.STOP, WARN, False, 'The filter is not activated.', 'Activate the node.')
    NO_MODEL = ('no_model', Effect.STOP, ERROR, False, 'No verified and calibrated model is loaded.',
                'Set the parameter `model` to a sound bundle: `fosp bundle verify DIR`.')
    IDLE = ('idle', Effect.STOP, WARN, False, 'No observation of any kind arrives.',
            'Start the camera and the arm, or the simulated episodes' + CLOCK)
    CAMERA_INVALID = ('camera_invalid', Effect.STOP, ERROR, False,
                      'A picture has the wrong encoding, size or rate, or stamps jump to and fro.',
                      'Set the camera to what the contract says; let one node alone publish it.')
    CAMERA_STALE = ('camera_stale', Effect.STOP, ERROR, False, 'The newest picture is too old.',
                    'Check the camera driver, its rate and its QoS (best effort)' + CLOCK)
    CAMERA_FROZEN = ('camera_frozen', Effect.STOP, ERROR, False,
                     'Stamps advance but the picture does not change while the arm moves.',
                     'Restart the camera; look for a driver that repeats its last frame.')
    POSE_INVALID = ('pose_invalid', Effect.STOP, ERROR, False,
                    'The measured pose holds NaN or infinity, is of another frame, or stamps jump to and fro.',
                    'Check the arm driver, and that only one node publishes the pose.')
    POSE_STALE = ('pose_stale', Effect.STOP, ERROR, False, 'The newest measured pose is too old.',
                  'Check the arm driver and the topic of the pose' + CLOCK)
    POSE_FROZEN = ('pose_frozen', Effect.STOP, ERROR, False,
                   'Stamps advance but the measured pose or the joints repeat themselves while the arm is commanded.',
                   'Restart the arm driver.')
    POSE_JUMP = ('pose_jump', Effect.STOP, ERROR, False,
                 'The measured pose is elsewhere than the arm can have moved to.',
                 'Check the arm driver, the frame and that only one node publishes the pose; when the pose is right, '
                 'call `safety_filter/reset`.')
    JOINTS_INVALID = ('joints_invalid', Effect.STOP, ERROR, False,
                      'Joint states lack a guarded joint, hold NaN or infinity, or stamps jump to and fro.',
                      'Compare `joint_names` with the arm driver; let one node alone publish them.')
    JOINTS_STALE = ('joints_stale', Effect.STOP, ERROR, False, 'The newest joint state is too old.',
                    'Check the arm driver and the topic `joint_states`' + CLOCK)
    LABEL_INVALID = ('label_invalid', Effect.STOP, ERROR, False,
                     'Episodes, or stamps, begin again and again within a second.',
                     'Look at the publisher of `label`: the first record of an episode alone carries the button.')
    COMMAND_INVALID = ('command_invalid', Effect.STOP, ERROR, False,
                       'The proposed command holds NaN or infinity, or has the wrong length or frame, or no stamp; all '
                       'of it is rejected.',
                       'Look at the publisher of `command_in`: its stamp is that of the picture that it answers.')
    COMMAND_CONFLICT = ('command_conflict', Effect.STOP, ERROR, False,
                        'Two commands were proposed for one picture: more than one node proposes.',
                        'Let one node alone publish `command_in`.')
    COMMAND_STALE = ('command_stale', Effect.STOP, WARN, False, 'The newest proposed command is too old.',
                     'Start the learner, or see why it fell silent.')
    MODEL_FAULT = ('model_fault', Effect.STOP, ERROR, False, 'The model failed on this observation or gave no number.',
                   'Verify the bundle; compare camera and pose with the contract.')
    REPEATED_LATE = ('repeated_late', Effect.STOP, ERROR, False,
                     'Decisions were late three times in a row, or eight times in 32.',
                     'Relieve the computer; see latency_p99_ms in /diagnostics.')
    SURPRISE_STOP = ('surprise_stop', Effect.STOP, WARN, False,
                     'The world model is surprised beyond its stop level; latches when it lasts.',
                     'Wait, or see what changed in the scene.')
    STARTING = ('starting', Effect.STOP, OK, False, 'Nothing was proved yet: stop is the initial state.', 'Wait.')
    RELEASING = ('releasing', Effect.STOP, OK, False, 'All is well again, but not yet for long enough.', 'Wait.')
    LATE_HOLD = ('late_hold', Effect.HOLD, WARN, False, 'No decision in time on this tick: zero is sent.',
                 'Nothing, when it stays rare.')
    RISK_LEAST = ('risk_least', Effect.ALTER, WARN, False,
                  'No candidate is within the risk level: the least risky one is sent.',
                  'Watch; stop the arm when it is cornered.')
    RISK_RETREAT = ('risk_retreat', Effect.ALTER, WARN, False,
                    'Too risky: the arm goes back along its recent path.', 'Nothing.')
    RISK_OFFLINE = ('risk_offline', Effect.ALTER, WARN, False,
                    'Too risky: the frozen offline policy is followed instead.', 'Nothing.')
    RISK_HOLD = ('risk_hold', Effect.ALTER, WARN, False, 'Too risky: the arm holds.', 'Nothing.')
    RISK_ESCAPE = ('risk_escape', Effect.ALTER, WARN, False,
                   'Too risky: the arm moves upwards or sideways instead.', 'Nothing.')
    RISK_SCALED = ('risk_scaled', Effect.ALTER, WARN, False, 'Too risky at full speed: slower.', 'Nothing.')
    SURPRISE_SLOW = ('surprise_slow', Effect.ALTER, WARN, False,
                     'The world model is surprised beyond its slow level: slower.', 'Nothing, when it passes.')
    LIMIT_WORKSPACE = ('limit_workspace', Effect.ALTER, OK, False,
                       'Would leave the workspace box within the time that a command may act.', 'Nothing.')
    LIMIT_JOINT_POSITION = ('limit_joint_position', Effect.ALTER, OK, False,
                            'A joint would reach its position limit.', 'Nothing.')
    LIMIT_JOINT_VELOCITY = ('limit_joint_velocity', Effect.ALTER, OK, False,
                            'A joint is at its speed limit.', 'Nothing.')
    LIMIT_RANGE = ('limit_range', Effect.ALTER, WARN, False, 'The proposal is outside the range of the contract.',
                   'Look at the publisher of `command_in`.')
    LIMIT_SPEED = ('limit_speed', Effect.ALTER, OK, False, 'Faster than the speed limit.', 'Nothing.')
    LIMIT_STEP = ('limit_step', Effect.ALTER, OK, False,
                  'Would take the arm too far from where it was measured.', 'Nothing.')
    LIMIT_ACCELERATION = ('limit_acceleration', Effect.ALTER, OK, False,
                          'A larger step from the last command than the acceleration limit allows.', 'Nothing.')
    RAMP = ('ramp', Effect.ALTER, OK, False, 'Motion has just resumed: slower for a moment.', 'Nothing.')
    LIMITS_ONLY = ('limits_only', Effect.PASS, WARN, False,
                   'The learned filter is switched off (`filter_enabled` is false): only limits and stops guard.',
                   'Set `filter_enabled` to true.')
    VERSIONS_DIFFER = ('versions_differ', Effect.PASS, WARN, False,
                       'The learner has been running another model than the filter for ten seconds.',
                       'See who refused the newest model: `last_refusal` of both in /diagnostics.')
    PASS = ('ok', Effect.PASS, OK, False, 'The proposal passed unchanged.', 'Nothing.')

    def __init__(self, word: str, effect: Effect, level: int, latching: bool, text: str, advice: str) -> None:
        self.word, self.effect, self.level = word, effect, level
        self.latching, self.text, self.advice = latching, text, advice

    @property
    def rank(self) -> int:
        """Position in the order of precedence; 0 wins over everything."""
        return _RANK[self]

    @property
    def learned(self) -> bool:
        """True when the learned risk changed the command: what counts as an intervention."""
        return self.word.startswith('risk_')

    @property
    def stage(self) -> str:
        """One of STAGES: by what a command of this reason was altered; empty when it passes. The ramp is a limit."""
        if self.effect is Effect.PASS:
            return ''
        if self.effect is not Effect.ALTER:
            return 'stopped'
        return 'risk' if self.learned else 'surprise' if self is Reason.SURPRISE_SLOW else 'limits'


_RANK = {reason: rank for rank, reason in enumerate(Reason)}
BY_WORD = {reason.word: reason for reason in Reason}


def most_restrictive(reasons: Iterable[Reason]) -> Reason:
    """Return the reason that wins; PASS when there is none."""
    return min(reasons, key=lambda reason: reason.rank, default=Reason.PASS)


def markdown() -> str:
    """Return the table of docs/safety.md."""
    severity = {OK: 'ok', WARN: 'warn', ERROR: 'error'}
    lines = ['| reason | effect | severity | latches | meaning | what to do |', '|---|---|---|---|---|---|']
    lines += [f'| `{r.word}` | {r.effect.value} | {severity[r.level]} | {"yes" if r.latching else ""} | {r.text} '
              f'| {r.advice} |' for r in Reason]
    return '\n'.join(lines) + '\n'


if __name__ == '__main__':
    print(markdown(), end='')
