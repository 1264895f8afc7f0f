# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Methods, baselines and ablations are files of config/: each is what its name says, over every preset."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from fosp_core.config import Config, method_names
from fosp_core.contract import Contract
from fosp_core.errors import FospError
from fosp_core.paths import config_file, share_dir
from fosp_core.train.bench_step import random_replay
from fosp_core.train.learner import Learner

CONTRACT = Contract.load(config_file('contract_safereach.yaml'))
METHODS = ('bc', 'direct', 'dreamerv3', 'fosp', 'fosp_marvel', 'marvel', 'no_expectile', 'no_lagrangian',
           'no_reachability', 'pex', 'safedreamer')
PRESETS = sorted(p.stem.removeprefix('preset_') for p in (share_dir() / 'config').glob('preset_*.yaml'))
ABLATIONS = {   # the only keys in which each may differ from FOSP
    'direct': {'expansion.enabled'}, 'no_lagrangian': {'constraint.kind'},
    'no_reachability': {'behaviour.use_reachability', 'expansion.reach_gate'},
    'no_expectile': {'behaviour.in_sample', 'behaviour.reward_expectile', 'behaviour.cost_expectile'}}


def flat(config: Config) -> dict:
    return {f'{s}.{k}': v for s, section in config.to_dict().items() if isinstance(section, dict) and s != 'replaced'
            for k, v in section.items()}


def debug_size(config: Config) -> Config:
    """The method as it stands over its preset, with the networks and batches of `debug`."""
    small = Config.load('debug')
    behaviour = dataclasses.replace(config.behaviour, horizon=3, imagine_starts=6)
    train = dataclasses.replace(small.train, batch=2, length=5)
    return dataclasses.replace(config, network=small.network, behaviour=behaviour, train=train)


@pytest.fixture(scope='module')
def replay():
    return random_replay(CONTRACT, 100)


def test_every_method_has_a_file_and_no_file_is_forgotten():
    assert method_names() == list(METHODS)
    node = pytest.importorskip('fosp_ros.trainer_node', reason='rclpy is not installed')
    choices = next(p.choices for p in node.PARAMETERS if p.name == 'method')
    assert choices == ('as_trained', *METHODS)
    page = (share_dir() / 'docs' / 'explanation' / 'algorithm.md').read_text()
    assert all(f'| `{name}` |' in page for name in METHODS), 'docs/explanation/algorithm.md lacks a method'


@pytest.mark.parametrize('preset', PRESETS)
def test_a_method_changes_the_way_of_learning_and_no_size(preset):
    plain = Config.load(preset)
    for name in METHODS:
        config = Config.load(preset, method=name)
        assert config.method == name
        assert (config.network, config.world_model, config.train) == (plain.network, plain.world_model, plain.train)
    fosp = flat(Config.load(preset, method='fosp'))
    for name, allowed in ABLATIONS.items():
        other = flat(Config.load(preset, method=name))
        assert {k for k in fosp if fosp[k] != other[k]} <= allowed, name
        assert fosp != other


@pytest.mark.parametrize('preset', PRESETS)
def test_every_preset_is_fosp(preset):
    plain, fosp = Config.load(preset).to_dict(), Config.load(preset, method='fosp').to_dict()
    assert {k for k in plain if plain[k] != fosp[k]} <= {'replaced'}


def test_a_method_takes_the_place_of_an_earlier_one():
    """A bundle of behaviour cloning that is fine-tuned with Marvel keeps nothing of cloning."""
    def loaded(method):
        return Config.load('small', method=method).to_dict()

    for first in METHODS:
        stored = Config.from_dict(json.loads(json.dumps(Config.load('small', method=first).to_dict())))
        for second in METHODS:
            assert json.dumps(stored.changed(method=second).to_dict()) == json.dumps(loaded(second)), (first, second)


def test_a_method_over_a_changed_preset_is_still_the_method():
    """A preset may not decide what a method is: each overlay states every key that makes it."""
    switches = ['behaviour.actor_objective=dynamics', 'behaviour.in_sample=false', 'behaviour.use_reachability=false',
                'constraint.kind=pid', 'expansion.enabled=false', 'alignment.steps=7', 'expansion.init=fresh']
    odd = Config.load('debug', switches)
    keys = ['behaviour.actor_objective', 'behaviour.use_reachability', 'constraint.kind', 'expansion.enabled',
            'expansion.init', 'alignment.steps']
    for name in METHODS:
        plain, over = flat(Config.load('debug', method=name)), flat(odd.changed(method=name))
        assert {k: plain[k] for k in keys} == {k: over[k] for k in keys}, name


NETWORKS = ('q_reward_target', 'q_cost_target', 'reach_target', 'v_reward', 'v_cost')
ALL = set(NETWORKS)
LISTENS = {     # whose word the actor's gradient takes, offline, and online but for one
    **{name: ALL for name in ('fosp', 'direct', 'marvel', 'fosp_marvel', 'pex', 'no_expectile', 'no_lagrangian')},
    'no_reachability': ALL - {'reach_target'}, 'dreamerv3': {'v_reward'}, 'safedreamer': {'v_reward', 'v_cost'},
    'bc': set()}


