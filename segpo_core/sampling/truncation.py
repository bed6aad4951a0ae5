"""Which tokens may be drawn at all: TRL's top_k, top_p and min_p, with transformers' meaning and in its order."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Truncation:
    """What is left of a distribution. As it is made by default it leaves out nothing, and is False.

    Raises:
        ValueError: a number that no distribution can be cut by; the setting is named.
    """

    top_p: float = 1.0  #: the most likely tokens that together have this probability; at least one
    top_k: int = 0  #: this many of the most likely tokens, and those as likely as the last; 0: all
    min_p: float | None = None  #: tokens at least this many times as likely as the most likely one; None: all

    def __post_init__(self) -> None:
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}: it is a probability, above 0 and at most 1 (1: all tokens)")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}: it is a number of tokens (0: all)")
        if not 0 <= (self.min_p or 0) <= 1:
            raise ValueError(f"min_p is {self.min_p}: it is a share of the largest probability, from 0 to 1")

    def __bool__(self) -> bool:
        return self.top_p < 1 or self.top_k > 0 or bool(self.min_p)

    def __str__(self) -> str:
        said = {"top_p": self.top_p < 1, "top_k": self.top_k > 0, "min_p": bool(self.min_p)}
        return ", ".join(f"{name} {getattr(self, name):g}" for name, on in said.items() if on)

    def left_out(self, scaled: Tensor) -> Tensor:
        """bool [n, V]: tokens that may not be drawn. `scaled`: float [n, V], logits over the temperature.

        Each rule sees what the one before it has left. Of equally likely tokens at the edge of top_p, the last stay.
        """
        if self.top_k:
            least = scaled.topk(min(self.top_k, scaled.shape[-1]), dim=-1).values[:, -1:]
            scaled = scaled.masked_fill(scaled < least, -torch.inf)
        if self.top_p < 1:
            ascending, order = scaled.sort(dim=-1, stable=True)
            small = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - self.top_p
            small[:, -1] = False
            scaled = scaled.masked_fill(small.scatter(-1, order, small), -torch.inf)
        if self.min_p:
            likely = scaled.softmax(dim=-1)
            scaled = scaled.masked_fill(likely < self.min_p * likely.amax(dim=-1, keepdim=True), -torch.inf)
        return scaled == -torch.inf
