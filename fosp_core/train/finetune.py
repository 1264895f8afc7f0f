# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The fine-tuning worker: `python -m fosp_core.train.finetune`. Started by the trainer node, or by hand.

Takes a bundle and the robot's episodes, makes N gradient steps of the online phase, and writes a new bundle. Prints one
JSON object per line on standard output: `{"event": "start"|"align"|"step"|"done"|"refused", ...}`. Exit 0 and a bundle
in --out; or exit 3, when the new model did not pass a gate: it lies in OUT.refused with its reason; or exit 2, one line
on standard error, and nothing written.
"""

import argparse
import copy
import dataclasses
import json
import os
import sys
import time
from pathlib import Path

from fosp_core.errors import FospError, RefusedError, TrainingError

EXIT_REFUSED = 3


def _say(event: str, **values) -> None:
    print(json.dumps({'event': event, **values}), flush=True)


def load_learner(bundle, seed: int, method: str | None = None, overrides: list[str] | None = None):
    """Build a Learner from a bundle's weights and its configuration, changed as told; optimisers fresh.

    Another kind of constraint starts from its own initial state; every other weight must fit.
    """
    from safetensors.torch import load

    from fosp_core.config import Config
    from fosp_core.train.checkpoint import load_agent
    from fosp_core.train.learner import Learner
    trained = Config.from_dict(bundle.manifest['config'], f'{bundle.path}/manifest.json: config')
    config = trained.changed(overrides, method)
    learner = Learner(bundle.contract, config, seed=seed)
    tensors = load(bundle.read('weights.safetensors'))
    if config.constraint.kind != trained.constraint.kind:
        tensors = {k: v for k, v in tensors.items() if not k.startswith('constraint.')}
        tensors |= {f'constraint.{k}': v for k, v in learner.agent.constraint.state_dict().items()}
    load_agent(learner, tensors, f'{bundle.path}/weights.safetensors')
    return learner


def finetune(bundle, online: list, offline: list, out: Path, steps: int, seed: int, version: str | None = None,
             holdout: float = 0.2, progress=None, method: str | None = None, overrides: list[str] | None = None,
             aligned=None, board=None, mirror: tuple[str, ...] | None = None):
    """Make `steps` online gradient steps from `bundle`; return the new Bundle at `out`.

    A part of the offline episodes is held out to calibrate the new model; where it holds no violating episode, the
    parent's level is kept and the calibration says so. With `alignment.steps` in the configuration the critics are
    aligned first (`fosp_core.train.align`) and `aligned` is called with its report; TrainingError when it refuses.
    `board` is a TensorBoard writer that is given every step's metrics. `mirror` has the fields that change sign in a
    mirror image of a scene of this robot (default: as the model's own contract says). It is used where the model was
    pretrained so: one that has never seen such an image spends its few steps on them (docs/explanation/results.md).

    Then come the gates (`fosp_core.train.gates`), on the held-out offline and online episodes; without enough online
    ones, on those it was trained on, which the numbers say. RefusedError when one is not passed: the model is then in
    `refused_folder(out)` with its reason, and not at `out`.
    """
    import numpy as np
    import torch

    from fosp_core.data.replay import MixedReplay, Replay
    from fosp_core.data.store import data_hash
    from fosp_core.deploy.export import export_bundle, round_to_half
    from fosp_core.deploy.trained_on import KEY, listing
    from fosp_core.safety.calibration import HORIZON, LEAD
    from fosp_core.train import gates
    from fosp_core.train.align import pre_align
    from fosp_core.train.dataset import split
    from fosp_core.train.heldout import heldout_metrics
    from fosp_core.train.pretrain import git_commit
    learner = load_learner(bundle, seed, method, overrides)
    contract = bundle.contract
    if mirror is not None and contract.mirror:     # what is learned from; the new bundle goes on saying what was seen
        contract = dataclasses.replace(contract, mirror=mirror)
    parent = copy.deepcopy(learner.agent)
    parent_offline, parent_online = learner.agent.offline_actor.state_dict(), learner.agent.actor.state_dict()
    adapted = any(not torch.equal(v, parent_online[k]) for k, v in parent_offline.items())
    learner.begin_online(adapted)
    # The first fine-tune freezes the offline policy; a later one must keep that one, not freeze the adapted policy.
    learner.agent.offline_actor.load_state_dict(parent_offline)
    training, held = split(offline, holdout)
    adapting, witnesses = split(online, learner.config.gates.online_holdout)
    alignment = {}
    if learner.config.alignment.steps:
        alignment = pre_align(learner, training, adapting, held, contract=contract)
        if aligned:
            aligned(alignment)
    for episode in online:
        learner.end_episode(float(episode.cost.sum()), 1 + int(data_hash([episode])[:15], 16))
    cfg = learner.config.train
    replay = MixedReplay(*(Replay(contract, mirror=cfg.mirror).extend(part) for part in (training, adapting)),
                         cfg.online_fraction)
    metrics = {}
    for i in range(steps):
        metrics = learner.update(replay.sample(cfg.online_batch, cfg.length, learner.rng))
        for key, value in metrics.items() if board is not None else ():
            board.add_scalar(key, value, bundle.manifest['steps'] + i + 1)
        if progress:
            progress(i + 1, metrics)
    agent = learner.agent
    round_to_half(agent)
    refusal = gates.not_finite(agent)
    calibration = json.loads(bundle.read('calibration.json'))
    card = {'online_episodes': len(adapting), 'offline_episodes': len(training), 'online_steps': steps,
            'method': learner.config.method, **{k: round(v, 6) for k, v in metrics.items()},
            **{f'align/{k}': v for k, v in alignment.items() if v is not None}}
    shares = [e.meta['online_share'] for e in online if 'online_share' in e.meta]
    if shares:  # of the robot's steps, the part that the online policy proposed
        card['online_share'] = round(float(np.mean(shares)), 4)
    if not refusal:
        try:
            calibration = recalibrated(agent, held, calibration, bundle.version)
        except TrainingError as error:      # finite weights whose outputs are not
            refusal = str(error)
    if not refusal:
        level, promise = calibration['reachability']['level'], bundle.calibration['reachability']
        window = promise.get('horizon', HORIZON), promise.get('lead', LEAD)
        if held:
            card |= heldout_metrics(agent, held, level)
        refusal, numbers = gates.compare(parent, agent, {'offline': held, 'online': witnesses or adapting},
                                         {'parent': promise['level'], 'new': level}, learner.config.gates, window)
        card |= numbers | {'gate/online_in_training': not witnesses, 'gate/calibrated_on': violating(held, promise),
                           'gate/calibration_inherited': 'inherited_from' in calibration}
    version = version or f'{bundle.version.split("+")[0]}+{time.strftime("%Y%m%dT%H%M%S")}'
    about = {'version': version, 'name': bundle.manifest['name'], 'calibration': calibration,
             'data_hash': data_hash(adapting + training), 'seed': seed, 'steps': bundle.manifest['steps'] + steps,
             'metrics': card, 'parent': bundle.version, 'commit': git_commit(),
             'trained_on': listing(adapting + training, bundle.manifest.get(KEY))}
    if not refusal:
        try:
            return export_bundle(agent, out, **about)
        except RefusedError as error:
            refusal = str(error)
    _set_aside(agent, refused_folder(out), refusal, about)
    raise RefusedError(refusal)


def refused_folder(out: Path) -> Path:
    """Return where a refused model is kept: beside the place that it was meant for."""
    return out.with_name(f'{out.name}.refused')


def _set_aside(agent, folder: Path, reason: str, about: dict) -> None:
    """Write reason.txt and the bundle, or the bare weights of a model that cannot be exported; all or nothing."""
    from fosp_core.deploy.export import export_bundle, weights_bytes
    from fosp_core.io import atomic_dir
    with atomic_dir(folder) as temporary:
        (temporary / 'reason.txt').write_text(reason + '\n')
        try:
            about = {**about, 'metrics': about['metrics'] | {'gate/refused': reason}}
            export_bundle(agent, temporary / 'bundle', **about)
        except RefusedError:
            (temporary / 'weights.safetensors').write_bytes(weights_bytes(agent))


def recalibrated(agent, held: list, calibration: dict, parent: str) -> dict:
    """Return the calibration of a tuned agent on the episodes `held`, with what its parent's promises.

    With too few violations among them for that promise, the levels of the parent: nothing is guaranteed for this model,
    and `inherited_from` is the version that they were found with.
    """
    from fosp_core.train.heldout import calibrate
    old = calibration['reachability']
    if violating(held, old):
        new = calibrate(agent, held, old['alpha'], confidence=old.get('confidence'),
                        **{k: old[k] for k in ('horizon', 'lead') if k in old})
        if new['reachability']['guaranteed']:
            return new
    kept = {gate: {**calibration[gate], 'guaranteed': False} for gate in ('reachability', 'surprise')
            if gate in calibration}
    return {'inherited_from': parent, **calibration, **kept}


def violating(held: list, promise: dict) -> int:
    """Return how many of the episodes can calibrate the reachability: those that violate, and not from the start."""
    import numpy as np
    return sum(bool(np.argmax(e.cost > 0) >= max(1, promise.get('lead', 1))) for e in held)


def main(argv: list[str] | None = None) -> int:
    """Run the worker."""
    parser = argparse.ArgumentParser(prog='fosp_core.train.finetune', description=__doc__.splitlines()[0])
    parser.add_argument('--bundle', required=True)
    parser.add_argument('--episodes', required=True, help='folder of .npz episodes from the robot')
    parser.add_argument('--offline', default=None, help='rosbag2 or .npz folder to mix in')
    parser.add_argument('--contract', default=None,
                        help='contract file: its import section reads --offline, its mirror holds for a model that was '
                             'pretrained with mirror images')
    parser.add_argument('--steps', type=int, default=40)
    parser.add_argument('--out', required=True)
    parser.add_argument('--version', default=None)
    parser.add_argument('--method', default=None, help="a method of config/ (default: the bundle's own configuration)")
    parser.add_argument('--set', action='append', default=[], metavar='SECTION.KEY=VALUE', dest='overrides')
    parser.add_argument('--tensorboard', default=None, metavar='DIR', help='TensorBoard files of every step')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--nice', type=int, default=10)
    args = parser.parse_args(argv)
    os.nice(args.nice)  # the control path comes first
    try:
        import torch

        from fosp_core.contract import Contract
        from fosp_core.data.store import load_episodes
        from fosp_core.deploy.bundle import Bundle
        from fosp_core.train.dataset import load_dataset
        torch.set_num_threads(args.threads)
        if args.steps < 1:
            raise TrainingError(f'--steps {args.steps}: expected at least 1')
        bundle = Bundle.open(args.bundle)
        online = load_episodes(args.episodes, bundle.contract)
        contract, mirror = bundle.contract, None
        if args.contract:
            contract = Contract.load(args.contract)     # the bundle's does not say where foreign bags have their data
            contract.require_same(bundle.contract.hash, str(bundle.path), bundle.contract.to_dict())
            mirror = contract.mirror    # for this robot to say, not for the one of the pretraining
        offline = load_dataset([args.offline], contract) if args.offline else []
        _say('start', steps=args.steps, online=len(online), offline=len(offline))
        began = started = time.monotonic()

        def aligned(report: dict) -> None:
            nonlocal started
            _say('align', seconds=round(time.monotonic() - began, 2), **report)
            started = time.monotonic()  # what is left is reckoned from the steps alone

        def progress(step: int, metrics: dict) -> None:
            _say('step', step=step, steps=args.steps, seconds=round(time.monotonic() - started, 2),
                 losses={k: round(v, 5) for k, v in metrics.items() if k.endswith('loss')})

        board = None
        if args.tensorboard:
            from torch.utils.tensorboard import SummaryWriter
            board = SummaryWriter(args.tensorboard)
        new = finetune(bundle, online, offline, Path(args.out), args.steps, args.seed, args.version,
                       progress=progress, method=args.method, overrides=args.overrides, aligned=aligned, board=board,
                       mirror=mirror)
        if board is not None:
            board.close()
        _say('done', version=new.version, sha256=new.sha256, path=str(new.path),
             seconds=round(time.monotonic() - began, 2))
        return 0
    except RefusedError as error:
        _say('refused', reason=str(error), path=str(refused_folder(Path(args.out))))
        print(f'refused: {error}', file=sys.stderr)
        return EXIT_REFUSED
    except FospError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2


if __name__ == '__main__':
    sys.exit(main())
