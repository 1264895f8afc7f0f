# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The versions of one model on a disk, of which one is in force. Anyone may import it."""

import contextlib
import os
import shutil
from pathlib import Path

from fosp_core.deploy.bundle import MANIFEST, Bundle, is_word, read_manifest
from fosp_core.errors import BundleError
from fosp_core.io import sync_dir


class BundleStore:
    """The versions of one model below a root directory, with the links `current` and `previous`.

    A link is replaced by a rename, so that whatever moment the machine stops at, `current` names a whole bundle.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    def put(self, bundle: Bundle | bytes) -> Bundle:
        """Store a bundle, or its packed bytes, as `root/<version>`; `current` stays as it is."""
        return Bundle.unpack(bundle if isinstance(bundle, bytes) else bundle.to_bytes(), self.root)

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
        return self._linked('current')

    def previous(self) -> Bundle | None:
        """Return the bundle that was in force before, else the parent of the current one, else None."""
        current, previous = self.current(), self._linked('previous')
        if previous is not None and (current is None or previous.version != current.version):
            return previous
        parent = current.manifest['parent'] if current is not None else None
        return self.open(parent) if parent in self.versions() else None

    def set_current(self, version: str) -> Bundle:
        """Verify a stored version and make it the current one."""
        bundle, current = self.open(version), Bundle.open_or_none(self.root / 'current')
        if current is not None and current.version != bundle.version:
            self._link('previous', current.version)
        self._link('current', version)
        return bundle

    def prune(self, keep: int) -> list[str]:
        """Delete the oldest versions beyond `keep`, never the current or the previous one; return their names."""
        kept = {os.readlink(self.root / link) for link in ('current', 'previous') if (self.root / link).is_symlink()}
        versions = self.versions()
        gone = [version for version in versions[:max(0, len(versions) - keep)] if version not in kept]
        for version in gone:
            doomed = self.root / f'.gone-{version}'
            os.rename(self.root / version, doomed)  # one step: a version is listed whole or not at all
            shutil.rmtree(doomed)
        return gone

    def _linked(self, link: str) -> Bundle | None:
        path = self.root / link
        return Bundle.open(path) if path.is_symlink() and path.exists() else None

    def _link(self, link: str, version: str) -> None:
        temporary = self.root / f'.{link}-{os.getpid()}'
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        temporary.symlink_to(version)
        os.replace(temporary, self.root / link)
        sync_dir(self.root)
