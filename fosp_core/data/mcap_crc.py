# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Checksums of MCAP files: rosbags writes none, and without them a flipped byte in a pixel goes unseen.

`seal` puts them into a file that rosbags wrote; `check` compares that of the index (summary) before anything is read
through it. Those of the chunks rosbags compares itself, as it reads each. Layout: https://mcap.dev/spec.
"""

import os
import struct
from binascii import crc32
from pathlib import Path

from fosp_core.errors import DataError

MAGIC = b'\x89MCAP0\r\n'
_CHUNK, _DATA_END, _FOOTER = 0x06, 0x0F, 0x02
_HEAD = struct.Struct('<BQ')            # of each record: opcode and length
_CHUNK_CRC = 24                         # where a chunk's CRC stands in its record, after two stamps and the size
_FOOTER_BYTES = _HEAD.size + 20 + len(MAGIC)


def seal(file: Path | str) -> None:
    """Write the CRCs of all chunks, of the data section and of the summary into a closed MCAP without compression."""
    with open(file, 'r+b') as stream:
        if stream.read(len(MAGIC)) != MAGIC:
            raise DataError(f'{file}: byte 0: no MCAP file')
        section = crc32(MAGIC)
        while True:
            at = stream.tell()
            head = stream.read(_HEAD.size)
            opcode, size = _HEAD.unpack(head)
            body = bytearray(stream.read(size))
            if opcode == _DATA_END:
                stream.seek(at + _HEAD.size)
                stream.write(struct.pack('<I', section))
                break
            if opcode == _CHUNK:
                (name,) = struct.unpack_from('<I', body, _CHUNK_CRC + 4)
                if name:
                    raise DataError(f'{file}: byte {at}: a compressed chunk cannot be given a CRC')
                body[_CHUNK_CRC:_CHUNK_CRC + 4] = struct.pack('<I', crc32(memoryview(body)[_CHUNK_CRC + 16:]))
                stream.seek(at + _HEAD.size + _CHUNK_CRC)
                stream.write(body[_CHUNK_CRC:_CHUNK_CRC + 4])
                stream.seek(at + _HEAD.size + size)
            section = crc32(body, crc32(head, section))
        stream.seek(at + _HEAD.size + 4)
        summary = stream.read()
        end = len(MAGIC) + 4
        stream.seek(-end, os.SEEK_END)
        stream.write(struct.pack('<I', crc32(summary[:-end])))


def check(file: Path | str) -> None:
    """Raise DataError, naming the byte, when the end of an MCAP is missing or its index is damaged.

    An index without a CRC is taken as it is.
    """
    size = os.path.getsize(file)
    with open(file, 'rb') as stream:
        if stream.read(len(MAGIC)) != MAGIC:
            raise DataError(f'{file}: byte 0: no MCAP file (truncated or damaged)')
        start = size - _FOOTER_BYTES
        stream.seek(max(start, 0))
        footer = stream.read()
        if start < len(MAGIC) or not footer.endswith(MAGIC) or footer[:9] != _HEAD.pack(_FOOTER, 20):
            raise DataError(f'{file}: byte {max(start, 0)}: no end of an MCAP file (truncated or not closed); '
                            f'the `mcap recover` tool of mcap.dev saves what is there')
        summary, _, expected = struct.unpack_from('<QQI', footer, _HEAD.size)
        if summary > start:
            raise DataError(f'{file}: byte {start}: the index is said to begin at {summary}, behind its own end')
        if not (summary and expected):
            return
        stream.seek(summary)
        if crc32(stream.read(size - len(MAGIC) - 4 - summary)) != expected:
            raise DataError(f'{file}: byte {summary}: the index differs from its CRC: damaged')
