"""Chains: the value of a state in the middle of a completion, by sampling on from it. Prefixes are computed once.

A chain takes completions that are there and continues them from chosen states, several times each; the mean reward of
the continuations is the state's value. Each continuation draws from a random stream of its own, named by where it
begins, so the result does not depend on how rows are batched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from segpo_core.policy.inputs import Prompts
from segpo_core.sampling.sampler import Draw, Sampler
from segpo_core.sampling.sharing import MAX_ROWS
from segpo_core.types import Rollouts

#: `reward_of(groups, texts)`: the reward of each text as an answer to the prompt of that number; NaN for no verdict.
RewardOf = Callable[[list[int], list[str]], list[float]]


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
    prefixes = sampler.prefixes(prompts, ids, mask, rollouts.group[used])
    group = rollouts.group[rows]
    sample = (rollouts.group[:, None] == rollouts.group).tril(-1).sum(dim=1)[rows]
    names = torch.stack([group + first, sample, lengths], dim=1).tolist()
    number = torch.full_like(rows, number) if isinstance(number, int) else number
    owner = torch.arange(len(rows), device=rows.device).repeat_interleave(number)
    nth = torch.arange(len(owner), device=rows.device) - (number.cumsum(0) - number)[owner]
    for prefix, count in zip(owner.split(max_rows), nth.split(max_rows), strict=True):
        left = (sampler.max_completion_length - lengths[prefix]).tolist()
        streams = [(*stream, *names[i], n) for i, n in zip(prefix.tolist(), count.tolist(), strict=True)]
        these, copies = prefix.unique(return_inverse=True)
        state = prefixes.at(row[these], lengths[these])
        if without is not None:
            of, token = without
            here = torch.isin(of, these)
            state.forbid(torch.searchsorted(these, of[here]), token[here])
        yield prefix, sampler.continue_from(state.pick(copies), streams, left)


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
