# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The versions of one model on a disk, of which one is in force. Anyone may import it."""

import contextlib
import os
import shutil
from pathlib import Path

from fosp_core.deploy.bundle import MANIFEST, Bundle, is_word, read_manifest
from fosp_core.errors import BundleError, FospError
from fosp_core.io import atomic_write_bytes, sync_dir

LEFT = 'rolled_back'    # file in the root: the versions that were left for an earlier one, a line each


class BundleStore:
    """The versions of one model below a root directory, with the links `current` and `previous`.

    A link is replaced by a rename, so that whatever moment the machine stops at, `current` names a whole bundle.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self._left: set[str] = set()    # what the disk may not have taken
        self._unwritten = ''            # the version in force when the disk could not be told

    def put(self, bundle: Bundle | bytes) -> Bundle:
        """Store a bundle, or its packed bytes, as `root/<version>`; `current` stays as it is."""
        try:
            return Bundle.unpack(bundle if isinstance(bundle, bytes) else bundle.to_bytes(), self.root)
        except OSError as error:
            raise BundleError(f'{self.root}: cannot be written: {error.strerror}') from None

    def versions(self) -> list[str]:
        """Return the stored versions, oldest first (by the manifest's `created`)."""
        found = []
        for entry in self.root.iterdir() if self.root.is_dir() else ():
            if entry.is_symlink() or not (entry / MANIFEST).is_file() or not is_word(entry.name):
                continue
            with contextlib.suppress(BundleError):
                found.append((read_manifest(entry)['created'], entry.name))
        return [name for _, name in sorted(found)]

    def open(self, version: str) -> Bundle:
        """Open one stored version."""
        if not is_word(version):
            raise BundleError(f'{self.root}: {version!r} is not a version word')
        return Bundle.open(self.root / version)

    def current(self) -> Bundle | None:
        """Return the bundle in force, or None when none was ever chosen."""
        return self.open(self._unwritten) if self._unwritten else self._linked('current')

    def current_version(self) -> str:
        """Return the word of the version in force without opening it; empty when none was ever chosen."""
        link = self.root / 'current'
        return self._unwritten or (link.resolve().name if link.is_symlink() and link.exists() else '')

    def previous(self) -> Bundle | None:
        """Return what a rollback goes to, or None when there is nothing.

        That is the nearest ancestor of the current bundle which is stored, else the one that was in force before; never
        one that was itself rolled back.
        """
        current, left, versions = self.current(), self.rolled_back(), self.versions()
        if current is None:
            return self._linked('previous')
        passed, parent = {current.version}, current.manifest['parent']
        while parent in versions and parent not in passed:
            if parent not in left:
                return self.open(parent)
            passed.add(parent)
            parent = read_manifest(self.root / parent)['parent']
        previous = self._linked('previous')
        return None if previous is None or previous.version in passed | left else previous

    def rolled_back(self) -> set[str]:
        """Return the versions that were left by `roll_back`."""
        with contextlib.suppress(OSError, ValueError):
            return self._left | set((self.root / LEFT).read_text().split())
        return set(self._left)

    @property
    def unwritten(self) -> bool:
        """Whether a version is in force that the disk could not be told of."""
        return bool(self._unwritten)

    def set_current(self, version: str) -> Bundle:
        """Verify a stored version and make it the current one."""
        bundle, current = self.open(version), Bundle.open_or_none(self.root / self.current_version())
        if current is not None and current.version != version:
            self._link('previous', current.version)
        self._link('current', version)
        self._unwritten = ''
        return bundle

    def roll_back(self, version: str) -> Bundle:
        """Verify a stored version and make it the current one; what it replaces is never rolled back to.

        With a BundleError that comes of writing, the choice holds all the same for as long as this object lives:
        `current` says which.
        """
        bundle, current = self.open(version), self.current_version()
        if current not in ('', version):
            self._left.add(current)
        self._unwritten, trouble = version, None
        try:
            atomic_write_bytes(self.root / LEFT, ''.join(f'{v}\n' for v in sorted(self.rolled_back())).encode())
        except FospError as error:
            trouble = BundleError(str(error))
        self._link('current', version)
        self._unwritten = ''
        if trouble is not None:
            raise trouble
        return bundle

    def prune(self, keep: int) -> list[str]:
        """Delete the oldest versions beyond `keep`, never the current one nor what a rollback goes to.

        Returns the deleted ones; raises BundleError when one cannot be deleted.
        """
        previous = self.previous()
        kept = {self.current_version(), previous.version if previous else ''}
        kept |= {os.readlink(self.root / link) for link in ('current', 'previous') if (self.root / link).is_symlink()}
        versions = self.versions()
        gone = [version for version in versions[:max(0, len(versions) - keep)] if version not in kept]
        try:
            for version in gone:
                doomed = self.root / f'.gone-{version}'
                os.rename(self.root / version, doomed)  # one step: a version is listed whole or not at all
                shutil.rmtree(doomed)
        except OSError as error:
            raise BundleError(f'{self.root}: an old version cannot be removed: {error.strerror}') from None
        return gone

    def _linked(self, link: str) -> Bundle | None:
        path = self.root / link
        return Bundle.open(path) if path.is_symlink() and path.exists() else None

    def _link(self, link: str, version: str) -> None:
        temporary = self.root / f'.{link}-{os.getpid()}'
        try:
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(version)
            os.replace(temporary, self.root / link)
            sync_dir(self.root)
        except OSError as error:
            raise BundleError(f'{self.root / link}: cannot be written: {error.strerror}') from None
