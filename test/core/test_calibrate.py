# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp calibrate`: through the graph that will run, never on training data, into a new bundle; honest about misses."""

import dataclasses
import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from fosp_core import cli
from fosp_core.data.store import data_hash, save_episode
from fosp_core.deploy import recalibrate, trained_on
from fosp_core.deploy.bundle import FILES, Bundle, write_bundle
from fosp_core.deploy.card import LEVEL_METRICS
from fosp_core.deploy.runtime import FilterRuntime
from fosp_core.errors import DataError
from fosp_core.evaluate import reliability
from fosp_core.paths import share_dir
from fosp_core.train.dataset import load_dataset, split


@pytest.fixture(scope='module')
def shipped(tmp_path_factory):
    """The shipped model, but as one of before models listed the episodes that they were trained on."""
    bundle = Bundle.open(share_dir() / 'models' / 'safereach')
    manifest = {k: v for k, v in bundle.manifest.items() if k not in ('created', 'files', trained_on.KEY)}
    manifest['metrics'] = {**manifest['metrics'], 'heldout_missed': 0.1}    # of its own level, as pretraining writes it
    return write_bundle(tmp_path_factory.mktemp('old') / 'old', {name: bundle.read(name) for name in FILES}, manifest)


@pytest.fixture(scope='module')
def episodes(make_episodes):
    """24 short episodes, every second one violates at record 4 of 8."""
    calm, bad = make_episodes([8] * 12), make_episodes([8] * 12, seed=50, violation=True)
    return [e for pair in zip(calm, bad) for e in pair]


@pytest.fixture(scope='module')
def folder(tmp_path_factory, episodes):
    path = tmp_path_factory.mktemp('episodes')
    for k, episode in enumerate(episodes):
        save_episode(path / f'{k:03d}.npz', episode)
    return path


def known(bundle, out, trained):
    """Return a copy of a bundle that says it was trained on `trained`."""
    files = {name: bundle.read(name) for name in FILES}
    return write_bundle(out, files, {**bundle.manifest, 'data_hash': data_hash(trained)})


def test_the_graph_says_what_torch_says(tmp_path, contract, make_episode):
    torch = pytest.importorskip('torch')
    from fosp_core.config import Config
    from fosp_core.deploy.export import export_bundle
    from fosp_core.train.heldout import replay_episode
    from fosp_core.train.learner import Learner
    agent = Learner(contract, Config.load('debug'), seed=0).agent
    torch.manual_seed(3)
    for parameter in agent.parameters():    # heads that start at zero would agree whatever they are given
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter.data, std=0.3)
    agent.freeze_offline()
    bundle = export_bundle(agent, tmp_path / 'b', version='b', name='b', calibration={}, data_hash='x', seed=0, steps=0,
                           metrics={})
    runtime = FilterRuntime(bundle)
    for seed in (1, 2):     # the second begins anew, whatever the first left behind
        episode = make_episode(9, seed=seed)
        expected = replay_episode(agent, episode)
        risk, surprise = recalibrate.replay_episode(runtime, episode)
        assert np.ptp(risk) > 1e-3
        assert np.allclose(risk, expected['risk'], atol=1e-4) and np.allclose(surprise, expected['surprise'], atol=1e-3)


def test_data_of_the_training_are_refused_when_the_hash_tells(tmp_path, shipped, episodes):
    whole = known(shipped, tmp_path / 'whole', episodes)
    with pytest.raises(DataError, match='was trained on these 24 episodes'):
        recalibrate.unseen(whole, episodes, False, 'bag')
    training, held = split(episodes, 0.25)
    part = known(shipped, tmp_path / 'part', training)
    with pytest.raises(DataError, match=f'trained on {len(training)} of these 24 .* --held-out'):
        recalibrate.unseen(part, episodes, False, 'bag')
    assert recalibrate.unseen(part, episodes, True, 'bag') == held
    assert recalibrate.unseen(shipped, episodes, False, 'bag') == episodes
    with pytest.raises(DataError, match='no part of these'):
        recalibrate.unseen(shipped, episodes, True, 'bag')


def listed(bundle, out, trained):
    """Return a copy of a bundle that lists `trained` episodes as those it was trained on."""
    files = {name: bundle.read(name) for name in FILES}
    return write_bundle(out, files, {**bundle.manifest, 'trained_on': trained_on.listing(trained)})


