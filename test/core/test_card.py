# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The model card tells of the model that lies beside it: prevents figures of another level or another model in it."""

import dataclasses
import json

import pytest
import yaml

from fosp_core.cli import main
from fosp_core.config import Config
from fosp_core.contract import Contract
from fosp_core.deploy import bundle as bundles
from fosp_core.deploy import card, recalibrate
from fosp_core.deploy.bundle import Bundle, write_bundle
from fosp_core.deploy.settings import with_settings
from fosp_core.errors import BundleError, DataError
from fosp_core.evaluate.statistics import summary_row
from fosp_core.paths import config_file

CONTRACT = Contract.load(config_file('contract_safereach.yaml'))
METRICS = {'dataset_episodes': 40, 'heldout_picture_error': 28.0, 'heldout_warned': 99, 'heldout_missed': 10,
           'heldout_alarm_rate_safe_steps': 0.03}
ROWS = [summary_row('standard', 'model+filter', [True] * 19 + [False], [False] * 20, 7),
        summary_row('standard', 'safe', [True] * 20, [False] * 20)]


def calibration(level=0.4, **more):
    return {'schema': 1, 'reachability': {'level': level, 'alpha': 0.1, 'n': 50},
            'surprise': {'level_slow': 5.0, 'level_stop': 9.0, 'alpha': 0.05, 'n': 900}, 'data_hash': 'd' * 64, **more}


@pytest.fixture
def model(tmp_path):
    """A bundle as training leaves it."""
    files = {name: f'{name} content'.encode() for name in bundles.FILES}
    files |= {'calibration.json': json.dumps(calibration()).encode(),
              'contract.yaml': json.dumps(CONTRACT.to_dict()).encode()}
    network = {'deter': 8, 'stoch': 4, 'classes': 4, 'action': 3, 'cameras': [], 'vectors': []}
    return write_bundle(tmp_path / 'v1', files, {
        'name': 'toy', 'version': 'v1', 'preset': 'test', 'contract_hash': CONTRACT.hash, 'parent': None,
        'data_hash': 'x', 'seed': 0, 'commit': None, 'steps': 1, 'metrics': METRICS, 'network': network})


def evaluation(path, bundle, rows=ROWS, seed=0, **more):
    path.write_text(json.dumps({'rows': rows, 'seed': seed, 'through': 'core', **more, 'model': {
        'version': bundle.version, 'sha256': bundle.sha256}}))
    return path


def test_a_recalibrated_card_tells_of_its_own_level_alone(model, tmp_path):
    judged = {'missed': {'count': 4, 'n': 109}, 'false_alarms': {'rate': 0.06}}
    metrics = card.level_metrics(judged, judged, 342)
    new = recalibrate.rewrite(model, tmp_path / 'v2', 'v2', calibration(0.12, through='filter.onnx'), metrics)
    assert new.manifest['metrics'] == {
        'dataset_episodes': 40, 'heldout_picture_error': 28.0, 'calibration_episodes': 342,
        'calibration_violating': 109, 'calibration_warned': 105, 'calibration_missed': 4,
        'calibration_alarm_rate_safe_steps': 0.06, 'crossfit_missed': 4, 'crossfit_alarm_rate_safe_steps': 0.06}
    text = new.read('card.md').decode()
    assert 'reachability level 0.12,' in text and '0.4' not in text and '| calibration_missed | 4 |' in text
    assert 'heldout_warned' not in text and '| 99 |' not in text     # a hash may well have 99 in it
    # Once more, on too few to cross-fit: nothing of the first time stays.
    few = card.level_metrics({'missed': {'count': 0, 'n': 1}, 'false_alarms': {'rate': None}}, None, 1)
    again = recalibrate.rewrite(new, tmp_path / 'v3', 'v3', calibration(0.3, through='filter.onnx'), few)
    assert set(again.manifest['metrics']) == {'dataset_episodes', 'heldout_picture_error', 'calibration_episodes',
                                              'calibration_violating', 'calibration_warned', 'calibration_missed'}


def test_a_parent_of_unknown_sum_is_named_without_one(model):
    manifest = model.manifest | {'parent': 'v0'}
    assert '\nParent v0.\n' in card.model_card(manifest, model.calibration)


