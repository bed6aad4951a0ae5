"""PAPO, Perception-Aware Policy Optimization (arXiv 2507.06448): GRPO, and a term of the loss that drives the policy
away from itself without the image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from segpo_core.algos.base import image_contrast_of
from segpo_core.algos.grpo import GRPO
from segpo_core.types import Credit, Rollouts


@dataclass(frozen=True)
class PAPO(GRPO):
    """Perception-Aware Policy Optimization."""

    name: ClassVar[str] = "papo"
    title: ClassVar[str] = "PAPO"

    away_coef: float = 0.01
    """γ: how much the divergence from the policy that sees the masked image counts in the objective."""
    corruption: Literal["blank", "noise", "mask", "blur", "shuffle", "other"] = "mask"
    """Ĩ: what is done to the images (see corruptions.py)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.away_coef < 0:
            raise ValueError(f"away_coef is {self.away_coef}: it must be 0 or more; a negative one teaches not to look")

    @property
    def uses_image_contrast(self) -> bool:
        return True

    def credit(self, rollouts: Rollouts) -> Credit:
        """GRPO's credit, with log π(y_t | Ĩ, x, y_<t), from which the loss drives away; NaN (not measured) in
        completions without an image."""
        blind = torch.where(rollouts.mask, rollouts.logprobs - image_contrast_of(rollouts), 0.0)
        return replace(super().credit(rollouts), away_logprobs=blind, away_coef=self.away_coef)