def test_a_training_episode_is_recognised_in_whatever_bag(tmp_path, shipped, contract, make_episodes, write_bag):
    made = make_episodes([8] * 6)
    model = listed(shipped, tmp_path / 'model', made[:4])
    # Another bag, another order, other stamps and counters, beside others: three of its five were trained on.
    later = [dataclasses.replace(e, stamp=e.stamp + 10**15 * k, step=e.step + 10**4 * k)
             for k, e in enumerate((made[4], made[3], made[1], made[5], made[0]))]
    bag = load_dataset([write_bag(tmp_path / 'bag', contract, later)], contract)
    with pytest.raises(DataError, match='trained on 3 of these 5 episodes, the first of them number 2; .* --held-out'):
        recalibrate.unseen(model, bag, False, 'bag')
    kept = recalibrate.unseen(model, bag, True, 'bag')
    assert data_hash(kept) == data_hash([made[4], made[5]])
    with pytest.raises(DataError, match='was trained on these 4 episodes'):
        recalibrate.unseen(model, made[3::-1], True, 'bag')
    assert recalibrate.unseen(model, made[4:], False, 'bag') == made[4:]
    assert recalibrate.unseen(model, made[4:], True, 'bag') == made[4:]


def test_a_new_bundle_with_its_parent_and_a_diagram(tmp_path, shipped, episodes, folder, capsys):
    before = {p.name: p.read_bytes() for p in shipped.path.iterdir()}
    out, plot = tmp_path / 'new', tmp_path / 'r.svg'
    argv = ['calibrate', str(shipped.path), str(folder), '--alpha', '0.2', '--out', str(out), '--plot', str(plot)]
    assert cli.main([*argv, '--json', '-']) == 0
    told, warned = capsys.readouterr()
    told = json.loads(told)
    assert 'warning: the risk level rests on 12 violating episodes' in warned
    assert {p.name: p.read_bytes() for p in shipped.path.iterdir()} == before
    new = Bundle.open(out, calibrated=True)
    assert new.manifest['parent'] == shipped.version != new.version == told['version']
    assert new.manifest['created'] > shipped.manifest['created']
    assert all(new.read(n) == shipped.read(n) for n in FILES if n not in ('calibration.json', 'card.md'))
    calibration = new.calibration
    assert calibration['data_hash'] == data_hash(episodes) and calibration['reachability']['n'] == 12
    assert calibration['reachability']['alpha'] == calibration['surprise']['alpha'] == 0.2
    assert calibration['surprise']['n'] == 24 and calibration['reliability'] == told['reliability']
    assert sum(row['n'] for row in told['reliability']) == 12 * 7 + 12 * 4
    assert told['previous']['missed']['n'] == 12 and told['previous']['level'] == shipped.calibration[
        'reachability']['level']
    drawing = ElementTree.fromstring(plot.read_text())      # a file of its own: named space, colours, one dot a row
    assert drawing.tag == '{http://www.w3.org/2000/svg}svg' and '.dot' in drawing[0].text
    assert len(drawing.findall('{*}circle')) == len(told['reliability'])
    assert {str(r['n']) for r in told['reliability']} <= {t.text for t in drawing.findall('{*}text')}
    # What the old level had warned of is of no level any more, in the manifest as in the card.
    metrics, fitted, card = new.manifest['metrics'], told['crossfit'], new.read('card.md').decode()
    assert 'heldout_missed' in shipped.manifest['metrics'] and not set(metrics) & set(LEVEL_METRICS)
    assert not any(key in card for key in LEVEL_METRICS) and metrics['heldout_picture_error'] > 0
    pairs = [(recalibrate.replay_episode(FilterRuntime(new), e)[0], e.cost) for e in episodes]
    reach = calibration['reachability']
    judged = reliability.judge(pairs, reach['level'], reach['horizon'], reach['lead'])
    assert (metrics['calibration_missed'], metrics['calibration_warned'], metrics['calibration_violating']) == (
        judged['missed']['count'], 12 - judged['missed']['count'], 12)
    assert metrics['calibration_alarm_rate_safe_steps'] == judged['false_alarms']['rate']
    assert metrics['crossfit_missed'] == fitted['missed']['count'] and metrics['calibration_episodes'] == 24
    assert f'reachability level {reach["level"]}, alpha 0.2' in card
    assert str(shipped.calibration['reachability']['level']) not in card
    assert f'Parent {shipped.version} `{shipped.sha256[:12]}`' in card
    page = tmp_path / 'r.html'
    again = [*argv[:-3], str(tmp_path / 'again'), '--plot', str(page), '--version', 'again', '--confidence', '0.9']
    assert cli.main(again) == 0
    said = capsys.readouterr().out
    assert 'cross-fitted: missed violations' in said and '<svg' in page.read_text()
    assert 'with 95 % confidence at most' in said and '(alpha 0.2, confidence 0.9)' in said
    sure = Bundle.open(tmp_path / 'again').calibration['reachability']
    assert cli.main([*argv[:-3], str(tmp_path / 'less'), '--version', 'less', '--confidence', '0.6']) == 0
    less = Bundle.open(tmp_path / 'less').calibration['reachability']
    assert (sure['confidence'], less['confidence']) == (0.9, 0.6) and 0.0 < sure['level'] < less['level']
    assert cli.main(argv) == 2      # never overwritten
    assert 'exists already' in capsys.readouterr().err


