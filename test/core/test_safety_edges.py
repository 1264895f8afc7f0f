# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The edges of the safety core: exact boundaries, exact words, orders and counts. Mutation testing asked for them."""

import math
import sys

import numpy as np
import pytest

from fosp_core.errors import BundleError, FospError
from fosp_core.safety import calibration as cal
from fosp_core.safety.candidates import Candidates, candidates
from fosp_core.safety.filter import FilterInputs, FilterState, ModelOutput, decide, reset
from fosp_core.safety.freshness import DRIFT, FrozenPicture, Source
from fosp_core.safety.limits import FilterLimits, Situation, apply_limits
from fosp_core.safety.reasons import Reason, markdown

LIMITS = FilterLimits(low=(-0.25,) * 3, high=(0.25,) * 3, period=0.1, staleness=0.25, max_speed=0.3,
                      box_low=(0.3, -0.4, 0.03), box_high=(0.7, 0.4, 0.5))
HERE = Situation(np.array([0.5, 0.0, 0.2]))
FRESH = {'camera': 0.0, 'pose': 0.0, 'command': 0.0}


def at_rest(**changes):
    return FilterLimits(**{f: getattr(LIMITS, f) for f in LIMITS.__dataclass_fields__} | changes)


def good(**changes):
    return FilterInputs(**{'proposal': (0.1, 0.05, 0.0), 'ages': FRESH, 'situation': HERE, 'model_ready': True,
                           **changes})


def answer(inputs, state, risk=0.1, limits=LIMITS, **changes):
    made = candidates(inputs.proposal, limits, inputs.situation, state.last, state.path)
    return ModelOutput(**{'candidates': made, 'risk': np.full(len(made.commands), risk), 'surprise': 1.0, 'level': 0.5,
                          'level_slow': 5.0, 'level_stop': 9.0, **changes})


def tick(inputs, state, now, limits=LIMITS, **output):
    return decide(inputs, answer(inputs, state, limits=limits, **output), limits, state, now)


def moving(limits=LIMITS):
    state = FilterState.initial(3)
    for k in range(20):
        _, _, state = tick(good(), state, 0.1 * k, limits)
    return state


# --- calibration.json -------------------------------------------------------------------------------------------------

def sound(path='', value=None):
    """Return a usable calibration, with one key (a/b) set to `value`, or removed when that is `...`."""
    made = {'schema': 1, 'reachability': {'level': 0.3, 'alpha': 0.1, 'n': 20},
            'surprise': {'level_slow': 5.0, 'level_stop': 9.0, 'alpha': 0.1, 'n': 20}, 'data_hash': 'x'}
    *where, key = path.split('/')
    inner = made
    for name in where:
        inner = inner[name]
    if value is ...:
        del inner[key]
    elif path:
        inner[key] = value
    return made


@pytest.mark.parametrize(('path', 'value', 'said'), [
    ('schema', 2, 'not calibrated: key schema is 2, expected 1'),
    ('schema', ..., 'not calibrated: key schema is None, expected 1'),
    ('surprise', ..., 'not calibrated: key surprise is missing'),
    ('reachability', [], 'not calibrated: key reachability is missing'),
    ('reachability/level', 'x', "not calibrated: key reachability.level is 'x', expected a finite number"),
    ('reachability/level', True, 'not calibrated: key reachability.level is True, expected a finite number'),
    ('surprise/level_slow', math.nan, 'not calibrated: key surprise.level_slow is nan, expected a finite number'),
    ('surprise/alpha', ..., 'not calibrated: key surprise.alpha is None, expected a finite number'),
    ('reachability/alpha', 0.0, 'key reachability.alpha is 0.0, expected between 0 and 1'),
    ('reachability/alpha', 1.0, 'key reachability.alpha is 1.0, expected between 0 and 1'),
    ('surprise/alpha', 1.5, 'key surprise.alpha is 1.5, expected between 0 and 1'),
    ('reachability/n', 0, 'not calibrated: key reachability.n is 0, expected 1 to 1000000000'),
    ('reachability/n', 20.0, 'not calibrated: key reachability.n is 20.0, expected 1 to 1000000000'),
    ('surprise/n', ..., 'not calibrated: key surprise.n is None, expected 1 to 1000000000'),
    ('surprise/n', 10**9 + 1, 'not calibrated: key surprise.n is 1000000001, expected 1 to 1000000000'),
    pytest.param('reachability/n', 10**400,
                 f'not calibrated: key reachability.n is {10**400}, expected 1 to 1000000000', id='n-huge'),
    pytest.param('surprise/level_stop', 10**400,
                 f'not calibrated: key surprise.level_stop is {10**400}, expected a finite number', id='level-huge'),
    ('surprise/level_slow', -math.inf, 'not calibrated: key surprise.level_slow is -inf, expected a finite number'),
    ('reachability/level', -0.1, 'key reachability.level is -0.1, expected 0 to 1'),
    ('reachability/level', 1.1, 'key reachability.level is 1.1, expected 0 to 1'),
    ('surprise/level_slow', 9.1, 'key surprise.level_slow is above surprise.level_stop'),
    ('data_hash', ..., 'not calibrated: key data_hash is missing'),
    ('data_hash', '', 'not calibrated: key data_hash is missing'),
    ('data_hash', 7, 'not calibrated: key data_hash is missing')])
