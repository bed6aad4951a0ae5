"""Chains and trees: sampling on from the middle of a completion. Every prefix is computed once.

A *chain* takes completions that are there and continues them from chosen states, several times each; the mean reward
of the continuations is the value of the state. A *tree* grows from the prompt level by level.

Each continuation and each node draws from a random stream of its own, named by where it hangs. So the result does not
depend on how rows are batched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from segpo_core.generate import Draw, Sampler, State, noise
from segpo_core.inputs import Prompts, decode_inputs
from segpo_core.logprobs import backbone
from segpo_core.segments import starts
from segpo_core.types import Rollouts, Tree, pad_rows

#: `reward_of(groups, texts)`: the reward of each text as an answer to the prompt of that number; NaN for no verdict.
RewardOf = Callable[[list[int], list[str]], list[float]]

#: Rows that are continued together.
MAX_ROWS = 1024


# --- chains ---------------------------------------------------------------------------------------


@dataclass
class Prefixes:
    """B completions after their prompts of at most L tokens, computed once; each prefix can be continued."""

    cache: DynamicCache  #: keys and values of L prompt slots (left-padded), then of T tokens
    attention_mask: Tensor  #: long [B, L + T]
    position: Tensor  #: long [B], position of the first token
    logits: Tensor  #: float32 [B, V], of the first token
    hidden: Tensor  #: [B, T, H], after each token
    head: Callable[[Tensor], Tensor]

    @classmethod
    @torch.no_grad()
    def compute(cls, sampler: Sampler, prompts: Prompts, ids: Tensor, mask: Tensor, group: Tensor) -> Prefixes:
        """One pass over the prompts (images once a prompt), then one over the completions.

        Args:
            sampler: whose model computes.
            prompts: P prompts.
            ids: long [B, T]; mask: bool [B, T]; group: long [B], row of the prompt.

        Raises:
            ValueError: the model's memory of a prefix is a running state that holds no single tokens.
        """
        some, row = group.unique(return_inverse=True)
        state = sampler.prefill(prompts, some.tolist(), keep_all=True)
        if any(type(layer) is not DynamicLayer for layer in state.cache.layers):
            raise ValueError(
                f"{type(sampler.model).__name__} has layers without keys and values, so it cannot go on from the "
                "middle of a completion: use a method that needs no continuations (such as sapo or spo_tree)"
            )
        state = state.pick(row)
        attended = torch.cat([state.attention_mask, mask.to(state.attention_mask)], dim=1)
        inputs = decode_inputs(ids, attended, state.position)
        network = backbone(sampler.model)
        hidden = network(**inputs, past_key_values=state.cache, use_cache=True).last_hidden_state
        sampler.tokens_computed += ids.numel()
        return cls(state.cache, attended, state.position, state.logits, hidden, sampler.head)

    def at(self, rows: Tensor, lengths: Tensor) -> State:
        """The prefixes of `lengths` tokens (long [n], 0: the prompt) of the completions `rows` (long [n]).

        Keys and values are moved so that each prefix ends in the last slot: what follows is then next to it, as
        layers with a sliding window need it. Their positions are in the keys already.
        """
        prompt = self.attention_mask.shape[1] - self.hidden.shape[1]
        width = prompt + int(lengths.max())
        slot = torch.arange(width, device=rows.device) - (width - prompt - lengths)[:, None]
        real, slot = slot >= 0, slot.clamp(min=0)
        cache = DynamicCache()
        for number, layer in enumerate(self.cache.layers):
            # Two indices with a slice between them: [n, S] comes first, heads after it.
            keys, values = (x[rows[:, None], :, slot].transpose(1, 2) for x in (layer.keys, layer.values))
            cache.update(keys, values, number)
        after = self.head(self.hidden[rows, (lengths - 1).clamp(min=0)])
        return State(
            cache,
            torch.where(real, self.attention_mask[rows[:, None], slot], 0),
            self.position[rows] + lengths,
            torch.where(lengths[:, None] > 0, after, self.logits[rows]),
        )


def unique_states(rollouts: Rollouts, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The different prefixes before the tokens `wanted` (bool [B, T]), shortest first: (rows, lengths, which).

    The prompt is one state for its whole group, and so is any prefix that completions of a group share: it is taken
    from the first of them. `rows` and `lengths` are long [S]; `which` long [W] says which state each wanted token
    has, in row-major order.
    """
    table = rollouts.completion_ids.cpu().numpy()
    group = rollouts.group.tolist()
    seen: dict[tuple[int, int, bytes], int] = {}
    states, which = [], []
    for b, t in wanted.nonzero().tolist():
        name = (group[b], t, table[b, :t].tobytes())
        if name not in seen:
            seen[name] = len(states)
            states.append((b, t))
        which.append(seen[name])
    rows, lengths = torch.tensor(states, dtype=torch.long).reshape(-1, 2).unbind(1)
    order = lengths.argsort(stable=True)
    device = wanted.device
    return rows[order].to(device), lengths[order].to(device), order.argsort()[which].to(device)


