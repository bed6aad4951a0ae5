"""Policy and value losses: ratio levels, clipping, KL, aggregation.

Every function looks only at tokens where `mask` (bool [B, T]) is True: what stands elsewhere, NaN included,
reaches neither the loss nor a gradient. The mask may have holes (SPO's probability mask). Shapes: B
completions, T tokens.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from segpo_core import segments

Level = Literal["token", "segment", "sequence"]
LossType = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"]
#: What an importance weight belongs to, and what becomes of one that is too large. TRL's names.
Correction = Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]

# exp(±20) is far outside every clip range; the bound keeps 0 · inf out of the surrogate.
LOG_RATIO_BOUND = 20.0

#: Where PAPO's divergence of a token ends, and with it its gradient.
MOST_DIVERGENCE = 10.0

#: Variance of returns below which there is nothing to explain.
LEAST_VARIANCE = 1e-6


def log_ratio(
    logprobs: Tensor,
    old_logprobs: Tensor,
    mask: Tensor,
    level: Level = "token",
    segment_ids: Tensor | None = None,
) -> Tensor:
    """log of the importance ratio at every token → [B, T], 0 outside the mask.

    token: logp − logp_old. segment: its mean over the masked tokens of the segment (SAPO, eq. 8). sequence:
    over those of the completion (GSPO, arXiv 2507.18071, eq. 7). The mean hands its gradient to all of its
    tokens.
    """
    difference = torch.where(mask, logprobs, 0) - torch.where(mask, old_logprobs, 0)
    if level == "token":
        return difference
    if level == "sequence":
        mean = difference.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
    elif level == "segment":
        if segment_ids is None:
            raise ValueError("level='segment' needs segment_ids")
        mean = segments.segment_mean(difference, torch.where(mask, segment_ids, -1))
    else:
        raise ValueError(f"level must be 'token', 'segment' or 'sequence', got {level!r}")
    return torch.where(mask, mean, 0)


def count_items(mask: Tensor, loss_type: LossType = "token-mean") -> Tensor:
    """What `aggregate` divides by, 0-dim: masked tokens, or completions that have any.

    Summed over all micro-batches and processes it is the `normalizer` that makes the loss independent of the
    cut.
    """
    return mask.sum() if loss_type == "token-mean" else (mask.sum(1) > 0).sum()


def aggregate(
    per_token: Tensor,
    mask: Tensor,
    loss_type: LossType = "token-mean",
    normalizer: float | Tensor | None = None,
    max_completion_length: int | None = None,
) -> Tensor:
    """One number from [B, T].

    token-mean: Σ / tokens (DAPO, BNPO). seq-mean-token-mean: mean over completions of their mean (GRPO).
    seq-mean-token-sum: mean over completions of their sum. seq-mean-token-sum-norm: the same divided by
    `max_completion_length` (Dr. GRPO). Completions without a masked token are not counted.
    `normalizer` replaces the local count of tokens or completions (see `count_items`). No token at all: 0.
    """
    masked = torch.where(mask, per_token, 0)
    if loss_type in ("token-mean", "seq-mean-token-sum"):
        total = masked.sum()
    elif loss_type == "seq-mean-token-mean":
        total = (masked.sum(1) / mask.sum(1).clamp(min=1)).sum()
    elif loss_type == "seq-mean-token-sum-norm":
        if max_completion_length is None:
            raise ValueError("loss_type='seq-mean-token-sum-norm' needs max_completion_length")
        total = masked.sum() / max_completion_length
    else:
        raise ValueError(
            "loss_type must be 'token-mean', 'seq-mean-token-mean', 'seq-mean-token-sum' or "
            f"'seq-mean-token-sum-norm', got {loss_type!r}"
        )
    items = torch.as_tensor(count_items(mask, loss_type) if normalizer is None else normalizer, device=mask.device)
    return total / torch.where(items > 0, items, 1)


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    level: Level = "token",
    segment_ids: Tensor | None = None,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    delta: float | None = None,
    loss_type: LossType = "token-mean",
    normalizer: float | Tensor | None = None,
    max_completion_length: int | None = None,
    weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The clipped surrogate (arXiv 1707.06347, eq. 7; SAPO, eq. 9) → (loss, stats).

    −min(ρ A, clip(ρ, 1−epsilon, 1+epsilon_high) A) per token, aggregated. `delta` is the dual clip: for A < 0
    the surrogate is at least delta · A (arXiv 1912.09729; TRL's `delta`). `advantages` is [B, T] or [B].
    `weights` [B, T] multiply the surrogate of each token (see `importance_weights`).
    Stats are detached 0-dim tensors, means over the masked tokens of *this* call, whose number is
    `stats["tokens"]`.
    """
    high = epsilon if epsilon_high is None else epsilon_high
    if advantages.dim() == 1:
        advantages = advantages[:, None]
    advantages = torch.where(mask, advantages, 0)
    log_rho = log_ratio(logprobs, old_logprobs, mask, level, segment_ids)
    log_rho = log_rho.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    rho = log_rho.exp()

    clipped = torch.min(rho * advantages, rho.clamp(1 - epsilon, 1 + high) * advantages)
    surrogate = clipped
    if delta is not None:
        surrogate = torch.where(advantages < 0, torch.max(clipped, delta * advantages), clipped)
    weighted = surrogate if weights is None else surrogate * torch.where(mask, weights, 0)
    loss = aggregate(-weighted, mask, loss_type, normalizer, max_completion_length)

    with torch.no_grad():
        below, above = (rho < 1 - epsilon) & (advantages < 0), (rho > 1 + high) & (advantages > 0)
        stats = {
            "clip_ratio/low": _mean(below, mask),
            "clip_ratio/high": _mean(above, mask),
            "clip_ratio/region": _mean(below | above, mask),
            "clip_ratio/dual": _mean(surrogate > clipped, mask),
            "ratio/mean": 1 + _mean(rho - 1, mask),  # without a token, the ratio is 1
            "ratio/min": (-_largest(-log_rho, mask)).exp(),
            "ratio/max": _largest(log_rho, mask).exp(),
            "approx_kl": _mean(rho - 1 - log_rho, mask),  # Schulman's k3 of KL(π_old ‖ π), never negative
            "tokens": mask.sum(),
        }
    return loss, stats


