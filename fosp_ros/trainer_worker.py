# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The trainer's child process: runs `fosp_core.train.finetune` and ends with its parent. The only torch of the graph.

A trainer that is killed with SIGKILL cannot end its worker; so the worker looks for itself.
"""

import os
import sys
import threading
import time


def end_with_parent(period: float = 0.5) -> None:
    """End this process at once when the one that started it has died; checked by a thread."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(period)
        os._exit(1)

    threading.Thread(target=watch, name='parent-watch', daemon=True).start()


def main() -> int:
    """Run the fine-tuning command line."""
    end_with_parent()
    from fosp_core.train import finetune
    return finetune.main(sys.argv[1:])


if __name__ == '__main__':
    sys.exit(main())