def test_an_unusable_calibration_is_named_word_for_word(path, value, said):
    with pytest.raises(BundleError) as error:
        cal.check_calibration(sound(path, value), 'c.json')
    assert str(error.value) == f'c.json: {said}'


@pytest.mark.parametrize(('path', 'value'), [
    ('', None), ('reachability/level', 0.0), ('reachability/level', 1), ('reachability/n', 1),
    ('reachability/n', 10**9), ('surprise/level_stop', sys.float_info.max),
    ('surprise/level_slow', 9.0), ('reachability/alpha', 1e-9)])
def test_a_calibration_at_its_bounds_is_usable(path, value):
    cal.check_calibration(sound(path, value), 'c.json')


def test_the_window_of_a_warning_stays_in_the_episode():
    assert cal.warning_window(2, 10, 1) == slice(0, 2) and cal.warning_window(0, 10, 1) == slice(0, 0)
    assert cal.warning_window(20, 10, 3) == slice(10, 18) and cal.warning_window(3, 10, 3) == slice(0, 1)


def test_a_violation_at_the_lead_itself_counts_and_horizon_may_equal_lead():
    risk, cost = np.array([0.2, 0.4, 0.6, 0.9]), np.array([0, 0, 0, 1])
    made = cal.calibrate_reachability([(risk, cost)], 0.5, horizon=3, lead=3)
    assert made['n'] == 1 and 0.19 < made['level'] < 0.2
    assert cal.calibrate_reachability([(risk, cost)])['alpha'] == 0.1
    assert cal.calibrate_reachability([(np.full(4, 1.5), cost)], 0.5)['level'] == 1.0


@pytest.mark.parametrize(('risk', 'cost'), [((3,), (4,)), ((3, 1), (3, 1))])
def test_risk_and_cost_of_other_shapes_are_refused(risk, cost):
    with pytest.raises(ValueError, match=r'^risk \(3.* must be one vector each of equal length$'):
        cal.calibrate_reachability([(np.ones(risk), np.ones(cost))])


def test_an_episode_of_the_skipped_records_alone_has_no_surprise():
    made = cal.calibrate_surprise([np.array([9.0, 9.0]), np.array([9.0, 9.0, 4.0])])
    assert made['n'] == 1 and made['alpha'] == 0.1 and made['level_slow'] == 4.0 and not made['guaranteed']
    with pytest.raises(ValueError, match='^an episode needs more than 2 records$'):
        cal.persistent_surprise(np.array([9.0, 9.0]))
    with pytest.raises(ValueError, match='^calibration needs at least one score, all finite$'):
        cal.conformal_level([], 0.1)


# --- limits, candidates, reasons --------------------------------------------------------------------------------------

@pytest.mark.parametrize('change', [
    {'release': 0.0}, {'ramp': 0.0}, {'box_margin': 0.0}, {'low': (0.0, -1.0, -1.0)}, {'high': (0.0, 1.0, 1.0)},
    {'box_low': (), 'box_high': ()}])
def test_limits_at_zero_are_limits(change):
    at_rest(**change)


@pytest.mark.parametrize(('change', 'said'), [
    ({'box_high': ()}, 'limits box_low and box_high need 3 entries each, or none'),
    ({'box_low': (), 'box_high': (1.0, 1.0, 1.0)}, 'limits box_low and box_high need 3 entries each, or none'),
    ({'box_low': (0.3,), 'box_high': (0.4,)}, 'limits box_low and box_high need 3 entries each, or none'),
    ({'box_low': (0.7, -0.4, 0.03)}, 'limit box_low (0.7, -0.4, 0.03) is not below box_high (0.7, 0.4, 0.5)'),
    ({'joint_names': ('a',)}, 'limits joint_low, joint_high and joint_speed need 1 entries each, one per joint name'),
    ({'joint_names': ('a',), 'joint_low': (1.0,), 'joint_high': (1.0,), 'joint_speed': (1.0,)},
     'limit joint_low must be below joint_high, and joint_speed positive'),
    ({'max_speed': 0.0}, 'limit max_speed is 0.0, expected a positive number'),
    ({'release': math.nan}, 'limit release is nan, expected finite numbers'),
    ({'low': (-1.0,)}, 'limits low (-1.0,) and high (0.25, 0.25, 0.25) must be of equal length with zero between')])
