# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Output that nobody reads stops no thread of a process, and output that somebody reads arrives as it was written.

Guards against: rclpy's log call, which blocks with the interpreter locked; lines lost at the end; a wait at the end for
a reader that rests; a process that no longer says why it ended.
"""

import subprocess
import sys
import textwrap
import time

import pytest

FLOOD = '''
    import sys, threading, time
    import rclpy.logging
    from fosp_ros.output import Relay
    relay = Relay()
    beats = []
    def beat():
        while True:
            time.sleep(0.01)
            beats.append(time.monotonic())
    threading.Thread(target=beat, daemon=True).start()
    log = rclpy.logging.get_logger('flood')
    for k in range(400):
        log.warning('x' * 900)
        time.sleep(0.001)
    print('y' * 100000)
    sys.stderr.write('z' * 100000)
    open(sys.argv[1], 'w').write(str(max(b - a for a, b in zip(beats, beats[1:]))))
    if sys.argv[2] == 'wait':
        time.sleep(float(sys.argv[3]))
        print('the last line')
    relay.close()
'''


@pytest.fixture
def start(tmp_path, isolated):
    """Start a program; it does not outlive the test."""
    made = []

    def begin(program, *arguments, **streams):
        (tmp_path / 'p.py').write_text(textwrap.dedent(program))
        made.append(subprocess.Popen([sys.executable, str(tmp_path / 'p.py'), *map(str, arguments)], text=True,
                                     **streams))
        return made[-1]
    yield begin
    for process in made:
        process.kill()
        process.communicate() if process.stdout and not process.stdout.closed else process.wait()


@pytest.mark.parametrize('one', [False, True])
def test_output_that_nobody_reads_blocks_no_thread_and_no_end(start, tmp_path, one):
    beats = tmp_path / 'beats'
    process = start(FLOOD, beats, 'end', stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT if one else subprocess.PIPE)
    assert process.wait(20) == 0
    assert float(beats.read_text()) < 1.0
    process.communicate()


def test_a_reader_that_comes_back_is_told_that_lines_may_be_missing(start, tmp_path):
    process = start(FLOOD, tmp_path / 'beats', 'wait', 1.0, stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT)
    end = time.monotonic() + 20
    while not (tmp_path / 'beats').exists():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    time.sleep(0.6)
    out, _ = process.communicate(timeout=20)
    assert 'warning: output was not read for' in out
    assert out.endswith('the last line\n') and process.returncode == 0


def test_output_that_is_read_arrives_whole_and_in_order_before_the_process_ends(start, tmp_path):
    process = start('''
        import os, sys
        from fosp_ros.output import Relay
        before = sys.stdout, sys.stderr
        with Relay():
            for k in range(3000):
                (sys.stdout if k % 2 else sys.stderr).write(f'{k}\\n')
                if k % 10 == 0:
                    os.write(2, b'')
            sys.stdout.write('no end of line')
        assert (sys.stdout, sys.stderr) == before
        print(' and after')
        sys.exit(7)
    ''', stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 7, out
    assert out == ''.join(f'{k}\n' for k in range(3000)) + 'no end of line and after\n'


def test_a_file_is_left_alone(start, tmp_path):
    with (tmp_path / 'log').open('wb') as log:
        process = start('''
            import os, stat, sys
            from fosp_ros.output import Relay
            before = sys.stdout, sys.stderr
            relay = Relay()
            assert (sys.stdout, sys.stderr) == before and stat.S_ISREG(os.fstat(2).st_mode)
            relay.close()
        ''', stdout=log, stderr=log)
        assert process.wait(20) == 0


def test_a_reader_that_is_gone_ends_nothing(start, tmp_path):
    process = start(FLOOD, tmp_path / 'beats', 'end', stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    process.stdout.close()
    assert process.wait(20) == 0
