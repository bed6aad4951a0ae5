"""GRPO: a completion is one segment; its advantage is its reward relative to its group (arXiv 2402.03300)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from segpo_core.advantages import group_relative
from segpo_core.algos.base import Method, evenly, judged, rewards_of
from segpo_core.segments import sequence_level
from segpo_core.types import Credit, Rollouts


@dataclass(frozen=True)
class GRPO(Method):
    """Group Relative Policy Optimization."""

    name: ClassVar[str] = "grpo"
    title: ClassVar[str] = "GRPO"

    scale_rewards: Literal["group", "batch", "none"] = "group"
    """Divide the centred reward by the standard deviation of its group, of the batch, or not at all (Dr. GRPO)."""

    def credit(self, rollouts: Rollouts) -> Credit:
        """A_i = (r_i − mean_group) / (std_group + 1e-4), for every token of completion i."""
        rewards, mask = rewards_of(rollouts), rollouts.mask
        penalty = self.reward_kl(rollouts)
        if penalty is not None:  # a penalty in the reward is a property of the completion here: its tokens' sum
            rewards = rewards - self.beta * torch.where(mask, penalty, 0.0).sum(dim=1)
        return Credit(
            advantages=evenly(group_relative(rewards, rollouts.group, self.scale_rewards), rollouts),
            segment_ids=sequence_level(mask),
            loss_mask=judged(rollouts),
            rule="the whole completion",
        )
