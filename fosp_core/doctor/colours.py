# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Suspicion that red and blue are swapped. A guess from mean colours: it is never more than a suspicion.

Pictures alone do not tell the order of their channels: a red cup in rgb is a blue one in bgr, and both exist. So the
statistic is the mean colour against a *reference of the same scene*: colours of SafeReach's renderer, or of a data set
that the user trusts (`--reference`). Compared are chromaticities (each channel over the sum of the three), so that a
dimmer lamp does not matter. Swapping moves a chromaticity (r, g, b) to (b, g, r): by sqrt(2) |r - b|. We suspect when
the swapped colour lies at least three times as near to the reference as the unswapped one, and the reference itself is
coloured enough, |r - b| of 0.01 or more, for the two to be told apart. Over 600 episodes of SafeReach r - b is -0.039
on average and deviates by 0.002 from one episode to the next (`fosp inspect BAG --json -`, key `cameras`), so a swap
lies 30 deviations away.
"""

from collections.abc import Iterator

import numpy as np

from fosp_core.contract import Contract
from fosp_core.doctor.totals import Totals

# Contract -> camera -> mean red, green, blue of its scene. SafeReach: `fosp collect --episodes 600`, 27,467 pictures.
KNOWN = {'safereach': {'image': (45.9, 50.1, 51.6)}}
_LEAST = 0.01       # |r - b| below which a scene is too grey to say


def chromaticity(colour) -> np.ndarray:
    """Each channel over the sum of the three."""
    colour = np.asarray(colour, np.float64)
    return colour / max(colour.sum(), 1e-9)


def in_rgb(colour, encoding: str) -> np.ndarray:
    """Channels in the order red, green, blue, as a camera of `encoding` claims to have them."""
    return np.asarray(colour, np.float64)[::-1] if encoding == 'bgr8' else np.asarray(colour, np.float64)


def of_totals(totals: Totals) -> dict[str, tuple]:
    """Reference colours from a data set that is trusted."""
    return {c.name: tuple(in_rgb(totals.cameras[c.name].colour, c.encoding)) for c in totals.contract.cameras
            if c.encoding != 'mono8'}


def swapped(totals: Totals, contract: Contract, references: dict | None) -> Iterator[str]:
    """Yield a text for each camera whose mean colour fits the reference only with red and blue swapped."""
    references = KNOWN.get(contract.name, {}) if references is None else references
    for camera in contract.cameras:
        colour = totals.cameras[camera.name].colour
        if camera.encoding == 'mono8' or camera.name not in references or not colour.any():
            continue
        seen, known = chromaticity(in_rgb(colour, camera.encoding)), chromaticity(references[camera.name])
        if abs(known[0] - known[2]) < _LEAST:
            continue
        as_is, if_swapped = np.linalg.norm(seen - known), np.linalg.norm(seen[::-1] - known)
        if if_swapped < as_is / 3:
            yield (f'camera {camera.name}: suspicion that red and blue are swapped: mean colour '
                   f'{_text(in_rgb(colour, camera.encoding))}, reference {_text(references[camera.name])} '
                   '(red, green, blue)')


def mixed_orders(totals: Totals, contract: Contract) -> Iterator[str]:
    """Yield a text for each camera of which a minority of episodes mirrors the colours of the majority."""
    for camera in contract.cameras:
        warmth = np.array(totals.cameras[camera.name].warmth)
        known = np.flatnonzero(np.isfinite(warmth))
        if len(known) < 2:
            continue
        middle = float(np.median(warmth[known]))
        if abs(middle) < _LEAST:
            continue
        mirrored = known[np.abs(warmth[known] + middle) < np.abs(warmth[known] - middle) / 3]
        if len(mirrored):
            some = ', '.join(map(str, mirrored[:5]))
            yield (f'camera {camera.name}: suspicion that red and blue are swapped in {len(mirrored)} of {len(known)} '
                   f'episodes: number {some}{", ..." if len(mirrored) > 5 else ""} in the order read')


def _text(colour) -> str:
    return ', '.join(f'{v:.0f}' for v in colour)
