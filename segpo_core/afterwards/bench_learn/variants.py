"""Methods with one part exchanged, for the ablations. None of them is a method that anyone should train with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from segpo_core.algos import GRPO, SAPO, SRPO, SPOChain
from segpo_core.algos.vineppo import ChainMethod
from segpo_core.segments import OTHER, PERCEPTION, REASONING, entropy_topk, fixed_length, role_ids, segments_from_starts
from segpo_core.types import Credit, Rollouts
from segpo_core.weights import role_weights


@dataclass(frozen=True)
class OtherCuts(SAPO):
    """SAPO with cuts that do not look at entropy; about as many of them, but for `steps`."""

    cut: Literal["steps", "fixed", "probability"] = "steps"

    def segments(self, rollouts: Rollouts) -> Tensor:
        mask = rollouts.mask
        if self.cut == "fixed":
            return fixed_length(mask, round(1 / self.fraction))
        if self.cut == "probability":  # ends at the least probable tokens
            return entropy_topk(-rollouts.sampled_logprobs, mask, self.fraction)
        after_comma = torch.zeros_like(mask)  # what a line is elsewhere: this task writes its steps in one line
        for b, row in enumerate(rollouts.pieces):
            for t, piece in enumerate(row[:-1]):
                after_comma[b, t + 1] = "," in piece or ">" in piece
        return segments_from_starts(after_comma & mask, mask)


@dataclass(frozen=True)
class WholeChain(SPOChain):
    """SPO-chain without its probability mask: the same cuts, and every token carries its segment's credit."""

    def boundaries(self, rollouts: Rollouts) -> Tensor:
        return ChainMethod.boundaries(self, rollouts)

    def credit(self, rollouts: Rollouts) -> Credit:
        return self.chain_credit(rollouts, f"before every {self.interval}th token below {self.threshold:g}")


@dataclass(frozen=True)
class OneContrast(SRPO):
    """SRPO in which one role alone has a say."""

    role: Literal["perception", "reasoning"] = "perception"

    def credit(self, rollouts: Rollouts) -> Credit:
        mask = rollouts.mask
        role, _ = role_ids(rollouts.pieces, mask, self.tags)
        silent = REASONING if self.role == "perception" else PERCEPTION
        w = role_weights(
            rollouts.perception_contrast, rollouts.reasoning_contrast, role.masked_fill(role == silent, OTHER), mask,
            self.tau, self.clip, self.transform,
        )  # fmt: skip
        grpo = GRPO.credit(self, rollouts)
        return replace(grpo, advantages=w * grpo.advantages, weights=w)
