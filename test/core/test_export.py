# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Export and runtime: parity over a recurrence, refusal, what is scored is executed, no torch at run time."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from fosp_core.config import Config
from fosp_core.contract import Contract
from fosp_core.deploy import export
from fosp_core.deploy.bundle import Bundle
from fosp_core.deploy.graphs import PolicyGraph
from fosp_core.deploy.runtime import FilterRuntime, PolicyRuntime
from fosp_core.deploy.toy import make_toy
from fosp_core.errors import BundleError
from fosp_core.paths import config_file, share_dir
from fosp_core.train.learner import Learner

CONTRACT = Contract.load(config_file('contract_safereach.yaml'))


@pytest.fixture(scope='module')
def bundle(tmp_path_factory) -> Bundle:
    return make_toy(tmp_path_factory.mktemp('toy') / 'toy')


def observation(seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    return {'image': rng.integers(0, 256, (64, 64, 3), dtype=np.uint8),
            'ee_pose': rng.normal(size=3).astype(np.float32)}


@pytest.mark.parametrize('graph', ['policy', 'filter'])
def test_parity_over_many_steps_and_its_alarm(graph):
    """lessons.md 21: an exporter that is silently wrong shows only in a recurrence."""
    agent = Learner(CONTRACT, Config.load('debug')).agent.eval()
    export.round_to_half(agent)
    model = export.export_graph(agent, graph)
    feeds, expected = export.make_probe(agent, graph)
    assert export.check_parity(model, feeds, expected, graph) < 1e-4
    with torch.no_grad():
        agent.world_model.rssm.gru_norm.weight.mul_(1.01)
    _, wrong = export.make_probe(agent, graph)
    with pytest.raises(BundleError, match='differs from torch by'):
        export.check_parity(model, feeds, wrong, graph)


def test_nothing_is_written_when_a_weight_is_not_finite(tmp_path):
    agent = Learner(CONTRACT, Config.load('debug')).agent
    with torch.no_grad():
        agent.actor.output.bias[0] = float('nan')
    with pytest.raises(BundleError, match='actor.output.bias is not finite'):
        export.export_bundle(agent, tmp_path / 'b', version='x', name='x', calibration={}, data_hash='', seed=0,
                             steps=0, metrics={})
    assert list(tmp_path.iterdir()) == []


def test_policy_executes_what_it_scored_and_repeats_under_a_seed(bundle):
    runs = []
    for _ in range(2):
        runtime = PolicyRuntime(bundle, seed=5)
        previous, out = np.zeros(3, np.float32), []
        for t in range(6):
            result = runtime.step(observation(t), previous, t == 0, explore=True)
            assert np.array_equal(result.action, result.candidates[result.index])
            assert np.abs(result.action).max() <= 1.0
            previous = result.action
            out.append(result.action)
        runs.append(np.stack(out))
    assert np.array_equal(runs[0], runs[1])
    runtime.reset(5)    # an evaluation: what is drawn on a layout does not hang on the layouts before
    assert np.array_equal(runtime.step(observation(0), np.zeros(3, np.float32), True, explore=True).action, runs[0][0])


def test_is_first_forgets_the_history(bundle):
    runtime = FilterRuntime(bundle)
    candidates = np.zeros((3, 3), np.float32)
    fresh = runtime.step(observation(9), np.zeros(3), True, candidates).risk
    runtime.step(observation(1), np.ones(3), False, candidates)
    again = runtime.step(observation(9), np.ones(3), True, candidates).risk
    assert np.array_equal(fresh, again)


def test_what_onnx_runtime_raises_is_a_fault_of_the_model_and_not_of_ours(bundle):
    runtime = FilterRuntime(bundle)
    with pytest.raises(ValueError, match=r'filter.onnx: \w+: .*candidates'):
        runtime.step(observation(0), np.zeros(3), True, np.zeros((2, 5), np.float32))
    assert runtime.step(observation(0), np.zeros(3), True, np.zeros((2, 3), np.float32)).risk.shape == (2,)


def test_filter_takes_any_number_of_candidates_and_can_look_without_stepping(bundle):
    runtime = FilterRuntime(bundle)
    rng = np.random.default_rng(0)
    many = rng.uniform(-1, 1, (16, 3)).astype(np.float32)
    runtime.step(observation(0), np.zeros(3), True, many[:1])
    state = runtime.state[0].copy()
    look = runtime.step(observation(1), np.zeros(3), False, many, commit=False)
    assert np.array_equal(runtime.state[0], state) and look.risk.shape == (16,)
    real = runtime.step(observation(1), np.zeros(3), False, many[:5])
    assert np.allclose(real.risk, look.risk[:5], atol=1e-6) and not np.array_equal(runtime.state[0], state)


def test_runtime_refuses_bad_observations(bundle):
    runtime = PolicyRuntime(bundle)
    with pytest.raises(ValueError, match='image: uint8 .*expected uint8'):
        runtime.step(observation() | {'image': np.zeros((32, 32, 3), np.uint8)}, np.zeros(3), True)
    with pytest.raises(ValueError, match='ee_pose: not finite'):
        runtime.step(observation() | {'ee_pose': np.full(3, np.nan, np.float32)}, np.zeros(3), True)


def test_onnx_equals_the_torch_graph_through_the_runtime(bundle):
    learner = Learner(CONTRACT, Config.load('debug'), seed=0)
    learner.agent.freeze_offline()
    export.round_to_half(learner.agent)
    graph, runtime = PolicyGraph(learner.agent.eval()), PolicyRuntime(bundle)
    deter, stoch, previous = torch.zeros(1, 32), torch.zeros(1, 16), torch.zeros(1, 3)
    for t in range(8):
        obs = observation(t)
        with torch.no_grad():
            out = graph(torch.from_numpy(obs['image'])[None], torch.from_numpy(obs['ee_pose'])[None], previous,
                        torch.full((1, 1), float(t == 0)), deter, stoch, torch.zeros(1, 4, 4), torch.zeros(1, 2, 3),
                        torch.zeros(1, 1))
        deter, stoch, action = out[:3]
        result = runtime.step(obs, previous[0].numpy(), t == 0)
        assert np.allclose(result.action, action[0].numpy(), atol=1e-4)
        assert np.allclose(result.risk, out[6][0].numpy(), atol=1e-4)
        previous = action


def test_runtime_needs_no_torch(bundle):
    """The learner and the filter must start where torch is broken or absent."""
    code = ('import sys; sys.modules["torch"] = None\n'
            'from fosp_core.deploy.bundle import Bundle\n'
            'from fosp_core.deploy.runtime import FilterRuntime, PolicyRuntime\n'
            f'b = Bundle.open({str(bundle.path)!r}); PolicyRuntime(b).warm_up(1); FilterRuntime(b).warm_up(1)')
    subprocess.run([sys.executable, '-c', code], check=True, timeout=60)


def test_onnx_runtime_reports_to_nobody(tmp_path):
    """Its wheels collect usage data unless they are told not to before the import."""
    code = ('from fosp_core.deploy.bundle import Bundle; from fosp_core.deploy.runtime import PolicyRuntime; '
            f'PolicyRuntime(Bundle.open({str(share_dir() / "models" / "safereach")!r}))')
    env = {k: v for k, v in os.environ.items() if k not in ('ORT_DISABLE_TELEMETRY', 'XDG_CACHE_HOME')}
    subprocess.run([sys.executable, '-c', code], env={**env, 'HOME': str(tmp_path)}, check=True, timeout=60)
    assert not [p for p in tmp_path.rglob('*') if p.is_file()]
