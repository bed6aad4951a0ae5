"""What every method has: its loss settings, how it collects, and `credit`, the one function that makes it a method.

A method answers five questions (what is a segment, where do values come from, how does reward become an advantage,
how is credit spread, at which level is the ratio taken). Each answer is a function of the maths files; a method file
puts five of them together. To write another one, subclass `Method`, give it a `name` and a `credit`, and pass an
instance to `segpo_core.training.loop.train`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from segpo_core import losses
from segpo_core.losses import Level, LossType
from segpo_core.sampling.nodes import Nodes, tree_nodes
from segpo_core.types import Credit, Rollouts

if TYPE_CHECKING:
    from segpo_core.policy.inputs import Prompts
    from segpo_core.sampling.chains import RewardOf
    from segpo_core.sampling.sampler import Sampler


@dataclass(frozen=True)
class Method(ABC):
    """Settings that every method has."""

    name: ClassVar[str]
    """What `--method` calls it."""
    title: ClassVar[str]
    """What a person reads."""

    epsilon: float = 0.2
    """Lower clip range of the importance ratio."""
    epsilon_high: float | None = None
    """Upper clip range; None: the same as epsilon."""
    delta: float | None = None
    """Dual clip: where the advantage is negative, the loss of a token is at most delta times its size."""
    loss_type: LossType = "token-mean"
    """How token losses become one number. TRL's names: token-mean is dapo, seq-mean-token-mean is grpo,
    seq-mean-token-sum-norm is dr_grpo."""
    importance_sampling_level: Level = "token"
    """One importance ratio a token, a segment (geometric mean) or a completion (geometric mean)."""
    beta: float = 0.0
    """Coefficient of the KL divergence from the reference model; 0 loads no reference."""
    kl_estimator: Literal["k1", "k2", "k3"] | None = None
    """How the divergence is estimated from sampled tokens; None: k3 in the loss, k1 in the reward, where the value of
    the estimate is what teaches (k3's has next to none of k1's gradient there, and may point the other way)."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Where the divergence enters: added to the loss, or taken off each token's reward."""

    def __post_init__(self) -> None:
        if self.epsilon < 0 or (self.epsilon_high or 0) < 0:
            raise ValueError(f"epsilon {self.epsilon} and epsilon_high {self.epsilon_high} must not be negative")
        if self.beta < 0:
            raise ValueError(f"beta is {self.beta}: a KL coefficient must not be negative (0 turns it off)")

    @property
    def estimator(self) -> Literal["k1", "k2", "k3"]:
        """`kl_estimator`, or its default for where the divergence enters."""
        return self.kl_estimator or ("k1" if self.kl_in == "reward" else "k3")

    @property
    def uses_critic(self) -> bool:
        """Whether the method reads `Rollouts.values`."""
        return False

    @property
    def uses_contrasts(self) -> bool:
        """Whether the method reads `Rollouts.perception_contrast` and `Rollouts.reasoning_contrast`."""
        return False

    @property
    def uses_image_contrast(self) -> bool:
        """Whether the method reads `Rollouts.perception_contrast` at every token; it then has a `corruption`."""
        return False

    @property
    def compares_completions(self) -> bool:
        """Whether the method compares the completions of one prompt, and so needs at least two."""
        return not self.uses_critic

    @property
    def samples_continuations(self) -> bool:
        """Whether the method samples on from the middle of completions: not every model can be taken up there."""
        return False

    def completions_per_prompt(self, num_generations: int) -> int:
        """The most completions that `collect` gives for one prompt."""
        return num_generations

    def collect(
        self, sampler: Sampler, prompts: Prompts, num_generations: int, stream: tuple[int, ...], first: int
    ) -> Rollouts:
        """Sample completions: here, a group for each prompt. Arguments as `Sampler.groups`."""
        return sampler.groups(prompts, num_generations, stream, first)

    def estimate(  # noqa: B027  most methods sample nothing more
        self,
        sampler: Sampler,
        prompts: Prompts,
        rollouts: Rollouts,
        reward_of: RewardOf,
        stream: tuple[int, ...],
        first: int,
    ) -> None:
        """Fill in what takes further samples, once the rewards are there. Here: nothing. Other arguments as `collect`.

        Args:
            rollouts: with rewards; filled in place.
            reward_of: (prompt of each text, texts) -> rewards, NaN for no verdict.
        """

    @abstractmethod
    def credit(self, rollouts: Rollouts) -> Credit:
        """Who earned what. Pure: it reads the rollouts and nothing else."""

    def nodes(self, rollouts: Rollouts) -> Nodes | None:
        """The states whose values the method sampled, for the record; None where it sampled none."""
        return None if rollouts.node_ids is None else tree_nodes(rollouts)

    def reward_kl(self, rollouts: Rollouts) -> Tensor | None:
        """float32 [B, T], the divergence that, times `beta`, is taken off each token's reward; else None."""
        if self.kl_in != "reward" or self.beta == 0 or rollouts.ref_logprobs is None:
            return None
        return losses.kl(rollouts.logprobs, rollouts.ref_logprobs, self.estimator)


