"""Small pictures for cards."""

from __future__ import annotations

import io

from PIL import Image

from segpo_core.record.store import png_bytes

SIDE = 192  #: px of a card's picture, at twice its size on the page


def small_png(data: bytes | None) -> bytes | None:
    """A picture anew, at most `SIDE` px wide and high; None where there is none, or it cannot be read."""
    if data is None:
        return None
    try:
        image = Image.open(io.BytesIO(data))
        image.thumbnail((SIDE, SIDE))
        return png_bytes(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
