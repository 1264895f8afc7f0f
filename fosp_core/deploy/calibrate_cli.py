# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp calibrate BUNDLE BAG...`: new levels from held-out episodes; is the risk reliable? For the CLI alone."""

import argparse
import html
import sys
from pathlib import Path

from fosp_core.errors import FospError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `fosp calibrate`."""
    parser.add_argument('bundle', help='bundle directory, or a folder with `current` or one bundle in it')
    parser.add_argument('bags', nargs='+', metavar='BAG', help='rosbag2 folder, or folder of .npz episodes')
    parser.add_argument('--alpha', type=float, help="allowed rate of missed violations (default: the bundle's)")
    parser.add_argument('--confidence', type=float,
                        help='keep alpha with this confidence (e.g. 0.95), not on the average of calibrations: a lower '
                             "level (default: the bundle's, else the average)")
    parser.add_argument('--lead', type=int,
                        help="records before a violation at which a warning still counts (default: the bundle's)")
    parser.add_argument('--out', help='folder of the new bundle (default: its version, in the current folder)')
    parser.add_argument('--version', help='version of the new bundle (default: <old>-cal-<data hash>)')
    parser.add_argument('--held-out', action='store_true',
                        help='leave out the episodes that the model was trained on, where it knows them')
    parser.add_argument('--plot', metavar='FILE', help='reliability diagram, .svg or .html')
    parser.add_argument('--json', metavar='PATH', help='write the result as JSON (- for standard output alone)')


def run(args: argparse.Namespace) -> int:
    """Replay, calibrate, judge, write."""
    from tqdm import tqdm

    from fosp_core.deploy import recalibrate
    from fosp_core.deploy.bundle import Bundle
    from fosp_core.deploy.card import level_metrics
    from fosp_core.deploy.runtime import FilterRuntime
    from fosp_core.deploy.trained_on import known_episodes
    from fosp_core.evaluate import charts, reliability
    from fosp_core.evaluate.html_page import document
    from fosp_core.io import atomic_write_bytes, write_json
    from fosp_core.safety.calibration import HORIZON, LEAD, doubts
    from fosp_core.train.dataset import load_dataset
    plot = Path(args.plot) if args.plot else None
    if plot is not None and plot.suffix not in ('.svg', '.html'):
        raise FospError(f'--plot {args.plot}: expected a name that ends in .svg or .html')
    if args.out and Path(args.out).exists():
        raise FospError(f'--out {args.out}: exists already; a bundle is never overwritten')
    bundle = Bundle.open(args.bundle)
    old = bundle.calibration.get('reachability') or {}
    alpha, horizon = args.alpha if args.alpha is not None else old.get('alpha', 0.1), old.get('horizon', HORIZON)
    lead = args.lead if args.lead is not None else old.get('lead', LEAD)
    if not 1 <= lead <= horizon:
        raise FospError(f'--lead {lead}: expected 1 to {horizon}, the horizon')
    if not 0.0 < alpha < 1.0:
        raise FospError(f'--alpha {alpha}: expected between 0 and 1')
    confidence = args.confidence if args.confidence is not None else old.get('confidence')
    if confidence is not None and not 0.0 < confidence < 1.0:
        raise FospError(f'--confidence {confidence}: expected between 0 and 1')
    where = ', '.join(args.bags)
    episodes = recalibrate.unseen(bundle, load_dataset(args.bags, bundle.contract), args.held_out, where)
    if not args.held_out and known_episodes(bundle.manifest, args.bundle) is None:
        print(f'warning: {bundle.version} does not list the episodes it was trained on; that none of these '
              f'{len(episodes)} is among them was checked by the hash of the whole set alone', file=sys.stderr)
    runtime = FilterRuntime(bundle)
    replayed = [recalibrate.replay_episode(runtime, episode)
                for episode in tqdm(episodes, desc='replay', unit='episode', disable=None)]
    calibration = recalibrate.calibration_of(replayed, episodes, alpha, horizon, lead, where, confidence)
    pairs = [(risk, episode.cost) for (risk, _), episode in zip(replayed, episodes)]
    rows, level = reliability.reliability(pairs, horizon), calibration['reachability']['level']
    calibration['reliability'] = rows
    version = args.version or f'{bundle.version}-cal-{calibration["data_hash"][:8]}'
    judged, crossfit = (reliability.judge(pairs, level, horizon, lead),
                        reliability.crossfit(pairs, alpha, horizon, lead, confidence=confidence))
    new = recalibrate.rewrite(bundle, Path(args.out or version), version, calibration,
                              level_metrics(judged, crossfit, len(episodes)))
    previous = None
    if 'level' in old:
        previous = reliability.judge(pairs, old['level'], horizon, lead) | {'level': old['level']}
    result = {'bundle': str(new.path), 'version': new.version, 'sha256': new.sha256, 'parent': bundle.version,
              'calibration': {k: v for k, v in calibration.items() if k != 'reliability'}, 'reliability': rows,
              'calibration_error': reliability.calibration_error(rows), 'previous': previous,
              'crossfit': crossfit}
    if plot is not None:
        title = f'{bundle.name} {version}: {len(episodes)} episodes, horizon {horizon}'
        picture = charts.reliability(rows, level)
        page = document(title, [f'<h1>{html.escape(title)}</h1>', picture])
        atomic_write_bytes(plot, (charts.standalone(picture) if plot.suffix == '.svg' else page).encode())
    if args.json:
        write_json(args.json, result)
    if args.json != '-':
        print(_text(result, len(episodes), horizon))
    for doubt in doubts(calibration['reachability'], judged['false_alarms']['rate'] or 0.0):
        print(f'warning: {doubt}', file=sys.stderr)
    for gate in ('reachability', 'surprise'):
        if not calibration[gate]['guaranteed']:
            print(f'warning: too few episodes (n {calibration[gate]["n"]}) to guarantee the level of {gate} at alpha '
                  f'{alpha:g}', file=sys.stderr)
    return 0


def _text(result: dict, episodes: int, horizon: int) -> str:
    reach, surprise = result['calibration']['reachability'], result['calibration']['surprise']
    lines = [f'{episodes} episodes, {reach["n"]} of them violating; data {result["calibration"]["data_hash"][:12]}',
             f'risk level {reach["level"]:.4f} (alpha {reach["alpha"]:g}'
             f'{", confidence " + format(reach["confidence"], "g") if "confidence" in reach else ""}); '
             f'surprise: slow {surprise["level_slow"]:.2f}, stop {surprise["level_stop"]:.2f} nats', '',
             f'{"predicted risk":>15} {"n":>7} {"mean":>6} {f"violation within {horizon} steps":>27} '
             f'{"95 % Wilson":>15}']
    for row in result['reliability']:
        lines.append(f'{row["low"]:>7.1f} to {row["high"]:.1f} {row["n"]:>8} {row["predicted"]:>6.3f} '
                     f'{row["observed"]:>27.3f} {row["ci"][0]:>8.3f} {row["ci"][1]:.3f}')
    lines += [f'mean gap {result["calibration_error"]:.3f}', '']
    for name, judged in (('the previous level on these episodes', result['previous']),
                         ('this calibration, cross-fitted', result['crossfit'])):
        if judged is not None:
            lines.append(f'{name}: missed violations {_rate(judged["missed"])}, with 95 % confidence at most '
                         f'{judged["missed"]["upper"]:.3f}; false alarms '
                         f'{_rate(judged["false_alarms"])} of the steps of episodes that never violate')
    return '\n'.join([*lines, f'bundle {result["bundle"]}'])


def _rate(rate: dict) -> str:
    share = 'no case' if rate['rate'] is None else f'{rate["rate"]:.3f}'
    return f'{rate["count"]}/{rate["n"]} = {share} ({rate["ci"][0]:.3f} to {rate["ci"][1]:.3f})'
