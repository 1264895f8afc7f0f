# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The picture sheet of `fosp inspect`: a row of frames from episodes that are spread over the data set. OpenCV."""

from pathlib import Path

import numpy as np

from fosp_core.contract import CameraSpec, Contract
from fosp_core.data.episode import Episode
from fosp_core.io import atomic_write_bytes

_TILE = 128             # height of a frame on the sheet, pixels
_LABEL = 16
_WHITE, _GREY, _RED, _GREEN = (255, 255, 255), (90, 90, 90), (40, 40, 220), (60, 170, 60)     # blue, green, red


class Sheet:
    """Collects frames; holds at most `rows` + `flagged` episodes, each `columns` pictures per camera.

    Episodes with a finding come first; the others are evenly spread, whatever their number: when the rows are full,
    every second one leaves and the stride doubles.
    """

    def __init__(self, contract: Contract, rows: int = 10, flagged: int = 4, columns: int = 8):
        self._contract = contract
        self._rows, self._flagged, self._columns = rows, flagged, columns
        self._kept: list[tuple[str, np.ndarray]] = []
        self._marked: list[tuple[str, np.ndarray]] = []
        self._seen, self._stride = 0, 1

    def add(self, where: str, episode: Episode, found: list[int]) -> None:
        """Take an episode, or pass it by; `found`: records at which a check found something."""
        number, self._seen = self._seen, self._seen + 1
        if found and len(self._marked) < self._flagged:
            shown = ', '.join(map(str, sorted(set(found))[:4]))
            self._marked.append((f'{where}: see record {shown}', self._row(episode, found)))
        elif number % self._stride == 0:
            self._kept.append((where, self._row(episode, [])))
            if len(self._kept) > self._rows:
                self._kept, self._stride = self._kept[::2], 2 * self._stride

    def save(self, path: Path | str) -> int:
        """Write the sheet as PNG, whole or not at all; return the number of episodes on it."""
        import cv2
        rows = self._marked + self._kept
        width = max((row.shape[1] for _, row in rows), default=320)
        parts = [_caption('red frame: cost, green: reward; below: record', width)]
        for where, row in rows:
            parts.append(_caption(_tail(where, width), width))
            parts.append(np.pad(row, ((0, 6), (0, width - row.shape[1]), (0, 0)), constant_values=255))
        good, data = cv2.imencode('.png', np.concatenate(parts))
        assert good
        atomic_write_bytes(path, data.tobytes())
        return len(rows)

    def _row(self, episode: Episode, found: list[int]) -> np.ndarray:
        steps = _spread(episode, self._columns, found)
        return np.concatenate([np.concatenate([_tile(camera, episode, int(t)) for t in steps], axis=1)
                               for camera in self._contract.cameras])


def _spread(episode: Episode, count: int, found: list[int]) -> np.ndarray:
    """Return evenly spread records; up to four findings and the first cost take the places of their neighbours."""
    steps = np.unique(np.linspace(0, len(episode) - 1, count).round().astype(int))
    wanted = [int((episode.cost > 0).argmax())] if (episode.cost > 0).any() else []
    for step in (*wanted, *sorted(set(found))[:4]):
        if step not in steps:
            steps[np.abs(steps - step).argmin()] = step
    return np.sort(steps)


def _tile(camera: CameraSpec, episode: Episode, t: int) -> np.ndarray:
    """Return one frame in OpenCV's channel order with its border and its number."""
    import cv2
    frame = episode.images[camera.name][t]
    if camera.encoding == 'rgb8':
        frame = frame[..., ::-1]
    height, width = frame.shape[:2]
    wide = max(1, round(width * _TILE / height))
    kind = cv2.INTER_NEAREST if height <= _TILE else cv2.INTER_AREA
    frame = cv2.resize(np.ascontiguousarray(frame), (wide, _TILE), interpolation=kind)
    if frame.ndim == 2:
        frame = np.repeat(frame[..., None], 3, axis=2)
    edge = _RED if episode.cost[t] > 0 else _GREEN if episode.reward[t] > 0 else _WHITE
    frame = cv2.copyMakeBorder(frame, 3, 3, 3, 3, cv2.BORDER_CONSTANT, value=edge)
    return np.concatenate([frame, _caption(str(t), frame.shape[1])])


def _caption(text: str, width: int) -> np.ndarray:
    import cv2
    strip = np.full((_LABEL, width, 3), 255, np.uint8)
    cv2.putText(strip, text, (4, _LABEL - 4), cv2.FONT_HERSHEY_SIMPLEX, 0.4, _GREY, 1, cv2.LINE_AA)
    return strip


def _tail(text: str, width: int) -> str:
    """Return what fits of a text, its end rather than its beginning; OpenCV's font knows ASCII alone."""
    text, fits = text.encode('ascii', 'replace').decode(), max(8, width // 7 - 2)
    return text if len(text) <= fits else f'...{text[3 - fits:]}'
