"""How right credit is, in numbers. Shapes: B completions, T tokens, P prompts."""

from __future__ import annotations

import torch
from torch import Tensor

from segpo_core import segments
from segpo_core.afterwards.bench_credit.judged import ERRORS, Judged

#: A true advantage of this size is a decision worth finding.
DECISIVE = 0.05
#: Draws of the bootstrap over prompts.
DRAWS = 1000


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


def inside(credit: Tensor, true: Tensor, mask: Tensor, ranked: bool = False) -> Tensor:
    """float64 [B]: the correlation within each completion; NaN in those where nothing is decided."""
    rows = torch.full((len(mask),), torch.nan, dtype=torch.float64)
    for b in (torch.where(mask, true, 0).abs().amax(1) > DECISIVE).nonzero()[:, 0].tolist():
        x, y = credit[b][mask[b]], true[b][mask[b]]
        rows[b] = correlation(ranks(x), ranks(y)) if ranked else correlation(x, y)
    return rows


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


def rows(j: Judged) -> dict[str, Tensor]:
    """What is known of each completion, float64 [B], NaN in those that a figure is not about."""
    drop = torch.where(j.mask, j.true, torch.inf)
    lowest = drop.amin(1)
    deciding = j.mask & (drop <= lowest[:, None] + 1e-9)
    first = torch.arange(j.mask.shape[1]) == j.first_error[:, None]
    failed, fell, erred = j.reward < 0.5, lowest < -DECISIVE, j.first_error >= 0
    found_by = {
        "hit": (found(j.credit, deciding, j.mask), fell),
        "chance": (by_chance(deciding, j.segment_ids), fell),
        "first_error_hit": (found(j.credit, first, j.mask), erred),
        "first_error_chance": (by_chance(first, j.segment_ids), erred),
    }
    made = {name: _only(values, about & failed) for name, (values, about) in found_by.items()}
    for kind in ERRORS:
        such = torch.tensor([error == kind for error in j.error])
        made |= {f"{kind}_{name}": _only(values, about & such) for name, (values, about) in found_by.items()}
    return made | {
        "within": inside(j.credit, j.true, j.mask),
        "within_spearman": inside(j.credit, j.true, j.mask, ranked=True),
    }


def figures(j: Judged) -> dict[str, float]:
    """All figures of one arm; `_low` and `_high` bound 95 % when prompts are drawn anew."""
    x, y = j.credit[j.mask], j.true[j.mask]
    large = y.abs() > DECISIVE
    gx, gy = x * (1 - j.probs[j.mask]), y * (1 - j.probs[j.mask])  # the gradient at each token's own logit
    of_rows = rows(j)
    return {
        "pearson": float(correlation(x, y)),
        "spearman": float(correlation(ranks(x), ranks(y))),
        "sign": float((x.sign() == y.sign())[large].double().mean()),
        "cosine": float((gx * gy).sum() / (gx.norm() * gy.norm()).clamp(min=1e-12)),
        "gradient_cosine": j.gradient_cosine,
        **{name: float(values.nanmean()) for name, values in of_rows.items()},
        **values_against_truth(j.states, j.values, j.mask),
        **intervals(j, of_rows),
        "tokens": j.tokens,
        "seconds": j.seconds,
    }


def values_against_truth(states: Tensor, values: Tensor, mask: Tensor) -> dict[str, float]:
    """Root mean square error of an arm's values where its segments begin, how much of the true values' variance they
    explain, and calibration: the mean distance of ten equal bins of values from what is true in them."""
    there = mask & ~states.isnan()
    if not there.any():
        return {}
    v, true = states[there].double(), values[there].double()
    bins = (v.clamp(0, 1) * 10).long().clamp(max=9)
    off = torch.zeros(10, dtype=torch.float64).scatter_add(0, bins, v - true)
    return {
        "value_rmse": float((v - true).square().mean().sqrt()),
        "value_explained": float(1 - (v - true).var() / true.var().clamp(min=1e-12)),
        "calibration": float(off.abs().sum() / len(v)),
    }


def intervals(j: Judged, of_rows: dict[str, Tensor]) -> dict[str, float]:
    """95 % of Pearson's correlation, of that within completions and of the deciding tokens found, when prompts are
    drawn anew."""
    prompt = j.prompt.unique(return_inverse=True)[1]
    number = int(prompt.max()) + 1
    draws = torch.randint(number, (DRAWS, number), generator=torch.Generator().manual_seed(0))
    times = torch.zeros(DRAWS, number, dtype=torch.float64).scatter_add(
        1, draws, torch.ones(draws.shape, dtype=torch.float64)
    )
    x, y = (torch.where(j.mask, v, 0).double() for v in (j.credit, j.true))
    sums = torch.stack([j.mask.double(), x, y, x * x, y * y, x * y]).sum(2)  # [6, B]
    n, sx, sy, sxx, syy, sxy = (times @ _of_prompts(sums, prompt, number).T).T
    spread = ((n * sxx - sx * sx) * (n * syy - sy * sy)).clamp(min=0).sqrt()
    made = {"pearson": torch.where(spread > 1e-9, (n * sxy - sx * sy) / spread.clamp(min=1e-9), 0)}
    for name in ("within", "hit"):
        known = ~of_rows[name].isnan()
        both = torch.stack([known.double(), of_rows[name].nan_to_num()])
        count, total = (times @ _of_prompts(both, prompt, number).T).T
        made[name] = total / count
    level = torch.tensor([0.025, 0.975], dtype=torch.float64)
    ends = {name: values.nanquantile(level).tolist() for name, values in made.items()}
    return {f"{name}_{end}": pair[i] for name, pair in ends.items() for i, end in enumerate(("low", "high"))}


def _of_prompts(sums: Tensor, prompt: Tensor, number: int) -> Tensor:
    """[K, B] to [K, P]."""
    return sums.new_zeros(len(sums), number).index_add(1, prompt, sums)


def _only(values: Tensor, about: Tensor) -> Tensor:
    return values.double().masked_fill(~about, torch.nan)
