# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Episodes on disk as one compressed .npz each, without objects, and their hash. Anyone may import it."""

import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fosp_core.contract import Contract
from fosp_core.data.episode import Episode
from fosp_core.errors import DataError
from fosp_core.io import atomic_write_bytes

_SERIES = ('action', 'reward', 'cost', 'is_first', 'is_last', 'is_terminal', 'stamp', 'step')


def save_episode(path: Path | str, episode: Episode) -> None:
    """Write one episode; the file appears whole or not at all."""
    arrays = {f'image/{k}': v for k, v in episode.images.items()}
    arrays |= {f'vector/{k}': v for k, v in episode.vectors.items()}
    arrays |= {k: getattr(episode, k) for k in _SERIES}
    arrays['meta'] = np.frombuffer(json.dumps(episode.meta).encode(), np.uint8)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    atomic_write_bytes(Path(path), buffer.getvalue())


def load_episode(path: Path | str, contract: Contract | None = None) -> Episode:
    """Read one episode and, given a contract, validate it; raise DataError naming the file."""
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as data:
            images = {k.split('/', 1)[1]: data[k] for k in data.files if k.startswith('image/')}
            vectors = {k.split('/', 1)[1]: data[k] for k in data.files if k.startswith('vector/')}
            episode = Episode(images=images, vectors=vectors, **{k: data[k] for k in _SERIES},
                              meta=json.loads(data['meta'].tobytes()))
    except FileNotFoundError:
        raise DataError(f'{path}: no such episode file') from None
    except KeyError as error:
        raise DataError(f'{path}: {error.args[0]}') from None
    except Exception as error:  # noqa: BLE001 - a damaged file can make the parser raise anything
        raise DataError(f'{path}: not an episode file (truncated or damaged): '
                        f'{" ".join(str(error).split()) or type(error).__name__}') from None
    if contract is not None:
        episode.validate(contract, str(path))
    return episode


def iter_episodes(folder: Path | str, contract: Contract | None = None) -> Iterator[Episode]:
    """Yield the .npz episodes of a folder in name order; raise DataError when there is none."""
    folder = Path(folder)
    files = sorted(folder.glob('*.npz'))
    if not files:
        raise DataError(f'{folder}: no episode files (*.npz)')
    for file in files:
        yield load_episode(file, contract)


def load_episodes(folder: Path | str, contract: Contract | None = None) -> list[Episode]:
    """Read every .npz of a folder in name order; raise DataError when there is none."""
    return list(iter_episodes(folder, contract))


def episode_digest(episode: Episode) -> str:
    """SHA-256 over the arrays of one episode, stamps and counters left out, hex."""
    if episode.digest is not None:
        return episode.digest
    digest = hashlib.sha256()
    for array in (*(episode.images[k] for k in sorted(episode.images)),
                  *(episode.vectors[k] for k in sorted(episode.vectors)),
                  *(getattr(episode, k) for k in _SERIES[:-2])):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def data_hash(episodes: list[Episode]) -> str:
    """SHA-256 over the digests of all episodes, in order, hex; names the data in a bundle."""
    return hash_of_digests([episode_digest(e) for e in episodes])


def hash_of_digests(digests: list[str]) -> str:
    """`data_hash` of the episodes that have these digests."""
    return hashlib.sha256('\n'.join(digests).encode()).hexdigest()
