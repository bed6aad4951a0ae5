"""TEMPO: a group is a prefix tree, and where it branches the token that was taken earns its difference in value
(arXiv 2509.18314)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from segpo_core.advantages import group_scale
from segpo_core.algos.base import rewards_of
from segpo_core.algos.grpo import GRPO
from segpo_core.prefix_tree import prefix_values
from segpo_core.segments import roles
from segpo_core.types import Credit, Rollouts


@dataclass(frozen=True)
class TEMPO(GRPO):
    """Tree-Estimated Mean Prefix Value for Policy Optimization."""

    name: ClassVar[str] = "tempo"
    title: ClassVar[str] = "TEMPO"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta > 0 and self.kl_in == "reward":
            raise ValueError(f"{self.title} has values of the outcome reward, without KL terms: use kl_in='loss'")

    def credit(self, rollouts: Rollouts) -> Credit:
        """A_t = (r − mean + V(s_{t+1}) − V(s_t)) / std of the group; V is the mean reward of those that begin so."""
        grpo, mask, rewards = super().credit(rollouts), rollouts.mask, rewards_of(rollouts)
        values, number = prefix_values(rollouts.completion_ids, mask, rewards, rollouts.group)
        step = (
            torch.where(mask, values.diff(dim=1), 0.0)
            / group_scale(rewards, rollouts.group, self.scale_rewards)[:, None]
        )
        branch = mask & (number.diff(dim=1) != 0)
        z = roles(2 * branch.cumsum(1) - branch.long(), mask)  # a branching token stands alone
        # No `state_values`: past the last branch they repeat the own reward, and would look well calibrated.
        return replace(
            grpo,
            advantages=grpo.advantages + step,
            segment_ids=z,
            rule="the group's completions part",
            metrics={"tempo/branching_tokens": float(branch.sum())},
        )
