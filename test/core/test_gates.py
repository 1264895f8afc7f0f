# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The gates of a fine-tuned model: what passes, what does not, how sure that is, and where a refused model goes."""

import copy
import json

import numpy as np
import pytest
import torch

from fosp_core.config import Config, GatesConfig
from fosp_core.data.store import save_episode
from fosp_core.deploy import export
from fosp_core.deploy.bundle import Bundle
from fosp_core.deploy.toy import make_toy
from fosp_core.errors import RefusedError
from fosp_core.train import finetune, gates, heldout

LEVELS = {'parent': 0.5, 'new': 0.5}


def rated(risk=0.1, rise_parent=0.0, rise_new=0.0, fall=0.0, recorded=(0.1, 0.1), violation=None, length=20):
    """Ratings of one episode: constant risks; `fall` is what the new estimate makes less of everything."""
    values = {('parent', 'parent'): risk, ('parent', 'new'): risk + rise_parent,
              ('new', 'parent'): risk - fall, ('new', 'new'): risk - fall + rise_new}
    return gates.Ratings({k: np.full(length, v) for k, v in values.items()},
                         {e: np.full(length, v) for e, v in zip(gates.ESTIMATES, recorded)}, violation)


def judged(ratings, levels=LEVELS, **config):
    return gates.judge(ratings, levels, GatesConfig(**config))


def test_a_model_that_changed_nothing_passes_with_its_numbers():
    reason, numbers = judged([rated(), rated(risk=0.3)])
    assert reason == ''
    assert numbers['risk_rise_parent'] == numbers['risk_rise_new'] == 0.0 and numbers['units'] == 2
    assert numbers['risk_parent'] == pytest.approx(0.2) and numbers['violating'] == 0
    assert all(np.isfinite(v) for v in numbers.values())


@pytest.mark.parametrize('estimate', gates.ESTIMATES)
def test_riskier_actions_by_either_estimate_are_refused(estimate):
    rises = {f'rise_{estimate}': 0.05}
    reason, numbers = judged([rated(**rises) for _ in range(5)], risk_margin=0.04)
    expected = f"by the {estimate} estimate the new policy's actions are riskier than its parent's by 0.05"
    assert reason.startswith(expected)
    assert '95% confidence, allowed 0.04 (5 episodes)' in reason
    assert numbers[f'risk_rise_{estimate}_bound'] == pytest.approx(0.05)
    assert judged([rated(**rises) for _ in range(5)], risk_margin=0.06)[0] == ''


def test_what_cannot_be_shown_is_refused():
    """Two episodes, one better and one worse: the mean is fine, but nobody knows the mean."""
    few = [rated(rise_parent=0.05), rated(rise_parent=-0.05)]
    assert 'riskier' in judged(few, risk_margin=0.04)[0]
    assert judged(few * 20, risk_margin=0.04)[0] == ''
    reason, numbers = judged([rated(rise_parent=np.nan), rated(), rated()])
    assert 'riskier' in reason and all(np.isfinite(v) for v in numbers.values())


def test_the_bound_is_student_s():
    values = np.array([0.1, 0.2, 0.4])      # mean 7/30, standard deviation 0.152753; t(0.95, 2) = 2.919986
    assert gates.upper_bound(values, 0.05) == pytest.approx(7 / 30 + 2.919986 * 0.152753 / 3 ** 0.5, abs=1e-6)


def test_a_policy_at_the_margin_passes_no_more_often_than_the_level():
    rng = np.random.default_rng(0)
    passed = sum(judged([rated(rise_parent=0.02 + 0.03 * x, rise_new=-0.1) for x in rng.normal(size=8)],
                        risk_margin=0.02)[0] == '' for _ in range(1000))
    assert 25 <= passed <= 75       # 50 expected
    better = sum(judged([rated(rise_parent=-0.02 + 0.03 * x, rise_new=-0.1) for x in rng.normal(size=8)],
                        risk_margin=0.02)[0] == '' for _ in range(200))
    assert better >= 170


def test_fewer_warnings_before_violations_are_refused():
    """One violating episode: the fall alone counts. Many: a small one is refused when it is certain."""
    silent = rated(recorded=(0.9, 0.1), violation=12)
    reason, numbers = judged([silent, rated()])
    assert 'warns of 0.0% of the records before a violation, the parent of 100.0% (1 episodes), allowed 20%' in reason
    assert numbers['warned_fall'] == 1.0
    assert judged([silent, rated()], warned_margin=1.0)[0] == ''
    # The new estimate's own level is what counts: a lower scale with a lower level warns as before.
    assert judged([silent, rated()], {'parent': 0.5, 'new': 0.05})[0] == ''
    assert judged([rated(recorded=(0.1, 0.9), violation=12), rated()])[0] == ''

    def one_less():
        r = rated(recorded=(0.9, 0.9), violation=12)
        r.recorded['new'][5] = 0.1
        return r
    certain = [one_less() for _ in range(9)] + [rated(recorded=(0.9, 0.9), violation=12)]
    assert judged(certain, warned_margin=0.5)[0].endswith('significantly less')
    assert judged([one_less(), *(rated(recorded=(0.9, 0.9), violation=12) for _ in range(9))])[0] == ''


