# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The gradient step in every form of execution: columns or dense, compiled or not, float32 or bfloat16."""

import contextlib
import dataclasses
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from fosp_core.agent.agent import Agent
from fosp_core.config import Config
from fosp_core.contract import Contract
from fosp_core.errors import TrainingError
from fosp_core.nn.distributions import gumbel_like, sample_onehot
from fosp_core.nn.onehot import OneHot, Path
from fosp_core.paths import config_file
from fosp_core.train import execution
from fosp_core.train.bench_step import random_replay
from fosp_core.train.checkpoint import load_checkpoint, save_checkpoint
from fosp_core.train.learner import Learner, frozen
from fosp_core.world_model.model import States

CONTRACT = Contract.load(config_file('contract_safereach.yaml'))
TINY = ['behaviour.horizon=3', 'train.batch=4', 'train.length=6', 'behaviour.ema_regulariser=1.0']


def learner(*overrides, contract=CONTRACT) -> Learner:
    return Learner(contract, Config.load('debug', [*TINY, *overrides]))


def batches(n: int, learner: Learner) -> list[dict]:
    replay, rng = random_replay(learner.contract, 200), np.random.default_rng(0)
    cfg = learner.config.train
    return [replay.sample(cfg.batch, cfg.length, rng) for _ in range(n)]


def assert_same_run(a: Learner, b: Learner, steps: int = 3, tolerance: float = 1e-4):
    """Both make the same steps: metrics and weights agree to rounding."""
    for batch in batches(steps, a):
        one, two = a.update(dict(batch)), b.update(dict(batch))
        assert one == pytest.approx(two, rel=tolerance, abs=tolerance)
    one, two = a.agent.state_dict(), b.agent.state_dict()
    assert one.keys() == two.keys()
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=tolerance, atol=tolerance, msg=key)


@pytest.mark.parametrize('overrides', [(), ('behaviour.actor_objective=dynamics',), ('constraint.kind=none',)])
def test_update_on_columns_is_the_update_on_ones_and_zeros(overrides):
    """The whole step, samples and all, with the latents as column numbers."""
    a, b = learner(*overrides), learner(*overrides)
    assert not a.columns, 'latents of the debug preset are narrow'
    b.columns = True
    assert_same_run(a, b)


def test_wide_latents_are_columns_by_themselves():
    wide = Learner(CONTRACT, Config.load('debug', ['network.stoch=32', 'network.classes=32']))
    assert wide.columns


def observe_by_the_book(rssm, embedding, action, is_first, gumbel):
    """One step after the other, as the equations stand; the dense reference of `RSSM.observe`."""
    b, t = is_first.shape
    previous = torch.cat([torch.zeros_like(action[:, :1]), action[:, :-1]], 1)
    deter, stoch = rssm.initial_state(b)
    outs = []
    for i in range(t):
        deter0, stoch0 = rssm.initial_state(b)
        first = is_first[:, i:i + 1].float()
        deter = (1 - first) * deter + first * deter0
        stoch = (1 - first) * stoch + first * stoch0
        a = (1 - first) * previous[:, i]
        a = a / a.abs().clamp(min=1.0)
        x = F.silu(rssm.input.norm(F.linear(torch.cat([stoch, a], -1), rssm.input.linear.weight)))
        gates = rssm.gru_norm(F.linear(torch.cat([deter, x], -1), rssm.gru.weight))
        reset, candidate, update = gates.chunk(3, -1)
        update = torch.sigmoid(update - 1.0)
        deter = update * torch.tanh(torch.sigmoid(reset) * candidate) + (1 - update) * deter
        log_post = rssm.posterior(deter, F.linear(embedding[:, i], rssm.post_embed.weight))
        stoch = sample_onehot(log_post, gumbel[:, i]).flatten(-2)
        outs.append((deter, stoch, log_post, rssm.prior(deter)))
    return [torch.stack(x, 1) for x in zip(*outs)]


