# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp report`: prevents a page of another model's figures, a film of another episode, and predictions that peek."""

import json
import re

import numpy as np
import pytest

from fosp_core.cli import main
from fosp_core.evaluate import charts
from fosp_core.report.cli import chosen
from fosp_core.train import open_loop


def row(success, violation, changed, task='standard', phase='model+filter'):
    return {'task': task, 'phase': phase, 'outcomes': {'seed': list(range(10, 10 + len(success))), 'success': success,
                                                       'violation': violation, 'interventions': changed}}


def test_which_episodes_are_filmed():
    rows = [row([1, 1, 0], [0, 1, 0], [2, 0, 5]), row([1, 1], [0, 0], [0, 7], task='unseen1')]
    assert chosen(rows) == [('most interventions', 'unseen1', 11), ('a violation', 'standard', 11),
                            ('a success', 'unseen1', 10)]
    assert chosen([{'task': 'standard', 'phase': 'model+filter'}]) == []       # of an older version, without outcomes


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_page_of_the_shipped_model(tmp_path, capsys):
    evaluation, bag, page = tmp_path / 'e.json', tmp_path / 'bag', tmp_path / 'page.html'
    assert main(['evaluate', '--episodes', '2', '--json', str(evaluation)]) == 0
    assert main(['collect', '--episodes', '6', '--seed', '71000', '--out', str(bag)]) == 0
    (tmp_path / 'metrics.jsonl').write_text(''.join(f'{{"step": {i}, "model/loss": {9 - i}}}\n' for i in range(3)))
    assert main(['report', '--evaluation', str(evaluation), '--bag', str(bag), '--run', str(tmp_path), '--out',
                 str(page)]) == 0
    whole = page.read_text()
    text = re.sub('base64,[^"]*', '', whole)
    assert 'http' not in text and '<script' not in text
    for heading in ('Results', 'Films', 'Does the risk mean', 'What the world model expects', 'Learning curves',
                    'Model card'):
        assert f'<h2>{heading}' in text, heading
    assert '<h3>Means' in text and 'data-name="path, m">' in text
    assert f'<code>{json.loads(evaluation.read_text())["command"]}</code>' in text
    assert text.count('data:image/webp') >= 1 and text.count('data:image/png') >= 1
    assert 'model/loss: from 9 to 7' in text and not re.search(r'\b(nan|NaN)\b', text)
    capsys.readouterr()
    # The figures of another model are not this one's.
    result = json.loads(evaluation.read_text())
    result['model']['sha256'] = '0' * 64
    evaluation.write_text(json.dumps(result))
    assert main(['report', '--evaluation', str(evaluation), '--out', str(page)]) == 2
    version = result['model']['version']
    assert f'{evaluation}: is of model {version} 000000000000, the report of {version}' in capsys.readouterr().err
    assert page.read_text() == whole


@pytest.mark.parametrize('content', ['', '{}', '[]', '{"rows": [{}]}', '{"rows": 3}'])
def test_a_file_that_is_no_evaluation(tmp_path, capsys, content):
    (tmp_path / 'e.json').write_text(content)
    assert main(['report', '--evaluation', str(tmp_path / 'e.json'), '--out', str(tmp_path / 'page.html')]) == 2
    assert f'{tmp_path}/e.json: expected the JSON of `fosp evaluate`' in capsys.readouterr().err
    assert main(['report', '--out', str(tmp_path / 'page.html')]) == 2
    assert 'nothing to report' in capsys.readouterr().err and not (tmp_path / 'page.html').exists()


def test_predictions_see_the_context_and_then_only_actions(contract, make_episode):
    import dataclasses

    import torch

    from fosp_core.config import Config
    from fosp_core.train.heldout import posterior
    from fosp_core.train.learner import Learner
    agent = Learner(contract, Config.load('debug')).agent
    with torch.no_grad():       # a decoder that starts near zero would show the same for all
        for parameter in agent.world_model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    episode = make_episode(14)
    truth, predicted = open_loop.open_loop(agent, episode, 5, 6)
    camera = contract.cameras[0].name
    assert truth.shape == predicted.shape == (11, *contract.cameras[0].shape)
    assert np.array_equal(truth, episode.images[camera][:11])
    with torch.no_grad():
        seen, _ = agent.world_model.decoder(posterior(agent, episode).feature[0])
    shown = ((seen[:5, :3] + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    assert np.abs(shown.astype(int) - predicted[:5]).max() <= 1
    blind = {**episode.images, camera: episode.images[camera].copy()}
    blind[camera][5:] = 255 - blind[camera][5:]
    assert np.array_equal(open_loop.open_loop(agent, dataclasses.replace(episode, images=blind), 5, 6)[1], predicted)
    other = episode.action.copy()
    other[4:] = -other[4:]      # the action chosen at the last seen record moves the first predicted one
    moved = open_loop.open_loop(agent, dataclasses.replace(episode, action=other), 5, 6)[1]
    assert np.array_equal(moved[:5], predicted[:5]) and not np.array_equal(moved[5:], predicted[5:])
    assert open_loop.strip(truth, predicted).shape == (3 * 64 * 2, 4 * 64 * 2, 3)


def test_charts_of_the_page_are_sound():
    import xml.etree.ElementTree as ElementTree
    rows = [{'predicted': 0.05, 'observed': 0.1, 'ci': [0.0, 0.3], 'n': 9}]
    point = {'sr': 0.9, 'cv': 0.0, 'sr_ci': [0.8, 0.95], 'cv_ci': [0.0, 0.02]}
    for drawing in (charts.reliability(rows, 0.12), charts.curve([0, 1], [1e9, -3.0], 'a<b'),
                    charts.plane([('m&n', 'k0', point)])):
        ElementTree.fromstring(drawing)
    assert 'Too few points' in charts.curve([0], [1.0], 'x')
