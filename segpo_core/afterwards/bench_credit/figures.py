"""How right credit is, in numbers. All take what a method gives (`credit`, 0 where nothing enters the loss) and A*.

Shapes: B completions, T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from segpo_core import segments

#: A true advantage of this size is a decision worth finding.
DECISIVE = 0.05


def correlation(x: Tensor, y: Tensor) -> Tensor:
    """Pearson's, along the last axis; 0 where one of the two does not vary: constant credit points at nothing."""
    x, y = (v.double() - v.double().mean(-1, keepdim=True) for v in (x, y))
    size = (x.square().sum(-1) * y.square().sum(-1)).sqrt()
    return torch.where(size > 1e-12, (x * y).sum(-1) / size.clamp(min=1e-12), 0)


def ranks(x: Tensor) -> Tensor:
    """Average ranks of a vector: equal values share theirs."""
    _, inverse, count = x.unique(return_inverse=True, return_counts=True)
    end = count.cumsum(0).double()
    return (end - (count - 1) / 2)[inverse]


def within(credit: Tensor, true: Tensor, mask: Tensor) -> Tensor:
    """Mean over completions in which something is decided of the correlation inside them."""
    rows = []
    for x, y, m in zip(credit, true, mask, strict=True):
        if y[m].abs().max() > DECISIVE:
            rows.append(correlation(x[m], y[m]))
    return torch.stack(rows).mean() if rows else torch.tensor(torch.nan)


def found(credit: Tensor, wanted: Tensor, mask: Tensor) -> Tensor:
    """[B]: how likely the most blamed token, drawn evenly among the equally blamed, is one of `wanted` (bool)."""
    blamed = torch.where(mask, credit, torch.inf)
    worst = mask & (blamed <= blamed.amin(1, keepdim=True) + 1e-9)
    return (worst & wanted).sum(1) / worst.sum(1).clamp(min=1)


def by_chance(wanted: Tensor, segment_ids: Tensor) -> Tensor:
    """[B]: the same for a segment drawn evenly: what a cut alone finds."""
    size = segments.segment_sum((segment_ids >= 0).float(), segment_ids)
    number = segments.count(segment_ids).clamp(min=1)
    return (wanted / size.clamp(min=1)).sum(1) / number


def figures(
    credit: Tensor, true: Tensor, mask: Tensor, segment_ids: Tensor, probs: Tensor, failed: Tensor,
    error_start: Tensor,
) -> dict[str, float]:  # fmt: skip
    """All figures of one arm.

    Args:
        credit, true: [B, T].
        mask: bool [B, T]; segment_ids: long [B, T].
        probs: [B, T], π(y_t), for the gradient proxy: credit times (1 − π), the gradient at the token's own logit.
        failed: bool [B].
        error_start: long [B], token of the first true error, -1 where there is none.
    """
    x, y = credit[mask], true[mask]
    large = y.abs() > DECISIVE
    drop = torch.where(mask, true, torch.inf)
    lowest = drop.amin(1)
    judged = failed & (lowest < -DECISIVE)
    deciding = mask & (drop <= lowest[:, None] + 1e-9)
    first = torch.arange(mask.shape[1]) == error_start[:, None]
    erring = failed & (error_start >= 0)
    gx, gy = x * (1 - probs[mask]), y * (1 - probs[mask])

    def mean(values: Tensor, rows: Tensor) -> float:
        return float(values[rows].double().mean()) if rows.any() else float("nan")

    return {
        "pearson": float(correlation(x, y)),
        "spearman": float(correlation(ranks(x), ranks(y))),
        "within": float(within(credit, true, mask)),
        "sign": float((x.sign() == y.sign())[large].double().mean()) if large.any() else float("nan"),
        "hit": mean(found(credit, deciding, mask), judged),
        "chance": mean(by_chance(deciding, segment_ids), judged),
        "first_error_hit": mean(found(credit, first, mask), erring),
        "first_error_chance": mean(by_chance(first, segment_ids), erring),
        "cosine": float((gx * gy).sum() / (gx.norm() * gy.norm()).clamp(min=1e-12)),
    }


def interval(credit: Tensor, true: Tensor, mask: Tensor, prompt: Tensor, times: int = 200) -> tuple[float, float]:
    """95 % of Pearson's correlation when prompts are drawn anew."""
    names, row = prompt.unique(return_inverse=True)
    generator = torch.Generator().manual_seed(0)
    of = [(credit[row == i][mask[row == i]], true[row == i][mask[row == i]]) for i in range(len(names))]
    draws = []
    for _ in range(times):
        chosen = torch.randint(len(of), (len(of),), generator=generator).tolist()
        x, y = (torch.cat([of[i][k] for i in chosen]) for k in (0, 1))
        draws.append(correlation(x, y))
    low, high = torch.stack(draws).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    return float(low), float(high)