def test_only_the_window_before_a_violation_counts():
    r = rated(recorded=(0.9, 0.9), violation=12)
    r.recorded['new'][10:] = 0.0        # within LEAD of the contact: too late to help
    r.recorded['new'][:2] = 0.0         # longer before it than HORIZON
    assert gates.warned_shares([r, rated(recorded=(0.9, 0.9), violation=2)], LEVELS).tolist() == [[1.0, 1.0]]
    assert gates.warned_shares([r], LEVELS, (4, 1)).tolist() == [[1.0, 0.5]]


def test_without_a_violation_the_new_estimate_may_not_fall():
    low = [rated(fall=0.05), rated(fall=0.05, risk=0.2)]
    reason, numbers = judged(low)
    assert reason.startswith('no held-out violation to judge by, and the new estimate rates the parent')
    assert (numbers['estimate_parent'], numbers['estimate_new']) == (pytest.approx(0.15), pytest.approx(0.1))
    assert judged(low, estimate_margin=0.6)[0] == '' and judged([rated(fall=-0.1)] * 3)[0] == ''
    # With one, the warnings decide: safe states may well be found safer than they were.
    assert judged([*low, rated(recorded=(0.9, 0.9), violation=12)])[0] == ''


def test_a_lone_episode_is_judged_in_stretches():
    reason, numbers = judged([rated(rise_new=0.5)])
    assert numbers['units'] == 4 and reason.endswith('(4 stretches)')
    reason, numbers = judged([rated(length=1)])
    assert reason == 'nothing to compare on: 1 stretches of held-out replay, expected at least 2'
    assert judged([])[0].startswith('nothing to compare on: 0')


def test_spread_takes_both_kinds(make_episodes):
    made = make_episodes([4] * 20) + make_episodes([4] * 4, violation=True)
    assert gates.spread(made, 30) == made
    few = gates.spread(made, 8)
    assert len(few) == 8 and sum(e.violation for e in few) == 4
    assert len(gates.spread(made[:20] + made[20:21], 10)) == 10
    assert len(gates.spread(made[18:], 5)) == 5


@pytest.fixture(scope='module')
def toy(tmp_path_factory) -> Bundle:
    return make_toy(tmp_path_factory.mktemp('toy') / 'toy')


@pytest.fixture(scope='module')
def agent(toy):
    """The toy with a reachability that rates states and actions apart."""
    agent = finetune.load_learner(toy, 0).agent
    with torch.no_grad():
        agent.reach.net.output.weight.normal_(generator=torch.Generator().manual_seed(3))
    return agent


def test_rates_are_those_of_the_filter_on_each_model_s_own_states(agent, make_episode):
    """The executed action as `heldout.replay_episode` rates it; the policies' with the other one's estimate, too."""
    episode, other = make_episode(9, violation=True), copy.deepcopy(agent)
    with torch.no_grad():
        other.actor.output.bias[:3] += 1.0
        other.world_model.rssm.post_logits.bias += torch.randn(16, generator=torch.Generator().manual_seed(0))
    ratings = gates.rate(agent, other, episode)
    assert ratings.violation == 4
    for name, model in (('parent', agent), ('new', other)):
        assert ratings.recorded[name] == pytest.approx(heldout.replay_episode(model, episode)['risk'][:-1], abs=1e-6)
    states = heldout.posterior(agent, episode).feature, heldout.posterior(other, episode).feature
    with torch.no_grad():
        crossed = agent.reach(states[0], other.actor(states[1])[0].clamp(-1, 1))[0, :-1].numpy()
    assert ratings.proposed['parent', 'new'] == pytest.approx(crossed, abs=1e-6)
    assert np.abs(crossed - ratings.proposed['parent', 'parent']).max() > 1e-3
    same = gates.rate(agent, agent, episode)
    assert all((same.proposed[k] == same.proposed['parent', 'parent']).all() for k in same.proposed)


def test_what_is_not_finite_is_named(agent):
    assert gates.not_finite(agent) == ''
    broken = copy.deepcopy(agent)
    with torch.no_grad():
        for parameter in list(broken.reach.parameters())[:4]:
            parameter[...] = float('inf')
    assert gates.not_finite(broken).startswith('not finite: reach.net.') and gates.not_finite(broken).endswith('1 more')


