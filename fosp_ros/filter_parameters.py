# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Parameters of the safety filter, the limits made of them, and which of them weaken it. The filter node imports it.

The defaults guard the arm of SafeReach (Franka Panda). What weakens a protection cannot be changed while the node is
active, and is reported for as long as it lasts.
"""

import math
from pathlib import Path

from fosp_core.contract import Contract
from fosp_core.errors import FospError
from fosp_core.safety.limits import FilterLimits
from fosp_ros import observing
from fosp_ros.model_slot import SHADOW_TICKS
from fosp_ros.parameters import P

OFF = 'off'
JOINTS = [f'panda_joint{k}' for k in range(1, 8)]

PARAMETERS = (
    P('model', 'string', '', 'Folder of the model bundle. Empty: the model that the package ships.', read_only=True),
    P('contract', 'string', '', 'Contract file. Empty: config/contract_safereach.yaml.', read_only=True),
    P('filter_enabled', 'bool', True, 'Use the learned risk. Off: limits and stops alone guard; WARN while it lasts. '
      'Cannot be changed while active.'),
    observing.LABELS,
    P('pairing_tolerance_s', 'double', 0.05, 'Largest difference of stamps between picture and pose.', unit='s',
      low=0.0, high=1.0, read_only=True),
    P('pairing_wait_s', 'double', 0.01, 'How long a picture waits for messages of its very stamp.', unit='s',
      low=0.0, high=0.1, read_only=True),
    P('deadline_s', 'double', 0.07, 'From the arrival of a picture to the decision; later is late and holds.',
      unit='s', low=0.005, high=1.0, read_only=True),
    P('watchdog_s', 'double', 0.18, 'From the arrival of the last answered picture until the watchdog sends stop.',
      unit='s', low=0.02, high=1.0, read_only=True),
    P('position_vector', 'string', 'ee_pose', 'Vector of the contract whose first entries are the position in the '
      'frame of the command.', read_only=True),
    P('max_speed', 'double', 0.42, 'Largest norm of the command.', unit='m/s', low=0.001, high=2.0, read_only=True),
    P('max_acceleration', 'double', 4.0, 'Largest change of the command per second; a stop, and braking straight, '
      'excepted.', unit='m/s^2', low=0.01, high=50.0, read_only=True),
    P('max_step', 'double', 0.10, 'Largest way from where the arm was measured to where it is when a command ceases to '
      'act.', unit='m', low=0.001, high=10.0, read_only=True),
    P('workspace_low', 'double_array', [0.29, -0.45, 0.01], 'Lower corner of the workspace box. Empty: no box, WARN.',
      unit='m', read_only=True),
    P('workspace_high', 'double_array', [0.71, 0.45, 0.35], 'Upper corner of the workspace box.', unit='m',
      read_only=True),
    P('workspace_margin', 'double', 0.05, 'A position measured further outside the box latches a stop.', unit='m',
      low=0.0, high=1.0, read_only=True),
    P('joint_names', 'string_array', JOINTS, 'Guarded joints; all must be in `joint_states`. Empty: none, WARN.',
      read_only=True),
    P('joint_low', 'double_array', [-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973],
      'Lower position limits, in the order of `joint_names`.', unit='rad', read_only=True),
    P('joint_high', 'double_array', [2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973],
      'Upper position limits.', unit='rad', read_only=True),
    P('joint_speed', 'double_array', [2.175, 2.175, 2.175, 2.175, 2.61, 2.61, 2.61], 'Speed limits.', unit='rad/s',
      read_only=True),
    P('joint_margin', 'double', 0.02, 'A joint measured further beyond a limit latches a stop.', unit='rad', low=0.0,
      high=1.0, read_only=True),
    P('joint_ahead_s', 'double', 0.3, 'Motion of this time must fit before a joint limit.', unit='s', low=0.0,
      high=5.0, read_only=True),
    P('max_jump', 'double', 0.06, 'A measured step larger than the command explains by this much stops.', unit='m',
      low=0.001, high=10.0, read_only=True),
    P('frozen_distance', 'double', 0.03, 'Motion without a changed picture that means a frozen camera.', unit='m',
      low=0.001, high=1.0, read_only=True),
    P('release_s', 'double', 0.3, 'All must be well for so long before motion resumes.', unit='s', low=0.0, high=60.0,
      read_only=True),
    P('ramp_s', 'double', 0.5, 'From a fifth of the speed to all of it after a stop.', unit='s', low=0.0, high=60.0,
      read_only=True),
    P('slow_factor', 'double', 0.5, 'Part of the speed while the model is surprised.', low=0.0, high=1.0,
      read_only=True),
    P('retreat_speed', 'double', 0.1, 'Speed of the retreat along the recent path.', unit='m/s', low=0.0, high=0.25,
      read_only=True),
    P('alert_factor', 'double', 0.3, 'Part of the risk level that holds while alert: from a proposal beyond the level '
      'until `alert_s` later. 1: no alert, WARN.', low=0.0, high=1.0, read_only=True),
    P('alert_s', 'double', 1.0, 'How long an alert outlasts the last proposal beyond the level. 0: no alert, WARN.',
      unit='s', low=0.0, high=60.0, read_only=True),
    P('latch_after_s', 'double', 2.0, 'Surprise beyond the stop level latches when it lasts so long.', unit='s',
      low=0.0, high=600.0, read_only=True),
    P('latch_file', 'string', '', 'Where the latch outlives the process. Empty: fosp/latch-<namespace>.<name>.json in '
      'the ROS log directory; a relative path lies in fosp there too; off: a restart forgets the latch, WARN.',
      read_only=True),
    SHADOW_TICKS,
    P('audit', 'bool', True, 'Write every tick to the audit (`fosp audit`).', read_only=True),
    P('audit_dir', 'string', '', 'Folder of the audit. Empty: fosp/audit in the ROS log directory.', read_only=True),
    P('audit_file_mb', 'int', 16, 'Size at which an audit file is followed by another; 16 MB hold about 45 minutes.',
      unit='MiB', low=1, high=1024, read_only=True),
    P('audit_total_mb', 'int', 256, 'Size of all audit files of the folder; the oldest ones are deleted.', unit='MiB',
      low=1, high=65536, read_only=True),
    P('incidents', 'bool', True, 'Write a bag of the last seconds on each stop that has a cause.', read_only=True),
    P('incident_dir', 'string', '', 'Folder of the bags. Empty: fosp/incidents in the ROS log directory.',
      read_only=True),
    P('incident_seconds', 'double', 10.0, 'How much before the stop is kept.', unit='s', low=1.0, high=60.0,
      read_only=True),
    P('incident_every_s', 'double', 10.0, 'Shortest time between two bags, but for a cause that latches; stops in '
      'between are counted.', unit='s', low=0.0, high=3600.0, read_only=True),
    P('incident_keep', 'int', 20, 'Bags that stay; the oldest ones are deleted.', low=1, high=10000, read_only=True),
    P('incident_memory_mb', 'int', 64, 'Pictures held in memory as they came; larger ones go back less far.',
      unit='MiB', low=1, high=4096, read_only=True),
)

# name -> +1: more of it is weaker; -1: less of it is weaker
_WEAKER = {'max_speed': 1, 'max_acceleration': 1, 'max_step': 1, 'workspace_margin': 1, 'joint_margin': 1,
           'joint_ahead_s': -1, 'max_jump': 1, 'frozen_distance': 1, 'release_s': -1, 'ramp_s': -1, 'slow_factor': 1,
           'latch_after_s': 1, 'alert_factor': 1, 'alert_s': -1, 'deadline_s': 1, 'watchdog_s': 1,
           'pairing_tolerance_s': 1, 'shadow_ticks': -1}
# A calibration beyond these is reported as weak: the shipped one has alpha 0.1 and its level is below a third.
LAX_LEVEL = 0.5     # risk within which more violations than not may lie
ARM_PERIODS = 2     # after so many without a command the arm must stand still by itself
LAX_ALPHA = 0.2     # share of the violations, or of the surprises, that may come unannounced


def limits_of(p, contract: Contract) -> FilterLimits:
    """Build the limits from the live parameters and the contract; raise FospError naming what is wrong."""
    lengths = len(p.workspace_low), len(p.workspace_high)
    if lengths not in ((contract.action.size,) * 2, (0, 0)):
        raise FospError(f'parameters workspace_low and workspace_high have {lengths[0]} and {lengths[1]} entries, '
                        f'expected {contract.action.size} each, as the action of contract {contract.name!r}, or none')
    return FilterLimits(
        low=contract.action.low, high=contract.action.high, period=contract.period, staleness=contract.staleness_s,
        acts=acts_for(p, contract), max_speed=p.max_speed, max_acceleration=p.max_acceleration, max_step=p.max_step,
        box_low=tuple(p.workspace_low), box_high=tuple(p.workspace_high), box_margin=p.workspace_margin,
        joint_names=tuple(p.joint_names), joint_low=tuple(p.joint_low), joint_high=tuple(p.joint_high),
        joint_speed=tuple(p.joint_speed), joint_margin=p.joint_margin, joint_ahead=p.joint_ahead_s, max_jump=p.max_jump,
        frozen_distance=p.frozen_distance, release=p.release_s, ramp=p.ramp_s, slow_factor=p.slow_factor,
        retreat_speed=p.retreat_speed, alert_factor=p.alert_factor, alert_hold=p.alert_s, latch_after=p.latch_after_s)


def acts_for(p, contract: Contract) -> float:
    """Return for how long a command may act, s: until the watchdog's stop; when the filter dies, the arm's own."""
    return max(p.watchdog_s, ARM_PERIODS * contract.period)


def latch_path(p, name: str) -> Path | None:
    """Return the latch file of the node with that full name, or None when it is switched off."""
    if p.latch_file == OFF:
        return None
    from rclpy.logging import get_logging_directory
    return Path(get_logging_directory()) / 'fosp' / (p.latch_file or f'latch-{name.strip("/").replace("/", ".")}.json')


def weakened(p, contract: Contract) -> list[str]:
    """Return the names of the parameters that guard less than they do by default."""
    defaults = {row.name: row.default for row in PARAMETERS}
    found = [] if p.filter_enabled else ['filter_enabled']
    found += ['latch_file'] if p.latch_file == OFF else []
    found += [name for name in ('workspace_low', 'joint_names') if not getattr(p, name)]
    found += _wider(p.workspace_low, defaults['workspace_low'], -1, 'workspace_low')
    found += _wider(p.workspace_high, defaults['workspace_high'], 1, 'workspace_high')
    # Other joints are another arm, of which nothing is known here; some of these and not all leave one unguarded.
    if set(JOINTS) & set(p.joint_names) and set(JOINTS) - set(p.joint_names):
        found.append('joint_names')
    for name, sign in (('joint_low', -1), ('joint_high', 1), ('joint_speed', 1)):
        ours, theirs = dict(zip(p.joint_names, getattr(p, name))), dict(zip(JOINTS, defaults[name]))
        both = [joint for joint in JOINTS if joint in ours]
        found += _wider([ours[j] for j in both], [theirs[j] for j in both], sign, name)
    found += [name for name, sign in _WEAKER.items()
              if sign * (getattr(p, name) - defaults[name]) > 1e-12 and not math.isclose(getattr(p, name),
                                                                                        defaults[name])]
    if p.watchdog_s >= 2 * contract.period and 'watchdog_s' not in found:
        found.append('watchdog_s')
    return found


def idle(p, contract: Contract) -> list[str]:
    """Return the limits that can never act, because the range of the contract or another limit is within them."""
    reach = math.hypot(*(max(-low, high) for low, high in zip(contract.action.low, contract.action.high)))
    found = ['max_speed'] if p.max_speed >= reach else []
    reach = min(reach, p.max_speed)
    if p.max_acceleration * contract.period >= 2.0 * reach:     # from full ahead to full astern
        found.append('max_acceleration')
    if p.max_step >= reach * (acts_for(p, contract) + p.deadline_s):     # the measurement is older than that if late
        found.append('max_step')
    return found


def lax(calibration) -> list[str]:
    """Return what of a bundle's calibration guards less than a sound one; see LAX_LEVEL and LAX_ALPHA."""
    found, inherited = [], calibration.get('inherited_from', '')
    for gate in ('reachability', 'surprise'):
        values = calibration[gate]
        alpha, n = float(values.get('alpha', 1.0)), values.get('n', 0)
        if not alpha <= LAX_ALPHA:
            found.append(f'{gate} alpha {alpha:g}')
        # The conformal quantile of rank ceil((n + 1) (1 - alpha)) exists among n values only when n is large enough.
        if inherited:
            found.append(f'{gate} level inherited from {inherited}')
        elif not values.get('guaranteed', True) or math.ceil((n + 1) * (1.0 - alpha) - 1e-9) > n:
            found.append(f'{gate} not guaranteed')
    if not float(calibration['reachability']['level']) <= LAX_LEVEL:
        found.append(f'reachability level {float(calibration["reachability"]["level"]):g}')
    return found


def _wider(values, defaults, sign: int, name: str) -> list[str]:
    """Return the name when an entry is weaker than its default (`sign` as in _WEAKER)."""
    return [name] if any(sign * (v - d) > 1e-9 for v, d in zip(values, defaults)) else []