@pytest.mark.parametrize('columns', [True, False])
def test_observe_is_the_loop_of_the_equations(columns):
    """Products that left the loop, tied weights, resets that are skipped: same states, same gradients."""
    made = learner('network.hidden=160', 'network.deter=96')      # weights large enough to be tied
    rssm, generator = made.agent.world_model.rssm, torch.Generator().manual_seed(0)
    with torch.no_grad():
        rssm.initial.normal_(generator=generator)     # zero would hide a lost start
    embedding = torch.randn(5, 7, rssm.post_embed.in_features, generator=generator).requires_grad_()
    action = 2 * torch.rand(5, 7, 3, generator=generator) - 1
    action[2, 3] = 3.0     # beyond the limits: divided by its size
    is_first = torch.zeros(5, 7, dtype=torch.bool)
    is_first[:, 0] = is_first[:, 5] = True     # everywhere, here and there, nowhere
    is_first[1:3, 2] = True
    gumbel = gumbel_like((5, 7, rssm.stoch, rssm.classes), generator, 'cpu')
    found = rssm.observe(embedding, action, is_first, gumbel, columns)
    if columns:
        assert isinstance(found[1], OneHot)
        found = (found[0], found[1].dense(), *found[2:])
    expected = observe_by_the_book(rssm, embedding, action, is_first, gumbel)
    leaves = [embedding, *rssm.parameters()]
    weights = [torch.randn(x.shape, generator=generator) for x in expected]
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    one, two = (torch.autograd.grad(sum((w * x).sum() for w, x in zip(weights, xs)), leaves) for xs in
                (found, expected))
    for a, b in zip(one, two):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_imagination_keeps_a_graph_for_the_actor_alone():
    made = learner()
    agent = made.agent
    with frozen(agent, but=agent.actor):
        assert {n for n, p in agent.named_parameters() if p.requires_grad} \
            == {f'actor.{n}' for n, _ in agent.actor.named_parameters()}
    trained = {n for n, p in agent.named_parameters() if p.requires_grad}
    assert 'world_model.rssm.gru.weight' in trained and 'q_cost.net.output.weight' in trained
    assert not any(n.startswith(('offline_actor', 'q_cost_target')) for n in trained)
    with pytest.raises(RuntimeError), frozen(agent, but=agent.actor):
        raise RuntimeError
    assert {n for n, p in agent.named_parameters() if p.requires_grad} == trained


def rollouts_of(made: Learner) -> list:
    """What the learner's agent imagines from now on."""
    seen, imagine = [], made.agent.imagine
    made.agent.imagine = lambda *a: seen.append(imagine(*a)) or seen[-1]
    return seen


@pytest.mark.parametrize('objective', ['in_sample', 'dynamics'])
def test_rollout_with_a_graph_is_a_path(objective):
    """Rewards have a graph only where the actor's objective goes through them."""
    made = learner(f'behaviour.actor_objective={objective}')
    made.columns = True
    seen = rollouts_of(made)
    made.update(batches(1, made)[0])
    assert isinstance(seen[0].feature, Path) and len(seen[0].feature) == 4
    assert seen[0].cost.requires_grad and seen[0].reward.requires_grad == (objective == 'dynamics')


def test_behaviour_step_on_stored_states_is_the_same_on_columns():
    a, b = learner(), learner()
    b.columns = True
    seen = rollouts_of(b)
    rssm, generator = a.agent.world_model.rssm, torch.Generator().manual_seed(0)
    classes = torch.randint(rssm.classes, (4, 6, rssm.stoch), generator=generator)
    states = States(torch.randn(4, 6, rssm.deter, generator=generator),
                    F.one_hot(classes, rssm.classes).float().flatten(-2))
    batch = a.to_device({k: v for k, v in batches(1, a)[0].items() if k not in ('image', 'ee_pose')})
    for _ in range(2):
        assert a.update_behaviour(states, batch) == pytest.approx(b.update_behaviour(states, batch), rel=1e-4, abs=1e-4)
    assert isinstance(seen[0].feature, Path)


def test_value_of_cost_along_a_rollout_is_computed_once_and_for_cost_alone():
    made = learner()
    agent, generator = made.agent, torch.Generator().manual_seed(0)
    for critic in made.critics:     # zero outputs would be equal whatever is mixed up
        torch.nn.init.normal_(critic.net.output.weight, std=0.3, generator=generator)
    batch = made.to_device(batches(1, made)[0])
    states, _ = made._world_model(batch)
    flat = States(states.deter.flatten(0, 1), states.stoch.flatten(0, 1))
    rollout = agent.imagine(flat, torch.ones(len(flat.deter)), generator)
    agent.predicted_cost(rollout)
    found = []
    for known in (rollout.detach(), dataclasses.replace(rollout.detach(), cost_value=None)):
        assert (known.cost_value is None) == bool(found)
        metrics = agent.critic_loss(known, states.feature, batch)[1]
        found.append({k: v.item() for k, v in metrics.items()})
    assert found[0] == pytest.approx(found[1])
    assert found[0]['critic/return_reward'] != pytest.approx(found[0]['critic/return_cost'])


@pytest.mark.parametrize('cameras', [1, 2])
def test_colour_weights_are_each_cameras_saturation(cameras):
    contract = dataclasses.replace(CONTRACT, cameras=tuple(
        dataclasses.replace(CONTRACT.cameras[0], name=f'image{i}') for i in range(cameras)))
    decoder = Learner(contract, Config.load('debug')).agent.world_model.decoder
    a, b = torch.rand(2, 3 * cameras, 4, 4), torch.rand(2, 3 * cameras, 4, 4) * 2

    def saturation(picture):
        return torch.cat([(p.amax(1, keepdim=True) - p.amin(1, keepdim=True)).clamp(0.0, 1.0).expand_as(p)
                          for p in picture.split(3, 1)], 1)

    expected = torch.maximum(saturation(a), saturation(b))
    assert torch.equal(decoder._colour_weights(a, b).expand_as(a), expected)


