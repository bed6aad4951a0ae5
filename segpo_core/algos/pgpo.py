"""PGPO, Perception-Grounded Policy Optimization (arXiv 2604.01840): an advantage moves to the tokens that hang on the
image, and its sum over the completion stays."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from segpo_core.algos.base import image_contrast_of
from segpo_core.algos.grpo import GRPO
from segpo_core.types import Credit, Rollouts
from segpo_core.weights import grounded_weights, image_k3


@dataclass(frozen=True)
class PGPO(GRPO):
    """Perception-Grounded Policy Optimization."""

    name: ClassVar[str] = "pgpo"
    title: ClassVar[str] = "PGPO"

    tau: float = 0.4
    """τ: the dependency, from 0 to 1 within a completion, above which a token gains."""
    gain: float = 2.0
    """How much more than a token at τ the most dependent one weighs."""
    corruption: Literal["blank", "noise", "mask", "blur", "shuffle", "other"] = "blank"
    """Ĩ: what is done to the images (see corruptions.py)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.tau < 1:
            raise ValueError(f"tau is {self.tau}: a threshold on what lies from 0 to 1 must lie between them")
        if self.gain < 0:
            raise ValueError(f"gain is {self.gain}: it must not be negative, so that more dependent tokens gain")

    @property
    def uses_image_contrast(self) -> bool:
        return True

    def credit(self, rollouts: Rollouts) -> Credit:
        """A_t = w_t · A. Completions without an image are GRPO's."""
        grpo, k3 = super().credit(rollouts), image_k3(image_contrast_of(rollouts))
        w = grounded_weights(k3, rollouts.mask, self.tau, self.gain)
        return replace(grpo, advantages=w * grpo.advantages, weights=w)
