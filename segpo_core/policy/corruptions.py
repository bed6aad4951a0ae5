"""Six ways to spoil an image, to ask what a completion owes to seeing it (the visual dependency of SRPO).

numpy and PIL only. The size never changes, so neither does the number of image tokens; with the same
generator state the result is the same.
"""

import numpy as np
from PIL import Image, ImageFilter

#: blank: the mean colour everywhere; noise: Gaussian noise added; mask: 60 % of the patches in the mean
#: colour; blur: Gaussian blur; shuffle: the patches in random order; other: another prompt's image.
KINDS = ("blank", "noise", "mask", "blur", "shuffle", "other")

MASK_SHARE = 0.6
NOISE_STD = 128.0  # of 255: shapes and colours are lost, the mean stays
GRID = 6  # patches along the shorter side


def corrupt(image: Image.Image, kind: str, rng: np.random.Generator, other: Image.Image | None = None) -> Image.Image:
    """A spoiled copy of `image`, RGB, of the same size.

    Args:
        kind: one of `KINDS`.
        rng: the only source of chance.
        other: another prompt's image, for "other"; resized to the size of `image`.

    Raises:
        ValueError: unknown `kind`, or "other" without `other`.
    """
    image = image.convert("RGB")
    pixels = np.asarray(image, dtype=np.uint8)
    if kind == "blank":
        return Image.new("RGB", image.size, _mean_colour(pixels))
    if kind == "noise":
        noisy = pixels + rng.normal(0.0, NOISE_STD, pixels.shape)
        return Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8))
    if kind == "mask":
        return Image.fromarray(_mask(pixels, rng))
    if kind == "blur":
        return image.filter(ImageFilter.GaussianBlur(max(1.0, min(image.size) / GRID)))
    if kind == "shuffle":
        return Image.fromarray(_shuffle(pixels, rng))
    if kind == "other":
        if other is None:
            raise ValueError('kind="other" needs another prompt\'s image; with a single prompt use another kind')
        return other.convert("RGB").resize(image.size, Image.Resampling.BICUBIC)
    raise ValueError(f"unknown image corruption {kind!r}; use one of {', '.join(KINDS)}")


def _mean_colour(pixels: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = pixels.reshape(-1, 3).mean(axis=0).round().astype(int).tolist()
    return red, green, blue


def _patch(pixels: np.ndarray) -> int:
    """Edge of a patch in pixels."""
    return max(1, min(pixels.shape[:2]) // GRID)


def _mask(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Paint `MASK_SHARE` of the patches in the mean colour; the last row and column may be cut off."""
    height, width = pixels.shape[:2]
    edge = _patch(pixels)
    rows, columns = -(-height // edge), -(-width // edge)
    hidden = np.zeros(rows * columns, dtype=bool)
    hidden[rng.permutation(rows * columns)[: round(MASK_SHARE * rows * columns)]] = True
    cover = hidden.reshape(rows, columns).repeat(edge, axis=0).repeat(edge, axis=1)[:height, :width]
    return np.where(cover[..., None], np.array(_mean_colour(pixels), dtype=np.uint8), pixels)


def _shuffle(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Permute the whole patches; a border narrower than a patch stays."""
    edge = _patch(pixels)
    rows, columns = pixels.shape[0] // edge, pixels.shape[1] // edge
    whole = pixels[: rows * edge, : columns * edge]
    patches = whole.reshape(rows, edge, columns, edge, 3).swapaxes(1, 2).reshape(-1, edge, edge, 3)
    mixed = patches[rng.permutation(len(patches))].reshape(rows, columns, edge, edge, 3).swapaxes(1, 2)
    result = pixels.copy()
    result[: rows * edge, : columns * edge] = mixed.reshape(whole.shape)
    return result
