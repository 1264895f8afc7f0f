# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The trainer's folder on disk: one session per start, with its episodes, jobs and model versions. No rclpy.

WORK_DIR/sessions/<time>/episodes/*.npz   kept episodes, oldest removed first
WORK_DIR/sessions/<time>/jobs/<id>/       data snapshot and result: `bundle`, or `bundle.refused` with reason.txt
WORK_DIR/sessions/<time>/models/          BundleStore: versions, `current`, `previous`
"""

import os
import shutil
import time
from pathlib import Path

from fosp_core.contract import Contract
from fosp_core.data.episode import Episode
from fosp_core.data.store import load_episode, save_episode
from fosp_core.deploy.bundle_store import BundleStore
from fosp_core.errors import DataError, FospError
from fosp_core.io import atomic_dir

KEPT_SESSIONS = 5


def default_work_dir() -> Path:
    """Per-user cache folder of the trainer."""
    base = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    return Path(base) / 'fosp_ros' / 'trainer'


class Session:
    """Episodes, jobs and models of one start of the trainer; `resume` continues the newest session instead."""

    def __init__(self, work_dir: Path | str, contract: Contract, keep: int, resume: bool = False):
        self._contract, self._keep = contract, keep
        root = Path(work_dir) / 'sessions'
        there = sorted(p for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
        try:
            if resume and there:
                self.path = there[-1]
            else:
                name = time.strftime('%Y%m%dT%H%M%S')
                self.path = root / f'{name}-{os.getpid()}'
                self.path.mkdir(parents=True)
                for old in there[:max(0, len(there) - KEPT_SESSIONS + 1)]:
                    shutil.rmtree(old, ignore_errors=True)
            for folder in (self.episodes, self.jobs, self.models):
                folder.mkdir(exist_ok=True)
        except OSError as error:
            raise FospError(f'{root}: the work folder cannot be used: {error.strerror}') from None
        self.store = BundleStore(self.models)
        self._steps: dict[Path, int] = {}
        self._number = 0
        self.discarded: list[str] = []  # episode files of a resumed session that could not be read
        for file in sorted(self.episodes.glob('*.npz')):
            self._number = int(file.stem) + 1 if file.stem.isdigit() else self._number
            try:
                self._steps[file] = len(load_episode(file, contract))
            except DataError as error:
                self.discarded.append(str(error))
                file.unlink(missing_ok=True)
        self._prune()

    @property
    def episodes(self) -> Path:
        """Folder of the kept episodes."""
        return self.path / 'episodes'

    @property
    def jobs(self) -> Path:
        """Folder of the jobs."""
        return self.path / 'jobs'

    @property
    def models(self) -> Path:
        """Root of the bundle store."""
        return self.path / 'models'

    @property
    def episode_count(self) -> int:
        """Number of kept episodes."""
        return len(self._steps)

    @property
    def step_count(self) -> int:
        """Number of steps in the kept episodes."""
        return sum(self._steps.values())

    def add(self, episode: Episode) -> Path:
        """Validate and write one episode, then remove the oldest beyond the limit; raise FospError when it cannot."""
        episode.validate(self._contract, f'episode {self._number}')
        path = self.episodes / f'{self._number:06d}.npz'
        save_episode(path, episode)
        self._steps[path] = len(episode)
        self._number += 1
        self._prune()
        return path

    def _prune(self) -> None:
        while len(self._steps) > self._keep:
            oldest = next(iter(self._steps))
            oldest.unlink(missing_ok=True)
            del self._steps[oldest]

    def snapshot(self, job: str) -> Path:
        """Return a folder with hard links to today's episodes: what comes or goes meanwhile cannot touch the job."""
        folder = self.jobs / job / 'episodes'
        try:
            folder.mkdir(parents=True)
            for path in self._steps:
                os.link(path, folder / path.name)
        except OSError as error:
            raise FospError(f'{folder}: cannot be written: {error.strerror}') from None
        return folder

    def forget_data(self, job: str) -> None:
        """Remove the data snapshot of a finished job; its result stays."""
        shutil.rmtree(self.jobs / job / 'episodes', ignore_errors=True)

    def set_aside(self, job: str, reason: str) -> Path:
        """Move a job's bundle that was refused to `bundle.refused/bundle`, its reason beside it; return the folder.

        Raises FospError when it cannot be written.
        """
        bundle = self.jobs / job / 'bundle'
        folder = bundle.with_name('bundle.refused')
        with atomic_dir(folder) as temporary:
            (temporary / 'reason.txt').write_text(reason + '\n')
            if bundle.is_dir():
                os.rename(bundle, temporary / 'bundle')
        return folder
