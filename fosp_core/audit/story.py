# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What an audit says: a timeline, and why the arm stopped at a given time. Standard library only; anyone may import it.

Durations are of the monotonic clock, so that a wall clock that is set in between does not stretch a stop.
"""

import dataclasses
import datetime
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence

from fosp_core.errors import DataError
from fosp_core.safety.audit import DROPPED, EVENT, START, TICK
from fosp_core.safety.reasons import BY_WORD, Effect, Reason

STALE = {'camera_stale': 'camera', 'pose_stale': 'pose', 'joints_stale': 'joints', 'command_stale': 'command'}
NO_CAUSE = {Reason.IDLE, Reason.STARTING, Reason.RELEASING, Reason.NOT_ACTIVE}
STILL = (Effect.STOP, Effect.HOLD)
GAP_S = 2.0     # without a line for so long, two equal reasons are two runs: nobody knows what was in between


@dataclasses.dataclass
class Segment:
    """A run of ticks of one reason. t, until: wall clock, s; duration: monotonic, s; speeds in m/s, NaN if unknown."""

    run: str
    reason: str
    t: float
    until: float
    mono: float
    mono_until: float
    ticks: list[dict]
    header: dict

    @property
    def known(self) -> Reason | None:
        """The reason as this version knows it."""
        return BY_WORD.get(self.reason)

    @property
    def still(self) -> bool:
        """True when the arm was told to stand."""
        return self.known is not None and self.known.effect in STILL

    @property
    def cause(self) -> bool:
        """True when it is a stop that something caused."""
        return self.known is not None and self.known.effect is Effect.STOP and self.known not in NO_CAUSE

    @property
    def duration(self) -> float:
        """Seconds from its first line to its last, or to the next segment."""
        return self.mono_until - self.mono

    def summary(self) -> dict:
        """Return what a timeline shows of it, plain numbers; None where nothing is known."""
        risks = [x for tick in self.ticks for x in (tick.get('risk_nominal'), tick.get('risk')) if x is not None]
        ages = {}
        for tick in self.ticks:
            for kind, age in (tick.get('ages') or {}).items():
                ages[kind] = max(ages.get(kind, 0.0), math.inf if age is None else age)
        return {'run': self.run, 'reason': self.reason, 't': self.t, 'until': self.until,
                'duration_s': round(self.duration, 3), 'ticks': len(self.ticks),
                'commanded_speed_max': _max(_norm(tick.get('sent')) for tick in self.ticks),
                'measured_speed': self._measured(), 'risk_max': _max(risks),
                'surprise_max': _max(tick.get('surprise') for tick in self.ticks),
                'latency_ms_max': _max(tick.get('latency_ms') for tick in self.ticks),
                'age_max': {kind: age if math.isfinite(age) else None for kind, age in ages.items()},
                'rules': sorted({rule for tick in self.ticks for rule in tick.get('rules') or ()}),
                'models': sorted({tick['model'] for tick in self.ticks if tick.get('model')})}

    def _measured(self) -> float | None:
        """Way of the measured position over time, m/s."""
        seen = [(tick['mono'], tick['position']) for tick in self.ticks if tick.get('position') and tick.get('mono')]
        if len(seen) < 2 or seen[-1][0] <= seen[0][0]:
            return None
        way = sum(math.dist(a[1], b[1]) for a, b in itertools.pairwise(seen))
        return way / (seen[-1][0] - seen[0][0])


@dataclasses.dataclass
class Audit:
    """What was read: segments and events in the order of their time, run after run; ticks lost to a full queue."""

    segments: list[Segment]
    events: list[dict]
    dropped: int
    restarts: int


def tell(entries: Iterable[dict]) -> Audit:
    """Collapse the entries of an audit (of `read_entries`) into runs of equal reason."""
    runs: dict[str, list[dict]] = {}
    for entry in entries:
        runs.setdefault(entry['run'], []).append(entry)
    audit = Audit([], [], 0, 0)
    for run, lines in sorted(runs.items(), key=lambda item: item[1][0]['t']):
        header: dict = {}
        last: Segment | None = None
        for entry in lines:
            mono = entry.get('mono') if isinstance(entry.get('mono'), (int, float)) else entry['t']
            if entry['k'] == START:
                header = entry
            elif entry['k'] == DROPPED:
                audit.dropped += int(entry.get('n') or 0)
            elif entry['k'] == EVENT:
                audit.events.append(entry)
            elif entry['k'] == TICK:
                if last is not None and mono - last.mono_until <= GAP_S:
                    last.until, last.mono_until = entry['t'], mono
                    same = last.reason == entry['reason']
                else:
                    same = False
                if not same:
                    last = Segment(run, entry['reason'], entry['t'], entry['t'], mono, mono, [], header)
                    audit.segments.append(last)
                last.ticks.append(entry)
    audit.restarts = max(0, len(runs) - 1)
    return audit


def parse_time(text: str, newest: float) -> tuple[float, float]:
    """Return the interval [from, to) in seconds since 1970 that a time means; raise DataError.

    `14:02` is that minute, `14:02:07` that second, `14:02:07.5` that instant; with or without a date and a zone
    (`2026-11-21T14:02+01:00`), else local time on the day of `newest`, the last line. A number is seconds since 1970.
    """
    try:
        return float(text), float(text)
    except ValueError:
        pass
    found = re.fullmatch(r'(?:(\d{4}-\d\d-\d\d)[T ])?(\d\d?):(\d\d)(?::(\d\d)(\.\d+)?)?(Z|[+-]\d\d:?\d\d)?',
                         text.strip())
    day = datetime.datetime.fromtimestamp(newest).date().isoformat()
    try:
        if found is None:
            raise ValueError
        date, hour, minute, second, fraction, zone = found.groups()
        begin = datetime.datetime.fromisoformat(f'{date or day}T{int(hour):02d}:{minute}:{second or "00"}{zone or ""}')
    except ValueError:
        raise DataError(f'time {text!r}: expected e.g. 14:02, 14:02:07.5, 2026-11-21T14:02 or seconds since 1970'
                        ) from None
    at = begin.timestamp() + float(fraction or 0.0)
    return at, at + (0.0 if fraction else 1.0 if second else 60.0)


def why(audit: Audit, begin: float, end: float) -> dict:
    """Say why the arm stood still in [begin, end): `text` is the answer in words, the rest its parts.

    A stop that began in the interval comes first, then one that was going on; of several the first with a cause.
    """
    stops = _stops(audit.segments)
    there = [s for s in stops if s[0].t < max(end, begin + 1e-9) and s[-1].until >= begin]
    there.sort(key=lambda s: (not any(x.cause for x in s), s[0].t < begin))
    if there:
        return _explain(audit, there[0])
    moving = [s for s in audit.segments if s.t <= max(begin, end) and s.until >= begin]
    nearest = min(stops, key=lambda s: min(abs(s[0].t - begin), abs(s[-1].until - begin)), default=None)
    if moving:
        text = f'It did not stop at {clock(begin)}: {_words(moving[-1])}, {_speed(moving[-1])}.'
    else:
        text = f'The audit has no line at {clock(begin)}.'
    if nearest is not None:
        text += f' The nearest stop: {clock(nearest[0].t)}, {_main(nearest).reason}.'
    return {'stopped': False, 'text': text, 'reason': moving[-1].reason if moving else None}


def _stops(segments: Sequence[Segment]) -> list[list[Segment]]:
    """Runs of segments in which the arm was told to stand; a gap in the log ends one."""
    found: list[list[Segment]] = []
    for segment in segments:
        if not segment.still:
            continue
        before = found[-1][-1] if found else None
        if before is not None and before.run == segment.run and before.mono_until == segment.mono:
            found[-1].append(segment)
        else:
            found.append([segment])
    return found


def _main(stop: Sequence[Segment]) -> Segment:
    """The segment that explains a stop: the first with a cause, but a latching cause that follows explains more."""
    causes = [s for s in stop if s.cause]
    latching = [s for s in causes if s.known.latching]
    return (latching or causes or list(stop))[0]


def _explain(audit: Audit, stop: list[Segment]) -> dict:
    main = _main(stop)
    reason, header = main.known, main.header
    values = crossed(main.reason, main.ticks, header)
    index = audit.segments.index(stop[-1])
    after = audit.segments[index + 1] if index + 1 < len(audit.segments) else None
    if after is not None and after.run != main.run:
        after = None
    ends = after is not None and after.mono == stop[-1].mono_until
    text = f'It stopped at {clock(stop[0].t)} because of {main.reason}: {reason.text}'
    if values:
        text += f' {"; ".join(values)}.'
    if stop[0] is not main:
        text += f' {main.reason} since {clock(main.t)}, first {stop[0].reason}.'
    others = [s.reason for s in stop if s.cause and s.reason != main.reason]
    if others:
        text += f' Also: {", ".join(dict.fromkeys(others))}.'
    cleared = _cleared(audit, stop, main, after if ends else None)
    text += f' {cleared} What to do: {reason.advice}'
    return {'stopped': True, 'text': text, 'reason': main.reason, 'meaning': reason.text, 'advice': reason.advice,
            'since': main.t, 'stopped_at': stop[0].t, 'until': after.t if ends else None,
            'duration_s': round(stop[-1].mono_until - stop[0].mono, 3), 'values': values, 'others': others,
            'cleared': cleared}


def _cleared(audit: Audit, stop: list[Segment], main: Segment, after: Segment | None) -> str:
    """Say what ended a stop."""
    last_cause = [s for s in stop if s.cause][-1] if any(s.cause for s in stop) else main
    events = [e for e in audit.events if e['run'] == main.run and stop[0].t <= e['t'] <= stop[-1].until + 1.0]
    resets = [e for e in events if e.get('name') == 'reset' and e.get('done')]
    duration = f'{stop[-1].mono_until - stop[0].mono:.1f} s'
    if after is None:
        note = f' (latched until safety_filter/reset; {len(resets)} so far)' if main.known.latching else ''
        return f'It was not over at the end of the log, after {duration}{note}.'
    if resets and (main.known.latching or last_cause.known.latching):
        what = f'safety_filter/reset at {clock(resets[-1]["t"])}'
    elif last_cause.cause:
        what = f'{last_cause.reason} was gone at {clock(last_cause.until)}'
        good = _sound(last_cause.reason, [t for s in stop for t in s.ticks if t['mono'] >= last_cause.mono_until]
                      or after.ticks, main.header)
        what += f' ({good})' if good else ''
    else:
        what = f'{_words(after)} followed'
    return f'It lasted {duration}: {what}, and the arm was free again at {clock(after.t)} ({after.reason}).'


def crossed(word: str, ticks: Sequence[Mapping], header: Mapping) -> list[str]:
    """Return in words which value crossed which limit in the ticks of one reason; empty where there is none."""
    limits, first = header.get('limits') or {}, ticks[0]
    found: list[str] = []
    if word in STALE or word == 'idle':
        kinds = [STALE[word]] if word in STALE else list(first.get('ages') or {})
        worst = {kind: max((_age(tick, kind) for tick in ticks), default=math.nan) for kind in kinds}
        bound = limits.get('staleness')
        found = [f'age of {kind} {_seconds(_age(first, kind))}, up to {_seconds(worst[kind])}, limit {_seconds(bound)}'
                 for kind in kinds]
    elif word.startswith('risk_'):
        found = _over('risk of the proposal', ticks, 'risk_nominal', first.get('level'), '.3f')
    elif word in ('surprise_slow', 'surprise_stop', 'out_of_distribution'):
        level = header.get('surprise_slow' if word == 'surprise_slow' else 'surprise_stop')
        found = _over('surprise', ticks, 'surprise', level, '.1f', ' nats')
    elif word in ('late_hold', 'repeated_late'):
        slow = _max(tick.get('latency_ms') for tick in ticks)
        bound = header.get('deadline_s')
        if slow is not None and bound is not None and slow > 1e3 * bound:
            found = [f'latency up to {slow:.0f} ms, limit {1e3 * bound:.0f} ms']
    elif word == 'workspace_measured':
        found = _beyond('position', 'xyz', first.get('position'), limits.get('box_low'), limits.get('box_high'),
                        limits.get('box_margin') or 0.0, 'm')
    elif word == 'joint_limit_measured' and first.get('joints'):
        names = limits.get('joint_names') or ()
        position, speed = first['joints']
        found = _beyond('', names, position, limits.get('joint_low'), limits.get('joint_high'),
                        limits.get('joint_margin') or 0.0, 'rad')
        bound = limits.get('joint_speed') or ()
        found += [f'speed of {n} {v:.3f} rad/s, limit {b:.3f}' for n, v, b in zip(names, speed or (), bound)
                  if abs(v) > b]
    elif word == 'command_invalid' and first.get('proposal') is not None:
        found = [f'proposed {first["proposal"]}']
    found += [note for note in dict.fromkeys(tick.get('note') for tick in ticks if tick.get('note'))][:1]
    return found


def _sound(word: str, ticks: Sequence[Mapping], header: Mapping) -> str:
    """Say in words that the value is within its limit again."""
    limits = header.get('limits') or {}
    for tick in ticks:
        if word in STALE:
            age = _age(tick, STALE[word])
            if limits.get('staleness') is not None and age <= limits['staleness']:
                return f'age of {STALE[word]} {_seconds(age)}'
        elif word == 'surprise_stop' and tick.get('surprise') is not None:
            return f'surprise {tick["surprise"]:.1f} nats'
    return ''


def _over(name: str, ticks, key: str, level, form: str, unit: str = '') -> list[str]:
    values = [tick[key] for tick in ticks if tick.get(key) is not None]
    if not values:
        return []
    bound = f', level {level:{form}}{unit}' if level is not None else ''
    return [f'{name} {values[0]:{form}}{unit}, up to {max(values):{form}}{unit}{bound}']


def _beyond(name: str, names, values, low, high, margin: float, unit: str) -> list[str]:
    if not values or not low or not high:
        return []
    return [f'{name + " " if name else ""}{n} {v:.3f} {unit}, limit {lo:.3f} to {hi:.3f} with a margin of {margin:g}'
            for n, v, lo, hi in zip(names, values, low, high) if not lo - margin <= v <= hi + margin]


def clock(t: float) -> str:
    """Return the local time of day of seconds since 1970, to the millisecond."""
    return datetime.datetime.fromtimestamp(t).strftime('%H:%M:%S.%f')[:-3]


def _words(segment: Segment) -> str:
    return f'{segment.reason}: {segment.known.text}'.rstrip('.') if segment.known else segment.reason


def _speed(segment: Segment) -> str:
    speed = segment.summary()['commanded_speed_max']
    return 'speed unknown' if speed is None else f'commanded speed up to {speed:.3f} m/s'


def _age(tick: Mapping, kind: str) -> float:
    age = (tick.get('ages') or {}).get(kind)
    return math.inf if age is None else age     # infinite when it never came, which JSON cannot say


def _seconds(value: float | None) -> str:
    return 'unknown' if value is None else 'never came' if math.isinf(value) else f'{value:.3f} s'


def _norm(vector) -> float | None:
    return math.hypot(*vector) if vector else None


def _max(values) -> float | None:
    return max((value for value in values if value is not None), default=None)
