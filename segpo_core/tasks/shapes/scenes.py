"""Scenes: a few coloured shapes on a 3 x 3 grid, their picture, and the split they belong to."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

CELLS = ("topleft", "top", "topright", "left", "center", "right", "bottomleft", "bottom", "bottomright")
SIZES = ("small", "medium", "large")
COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("circle", "square", "triangle")
ATTRIBUTES: dict[str, tuple[str, ...]] = {"size": SIZES, "colour": COLOURS, "shape": SHAPES}

_RGB = {"red": (214, 48, 49), "green": (39, 160, 72), "blue": (45, 93, 214), "yellow": (240, 190, 20)}
_RADIUS = {"small": 3.0, "medium": 5.0, "large": 7.0}  # in a cell of 16 pixels
_BACKGROUND = (244, 244, 240)
_EVAL_SHARE = 10  # one scene in ten belongs to the eval split


@dataclass(frozen=True)
class Object:
    """One shape of a scene; the field order is the order in which it is written."""

    cell: str
    size: str
    colour: str
    shape: str

    def text(self) -> str:
        return f"{self.cell} {self.size} {self.colour} {self.shape}"


def draw_scene(rng: random.Random, least: int, most: int) -> list[Object]:
    """`least` to `most` objects in reading order, no two in one cell."""
    cells = sorted(rng.sample(range(len(CELLS)), rng.randint(least, most)))
    return [Object(CELLS[c], rng.choice(SIZES), rng.choice(COLOURS), rng.choice(SHAPES)) for c in cells]


def split_of(objects: Sequence[Object]) -> str:
    """ "train" or "eval", by a hash of the scene."""
    digest = hashlib.sha256("|".join(obj.text() for obj in objects).encode()).digest()
    return "eval" if int.from_bytes(digest[:8], "big") % _EVAL_SHARE == 0 else "train"


def render(objects: Sequence[Object], image_size: int = 48) -> Image.Image:
    """The scene as an RGB image of `image_size` x `image_size` pixels; the same scene gives the same pixels."""
    image = Image.new("RGB", (image_size, image_size), _BACKGROUND)
    draw = ImageDraw.Draw(image)
    cell = image_size / 3
    for obj in objects:
        row, column = divmod(CELLS.index(obj.cell), 3)
        # -0.5: pixel centres; a cell of 16 pixels has its middle between the 8th and the 9th
        x, y, r = (column + 0.5) * cell - 0.5, (row + 0.5) * cell - 0.5, _RADIUS[obj.size] * cell / 16
        if obj.shape == "circle":
            draw.ellipse((x - r, y - r, x + r, y + r), fill=_RGB[obj.colour])
        elif obj.shape == "square":
            draw.rectangle((x - r + 0.5, y - r + 0.5, x + r - 0.5, y + r - 0.5), fill=_RGB[obj.colour])
        else:
            draw.polygon(((x, y - r), (x - r, y + r), (x + r, y + r)), fill=_RGB[obj.colour])
    return image
