# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp pretrain`: offline pretraining from bags. Purely data-driven: no environment object, no robot."""

import argparse
import dataclasses
import math
import subprocess
import sys
from pathlib import Path

from fosp_core.config import Config
from fosp_core.contract import Contract
from fosp_core.errors import DataError, TrainingError
from fosp_core.paths import config_file
from fosp_core.safety.calibration import doubts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `fosp pretrain`."""
    parser.add_argument('bags', nargs='+', metavar='BAG', help='rosbag2, packed or .npz folder')
    parser.add_argument('--out', required=True, help='run folder: checkpoints, TensorBoard, the bundle')
    parser.add_argument('--preset', default='small', help='config/preset_<name>.yaml or a path (default small)')
    parser.add_argument('--method', default=None, metavar='NAME',
                        help='config/method_<name>.yaml laid over the preset: a baseline, an ablation (default: none)')
    parser.add_argument('--contract', default=None, help='contract YAML (default config/contract_safereach.yaml)')
    parser.add_argument('--steps', type=int, default=None, help="gradient steps (default: the preset's)")
    parser.add_argument('--seed', type=int, default=None)
    parser.add_argument('--holdout', type=float, default=0.15, help='fraction of episodes kept for calibration')
    parser.add_argument('--alpha', type=float, default=0.1, help='allowed rate of missed violations')
    parser.add_argument('--name', default='safereach', help='model name in the bundle')
    parser.add_argument('--version', default=None, help='bundle version (default v<steps>-s<seed>)')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--threads', type=int, default=None, help='torch threads (default: all cores)')
    parser.add_argument('--set', action='append', default=[], metavar='SECTION.KEY=VALUE', dest='overrides')
    parser.add_argument('--init', metavar='RUN', default=None,
                        help='start at step 0 from the newest checkpoint of another run folder, whatever data it saw')
    parser.add_argument('--world-model', metavar='BUNDLE', default=None,
                        help="start with a bundle's world model alone; with --steps 0 it stays as it is")
    parser.add_argument('--no-resume', action='store_true', help='refuse to go on from checkpoints in --out')
    parser.add_argument('--json', metavar='PATH', default=None, help='write a summary; - for standard output')


def git_commit() -> str:
    """Short commit of the source checkout, or 'unknown'."""
    try:
        result = subprocess.run(['git', 'rev-parse', '--short', 'HEAD'], cwd=Path(__file__).parent, timeout=5,
                                capture_output=True, text=True, check=True)
        return result.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return 'unknown'


def run(args: argparse.Namespace) -> int:
    """Train, calibrate, export; resumes by itself from the newest checkpoint in --out. Runs under torchrun too."""
    from fosp_core.train import options
    options.wait_asleep()
    options.hush_transport()
    from fosp_core.train.distributed import processes
    from fosp_core.train.memory import keep_freed_memory
    keep_freed_memory()
    with processes(args.device) as device:
        return _run(args, device)


def _run(args: argparse.Namespace, device: str) -> int:
    from fosp_core.data import mirror
    from fosp_core.data.replay import Replay
    from fosp_core.data.store import data_hash
    from fosp_core.deploy.trained_on import listing
    from fosp_core.io import write_json
    from fosp_core.nn import parallel
    from fosp_core.safety.calibration import LEAD, SURPRISE_SKIP
    from fosp_core.train import options
    from fosp_core.train.dataset import load_dataset, split, summary
    from fosp_core.train.distributed import check_agreement, check_shares
    from fosp_core.train.learner import Learner
    options.use_threads(args.threads)
    options.between('--holdout', args.holdout, 0, 1)
    options.between('--alpha', args.alpha, 0, 1)
    options.check_folder('--out', Path(args.out))
    overrides = list(args.overrides)
    overrides += [f'train.steps={args.steps}'] if args.steps is not None else []
    overrides += [f'train.seed={args.seed}'] if args.seed is not None else []
    config = Config.load(args.preset, overrides, args.method)
    contract = Contract.load(args.contract or config_file('contract_safereach.yaml'))
    if config.train.steps + config.train.behaviour_steps < 1:
        raise TrainingError('keys train.steps and train.behaviour_steps are 0: nothing to train')
    if args.init and args.world_model:
        raise TrainingError('--init and --world-model: expected one of them')
    check_shares(config)
    version = bundle_version(args, config)

    def say(text: str) -> None:
        # With `--json -` standard output holds the summary alone.
        if not parallel.rank():
            print(text, file=sys.stderr if args.json == '-' else sys.stdout)

    episodes = load_dataset(args.bags, contract)
    training, held = split(episodes, args.holdout)
    if not config.train.mirror:     # the model's own contract says what it was trained with
        contract = dataclasses.replace(contract, mirror=())
    info = summary(episodes)
    say(f'{info["episodes"]} episodes, {info["steps"]} steps, SR {info["sr"]:.3f}, CV {info["cv"]:.3f}; '
        f'{len(training)} for training, {len(held)} held out')
    if not any(e.violation for e in training):
        raise DataError(f'{", ".join(args.bags)}: key cost is never positive in {len(training)} training episodes: '
                        f'nothing to learn safety from')
    if not any(e.violation for e in held):
        raise DataError(f'{", ".join(args.bags)}: no violating episode held out for calibration; '
                        f'record more, or raise --holdout')
    if not any(e.violation and (e.cost[:LEAD] <= 0).all() for e in held) or not any(len(e) > SURPRISE_SKIP
                                                                                    for e in held):
        raise DataError(f'{", ".join(args.bags)}: no held-out episode whose first violation comes at record {LEAD} or '
                        f'later: nothing to calibrate with; record longer episodes, or raise --holdout')
    if config.train.mirror and (doubt := mirror.doubt(training, contract)) and not parallel.rank():
        print(f'warning: {doubt}', file=sys.stderr)
    out = Path(args.out)
    replay = Replay(contract, mirror=config.train.mirror).extend(training, check=False)
    hashed = data_hash(training)
    learner = Learner(contract, config, device)
    turned = list(contract.mirror) if replay.mirror else []
    trained_on = listing(training, restore(learner, args, hashed, say, turned))
    check_agreement(learner, f'{hashed} {turned}')
    train_loop(learner, replay, out, {'data_hash': hashed, 'trained_on': trained_on, 'mirror': turned})
    if parallel.rank():
        return 0
    bundle = finish(learner, held, out, args, version, info, hashed, trained_on)
    say(f'bundle {bundle.path}')
    if not config.train.joint and not config.train.behaviour_steps:
        say('a world model alone: its policy and its estimate of risk have learned nothing; for --world-model')
    alarms = bundle.manifest['metrics']['heldout_alarm_rate_safe_steps']
    for doubt in doubts(bundle.calibration['reachability'], alarms):
        print(f'warning: {doubt}', file=sys.stderr)
    if args.json:
        write_json(args.json, {'bundle': str(bundle.path), 'version': bundle.version, 'sha256': bundle.sha256,
                               'dataset': info, 'metrics': bundle.manifest['metrics']})
    return 0


def bundle_version(args: argparse.Namespace, config: Config) -> str:
    """Name of the bundle to be; FospError when it is none, or taken: before the training, not after it."""
    from fosp_core.deploy.bundle import check_word
    train = config.train
    version = args.version or f'v{train.steps + train.behaviour_steps}-s{train.seed}'
    check_word('--name', args.name)
    check_word('--version', version)
    path = Path(args.out) / 'bundle' / version
    if path.exists() or path.is_symlink():
        raise TrainingError(f'{path}: exists already; choose another --version, or remove it')
    return version


def restore(learner, args: argparse.Namespace, hashed: str, say, turned: list[str] | None = None) -> str | None:
    """Load the newest checkpoint of --out, else of --init, else none; TrainingError names what does not fit.

    `turned`: the fields that change sign in mirror images, empty without them. Returns the list of the episodes that
    shaped the weights so far (`deploy.trained_on`), None when not known.
    """
    from fosp_core.train import resume
    from fosp_core.train.checkpoint import list_checkpoints, load_checkpoint, read_state
    out = Path(args.out)
    found = list_checkpoints(out / 'checkpoints')
    if found:
        if args.no_resume:
            raise TrainingError(f'{out}/checkpoints: holds {found[-1].name}; --no-resume given')
        where, state = f'{found[-1]}/state.json', read_state(found[-1])
        if state.get('data_hash') != hashed:
            raise TrainingError(f'{where}: data_hash {str(state.get("data_hash"))[:12]}, expected {hashed[:12]} of the '
                                f'bags given')
        if (begun := state.get('mirror', [])) != (turned or []):       # a run of before there were any has none
            raise TrainingError(f'{where}: key mirror is {begun}, this run has {turned or []} (of the contract, where '
                                'train.mirror is true); go on as it was begun, or give another --out')
        resume.check(Config.from_dict(state['config'], f'{where}: config'), learner.config, state['step'], where,
                     f'give another --out (and --init {out})')
        load_checkpoint(found[-1], learner)
        say(f'resuming from {found[-1]}')
        return state.get('trained_on')
    elif args.init:
        earlier = list_checkpoints(Path(args.init) / 'checkpoints')
        if not earlier:
            raise TrainingError(f'{args.init}/checkpoints: no checkpoint to start from')
        state = load_checkpoint(earlier[-1], learner)
        learner.step = 0        # a run of its own, with its own phases and learning rates
        say(f'starting from {earlier[-1]}')
        return state.get('trained_on')
    elif args.world_model:
        return _take_world_model(learner, args.world_model, say)
    return ''


def _take_world_model(learner, folder: str, say) -> str | None:
    """Load a bundle's world model alone; return what is known of the episodes that shaped it."""
    from safetensors.torch import load

    from fosp_core.deploy.bundle import Bundle
    from fosp_core.deploy.trained_on import KEY
    from fosp_core.train.checkpoint import load_agent
    bundle = Bundle.open(folder, learner.contract)
    tensors = {k: v for k, v in load(bundle.read('weights.safetensors')).items() if k.startswith('world_model.')}
    # The head of the autoencoding loss is of use in training alone: a bundle does not hold it.
    own = {k: v for k, v in learner.agent.state_dict().items()
           if not k.startswith('world_model.') or k.startswith('world_model.embed_feature.')}
    load_agent(learner, own | tensors, f'{bundle.path}/weights.safetensors')
    say(f'the world model of {bundle.path}')
    return bundle.manifest.get(KEY)


