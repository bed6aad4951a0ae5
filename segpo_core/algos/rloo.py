"""RLOO: a completion's advantage is its reward minus the mean of its siblings' (arXiv 2402.14740)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from segpo_core.advantages import leave_one_out
from segpo_core.algos.base import Method, evenly, judged, rewards_of
from segpo_core.segments import sequence_level
from segpo_core.types import Credit, Rollouts


@dataclass(frozen=True)
class RLOO(Method):
    """REINFORCE with a leave-one-out baseline."""

    name: ClassVar[str] = "rloo"
    title: ClassVar[str] = "RLOO"

    def credit(self, rollouts: Rollouts) -> Credit:
        """A_i = r_i − mean of the others in the group; unbiased, since a completion is not its own baseline."""
        rewards, mask = rewards_of(rollouts), rollouts.mask
        penalty = self.reward_kl(rollouts)
        if penalty is not None:
            rewards = rewards - self.beta * torch.where(mask, penalty, 0.0).sum(dim=1)
        return Credit(
            advantages=evenly(leave_one_out(rewards, rollouts.group), rollouts),
            segment_ids=sequence_level(mask),
            loss_mask=judged(rollouts),
            rule="the whole completion",
        )
