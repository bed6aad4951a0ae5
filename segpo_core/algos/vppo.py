"""VPPO, Visually-Perceptive Policy Optimization (arXiv 2510.09285): the loss sees the tokens that hang on the image,
and completions that look more weigh more.

What a token owes to the image is k3 = e^Δ − Δ − 1, Δ its log-probability with a masked image minus that with the image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from segpo_core.algos.base import image_contrast_of
from segpo_core.algos.grpo import GRPO
from segpo_core.types import Credit, Rollouts
from segpo_core.weights import image_k3, seeing_completions, seeing_tokens


@dataclass(frozen=True)
class VPPO(GRPO):
    """Visually-Perceptive Policy Optimization."""

    name: ClassVar[str] = "vppo"
    title: ClassVar[str] = "VPPO"

    fraction: float = 0.4
    """Share of a completion's tokens, those of largest k3, that enter the loss."""
    least: float = 0.9
    """Weight of the completion that owes the image least; the mean over the batch is 1."""
    corruption: Literal["blank", "noise", "mask", "blur", "shuffle", "other"] = "mask"
    """Ĩ: what is done to the images (see corruptions.py)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction is {self.fraction}: a share of tokens is above 0 and at most 1")
        if not 0 <= self.least <= 1:
            raise ValueError(f"least is {self.least}: the smallest of weights of mean 1 lies between 0 and 1")

    @property
    def uses_image_contrast(self) -> bool:
        return True

    def credit(self, rollouts: Rollouts) -> Credit:
        """A_t = A · (0.9 + s̃ (β − 0.9)), on the 40 % of tokens of largest k3; s̃ the completion's mean k3, scaled to
        [0, 1] over the batch, and β = 0.9 + 0.1 / mean s̃. Completions without an image are GRPO's."""
        grpo, k3 = super().credit(rollouts), image_k3(image_contrast_of(rollouts))
        w = torch.where(rollouts.mask, seeing_completions(k3, grpo.loss_mask, self.least)[:, None], 0.0)
        return replace(
            grpo,
            advantages=w * grpo.advantages,
            loss_mask=seeing_tokens(k3, grpo.loss_mask, self.fraction),
            weights=w,
        )
