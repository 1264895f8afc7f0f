# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The model card: what a bundle's manifest and calibration say, for people; and bundles that differ in it. No torch.

A card is a view: it is written anew whenever a bundle is, so that it cannot tell of a level that was replaced.
"""

import dataclasses
import datetime
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from fosp_core.deploy.bundle import FILES, Bundle, is_word, write_bundle
from fosp_core.errors import BundleError, DataError, FospError

NOTE, EVALUATIONS, ACTS_AS = 'note', 'evaluations', 'acts_as'   # keys of a manifest
LEVEL_METRICS = ('heldout_warned', 'heldout_missed', 'heldout_alarm_rate_safe_steps')   # of the level set in training
_COLUMNS = ('task', 'phase', 'n', 'sr', 'sr_ci', 'cv', 'cv_ci', 'interventions')    # of an evaluation's rows
_RECALIBRATED = ('calibration_', 'crossfit_')
_LEGEND = {
    'heldout_': 'on the episodes that training held out',
    'calibration_': 'by the present level on the very episodes that set it: its misses are near alpha by construction',
    'crossfit_': 'five-fold, each fold of those episodes by the level that the others set'}


def level_metrics(judged: dict, crossfit: dict | None, episodes: int) -> dict[str, float]:
    """Return the metrics of a calibration from `reliability.judge` of its own episodes and `reliability.crossfit`."""
    missed, alarms = judged['missed'], judged['false_alarms']
    out = {'calibration_episodes': episodes, 'calibration_violating': missed['n'],
           'calibration_warned': missed['n'] - missed['count'], 'calibration_missed': missed['count'],
           'calibration_alarm_rate_safe_steps': alarms['rate']}
    if crossfit is not None:
        out |= {'crossfit_missed': crossfit['missed']['count'],
                'crossfit_alarm_rate_safe_steps': crossfit['false_alarms']['rate']}
    return {k: v for k, v in out.items() if v is not None}      # without a safe episode there is no rate


def kept_metrics(metrics: dict) -> dict:
    """Return the metrics that hold whatever the level is."""
    return {k: v for k, v in metrics.items() if k not in LEVEL_METRICS and not k.startswith(_RECALIBRATED)}


def model_card(manifest: dict, calibration: dict) -> str:
    """Return the card in Markdown."""
    reach, metrics = calibration.get('reachability') or {}, manifest['metrics']
    lines = [f'# {manifest["name"]} {manifest["version"]}', '']
    if manifest.get(NOTE):
        lines += [str(manifest[NOTE]), '']
    lines += [f'Preset `{manifest["preset"]}`, {manifest["steps"]} gradient steps, seed {manifest["seed"]}, data '
              f'`{str(manifest["data_hash"])[:12]}`, commit `{manifest["commit"]}`, made {manifest["created"]}.', '']
    if manifest.get('parent'):
        sha256 = manifest.get('parent_sha256')      # not known of one that was fine-tuned
        lines += [f'Parent {manifest["parent"]}{f" `{str(sha256)[:12]}`" if sha256 else ""}.', '']
    lines += ['| quantity | value |', '|---|---|']
    lines += [f'| {k} | {v:.4g} |' if isinstance(v, float) else f'| {k} | {v} |' for k, v in metrics.items()]
    legend = '; '.join(f'`{prefix}*`: {words}' for prefix, words in _LEGEND.items()
                       if any(k.startswith(prefix) for k in metrics))
    lines += ['', f'{legend}.', ''] if legend else ['']
    lines += [f'Calibration: reachability level {reach.get("level")}, alpha {reach.get("alpha")}'
              f'{", confidence " + format(reach["confidence"], "g") if "confidence" in reach else ""}, '
              f'n {reach.get("n")} violating episodes, data `{str(calibration.get("data_hash", ""))[:12]}`'
              f'{", through the deployed graph" if "through" in calibration else ""}.', '']
    lines += _evaluated(manifest.get(EVALUATIONS) or [])
    return '\n'.join([*lines, 'Not a certified safety function. A hardware emergency stop is required.', ''])


def _evaluated(rows: Sequence[dict]) -> list[str]:
    if not rows:
        return []

    def rate(row: dict, key: str) -> str:
        low, high = row[f'{key}_ci']
        return f'{100 * row[key]:.1f} % [{100 * low:.1f}, {100 * high:.1f}]'
    return ['Evaluated with `fosp evaluate` (95 % Wilson intervals):', '',
            '| task | policy | through | seed | n | SR | CV | interventions |', '|---|---|---|---|---|---|---|---|',
            *(f'| {r["task"]} | {r["phase"]} | {r["through"]} | {r["seed"]} | {r["n"]} | {rate(r, "sr")} | '
              f'{rate(r, "cv")} | {r["interventions"]} |' for r in rows), '']


def derive(bundle: Bundle, out: Path, version: str, changes: dict, calibration: dict | None = None,
           mirror: Sequence[str] | None = None) -> Bundle:
    """Write a child of `bundle`: the same weights and graphs, a manifest with `changes`, its card, its calibration.

    With `mirror` its contract has these fields in the place of its own: they are no part of what a contract demands.
    """
    files = {name: bundle.read(name) for name in FILES}
    if mirror is not None:
        contract = dataclasses.replace(bundle.contract, mirror=tuple(mirror))
        files['contract.yaml'] = yaml.safe_dump(contract.to_dict(), sort_keys=False).encode()
    manifest = {k: v for k, v in bundle.manifest.items() if k != 'files'} | changes | {
        'version': version, 'parent': bundle.version, 'parent_sha256': bundle.sha256,
        'created': datetime.datetime.now(datetime.UTC).isoformat(timespec='microseconds')}
    if calibration is not None:
        files['calibration.json'] = json.dumps(calibration, indent=1).encode()
    files['card.md'] = model_card(manifest, bundle.calibration if calibration is None else calibration).encode()
    return write_bundle(out, files, manifest)


def same_model(bundle: Bundle) -> dict:
    """Return the `changes` of a child that acts as `bundle` does: evaluations of the one are of the other."""
    return {ACTS_AS: [*_same(bundle), bundle.sha256]}


def read_evaluation(path: Path, bundle: Bundle) -> list[dict]:
    """Return the rows of a `fosp evaluate --json` file in which this bundle acted or filtered.

    Raises
    ------
    DataError
        When the file is none, or tells of another model. A bundle that this one descends from with the same weights
        and levels is the same model.

    """
    try:
        data = json.loads(Path(path).read_bytes())
        model, rows = data['model'], data['rows']
        about = {'through': data['through'], 'seed': data['seed']}
        sha256 = None if model is None else model['sha256']
        found = [{k: row[k] for k in _COLUMNS} | about
                 for row in rows if row['phase'].startswith('model') or row['phase'].endswith('+filter')]
    except OSError as error:
        raise DataError(f'{path}: {error.strerror}') from None
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f'{path}: expected what fosp evaluate --json writes: {type(error).__name__} {error}') from None
    if sha256 not in (bundle.sha256, *_same(bundle)):
        raise DataError(f'{path}: tells of model {str(sha256)[:12]}, expected {bundle.version} {bundle.sha256[:12]}')
    for row in found:
        if not _sound(row):
            raise DataError(f'{path}: row {row["task"]!r} {row["phase"]!r}: expected words, counts and rates')
    if not found:
        raise DataError(f'{path}: no row of the model or of its filter')
    return found


def _sound(row: Any) -> bool:
    if not isinstance(row, dict) or set(row) != {*_COLUMNS, 'through', 'seed'}:
        return False
    intervals = [row['sr_ci'], row['cv_ci']]
    if any(not isinstance(i, list) or len(i) != 2 for i in intervals):
        return False
    return (all(is_word(row[k]) for k in ('task', 'phase', 'through'))
            and all(type(row[k]) is int and row[k] >= 0 for k in ('n', 'interventions', 'seed')) and row['n'] > 0
            and all(isinstance(r, (int, float)) and 0.0 <= r <= 1.0
                    for r in (row['sr'], row['cv'], *intervals[0], *intervals[1])))


def _listed(bundle: Bundle, key: str, sound: Callable[[Any], bool]) -> list:
    found = bundle.manifest.get(key) or []
    if not isinstance(found, list) or not all(map(sound, found)):
        raise BundleError(f'{bundle.path}/manifest.json: key {key} is damaged')
    return found


def _same(bundle: Bundle) -> list[str]:
    return _listed(bundle, ACTS_AS, lambda text: isinstance(text, str))


def with_evaluations(bundle: Bundle, out: Path, version: str, files: Sequence[Path], note: str | None = None) -> Bundle:
    """Write a child of `bundle` whose manifest and card hold these evaluations beside those it has, and the note.

    An evaluation of the same task, policy, layouts and way replaces an older one; twice among `files` is a FospError.
    What its metrics say of a level that was replaced since is left out.
    """
    said = noted(note)

    def key(row: dict) -> tuple:
        return row['task'], row['phase'], row['through'], row['seed']
    new: dict[tuple, dict] = {}
    for file in files:
        for row in read_evaluation(file, bundle):
            if key(row) in new:
                raise FospError(f'{file}: {row["task"]} {row["phase"]} of seed {row["seed"]} is in another file too')
            new[key(row)] = row
    rows = {key(row): row for row in _listed(bundle, EVALUATIONS, _sound)} | new
    changes = same_model(bundle) | {EVALUATIONS: list(rows.values())}
    # Calibrated after its training, so that those of the training are of another level; a fine-tuned child judges anew.
    if 'through' in bundle.calibration and 'inherited_from' not in bundle.calibration:
        changes['metrics'] = {k: v for k, v in bundle.manifest['metrics'].items() if k not in LEVEL_METRICS}
    return derive(bundle, out, version, changes | said)


def noted(note: str | None) -> dict:
    """Return the `changes` of a child whose card begins with `note`; FospError when that is more than a line."""
    if note is not None and not note.isprintable():
        raise FospError(f'--note {note!r}: expected one line of text')
    return {} if note is None else {NOTE: note}
