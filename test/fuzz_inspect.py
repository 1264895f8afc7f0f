# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Data sets of every kind with bytes changed at random, and the judgement of what `fosp inspect` makes of them.

HDF5 is not among them: the HDF5 library can hang in itself, where no alarm reaches it.
"""

import contextlib
import io
import json
import shutil
import signal
from pathlib import Path

import cv2
import foreign_bags as fb
import fuzz_bags
import numpy as np
import yaml
from fuzz_bags import Hang, mutate

from fosp_core.cli import main
from fosp_core.data.bag import read_episodes
from fosp_core.data.pack import write_pack
from fosp_core.data.store import save_episode
from fosp_core.formats import detect

LIMIT_S = 60        # reading takes milliseconds, but a loaded machine takes its time for the sheet


class InspectFuzz:
    """Cases over bags, packed folders, .npz and LeRobot folders; each is made from its number alone."""

    def __init__(self, folder: Path, replay: Path, replay_contract):
        (folder / 'bags').mkdir()
        bags = fuzz_bags.Fuzz(folder / 'bags', replay, replay_contract)
        plain, labelled = {**fb.BASE}, {**fb.BASE, 'import': {**fb.IMPORT, 'label': {'topic': '/label'}}}
        ranged = {**fb.BASE, 'import': {**fb.IMPORT, 'ranges': 'labels.yaml'}}
        self.contracts = {}
        for name, data in (('plain', plain), ('labelled', labelled), ('ranged', ranged),
                           ('replay', replay_contract.to_dict())):
            self.contracts[name] = folder / f'{name}.yaml'
            self.contracts[name].write_text(yaml.safe_dump(data))
        self.folder, self.sets = folder, {}
        for name, (path, _, files) in bags.bags.items():
            kind = {'replay': 'replay', 'ranges': 'ranged'}.get(name, 'labelled')
            self.sets[name] = kind, path.suffix, {Path(n): raw for n, raw in files.items()}
        contract = fb.contract()
        episodes = [e for p in range(2) for e in read_episodes(fb.write(folder / f'b{p}', fb.scene(1.0 + p)), contract)]
        write_pack(folder / 'pack', contract, episodes)
        detect.write(folder / 'lerobot', contract, episodes, 'lerobot')
        for i, episode in enumerate(episodes):
            save_episode(folder / 'npz' / f'{i}.npz', episode)
        for name in ('pack', 'lerobot', 'npz'):
            root = folder / name
            self.sets[name] = 'plain', '', {p.relative_to(root): p.read_bytes() for p in sorted(root.rglob('*'))
                                            if p.is_file()}
        self.names = list(self.sets)
        self.codes = {0: 0, 1: 0, 2: 0}

    def case(self, number: int) -> None:
        """Make case `number` and judge it."""
        rng = np.random.default_rng([23, number])
        name = self.names[number % len(self.names)]
        contract, suffix, files = self.sets[name]
        path = self.folder / f'case{number}{suffix}'
        victim = list(files)[int(rng.integers(len(files)))]
        for file, raw in files.items():
            target = path if suffix else path / file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(mutate(rng, raw) if file == victim else raw)
        sheet = self.folder / f'case{number}.png' if number % 4 == 0 else None
        try:
            self.judge(number, path, self.contracts[contract], sheet)
        finally:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            if sheet:
                sheet.unlink(missing_ok=True)

    def judge(self, number: int, path: Path, contract: Path, sheet: Path | None) -> None:
        """Run the command; a traceback, a hang, no JSON, half a sheet, or an error without a place are failures."""
        def alarm(*_):
            raise Hang(f'case {number} hangs')
        out, err = io.StringIO(), io.StringIO()
        before = signal.signal(signal.SIGALRM, alarm)
        signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = main(['inspect', str(path), '--contract', str(contract), '--json', '-',
                             *(['--sheet', str(sheet)] if sheet else [])])
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        self.codes[code] += 1
        assert 'Traceback' not in err.getvalue(), (number, err.getvalue())

        def refuse(constant):
            raise AssertionError((number, f'{constant} in the JSON'))
        result = json.loads(out.getvalue(), parse_constant=refuse)
        assert code == max([0, *({'info': 0, 'warning': 1, 'error': 2}[f['severity']]
                                 for f in result['findings'])]), number
        for finding in result['findings']:
            assert str(path) in finding['where'] and finding['text'] and '\n' not in finding['text'], (number, finding)
        assert sheet is None or cv2.imread(str(sheet)) is not None, number
