"""PPO: every token is a step; a critic and GAE say what it was worth (arXiv 1707.06347, 1506.02438)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from segpo_core.advantages import gae, token_rewards, whiten
from segpo_core.algos.base import CriticMethod, judged, rewards_of, values_of
from segpo_core.segments import token_level
from segpo_core.types import Credit, Rollouts


@dataclass(frozen=True)
class PPO(CriticMethod):
    """Proximal Policy Optimization."""

    name: ClassVar[str] = "ppo"
    title: ClassVar[str] = "PPO"

    lam: float = 0.95
    cliprange_value: float | None = 0.2
    whiten: bool = True
    """Whiten advantages over the tokens of the batch."""

    def credit(self, rollouts: Rollouts) -> Credit:
        """δ_t = r_t + γ V_{t+1} − V_t;  A_t = Σ (γλ)^l δ_{t+l};  R_t = A_t + V_t."""
        mask, known, values = rollouts.mask, judged(rollouts), values_of(rollouts)
        r = token_rewards(rewards_of(rollouts), mask, kl=self.reward_kl(rollouts), kl_coef=self.beta)
        advantages, returns = gae(r, values, mask, self.gamma, self.lam)
        if self.lam_value is not None:
            _, returns = gae(r, values, mask, self.gamma, self.lam_value)
        if self.whiten:
            advantages = torch.where(known, whiten(advantages, known), advantages)
        return Credit(
            advantages=advantages,
            segment_ids=token_level(mask),
            loss_mask=known,
            rule="every token",
            returns=returns,
            value_mask=known,
            state_values=values,
        )