def test_evaluations_come_into_a_child_that_differs_by_its_card_alone(model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = {p.name: p.read_bytes() for p in model.path.iterdir()}
    first = evaluation(tmp_path / 'e.json', model)
    assert main(['bundle', 'card', str(model.path), '--evaluation', str(first), '--note', 'For a bench.']) == 0
    assert 'sound' in capsys.readouterr().out
    assert {p.name: p.read_bytes() for p in model.path.iterdir()} == before
    new = Bundle.open(next(p for p in tmp_path.iterdir() if p.name.startswith('v1-card-')), CONTRACT, calibrated=True)
    assert all(new.read(n) == model.read(n) for n in bundles.FILES if n != 'card.md')
    assert (new.manifest['parent'], new.manifest['parent_sha256']) == ('v1', model.sha256)
    assert new.manifest['metrics'] == METRICS       # calibrated in training: they are of this level
    text = new.read('card.md').decode()
    assert '\nFor a bench.\n' in text
    assert '| standard | model+filter | core | 0 | 20 | 95.0 % [76.4, 99.1] | 0.0 % [0.0, 16.1] | 7 |' in text
    assert '| standard | safe ' not in text         # another policy's, without this model's filter
    # An evaluation of the parent is one of the child: they act alike. The newer one of the same layouts counts.
    other = evaluation(tmp_path / 'f.json', model, seed=1)
    newer = evaluation(tmp_path / 'g.json', new, [summary_row('standard', 'model+filter', [True] * 5, [False] * 5)])
    both = card.with_evaluations(new, tmp_path / 'both', 'both', [other, newer])
    assert [(r['seed'], r['n']) for r in both.manifest['evaluations']] == [(0, 5), (1, 20)]
    assert 'For a bench.' in both.read('card.md').decode()
    same = recalibrate.rewrite(both, tmp_path / 'same', 'same', calibration(), {})      # the same level, found again
    assert same.manifest['evaluations'] == both.manifest['evaluations'] and card.read_evaluation(first, same)
    # With another level the filter acts otherwise: what was evaluated before is not of that model.
    level = recalibrate.rewrite(both, tmp_path / 'level', 'level', calibration(0.2), {})
    assert not level.manifest['evaluations'] and 'Evaluated' not in level.read('card.md').decode()
    with pytest.raises(DataError, match='tells of model'):
        card.read_evaluation(first, level)


def test_metrics_of_a_level_replaced_before_are_left_out(model, tmp_path):
    """A bundle calibrated anew by an older version still carries them."""
    old = card.derive(model, tmp_path / 'old', 'old', {}, calibration(0.12, through='filter.onnx'))
    assert 'heldout_missed' in old.manifest['metrics']
    new = card.with_evaluations(old, tmp_path / 'new', 'new', [evaluation(tmp_path / 'e.json', old)])
    assert set(METRICS) - set(new.manifest['metrics']) == set(card.LEVEL_METRICS)
    assert 'heldout_missed' not in new.read('card.md').decode()


@pytest.mark.parametrize(('content', 'words'), [
    (None, 'no such file'), ('{', 'expected what fosp evaluate --json writes'),
    ('[]', 'expected what fosp evaluate --json writes'),
    ('{"rows": [{"task": "a", "phase": 3}], "model": null, "through": "core", "seed": 0}', 'expected what fosp'),
    ({'model': None}, 'tells of model None'), ({'model': {'sha256': '0' * 64}}, 'tells of model 000000000000'),
    ({'rows': []}, 'no row of the model'), ({'rows': [ROWS[0] | {'sr': 3}]}, 'expected words, counts and rates'),
    ({'rows': [ROWS[0] | {'task': 'a | b'}]}, 'expected words'), ({'rows': [ROWS[0] | {'n': 0}]}, 'expected words'),
    ({'rows': [ROWS[0] | {'cv_ci': [0.1]}]}, 'expected words'), ({'rows': [ROWS[0], ROWS[0]]}, 'in another file too')])
def test_what_is_no_evaluation_of_it_is_refused_in_one_line(model, tmp_path, capsys, content, words):
    file, out = tmp_path / 'e.json', tmp_path / 'out'
    if isinstance(content, dict):
        evaluation(file, model)
        content = json.dumps(json.loads(file.read_text()) | content)
    if content is not None:
        file.write_text(content)
    assert main(['bundle', 'card', str(model.path), '--evaluation', str(file), '--out', str(out)]) == 2
    error = capsys.readouterr().err
    assert words in error and 'e.json' in error and error.count('\n') == 1
    assert not out.exists()


def test_settings_change_what_a_fine_tune_reads_and_nothing_else(model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = dataclasses.replace(CONTRACT, mirror=())
    old = card.derive(model, tmp_path / 'old', 'old', {'config': Config.load('debug').to_dict()}, mirror=())
    assert old.contract.mirror == () and old.contract.hash == plain.hash
    old = card.with_evaluations(old, tmp_path / 'told', 'told', [evaluation(tmp_path / 'e.json', old)])
    sets = ['--set', 'expansion.online_in_sample=0.25', '--set', 'train.mirror=false']
    assert main(['bundle', 'settings', str(old.path), *sets, '--note', 'Said anew.']) == 0
    assert 'told-settings-' in capsys.readouterr().out
    new = Bundle.open(next(p for p in tmp_path.iterdir() if p.name.startswith('told-settings-')), CONTRACT)
    assert all(new.read(n) == old.read(n) for n in bundles.FILES if n != 'card.md')
    was, config = (Config.from_dict(b.manifest['config']).to_dict() for b in (old, new))
    assert {f'{s}.{k}': v for s, keys in config.items() if isinstance(keys, dict) for k, v in keys.items()
            if was[s].get(k) != v} == {'expansion.online_in_sample': 0.25, 'train.mirror': False}
    assert new.manifest['evaluations'] == old.manifest['evaluations'] and old.sha256 in new.manifest['acts_as']
    text = new.read('card.md').decode()
    assert text.startswith('# toy told-settings') and 'Said anew.' in text
    file = str(config_file('contract_safereach.yaml'))
    arguments = ['bundle', 'settings', str(old.path), '--contract', file]
    assert main([*arguments, *sets, '--out', 'kept', '--version', 'kept']) == 0     # a contract alone is a check
    assert Bundle.open(tmp_path / 'kept').contract.mirror == ()
    assert main([*arguments, '--mirror', '--out', 'sides', '--version', 'sides']) == 0
    sides = Bundle.open(tmp_path / 'sides', CONTRACT)
    assert sides.contract.mirror == CONTRACT.mirror != () and sides.manifest['config'] == old.manifest['config']
    assert all(sides.read(n) == old.read(n) for n in bundles.FILES if n not in ('card.md', 'contract.yaml'))
    one_sided = tmp_path / 'one_sided.yaml'
    one_sided.write_text(yaml.safe_dump(plain.to_dict()))
    assert main(['bundle', 'settings', 'sides', '--contract', str(one_sided), '--mirror', '--out', 'back']) == 0
    assert Bundle.open(tmp_path / 'back').contract.mirror == ()


def test_what_a_setting_does_not_name_stays_unsaid(model, tmp_path):
    """A default that a bundle does not say may change tomorrow; it is not written down as what training had."""
    said = {'network': {'deter': 32}, 'train': {'length': 9}}
    old = card.derive(model, tmp_path / 'old', 'old', {'config': said})
    new = with_settings(old, tmp_path / 'new', 'new', ['expansion.online_lr_scale=3e-1', 'train.mirror=false'])
    assert new.manifest['config'] == said | {'expansion': {'online_lr_scale': 0.3},
                                             'train': {'length': 9, 'mirror': False}}
    assert old.manifest['config'] == said


@pytest.mark.parametrize(('key', 'words'), [
    ('expansion.reach_gate=0.3', 'no key of a fine-tune alone, expected one of alignment, gates, expansion.init'),
    ('network.deter=9', 'no key of a fine-tune alone'), ('train.steps=9', 'no key of a fine-tune alone'),
    ('alignment=3', 'alignment'), ('gates.a.b=1', 'gates'),
    ('expansion.online_lr_scale=-1', 'online_lr_scale'), ('gates.nothing=1', 'unknown key nothing')])
def test_a_setting_that_the_model_hangs_on_is_refused(model, tmp_path, key, words, capsys):
    old = card.derive(model, tmp_path / 'old', 'old', {'config': Config.load('debug').to_dict()})
    before = sorted(tmp_path.rglob('*'))
    assert main(['bundle', 'settings', str(old.path), '--set', key, '--out', str(tmp_path / 'new')]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count('\n') == 1 and sorted(tmp_path.rglob('*')) == before


def test_a_model_without_a_configuration_has_no_settings(model, tmp_path, capsys):
    out = tmp_path / 'new'
    assert main(['bundle', 'settings', str(model.path), '--set', 'train.mirror=false', '--out', str(out)]) == 2
    assert 'no key config' in capsys.readouterr().err and not out.exists()


@pytest.mark.parametrize('more', [['card'], ['verify', '--note', 'x'], ['verify', '--out', 'x'], ['settings'],
                                  ['card', '--note', 'x', '--set', 'train.mirror=false'],
                                  ['settings', '--set', 'train.mirror=false', '--evaluation', 'x'],
                                  ['settings', '--mirror'], ['verify', '--mirror'],
                                  ['card', '--note', 'two\nlines'], ['card', '--note', 'x', '--version', '../x']])
def test_bad_usage_is_one_line(model, more, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob('*'))
    assert main(['bundle', more[0], str(model.path), *more[1:]]) == 2
    assert capsys.readouterr().err.count('\n') == 1 and sorted(tmp_path.rglob('*')) == before


@pytest.mark.parametrize('damage', [{'evaluations': 3}, {'evaluations': [{}]}, {'acts_as': 'abc'}, {'acts_as': [1]}])
def test_a_damaged_list_in_the_manifest_is_named(model, tmp_path, damage):
    manifest = {k: v for k, v in model.manifest.items() if k != 'files'} | damage
    forged = write_bundle(tmp_path / 'f', {n: model.read(n) for n in bundles.FILES}, manifest)
    with pytest.raises(BundleError, match=f'key {next(iter(damage))} is damaged'):
        card.with_evaluations(forged, tmp_path / 'out', 'out', [evaluation(tmp_path / 'e.json', forged)])


def test_the_toy_says_what_it_is(tmp_path):
    pytest.importorskip('torch')
    from fosp_core.deploy.toy import make_toy
    toy = make_toy(tmp_path / 'toy')
    assert 'Random weights, for tests. Never for a robot.' in toy.read('card.md').decode()
