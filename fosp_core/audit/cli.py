# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`fosp audit FILE|DIR`: what the safety filter did, and why it stopped. Imported by the CLI alone."""

import argparse
import datetime

from fosp_core.audit.story import parse_time, tell, why
from fosp_core.errors import DataError
from fosp_core.io import write_json
from fosp_core.safety.audit import read_entries


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `fosp audit`."""
    parser.add_argument('path', metavar='FILE|DIR', help='an audit file, or the folder of them')
    parser.add_argument('--at', metavar='TIME', help='why did it stop then? 14:02, 14:02:07, 2026-11-21T14:02 or '
                                                     'seconds since 1970')
    parser.add_argument('--from', dest='begin', metavar='TIME', help='show the timeline from here on')
    parser.add_argument('--to', dest='end', metavar='TIME', help='show the timeline up to here')
    parser.add_argument('--json', metavar='PATH', help='write the result as JSON (- for standard output alone)')


def run(args: argparse.Namespace) -> int:
    """Print the timeline, or the answer to --at."""
    audit = tell(read_entries(args.path))
    if not audit.segments:
        raise DataError(f'{args.path}: holds no tick')
    newest = max(segment.until for segment in audit.segments)
    begin = parse_time(args.begin, newest)[0] if args.begin else float('-inf')
    end = parse_time(args.end, newest)[1] if args.end else float('inf')
    if begin > end:
        raise DataError(f'--from {args.begin} is after --to {args.end}')
    rows = [segment.summary() for segment in audit.segments if segment.until >= begin and segment.t <= end]
    events = [event for event in audit.events if begin <= event['t'] <= end]
    answer = why(audit, *parse_time(args.at, newest)) if args.at else None
    if args.json:
        write_json(args.json, {'path': args.path, 'segments': rows, 'events': events, 'dropped': audit.dropped,
                               'restarts': audit.restarts, 'answer': answer})
        if args.json == '-':
            return 0
    print(answer['text'] if answer else timeline(rows, events, audit.dropped))
    return 0


def timeline(rows: list[dict], events: list[dict], dropped: int) -> str:
    """Return the table for people: one line per run of equal reason, and the events between them."""
    lines = [f'{"time":<23} {"reason":<21} {"ticks":>6} {"s":>8} {"m/s sent":>9} {"measured":>9} {"risk":>6}']
    run = None
    for row in sorted([*rows, *events], key=lambda entry: entry['t']):
        if row['run'] != run:
            run = row['run']
            lines.append(f'-- filter started, run {run}')
        time = datetime.datetime.fromtimestamp(row['t']).isoformat(' ', 'milliseconds')
        if 'ticks' in row:
            lines.append(f'{time:<23} {row["reason"]:<21} {row["ticks"]:>6} {row["duration_s"]:>8.2f} '
                         f'{_cell(row["commanded_speed_max"]):>9} {_cell(row["measured_speed"]):>9} '
                         f'{_cell(row["risk_max"], 2):>6}')
        else:
            lines.append(f'{time:<23} * {row.get("name", "event")}: {row.get("text", "")}')
    lines.append(f'{sum(row["ticks"] for row in rows)} ticks in {len(rows)} runs of one reason; {dropped} dropped by a '
                 'full queue')
    return '\n'.join(lines)


def _cell(value: float | None, digits: int = 3) -> str:
    return '' if value is None else f'{value:.{digits}f}'
