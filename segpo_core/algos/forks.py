"""Fork values: the completions of a prompt are a tree whose branch probabilities are known, so values are computed.

    V(s) = Σ_c π(c|s) V(sc) + (1 − Σ_c π(c|s)) V_off(s)        A_t = V(s_{t+1}) − V(s_t)

over the children c that the group's completions hold after state s; a completion's end is worth its reward. Only what
the tree does not hold is sampled, and only where it could matter: V_off is the mean reward of ⌈N · open⌉ continuations
that begin with none of the children, in states whose open probability 1 − Σ π exceeds `least_open`.

The nearest published relatives count where this computes: TEMPO (arXiv 2509.18314) takes the mean reward of the
group's completions that begin with a prefix, TreeRL (arXiv 2506.11902) and SPO-tree (arXiv 2505.23564) that of a
sampled tree's leaves, VinePPO (arXiv 2410.01679) samples every state anew. docs/methods/forks.md compares them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from segpo_core.algos.base import rewards_of
from segpo_core.algos.vineppo import ChainMethod
from segpo_core.prefix_tree import PrefixTree, off_estimate, prefix_tree, roots, tree_values
from segpo_core.sampling.nodes import Nodes, chain_nodes
from segpo_core.segments import segment_mean, segments_from_starts, token_level
from segpo_core.types import Credit, Rollouts

if TYPE_CHECKING:
    from segpo_core.policy.inputs import Prompts
    from segpo_core.sampling.chains import RewardOf
    from segpo_core.sampling.sampler import Sampler


@dataclass(frozen=True)
class Forks(ChainMethod):
    """Fork values: values of the group's own prefix tree, from exact branch probabilities."""

    name: ClassVar[str] = "forks"
    title: ClassVar[str] = "Fork values"

    num_continuations: int = 8
    """N: a state is sampled on from ⌈N · open⌉ times, where open is the probability that the tree does not hold."""
    least_open: float = 0.05
    """ε: states with a smaller open probability are not sampled; what is open there is taken to be as the children."""
    reading: Literal["token", "segment"] = "token"
    """Credit a token, or a segment: the mean over its tokens, segments beginning at decisions."""
    bound: float = 0.05
    """A decision is a token with |A| above this, or one before which more than this probability is open."""
    mask: bool = False
    """Only decisions enter the loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.least_open < 1:
            raise ValueError(f"least_open is {self.least_open}: it is a probability, from 0 to below 1")
        if self.bound < 0:
            raise ValueError(f"bound is {self.bound}: it must not be negative")
        if self.reading not in ("token", "segment"):
            raise ValueError(f"reading must be 'token' or 'segment', got {self.reading!r}")

    def tree(self, rollouts: Rollouts) -> PrefixTree:
        """The prefix trees of the groups, with probabilities as sampled: of what top_p and its kin have left."""
        drawn = rollouts.sampled_logprobs if rollouts.engine_logprobs is None else rollouts.engine_logprobs
        return prefix_tree(rollouts.completion_ids, rollouts.mask, rollouts.group, drawn, rewards_of(rollouts))

    def segments(self, rollouts: Rollouts) -> Tensor:
        """Where the record's nodes end: at states that branch or are open, the same in all that share them."""
        tree = self.tree(rollouts)
        forks = (tree.children > 1) | (tree.open > self.least_open)
        return segments_from_starts(_at(forks, tree.before, False), rollouts.mask)

    def drawn(self, tree: PrefixTree) -> Tensor:
        """long [N]: continuations that begin in each state, ⌈N · open⌉ where more than ε is open, else 0."""
        number = (self.num_continuations * tree.open - 1e-9).ceil().long().clamp(min=1)
        return torch.where(tree.open > self.least_open, number, 0)

    def nodes(self, rollouts: Rollouts) -> Nodes:
        tree = self.tree(rollouts)
        return chain_nodes(rollouts, self.segments(rollouts), _at(self.drawn(tree), tree.before, 0))

    def boundaries(self, rollouts: Rollouts) -> Tensor:
        return rollouts.mask & ~rewards_of(rollouts).isnan()[:, None]

    def estimate(
        self,
        sampler: Sampler,
        prompts: Prompts,
        rollouts: Rollouts,
        reward_of: RewardOf,
        stream: tuple[int, ...],
        first: int,
    ) -> None:
        """V and its standard error in every state of the tree, from V_off where that is worth sampling."""
        from segpo_core.sampling.chains import sampled_rewards

        tree = self.tree(rollouts)
        off = variance = torch.full_like(tree.prob, torch.nan)
        wanted = self.drawn(tree).nonzero()[:, 0]
        if len(wanted):
            wanted = wanted[tree.length[wanted].argsort(stable=True)]
            place = torch.full_like(tree.parent, -1)
            place[wanted] = torch.arange(len(wanted), device=wanted.device)
            held = ((tree.parent >= 0) & (place[tree.parent.clamp(min=0)] >= 0)).nonzero()[:, 0]
            tokens = rollouts.completion_ids[tree.row[held], tree.length[held] - 1]
            number = self.drawn(tree)[wanted]
            prefix, rewards = sampled_rewards(
                sampler, prompts, rollouts, tree.row[wanted], tree.length[wanted], number, reward_of, stream, first,
                self.rows_per_batch, (place[tree.parent[held]], tokens),
            )  # fmt: skip
            off, variance = off_estimate(rewards, wanted[prefix], roots(tree), tree)
        values, variance = tree_values(tree, off, variance)
        rollouts.mc_values = _at(values.float(), tree.before, torch.nan)
        rollouts.mc_stderr = _at(variance.sqrt().float(), tree.before, torch.nan)

    def credit(self, rollouts: Rollouts) -> Credit:
        """A_t = V(s_{t+1}) − V(s_t), the last state being worth the reward."""
        if rollouts.mc_values is None:
            raise ValueError(
                "these rollouts have no fork values: they were collected by another method; let segpo_core.algos.forks "
                "sample what is missing (Forks.estimate), or choose another method"
            )
        mask, tree, r = rollouts.mask, self.tree(rollouts), rewards_of(rollouts)
        last = mask & ~pad(mask[:, 1:], (0, 1))
        after = torch.where(last, r[:, None], pad(rollouts.mc_values[:, 1:], (0, 1)))
        advantages = torch.where(mask, after - rollouts.mc_values, 0)
        advantages = advantages.masked_fill(mask & r.isnan()[:, None], torch.nan)  # no verdict, nothing to teach
        open_ = _at(tree.open.float(), tree.before, 0.0)
        decision = mask & ((advantages.abs() > self.bound) | (open_ > self.bound))
        z = token_level(mask)
        if self.reading == "segment":
            z = segments_from_starts(decision, mask)
            advantages = torch.where(mask, segment_mean(advantages, z), 0)
        sampled = tree.open > self.least_open
        return Credit(
            advantages=advantages,
            segment_ids=z,
            loss_mask=mask & ~advantages.isnan() & (decision if self.mask else mask),
            rule="every token" if self.reading == "token" else f"something worth {self.bound:g} is decided",
            state_values=torch.where(mask, rollouts.mc_values, 0),
            state_stderr=None if rollouts.mc_stderr is None else torch.where(mask, rollouts.mc_stderr, 0),
            metrics={
                "forks/states": float(len(tree.parent)),
                "forks/states_sampled": float(sampled.sum()),
                "forks/decisions": float(decision.sum() / mask.sum().clamp(min=1)),
            },
        )


def _at(values: Tensor, states: Tensor, fill: float) -> Tensor:
    """[N] to [B, T]: the value of each token's state, `fill` where it has none."""
    return torch.where(states >= 0, values[states.clamp(min=0)], fill)
