"""A task of one's own: what hour does the hand of a drawn clock show? docs/your_task.md goes through it.

python examples/own_task.py --output-dir runs/clock
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image, ImageDraw

from segpo_core.algos import GRPO
from segpo_core.config import TrainConfig
from segpo_core.tasks.rewards import answer_reward
from segpo_core.training.loop import train


@dataclass(frozen=True)
class Clock:
    """A clock with one hand, drawn from `seed` and a number; the answer is the hour, 1 to 9."""

    seed: int = 0
    name: str = field(default="clock", init=False)
    train_size: int | None = field(default=None, init=False)
    eval_size: int | None = field(default=None, init=False)
    reward_funcs: list[Callable] = field(default_factory=lambda: [answer_reward], init=False)

    def train(self, index: int) -> dict[str, Any]:
        return self.problem("train", index)

    def eval(self, index: int) -> dict[str, Any]:
        return self.problem("eval", index)

    def inspect(self, example: Mapping[str, Any], text: str) -> None:
        """What is true of a text is not known here, but for its answer, which the reward judges."""
        return None

    def problem(self, split: str, index: int) -> dict[str, Any]:
        rng = random.Random(f"{self.seed}/{split}/{index}")
        hour, slip = rng.randint(1, 9), rng.uniform(0, 0.1)
        slip *= -1 if split == "train" else 1  # no held-out clock is one to train on
        image = Image.new("RGB", (48, 48), "white")
        pen = ImageDraw.Draw(image)
        pen.ellipse((3, 3, 44, 44), outline="black")
        angle = math.pi * hour / 6 + slip
        pen.line((24, 24, 24 + 17 * math.sin(angle), 24 - 17 * math.cos(angle)), fill="red", width=3)
        question = [{"type": "image"}, {"type": "text", "text": "What does the hand show?"}]
        return {
            "prompt": [{"role": "user", "content": question}],
            "images": [image],
            "answer": str(hour),
            "id": f"clock/{split}/{index}",
        }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", required=True)
    parser.add_argument("--model-name-or-path", default=TrainConfig.model_name_or_path)
    parser.add_argument("--max-steps", type=int, default=2)
    args = parser.parse_args()
    config = TrainConfig(
        method="grpo", algo=GRPO(), output_dir=args.output_dir, max_steps=args.max_steps, dataset="clock",
        model_name_or_path=args.model_name_or_path, per_device_train_batch_size=16, max_completion_length=64,
        learning_rate=1e-4, eval_steps=0,
    )  # fmt: skip
    print("recorded in", train(config, task=Clock()))
