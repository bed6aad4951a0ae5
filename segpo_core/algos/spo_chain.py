"""SPO-chain, Segment Policy Optimization (arXiv 2505.23564): VinePPO with cutpoints for steps, and a probability mask.

A cutpoint is a token that the policy was unsure of, π_old(y_t) < ρ. Segments hold `interval` cutpoints each and begin
just before the first of them; only cutpoints carry the credit of their segment.

Paper and released code differ in the tokens before the first cutpoint: the paper judges them from the prompt's value
(`first_state="prompt"`), the release gives them 0 (`first_state="release"`). None of them is in the loss, so that value
is sampled in neither.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from segpo_core.advantages import whiten
from segpo_core.algos.vineppo import ChainMethod
from segpo_core.segments import cutpoints
from segpo_core.types import Credit, Rollouts
from segpo_core.weights import probability_mask

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SPOChain(ChainMethod):
    """Segment Policy Optimization, values from chains."""

    name: ClassVar[str] = "spo_chain"
    title: ClassVar[str] = "SPO-chain"

    threshold: float = 0.9
    """ρ: tokens of a lower probability are cutpoints, and the only ones in the loss."""
    interval: int = 5
    """Cutpoints in a segment."""
    first_state: Literal["prompt", "release"] = "prompt"
    """Judge the first segment from the prompt's value (paper), or only if its first token is a cutpoint, else give it
    0 (released code). No value is sampled for tokens that are in no loss: those before the first cutpoint are assigned
    no credit (paper) or 0 (released code)."""
    whiten: bool = False
    """Whiten advantages over the tokens in the loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.threshold:
            raise ValueError(f"threshold is {self.threshold}: no token has a probability below it")
        if self.interval < 1:
            raise ValueError(f"interval is {self.interval}: a segment needs at least one cutpoint")
        if self.first_state not in ("prompt", "release"):
            raise ValueError(f"first_state must be 'prompt' or 'release', got {self.first_state!r}")

    def segments(self, rollouts: Rollouts) -> Tensor:
        return cutpoints(rollouts.sampled_logprobs.exp(), rollouts.mask, self.threshold, self.interval)

    def starts_from_prompt(self, rollouts: Rollouts) -> Tensor:
        if self.first_state == "prompt":
            return super().starts_from_prompt(rollouts)
        return rollouts.sampled_logprobs[:, 0].exp() < self.threshold

    def boundaries(self, rollouts: Rollouts) -> Tensor:
        """As of every chain, but no prompt's value where the first token is no cutpoint: the tokens before the first
        cutpoint are none themselves, so the loss would throw their credit away."""
        boundary = super().boundaries(rollouts)
        boundary[:, 0] &= rollouts.sampled_logprobs[:, 0].exp() < self.threshold
        return boundary

    def credit(self, rollouts: Rollouts) -> Credit:
        """Eq. 3 and 5: Â_m = V̂(end) − V̂(start), for the tokens with π_old < ρ.

        Where no token is that improbable the loss is empty: the step changes nothing, and a warning says so.
        """
        rule = f"before every {self.interval}th token with a probability below {self.threshold:g}"
        credit = self.chain_credit(rollouts, rule)
        pi_old = rollouts.sampled_logprobs.exp()
        loss_mask = credit.loss_mask & probability_mask(pi_old, rollouts.mask, self.threshold)
        if not loss_mask.any():
            log.warning("%s: no token has a probability below %g, so the loss is empty", self.title, self.threshold)
        advantages = credit.advantages
        if self.whiten:
            advantages = torch.where(loss_mask, whiten(advantages, loss_mask), advantages)
        kept = float(loss_mask.sum() / rollouts.mask.sum().clamp(min=1))
        metrics = credit.metrics | {"tokens_in_loss": kept}
        return replace(credit, advantages=advantages, loss_mask=loss_mask, metrics=metrics)
