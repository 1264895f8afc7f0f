# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The trainer's child process: runs `fosp_core.train.finetune` and ends with its parent. The only torch of the graph.

A trainer that is killed with SIGKILL cannot end its worker; so the worker looks for itself.
"""

import argparse
import contextlib
import os
import sys
import threading
import time
from pathlib import Path


def end_with_parent(period: float = 0.5) -> None:
    """End this process at once when the one that started it has died; checked by a thread."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(period)
        os._exit(1)

    threading.Thread(target=watch, name='parent-watch', daemon=True).start()


def step_back(nice: int) -> None:
    """Let this session's share of the processor step back as `os.nice` does for a process.

    Where the kernel shares the processor out by sessions (autogroup, the default of desktop distributions), niceness
    counts within a session only, and the worker has one of its own: to the control path it would be no nicer.
    """
    with contextlib.suppress(OSError):      # a kernel without it shares out by processes
        Path('/proc/self/autogroup').write_text(str(nice))


def main() -> int:
    """Run the fine-tuning command line."""
    end_with_parent()
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument('--nice', type=int, default=0)
    step_back(parser.parse_known_args()[0].nice)
    from fosp_core.train import finetune
    return finetune.main(sys.argv[1:])


if __name__ == '__main__':
    sys.exit(main())
