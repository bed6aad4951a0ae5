"""A task of one's own without pictures, named with its file; see docs/own_things.md.

segpo train --dataset examples/own_words.py:Ordering --dataset-args words 4 --method forks --output-dir runs/ordering
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from segpo_core.tasks.answers import stated_answer

WORDS = "apple bread candle door engine forest garden hammer island jacket kettle ladder mirror needle orange".split()


def order_reward(prompts, completions, answer, **columns) -> list[float]:
    """The share of places that hold the right word."""
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    given = [(stated_answer(text) or "").split() for text in texts]
    right = [a.split() for a in answer]
    return [sum(g == r for g, r in zip(gs, rs, strict=False)) / len(rs) for gs, rs in zip(given, right, strict=True)]


@dataclass(frozen=True)
class Ordering:
    """Words to be put in alphabetical order: as many problems as anybody asks for, each with its own random stream."""

    words: int = 3
    """Words in a problem."""

    name: ClassVar[str] = "ordering"
    train_size: ClassVar[int | None] = None  # without end
    eval_size: ClassVar[int | None] = None
    reward_funcs: list[Callable] = field(default_factory=lambda: [order_reward])

    def train(self, index: int) -> dict[str, Any]:
        """Problem `index`; the same number is the same problem in every run."""
        return self._problem("train", index)

    def eval(self, index: int) -> dict[str, Any]:
        """Held-out problem `index`: its stream has another name."""
        return self._problem("eval", index)

    def inspect(self, example: Mapping[str, Any], text: str) -> dict[str, Any] | None:
        """What is known about a completion: here, whether all is right."""
        right = order_reward([""], [text], answer=[example["answer"]]) == [1.0]
        return {"answer_right": right, "perception_right": None, "reasoning_right": None, "format_right": None}

    def _problem(self, split: str, index: int) -> dict[str, Any]:
        drawn = random.Random(f"{split} {index}").sample(WORDS, self.words)
        ask = f"Put in alphabetical order: {' '.join(drawn)}. Write <answer>the words</answer>."
        return {
            "prompt": [{"role": "user", "content": ask}],
            "images": [],
            "answer": " ".join(sorted(drawn)),
            "id": f"ordering/{split}/{index}",
        }
