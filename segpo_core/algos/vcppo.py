"""VC-PPO, Value-Calibrated PPO (arXiv 2503.01491): PPO whose critic is trained first, and towards whole returns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from segpo_core.advantages import gae, token_rewards
from segpo_core.algos.base import rewards_of, values_of
from segpo_core.algos.ppo import PPO
from segpo_core.types import Credit, Rollouts


@dataclass(frozen=True)
class VCPPO(PPO):
    """Value-Calibrated Proximal Policy Optimization."""

    name: ClassVar[str] = "vcppo"
    title: ClassVar[str] = "VC-PPO"

    lam: float = 0.99
    """GAE's lambda of the advantages."""
    lam_value: float = 1.0
    """Lambda of the critic's targets; 1 is the return itself, which no value of the critic's biases."""
    critic_warmup_steps: int = 50
    """Steps at the start in which only the critic learns, on completions of the policy as it was."""

    def credit(self, rollouts: Rollouts) -> Credit:
        """PPO's advantages; R_t = A_t + V_t with A of `lam_value`."""
        values = values_of(rollouts)
        r = token_rewards(rewards_of(rollouts), rollouts.mask, kl=self.reward_kl(rollouts), kl_coef=self.beta)
        _, returns = gae(r, values, rollouts.mask, self.gamma, self.lam_value)
        return replace(super().credit(rollouts), returns=returns)
