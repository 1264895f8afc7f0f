# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The audit answers "why did it stop?" from what was written, within its bounds, whatever a crash cut off."""

import datetime
import json
import math

import numpy as np
import pytest

from fosp_core import cli
from fosp_core.audit.story import crossed, parse_time, tell, why
from fosp_core.errors import DataError
from fosp_core.safety.audit import AuditFiles, read_entries, tick_entry, to_line
from fosp_core.safety.filter import Record
from fosp_core.safety.reasons import Reason

T0 = datetime.datetime(2026, 11, 21, 14, 1, 58).timestamp()
HEADER = {'level': 0.6, 'surprise_slow': 12.8, 'surprise_stop': 25.6, 'deadline_s': 0.07,
          'limits': {'staleness': 0.25, 'box_low': [0.3, -0.4, 0.0], 'box_high': [0.7, 0.4, 0.3], 'box_margin': 0.05,
                     'joint_names': ['j1', 'j2'], 'joint_low': [-1, -1], 'joint_high': [1, 1], 'joint_margin': 0.02,
                     'joint_speed': [2.0, 2.0]}}


def tick(t, reason=Reason.PASS, sent=(0.1, 0.0, 0.0), ages=None, latched=(), mono=None, record=(), **more):
    record = Record(**{'reason': reason, 'rules': (reason,), 'nominal': (0.1, 0.0, 0.0), 'sent': sent, 'risk': 0.2,
                       'risk_nominal': 0.3, 'level': 0.6, 'surprise': 1.5, **dict(record)})
    return tick_entry(T0 + t, 100.0 + t if mono is None else mono, reason, record, latched,
                      ages or {'camera': 0.01, 'command': 0.02}, model='v1', **more)


def event(t, name, text='', **more):
    return {'k': 'event', 't': T0 + t, 'mono': 100.0 + t, 'name': name, 'text': text, **more}


def written(folder, entries, header=HEADER):
    files = AuditFiles(folder, 1 << 20, 1 << 22, lambda: header)
    files.append(entries)
    files.close()
    return folder


def story(tmp_path, entries):
    return tell(read_entries(written(tmp_path / 'audit', entries)))


STOP = dict(sent=(0.0, 0.0, 0.0))
LOST = [*(tick(0.1 * k, position=np.array([0.5 + 0.01 * k, 0.0, 0.2])) for k in range(30)),
        tick(3.0, Reason.LATE_HOLD, **STOP),
        *(tick(3.1 + 0.1 * k, Reason.COMMAND_STALE, ages={'camera': 0.01, 'command': 0.3 + 0.1 * k}, **STOP)
          for k in range(20)),
        *(tick(5.1 + 0.1 * k, Reason.RELEASING, **STOP) for k in range(3)),
        *(tick(5.4 + 0.1 * k) for k in range(10))]


def test_a_tick_is_one_line_of_plain_json():
    entry = json.loads(to_line(tick(0.0, ages={'camera': math.inf}, position=np.arange(3.0), stamp=12345678901234567,
                                    latency_ms=np.float32(3.25), record={'risk': math.nan}, note=None)))
    assert entry['reason'] == 'ok' and entry['rules'] == ['ok'] and entry['model'] == 'v1'
    assert entry['risk'] is None and entry['ages'] == {'camera': None} and entry['position'] == [0.0, 1.0, 2.0]
    assert entry['stamp'] == 12345678901234567 and entry['latency_ms'] == 3.25 and 'note' not in entry
    assert entry['sent'] == [0.1, 0.0, 0.0] and entry['risk_nominal'] == 0.3 and entry['surprise'] == 1.5


def test_numbers_of_another_tick_are_left_out():
    entry = tick_entry(0.0, 0.0, Reason.INTERNAL_FAULT, Record(Reason.PASS, (), (1.0,), (1.0,), 0.5), (), {})
    assert entry['rules'] == ['internal_fault'] and entry['sent'] == () and math.isnan(entry['risk'])


