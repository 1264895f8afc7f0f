# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Which episodes a model was trained on: a list of short hashes in its manifest. Standard library and data alone.

An episode is known by its content without stamps and counters, so that packing, splitting, reordering or joining bags
does not hide it. A cut or a relabelled episode is another one.
"""

import base64
from collections.abc import Iterable, Mapping

from fosp_core.data.episode import Episode
from fosp_core.data.store import episode_digest
from fosp_core.errors import BundleError

KEY = 'trained_on'
BYTES = 8           # of each SHA-256: two of a million episodes share them with a probability of 3e-8
MOST = 50_000       # episodes listed; of more, those with the smallest hashes, so that a bag of them still shows


def fingerprint(episode: Episode) -> bytes:
    """Return the first BYTES of an episode's digest."""
    return bytes.fromhex(episode_digest(episode))[:BYTES]


def listing(episodes: Iterable[Episode], earlier: str | None = '') -> str | None:
    """Return the list of these episodes and of an `earlier` list, as text for a manifest.

    None when what came earlier is not known (None): half a list would vouch for episodes that it does not know.
    """
    if earlier is None:
        return None
    known = set(unpacked(earlier, KEY)) | {fingerprint(e) for e in episodes}
    return base64.b64encode(b''.join(sorted(known)[:MOST])).decode()


def known_episodes(manifest: Mapping, where: str) -> frozenset[bytes] | None:
    """Return the fingerprints in a manifest, None when it lists none; raise BundleError when the list is damaged."""
    text = manifest.get(KEY)
    return None if text is None else unpacked(text, where)


def unpacked(text: str, where: str) -> frozenset[bytes]:
    """Return the fingerprints of a list; BundleError when it is none."""
    try:
        data = base64.b64decode(text, validate=True)
    except (TypeError, ValueError):
        data = b'?'
    if len(data) % BYTES:
        raise BundleError(f'{where}: key {KEY} is damaged, expected a list of {BYTES}-byte hashes in base64')
    return frozenset(data[i:i + BYTES] for i in range(0, len(data), BYTES))