def test_useless_limits_are_named_word_for_word(change, said):
    with pytest.raises(FospError) as error:
        at_rest(**change)
    assert str(error.value) == said


def test_one_more_candidate_brings_its_label():
    more = Candidates(np.zeros((1, 3)), (Reason.PASS,)).with_command(np.ones(3), Reason.RISK_OFFLINE)
    assert more.labels == (Reason.PASS, Reason.RISK_OFFLINE)
    np.testing.assert_array_equal(more.commands, [np.zeros(3), np.ones(3)])


def test_every_candidate_of_a_moving_arm_exactly():
    """Proposal, three slower ones, hold, retreat, up, forward and up, four turns: nothing else, in this order."""
    wanted, path = np.array([0.1, 0.0, 0.0]), (np.array([0.5, -0.03, 0.2]), HERE.position)
    made = candidates(wanted, LIMITS, HERE, wanted, path)
    half, c35, s35, c70, s70 = 0.1 / math.sqrt(2), *(f(math.radians(d)) for d in (35, 70) for f in (math.cos, math.sin))
    np.testing.assert_allclose(made.commands, [
        wanted, 0.75 * wanted, 0.5 * wanted, 0.25 * wanted, np.zeros(3), (0, -0.1, 0), (0, 0, 0.1), (half, 0, half),
        (0.1 * c35, 0.1 * s35, 0), (0.1 * c35, -0.1 * s35, 0), (0.1 * c70, 0.1 * s70, 0), (0.1 * c70, -0.1 * s70, 0)],
        atol=1e-12)
    assert made.labels == (Reason.PASS, *[Reason.RISK_SCALED] * 3, Reason.RISK_HOLD, Reason.RISK_RETREAT,
                           *[Reason.RISK_ESCAPE] * 6)
    y = candidates((0.0, 0.1, 0.05), LIMITS, HERE, wanted).commands[7]      # no path: no retreat; turned by +35 degrees
    np.testing.assert_allclose(y, (-0.1 * s35, 0.1 * c35, 0.05), atol=1e-12)


def test_candidates_of_nothing_hold_or_go_up():
    for proposal in (None, (math.nan, 0, 0), (0.0, 0.0, 0.0)):
        made = candidates(proposal, LIMITS, HERE, np.zeros(3))
        assert len(made.commands) == 6 and not made.commands[:5].any()
        np.testing.assert_allclose(made.commands[5], (0, 0, LIMITS.retreat_speed))


def test_the_retreat_needs_the_whole_distance_and_a_known_position():
    def labels(point, situation=HERE):
        return candidates((0.1, 0, 0), LIMITS, situation, np.zeros(3), (np.array(point),)).labels
    assert Reason.RISK_RETREAT in labels((0.5, 0.0, 0.2 - 0.0201))
    assert Reason.RISK_RETREAT not in labels((0.5, 0.0, 0.1801))
    assert Reason.RISK_RETREAT not in labels((0.4, 0.0, 0.2), Situation(np.array([math.nan, 0.0, 0.2])))


def test_a_command_of_two_has_no_way_up():
    flat = FilterLimits(low=(-1.0, -1.0), high=(1.0, 1.0), period=0.1, staleness=0.2)
    made = candidates((0.1, 0.0), flat, Situation(np.zeros(2)), np.zeros(2))
    assert set(made.labels) == {Reason.PASS, Reason.RISK_SCALED, Reason.RISK_HOLD}


def test_a_difference_of_rounding_is_no_action_of_a_rule():
    command = np.array([0.25 + 5e-10, 0.0, 0.0])
    assert apply_limits(command, LIMITS, HERE, np.array([0.25, 0.0, 0.0]))[1] == ()


def test_the_table_has_its_head():
    lines = markdown().splitlines()
    assert lines[0] == '| reason | effect | severity | latches | meaning | what to do |'
    assert lines[1] == '|---|---|---|---|---|---|' and len(lines) == 2 + len(Reason)
    assert lines[2].startswith('| `estop` | stop | error | yes | The emergency stop')
    assert lines[-1].startswith('| `ok` | pass | ok |  | The proposal passed unchanged. |')


# --- the decision -----------------------------------------------------------------------------------------------------

