# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp report`: one page about a model, from evaluations that were made, films made anew, held-out data and its run.

Every section is there when its input is: nothing is made up for what was not given. Films are made by `fosp film` in a
process of its own: this one holds the learner, that one the simulator.
"""

import argparse
import html
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from fosp_core.errors import FospError

BEHIND = 'model+filter'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `fosp report`."""
    parser.add_argument('--model', metavar='DIR', help='model bundle (default: models/safereach)')
    parser.add_argument('--evaluation', action='append', default=[], metavar='FILE',
                        help='JSON of `fosp evaluate`, also --through ros; may be repeated')
    parser.add_argument('--no-films', action='store_true', help='no films: the simulator is not needed then')
    parser.add_argument('--bag', action='append', default=[], metavar='BAG',
                        help='held-out episodes, for the reliability plot and the predictions; may be repeated')
    parser.add_argument('--run', type=Path, metavar='DIR', help='folder of `fosp pretrain`, for the learning curves')
    parser.add_argument('--out', type=Path, default=Path('out/report.html'), metavar='FILE',
                        help='page to write (default: %(default)s)')


def chosen(rows: list[dict]) -> list[tuple[str, str, int]]:
    """Return (what, task, seed) of the films: a success, a violation, the episode with most interventions."""
    found = {}
    for row in rows:
        got = row.get('outcomes', {})
        for seed, success, violation, changed in zip(*(got.get(k, ()) for k in (
                'seed', 'success', 'violation', 'interventions'))):
            if success and not violation and not changed:
                found.setdefault('a success', (0, row['task'], seed))
            if violation:
                found.setdefault('a violation', (0, row['task'], seed))
            if changed and changed > found.get('most interventions', (0,))[0]:
                found['most interventions'] = changed, row['task'], seed
    return [(what, task, seed) for what, (_, task, seed) in found.items()]


def read_evaluations(files: list[str], bundle) -> list[dict]:
    """Return the results of `fosp evaluate`; FospError when one is none, or of another model."""
    results = []
    for file in files:
        try:
            result = json.loads(Path(file).read_text())
            rows, model = result['rows'], result.get('model')
            whole = rows and all({'task', 'phase', 'n', 'sr', 'cv', 'sr_ci', 'cv_ci', 'steps', 'interventions'}
                                 <= row.keys() for row in rows) and 'through' in result
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            whole = False
        if not whole:
            raise FospError(f'{file}: expected the JSON of `fosp evaluate`')
        if model and model['sha256'] != bundle.sha256:
            raise FospError(f'{file}: is of model {model["version"]} {model["sha256"][:12]}, the report of '
                            f'{bundle.version} {bundle.sha256[:12]}')
        results.append(result)
    return results


def read_metrics(run: Path) -> list[dict]:
    """Return the lines of a run's metrics.jsonl; FospError naming the file."""
    try:
        return [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise FospError(f'{run}/metrics.jsonl: {error}') from None


def films_of(bundle, rows: list[dict]) -> list[tuple[str, bytes]]:
    """Return title and film of the chosen layouts; FospError with the line of `fosp film` when it fails."""
    shown = []
    with tempfile.TemporaryDirectory(prefix='fosp_report_') as folder:
        for number, (what, task, seed) in enumerate(chosen(rows)):
            file = Path(folder) / f'{number}.webp'
            done = subprocess.run([sys.executable, '-m', 'fosp_core.cli', 'film', '--model', str(bundle.path), '--task',
                                   task, '--seed', str(seed), '--out', str(file), '--json', '-'],
                                  capture_output=True, text=True, check=False)
            if done.returncode:
                lines = [line for line in done.stderr.splitlines() if line.strip()] or ['no output']
                raise FospError(f'fosp film: {lines[-1].removeprefix("error: ")}; or give --no-films')
            seen = json.loads(done.stdout)
            title = (f'{task}, layout {seed}: {what}; '
                     f'{"reaches the goal" if seen["success"] else "does not reach the goal"}, '
                     f'{"touches an obstacle" if seen["violation"] else "touches nothing"}')
            shown.append((title, file.read_bytes()))
    return shown


def held_out(bundle, bags: list[str]) -> tuple[str, list[tuple[str, bytes]]]:
    """Return the reliability section, and strips of open-loop predictions, of episodes that are new to the model."""
    import cv2
    from tqdm import tqdm

    from fosp_core.deploy import recalibrate
    from fosp_core.deploy.runtime import FilterRuntime
    from fosp_core.evaluate import reliability
    from fosp_core.report import sections
    from fosp_core.safety.calibration import HORIZON
    from fosp_core.train.dataset import load_dataset
    from fosp_core.train.finetune import load_learner
    from fosp_core.train.open_loop import open_loop, strip
    episodes = recalibrate.unseen(bundle, load_dataset(bags, bundle.contract), True, ', '.join(bags))
    runtime, known = FilterRuntime(bundle), bundle.calibration['reachability']
    pairs = [(recalibrate.replay_episode(runtime, e)[0], e.cost) for e in tqdm(episodes, desc='replay', unit='episode')]
    horizon, level = known.get('horizon', HORIZON), known['level']
    section = sections.reliability(reliability.reliability(pairs, horizon), reliability.judge(
        pairs, level, horizon, known.get('lead', 1)), level, known['alpha'], horizon, len(episodes))
    agent, strips = load_learner(bundle, 0).agent, []
    for contact, title in ((False, 'An episode without a contact'), (True, 'An episode with a contact')):
        episode = next((e for e in episodes if e.violation == contact and len(e) > 20), None)
        if episode is not None:
            picture = cv2.imencode('.png', strip(*open_loop(agent, episode))[..., ::-1])[1]
            strips.append((title, picture.tobytes()))
    return section, strips


def run(args: argparse.Namespace) -> int:
    """Gather, film, write the page."""
    from fosp_core.deploy.bundle import Bundle
    from fosp_core.evaluate.html_page import document
    from fosp_core.io import atomic_write_bytes
    from fosp_core.paths import share_dir
    from fosp_core.report import sections
    bundle = Bundle.open(Path(args.model) if args.model else share_dir() / 'models' / 'safereach', None, True)
    if not (args.evaluation or args.bag or args.run):
        raise FospError('nothing to report: give --evaluation, --bag or --run')
    evaluations = read_evaluations(args.evaluation, bundle)
    metrics = read_metrics(args.run) if args.run else []
    parts = [f'<h1>{html.escape(bundle.name)} {html.escape(bundle.version)}</h1>',
             f'<p class="dim">Model {bundle.sha256}</p>']
    if evaluations:
        parts.append(sections.results(evaluations))
        if not args.no_films:
            parts.append(sections.films(films_of(bundle, [r for result in evaluations for r in result['rows']
                                                          if r['phase'] == BEHIND])))
    if args.bag:
        section, strips = held_out(bundle, args.bag)
        parts += [section, sections.predictions(strips)]
    parts.append(sections.curves(metrics))
    card = bundle.path / 'card.md'
    if card.is_file():
        parts.append(f'<h2>Model card</h2><pre>{html.escape(card.read_text().strip())}</pre>')
    parts.append('<p class="dim">Not a certified safety function: a real arm needs a hardware emergency stop.</p>')
    atomic_write_bytes(args.out, document(f'{bundle.name} {bundle.version}', parts).encode())
    print(args.out)
    return 0