def drawn(cfg, done: int, device):
    """Return the generator that the states after `done` behaviour steps are drawn with, None for their mode."""
    import torch
    if not cfg.behaviour_redraw:
        return None
    return torch.Generator(device).manual_seed(cfg.seed * 1_000_003 + done // cfg.behaviour_redraw)


def cosine_lr(progress: float, final: float) -> float:
    """Factor of the learning rates in a phase: a half cosine from 1 to `final`, progress in [0, 1]."""
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))


def train_loop(learner, replay, out: Path, extra: dict) -> None:
    """Joint steps, then behaviour steps, with progress bar, TensorBoard, metrics.jsonl and checkpoints in `out`."""
    from fosp_core.nn import parallel
    from fosp_core.train.checkpoint import save_checkpoint
    from fosp_core.train.distributed import check_agreement
    from fosp_core.train.features import FeatureReplay
    from fosp_core.train.run_log import open_log
    cfg = learner.config.train
    total = cfg.steps + cfg.behaviour_steps
    features = None
    with open_log(out, learner.step, total) as log:
        while learner.step < total:
            if learner.step < cfg.steps:
                rows = parallel.share(cfg.batch)
                learner.scale_lr(cosine_lr(learner.step / cfg.steps, cfg.final_lr))
                metrics = learner.update(replay.sample(cfg.batch, cfg.length, learner.rng, rows))
            else:
                done = learner.step - cfg.steps
                if features is None:
                    features = FeatureReplay(learner.agent, replay, drawn(cfg, done, learner.device),
                                             keep=cfg.behaviour_redraw > 0)
                elif cfg.behaviour_redraw and done % cfg.behaviour_redraw == 0:
                    features.draw(drawn(cfg, done, learner.device))
                rows = parallel.share(cfg.behaviour_batch)
                learner.scale_lr(cosine_lr((learner.step - cfg.steps) / cfg.behaviour_steps, cfg.behaviour_final_lr),
                                 cfg.behaviour_lr_scale)
                metrics = learner.update_behaviour(*features.sample(cfg.behaviour_batch, cfg.behaviour_length,
                                                                    learner.rng, rows))
            log.advance()
            if learner.step % cfg.log_every == 0 or learner.step == total:
                log.write(learner.step, metrics)
            if learner.step % cfg.save_every == 0 or learner.step in (cfg.steps, total):
                check_agreement(learner, extra['data_hash'])
                if not parallel.rank():
                    save_checkpoint(out / 'checkpoints', learner, extra)


def finish(learner, held, out: Path, args: argparse.Namespace, version: str, info: dict, hashed: str,
           trained_on: str | None):
    """Freeze the offline policy, calibrate on the held-out episodes, export the bundle as `out/bundle`'s current."""
    from fosp_core.deploy.bundle_store import BundleStore
    from fosp_core.deploy.export import export_bundle, round_to_half
    from fosp_core.train.heldout import calibrate, heldout_metrics
    agent = learner.agent.to('cpu')
    agent.freeze_offline()
    round_to_half(agent)  # calibrate what will run, not what was trained
    calibration = calibrate(agent, held, args.alpha)
    level = calibration['reachability']['level']
    metrics = {f'dataset_{k}': v for k, v in info.items()} | heldout_metrics(agent, held, level)
    export_bundle(agent, out / 'bundle' / version, version=version, name=args.name, calibration=calibration,
                  data_hash=hashed, seed=learner.config.train.seed, steps=learner.step, metrics=metrics,
                  commit=git_commit(), trained_on=trained_on)
    return BundleStore(out / 'bundle').set_current(version)
