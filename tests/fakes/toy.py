"""A small task for tests of the training loop, on any model family, with rewards that vary even for random weights."""

from __future__ import annotations

import zlib

import numpy as np
from PIL import Image


def lucky_text(prompts, completions, **columns) -> list[float]:
    """1 for about half of all texts, whichever they are."""
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [float(zlib.crc32(text.encode("utf-8", "replace")) % 2) for text in texts]


class ToyTask:
    """Endless prompts; every third has no image, every fifth has two, of different size."""

    name = "toy"
    train_size = eval_size = None

    def __init__(self, images: bool = True, reward_funcs=(lucky_text,)):
        self.images, self.reward_funcs = images, list(reward_funcs)

    def train(self, index: int) -> dict:
        count = 0 if not self.images or index % 3 == 2 else 2 if index % 5 == 4 else 1
        pictures = []
        for i in range(count):
            size = (24 + 8 * ((index + i) % 3), 32, 3)
            pictures.append(Image.fromarray(np.random.default_rng([index, i]).integers(0, 256, size, dtype=np.uint8)))
        parts = [{"type": "image"}] * count + [{"type": "text", "text": f"{index} + {'1' * (index % 4)} ="}]
        return {
            "prompt": [{"role": "user", "content": parts}],
            "images": pictures,
            "answer": str(index),
            "id": f"toy/{index}",
            "difficulty": index % 3,
        }

    def eval(self, index: int) -> dict:
        return self.train(10_000 + index)

    def inspect(self, example: dict, text: str) -> dict | None:
        return None