def importance_weights(
    logprobs: Tensor,
    engine_logprobs: Tensor,
    mask: Tensor,
    mode: Correction = "token_truncate",
    clip_max: float | None = 3.0,
    clip_min: float | None = None,
) -> Tensor:
    """π / π_engine of what another engine sampled, kept within bounds → float32 [B, T], 0 outside the mask.

    The engine has the same weights and other arithmetic; what it draws is off the policy by that. token_…: a weight a
    token; sequence_…: the product over the completion, at all of its tokens. …_truncate brings a weight beyond the
    bounds to the nearer one (truncated importance sampling; Ionides, 2008), …_mask to 0. A token of which the engine
    said nothing (NaN) has a difference of 0.
    """
    difference = torch.where(mask, logprobs - engine_logprobs, 0).nan_to_num(0.0)
    if mode.startswith("sequence"):
        difference = difference.sum(1, keepdim=True).expand(mask.shape)
    low, high = (0.0 if clip_min is None else clip_min), (torch.inf if clip_max is None else clip_max)
    weights = difference.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()
    if mode.endswith("mask"):
        weights = torch.where((weights >= low) & (weights <= high), weights, 0)
    return torch.where(mask, weights.clamp(max=high) if mode.endswith("mask") else weights.clamp(low, high), 0)


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    cliprange_value: float | None = None,
    normalizer: float | Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """0.5 · max((V − R)², (clip(V, V_old ± c) − R)²), mean over the mask → (loss, stats).

    The mask says where the critic learns: every token (PPO), segment starts (SAPO, eq. 10), segment ends (its
    release).
    """
    values, old_values, returns = (torch.where(mask, x, 0) for x in (values, old_values, returns))
    error = clipped_error = (values - returns).square()
    if cliprange_value is not None:
        near = torch.clamp(values, old_values - cliprange_value, old_values + cliprange_value)
        clipped_error = (near - returns).square()
    loss = 0.5 * aggregate(torch.max(error, clipped_error), mask, "token-mean", normalizer)
    with torch.no_grad():
        stats = {
            "clip_ratio": _mean(clipped_error > error, mask),
            "value/mean": _mean(values, mask),
            "return/mean": _mean(returns, mask),
            "tokens": mask.sum(),
        }
    return loss, stats


def kl(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    estimator: Literal["k1", "k2", "k3"] = "k3",
    mask: Tensor | None = None,
) -> Tensor:
    """Per-token estimate of KL(π ‖ π_ref) → [B, T], 0 outside the mask
    (http://joschu.net/blog/kl-approx.html).

    With l = logp − logp_ref: k1 = l, k2 = l² / 2, k3 = exp(−l) + l − 1. Pass the mask if padding may hold NaN
    or inf.
    """
    log_rho = logprobs - ref_logprobs
    if mask is not None:
        log_rho = torch.where(mask, logprobs, 0) - torch.where(mask, ref_logprobs, 0)
    if estimator == "k1":
        return log_rho
    if estimator == "k2":
        return log_rho.square() / 2
    if estimator == "k3":
        return torch.exp(-log_rho) + log_rho - 1
    raise ValueError(f"estimator must be 'k1', 'k2' or 'k3', got {estimator!r}")


def divergence_to_keep(logprobs: Tensor, away_logprobs: Tensor, mask: Tensor) -> Tensor:
    """k3 = exp(Δ) − Δ − 1 with Δ = logp_away − logp, at most `MOST_DIVERGENCE` → [B, T], 0 outside the mask and where
    `away_logprobs` is NaN: what PAPO's objective adds γ times (arXiv 2507.06448, eq. 4).

    The gradient goes through `logprobs` alone, as in the authors' release, where the masked pass is made once, before
    the updates. On the policy's own samples its size at a token is 1 − exp(Δ): below 1, and 0 where the image makes no
    difference.
    """
    seen = mask & ~away_logprobs.isnan()
    return kl(logprobs, away_logprobs, "k3", seen).clamp(max=MOST_DIVERGENCE)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 − Var(R − V) / Var(R) over the mask, 0-dim; NaN where the returns vary by less than `LEAST_VARIANCE`:
    the question has no answer then, or one of rounding alone.
    """
    unexplained, total = _variance(returns - values, mask), _variance(returns, mask)
    varies = total >= LEAST_VARIANCE
    return torch.where(varies, 1 - unexplained / torch.where(varies, total, 1), torch.nan)


def _mean(x: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, x, 0).sum() / mask.sum().clamp(min=1)


def _largest(x: Tensor, mask: Tensor) -> Tensor:
    """Largest masked value, 0-dim; 0 if there is none."""
    largest = pad(torch.where(mask, x, -torch.inf).flatten(), (0, 1), value=-torch.inf).amax()
    return torch.where(largest > -torch.inf, largest, 0)


def _variance(x: Tensor, mask: Tensor) -> Tensor:
    return _mean((x - _mean(x, mask)).square(), mask)