@pytest.fixture
def worker(toy, make_episodes, tmp_path, capsys):
    """Return a function that runs the worker: worker(*options) -> (exit code, last event, error text, out folder)."""
    def run(*options, lengths=(14, 14, 14)):
        folder, out = tmp_path / 'episodes', tmp_path / 'out'
        for i, episode in enumerate(make_episodes(lengths)):
            save_episode(folder / f'{i}.npz', episode)
        code = finetune.main(['--bundle', str(toy.path), '--episodes', str(folder), '--steps', '1', '--out', str(out),
                              '--nice', '0', *options])
        said = capsys.readouterr()
        return code, json.loads(said.out.splitlines()[-1]), said.err, out
    return run


def test_a_passed_gate_leaves_its_numbers_in_the_manifest(worker):
    code, event, error, out = worker(lengths=[14] * 10)    # the toy's own configuration lets everything pass
    assert (code, event['event'], error) == (0, 'done', '')
    metrics = Bundle.open(out).manifest['metrics']
    assert metrics['gate/online'] == 2 and metrics['gate/offline'] == 0 and not metrics['gate/online_in_training']
    assert metrics['gate/calibrated_on'] == 0 and metrics['gate/calibration_inherited'] is True
    assert metrics['online_episodes'] == 8 and metrics['gate/risk_rise_new_margin'] == 1.0
    assert not out.with_name('out.refused').exists()


def test_a_refused_model_is_kept_aside_with_its_reason(worker):
    code, event, error, out = worker('--set', 'gates.risk_margin=-0.5')
    assert code == finetune.EXIT_REFUSED == 3 and event['event'] == 'refused'
    assert 'riskier' in event['reason'] and error == f'refused: {event["reason"]}\n'
    folder = finetune.refused_folder(out)
    assert event['path'] == str(folder) and not out.exists()
    assert (folder / 'reason.txt').read_text() == event['reason'] + '\n'
    metrics = Bundle.open(folder / 'bundle').manifest['metrics']
    assert metrics['gate/refused'] == event['reason'] and metrics['gate/risk_rise_parent_margin'] == -0.5
    assert metrics['gate/online_in_training'] and metrics['gate/online'] == 3   # too few to keep one from training
    assert not [p for p in out.parent.iterdir() if p.name.startswith('.')], 'something half-written was left'


@pytest.mark.parametrize('fault', ['nan', 'parity'])
def test_what_cannot_be_exported_is_kept_as_weights(worker, monkeypatch, fault):
    if fault == 'nan':
        def breaks(agent):
            agent.q_cost.net.output.bias.data[0] = float('nan')
        monkeypatch.setattr(export, 'round_to_half', breaks)
        expected = 'not finite: q_cost.net.output.bias'
    else:
        def differs(*_):
            raise RefusedError('policy.onnx: output action differs from torch')
        monkeypatch.setattr(export, 'check_parity', differs)
        expected = 'policy.onnx: output action differs from torch'
    code, event, _, out = worker()
    assert (code, event['reason']) == (3, expected)
    assert sorted(p.name for p in finetune.refused_folder(out).iterdir()) == ['reason.txt', 'weights.safetensors']


@pytest.mark.parametrize(('value', 'expected'), [
    (float('nan'), 'not finite: reach.net.output.weight'),
    (3e38, 'not finite: risk of held-out episode 0 at record 0')])
def test_broken_weights_with_violations_to_calibrate_on_are_refused(worker, make_episodes, monkeypatch, tmp_path, value,
                                                                    expected):
    """NaN, and finite weights whose products are not: before anything is calibrated on them."""
    def breaks(agent):
        agent.reach.net.output.weight.data[...] = value
        if value == value:      # infinity minus infinity
            agent.reach.net.output.weight.data[0, ::2] *= -1.0
            agent.reach.net.hidden[-1].norm.bias.data[...] = 1e3
    monkeypatch.setattr(export, 'round_to_half', breaks)
    for i, episode in enumerate(make_episodes([12] * 12, seed=50, violation=True)):
        save_episode(tmp_path / 'offline' / f'{i}.npz', episode)
    code, event, error, out = worker('--offline', str(tmp_path / 'offline'))
    assert (code, event['reason']) == (3, expected) and error == f'refused: {expected}\n' and not out.exists()
    assert (finetune.refused_folder(out) / 'reason.txt').read_text() == f'{expected}\n'


def test_thresholds_are_configuration():
    assert Config.load('debug', ['gates.risk_margin=0.3']).gates.risk_margin == 0.3
    assert Config.from_dict({}).gates == GatesConfig()
