"""What is sent to the app: read no further than allowed, and of a picture nothing kept but its pixels."""

from __future__ import annotations

import io
import warnings

from fastapi import Request
from PIL import Image, ImageOps, UnidentifiedImageError

from segviz.show.encode import tidy

LARGEST_FILE = 8 * 2**20  #: bytes of a picture
LARGEST_PICTURE = 16_000_000  #: pixels of it, read from its head before anything is decoded
EDGE = 1024  #: pixels along its longer side that are kept
FORMATS = ("PNG", "JPEG", "WEBP")


def decode(data: bytes) -> Image.Image:
    """A picture as pixels and nothing else: RGB, upright, at most `EDGE` along its longer side.

    Raises:
        ValueError: no picture, of another format, too large, or torn; the message says which.
    """
    if not data:
        raise ValueError("The file is empty; choose a picture.")
    if len(data) > LARGEST_FILE:
        raise ValueError(f"The file is larger than {LARGEST_FILE // 2**20} MB; choose a smaller picture.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is stricter
            image = Image.open(io.BytesIO(data), formats=FORMATS)  # reads the head only
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError):
        raise ValueError("This is no picture that can be read; choose a PNG, JPEG or WebP file.") from None
    if image.width * image.height > LARGEST_PICTURE:
        raise ValueError(
            f"The picture has {image.width:,} x {image.height:,} pixels; choose one with at most "
            f"{LARGEST_PICTURE // 10**6} million."
        )
    try:
        image.draft("RGB", (EDGE, EDGE))
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            paper = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(paper, image.convert("RGBA"))
        image = image.convert("RGB")
        image.thumbnail((EDGE, EDGE))
    except (OSError, ValueError, SyntaxError, MemoryError) as error:
        raise ValueError(f"The picture is torn or broken and cannot be decoded: {tidy(str(error))}") from None
    return Image.frombytes("RGB", image.size, image.tobytes())  # whatever else the file said stays behind


async def body(request: Request, most: int, what: str) -> bytes:
    """What was sent; reading ends as soon as it is too much.

    Raises:
        ValueError: it is.
    """
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > most:
            size = f"{most // 2**20} MB" if most >= 2**20 else f"{most // 2**10} KB"
            raise ValueError(f"The {what} is larger than {size}; send a smaller one.")
    return bytes(data)
