"""SAPO, Segment-Aligned Policy Optimization (arXiv 2605.01327).

Reasoning steps, cut at high-entropy tokens, are the unit of value, advantage and importance ratio. (TRL's
`loss_type="sapo"` is another method, Soft Adaptive Policy Optimization.)

Paper and released code differ in where the value of a segment's state is read: the paper before the segment's first
token (`value_at="start"`), the release before its last (`value_at="end"`, with `whiten=True, clamp=5`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from segpo_core.advantages import segment_gae, token_rewards, whiten
from segpo_core.algos.base import CriticMethod, judged, rewards_of, values_of
from segpo_core.losses import Level
from segpo_core.segments import ends, entropy_topk, segment_sum, starts
from segpo_core.types import Credit, Rollouts


@dataclass(frozen=True)
class SAPO(CriticMethod):
    """Segment-Aligned Policy Optimization."""

    name: ClassVar[str] = "sapo"
    title: ClassVar[str] = "SAPO (segment-aligned)"

    epsilon_high: float | None = 0.28
    importance_sampling_level: Level = "segment"
    fraction: float = 0.3
    """k: the share of tokens, those of highest entropy, that end a segment."""
    value_at: Literal["start", "end"] = "start"
    """Read V(s_m) before the segment's first token (paper) or before its last (released code)."""
    whiten: bool = False
    """Whiten advantages over tokens (released code)."""
    clamp: float | None = None
    """Bound on the size of an advantage (released code: 5)."""

    def segments(self, rollouts: Rollouts) -> Tensor:
        """long [B, T], eq. 11: the cut is of the sampling policy, and made once."""
        return entropy_topk(rollouts.entropy, rollouts.mask, self.fraction)

    def credit(self, rollouts: Rollouts) -> Credit:
        """Eq. 6-7: GAE in which one step is one segment; every token of z_m gets Â_m."""
        mask, known, values = rollouts.mask, judged(rollouts), values_of(rollouts)
        z = self.segments(rollouts)
        r = token_rewards(rewards_of(rollouts), mask, kl=self.reward_kl(rollouts), kl_coef=self.beta)
        advantages, returns = segment_gae(r, values, z, self.gamma, self.lam, value_at=self.value_at)
        if self.lam_value is not None:
            _, returns = segment_gae(r, values, z, self.gamma, self.lam_value, value_at=self.value_at)
        if self.whiten:
            advantages = torch.where(known, whiten(advantages, known), advantages)
        if self.clamp is not None:
            advantages = advantages.clamp(-self.clamp, self.clamp)
        boundary = starts(z) if self.value_at == "start" else ends(z)  # eq. 10: the value loss lives here alone
        return Credit(
            advantages=advantages,
            segment_ids=z,
            loss_mask=known,
            rule=f"ends at one of the {self.fraction:.0%} tokens of highest entropy",
            returns=returns,
            value_mask=boundary & known,
            state_values=segment_sum(torch.where(boundary, values, 0), z),
        )