def actor_gradient(config: Config, replay, online: bool, changed: str = '') -> list[torch.Tensor]:
    """The gradient that the actor is given in one step, with networks that say something; `changed` says another."""
    learner = Learner(CONTRACT, config, seed=1)
    agent = learner.agent
    with torch.no_grad():
        for k, name in enumerate(NETWORKS):
            generator = torch.Generator().manual_seed(k + 10 * (name == changed))
            output = getattr(agent, name).net.output
            output.weight.copy_(0.05 * torch.randn(output.weight.shape, generator=generator))
        if hasattr(agent.constraint, 'multiplier'):
            agent.constraint.multiplier.fill_(1.0)
    if online:
        learner.begin_online()
    learner.update(replay.sample(2, 5, np.random.default_rng(3)))
    return [p.grad for p in agent.actor.parameters()]


@pytest.mark.parametrize('name', METHODS)
def test_what_the_policy_listens_to(name, replay):
    config = debug_size(Config.load('debug', method=name))
    if config.behaviour.feasible_gate >= 0:     # where half of the pairs pass it, so that it can be heard
        config = dataclasses.replace(config, behaviour=dataclasses.replace(config.behaviour, feasible_gate=0.0))
    for online in (False, True):
        usual = actor_gradient(config, replay, online)
        heard = set()
        for network in NETWORKS:
            other = actor_gradient(config, replay, online, network)
            heard |= {network} if any(not torch.equal(a, b) for a, b in zip(usual, other)) else set()
        # With u = 1 P1's online weight has no A^c, and no gate: the cost is heard by the penalty alone.
        deaf = {'q_cost_target'} if online and name == 'no_reachability' else set()
        assert heard == LISTENS[name] - deaf, f'{name} {"online" if online else "offline"}'


def distinct() -> list[str]:
    """Presets that differ in more than sizes; the others would be the same test again."""
    seen = {}
    for preset in PRESETS:
        config = dataclasses.replace(debug_size(Config.load(preset)), name='', world_model=None)
        seen.setdefault(repr(config), preset)
    return list(seen.values())


@pytest.mark.parametrize('name', METHODS)
@pytest.mark.parametrize('preset', distinct())
def test_two_steps_offline_and_two_online(preset, name, replay):
    config = debug_size(Config.load(preset, method=name))
    learner = Learner(CONTRACT, config, seed=2)
    agent, constraint, metrics = learner.agent, learner.agent.constraint, []
    for step in range(4):
        if step == 2:
            learner.begin_online()
            frozen = {k: v.clone() for k, v in agent.offline_actor.state_dict().items()}
            start = {k: v.clone() for k, v in agent.actor.state_dict().items()}
            assert torch.equal(frozen['output.weight'], start['output.weight'])
        metrics.append(learner.update(replay.sample(2, 5, learner.rng)))
    assert all(torch.equal(v, frozen[k]) for k, v in agent.offline_actor.state_dict().items())
    assert any(not torch.equal(v, start[k]) for k, v in agent.actor.state_dict().items())
    if name == 'bc':
        assert all(m['actor/weight'] == 1.0 for m in metrics)
    assert all(('actor/weight' in m) == (name not in ('dreamerv3', 'safedreamer')) for m in metrics)
    assert all(('constraint/predicted_cost' in m) == (name not in ('bc', 'dreamerv3', 'no_lagrangian'))
               for m in metrics)
    if config.constraint.kind == 'alm':
        assert constraint.multiplier.item() > config.constraint.lambda_init
    if config.constraint.kind == 'apid':    # the measured cost of whole episodes moves it, and nothing else
        assert constraint.multiplier == 0
        learner.end_episode(5.0, identity=7)
        moved = constraint.multiplier.item()
        assert moved > 0
        learner.end_episode(5.0, identity=7)
        assert constraint.multiplier.item() == moved, 'an episode was counted twice'


def test_who_acts():
    """Expansion's settings of each method, as the deployed graph and its score take them."""
    def expansion(name):
        return Config.load('small', method=name).expansion

    alone = {name for name in METHODS if not expansion(name).enabled}
    assert alone == {'bc', 'direct', 'dreamerv3', 'marvel', 'safedreamer'}
    assert (expansion('pex').cost_coefficient, expansion('pex').reach_gate) == (0.0, -1.0)
    assert expansion('fosp').cost_coefficient > 0 and expansion('fosp').reach_gate >= 0
    aligned = {name for name in METHODS if Config.load('small', method=name).alignment.steps}
    assert aligned == {'marvel', 'fosp_marvel'}


@pytest.mark.parametrize(('overrides', 'method', 'message'), [
    ([], 'ppo', "method 'ppo', expected one of bc, direct"),
    (['constraint.kind=cpo'], None, "constraint: key kind is 'cpo', expected one of alm, none, pid, apid"),
    (['behaviour.value_loss=huber'], 'fosp', "key value_loss is 'huber', expected one of twohot_ce, squared"),
    (['behaviour.cost_expectile=1'], None, 'key cost_expectile is 1.0, expected more than 0 to less than 1'),
    (['behaviour.discount=.nan'], None, 'key discount is nan, expected more than 0 to 1'),
    (['name.x=1'], None, '--set name.x=1: name is no section'), (['behaviour.lr=['], None, 'is not YAML'),
    (['network.cnn_multipliers=5'], None, 'key cnn_multipliers is 5, expected a list of whole numbers')])
def test_an_unknown_word_is_refused_and_never_taken_for_the_default(overrides, method, message):
    with pytest.raises(FospError) as error:
        Config.load('debug', overrides, method)
    assert message in str(error.value)
