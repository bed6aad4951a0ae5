"""SRPO, Structured Role-aware Policy Optimization (arXiv 2605.07274).

A completion has a perception block (visual evidence), a reasoning block (derivation) and an answer. Reward and
advantage A are those of GRPO; how much of A a token gets depends on what its role owes to the image or to the
perception. The paper's abstract fixes what that must respect: weights are positive, so A keeps its sign; the total
weight of a completion is preserved; both roles share one baseline, the completion's own; no second model. The
functional form (exp, tau = 1, clip = 1) is *our reading of the abstract*, and `transform` replaces it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from segpo_core.algos.grpo import GRPO
from segpo_core.segments import OTHER, PERCEPTION, TAGS, role_ids, roles
from segpo_core.types import Credit, Rollouts
from segpo_core.weights import role_weights


@dataclass(frozen=True)
class SRPO(GRPO):
    """Structured Role-aware Policy Optimization."""

    name: ClassVar[str] = "srpo"
    title: ClassVar[str] = "SRPO"

    tau: float = 1.0
    """τ: how far (in nats) a token's contrast must lie from the baseline to count as one unit."""
    clip: float = 1.0
    """c: bound on that number of units; 0 is GRPO."""
    transform: Literal["exp", "sigmoid", "softmax"] = "exp"
    """How units become weights."""
    corruption: Literal["blank", "noise", "mask", "blur", "shuffle", "other"] = "blank"
    """Ĩ: what is done to the images (see corruptions.py)."""
    tags: tuple[str, str, str] = TAGS
    """Names of the tags around perception, reasoning and answer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "tags", tuple(self.tags))  # a configuration file gives a list
        if self.tau <= 0:
            raise ValueError(f"tau is {self.tau}: it must be above 0")
        if not 0 <= self.clip <= 20:
            raise ValueError(f"clip is {self.clip}: it must lie between 0 and 20, beyond which weights leave float32")
        if len(set(self.tags)) != 3:
            raise ValueError(f"tags are {self.tags}: three different names are needed, perception, reasoning, answer")

    @property
    def uses_contrasts(self) -> bool:
        return True

    def credit(self, rollouts: Rollouts) -> Credit:
        """A_t = w_t · A: GRPO's advantage, times the weight of the token's role and contrast."""
        grpo, mask = super().credit(rollouts), rollouts.mask
        d, c = rollouts.perception_contrast, rollouts.reasoning_contrast
        if c is None:
            raise ValueError(
                "these rollouts have no role contrasts: they were collected by a method that needs none; measure them "
                "with segpo_core.policy.contrasts first, or choose another method"
            )
        role, well_formed = role_ids(rollouts.pieces, mask, self.tags)
        # Not measured is not zero: without an image, perception tokens have no say and weight 1, in any batch.
        unseen = (role == PERCEPTION) & (torch.ones_like(mask) if d is None else d.isnan())
        w = role_weights(d, c, role.masked_fill(unseen, OTHER), mask, self.tau, self.clip, self.transform)
        return replace(
            grpo,
            advantages=w * grpo.advantages,
            segment_ids=roles(role, mask),
            rule="the role changes",
            weights=w,
            metrics={
                "srpo/malformed": float((~well_formed).sum()),
                "srpo/no_image": float(unseen.any(dim=1).sum()),
            },
        )
