"""The 80/20 rule: only the tokens of highest entropy, where the policy chose, enter the loss (arXiv 2506.01939)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from segpo_core.algos.grpo import GRPO
from segpo_core.types import Credit, Rollouts
from segpo_core.weights import top_entropy


@dataclass(frozen=True)
class EntropyTokens(GRPO):
    """GRPO on high-entropy tokens alone."""

    name: ClassVar[str] = "entropy_tokens"
    title: ClassVar[str] = "80/20 (high-entropy tokens)"

    epsilon_high: float | None = 0.28
    fraction: float = 0.2
    """Share of the batch's tokens, those of highest entropy, that enter the loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction is {self.fraction}: a share of tokens is above 0 and at most 1")

    def credit(self, rollouts: Rollouts) -> Credit:
        """GRPO's advantage; the loss sees the ⌈fraction · n⌉ tokens of highest entropy of the batch."""
        grpo = super().credit(rollouts)
        return replace(grpo, loss_mask=top_entropy(rollouts.entropy, grpo.loss_mask, self.fraction))
