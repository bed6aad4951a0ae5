"""Is the truth true? Its values against plain sampling, which knows of no tree, and against a second draw of their own.

Fork values take most of a state's value from the tree and from known probabilities. A mistake there would be in every
value alike, and in the arm `forks` too, so the truth is held against the mean reward of ordinary continuations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from segpo_core.afterwards.bench_credit.figures import DECISIVE, correlation, inside
from segpo_core.afterwards.bench_credit.truth import Truth, differences, estimate
from segpo_core.sampling.chains import estimate_values, unique_states


def some_states(truth: Truth, number: int, seed: int) -> tuple[Tensor, Tensor]:
    """(wanted, deciding), bool [B, T]: `number` different states, half of them beside a deciding token (before and
    after the largest |A*| of a completion), as many as there are; the rest drawn from all others."""
    mask, size = truth.rollouts.mask, truth.advantages.abs()
    b = torch.arange(len(mask))
    at = size.argmax(1)
    beside = torch.zeros_like(mask)
    beside[b, at] = True
    beside[b, (at + 1).clamp(max=mask.shape[1] - 1)] = True
    beside &= mask & (size.amax(1) > DECISIVE)[:, None]
    *_, which = unique_states(truth.rollouts, mask)
    first = torch.zeros_like(mask)  # of the tokens before which the same state is, one
    row, column = mask.nonzero().unbind(1)
    place = torch.full((int(which.max()) + 1,), len(which)).scatter_reduce(0, which, torch.arange(len(which)), "amin")
    first[row[place], column[place]] = True
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(mask.shape, generator=generator)
    wanted = torch.zeros_like(mask)
    for pool, most in ((beside & first, number // 2), (first & ~beside, number)):
        left = min(most, number - int(wanted.sum()))
        chosen = torch.where(pool, order, 2).flatten().argsort()[: min(left, int(pool.sum()))]
        wanted.view(-1)[chosen] = True
    return wanted, beside & wanted


def against_samples(truths: list[Truth], states: int, number: int, seed: int = 0) -> dict[str, Any]:
    """The truth's values against the mean reward of `number` plain continuations in `states` states of each policy.

    Returns bias with its standard error, the root mean square of the differences, what sampling and the truth's own
    error would make it, and the share of differences beyond two expected errors (5 % are, where all is well).
    """
    parts = []
    for truth in truths:
        wanted, deciding = some_states(truth, states, seed)
        estimate_values(
            truth.policy.sampler, truth.prompts, truth.rollouts, wanted, number, truth.reward_of, (seed, 161803)
        )
        value, error = truth.values[wanted].double(), truth.stderr[wanted].double()
        expected = (value * (1 - value) / number + error.square()).sqrt()  # rewards are 0 or 1
        parts.append((truth.rollouts.mc_values[wanted].double() - value, expected, deciding[wanted]))
    difference, expected, deciding = (torch.cat(column) for column in zip(*parts, strict=True))
    everything = torch.ones_like(deciding)
    kinds = (("all", everything), ("beside deciding tokens", deciding), ("elsewhere", ~deciding))
    return {name: _agreement(difference[rows], expected[rows]) for name, rows in kinds}


def _agreement(difference: Tensor, expected: Tensor) -> dict[str, float]:
    size = (difference.abs() - 2 * expected) > 1e-9
    return {
        "states": len(difference),
        "bias": float(difference.mean()),
        "bias_stderr": float(expected.square().sum().sqrt() / len(difference)),
        "rms": float(difference.square().mean().sqrt()),
        "rms_expected": float(expected.square().mean().sqrt()),
        "beyond_two_errors": float(size.double().mean()),
        "largest": float(difference.abs().max()),
    }


def ceiling(truths: list[Truth], number: int, least_open: float) -> dict[str, float]:
    """What a second, independent draw of the truth scores against the first: no credit can be seen to be better."""
    pairs = []
    for truth in truths:
        values, _ = estimate(truth, number, least_open, (141421,))
        mask = truth.rollouts.mask
        pairs.append((differences(values, truth.rollouts), truth.advantages, mask, values - truth.values))
    credit, true = (torch.cat([pair[i][pair[2]] for pair in pairs]) for i in (0, 1))
    rows = torch.cat([inside(*pair[:3]) for pair in pairs])
    moved = torch.cat([pair[3][pair[2]] for pair in pairs])
    return {
        "pearson": float(correlation(credit, true)),
        "within": float(rows.nanmean()),
        "rms_of_values": float(moved.double().square().mean().sqrt()),
    }
