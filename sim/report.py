# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp report`: one page about a model, from evaluations that were made, films made anew, held-out data and its run.

For the command line alone. Every section is there when its input is: nothing is made up for what was not given.
"""

import argparse
import base64
import contextlib
import html
import json
from pathlib import Path

from fosp_core.errors import FospError

CURVES = ('model/loss', 'model/picture', 'model/kl', 'reach/loss', 'critic/target_reward', 'actor/loss')
FILM_PIXELS = 256
BEHIND = 'model+filter'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `fosp report`."""
    parser.add_argument('--model', metavar='DIR', help='model bundle (default: models/safereach)')
    parser.add_argument('--evaluation', action='append', default=[], metavar='FILE',
                        help='JSON of `fosp evaluate`, also --through ros; may be repeated')
    parser.add_argument('--bag', action='append', default=[], metavar='BAG',
                        help='held-out episodes, for the reliability plot and the predictions; may be repeated')
    parser.add_argument('--run', type=Path, metavar='DIR', help='folder of `fosp pretrain`, for the learning curves')
    parser.add_argument('--out', type=Path, default=Path('out/report.html'), metavar='FILE',
                        help='page to write (default: %(default)s)')


def film(bundle, task: str, seed: int):
    """Run one layout behind the filter; return (pictures, risk, level, reasons, changed, costs, info)."""
    from fosp_sim.evaluate import Learned
    from fosp_sim.guard import Guard
    from fosp_sim.safereach import SafeReachEnv
    guard = Guard(bundle)
    actor = Learned(bundle, guard)
    pictures, records, costs = [], [], []
    with contextlib.closing(SafeReachEnv(task)) as env:
        observation, info = env.reset(seed=seed)
        actor.reset(env, seed)
        done = False
        while not done:
            pictures.append(env.render_frame(FILM_PIXELS, FILM_PIXELS))
            before = actor.interventions
            action = actor.action(env, observation)
            records.append((guard.state.record, actor.interventions > before))
            observation, _, cost, terminated, truncated, info = env.step(action)
            costs.append(cost > 0)
            done = terminated or truncated
    return (pictures, [r.risk for r, _ in records], records[-1][0].level, [r.reason.name.lower() for r, _ in records],
            [c for _, c in records], costs, info)


def chosen(rows: list[dict]) -> list[tuple[str, str, int]]:
    """Return (what, task, seed) of the films: a success, the violation and the episode with most interventions."""
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
            assert all({'task', 'phase', 'sr', 'cv'} <= row.keys() for row in rows)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError):
            raise FospError(f'{file}: expected the JSON of `fosp evaluate`') from None
        if model and model['sha256'] != bundle.sha256:
            raise FospError(f'{file}: is of model {model["version"]} {model["sha256"][:12]}, the report of '
                            f'{bundle.version} {bundle.sha256[:12]}')
        results.append(result)
    return results


def _films(bundle, rows: list[dict]) -> str:
    from fosp_core.evaluate import film as films
    cards = ''
    for what, task, seed in chosen([r for r in rows if r['phase'] == BEHIND]):
        pictures, risk, level, reasons, changed, costs, info = film(bundle, task, seed)
        title = (f'{task}, layout {seed}: {what}; '
                 f'{"reaches the goal" if info["success"] else "does not reach the goal"}, '
                 f'{"touches an obstacle" if info["violation"] else "touches nothing"}')
        data = films.encode(pictures, risk, level, reasons, changed)
        shown = films.image_tag(data, html.escape(title, True))
        cards += f'<div class="card"><h3>{html.escape(title)}</h3>{shown}</div>'
    if not cards:
        return ''
    return ('<h2>Films</h2><p>What the camera saw, run again for this page; below it the risk of the command that '
            'was sent '
            'and the calibrated level. A yellow frame: the filter changed the command.</p><div '
            f'class="grid">{cards}</div>')


def _reliability(bundle, bags: list[str]) -> tuple[str, list]:
    """Return the section, and the episodes that the model was not trained on."""
    from tqdm import tqdm

    from fosp_core.deploy import recalibrate
    from fosp_core.deploy.runtime import FilterRuntime
    from fosp_core.evaluate import charts, reliability
    from fosp_core.safety.calibration import HORIZON
    from fosp_core.train.dataset import load_dataset
    episodes = recalibrate.unseen(bundle, load_dataset(bags, bundle.contract), True, ', '.join(bags))
    runtime, known = FilterRuntime(bundle), bundle.calibration['reachability']
    pairs = [(recalibrate.replay_episode(runtime, e)[0], e.cost) for e in tqdm(episodes, desc='replay', unit='episode')]
    horizon, level = known.get('horizon', HORIZON), known['level']
    judged = reliability.judge(pairs, level, horizon, known.get('lead', 1))
    missed, alarms = judged['missed'], judged['false_alarms']
    rate = 'none to judge by'
    if missed['rate'] is not None:
        rate = f'{missed["rate"]:.1%}, with 95 % confidence at most {missed["upper"]:.1%}'
    text = (f'{len(episodes)} episodes that the model was not trained on. Violations that came unannounced: '
            f'{missed["count"]} of {missed["n"]} ({rate}; promised: at most {known["alpha"]:.0%}). Alarms on '
            f'{alarms["count"]} of {alarms["n"]} steps of episodes without a violation.')
    picture = charts.reliability(reliability.reliability(pairs, horizon), level)
    return (f'<h2>Does the risk mean what it says?</h2><div class="grid"><div class="card">{picture}</div><div '
            'class="card">'
            f'<p>{html.escape(text)}</p><p class="dim">Each dot: the decisions of one tenth of predicted risk, and '
            'how many '
            f'of them were followed by a contact within {horizon} steps; bars are 95 % Wilson intervals over steps, '
            'which '
            'are not independent. On the line, the estimate means what it says.</p></div></div>'), episodes