def test_files_follow_one_another_and_stay_within_their_total(tmp_path):
    files = AuditFiles(tmp_path, 4000, 12000, lambda: HEADER)
    (tmp_path / 'other.jsonl').write_text('x' * 20000)
    names = set()
    for k in range(200):
        files.append([tick(k)])
        names.add(files.path)
        assert files.path.stat().st_size <= 4000 + 400
        assert sum(p.stat().st_size for p in tmp_path.glob('audit-*')) <= 12000
    files.sync()
    files.close()
    left = sorted(tmp_path.glob('audit-*'))
    assert len(names) > 10 and 2 <= len(left) <= 3 and left[-1] == files.path
    assert (tmp_path / 'other.jsonl').exists()
    assert [e['t'] - T0 for e in read_entries(tmp_path) if e['k'] == 'tick'][-1] == 199
    assert all(json.loads(p.read_text().splitlines()[0])['k'] == 'start' for p in left)
    assert len({e['run'] for e in read_entries(tmp_path)}) == 1


def test_a_refusing_disk_is_an_error_and_the_next_append_tries_again(tmp_path):
    blocked = tmp_path / 'audit'
    blocked.write_text('a file where the folder should be')
    files = AuditFiles(blocked, 4000, 4000, dict)
    with pytest.raises(OSError):
        files.append([tick(0)])
    blocked.unlink()
    files.append([tick(1)])
    files.close()
    assert [e['k'] for e in read_entries(blocked)] == ['start', 'tick']


def test_a_half_written_line_is_not_gone_on_with(tmp_path):
    files = AuditFiles(tmp_path, 4000, 40000, dict)
    files.append([tick(0)])

    class Full:
        def write(self, data):
            return half.write(data[:30])

        def close(self):
            half.close()
    half, files._file = files._file, Full()
    with pytest.raises(OSError, match='30 of'):
        files.append([tick(1)])
    files.append([tick(2)])
    files.close()
    assert [round(e['t'] - T0) for e in read_entries(tmp_path) if e['k'] == 'tick'] == [0, 2]


def test_what_a_crash_cut_off_costs_its_own_line(tmp_path):
    folder = written(tmp_path / 'audit', [tick(0), tick(0.1)])
    path = next(folder.glob('*'))
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert [e['k'] for e in read_entries(folder)] == ['start', 'tick']
    path.write_bytes(whole + b'\0\0\xff\n[1]\n{"k": "tick", "t": 1}\n' + to_line(tick(0.2)))
    assert [e['k'] for e in read_entries(path)] == ['start', 'tick', 'tick', 'tick']


@pytest.mark.parametrize(('content', 'words'), [
    (None, 'no such'), ('', 'no line of an audit'), ('{"k": "start", "t": 1, "schema": 99}\n', 'schema 99')])
