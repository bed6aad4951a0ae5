"""VinePPO: the value of a reasoning step's state is the mean reward of fresh completions from it (arXiv 2410.01679)."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from segpo_core.advantages import value_difference
from segpo_core.algos.base import Method, rewards_of
from segpo_core.sampling.nodes import Nodes, chain_nodes
from segpo_core.sampling.sharing import MAX_ROWS
from segpo_core.segments import newline, per_segment_pick, spread, starts, step_markers
from segpo_core.types import Credit, Rollouts

if TYPE_CHECKING:
    from segpo_core.policy.inputs import Prompts
    from segpo_core.sampling.chains import RewardOf
    from segpo_core.sampling.sampler import Sampler


@dataclass(frozen=True)
class ChainMethod(Method):
    """Settings of the methods that sample the value of each boundary state of a completion.

    A completion without a boundary is one segment, from the prompt to its reward; so is one of a single token.
    """

    num_continuations: int = 9
    """N: fresh completions sampled from each boundary state."""
    rows_per_batch: int = MAX_ROWS
    """Continuations sampled together; bounds memory, changes nothing else."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_continuations < 1:
            raise ValueError(f"num_continuations is {self.num_continuations}: a value needs at least one")
        if self.rows_per_batch < 1:
            raise ValueError(f"rows_per_batch is {self.rows_per_batch}: it must be at least 1")
        if self.beta > 0 and self.kl_in == "reward":
            raise ValueError(
                f"{self.title} has sampled values of the outcome reward, without KL terms: use kl_in='loss'"
            )

    @property
    def compares_completions(self) -> bool:
        return False

    @property
    def samples_continuations(self) -> bool:
        return True

    @abstractmethod
    def segments(self, rollouts: Rollouts) -> Tensor:
        """long [B, T]: where the boundaries are. Reads only what sampling gave, so that it never changes later."""

    def starts_from_prompt(self, rollouts: Rollouts) -> Tensor:
        """bool [B]: whether the first segment is judged from the prompt's value, or gets 0."""
        return torch.ones_like(rollouts.finished)

    def boundaries(self, rollouts: Rollouts) -> Tensor:
        """bool [B, T]: the tokens before which a value is needed."""
        boundary = starts(self.segments(rollouts))
        boundary[:, 0] &= self.starts_from_prompt(rollouts)
        return boundary

    def estimate(
        self,
        sampler: Sampler,
        prompts: Prompts,
        rollouts: Rollouts,
        reward_of: RewardOf,
        stream: tuple[int, ...],
        first: int,
    ) -> None:
        """V̂(s) for every boundary state s: the mean reward of N completions sampled from it."""
        from segpo_core.sampling.chains import estimate_values  # transformers, which credit needs none of

        s, n = self.boundaries(rollouts), self.num_continuations
        estimate_values(sampler, prompts, rollouts, s, n, reward_of, stream, first, self.rows_per_batch)

    def nodes(self, rollouts: Rollouts) -> Nodes:
        return chain_nodes(rollouts, self.segments(rollouts), self.num_continuations)

    def chain_credit(self, rollouts: Rollouts, rule: str) -> Credit:
        """A_m = V̂(end of segment m) − V̂(its start), for every token of the segment; V̂(the end of all) = r."""
        if rollouts.mc_values is None or rollouts.mc_stderr is None:
            raise ValueError(
                "these rollouts have no sampled state values: they were collected by a method that needs none; "
                "sample continuations first (segpo_core.sampling.chains.estimate_values), or choose another method"
            )
        z = self.segments(rollouts)
        v, error = (per_segment_pick(x, z, starts(z)) for x in (rollouts.mc_values, rollouts.mc_stderr))
        r, known = rewards_of(rollouts), self.starts_from_prompt(rollouts)
        advantages = value_difference(v, r, z, "release", first_is_boundary=known)
        missing = self.boundaries(rollouts) & rollouts.mc_values.isnan()
        return Credit(
            advantages=advantages,
            segment_ids=z,
            loss_mask=rollouts.mask & ~advantages.isnan(),
            rule=rule,
            state_values=spread(v, z),
            state_stderr=spread(error, z),
            metrics={"states_without_value": float(missing.sum())},
        )


@dataclass(frozen=True)
class VinePPO(ChainMethod):
    """VinePPO."""

    name: ClassVar[str] = "vineppo"
    title: ClassVar[str] = "VinePPO"

    steps: Literal["newline", "step markers"] = "newline"
    """What a reasoning step is: a line of text, or what follows the words "Step 1", "Step 2", …"""

    def segments(self, rollouts: Rollouts) -> Tensor:
        cut = newline if self.steps == "newline" else step_markers
        return cut(rollouts.pieces, rollouts.mask)

    def credit(self, rollouts: Rollouts) -> Credit:
        """Every step, whole."""
        return self.chain_credit(rollouts, "a line ends" if self.steps == "newline" else "a step marker")
