"""Statistics behind the views: arrays in, arrays out. NaN means "not measured" and is left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Z95 = 1.959964  #: standard deviations on each side that hold 95 % of a normal distribution

SPIKES_FROM = 20  #: fewer values do not tell what is usual

MAD_TO_SD = 1.4826  #: median absolute deviation -> standard deviation, for normal noise
MEAN_TO_SD = 1.2533  #: mean absolute deviation -> standard deviation, for normal noise


class Calibration(NamedTuple):
    """A reliability curve of K bins, and one number for it."""

    estimate: np.ndarray  #: [K] mean estimate
    outcome: np.ndarray  #: [K] mean of what it should be
    low: np.ndarray  #: [K] 95 % interval of `outcome`
    high: np.ndarray
    count: np.ndarray  #: [K] estimates in the bin
    error: float  #: expected calibration error, Σ count/n · |outcome − estimate|; NaN without data


class Flips(NamedTuple):
    """Shares of wrong signs in K bins of the estimate's size."""

    size: np.ndarray  #: [K] mean |estimate|
    share: np.ndarray  #: [K] of estimates whose sign differs from the truth's
    low: np.ndarray  #: [K] Wilson interval
    high: np.ndarray
    count: np.ndarray  #: [K]
    total: float  #: share over all bins; NaN without data


class Lift(NamedTuple):
    """Lift at Q quantiles with a bootstrap interval."""

    q: np.ndarray  #: [Q]
    lift: np.ndarray  #: [Q]
    low: np.ndarray  #: [Q] 95 % percentile interval over resampled rollouts
    high: np.ndarray


class Spike(NamedTuple):
    """A value far from its neighbours."""

    index: int
    usual: float  #: the running median there
    z: float  #: distance to it in robust standard deviations, signed


class MeanDifference(NamedTuple):
    """Two means, and 95 % intervals of the second and of their difference."""

    first: float
    second: float
    low: float
    high: float
    change_low: float
    change_high: float


def wilson(successes: np.ndarray | float, trials: np.ndarray | float, z: float = Z95) -> tuple[np.ndarray, np.ndarray]:
    """Score interval of a share (Wilson 1927): (low, high), within [0, 1] for any count; NaN without trials.

    `trials` need not be whole: an effective number is one that counts what is independent.
    """
    k, n = np.asarray(successes, float), np.asarray(trials, float)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = k / n
        middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    # at none and at all of them the ends are 0 and 1 but for rounding
    return np.where(k == 0, 0 * share, np.maximum(middle - half, 0)), np.where(
        k == n, share, np.minimum(middle + half, 1)
    )


def difference(k1: float, n1: float, k2: float, n2: float) -> tuple[float, float]:
    """95 % interval of k2/n2 − k1/n1, two independent shares (Newcombe 1998, method 10: from both Wilson intervals)."""
    p1, p2 = k1 / n1, k2 / n2
    (low1, high1), (low2, high2) = wilson(k1, n1), wilson(k2, n2)
    return (
        float(p2 - p1 - math.hypot(p2 - low2, high1 - p1)),
        float(p2 - p1 + math.hypot(high2 - p2, p1 - low1)),
    )


def mean_difference(first: Sequence[float], second: Sequence[float]) -> MeanDifference:
    """Means of two samples of at least two values each, with intervals of Student's t; Welch's for the difference."""
    (m1, v1, d1), (m2, v2, d2) = (
        (float(np.mean(x)), float(np.var(x, ddof=1)) / len(x), len(x) - 1) for x in (first, second)
    )
    spread = v1 + v2
    freedom = spread**2 / (v1**2 / d1 + v2**2 / d2) if spread else d1 + d2
    own, both = _t95(d2) * math.sqrt(v2), _t95(freedom) * math.sqrt(spread)
    return MeanDifference(m1, m2, m2 - own, m2 + own, m2 - m1 - both, m2 - m1 + both)


def _t95(freedom: float) -> float:
    """Quantile 0.975 of Student's t, by its expansion around the normal one (Abramowitz and Stegun, 26.7.5)."""
    z, v = Z95, freedom
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / v ** (i + 1) for i, term in enumerate(terms))