@pytest.mark.parametrize(('more', 'words'), [
    (['--alpha', '1.5'], '--alpha 1.5'), (['--confidence', '1'], '--confidence 1.0'),
    (['--plot', 'x.bmp'], 'ends in .svg or .html'),
    (['--held-out'], 'no part of these')])
def test_bad_usage_is_one_line_and_2(tmp_path, shipped, folder, capsys, monkeypatch, more, words):
    monkeypatch.chdir(tmp_path)
    assert cli.main(['calibrate', str(shipped.path), str(folder), *more]) == 2
    err = capsys.readouterr().err
    assert words in err and len([line for line in err.splitlines() if line.startswith('error')]) == 1
    assert not list(tmp_path.iterdir())


def test_episodes_without_a_violation_and_missing_input_are_refused(tmp_path, shipped, make_episodes, capsys):
    for k, episode in enumerate(make_episodes([5, 5])):
        save_episode(tmp_path / f'{k}.npz', episode)
    assert cli.main(['calibrate', str(shipped.path), str(tmp_path), '--out', str(tmp_path / 'o')]) == 2
    assert 'cost is never positive' in capsys.readouterr().err and not (tmp_path / 'o').exists()
    assert cli.main(['calibrate', str(tmp_path), str(tmp_path)]) == 2
    assert cli.main(['calibrate', str(shipped.path), str(tmp_path / 'none')]) == 2


def test_bins_hold_what_happened():
    cost = np.array([0, 0, 0, 0, 1, 1])
    risk = np.array([0.05, 0.15, 0.95, 0.92, 0.5, 0.5])
    calm = np.array([0.05, 0.95, 0.99])
    rows = reliability.reliability([(risk, cost), (calm, np.zeros(3))], horizon=2)
    assert [(row['low'], row['n'], row['observed']) for row in rows] == [(0.0, 2, 0.0), (0.1, 1, 0.0), (0.9, 3, 2 / 3)]
    assert rows[2]['predicted'] == pytest.approx((0.95 + 0.92 + 0.95) / 3)
    assert rows[2]['ci'][0] < 2 / 3 < rows[2]['ci'][1]
    assert reliability.calibration_error(rows) == pytest.approx((0.1 + 0.15 + 0.82) / 6, abs=1e-6)


def test_misses_and_false_alarms_of_a_level():
    warned = (np.array([0.1, 0.8, 0.1, 0.1]), np.array([0, 0, 0, 1]))
    late = (np.array([0.8, 0.1, 0.1, 0.9]), np.array([0, 0, 0, 1]))      # warns beyond the horizon, and too late
    calm = (np.array([0.1, 0.8, 0.9]), np.zeros(3))                      # the last record decides nothing
    at_once = (np.array([0.1, 0.1]), np.array([1, 0]))
    judged = reliability.judge([warned, late, calm, at_once], 0.5, horizon=2)
    assert (judged['missed']['count'], judged['missed']['n']) == (1, 2)
    assert (judged['false_alarms']['count'], judged['false_alarms']['n']) == (1, 2)
    assert reliability.judge([calm], 0.5)['missed']['rate'] is None
    assert reliability.crossfit([warned, calm], 0.1) is None


def test_crossfit_never_judges_by_what_an_episode_itself_set():
    made = [(np.array([x, 1.0]), np.array([0, 1])) for x in (0.1, 0.5, 0.9)]
    assert reliability.crossfit(made, 0.34)['missed']['count'] == 1     # 0.1, by the level of 0.5 and 0.9


def test_crossfit_misses_alpha_of_them():
    rng = np.random.default_rng(5)
    made = [(np.append(rng.beta(4, 2, 6), 1.0), np.append(np.zeros(6), 1.0)) for _ in range(400)]
    fitted = reliability.crossfit(made, 0.1)
    assert fitted['missed']['n'] == 400 and fitted['folds'] == 5
    assert fitted['missed']['ci'][0] <= 0.1 <= fitted['missed']['ci'][1]