@dataclass(frozen=True)
class CriticMethod(Method):
    """Settings of the methods that learn values."""

    critic: Literal["head", "model"] = "head"
    """Value head on the policy's own backbone, or a critic with a backbone of its own; with LoRA, an adapter of its own
    on the policy's frozen weights."""
    gamma: float = 1.0
    """Discount per step (token or segment)."""
    lam: float = 0.99
    """GAE's lambda, of the advantages."""
    lam_value: float | None = None
    """GAE's lambda of what the critic learns (VC-PPO, arXiv 2503.01491, takes 1: the return itself); None: lam."""
    vf_coef: float = 0.1
    """Weight of the value loss."""
    cliprange_value: float | None = None
    """How far a value may move from the old one before the value loss stops rewarding it; None: no clipping."""
    critic_learning_rate: float | None = None
    """Learning rate of the critic's own parameters, whatever the policy's is; None: 1e-4 for a head (it starts from
    nothing), 1e-5 for a model."""
    critic_warmup_steps: int = 0
    """Value pretraining: steps at the start in which only the critic's own parameters learn, from what the policy that
    the run starts with samples. The policy's weights and moments stay as they are."""
    value_mc_states: int = 0
    """States of a recorded step in which the critic is compared with the mean reward of 8 fresh continuations; 0: none.
    The undiscounted outcome, without KL terms: what the critic learns at gamma 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.value_mc_states < 0:
            raise ValueError(f"value_mc_states is {self.value_mc_states}: it must be at least 0")
        for name in ("lam", "lam_value"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}: GAE's lambda lies between 0 and 1")
        if self.critic_warmup_steps < 0:
            raise ValueError(f"critic_warmup_steps is {self.critic_warmup_steps}: it must be at least 0")

    @property
    def uses_critic(self) -> bool:
        return True

    @property
    def samples_continuations(self) -> bool:
        return self.value_mc_states > 0

    @property
    def critic_rate(self) -> float:
        """`critic_learning_rate`, or its default for the kind of critic."""
        if self.critic_learning_rate is not None:
            return self.critic_learning_rate
        return 1e-4 if self.critic == "head" else 1e-5


def values_of(rollouts: Rollouts) -> Tensor:
    """The critic's values, or an error that says how to get them."""
    if rollouts.values is None:
        raise ValueError(
            "these rollouts have no critic values: they were collected by a method without a critic; "
            "score them with a critic first, or choose a method that needs none"
        )
    return rollouts.values


def image_contrast_of(rollouts: Rollouts) -> Tensor:
    """float32 [B, T], what each token owes to the image, NaN where there was none; or an error."""
    if rollouts.perception_contrast is None:
        raise ValueError(
            "these rollouts have no image contrast: they were collected by a method that needs none; measure it with "
            "segpo_core.policy.contrasts first, or choose another method"
        )
    return rollouts.perception_contrast


def rewards_of(rollouts: Rollouts) -> Tensor:
    """float32 [B] rewards, or an error."""
    if rollouts.rewards is None:
        raise ValueError("these rollouts have no rewards yet: run the reward functions before computing credit")
    return rollouts.rewards


def judged(rollouts: Rollouts) -> Tensor:
    """bool [B, T]: tokens of completions that have a reward; NaN is no verdict."""
    return rollouts.mask & ~rewards_of(rollouts).isnan()[:, None]


def evenly(per_completion: Tensor, rollouts: Rollouts) -> Tensor:
    """[B] to [B, T]: the same number at every real token, 0 at padding; NaN where there is no reward."""
    assigned = per_completion.masked_fill(rewards_of(rollouts).isnan(), torch.nan)
    return torch.where(rollouts.mask, assigned[:, None], 0.0)


def without_cut(credit: Credit, rollouts: Rollouts) -> Credit:
    """The credit, with completions that were cut left out of the loss. Their advantages stay: they count in their
    group. The critic does not learn from them either: their return is that of a text without its end. Of a tree's leaf,
    only what leads to no other leaf is left out."""
    cut = rollouts.mask & ~rollouts.finished[:, None]
    if rollouts.node_ids is not None:
        cut &= rollouts.node_ids == rollouts.node_ids.gather(1, rollouts.lengths[:, None] - 1)
    value_mask = None if credit.value_mask is None else credit.value_mask & ~cut
    return replace(credit, loss_mask=credit.loss_mask & ~cut, value_mask=value_mask)
