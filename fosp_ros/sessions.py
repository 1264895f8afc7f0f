# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The trainer's folder on disk: one session per start, with its episodes, jobs and model versions. No rclpy.

WORK_DIR/sessions/<time>/lock             held by the trainer that works here
WORK_DIR/sessions/<time>/episodes/*.npz   kept episodes, oldest removed first
WORK_DIR/sessions/<time>/episodes.unreadable/   those that a resumed trainer could not use
WORK_DIR/sessions/<time>/jobs/<id>/       while it runs: data snapshot and result `bundle`; what stays is
                                          `bundle.refused` with reason.txt, the newest `keep_refused` of them
WORK_DIR/sessions/<time>/models/          BundleStore: versions, `current`, `previous`
"""

import os
import shutil
from pathlib import Path

from fosp_core.contract import Contract
from fosp_core.data.episode import Episode
from fosp_core.data.store import load_episode, save_episode
from fosp_core.deploy.bundle import Bundle
from fosp_core.deploy.bundle_store import BundleStore
from fosp_core.errors import BundleError, DataError, FospError
from fosp_core.io import atomic_dir
from fosp_ros import session_folders


def default_work_dir() -> Path:
    """Per-user cache folder of the trainer."""
    base = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    return Path(base) / 'fosp_ros' / 'trainer'


class Session:
    """Episodes, jobs and models of one start of the trainer; `resume` continues the newest session instead.

    Parameters
    ----------
    work_dir : Path or str
        Holds the sessions.
    contract : Contract
        What episodes and models must be made for; a session whose current model is for another one is not resumed.
    keep : int
        Episodes kept.
    resume : bool
        Continue the newest session.
    keep_sessions : int
        Sessions kept when a new one begins, this one included; those in use stay anyway.
    calibrated : bool
        Do not resume a session whose current model has no usable calibration.
    keep_refused : int
        Refused models kept in the folders of their jobs.

    """

    def __init__(self, work_dir: Path | str, contract: Contract, keep: int, resume: bool = False,
                 keep_sessions: int = 5, calibrated: bool = False, keep_refused: int = 10):
        self._contract, self._keep, self._keep_refused = contract, keep, keep_refused
        self._claim = session_folders.Claim(Path(work_dir) / 'sessions', resume, keep_sessions)
        self.path, self.resumed, self.removed = self._claim.path, self._claim.resumed, self._claim.removed
        self.store = BundleStore(self.models)
        self._steps: dict[Path, int] = {}
        self._number = 0
        self.unreadable: list[str] = []     # why episodes of a resumed session are not used
        try:
            self._open(calibrated)
        except OSError as error:
            self.close()
            raise FospError(f'{self.path}: the work folder cannot be used: {error.strerror}') from None
        except FospError:
            self.close()
            raise

    def _open(self, calibrated: bool) -> None:
        for folder in (self.episodes, self.jobs, self.models):
            folder.mkdir(exist_ok=True)
        if self.store.current_version():
            try:
                Bundle.open(self.models, self._contract, calibrated)
            except BundleError as error:
                raise FospError(f'the session cannot be resumed: {error}; parameter resume = false begins a new one'
                                ) from None
        session_folders.sweep(self.path)
        taken = [int(file.stem) for file in self.path.glob('episodes*/*.npz') if file.stem.isdigit()]
        self._number = max(taken, default=-1) + 1
        for file in sorted(self.episodes.glob('*.npz')):
            try:
                self._steps[file] = len(load_episode(file, self._contract))
            except DataError as error:
                self.unreadable.append(f'{error}; {self._put_away(file, error)}')
        self._prune()

    def _put_away(self, file: Path, error: DataError) -> str:
        """Move an episode that cannot be used out of the way; what the system refused today may be read tomorrow."""
        if isinstance(error.__context__, OSError) and error.__context__.errno is not None:
            return 'left where it is'
        target = self.episodes.with_suffix('.unreadable') / file.name
        try:
            target.parent.mkdir(exist_ok=True)
            file.rename(target)
        except OSError as fault:
            return f'cannot be moved: {fault.strerror}'
        return f'moved to {target.parent.name}/'

    def close(self) -> None:
        """Let another trainer have the session."""
        self._claim.release()

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
            self.forget_data(job)
            raise FospError(f'{folder}: cannot be written: {error.strerror}') from None
        return folder

    def forget_data(self, job: str) -> None:
        """Remove the data snapshot of a finished job and what its worker left half-written; its result stays.

        Of the refused models the oldest beyond the limit go.
        """
        for path in (self.jobs / job / 'episodes', *(self.jobs / job).glob('.*')):
            shutil.rmtree(path, ignore_errors=True)
        refused = sorted(self.jobs.glob('*/bundle.refused'), key=lambda p: (len(p.parent.name), p.parent.name))
        for path in refused[:max(0, len(refused) - self._keep_refused)]:
            shutil.rmtree(path, ignore_errors=True)

    def forget_result(self, job: str) -> None:
        """Remove the result of a job once the store has it."""
        shutil.rmtree(self.jobs / job / 'bundle', ignore_errors=True)

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