def _predictions(bundle, episodes: list) -> str:
    import cv2

    from fosp_core.train.finetune import load_learner
    from fosp_core.train.open_loop import open_loop, strip
    agent = load_learner(bundle, 0).agent
    cards = ''
    for kind in (False, True):
        episode = next((e for e in episodes if e.violation == kind and len(e) > 20), None)
        if episode is None:
            continue
        good, data = cv2.imencode('.png', strip(*open_loop(agent, episode))[..., ::-1])
        name = f'An episode {"with" if kind else "without"} a contact'
        cards += (f'<div class="card"><h3>{name}</h3><img alt="{name}: truth, prediction, difference" '
                  f'src="data:image/png;base64,{base64.b64encode(data).decode()}"></div>')
    if not cards:
        return ''
    return ('<h2>What the world model expects</h2><p>Every third record from left to right: the truth, the '
            'prediction, their '
            'difference. Five records are seen, so the first two columns are reconstructions; then only the '
            'recorded actions '
            f'are known.</p>{cards}')


def _curves(run: Path) -> str:
    from fosp_core.evaluate import charts
    try:
        lines = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise FospError(f'{run}/metrics.jsonl: {error}') from None
    cards = ''
    for key in CURVES:
        points = [(line['step'], line[key]) for line in lines if key in line]
        if points:
            cards += f'<div class="card">{charts.curve(*zip(*points), key)}</div>'
    return f'<h2>Learning curves</h2><div class="grid">{cards}</div>' if cards else ''


def _rows(results: list[dict]) -> str:
    from fosp_core.evaluate import charts
    from fosp_core.evaluate.html_page import cell
    rows = [(r, result) for result in results for r in result['rows']]
    names = ('task', 'policy', 'through', 'n', 'SR [95 %]', 'CV [95 %]', 'steps', 'interventions')

    def rate(value, interval):
        return f'{100 * value:.1f} % [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]'
    body = ''.join('<tr>' + ''.join(cell(n, v) for n, v in zip(names, (
        r['task'], r['phase'], result['through'], str(r['n']), rate(r['sr'], r['sr_ci']), rate(r['cv'], r['cv_ci']),
        f'{r["steps"]:.0f}', str(r['interventions'])))) + '</tr>' for r, result in rows)
    head = ''.join(f'<th scope="col">{n}</th>' for n in names)
    phases = list(dict.fromkeys(r['phase'] for r, _ in rows))
    planes = ''
    for task in dict.fromkeys(r['task'] for r, _ in rows):
        points = [('', f'k{phases.index(r["phase"]) % 5}', r) for r, _ in rows if r['task'] == task]
        planes += f'<div class="card"><h3>{html.escape(task)}</h3>{charts.plane(points, task)}</div>'
    key = ''.join(f'<span><i class="k{i % 5}"></i>{html.escape(p)}</span>' for i, p in enumerate(phases))
    latencies = [v for result in results for v in ((result.get('graph') or {}).get('latencies_ms') or [])]
    shown = ''
    if latencies:
        spent = next(r['graph']['latency_ms'] for r in results if r.get('graph'))
        shown = f'<h2>From picture to command</h2><div class="card">{charts.histogram(latencies, spent, "ms")}</div>'
    return ('<h2>Results</h2><div class="scroll"><table '
            f'class="rates"><thead><tr>{head}</tr></thead><tbody>{body}</tbody>'
            f'</table></div><div class="grid">{planes}</div><div class="key">{key}</div>'
            '<p class="dim">SR: share of episodes that reach the goal. CV: share with any contact. Brackets and '
            'crosses: 95 % '
            f'Wilson intervals.</p>{shown}')


def run(args: argparse.Namespace) -> int:
    """Gather, film, write the page."""
    from fosp_core.deploy.bundle import Bundle
    from fosp_core.evaluate.html_page import document
    from fosp_core.io import atomic_write_bytes
    from fosp_core.paths import share_dir
    bundle = Bundle.open(Path(args.model) if args.model else share_dir() / 'models' / 'safereach', None, True)
    results = read_evaluations(args.evaluation, bundle)
    if not (results or args.bag or args.run):
        raise FospError('nothing to report: give --evaluation, --bag or --run')
    parts = [f'<h1>{html.escape(bundle.name)} {html.escape(bundle.version)}</h1>',
             f'<p class="dim">Model {bundle.sha256}</p>']
    curves = _curves(args.run) if args.run else ''
    if results:
        parts += [_rows(results), _films(bundle, [r for result in results for r in result['rows']])]
    if args.bag:
        section, episodes = _reliability(bundle, args.bag)
        parts += [section, _predictions(bundle, episodes)]
    card = bundle.path / 'card.md'
    if card.is_file():
        curves += f'<h2>Model card</h2><pre>{html.escape(card.read_text().strip())}</pre>'
    parts += [curves, '<p class="dim">Not a certified safety function: a real arm needs a hardware emergency stop.</p>']
    atomic_write_bytes(args.out, document(f'{bundle.name} {bundle.version}', parts).encode())
    print(args.out)
    return 0