def continuations(
    sampler: Sampler,
    prompts: Prompts,
    rollouts: Rollouts,
    rows: Tensor,
    lengths: Tensor,
    number: int,
    stream: tuple[int, ...],
    first: int = 0,
    max_rows: int = MAX_ROWS,
) -> Iterator[tuple[Tensor, Draw]]:
    """`number` fresh continuations of each prefix, batch by batch: (state of each row, draw).

    Args:
        sampler, prompts, rollouts: what sampled, from what, and what it sampled.
        rows, lengths: long [S], the prefixes, as `unique_states` gives them.
        stream, first: as `Sampler.groups`; a continuation's stream is (stream, prompt, sample, length, number).
        max_rows: rows of one batch.
    """
    used, row = rows.unique(return_inverse=True)
    longest = int(lengths.max())  # later tokens are no part of any prefix
    prefixes = Prefixes.compute(
        sampler,
        prompts,
        rollouts.completion_ids[used, :longest],
        rollouts.mask[used, :longest],
        rollouts.group[used],
    )
    group, sample = rollouts.group.tolist(), _number_in_group(rollouts.group.tolist())
    for part in torch.arange(len(rows), device=rows.device).repeat_interleave(number).split(max_rows):
        states, copies = part.unique(return_inverse=True)
        left = sampler.max_completion_length - lengths[part]
        streams = [
            noise(sampler.max_completion_length - t, *stream, first + group[b], sample[b], t, n)
            for b, t, n in zip(rows[part].tolist(), lengths[part].tolist(), _copy(part, number), strict=True)
        ]
        uniform = pad_rows([torch.from_numpy(s) for s in streams])
        state = prefixes.at(row[states], lengths[states]).pick(copies)
        yield part, sampler.decode(state, uniform, limits=left)


def estimate_values(
    sampler: Sampler,
    prompts: Prompts,
    rollouts: Rollouts,
    wanted: Tensor,
    number: int,
    reward_of: RewardOf,
    stream: tuple[int, ...],
    first: int = 0,
    max_rows: int = MAX_ROWS,
) -> None:
    """Fill in `mc_values` and `mc_stderr` of the states before the tokens `wanted` (bool [B, T]).

    A value is the mean reward of `number` continuations; its standard error is their standard deviation over the
    root of their number, NaN for a single one. Rewards without verdict (NaN) stay out of both. Arguments as
    `continuations`.
    """
    rollouts.mc_values, rollouts.mc_stderr = (
        torch.full(wanted.shape, math.nan, device=wanted.device) for _ in range(2)
    )
    if not wanted.any():
        return
    rows, lengths, which = unique_states(rollouts, wanted)
    groups: list[int] = []
    texts: list[str] = []
    for part, draw in continuations(
        sampler, prompts, rollouts, rows, lengths, number, stream, first, max_rows
    ):
        groups += rollouts.group[rows[part]].tolist()
        spans = zip(rows[part].tolist(), lengths[part].tolist(), draw.lengths.tolist(), strict=True)
        ids = draw.ids.tolist()
        before = rollouts.completion_ids.tolist()
        texts += sampler.tokenizer.batch_decode(
            [before[b][:t] + ids[i][:n] for i, (b, t, n) in enumerate(spans)],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
    rewards = torch.tensor(reward_of(groups, texts), dtype=torch.float32).reshape(-1, number)
    verdicts = (~rewards.isnan()).sum(dim=1)
    mean = rewards.nanmean(dim=1)
    variance = (rewards - mean[:, None]).square().nansum(dim=1) / (verdicts - 1)
    stderr = torch.where(verdicts > 1, (variance / verdicts).sqrt(), math.nan)
    rollouts.mc_values[wanted], rollouts.mc_stderr[wanted] = (
        x.to(wanted.device)[which] for x in (mean, stderr)
    )


def _number_in_group(group: list[int]) -> list[int]:
    """The how-maniest of its group each row is."""
    seen: dict[int, int] = {}
    for g in group:
        seen[g] = seen.get(g, -1) + 1
    ...


def _copy(part: Tensor, number: int) -> list[int]:
    ...