def auc(estimate: np.ndarray, good: np.ndarray, owner: np.ndarray) -> tuple[float, float, float]:
    """Area under the ROC curve, ties counted half, with a 95 % interval; NaN where all are good, or none.

    The interval has Hanley and McNeil's (1982) variance in Wilson's form. Estimates of one owner share its outcome, so
    it counts owners.

    Args:
        estimate: float [n].
        good: bool [n].
        owner: int [n].
    """
    pairs = np.unique(np.stack([owner, good.astype(int)]), axis=1)[1] if len(owner) else np.zeros(0, int)
    good_owners, bad_owners = int(pairs.sum()), int((1 - pairs).sum())
    if not (good_owners and bad_owners):
        return math.nan, math.nan, math.nan
    values, inverse, count = np.unique(estimate, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[inverse]
    n_good, n_bad = int(good.sum()), int((~good).sum())
    area = float((rank[good].sum() - n_good * (n_good + 1) / 2) / (n_good * n_bad))
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    spread = area * (1 - area) + (good_owners - 1) * (q1 - area**2) + (bad_owners - 1) * (q2 - area**2)
    spread /= good_owners * bad_owners
    independent = area * (1 - area) / spread if spread > 1e-12 else min(good_owners, bad_owners)
    low, high = wilson(area * independent, independent)
    return area, float(low), float(high)


def equal_count_bins(x: np.ndarray, bins: int) -> np.ndarray:
    """Bin of each value, int [n] from 0 up without gaps; equal values share one, so there may be fewer than `bins`."""
    if not len(x):
        return np.zeros(0, dtype=int)
    edges = np.unique(np.quantile(x, np.linspace(0, 1, bins + 1)[1:-1]))
    return np.unique(np.searchsorted(edges, x, side="right"), return_inverse=True)[1]


def calibration(
    estimate: np.ndarray, outcome: np.ndarray, bins: int = 10, owner: np.ndarray | None = None
) -> Calibration:
    """Reliability of estimates in equal-count bins.

    The interval is Wilson's where every outcome is 0 or 1, else that of a mean. Estimates of one owner (states of one
    completion, which share its outcome) count once in it: otherwise it would be too narrow.

    Args:
        estimate: float [n].
        outcome: float [n].
        bins: at most so many.
        owner: int [n]; None: each estimate is its own.
    """
    owner = np.arange(len(estimate)) if owner is None else owner
    known = np.isfinite(estimate) & np.isfinite(outcome)
    estimate, outcome, owner = estimate[known], outcome[known], owner[known]
    index = equal_count_bins(estimate, bins)
    count = np.bincount(index)
    mean = np.bincount(index, outcome) / count
    center = np.bincount(index, estimate) / count
    pairs = np.unique(np.stack([index, owner]), axis=1) if len(index) else np.zeros((2, 0), int)
    independent = np.bincount(pairs[0], minlength=len(count))
    if np.isin(outcome, (0, 1)).all():
        low, high = wilson(mean * independent, independent)
    else:
        spread = np.sqrt(np.maximum(np.bincount(index, outcome**2) / count - mean**2, 0))
        with np.errstate(divide="ignore", invalid="ignore"):
            half = np.where(independent > 1, Z95 * spread / np.sqrt(independent - 1), np.nan)
        low, high = mean - half, mean + half
    error = float((count * np.abs(mean - center)).sum() / count.sum()) if len(count) else math.nan
    return Calibration(center, mean, low, high, count, error)


def sign_flips(estimate: np.ndarray, truth: np.ndarray, bins: int = 5) -> Flips:
    """Share of estimates with the wrong sign, in equal-count bins of |estimate|. Zeros have none and are left out."""
    known = np.isfinite(estimate) & np.isfinite(truth) & (estimate != 0) & (truth != 0)
    estimate, truth = estimate[known], truth[known]
    wrong, index = (estimate > 0) != (truth > 0), equal_count_bins(np.abs(estimate), bins)
    count = np.bincount(index)
    bad = np.bincount(index, wrong)
    low, high = wilson(bad, count)
    total = float(wrong.mean()) if len(wrong) else math.nan
    return Flips(np.bincount(index, np.abs(estimate)) / count, bad / count, low, high, count, total)


def expected_flips(estimate: np.ndarray, stderr: np.ndarray, bins: int = 5) -> Flips:
    """Share of wrong signs that sampling noise alone leads one to expect: the mean of Φ(−|A| / σ) in each bin.

    It has no interval (`low` and `high` are the share). σ = 0 counts as exact, so the share is a lower bound where
    samples merely agreed.
    """
    known = np.isfinite(estimate) & np.isfinite(stderr) & (estimate != 0)
    size, stderr = np.abs(estimate[known]), stderr[known]
    with np.errstate(divide="ignore"):
        z = np.where(stderr > 0, size / np.where(stderr > 0, stderr, 1), np.inf)
    risk = np.array([0.5 * math.erfc(x / math.sqrt(2)) for x in z])
    index = equal_count_bins(size, bins)
    count = np.bincount(index)
    share = np.bincount(index, risk) / count
    total = float(risk.mean()) if len(risk) else math.nan
    return Flips(np.bincount(index, size) / count, share, share, share, count, total)


def top_counts(scores: Sequence[np.ndarray], decision: Sequence[np.ndarray], q: np.ndarray) -> np.ndarray:
    """What `lift` counts. In each of B rollouts A is the set of its ⌈q · T⌉ tokens of highest score.

    Args:
        scores: B arrays [T_b].
        decision: B arrays bool [T_b], the set D.
        q: [Q] shares in (0, 1].

    Returns:
        float [B, Q, 4]: |A ∩ D|, |A|, |D|, T_b.
    """
    counts = np.zeros((len(scores), len(q), 4))
    for b, (score, wanted) in enumerate(zip(scores, decision, strict=True)):
        total = len(score)
        size = np.clip(np.ceil(q * total - 1e-9), 0, total).astype(int)
        found = np.concatenate([[0], np.cumsum(wanted[np.argsort(-score, kind="stable")])])
        counts[b] = np.stack([found[size], size, np.full(len(q), wanted.sum()), np.full(len(q), total)], axis=1)
    return counts


def lift(counts: np.ndarray, q: np.ndarray, draws: int = 1000, seed: int = 0) -> Lift:
    """Lift(A, D) = P(D | A) / P(D) over all rollouts, with an interval from resampling rollouts.

    Args:
        counts: [B, Q, 4] from `top_counts`.
        q: [Q].
        draws: resamples.
        seed: of the resampling.
    """

    def of(sums: np.ndarray) -> np.ndarray:
        both, inside, wanted, total = np.moveaxis(sums, -1, 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            return (both / inside) / (wanted / total)

    rollouts = len(counts)
    times = np.random.default_rng(seed).multinomial(rollouts, np.full(rollouts, 1 / rollouts), size=draws)
    resampled = of(np.tensordot(times, counts, axes=1))
    # a resample may hold no token of D at all and then has no lift
    low, high = np.nanquantile(resampled, (0.025, 0.975), axis=0)
    return Lift(q, of(counts.sum(axis=0)), low, high)


def spikes(values: Sequence[float], reach: int = 7, threshold: float = 6.0) -> list[Spike]:
    """Values far from the running median of their neighbours, largest first.

    The distance is measured in robust standard deviations of all such distances: 1.4826 times their median absolute
    deviation, or, where more than half of them are 0, 1.2533 times their mean one.

    Args:
        values: one metric over training. Fewer than `SPIKES_FROM` tell nothing about what is usual.
        reach: neighbours on each side; a value is not its own neighbour.
        threshold: in standard deviations; normal noise passes 6 once in half a billion values.
    """
    y = np.asarray(values, float)
    if len(y) < SPIKES_FROM:
        return []
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(y, reach, mode="reflect"), 2 * reach + 1)
    near = np.sort(np.delete(windows, reach, axis=1), axis=1)
    usual = (near[:, reach - 1] + near[:, reach]) / 2  # their median, in an eighth of `np.median`'s time
    away = y - usual
    scale = MAD_TO_SD * np.median(np.abs(away)) or MEAN_TO_SD * np.mean(np.abs(away))
    if not scale > 1e-9 * np.abs(y).max():  # constant but for rounding
        return []
    z = away / scale
    found = [Spike(int(i), float(usual[i]), float(z[i])) for i in np.flatnonzero(np.abs(z) > threshold)]
    return sorted(found, key=lambda spike: -abs(spike.z))
