"""Pictures as a person sees them, the same for the model, for the record and for the eye."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps


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
