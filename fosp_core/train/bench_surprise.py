# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp bench surprise`: which signal tells a changed scene from the known one? The gate's KL against alternatives.

Every signal is computed from the same frozen world model, on the same held-out episodes, nominal and shifted, and
scored per episode as the gate does: the highest level that it kept for SURPRISE_TICKS records in a row.
"""

import argparse
import time

SIGNALS = {
    'kl': 'KL of posterior and prior (nats): what the filter runs',
    'ensemble': 'disagreement of one-step predictors of the next embedding from frozen states',
    'ensemble_error': 'error of their mean when that embedding arrives',
    'picture': 'squared error of the reconstructed picture',
    'embedding': 'Mahalanobis distance of the embedding in its principal subspace, and of what lies outside it',
}
PICTURES = ('dark', 'red-blue', 'occluded', 'noise')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument('--model', default=None, help='bundle (default models/safereach)')
    parser.add_argument('--nominal', action='append', required=True, metavar='BAG',
                        help='episodes of the known scene that the model was not trained on; may be repeated')
    parser.add_argument('--shifted', action='append', default=[], metavar='NAME=BAG',
                        help='episodes of a changed scene; may be repeated')
    parser.add_argument('--episodes', type=int, default=0, metavar='N', help='at most so many of each bag (0: all)')
    parser.add_argument('--members', type=int, default=5, help='predictors of the ensemble')
    parser.add_argument('--steps', type=int, default=600, help='gradient steps of each')
    parser.add_argument('--alpha', type=float, default=0.1, help='share of nominal episodes that may be called changed')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--json', metavar='PATH', default=None, help='- for standard output alone')


def shift_pictures(pictures, kind: str, rng):
    """Return uint8 pictures (T, H, W, 3) of the same episode under another light, camera or with a thing in the way."""
    import numpy as np
    t, h, w, _ = pictures.shape
    if kind == 'dark':
        return (pictures * 0.5).astype(np.uint8)
    if kind == 'red-blue':
        return np.ascontiguousarray(pictures[..., ::-1])
    if kind == 'noise':
        return np.clip(pictures + rng.normal(0.0, 20.0, pictures.shape), 0, 255).astype(np.uint8)
    out, size = pictures.copy(), h // 4     # a grey thing of a sixteenth of the picture, somewhere, from start to end
    y, x = rng.integers(0, h - size), rng.integers(0, w - size)
    out[:, y:y + size, x:x + size] = 128
    return out


def auc(nominal, shifted) -> float:
    """Return the probability that a shifted score lies above a nominal one, ties halved (Mann-Whitney)."""
    import numpy as np
    nominal, shifted = np.sort(np.asarray(nominal, float)), np.asarray(shifted, float)
    below = np.searchsorted(nominal, shifted, 'left') + np.searchsorted(nominal, shifted, 'right')
    return float(below.mean() / (2 * len(nominal)))


def auc_intervals(nominal: dict, shifted: dict, draws: int = 500, seed: int = 0) -> dict:
    """Return per signal the AUC, its 95 % bootstrap interval over episodes, and that of its difference to `kl`.

    `nominal`, `shifted`: signal -> one score per episode, in the same order for every signal: draws are common.
    """
    import numpy as np
    rng = np.random.default_rng(seed)
    first = next(iter(nominal))
    n, m = len(nominal[first]), len(shifted[first])
    drawn = {name: np.empty(draws) for name in nominal}
    for k in range(draws):
        i, j = rng.integers(0, n, n), rng.integers(0, m, m)
        for name in nominal:
            drawn[name][k] = auc(nominal[name][i], shifted[name][j])
    out = {}
    for name in nominal:
        out[name] = {'auc': auc(nominal[name], shifted[name]),
                     'ci': [float(q) for q in np.quantile(drawn[name], (0.025, 0.975))]}
        if name != 'kl':
            out[name]['minus_kl_ci'] = [float(q) for q in np.quantile(drawn[name] - drawn['kl'], (0.025, 0.975))]
    return out


class Probe:
    """States, embeddings and signals of one episode under a frozen world model; the fitted signals need `fit` first."""

    def __init__(self, agent, members: int, steps: int, seed: int):
        self.model = agent.eval().world_model
        self.members, self.steps, self.seed = members, steps, seed

    def states(self, episode) -> dict:
        """Return tensors of T records: feature (T, F), embedding (T, E), action (T, A), kl (T,), picture (T,)."""
        import numpy as np
        import torch

        from fosp_core.nn.distributions import categorical_kl
        batch = {k: torch.from_numpy(np.array(v)).unsqueeze(0) for k, v in (episode.images | episode.vectors).items()}
        action = torch.from_numpy(np.array(episode.action)).unsqueeze(0)
        is_first = torch.from_numpy(np.array(episode.is_first)).unsqueeze(0)
        rssm = self.model.rssm
        with torch.no_grad():
            embedding = self.model.encoder(batch)
            gumbel = torch.zeros(1, len(episode), rssm.stoch, rssm.classes)
            deter, stoch, log_post, log_prior = rssm.observe(embedding, action, is_first, gumbel)
            feature = torch.cat([deter, stoch], -1)
            picture = self.model.decoder.loss(feature, batch)['picture']
        return {'feature': feature[0], 'embedding': rssm.post_embed(embedding)[0].detach(), 'action': action[0],
                'kl': categorical_kl(log_post, log_prior)[0], 'picture': picture[0]}

    def fit(self, states: list[dict]) -> None:
        """Fit the ensemble (each member from its own start, on its own bootstrap of episodes) and the Gaussian."""
        import torch

        from fosp_core.nn.blocks import MLP
        embedding = torch.cat([s['embedding'] for s in states])
        self.mean, self.scale = embedding.mean(0), embedding.std(0) + 1e-6
        _, size, basis = torch.linalg.svd((embedding - self.mean) / len(embedding) ** 0.5, full_matrices=False)
        kept = int((torch.cumsum(size ** 2, 0) / (size ** 2).sum() < 0.95).sum()) + 1
        self.basis, self.spread = basis[:kept], size[:kept]
        rest = (size[kept:] ** 2).sum().clamp(min=1e-12)
        self.rest = rest
        pairs = [(torch.cat([s['feature'][:-1], s['action'][:-1]], -1), self._scaled(s['embedding'][1:]))
                 for s in states]
        self.ensemble = []
        for member in range(self.members):
            generator = torch.Generator().manual_seed(1000 * self.seed + member)
            with torch.random.fork_rng():
                torch.manual_seed(1000 * self.seed + member)
                net = MLP(pairs[0][0].shape[1], 2, 256, pairs[0][1].shape[1])
            chosen = torch.randint(len(pairs), (len(pairs),), generator=generator)
            x, y = (torch.cat([pairs[i][part] for i in chosen]) for part in (0, 1))
            optimizer = torch.optim.Adam(net.parameters(), 1e-3)
            for _ in range(self.steps):
                index = torch.randint(len(x), (128,), generator=generator)
                loss = (net(x[index]) - y[index]).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            self.ensemble.append(net.eval())

    def _scaled(self, embedding):
        return (embedding - self.mean) / self.scale

    def signals(self, states: dict) -> dict:
        """Return signal -> float64 (T,); what is predicted for record t stands at t, and the first has none."""
        import torch
        with torch.no_grad():
            x = torch.cat([states['feature'][:-1], states['action'][:-1]], -1)
            said = torch.stack([net(x) for net in self.ensemble])
            centred = states['embedding'] - self.mean
            along = centred @ self.basis.T
            outside = (centred.square().sum(-1) - along.square().sum(-1)).clamp(min=0.0)
            first = torch.zeros(1)
            found = {'kl': states['kl'], 'picture': states['picture'],
                     'ensemble': torch.cat([first, said.var(0).mean(-1)]),
                     'ensemble_error': torch.cat([first, (said.mean(0) - self._scaled(states['embedding'][1:]))
                                                  .square().mean(-1)]),
                     'embedding': (along / self.spread).square().sum(-1) + outside / self.rest}
        return {name: found[name].double().numpy() for name in SIGNALS}


def scores(probe: Probe, episodes: list, change=None) -> dict:
    """Return signal -> one score per episode, as the gate counts."""
    import dataclasses

    import numpy as np

    from fosp_core.safety.calibration import SURPRISE_SKIP, persistent_surprise
    rows = []
    for number, episode in enumerate(episodes):
        if len(episode) <= SURPRISE_SKIP:
            continue
        if change:
            rng = np.random.default_rng([probe.seed, number])
            episode = dataclasses.replace(episode, images={k: shift_pictures(v, change, rng)
                                                           for k, v in episode.images.items()})
        rows.append({k: persistent_surprise(v) for k, v in probe.signals(probe.states(episode)).items()})
    return {name: np.array([row[name] for row in rows]) for name in SIGNALS}


def compare(probe: Probe, fitting: list, nominal: list, shifted: dict, alpha: float) -> dict:
    """Return shift -> signal -> auc, interval and the share found by a level of at most `alpha` nominal alarms."""
    import numpy as np

    from fosp_core.safety.calibration import SURPRISE_SKIP, conformal_level
    states = [probe.states(e) for e in fitting if len(e) > SURPRISE_SKIP]
    probe.fit(states)
    # The level comes from episodes that the nominal rate is not counted on, as in the filter.
    calibration = scores(probe, nominal[::2])
    levels = {name: conformal_level(values, alpha) for name, values in calibration.items()}
    judged = nominal[1::2]
    base = scores(probe, judged)
    out = {'nominal': {name: {'found': float(np.mean(base[name] > levels[name]))} for name in SIGNALS}}
    changed = {name: scores(probe, episodes) for name, episodes in shifted.items()}
    changed |= {name: scores(probe, judged, name) for name in PICTURES}
    for name, values in changed.items():
        rows = auc_intervals(base, values)
        out[name] = {k: v | {'found': float(np.mean(values[k] > levels[k]))} for k, v in rows.items()}
        out[name]['n'] = len(values['kl'])
    out['nominal']['n'] = len(base['kl'])
    return out


def run(args: argparse.Namespace) -> int:
    """Compare and print."""
    import numpy as np
    import torch

    from fosp_core.deploy.bundle import Bundle
    from fosp_core.deploy.recalibrate import unseen
    from fosp_core.errors import FospError
    from fosp_core.io import write_json
    from fosp_core.paths import share_dir
    from fosp_core.train.dataset import load_dataset
    from fosp_core.train.finetune import load_learner
    begin = time.monotonic()
    bags = {}
    for text in args.shifted:
        name, sign, bag = text.partition('=')
        if not (name and sign and bag) or name in (*PICTURES, *bags, 'nominal'):
            raise FospError(f'--shifted {text}: expected NAME=BAG with a name of its own')
        bags[name] = bag
    for option, least in (('members', 2), ('steps', 1)):
        if getattr(args, option) < least:
            raise FospError(f'--{option} {getattr(args, option)}: expected at least {least}')
    bundle = Bundle.open(args.model or share_dir() / 'models' / 'safereach')
    most = args.episodes or None
    nominal = unseen(bundle, load_dataset(args.nominal, bundle.contract), False, ', '.join(args.nominal))[:most]
    shifted = {name: load_dataset([bag], bundle.contract)[:most] for name, bag in bags.items()}
    if len(nominal) < 60:
        raise FospError(f'--nominal: {len(nominal)} episodes, expected at least 60: a third fits, a third sets the '
                        'level, a third is judged')
    torch.manual_seed(args.seed)
    probe = Probe(load_learner(bundle, args.seed).agent, args.members, args.steps, args.seed)
    # Dealt out by chance: demonstrators come in turn, and every third episode is of the same one.
    order = np.random.default_rng(args.seed).permutation(len(nominal))
    nominal = [nominal[i] for i in order]
    third = len(nominal) // 3
    rows = compare(probe, nominal[:third], nominal[third:], shifted, args.alpha)
    result = {'model': bundle.version, 'seed': args.seed, 'alpha': args.alpha, 'members': args.members,
              'steps': args.steps, 'signals': SIGNALS, 'shifts': rows, 'wall_s': time.monotonic() - begin}
    if args.json:
        write_json(args.json, result)
    if args.json != '-':
        print(table(rows))
    return 0


def table(rows: dict) -> str:
    """Return AUC with its interval, and the share of episodes above the level, per shift and signal."""
    lines = [f'{"shift":10s} {"n":>4s}  ' + '  '.join(f'{name:>28s}' for name in SIGNALS)]
    for shift, row in rows.items():
        cells = []
        for name in SIGNALS:
            cell = row[name]
            area = f'{cell["auc"]:.3f} [{cell["ci"][0]:.3f}, {cell["ci"][1]:.3f}]' if 'auc' in cell else ''
            cells.append(f'{area:>20s} {100 * cell["found"]:5.1f} %')
        lines.append(f'{shift:10s} {row["n"]:4d}  ' + '  '.join(f'{cell:>28s}' for cell in cells))
    return '\n'.join(lines)