def test_bfloat16_products_leave_weights_and_losses_float32():
    """On a CPU only to see that the path works: on most it is many times slower."""
    full, half = learner(), learner('train.precision=bfloat16', 'train.bf16_on_cpu=true')
    seen = []
    half.agent.world_model.decoder.linear.register_forward_hook(lambda m, i, o: seen.append(o.dtype))
    for batch in batches(2, full):
        one, two = full.update(dict(batch)), half.update(dict(batch))
    assert seen and set(seen) == {torch.bfloat16}
    assert all(v.dtype != torch.bfloat16 for v in half.agent.state_dict().values())
    # Not the expectile losses: critics that still are zero everywhere have Q - V of either sign, by rounding.
    compared = [k for k in one if not k.startswith('critic/v_')]
    assert [two[k] for k in compared] == pytest.approx([one[k] for k in compared], rel=0.1, abs=0.1)
    assert two != one


def test_rounded_factors_are_asked_for_during_a_step_alone(monkeypatch):
    """oneDNN decides by the processor whether it rounds; here only that it is told, and that nothing else changes."""
    full, rounded = learner(), learner('train.precision=bfloat16_products')
    matmul, conv = torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv
    before, seen = (matmul.fp32_precision, conv.fp32_precision), []
    for one in (full, rounded):
        one.part_done = lambda name: seen.append((matmul.fp32_precision, conv.fp32_precision))
    for batch in batches(2, full):
        one, two = full.update(dict(batch)), rounded.update(dict(batch))
    assert seen[:4] == [before] * 4 and seen[4:8] == [('bf16', 'bf16')] * 4 and len(seen) == 16
    assert (matmul.fp32_precision, conv.fp32_precision) == before
    assert all(v.dtype != torch.bfloat16 for v in rounded.agent.state_dict().values())
    compared = [k for k in one if not k.startswith('critic/v_')]
    assert [two[k] for k in compared] == pytest.approx([one[k] for k in compared], rel=0.1, abs=0.1)
    with pytest.raises(TrainingError), execution.products(rounded.config.train):
        raise TrainingError('a loss')
    assert (matmul.fp32_precision, conv.fp32_precision) == before      # also after a step that failed
    monkeypatch.setattr(torch.backends.mkldnn, 'matmul', object())
    monkeypatch.setattr(torch.backends.mkldnn, 'conv', object())
    with pytest.raises(TrainingError, match='bfloat16_products is for a CPU and torch 2.9 or newer'):
        learner('train.precision=bfloat16_products')


@pytest.mark.parametrize(('overrides', 'device', 'message'), [
    (['train.precision=bfloat16'], 'cpu', 'many times slower.*train.bf16_on_cpu=true'),
    (['train.cuda_graph=true'], 'cpu', 'train.cuda_graph needs a GPU'),
    (['train.precision=float8'], 'cpu', "train.precision 'float8', expected one of float32, bfloat16_products, bf"),
    ([], 'cuda', 'torch sees no GPU'),
    ([], 'gpu', 'device gpu: expected cpu, cuda or cuda:N')])
def test_what_this_machine_cannot_do_is_one_clear_error(overrides, device, message):
    if device == 'cuda' and torch.cuda.is_available():
        pytest.skip('there is a GPU')
    with pytest.raises(TrainingError, match=message) as caught:
        Learner(CONTRACT, Config.load('debug', overrides), device)
    assert '\n' not in str(caught.value)


def test_compile_without_a_compiler_is_one_clear_error(monkeypatch):
    monkeypatch.setattr(shutil, 'which', lambda name: None)
    with pytest.raises(TrainingError, match='no C\\+\\+ compiler .* train.compile=false'):
        learner('train.compile=true')


def traced_only(monkeypatch):
    """Let torch.compile trace and differentiate, but generate no code: seconds instead of minutes."""
    compiled = torch.compile
    monkeypatch.setattr(torch, 'compile', lambda f, dynamic: compiled(f, backend='aot_eager', dynamic=dynamic))


def keep_one_network(made: Learner):
    """Compile the recurrent steps and one network; the others take the same way."""
    programs = made._programs
    keep = [i for i, m in enumerate(programs._modules) if m is made.agent.reach_target.net]
    programs._modules, programs._calls = ([v[i] for i in keep] for v in (programs._modules, programs._calls))