def test_what_is_no_audit_is_one_line_and_2(tmp_path, capsys, content, words):
    path = tmp_path / 'audit-x.jsonl'
    if content is not None:
        path.write_text(content)
    assert cli.main(['audit', str(path)]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count('\n') == 1


def test_a_folder_without_an_audit_is_named(tmp_path):
    with pytest.raises(DataError, match='no audit files'):
        list(read_entries(tmp_path))


def test_runs_of_one_reason_are_collapsed(tmp_path):
    audit = story(tmp_path, LOST)
    rows = [segment.summary() for segment in audit.segments]
    assert [(r['reason'], r['ticks']) for r in rows] == [
        ('ok', 30), ('late_hold', 1), ('command_stale', 20), ('releasing', 3), ('ok', 10)]
    assert rows[0]['duration_s'] == pytest.approx(3.0) and rows[2]['duration_s'] == pytest.approx(2.0)
    assert rows[0]['commanded_speed_max'] == pytest.approx(0.1) and rows[2]['commanded_speed_max'] == 0.0
    assert rows[0]['measured_speed'] == pytest.approx(0.1) and rows[1]['measured_speed'] is None
    assert rows[0]['risk_max'] == 0.3 and rows[2]['age_max']['command'] == pytest.approx(2.2)
    assert rows[0]['models'] == ['v1'] and audit.dropped == 0


def test_why_did_it_stop_names_reason_values_advice_and_what_cleared_it(tmp_path):
    answer = why(story(tmp_path, LOST), *parse_time('14:02', T0))
    assert answer['stopped'] and answer['reason'] == 'command_stale'
    assert answer['stopped_at'] - T0 == pytest.approx(3.0) and answer['since'] - T0 == pytest.approx(3.1)
    assert answer['until'] - T0 == pytest.approx(5.4) and answer['duration_s'] == pytest.approx(2.4)
    text = answer['text']
    assert text.startswith('It stopped at 14:02:01.000 because of command_stale: ' + Reason.COMMAND_STALE.text)
    assert 'age of command 0.300 s, up to 2.200 s, limit 0.250 s' in text
    assert 'command_stale since 14:02:01.100, first late_hold' in text
    assert 'command_stale was gone at 14:02:03.100 (age of command 0.020 s), and the arm was free again at ' \
           '14:02:03.400' in text
    assert text.endswith(Reason.COMMAND_STALE.advice)


def test_a_stop_that_goes_on_and_one_that_did_not_happen(tmp_path):
    audit = story(tmp_path, LOST[:40])
    assert 'not over at the end of the log' in why(audit, T0 + 3.5, T0 + 3.5)['text']
    calm = why(audit, T0 + 1.0, T0 + 1.0)
    assert not calm['stopped'] and 'did not stop' in calm['text'] and 'commanded speed up to 0.100' in calm['text']
    assert 'The nearest stop: 14:02:01.000, command_stale' in calm['text']
    assert 'no line' in why(audit, T0 - 50, T0 - 40)['text']


def test_a_latched_stop_is_cleared_by_the_reset_alone(tmp_path):
    latched = (Reason.ESTOP,)
    audit = story(tmp_path, [
        tick(0.0), event(0.05, 'estop', 'pressed'),
        *(tick(0.1 * k, Reason.ESTOP, latched=latched, **STOP) for k in range(1, 10)), event(0.9, 'reset', done=False),
        event(0.95, 'reset', 'cleared: estop', done=True), tick(1.0, Reason.RELEASING, **STOP), tick(1.3)])
    answer = why(audit, T0 + 0.5, T0 + 0.5)
    assert answer['reason'] == 'estop' and 'safety_filter/reset at 14:01:58.950' in answer['text']
    assert [e['name'] for e in audit.events] == ['estop', 'reset', 'reset']


def test_the_latching_cause_explains_more_than_the_first_one(tmp_path):
    audit = story(tmp_path, [tick(0), event(0.15, 'reset', 'refused', done=False),
                             tick(0.1, Reason.SURPRISE_STOP, record={'surprise': 30.0}, **STOP),
                             tick(0.2, Reason.OUT_OF_DISTRIBUTION, record={'surprise': 40.0}, **STOP)])
    answer = why(audit, T0, T0 + 1)
    assert answer['reason'] == 'out_of_distribution' and answer['others'] == ['surprise_stop']
    assert answer['values'] == ['surprise 40.0 nats, up to 40.0 nats, level 25.6 nats']
    assert 'latched until safety_filter/reset; 0 so far' in answer['text']


def test_a_gap_or_a_restart_joins_nothing_and_a_set_clock_stretches_nothing(tmp_path):
    lost = {'k': 'dropped', 't': T0, 'n': 7}
    audit = story(tmp_path, [tick(0), tick(0.1), tick(60.0), tick(3660.1, mono=160.1), lost])
    assert [s.summary()['ticks'] for s in audit.segments] == [2, 2] and audit.dropped == 7
    assert audit.segments[1].duration == pytest.approx(0.1)
    written(tmp_path / 'audit', [tick(5000.0, mono=1.0)])
    again = tell(read_entries(tmp_path / 'audit'))
    assert len(again.segments) == 3 and again.restarts == 1


@pytest.mark.parametrize(('reason', 'more', 'expected'), [
    (Reason.CAMERA_STALE, {'ages': {'camera': math.inf}}, 'age of camera never came'),
    (Reason.RISK_HOLD, {'record': {'risk_nominal': 0.71}}, 'risk of the proposal 0.710, up to 0.710, level 0.600'),
    (Reason.SURPRISE_SLOW, {'record': {'surprise': 14.0}}, 'surprise 14.0 nats, up to 14.0 nats, level 12.8 nats'),
    (Reason.REPEATED_LATE, {'latency_ms': 91.0}, 'latency up to 91 ms, limit 70 ms'),
    (Reason.WORKSPACE_MEASURED, {'position': [0.76, 0.0, 0.1]},
     'position x 0.760 m, limit 0.300 to 0.700 with a margin of 0.05'),
    (Reason.JOINT_LIMIT_MEASURED, {'joints': [[0.0, 1.1], [0.0, 2.5]]},
     'j2 1.100 rad, limit -1.000 to 1.000 with a margin of 0.02|speed of j2 2.500 rad/s, limit 2.000'),
    (Reason.COMMAND_INVALID, {'proposal': '[nan, 0.0, 0.0]'}, 'proposed [nan, 0.0, 0.0]'),
    (Reason.CAMERA_INVALID, {'note': 'camera_invalid: image encoding is mono16'},
     'camera_invalid: image encoding is mono16'),
    (Reason.CAMERA_FROZEN, {}, '')])
def test_the_value_that_crossed_its_limit_is_named(reason, more, expected):
    entry = json.loads(to_line(tick(0.0, reason, **STOP, **more)))
    found = crossed(reason.word, [entry], HEADER)
    if reason is Reason.CAMERA_STALE:
        assert found[0].startswith(expected) and found[0].endswith('limit 0.250 s')
    else:
        assert '|'.join(found) == expected


def test_times_as_people_write_them():
    assert parse_time('14:02', T0) == (T0 + 2, T0 + 62)
    assert parse_time('14:02:07', T0) == (T0 + 9, T0 + 10)
    assert parse_time('14:02:07.5', T0) == (T0 + 9.5, T0 + 9.5)
    assert parse_time('2026-11-20 14:02', T0)[0] == T0 + 2 - 86400
    assert parse_time('2026-11-21T14:02Z', T0)[0] == datetime.datetime(2026, 11, 21, 14, 2,
                                                                       tzinfo=datetime.UTC).timestamp()
    assert parse_time('1700000000.5', T0) == (1700000000.5, 1700000000.5)
    for bad in ('soon', '25:00', '14', '14:2:3:4', '2026-13-01T10:00'):
        if bad != '14':     # seconds since 1970, as it says
            with pytest.raises(DataError, match='expected e.g. 14:02'):
                parse_time(bad, T0)


def test_the_command_prints_timeline_answer_and_json(tmp_path, capsys):
    folder = written(tmp_path / 'audit', [*LOST, event(5.2, 'reset', 'cleared')])
    assert cli.main(['audit', str(folder)]) == 0
    out = capsys.readouterr().out
    assert 'command_stale             20     2.00     0.000' in out and '* reset: cleared' in out
    assert '64 ticks in 5 runs' in out
    assert cli.main(['audit', str(folder), '--at', '14:02']) == 0
    assert capsys.readouterr().out.startswith('It stopped at 14:02:01.000')
    assert cli.main(['audit', str(folder), '--from', '14:02:02', '--to', '14:02:02', '--json', '-']) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row['reason'] for row in told['segments']] == ['command_stale'] and told['answer'] is None
    assert cli.main(['audit', str(folder), '--from', '14:03', '--to', '14:01']) == 2
    assert cli.main(['audit', str(folder), '--at', 'noon']) == 2
