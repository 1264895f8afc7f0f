# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp inspect`: what is wrong with a data set: table, picture sheet, JSON. For the command line alone."""

import argparse
import dataclasses
from pathlib import Path

from fosp_core.contract import Contract
from fosp_core.doctor.findings import ERROR, INFO, WARNING, Finding
from fosp_core.errors import DataError
from fosp_core.io import write_json
from fosp_core.paths import config_file

EXIT = {None: 0, INFO: 0, WARNING: 1, ERROR: 2}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `fosp inspect`."""
    parser.add_argument('sources', nargs='+', metavar='DATASET',
                        help='bags, packed folders, folders of .npz, HDF5, Minari or LeRobot data sets; '
                             'judged together')
    parser.add_argument('--contract', type=Path, help='contract file; default: the one of SafeReach')
    parser.add_argument('--namespace', help='where the replay topics lie, when a bag has them more than once')
    parser.add_argument('--reference', metavar='DATASET',
                        help='trusted data of the same scene, whose colours these must have')
    parser.add_argument('--sheet', metavar='FILE.png', type=Path, help='write a sheet of pictures')
    parser.add_argument('--json', metavar='PATH', help='write all as JSON; - for standard output alone')


def run(args: argparse.Namespace) -> int:
    """Inspect, print, and return 0 (clean or information), 1 (warnings) or 2 (errors)."""
    from fosp_core.doctor.colours import of_totals
    from fosp_core.doctor.sheet import Sheet
    from fosp_core.doctor.survey import survey
    contract = Contract.load(args.contract or config_file('contract_safereach.yaml'))
    for path in [*args.sources, *([args.reference] if args.reference else [])]:
        if not Path(path).exists():
            raise DataError(f'{path}: no such data set')
    references = None
    if args.reference:
        trusted = survey([args.reference], contract).totals
        if not trusted.episodes:
            raise DataError(f'--reference {args.reference}: no episode can be read; inspect it alone')
        references = of_totals(trusted)
    sheet = Sheet(contract) if args.sheet else None
    found = survey(args.sources, contract, args.namespace, references, sheet.add if sheet else None)
    if sheet:
        sheet.save(args.sheet)
    result = {'sources': [str(p) for p in args.sources], 'contract': contract.name, **found.totals.to_dict(),
              'findings': [dataclasses.asdict(f) for f in found.findings]}
    if args.json:
        write_json(args.json, result)
    if args.json != '-':
        print('\n'.join([*table(result, contract), '', *lines(found.findings)]))
        if sheet:
            print(f'pictures: {args.sheet}')
    return EXIT[found.worst]


def table(result: dict, contract: Contract) -> list[str]:
    """Return the figures as lines of text."""
    if not result['episodes']:
        return ['no episode could be read']
    r, length = result, result['length']
    out = [f'{r["episodes"]} episodes, {r["steps"]} records; length {length["min"]} to {length["max"]}, median '
           f'{length["median"]:g}; {r["fragments"]} fragments, {r["unended"]} without an end',
           f'rate {r["rate_hz"]:.2f} Hz (contract {contract.rate_hz:g}), {r["late"]:.1%} of the intervals late',
           f'SR {r["sr"]:.3f}, CV {r["cv"]:.3f} (fractions of episodes); return {r["mean_return"]:.3f}, '
           f'cost {r["mean_cost"]:.3f} an episode', '']
    rows = [('key', 'field', 'min', 'max', 'mean', 'std', 'at limit')]
    for name in result['vectors']:
        rows += [_row(name, entry) for entry in result['vectors'][name]]
    rows += [_row('action', entry) for entry in result['action']]
    out += _columns(rows)
    out += ['', *_columns([('camera', 'pictures', 'repeated', 'black', 'white', 'flat', 'mean colour')] + [
        (name, *(str(c[k]) for k in ('frames', 'doubled', 'dark', 'bright', 'flat')),
         ' '.join(f'{v:.0f}' for v in c['colour'])) for name, c in result['cameras'].items()])]
    return out


def lines(findings: list[Finding]) -> list[str]:
    """Return the findings as lines of text, the worst first."""
    if not findings:
        return ['no findings']
    return [f'{f.severity:<7}  {f.code}: {f.where}: {f.text}' for f in findings]


def _row(name: str, entry: dict) -> tuple[str, ...]:
    figures = (f'{entry[k]:.4g}' for k in ('min', 'max', 'mean', 'std'))
    return name, entry['field'], *figures, f'{entry["saturated"]:.0%}' if 'saturated' in entry else ''


def _columns(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    left = 2 if rows[0][1] == 'field' else 1
    return ['  '.join(f'{cell:<{w}}' if i < left else f'{cell:>{w}}'
                      for i, (cell, w) in enumerate(zip(row, widths))).rstrip() for row in rows]