@pytest.mark.parametrize('whole', [False, pytest.param(True, marks=pytest.mark.slow)])
def test_compiled_step_is_the_eager_one_and_nobody_else_sees_it(monkeypatch, whole):
    traced_only(monkeypatch)
    if not (shutil.which('g++') or shutil.which('clang++')):
        monkeypatch.setattr(shutil, 'which', lambda name: name)     # nothing is generated here
    torch._dynamo.utils.counters.clear()
    a, b = learner(), learner('train.compile=true')
    if not whole:
        keep_one_network(b)
    assert_same_run(a, b, steps=2)
    counters = torch._dynamo.utils.counters['frames']
    assert counters['ok'] >= (14 if whole else 3), dict(counters)
    assert not torch._dynamo.utils.counters['graph_break']
    assert all(m._compiled_call_impl is None for m in b.agent.modules())
    assert 'filter_step' not in vars(b.agent.world_model.rssm)
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_generated_code_is_the_eager_step():
    if not (shutil.which('g++') or shutil.which('clang++')):
        pytest.skip('no C++ compiler: train.compile is refused here, see the test of that')
    a, b = learner(), learner('train.compile=true')
    keep_one_network(b)
    assert_same_run(a, b, steps=2)
    torch._dynamo.reset()


def test_larger_presets_are_larger():
    """Sizes alone: no memory is taken for them here."""
    sizes = []
    for name in ('debug', 'small', 'fosp', 'medium', 'large', 'xlarge'):
        config = Config.load(name)
        with torch.device('meta'):
            agent = Agent(CONTRACT, config)
        sizes.append(sum(p.numel() for p in agent.parameters()))
    assert all(1.2 * a < b for a, b in zip(sizes, sizes[1:])), sizes
    assert Config.load('fosp').contract == 'two_cameras'


class FakeGraph:
    """Stands for a CUDA graph where there is no GPU: replays by calling again, into the same tensors."""

    def __init__(self):
        self.generators, self.replays = [], 0

    def register_generator_state(self, generator):
        self.generators.append(generator)

    def replay(self):
        self.replays += 1
        for key, value in self.function(self.inputs).items():
            self.outputs[key].copy_(value)


class FakeStream(contextlib.nullcontext):
    def wait_stream(self, other):
        pass


def test_capture_feeds_each_batch_to_the_graph(monkeypatch):
    """The recorder's bookkeeping; that a GPU's graph computes what the step does can be seen on a GPU alone."""
    made = []
    monkeypatch.setattr(torch.cuda, 'CUDAGraph', lambda: made.append(FakeGraph()) or made[-1])
    monkeypatch.setattr(torch.cuda, 'graph', lambda graph: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, 'Stream', FakeStream)
    monkeypatch.setattr(torch.cuda, 'current_stream', FakeStream)
    monkeypatch.setattr(torch.cuda, 'stream', lambda stream: stream)
    generator, calls = torch.Generator(), []

    def function(batch):
        calls.append(batch)
        return {'y': 2 * batch['x']}

    capture = execution.Capture(function, generator)
    for i in range(execution.WARM_UP):
        assert capture({'x': torch.full((3,), float(i))})['y'].tolist() == 3 * [2.0 * i]
    assert not made, 'captured before the libraries had settled'
    x = torch.full((3,), 10.0)
    # The stand-in cannot know what was captured: told here, as capture makes it.
    original = FakeGraph.replay

    def replay(graph):
        graph.function, graph.inputs, graph.outputs = function, capture._inputs, capture._outputs
        original(graph)
    monkeypatch.setattr(FakeGraph, 'replay', replay)
    assert capture({'x': x})['y'].tolist() == 3 * [20.0]
    assert x.data_ptr() != capture._inputs['x'].data_ptr()
    assert capture({'x': x + 1})['y'].tolist() == 3 * [22.0]
    assert len(made) == 1 and made[0].generators == [generator] and made[0].replays == 2
    with pytest.raises(TrainingError, match=r'batch key x has shape \(4,\), expected \(3,\)'):
        capture({'x': torch.zeros(4)})


def test_captured_step_is_forgotten_when_its_constants_change(tmp_path, monkeypatch):
    made, forgotten = learner('constraint.kind=pid'), []
    made.update(batches(1, made)[0])
    monkeypatch.setattr(made, 'forget_graph', lambda: forgotten.append(made.step))
    made.end_episode(1.0)
    made.begin_online()
    load_checkpoint(save_checkpoint(tmp_path, made), made)
    assert forgotten == [1, 1, 1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('name', ['compile', 'graph', 'compile+graph'])
def test_executions_agree_on_a_gpu(name):
    config = Config.load('debug', TINY)
    eager = Learner(CONTRACT, config, 'cuda')
    other = Learner(CONTRACT, dataclasses.replace(config, train=dataclasses.replace(
        config.train, **execution.EXECUTIONS[name])), 'cuda')
    assert_same_run(eager, other, steps=6, tolerance=1e-3)
