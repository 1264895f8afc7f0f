# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A scene seen in a mirror: pictures turned left to right, and the fields that the contract names with the other sign.

A robot whose camera stands on the plane of symmetry of its workspace sees a scene that might as well have been: each
recorded episode is then worth two. Only the contract's author can know that, so it is the contract that says it.
"""

import dataclasses

import numpy as np

from fosp_core.contract import Contract
from fosp_core.data.episode import Episode

LEVELS = 12.0       # of 255: SafeReach's is 2 to 5, with the camera turned by four of 64 pixels 23
ENOUGH = 20         # episodes of which a mean picture shows the place and no longer the scenes
_MOST, _FRAMES = 200, 8     # episodes that are looked at, pictures of each


def signs(contract: Contract) -> dict[str, np.ndarray]:
    """Return 1 or -1 for each entry of each vector (n,) and of `action` (A,), float32."""
    specs = {v.name: v.fields for v in contract.vectors} | {'action': contract.action.fields}
    return {name: np.array([-1.0 if f in contract.mirror else 1.0 for f in fields], np.float32)
            for name, fields in specs.items()}


def mirror_rows(batch: dict[str, np.ndarray], rows: np.ndarray, contract: Contract) -> None:
    """Mirror, in place, the windows `rows` (B,) bool of a batch as `Replay.sample` returns it."""
    for camera in contract.cameras:
        batch[camera.name][rows] = batch[camera.name][rows][..., ::-1, :]
    for name, sign in signs(contract).items():
        batch[name][rows] *= sign


def mirrored(episode: Episode, contract: Contract) -> Episode:
    """Return the episode as it would have been in the mirror; labels, stamps and counters are the same."""
    sign = signs(contract)
    return dataclasses.replace(
        episode, images={c.name: np.ascontiguousarray(episode.images[c.name][:, :, ::-1]) for c in contract.cameras},
        vectors={v.name: episode.vectors[v.name] * sign[v.name] for v in contract.vectors},
        action=episode.action * sign['action'])


def doubt(episodes: list[Episode], contract: Contract) -> str:
    """Say which camera's mean picture is not the same in the mirror; empty when all are, or nobody says they are."""
    if not contract.mirror or len(episodes) < ENOUGH:
        return ''
    some = episodes[::-(-len(episodes) // _MOST)]
    for name in (c.name for c in contract.cameras):
        mean = sum(e.images[name][::max(1, len(e) // _FRAMES)].mean(0, np.float32) for e in some) / len(some)
        found = float(np.abs(mean - mean[:, ::-1]).mean())
        if found > LEVELS:
            return (f'contract {contract.name}, key mirror: the mean picture of camera {name} is {found:.0f} of 255 '
                    f'levels from its mirror image, expected at most {LEVELS:.0f}: a camera that does not look along '
                    'the plane of symmetry? Then take the key out, or --set train.mirror=false')
    return ''
