# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Turns what the safety filter left of an incident into a bag: `python -m fosp_core.data.incident SPOOL BAG`.

Runs as a process of its own, at low priority, started by the filter node. No ROS. A spool folder that a crash left
behind can be turned into a bag later by the same command.
"""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from fosp_core.contract import Contract
from fosp_core.errors import DataError, FospError

RAW, ABOUT = 'raw.bin', 'about.json'
PREFIX = 'incident-'


def write_raw(file: BinaryIO, topic: str, msgtype: str, stamp: int, data: bytes) -> None:
    """Append one serialised message that was received at `stamp` (ns)."""
    head = json.dumps([topic, msgtype, stamp, len(data)]).encode()
    file.write(head + b'\n' + data)


def read_raw(path: Path) -> Iterator[tuple[str, str, int, bytes]]:
    """Yield what `write_raw` wrote; a cut-off end is left out."""
    with open(path, 'rb') as file:
        while head := file.readline():
            try:
                topic, msgtype, stamp, size = json.loads(head)
            except ValueError:
                return
            data = file.read(size)
            if len(data) < size:
                return
            yield topic, msgtype, stamp, data


def make_bag(spool: Path | str, out: Path | str) -> Path:
    """Write the bag `out`: replay topics for the importer, and beside them every topic as the filter saw it.

    Removes the spool, and the oldest incident bags of that folder beyond the number to keep. Raises FospError.
    """
    from fosp_core.data.bag import BagWriter
    from fosp_core.data.store import load_episodes
    spool, out = Path(spool), Path(out)
    try:
        about = json.loads((spool / ABOUT).read_text())
        contract = Contract.from_dict(about['contract'], str(spool / ABOUT))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f'{spool}/{ABOUT}: not left by the safety filter: {error}') from None
    with BagWriter(out, contract, about['namespace']) as writer:
        for episode in load_episodes(spool, contract):
            writer.add(episode)
        for topic, msgtype, stamp, data in read_raw(spool / RAW):
            writer.add_message(topic, msgtype, stamp, data)
    shutil.rmtree(spool)
    prune(out.parent, int(about['keep']))
    return out


def prune(folder: Path, keep: int) -> None:
    """Delete the oldest incident bags beyond `keep`; their names hold their time. Nothing else is touched."""
    bags = sorted(p for p in folder.glob(f'{PREFIX}*') if not p.is_symlink() and (p / 'metadata.yaml').is_file())
    for bag in bags[:max(0, len(bags) - keep)]:
        doomed = folder / f'.gone-{bag.name}'
        os.rename(bag, doomed)      # one step: a bag is listed whole or not at all
        shutil.rmtree(doomed)


def main(argv: list[str]) -> int:
    """Make one bag; 2 and one line when it cannot be made."""
    os.nice(19)
    try:
        make_bag(*argv)
    except (FospError, OSError) as error:
        sys.stderr.write(f'{error}\n')
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
