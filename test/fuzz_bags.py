# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Bags with bytes changed at random, and the judgement of what the importer makes of them."""

import re
import shutil
import signal
from pathlib import Path

import foreign_bags as fb
import numpy as np
import yaml

from fosp_core.contract import Contract
from fosp_core.data.bag import read_episodes
from fosp_core.data.pack import write_pack
from fosp_core.errors import FospError

LIMIT_S = 20        # a case takes milliseconds; on a loaded machine some more
NUMBERS = [0, 1, 2, 0x7F, 0xFF, 2 ** 15, 2 ** 16, 2 ** 31 - 1, 2 ** 31, 2 ** 32 - 1, 2 ** 63 - 1, 2 ** 63, 2 ** 64 - 1]
# An error that names neither of these would leave the user to search.
PLACE = re.compile(r'stamp -?\d|received at -?\d|byte \d|message \d|first message|metadata\.yaml|labels\.yaml|'
                   r'episodes\.yaml|c\.yaml|/cam|/arm|/cmd|/label|/fosp/|no complete episode|\.db3')
RANGES = 'clock: bag\nepisodes:\n- {start: 0.0, end: 0.35, success: true, policy: teleop}\ncost:\n' \
         '- {start: 0.1, end: 0.2, value: 0.5}\n'


class Hang(BaseException):
    """Took too long; no `except Exception` may swallow it."""


def mutate(rng: np.random.Generator, data: bytes) -> bytes:
    """Change one to three things: bits, numbers, spans cut, doubled, moved or filled, or the end."""
    data = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        n = len(data)
        if n < 2:
            return bytes(data)
        at, kind = int(rng.integers(n)), int(rng.integers(8))
        span = int(min(n - at, 2 ** rng.integers(0, 10)))
        if kind <= 1:
            for _ in range(int(rng.integers(1, 5))):
                data[int(rng.integers(n))] ^= 1 << int(rng.integers(8))
        elif kind == 2:
            size = int(rng.choice([1, 2, 4, 8]))
            number = int(NUMBERS[rng.integers(len(NUMBERS))]) & (2 ** (8 * size) - 1)
            data[at:at + size] = number.to_bytes(size, 'little')
        elif kind == 3:
            del data[at:at + span]
        elif kind == 4:
            data[at:at] = data[at:at + span]
        elif kind == 5:
            data[at:at + span] = rng.integers(0, 256, span, np.uint8).tobytes()
        elif kind == 6:
            other = int(rng.integers(n))
            data[at:at + span] = data[other:other + span]
        else:
            del data[at:]
    return bytes(data)


def section(rng: np.random.Generator, node):
    """A copy of a contract's dict with one value or key replaced by rubbish."""
    rubbish = [None, True, -1, 0, 1.5, float('nan'), '', 'x', '/cmd', [], {}, [1], {'a': 1}, 10 ** 400, ['a', None]]
    paths = []

    def walk(here, path):
        for key in list(here) if isinstance(here, dict) else range(len(here)):
            paths.append((*path, key))
            if isinstance(here[key], (dict, list)):
                walk(here[key], (*path, key))

    node = yaml.safe_load(yaml.safe_dump(node))
    walk(node, ())
    *parents, last = paths[rng.integers(len(paths))]
    owner = node
    for key in parents:
        owner = owner[key]
    value = rubbish[rng.integers(len(rubbish))]
    if isinstance(owner, dict) and rng.integers(3) == 0:
        owner[f'{last}x'] = owner.pop(last)
    else:
        owner[last] = value
    return node


