"""Sums: the smallest task that a language model without pictures can learn from rewards."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

#: Before each sum: a small model goes on in its form, and answers at once.
SOLVED = "2 + 2 = 4\n"
_NUMBER = re.compile(r"\d+")


def sum_reward(prompts, completions, answer, **columns) -> list[float]:
    """1.0 where the first number of the text is the answer, else 0.0."""
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    found = [_NUMBER.search(text) for text in texts]
    return [float(number is not None and number.group() == a) for number, a in zip(found, answer, strict=True)]


@dataclass(frozen=True)
class ArithmeticTask:
    """Unlimited sums "7 + 15 =", after one that is solved; what is said is the first number after it.

    A hash of the two numbers, in either order, says to which split a sum belongs: none that is held out is trained on.
    """

    seed: int = 0
    """Another seed gives other sums from the same split."""
    smallest: int = 1
    """Smallest number."""
    largest: int = 20
    """Largest number."""
    name: str = "arithmetic"

    train_size = None
    eval_size = None

    def __post_init__(self) -> None:
        if not 0 <= self.smallest < self.largest:
            raise ValueError(f"smallest={self.smallest}, largest={self.largest}: need 0 <= smallest < largest")
        numbers = range(self.smallest, self.largest + 1)
        if {_split(a, b) for a in numbers for b in numbers} != {"train", "eval"}:
            raise ValueError(f"there are too few sums of {self.smallest} to {self.largest} to hold some out")

    @property
    def reward_funcs(self) -> list[Callable]:
        return [sum_reward]

    def train(self, index: int) -> dict:
        """Training problem `index` (0, 1, 2, ... without end)."""
        return self._example("train", index)

    def eval(self, index: int) -> dict:
        """Held-out problem `index` (0, 1, 2, ... without end)."""
        return self._example("eval", index)

    def inspect(self, example: Mapping, text: str) -> dict:
        """Whether the number said is the sum; a wrong one is the first error, or the end of a text without one."""
        said, answer = _NUMBER.search(text), str(example["answer"])
        right = said is not None and said.group() == answer
        truth = {
            "answer_right": right,
            "format_right": said is not None,
            "said": said and said.group(),
            "first_error": None,
        }
        if not right:
            start, end = said.span() if said else (len(text), len(text))
            why = (
                f"{example['prompt'].removeprefix(SOLVED)} {answer}, not {said.group()}"
                if said
                else "no number is said"
            )
            truth["first_error"] = {"start": start, "end": end, "kind": "reasoning", "why": why}
        return truth

    def asked(self, text: str) -> dict | None:
        """The problem that a text is, of either split; None for any other text."""
        found = re.fullmatch(re.escape(SOLVED) + r"(\d{1,9}) \+ (\d{1,9}) =", text)
        return None if found is None else self._problem(int(found[1]), int(found[2])) | {"id": "asked"}

    def _example(self, split: str, index: int) -> dict:
        rng = random.Random(f"{self.seed}/{split}/{index}")
        while True:
            a, b = rng.randint(self.smallest, self.largest), rng.randint(self.smallest, self.largest)
            if _split(a, b) == split:
                break
        return self._problem(a, b) | {"id": f"{self.name}/{split}/{index}"}

    @staticmethod
    def _problem(a: int, b: int) -> dict:
        return {"prompt": f"{SOLVED}{a} + {b} =", "images": [], "answer": str(a + b)}


def _split(a: int, b: int) -> str:
    """A quarter of all pairs is held out."""
    return "eval" if hashlib.sha256(f"{min(a, b)}+{max(a, b)}".encode()).digest()[0] < 64 else "train"
