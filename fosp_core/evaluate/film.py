# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A film of one episode with the risk drawn in: an animated WebP of the camera's pictures. Needs pillow."""

import base64
import io
import math
from collections.abc import Sequence

import numpy as np

from fosp_core.errors import FospError

SIZE = 320          # pixels, width of the film
STRIP = 84          # pixels, height of the risk strip below the picture
INK, PAPER, RISK, LEVEL, CHANGED = (235, 238, 242), (20, 23, 28), (245, 150, 90), (150, 160, 172), (255, 214, 92)
OTHER = (92, 190, 255)      # altered, but not by the risk
FRAMES = 'A yellow frame: the risk changed the command; a blue one: surprise, a limit or a stop did.'


def encode(pictures: Sequence[np.ndarray], risk: Sequence[float], level: float, captions: Sequence[str],
           altered: Sequence[str], period: float = 0.1) -> bytes:
    """Return an endless animated WebP.

    Parameters
    ----------
    pictures
        T pictures, uint8 (H, W, 3), of one size.
    risk
        Risk of the command that was sent, (T,), in [0, 1]; NaN where there was none.
    level
        The calibrated level, drawn as a line.
    captions
        One short line per picture, (T,).
    altered
        By which stage of the filter the command was altered, of `safety.reasons.STAGES`, or empty, (T,).
    period
        Seconds per picture.

    """
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError:
        raise FospError('Python module PIL is not installed; the film needs `pip install pillow`') from None
    font = ImageFont.load_default(14)
    count = len(pictures)
    frames = []

    def point(i: int, value: float) -> tuple[float, float]:
        return 8 + (SIZE - 16) * i / max(count - 1, 1), SIZE + STRIP - 6 - (STRIP - 32) * min(max(value, 0.0), 1.0)
    for i, (picture, caption) in enumerate(zip(pictures, captions)):
        frame = Image.new('RGB', (SIZE, SIZE + STRIP), PAPER)
        frame.paste(Image.fromarray(np.ascontiguousarray(picture)).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
        draw = ImageDraw.Draw(frame)
        mark = CHANGED if altered[i] == 'risk' else OTHER
        if altered[i]:
            draw.rectangle((0, 0, SIZE - 1, SIZE - 1), outline=mark, width=4)
        value = f'risk {risk[i]:.2f}' if math.isfinite(risk[i]) else 'risk -'
        draw.text((8, SIZE + 4), f'{i * period:4.1f} s  {value}', font=font, fill=INK)
        draw.text((SIZE - 8, SIZE + 4), caption, font=font, fill=mark if altered[i] else INK, anchor='ra')
        if math.isfinite(level):
            draw.line((point(0, level), point(count - 1, level)), fill=LEVEL)
        points = [point(k, r) for k, r in enumerate(risk[:i + 1]) if math.isfinite(r)]
        if len(points) > 1:
            draw.line(points, fill=RISK, width=2, joint='curve')
        if points:
            x, y = points[-1]
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=mark if altered[i] else RISK)
        frames.append(frame)
    if not frames:
        raise FospError('no picture was seen: there is nothing to film')
    out = io.BytesIO()
    milliseconds = [round(1000 * period)] * (count - 1) + [1200]
    frames[0].save(out, 'WEBP', save_all=True, append_images=frames[1:], duration=milliseconds, loop=0, quality=70,
                   method=3)
    return out.getvalue()


def image_tag(data: bytes, alt: str) -> str:
    """Return an <img> that carries the film itself."""
    return f'<img alt="{alt}" width="{SIZE}" height="{SIZE + STRIP}" ' \
           f'src="data:image/webp;base64,{base64.b64encode(data).decode()}">'