class Fuzz:
    """Cases over bags of every storage; each is made from its number alone."""

    def __init__(self, folder: Path, replay: Path, replay_contract: Contract):
        self.folder = folder
        joy = [['/label', 'joy', fb.START + 100_000_000 * k + 3_000_000,
                fb.joy(fb.START + 100_000_000 * k, [0, k == 2], [k == 0, k == 4, 0])] for k in range(6)]
        self.rows = sorted([*fb.scene(0.6, camera_hz=10.0, pose_hz=20.0), *joy], key=lambda r: r[2])
        labelled = fb.contract({**fb.IMPORT, 'label': {'topic': '/label'}})
        ranged = fb.contract({**fb.IMPORT, 'ranges': 'labels.yaml'})
        base = folder / 'base'
        base.mkdir()
        bags = {'replay': (replay, replay_contract)}
        for name, args in {'mcap': ('mcap',), 'chunks': ('mcap', 'storage'), 'messages': ('mcap', 'message'),
                           'file': ('mcap', 'file'), 'sqlite': ('sqlite3',), 'sqlmsg': ('sqlite3', 'message')}.items():
            bags[name] = fb.write(base / name, self.rows, *args), labelled
        bags['ranges'] = fb.write(base / 'ranges', self.rows), ranged
        (bags['ranges'][0] / 'labels.yaml').write_text(RANGES)
        for name, how in {'lz4': ('LZ4',), 'nochunk': ('NONE', True, False)}.items():
            bags[name] = fb.write_mcap(base / f'{name}.mcap', self.rows, *how), labelled
        self.bags = {name: (path, contract, {p.name: p.read_bytes() for p in
                                             (path.iterdir() if path.is_dir() else [path])})
                     for name, (path, contract) in bags.items()}
        self.names = list(self.bags)
        self.refused = self.taken = 0

    def case(self, number: int) -> None:
        """Make case `number` and judge it."""
        rng = np.random.default_rng([17, number])
        name = self.names[int(rng.integers(len(self.names)))]
        _, contract, files = self.bags[name]
        place = self.folder / f'case{number}'
        kind = int(rng.integers(10))
        if kind == 0:
            data = {**fb.BASE, 'import': {**fb.IMPORT, 'label': {'topic': '/label'}, 'ranges': 'labels.yaml',
                                          'cost': [{'topic': '/label', 'type': 'sensor_msgs/Joy', 'field': 'axes[1]'}],
                                          'tolerance_s': 0.05}}
            path, name, files = None, 'ranges', self.bags['ranges'][2]
            mutated = {'import': section(rng, data['import'])} if rng.integers(4) else {}
            self._judge(number, lambda: Contract.from_dict({**(data if mutated else section(rng, data)), **mutated},
                                                           'c.yaml'), 'c.yaml')
            return
        if kind <= 3 and name != 'replay':
            rows = list(self.rows)
            which = int(rng.integers(len(rows)))
            rows[which] = [*rows[which][:3], mutate(rng, fb.raw(rows[which]))]
            path = fb.write_mcap(place.with_suffix('.mcap'), rows, 'NONE')
            contract = self.bags['mcap'][1]
        elif len(files) == 1:
            path = place.with_suffix('.mcap')
            path.write_bytes(mutate(rng, next(iter(files.values()))))
        else:
            place.mkdir()
            victims = sorted(files, key=lambda n: n.endswith('.yaml'))      # the storage first
            victim = victims[int(rng.integers(len(victims)))] if kind == 4 else victims[0]
            for file, data in files.items():
                (place / file).write_bytes(mutate(rng, data) if file == victim else data)
            path = place
        try:
            self._judge(number, lambda: self._read(path, contract, number % 8 == 0), str(path))
        finally:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)

    def _read(self, path: Path, contract: Contract, pack: bool) -> None:
        if not pack:
            for episode in read_episodes(path, contract):
                episode.validate(contract)
            return
        out = self.folder / 'pack'
        try:
            write_pack(out, contract, read_episodes(path, contract))
        except FospError:
            assert not out.exists(), 'half of a data set was left'
            raise
        finally:
            shutil.rmtree(out, ignore_errors=True)
            left = [p.name for p in self.folder.iterdir() if p.name.startswith('.pack')]
            assert not left, left

    def _judge(self, number: int, run, name: str) -> None:
        def alarm(*_):
            raise Hang(f'case {number} hangs')
        before = signal.signal(signal.SIGALRM, alarm)
        signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
        try:
            run()
            self.taken += 1
        except FospError as error:
            text = str(error)
            assert '\n' not in text and len(text) < 4000, (number, text)
            assert name in text, (number, text)
            assert PLACE.search(text.replace(name, '') if name != 'c.yaml' else text), (number, text)
            self.refused += 1
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
