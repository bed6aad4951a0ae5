"""The data structures that every part of the toolkit shares.

B completions, T tokens (right-padded), G completions a prompt, P prompts, N tree nodes.

The data go one way: a sampler makes `Rollouts`, scoring fills in what the policy knows about its own tokens, a
method turns them into `Credit` (pure: no model, no device), the update is one loss over both.

Conventions, everywhere:

* `mask` is True at the completion's own tokens, the EOS included. It is made from lengths, never from comparing ids.
* An optional field that is None was *not measured*. Missing is not zero.
* `values[b, t]` is V of the state before token t, so `values[b, 0]` is the value of the prompt.
* Log-probabilities and entropies (nats) are those of the sampling distribution: the temperature is in them. What top_p,
  top_k and min_p leave of it is in `engine_logprobs` alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

#: What a token does in a structured completion; `role_ids` holds these, and -1 at padding.
ROLES = ("other", "perception", "reasoning", "answer")


@dataclass
class Tree:
    """N nodes of P trees. A node is a run of tokens: a root is the prompt (no tokens), every other node a segment that
    continues its parent. A completion is a path from a root to a leaf; rows that share a node share its tokens."""

    parent: Tensor  #: long [N], -1 at roots
    group: Tensor  #: long [N], row of the prompt
    start: Tensor  #: long [N], first token within the completion
    end: Tensor  #: long [N], exclusive


@dataclass
class Rollouts:
    """B completions of P prompts, with what was measured on them. Rows of one prompt share a `group` number."""

    completion_ids: Tensor  #: long [B, T], ids as sampled; the text is never encoded again
    mask: Tensor  #: bool [B, T]
    group: Tensor  #: long [B], row of the prompt in the batch of prompts
    finished: Tensor  #: bool [B], True when the completion ended with an EOS, False when it was cut at the limit
    sampled_logprobs: Tensor  #: float32 [B, T], recorded by the sampler while it drew the tokens
    entropy: Tensor  #: float32 [B, T], of the distribution that each token was drawn from

    engine_logprobs: Tensor | None = None  #: float32 [B, T], of what the tokens were really drawn from, where that is
    #: not the network's whole distribution: by an engine beside the training, or of what top_p, top_k and min_p leave;
    #: `sampled_logprobs` and `entropy` are then the network's own
    engine_weights: Tensor | None = None  #: float32 [B, T], importance weights that answer for the difference
    old_logprobs: Tensor | None = None  #: float32 [B, T], the behaviour policy's, from the scoring pass
    ref_logprobs: Tensor | None = None  #: float32 [B, T], the reference model's
    values: Tensor | None = None  #: float32 [B, T], the critic's
    rewards: Tensor | None = None  #: float32 [B], outcome reward
    role_ids: Tensor | None = None  #: long [B, T], index into `ROLES`, -1 at padding
    well_formed: Tensor | None = None  #: bool [B], the structure tags are all there, once, in order
    mc_values: Tensor | None = (
        None  #: float32 [B, T], Monte Carlo value of the state before token t; NaN where none was sampled
    )
    mc_stderr: Tensor | None = None  #: float32 [B, T], its standard error
    node_ids: Tensor | None = None  #: long [B, T], node of `tree` that token t belongs to, -1 at padding
    tree: Tree | None = None  #: how the rows share their prefixes; shared by all rows
    perception_contrast: Tensor | None = None  #: float32 [B, T], d_t: SRPO's, or at all tokens
    reasoning_contrast: Tensor | None = None  #: float32 [B, T], SRPO's c_t

    texts: list[str] = field(default_factory=list)  #: B completion texts
    pieces: list[list[str]] = field(default_factory=list)  #: B lists of token texts; joined they *are* the text
    reward_parts: dict[str, list[float | None]] = field(default_factory=dict)  #: reward name -> B values
    extra: dict[str, list[Any]] = field(default_factory=dict)  #: columns that reward functions logged -> B values
    truth: list[dict[str, Any] | None] = field(default_factory=list)  #: the task's ground truth about each text

    def __len__(self) -> int:
        return self.completion_ids.shape[0]

    @property
    def lengths(self) -> Tensor:
        """long [B], tokens of each completion, EOS included."""
        return self.mask.sum(dim=1)

    @property
    def logprobs(self) -> Tensor:
        """float32 [B, T], the scoring pass's log-probabilities where it ran, else those noted while sampling."""
        return self.sampled_logprobs if self.old_logprobs is None else self.old_logprobs

    def select(self, rows: Tensor) -> Rollouts:
        """The given rows, in the given order. `rows`: long [n]."""
        index = rows.tolist()
        picked: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                picked[item.name] = value[rows.to(value.device)]
            elif isinstance(value, list):
                picked[item.name] = [value[i] for i in index] if value else value
            elif isinstance(value, dict):
                picked[item.name] = {name: [column[i] for i in index] for name, column in value.items()}
        return replace(self, **picked)


@dataclass(frozen=True)
class Credit:
    """What one method says about `Rollouts`: who earned what, and how it enters the loss.

    Everything the update and the views need from a method is here, so credit can be computed again, by any method,
    for rollouts that were recorded long ago.
    """

    advantages: Tensor  #: float32 [B, T]; NaN at tokens to which the method assigned none, 0 at padding
    segment_ids: Tensor  #: long [B, T], 0, 1, 2 … in order, -1 at padding
    loss_mask: Tensor  #: bool [B, T], tokens that enter the policy loss
    rule: str  #: why the segments end where they do, in words
    weights: Tensor | None = None  #: float32 [B, T], share of the advantage each token gets (already in `advantages`)
    returns: Tensor | None = None  #: float32 [B, T], what the critic should have said
    value_mask: Tensor | None = None  #: bool [B, T], tokens whose value enters the value loss
    state_values: Tensor | None = None  #: float32 [B, T], value of the state in which the token's segment began
    state_stderr: Tensor | None = None  #: float32 [B, T], its standard error, where values were sampled
    away_logprobs: Tensor | None = (
        None  #: float32 [B, T], log-probabilities of a policy from which the loss drives this one; NaN: no such token
    )
    away_coef: float = 0.0  #: how much that divergence (`losses.divergence_to_keep`) counts in the objective
    metrics: dict[str, float] = field(default_factory=dict)  #: counts worth showing, e.g. malformed completions


def pad_rows(rows: list[Tensor], value: float = 0, length: int | None = None) -> Tensor:
    """Stack one-dimensional tensors of different length into [B, T], padded on the right with `value`."""
    width = max([row.shape[0] for row in rows] + [length or 0])
    out = rows[0].new_full((len(rows), width), value)
    for i, row in enumerate(rows):
        out[i, : row.shape[0]] = row
    return out


def length_mask(lengths: Tensor, width: int) -> Tensor:
    """bool [B, width], True at the first `lengths[b]` places of row b."""
    return torch.arange(width, device=lengths.device)[None, :] < lengths[:, None]
