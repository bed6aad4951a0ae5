"""Pictures as a person sees them, the same for the model, for the record and for the eye."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

#: Markers of a JPEG: APP1 (Exif, XMP), APP3 to APP13, APP15 and comments.
_METADATA = {0xE1, *range(0xE3, 0xEE), 0xEF, 0xFE}


def as_rgb(image: Image.Image) -> Image.Image:
    """The picture in RGB: turned as its EXIF tag says, transparent parts white, 16 bits scaled to 8. A picture that is
    so already stays the same object.
    """
    if image.mode == "RGB" and "transparency" not in image.info and image.getexif().get(0x0112, 1) == 1:
        return image
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # PNG and TIFF of 16 bits; convert() would cut off what is above 255
        values = np.asarray(image).astype(np.int64)
        if image.mode != "I" or values.max(initial=0) > 255:
            values = values // 257
        image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    image.info = {}  # a transparent colour or a turn that stays there would be applied a second time
    return image


def remember(image: Image.Image, data: bytes) -> Image.Image:
    """The picture, decoded from `data`, in RGB; where decoding a JPEG is all that was done to it, it carries its file,
    so that recording it need not encode it again. What is made from it (a copy, a smaller one) does not carry it.
    """
    seen = as_rgb(image)
    if seen is image and image.format == "JPEG":
        seen.jpeg = without_metadata(data)  # type: ignore[attr-defined]
    return seen


def jpeg_of(image: Image.Image) -> bytes | None:
    """The JPEG file whose pixels these are, where it is known."""
    return getattr(image, "jpeg", None)


def without_metadata(jpeg: bytes) -> bytes:
    """The same pixels without what else a camera wrote into the file: places, names, small previews. APP0, APP2 and
    APP14 stay, as they say how colours are meant."""
    parts, at = [jpeg[:2]], 2
    while at + 4 <= len(jpeg) and jpeg[at] == 0xFF and jpeg[at + 1] != 0xDA:
        marker, end = jpeg[at + 1], at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        if marker not in _METADATA:
            parts.append(jpeg[at:end])
        at = end
    return b"".join([*parts, jpeg[at:]])
