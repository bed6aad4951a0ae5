"""What an arm says of completions, beside the truth about them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from segpo_core.segments import starts
from segpo_core.types import Rollouts, pad_rows

#: Kinds of completions whose errors are looked at apart; luck is a right answer in spite of an error.
ERRORS = ("seeing", "reckoning", "luck")
KINDS = {"perception": "seeing", "reasoning": "reckoning"}


@dataclass(frozen=True)
class Judged:
    """B completions, T tokens."""

    credit: Tensor  #: float32 [B, T], 0 where nothing enters the loss
    segment_ids: Tensor  #: long [B, T], -1 at padding
    true: Tensor  #: float32 [B, T], A*
    values: Tensor  #: float32 [B, T], true V before each token
    states: Tensor  #: float32 [B, T], the arm's V where a segment of it begins, NaN elsewhere
    mask: Tensor  #: bool [B, T]
    probs: Tensor  #: float32 [B, T], π(y_t)
    reward: Tensor  #: float32 [B]
    prompt: Tensor  #: long [B]
    first_error: Tensor  #: long [B], token of the first true error, -1 where there is none or none is known
    error: list[str | None]  #: B of `ERRORS`
    tokens: float  #: computed for the credit, a completion
    seconds: float  #: a completion
    gradient_cosine: float = float("nan")  #: with the gradient of A*, over the policy's parameters


def judge(
    credit: Tensor, segment_ids: Tensor, rollouts: Rollouts, values: Tensor, true: Tensor,
    state_values: Tensor | None, tokens: float, seconds: float, gradient_cosine: float = float("nan"),
) -> Judged:  # fmt: skip
    """Credit of the completions of one policy; `state_values` as in `Credit`, read where segments begin."""
    mask, nothing = rollouts.mask, torch.full_like(values, torch.nan)
    states = nothing if state_values is None else torch.where(starts(segment_ids) & mask, state_values, nothing)
    facts = rollouts.truth or [None] * len(rollouts)
    spans = [(fact or {}).get("error_span", (None, None)) for fact in facts]
    errors: list[str | None] = []
    for fact, reward in zip(facts, rollouts.rewards.tolist(), strict=True):
        first = (fact or {}).get("first_error")
        errors.append(None if first is None else "luck" if reward >= 0.5 else KINDS.get(first["kind"]))
    return Judged(
        credit=credit, segment_ids=segment_ids, true=true, values=values, states=states, mask=mask,
        probs=rollouts.sampled_logprobs.exp(), reward=rollouts.rewards, prompt=rollouts.group,
        first_error=torch.tensor([-1 if start is None else start for start, _ in spans]), error=errors,
        tokens=tokens, seconds=seconds, gradient_cosine=gradient_cosine,
    )  # fmt: skip


def join(parts: list[Judged]) -> Judged:
    """The completions of several policies in one; costs and cosines are means, prompts stay apart."""
    fill: dict[str, Any] = {"segment_ids": -1, "mask": False, "states": torch.nan}
    size = sum(len(part.mask) for part in parts)
    made: dict[str, Any] = {}
    for item in fields(Judged):
        values = [getattr(part, item.name) for part in parts]
        if item.name == "error":
            made[item.name] = [one for value in values for one in value]
        elif item.name in ("tokens", "seconds"):
            made[item.name] = sum(v * len(part.mask) for v, part in zip(values, parts, strict=True)) / size
        elif item.name == "gradient_cosine":
            made[item.name] = sum(values) / len(values)
        elif item.name == "prompt":
            offsets = [0, *torch.tensor([int(v.max()) + 1 for v in values]).cumsum(0).tolist()]
            made[item.name] = torch.cat([v + o for v, o in zip(values, offsets, strict=False)])
        elif values[0].dim() == 1:
            made[item.name] = torch.cat(values)
        else:
            made[item.name] = pad_rows([row for value in values for row in value], fill.get(item.name, 0))
    return Judged(**made)
