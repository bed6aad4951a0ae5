"""SPO-tree, Segment Policy Optimization (arXiv 2505.23564): segments branch, and a node's value is its children's mean.

Every node of the tree is a segment and every edge a training sample: what its parent's state is worth is known from
its siblings, without any sampling beside the tree itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from segpo_core.algos.base import Method, rewards_of
from segpo_core.prefix_tree import first_holders
from segpo_core.sampling.nodes import leaf_rewards, node_credit
from segpo_core.sampling.sharing import MAX_ROWS, tree_of
from segpo_core.segments import roles
from segpo_core.types import Credit, Rollouts
from segpo_core.weights import probability_mask

if TYPE_CHECKING:
    from segpo_core.policy.inputs import Prompts
    from segpo_core.sampling.sampler import Sampler


@dataclass(frozen=True)
class SPOTree(Method):
    """Segment Policy Optimization, values from trees."""

    name: ClassVar[str] = "spo_tree"
    title: ClassVar[str] = "SPO-tree"

    branch: tuple[int, ...] = (6, 6, 6)
    """Children of a node at each level. A 1 is allowed: it goes on without a choice, so its advantage is 0."""
    segment_tokens: int = 30
    """Longest segment above the last level, whose segments run to the end of the completion."""
    threshold: float = 0.9
    """ρ: only tokens of a lower probability enter the loss."""
    normalize: bool = False
    """Divide an advantage by the standard deviation of its siblings."""
    rows_per_batch: int = MAX_ROWS
    """Leaves sampled together; bounds memory, changes nothing else."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "branch", tuple(self.branch))  # a configuration file gives a list
        if not self.branch or min(self.branch) < 1 or max(self.branch) < 2:
            raise ValueError(f"branch is {self.branch}: every level needs at least 1 child, and some level 2 or more")
        if self.segment_tokens < 1 or self.rows_per_batch < 1:
            raise ValueError(
                f"segment_tokens {self.segment_tokens} and rows_per_batch {self.rows_per_batch} must be at least 1"
            )
        if not 0 < self.threshold:
            raise ValueError(f"threshold is {self.threshold}: no token has a probability below it")
        if self.beta > 0 and self.kl_in == "reward":
            raise ValueError(f"{self.title} has values of the outcome reward, without KL terms: use kl_in='loss'")

    @property
    def compares_completions(self) -> bool:
        return False

    def completions_per_prompt(self, num_generations: int) -> int:
        """As many as the tree has leaves when none of its segments ends early."""
        return math.prod(self.branch)

    def collect(
        self, sampler: Sampler, prompts: Prompts, num_generations: int, stream: tuple[int, ...], first: int
    ) -> Rollouts:
        """Grow a tree for each prompt; `branch` says how many completions there are, not `num_generations`."""
        from segpo_core.sampling.branches import grow_tree  # transformers, which credit needs none of

        return grow_tree(sampler, prompts, self.branch, self.segment_tokens, stream, first, self.rows_per_batch)

    def of_nodes(self, parent: Tensor, values: Tensor, advantage: Tensor) -> Tensor:
        """Â of every node, float32 [N], from the tree's parents and values; `advantage` is V(n) − V(parent)."""
        return advantage

    def credit(self, rollouts: Rollouts) -> Credit:
        """Â(n) = V(n) − V(parent of n); V of a leaf is its reward, of any other node the mean of its children.

        A leaf without a reward (no verdict) stays out of its tree; what only it holds is assigned nothing.
        """
        if rollouts.node_ids is None:
            raise ValueError(
                "these rollouts are no trees: they were sampled one by one; choose a method for groups, or sample them "
                "with segpo_core.sampling.branches.grow_tree"
            )
        r, mask = rewards_of(rollouts), rollouts.mask
        judged = torch.where(r.isnan()[:, None], -1, rollouts.node_ids)
        tree, node = tree_of(judged, rollouts.group)
        values, errors, advantage = node_credit(tree.parent, leaf_rewards(node, r, len(tree.parent)), self.normalize)
        advantage = self.of_nodes(tree.parent, values, advantage)

        # One more node, of -1, has no number: also where no tree has any other.
        values, errors, advantages = (pad(x, (0, 1), value=torch.nan) for x in (values, errors, advantage))
        assigned, up = advantages[node], pad(tree.parent, (0, 1), value=-1)[node]
        kept = first_holders(node) & (assigned != 0)
        kept &= probability_mask(rollouts.sampled_logprobs.exp(), mask, self.threshold)
        edges = tree.parent >= 0
        tokens = float((tree.end - tree.start).sum())
        return Credit(
            advantages=torch.where(mask, assigned, 0.0),
            segment_ids=roles(rollouts.node_ids, mask),
            loss_mask=kept,
            rule=f"the tree branches, every {self.segment_tokens} tokens",
            state_values=values[up].masked_fill(~mask, 0),
            state_stderr=errors[up].masked_fill(~mask, 0),
            metrics={
                "tree/edges": float(edges.sum()),
                "tree/zero_advantage_edges": float((edges & (advantage == 0)).sum()),
                "tree/tokens": tokens,
                "tree/tokens_per_token_kept": tokens / max(1.0, float(kept.sum())),
            },
        )
