"""Numbers about a step: what was sampled and credited, and how far the values behind the credit can be trusted.

Shapes: B completions, T tokens, S states, N nodes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from segpo_core import losses
from segpo_core.algos.base import judged
from segpo_core.sampling.nodes import Nodes
from segpo_core.segments import count, starts
from segpo_core.training import evaluate
from segpo_core.training.together import everyone
from segpo_core.types import Credit, Rollouts

#: Continuations of each state with which a critic is compared.
CONTINUATIONS = 8


def describe(rollouts: Rollouts, credit: Credit, nodes: Nodes | None = None) -> dict[str, float]:
    """Metrics of one step. Completions without a reward (no verdict) are left out of those about rewards.

    Args:
        rollouts, credit: of all processes.
        nodes: their nodes, where the method samples values.
    """
    mask, rewards = rollouts.mask, rollouts.rewards
    known = ~rewards.isnan()
    advantages = credit.advantages[credit.loss_mask]
    groups = [rewards[known & (rollouts.group == g)] for g in rollouts.group.unique()]
    share = evaluate.accuracies(rollouts.truth, rewards.tolist())
    numbers = {f"train/{name}": value for name, value in share.items()} | {
        "groups_without_signal": sum(float(len(g) == 0 or g.amax() == g.amin()) for g in groups) / len(groups),
        "entropy": float(rollouts.entropy[mask].mean()),
        "completion_length": float(rollouts.lengths.float().mean()),
        "truncated": float((~rollouts.finished).float().mean()),
        "segments": float(count(credit.segment_ids).float().mean()),
        "advantage_std": float(advantages.std(correction=0)) if len(advantages) else 0.0,
    }
    if known.any():
        numbers |= {"reward": float(rewards[known].mean()), "reward_std": float(rewards[known].std(correction=0))}
    if rollouts.ref_logprobs is not None:
        numbers["kl"] = float(losses.kl(rollouts.logprobs, rollouts.ref_logprobs, "k3")[mask].nanmean())
    if rollouts.old_logprobs is not None:
        # Sampler and learner are the same weights by two ways; what they differ by is rounding.
        numbers["sampling_logp_difference"] = float(
            (rollouts.old_logprobs - rollouts.sampled_logprobs)[mask].abs().max()
        )
    return numbers | engine_metrics(rollouts) | value_metrics(rollouts, credit, nodes) | credit.metrics


def engine_metrics(rollouts: Rollouts) -> dict[str, float]:
    """How far an engine beside the training is from the network, and the weights that answer for it, under TRL's names;
    empty for what was sampled in process."""
    if rollouts.engine_logprobs is None:
        return {}
    gap = (rollouts.sampled_logprobs - rollouts.engine_logprobs)[rollouts.mask].abs()
    gap = gap[~gap.isnan()]
    numbers = {} if len(gap) == 0 else {
        "sampling/sampling_logp_difference/mean": float(gap.mean()),
        "sampling/sampling_logp_difference/max": float(gap.max()),
    }  # fmt: skip
    if rollouts.engine_weights is not None:
        weights = rollouts.engine_weights[rollouts.mask]
        numbers |= {f"sampling/importance_sampling_ratio/{name}": float(getattr(weights, name)())
                    for name in ("min", "mean", "max")}  # fmt: skip
    return numbers


def step_kl(new: Tensor, rollouts: Rollouts) -> dict[str, float]:
    """How far a step's updates moved the policy on its own tokens, over all processes; each of them must call it.

    Args:
        new: float32 [B, T], log-probabilities after the updates, NaN where there is none.
        rollouts: this process's own.
    """
    change = losses.kl(new, rollouts.logprobs, "k3")[rollouts.mask]
    change = change[~change.isnan()]
    total, tokens = (sum(column) for column in zip(*everyone([(float(change.sum()), len(change))]), strict=True))
    return {"step_kl": total / tokens if tokens else float("nan")}


def value_metrics(rollouts: Rollouts, credit: Credit, nodes: Nodes | None = None) -> dict[str, float]:
    """How good the values are; empty for a method without values. A number that nothing was there for is left out.

    `explained_variance`: of what the critic should have said, by what it said; of the rewards, by sampled values. Not
    there where these vary by less than `losses.LEAST_VARIANCE`.
    `value_mean`, `value/calibration_error`: of the state values that credit is made of, against the rewards.
    `value/mc_stderr`: mean standard error of the sampled values.
    `value/mc_error`: root mean square error of a critic's values in the states that were sampled (`value_mc_states`).

    A sampled value is compared with completions that are no part of it: those of a chain are fresh; the value that a
    tree gives a state stands here without the branch that the completion took.
    """
    outcomes = rollouts.rewards[:, None].expand(rollouts.mask.shape)
    if credit.value_mask is not None:
        values, returns, at = rollouts.values, credit.returns, credit.value_mask
    elif credit.state_values is not None:
        values, returns, at = credit.state_values, outcomes, starts(credit.segment_ids) & judged(rollouts)
        if rollouts.node_ids is not None and nodes is not None:
            values = torch.where(rollouts.mask, value_without_own_branch(nodes)[nodes.of_token], torch.nan)
        at = at & ~values.isnan()
    else:
        return {}
    numbers = {
        "value_mean": float(values[at].mean()),
        "explained_variance": float(losses.explained_variance(values, returns, at)),
    }
    at = at & judged(rollouts)
    numbers["value/calibration_error"] = float(calibration_error(values[at], outcomes[at]))
    if nodes is not None:
        numbers["value/mc_stderr"] = float(nodes.stderr.nanmean())
    elif rollouts.mc_values is not None:
        sampled = ~rollouts.mc_values.isnan()
        numbers["value/mc_stderr"] = float(rollouts.mc_stderr[sampled].nanmean())
        columns = (x[sampled] for x in (values, rollouts.mc_values, rollouts.mc_stderr))
        numbers["value/mc_error"] = float(error_beyond_noise(*columns))
    return {name: number for name, number in numbers.items() if number == number}


def calibration_error(values: Tensor, outcomes: Tensor, bins: int = 10) -> Tensor:
    """Expected calibration error Σ_b (n_b / S) |mean value − mean outcome of bin b|, 0-dim; NaN without a state.

    Bins hold equally many states (arXiv 1904.01685, section 3; the error itself: arXiv 1706.04599, eq. 3), except
    that equal values stay together. `values`, `outcomes`: float32 [S].
    """
    if len(values) == 0:
        return values.new_tensor(torch.nan)
    values, outcomes = values.double(), outcomes.double()
    rank = torch.searchsorted(values.sort().values, values)  # of the first state of the same value
    total = values.new_zeros(bins).index_add(0, rank * bins // len(values), values - outcomes)
    return total.abs().sum() / len(values)


def error_beyond_noise(values: Tensor, sampled: Tensor, stderr: Tensor) -> Tensor:
    """Root mean square error of values against Monte Carlo estimates of the truth, without the estimates' own noise,
    0-dim: √ max(0, mean((V − V̂)² − stderr²)).

    The square of a standard error is an unbiased estimate of the noise in V̂, so the mean is one of the error's
    square. States with an unknown error (NaN) are left out; NaN where that leaves none. All float32 [S].
    """
    return ((values - sampled).square() - stderr.square()).nanmean().clamp(min=0).sqrt()


def value_without_own_branch(nodes: Nodes) -> Tensor:
    """float32 [N]: for each node of a tree the mean value of its siblings, which is its parent's value without it. NaN
    at roots and where no sibling has a value."""
    up, value = nodes.tree.parent.clamp(min=0), nodes.value.double()
    known = (nodes.tree.parent >= 0) & ~value.isnan()
    own = torch.where(known, value, 0)
    total = torch.zeros_like(own).index_add(0, up, own)
    number = torch.zeros_like(own).index_add(0, up, known.double())
    others = number[up] - known.double()
    mean = (total[up] - own) / others.clamp(min=1)
    return torch.where((nodes.tree.parent >= 0) & (others > 0), mean, torch.nan).float()


def some_states(mask: Tensor, number: int, name: tuple[int, ...]) -> Tensor:
    """bool [B, T]: `number` of the True places of `mask`, all where it has fewer, drawn by the stream called `name`."""
    places = mask.nonzero()
    chosen = torch.from_numpy(np.random.default_rng(name).permutation(len(places))[:number])
    picked = torch.zeros_like(mask)
    picked[tuple(places[chosen.to(places.device)].unbind(1))] = True
    return picked
