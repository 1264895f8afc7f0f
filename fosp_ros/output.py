# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Output that nobody reads must not stop a process: pipes and terminals are written by a thread that may block.
`lifecycle.spin_node` and `fosp up` use it.

rclpy writes its log line with the interpreter locked. When the reader of stderr rests (a pager, Ctrl-S, a parent that
drains no pipe) the write blocks, and with it every thread of the process: the watchdog too. So descriptors 1 and 2
become a pipe of our own that refuses rather than blocks; the lines that do not fit are lost, and that is said later.
"""

import array
import contextlib
import fcntl
import io
import os
import select
import stat
import sys
import termios
import threading
import time

COLOURS = 'RCUTILS_COLORIZED_OUTPUT'
LATE_S = 1.0    # a reader that rests for longer is told that lines may be missing


class _Raw(io.RawIOBase):
    """A descriptor that refuses rather than blocks, as a file that drops what is refused."""

    def __init__(self, fd: int):
        super().__init__()
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        try:
            return os.write(self._fd, data)
        except OSError:
            return len(data)


class _Channel:
    """One pipe in place of the descriptors `fds`, which are one and the same file, and the thread that empties it."""

    def __init__(self, fds: list[int]):
        self._fds, self._real = fds, os.dup(fds[0])
        self._read, write = os.pipe()
        os.set_blocking(write, False)
        self._busy = False      # a write to the real file is on its way
        for fd in fds:
            os.dup2(write, fd)
        os.close(write)
        self._thread = threading.Thread(target=self._run, name='output', daemon=True)
        self._thread.start()

    def _waiting(self) -> int:
        count = array.array('i', [0])
        fcntl.ioctl(self._read, termios.FIONREAD, count)
        return count[0]

    def _run(self) -> None:
        while True:
            select.select([self._read], [], [])
            self._busy = True       # before the pipe is empty: `flush` looks at both
            data, began = os.read(self._read, 1 << 16), time.monotonic()
            if not data:
                return
            self._pass_on(data)
            # Pages that are not quite full refuse a line too, so half a pipe may be a full one.
            if time.monotonic() - began > LATE_S and 2 * self._waiting() >= fcntl.fcntl(self._read,
                                                                                       fcntl.F_GETPIPE_SZ):
                self._pass_on(b'warning: output was not read for %d s: lines may be missing below\n'
                              % (time.monotonic() - began))
            self._busy = False

    def _pass_on(self, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(self._real, data):]
            except BlockingIOError:     # the real file was set so by somebody who shares it
                select.select([], [self._real], [])
            except OSError:             # its reader is gone
                return

    def flush(self, seconds: float) -> bool:
        """Wait until the real file has everything, for so long at most; return whether it has."""
        end = time.monotonic() + seconds
        while self._waiting() or self._busy:
            if time.monotonic() > end:
                return False
            time.sleep(0.002)
        return True

    def close(self, seconds: float) -> bool:
        """Give the descriptors back. False when the reader still rests: then they stay, as nothing may block."""
        if not self.flush(seconds):
            return False
        for fd in self._fds:
            os.dup2(self._real, fd)     # the last writing end of the pipe: the thread ends
        self._thread.join(1.0)
        os.close(self._real)
        os.close(self._read)
        return True


class Relay:
    """Puts a thread between this process and whoever reads its stdout and stderr, until `close`.

    Files, which are always ready, are left alone. As a context manager it closes itself.
    """

    def __init__(self):
        self._channels: list[_Channel] = []
        self._streams: dict[str, object] = {}
        fds = [fd for fd in (1, 2) if _may_block(fd)]
        if not fds:
            return
        if 2 in fds and os.isatty(2):
            os.environ.setdefault(COLOURS, '1')     # rcutils asks the descriptor, which is a pipe from now on
        for name, stream in (('stdout', sys.stdout), ('stderr', sys.stderr)):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                if stream.fileno() in fds:
                    stream.flush()
                    self._streams[name] = stream
        groups = [fds] if len(fds) == 2 and os.path.sameopenfile(1, 2) else [[fd] for fd in fds]
        self._channels = [_Channel(group) for group in groups]
        for name, stream in self._streams.items():
            setattr(sys, name, io.TextIOWrapper(io.BufferedWriter(_Raw(stream.fileno())), stream.encoding,
                                                'backslashreplace', line_buffering=True, write_through=True))

    def flush(self, seconds: float = 0.5) -> None:
        """Wait until what was written has gone out, for so long at most."""
        end = time.monotonic() + seconds
        for name in self._streams:
            getattr(sys, name).flush()
        for channel in self._channels:
            channel.flush(max(0.0, end - time.monotonic()))

    def close(self, seconds: float = 0.5) -> None:
        """Pass on what is left, for so long at most, and take the thread out again."""
        self.flush(seconds)
        channels, self._channels = self._channels, []
        if all([channel.close(0.05) for channel in channels]):
            for name, stream in self._streams.items():
                setattr(sys, name, stream)

    def __enter__(self) -> 'Relay':
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _may_block(fd: int) -> bool:
    try:
        mode = os.fstat(fd).st_mode
    except OSError:     # closed
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(fd)
