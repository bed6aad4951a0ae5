"""Chains: the value of a state in the middle of a completion, by sampling on from it. Prefixes are computed once.

A chain takes completions that are there and continues them from chosen states, several times each; the mean reward of
the continuations is the state's value. Each continuation draws from a random stream of its own, named by where it
begins, so the result does not depend on how rows are batched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from segpo_core.policy.inputs import Prompts, decode_inputs
from segpo_core.policy.logprobs import backbone, without_adapter
from segpo_core.sampling.generate import Draw, Sampler, State, noise
from segpo_core.sampling.sharing import MAX_ROWS
from segpo_core.types import Rollouts, pad_rows

#: `reward_of(groups, texts)`: the reward of each text as an answer to the prompt of that number; NaN for no verdict.
RewardOf = Callable[[list[int], list[str]], list[float]]


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
        config = without_adapter(sampler.model).config.get_text_config()
        kinds = {type(layer) for layer in DynamicCache(config=config).layers}
        if not kinds <= {DynamicLayer, DynamicSlidingWindowLayer}:
            raise ValueError(
                f"{type(sampler.model).__name__} keeps no keys and values of single tokens in some layers, so it "
                "cannot go on from the middle of a completion: choose a method that samples no continuations"
            )
        some, row = group.unique(return_inverse=True)
        state = sampler.prefill(prompts, some.tolist(), keep_all=True).pick(row)
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
    number: int | Tensor,
    stream: tuple[int, ...],
    first: int = 0,
    max_rows: int = MAX_ROWS,
    without: tuple[Tensor, Tensor] | None = None,
) -> Iterator[tuple[Tensor, Draw]]:
    """`number` fresh continuations of each prefix, batch by batch: (long [n], the prefix of each row; its draw).

    Args:
        sampler, prompts, rollouts: what sampled, from what, and what it sampled.
        rows, lengths: long [S], the prefixes, as `unique_states` gives them.
        number: N, or one number a prefix, long [S].
        stream, first: as `Sampler.groups`. A continuation's own stream is named (stream, prompt, sample, length, n).
        max_rows: rows of one batch.
        without: tokens that a continuation may not begin with, as pairs (prefix, token), both long [K]; each prefix
            must leave some token of a probability above 0.
    """
    used, row = rows.unique(return_inverse=True)
    longest = max(1, int(lengths.max()))  # later tokens are part of no prefix
    ids, mask = rollouts.completion_ids[used, :longest], rollouts.mask[used, :longest]
    prefixes = Prefixes.compute(sampler, prompts, ids, mask, rollouts.group[used])
    group = rollouts.group[rows]
    sample = (rollouts.group[:, None] == rollouts.group).tril(-1).sum(dim=1)[rows]
    names = torch.stack([group + first, sample, lengths], dim=1).tolist()
    number = torch.full_like(rows, number) if isinstance(number, int) else number
    owner = torch.arange(len(rows), device=rows.device).repeat_interleave(number)
    nth = torch.arange(len(owner), device=rows.device) - (number.cumsum(0) - number)[owner]
    for prefix, count in zip(owner.split(max_rows), nth.split(max_rows), strict=True):
        left = sampler.max_completion_length - lengths[prefix]
        streams = [
            torch.from_numpy(noise(limit, *stream, *names[i], n))
            for i, n, limit in zip(prefix.tolist(), count.tolist(), left.tolist(), strict=True)
        ]
        these, copies = prefix.unique(return_inverse=True)
        state = prefixes.at(row[these], lengths[these])
        if without is not None:
            of, token = without
            here = torch.isin(of, these)
            state.logits[torch.searchsorted(these, of[here]), token[here]] = torch.finfo(torch.float32).min / 4
        state = state.pick(copies)
        yield prefix, sampler.decode(state, pad_rows(streams), limits=left)


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
    """Fill in `mc_values` and `mc_stderr` of the states before the tokens `wanted` (bool [B, T]), NaN elsewhere.

    A value is the mean reward of `number` continuations, its standard error their standard deviation over the root
    of their number, NaN for a single one. A reward without verdict (NaN) stays out of both. Arguments as
    `continuations`.
    """
    values, stderr = (torch.full(wanted.shape, math.nan, device=wanted.device) for _ in range(2))
    rollouts.mc_values, rollouts.mc_stderr = values, stderr
    if not wanted.any():
        return
    rows, lengths, which = unique_states(rollouts, wanted)
    _, rewards = sampled_rewards(sampler, prompts, rollouts, rows, lengths, number, reward_of, stream, first, max_rows)
    rewards = rewards.reshape(-1, number)
    mean, error = mean_and_error(rewards)
    values[wanted], stderr[wanted] = mean.to(values.device)[which], error.to(values.device)[which]


def sampled_rewards(
    sampler: Sampler,
    prompts: Prompts,
    rollouts: Rollouts,
    rows: Tensor,
    lengths: Tensor,
    number: int | Tensor,
    reward_of: RewardOf,
    stream: tuple[int, ...],
    first: int = 0,
    max_rows: int = MAX_ROWS,
    without: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Continuations with their rewards: (long [K], the prefix of each; float32 [K], NaN for no verdict).

    Arguments as `continuations`; a text is the whole completion, prefix included.
    """
    sampled = rollouts.completion_ids.tolist()
    groups: list[int] = []
    texts: list[str] = []
    prefixes = []
    for prefix, draw in continuations(
        sampler, prompts, rollouts, rows, lengths, number, stream, first, max_rows, without
    ):
        prefixes.append(prefix)
        groups += rollouts.group[rows[prefix]].tolist()
        before = zip(rows[prefix].tolist(), lengths[prefix].tolist(), strict=True)
        after = zip(draw.ids.tolist(), draw.lengths.tolist(), strict=True)
        ids = [sampled[b][:t] + new[:n] for (b, t), (new, n) in zip(before, after, strict=True)]
        texts += sampler.tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    rewards = torch.tensor(reward_of(groups, texts), dtype=torch.float32, device=rows.device)
    return torch.cat(prefixes), rewards


def mean_and_error(rewards: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of each row of [S, N] and its standard error, both [S]; NaN entries do not count."""
    count = (~rewards.isnan()).sum(dim=1)
    mean = rewards.nanmean(dim=1)
    variance = (rewards - mean[:, None]).square().nansum(dim=1) / (count - 1).clamp(min=1)
    return mean, torch.where(count > 1, (variance / count).sqrt(), math.nan)
