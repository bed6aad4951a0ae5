"""How credit is spread inside a completion: which tokens carry it, and how much of it.

Shapes: B completions, T tokens. `mask` is bool [B, T], right padded; results are False or 0 at padding.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from segpo_core.segments import PERCEPTION, REASONING


def probability_mask(probs: Tensor, mask: Tensor, threshold: float = 0.9) -> Tensor:
    """The real tokens with π_old < `threshold`, bool [B, T]: only these enter SPO's loss (arXiv 2505.23564)."""
    return mask & (probs < threshold)


def top_entropy(entropy: Tensor, mask: Tensor, fraction: float = 0.2) -> Tensor:
    """The ⌈fraction · n⌉ tokens of highest entropy among the n of the whole batch, bool [B, T] (arXiv 2506.01939).

    Of two tokens with equal entropy the earlier one is taken, row by row.
    """
    return _largest(torch.where(mask, entropy, -torch.inf).view(1, -1), mask.view(1, -1), fraction).view(mask.shape)


def role_weights(
    perception_contrast: Tensor | None,
    reasoning_contrast: Tensor | None,
    role_ids: Tensor,
    mask: Tensor,
    tau: float = 1.0,
    clip: float = 1.0,
    transform: Literal["exp", "sigmoid", "softmax"] = "exp",
) -> Tensor:
    """SRPO's role-aware weights w [B, T]; the advantage of token t is w_t · A (arXiv 2605.07274).

    `perception_contrast` is logp with the image minus logp with a corrupted one, read at perception tokens;
    `reasoning_contrast` is logp with the perception block minus logp without it, read at reasoning tokens.
    Either may be None: that role then has weight 1 before rescaling. `role_ids` come from
    `segments.role_ids`; a malformed completion, all of role 0, gets uniform weights.

        baseline = mean signal over the completion's perception and reasoning tokens
        u_t = clip((signal_t − baseline) / tau, −clip, clip)
        w_t = f(u_t) at these tokens, 1 elsewhere, then rescaled to mean 1 over the completion

    with f(u) = exp(u), 2·sigmoid(u), or n·softmax(u) over these n tokens: each is 1 where all signals are
    equal. The paper fixes that weights are positive (so A keeps its sign), that their total per completion is
    preserved and that both roles share one baseline. The functional form, exp with tau = clip = 1, is *our
    reading of its abstract*.
    """
    if tau <= 0:
        raise ValueError(f"tau must be positive, got {tau}")
    signal, speaks = torch.zeros_like(mask, dtype=torch.get_default_dtype()), torch.zeros_like(mask)
    for contrast, role in ((perception_contrast, PERCEPTION), (reasoning_contrast, REASONING)):
        if contrast is not None:
            here = mask & (role_ids == role)
            signal, speaks = torch.where(here, contrast, signal), speaks | here

    speakers = speaks.sum(1, keepdim=True)
    baseline = signal.sum(1, keepdim=True) / speakers.clamp(min=1)
    u = torch.where(speaks, (signal - baseline) / tau, 0).clamp(-clip, clip)
    if transform == "exp":
        w = u.exp()
    elif transform == "sigmoid":
        w = 2 * u.sigmoid()
    elif transform == "softmax":
        growth = torch.where(speaks, u.exp(), 0)  # u is clipped: no overflow
        w = growth * speakers / torch.where(speakers > 0, growth.sum(1, keepdim=True), 1)
    else:
        raise ValueError(f"transform must be 'exp', 'sigmoid' or 'softmax', got {transform!r}")

    w = torch.where(mask, torch.where(speaks, w, 1), 0)
    return w * mask.sum(1, keepdim=True) / w.sum(1, keepdim=True).clamp(min=1e-12)


# --- what tokens owe to the image -------------------------------------------------------------------

#: k3 of a single token beyond this says no more; one outlier would be the scale of all others. VPPO's release has it.
MOST_K3 = 10.0


def image_k3(contrast: Tensor) -> Tensor:
    """k3 = e^Δ − Δ − 1 with Δ = −`contrast`, the log-probability with the masked image minus that with the image →
    [B, T], from 0 to `MOST_K3`; NaN stays: it was not measured."""
    delta = (-contrast).clamp(-20, 20)
    return (delta.expm1() - delta).clamp(0, MOST_K3)


def seeing_tokens(k3: Tensor, mask: Tensor, fraction: float = 0.4) -> Tensor:
    """VPPO: the ⌈fraction · n⌉ of a completion's n masked tokens with the largest k3, bool [B, T] (arXiv 2510.09285).

    Of a completion in which nothing was measured, all.
    """
    known = mask & ~k3.isnan()
    kept = _largest(torch.where(known, k3, -torch.inf), known, fraction)
    return torch.where(known.any(1, keepdim=True), kept, mask)


def seeing_completions(k3: Tensor, mask: Tensor, least: float = 0.9) -> Tensor:
    """VPPO: the weight of each completion → [B], of mean 1 over those measured (arXiv 2510.09285).

        s̃ = the completion's mean k3 over the mask, scaled to [0, 1] over the batch
        w = least + s̃ · (1 − least) / mean s̃

    1 where nothing was measured, and everywhere where all completions look alike (or no other is there).
    """
    known = mask & ~k3.isnan()
    measured = known.any(1)
    score = torch.where(known, k3, 0).sum(1) / known.sum(1).clamp(min=1)
    low = torch.where(measured, score, torch.inf).amin()
    width = torch.where(measured, score, -torch.inf).amax() - low
    varies = measured & (width > 1e-6)
    scaled = torch.where(varies, (score - low) / width, 0)
    mean = scaled.sum() / measured.sum().clamp(min=1)
    return torch.where(varies, least + scaled * (1 - least) / mean, 1.0)


def grounded_weights(k3: Tensor, mask: Tensor, tau: float = 0.4, gain: float = 2.0) -> Tensor:
    """PGPO's weights w [B, T]; the advantage of token t is w_t · A (arXiv 2604.01840).

        I = log(1 + k3), scaled to [0, 1] within the completion
        w = I / tau below tau, else 1 + gain · (I − tau) / (1 − tau), then rescaled to mean 1 over the completion

    1 in completions in which nothing was measured, or all tokens are alike; 0 at padding.
    """
    known = mask & ~k3.isnan()
    signal = k3.log1p()
    low = torch.where(known, signal, torch.inf).amin(1, keepdim=True)
    width = torch.where(known, signal, -torch.inf).amax(1, keepdim=True) - low
    varies = known & (width > 1e-6)
    scaled = torch.where(varies, (signal - low) / width, tau)
    w = torch.where(scaled < tau, scaled / tau, 1 + gain * (scaled - tau) / (1 - tau))
    w = torch.where(mask, w, 0)
    return w * mask.sum(1, keepdim=True) / w.sum(1, keepdim=True).clamp(min=1e-12)


# --- inside ---------------------------------------------------------------------------------------


def _largest(x: Tensor, mask: Tensor, fraction: float) -> Tensor:
    """The ⌈fraction · n⌉ largest of a row's n masked numbers, bool [B, T]; `x` is −inf elsewhere."""
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction is the share of tokens that are kept, above 0 and up to 1; got {fraction}")
    order = x.argsort(dim=1, descending=True, stable=True)
    place = torch.arange(x.shape[1], device=x.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, place)
    # 0.7 · 10 is 7.000000000000001 in floating point; the small step back keeps the ceiling at 7.
    return mask & (rank < (mask.sum(1, keepdim=True).double() * fraction - 1e-9).ceil())