def test_reset_clears_all_of_it_and_refuses_in_order_of_precedence():
    joints = at_rest(joint_names=('a',), joint_low=(-1.0,), joint_high=(1.0,), joint_speed=(1.0,))
    bad = Situation(np.array([0.9, 0.0, 0.2]), np.array([2.0]), np.zeros(1))
    _, refused = reset(good(estop=True, situation=bad), joints, moving(), 9.0)
    assert refused == (Reason.ESTOP, Reason.JOINT_LIMIT_MEASURED, Reason.WORKSPACE_MEASURED)
    state, refused = reset(good(), LIMITS, moving(), 9.0)
    assert refused == () and state.released is False and state.clean_since is None and not state.last.any()
    assert state.path == () and state.late == () and state.latched == ()


def test_motion_resumes_exactly_after_the_release_and_without_a_ramp_at_once():
    quick = at_rest(ramp=0.0)
    _, reason, state = tick(good(), FilterState.initial(3), 0.0, quick)
    assert reason is Reason.RELEASING
    command, reason, _ = tick(good(), state, quick.release, quick)
    assert reason is Reason.PASS
    np.testing.assert_array_equal(command, (0.1, 0.05, 0.0))


def test_a_risk_at_the_level_is_within_it_and_what_passed_broke_no_rule():
    state = moving()
    _, reason, after = tick(good(), state, 2.0, risk=0.5)
    assert reason is Reason.PASS and after.record.rules == ()
    assert after.counts[Reason.PASS] == 1 + state.counts[Reason.PASS]
    assert after.record.risk == after.record.risk_nominal == after.record.level == 0.5


def test_limits_that_shaped_the_proposal_are_named_with_the_proposal_alone():
    inputs = good(proposal=(0.5, 0.0, 0.0))
    _, reason, state = tick(inputs, moving(), 2.0)
    assert state.record.rules == (Reason.LIMIT_RANGE,) and reason is Reason.LIMIT_RANGE
    output = answer(inputs, moving())
    risk = np.where([label is Reason.PASS for label in output.candidates.labels], 0.9, 0.1)
    _, reason, state = decide(inputs, ModelOutput(output.candidates, risk, 1.0, 0.5, 5.0, 9.0), LIMITS, moving(), 2.0)
    assert reason.learned and Reason.LIMIT_RANGE not in state.record.rules
    assert state.record.nominal == (0.5, 0.0, 0.0) and state.record.risk == 0.1 and state.record.risk_nominal == 0.9


def test_a_switched_off_filter_scores_but_chooses_nothing():
    inputs = good(enabled=False)
    _, reason, state = tick(inputs, moving(), 2.0, risk=0.9)
    assert reason is Reason.LIMITS_ONLY and math.isnan(state.record.risk) and state.record.risk_nominal == 0.9
    assert state.interventions == 0


# --- freshness --------------------------------------------------------------------------------------------------------

def test_clock_steps_and_repeats_are_counted_one_by_one():
    source = Source(ahead=100.0)
    source.arrived(0.0, 0.0)
    assert source.arrived(6.0 - DRIFT, 1.0) and source.clock_steps == 0     # STEP itself is none yet
    assert not source.arrived(60.0, 2.0) and source.arrived(61.0, 3.0) and source.clock_steps == 1
    assert source.arrived(61.5, 3.5)
    for k, back in enumerate((0.0, 0.5, 4.4), 1):       # 5 s from where the clock was: out of order
        assert not source.arrived(61.5 - back, 3.6) and source.repeated == k
    assert source.doubted == 1 and not source.arrived(56.5, 3.6) and source.doubted == 2
    assert source.arrived(56.6, 3.7) and source.clock_steps == 2 and source.repeated == 3


def test_steps_of_a_clock_are_too_many_within_ten_seconds():
    for apart, many in ((9.9, True), (10.0, False)):
        source = Source()
        source.arrived(0.0, 0.0)
        assert not source.arrived(100.0, 0.0) and not source.arrived(-100.0, apart)
        assert source.unsteady(apart) is many and source.unsteady(apart + 9.9) is many
        assert not source.unsteady(apart + 10.0)


def test_a_position_that_is_missing_now_and_then_or_comes_late():
    watch = FrozenPicture(0.25)
    assert not watch.update(b'a', np.zeros(3), 0.0) and not watch.update(b'a', None, 0.0)
    watch.reset()
    assert not watch.update(b'a', None, 0.0) and not watch.update(b'a', np.zeros(3), 0.0)
    assert watch.update(b'a', np.array([0.5, 0.0, 0.0]), 0.0)       # moved since the first one that was known
    watch.reset()
    assert not watch.update(b'a', None, 0.0)
    assert not watch.update(b'a', None, 0.75) and watch.update(b'a', None, 0.01)     # three times the distance itself
