"""The statistics behind the views."""

from __future__ import annotations

import math

import numpy as np
import pytest

from segviz.show.statistics import (
    auc,
    calibration,
    difference,
    equal_count_bins,
    expected_flips,
    lift,
    mean_difference,
    sign_flips,
    spikes,
    top_counts,
    wilson,
)


def test_wilson_interval_is_the_score_interval():
    low, high = wilson(np.array([0, 5, 10]), np.array([10, 10, 10]))
    z2 = 1.959964**2
    assert high[0] == pytest.approx(z2 / (10 + z2)) and low[0] == 0  # closed form at 0 of n
    assert low[2] == pytest.approx(10 / (10 + z2)) and high[2] == 1
    assert (low[1] + high[1]) / 2 == pytest.approx(0.5)
    # an end of the interval is the p whose own z-test just accepts the share
    assert abs(0.5 - low[1]) / math.sqrt(low[1] * (1 - low[1]) / 10) == pytest.approx(1.959964)
    assert np.isnan(wilson(0, 0)[0])


def test_bins_have_equal_counts_and_never_split_equal_values():
    assert np.bincount(equal_count_bins(np.arange(100.0), 10)).tolist() == [10] * 10
    tied = np.array([0.0] * 70 + [1.0] * 30)
    index = equal_count_bins(tied, 10)
    assert len(set(index[:70])) == len(set(index[70:])) == 1 and index[0] != index[-1]
    assert len(equal_count_bins(np.zeros(0), 5)) == 0


def test_calibration_of_known_estimates():
    estimate = np.repeat([0.2, 0.7], 50)
    outcome = np.concatenate([np.ones(10), np.zeros(40), np.ones(25), np.zeros(25)])  # 0.2 is right, 0.7 is 0.5
    curve = calibration(estimate, outcome)
    assert curve.estimate.tolist() == pytest.approx([0.2, 0.7]) and curve.outcome.tolist() == pytest.approx([0.2, 0.5])
    assert curve.count.tolist() == [50, 50] and curve.error == pytest.approx(0.1)
    assert (curve.low[1], curve.high[1]) == tuple(float(x) for x in wilson(25, 50))
    # ten states of each completion are no ten observations
    wide = calibration(estimate, outcome, owner=np.arange(100) // 10)
    assert wide.high[1] - wide.low[1] > 2 * (curve.high[1] - curve.low[1])
    assert (wide.low[1], wide.high[1]) == tuple(float(x) for x in wilson(2.5, 5))
    assert math.isnan(calibration(np.zeros(0), np.zeros(0)).error)
    lost = calibration(np.array([0.5, np.nan, 0.5]), np.array([1.0, 1.0, np.nan]))
    assert lost.count.tolist() == [1]


def test_calibration_against_values_uses_the_interval_of_a_mean():
    outcome = np.array([0.1, 0.3, 0.5, 0.7])
    curve = calibration(np.full(4, 0.4), outcome)
    half = 1.959964 * outcome.std(ddof=1) / 2
    assert (curve.low[0], curve.high[0]) == (pytest.approx(0.4 - half), pytest.approx(0.4 + half))


def test_sign_flips_count_what_differs():
    size = np.repeat([0.1, 1.0], 100)
    truth = size.copy()
    truth[:50] *= -1
    flips = sign_flips(size, truth, bins=2)
    assert flips.size.tolist() == pytest.approx([0.1, 1.0]) and flips.share.tolist() == [0.5, 0.0]
    assert flips.total == 0.25 and flips.low[0] == pytest.approx(float(wilson(50, 100)[0]))
    none = sign_flips(np.array([0.0, 1.0, 1.0]), np.array([1.0, 0.0, np.nan]))
    assert len(none.count) == 0 and math.isnan(none.total)


def test_expected_flips_follow_the_normal_law():
    flips = expected_flips(np.array([1.0, -1.0, 0.5, 2.0]), np.array([1.0, 1.0, 0.0, np.nan]), bins=2)
    assert sorted(flips.share.tolist()) == pytest.approx([0.0, 0.158655], abs=1e-5)  # Φ(−1), and 0 where σ is 0


def test_lift_of_known_sets():
    scores = [np.arange(10.0)[::-1]] * 6
    best = [np.arange(10) < 2] * 6  # D is the top fifth
    q = np.array([0.1, 0.2, 0.5, 1.0])
    curve = lift(top_counts(scores, best, q), q, draws=200)
    assert curve.lift.tolist() == pytest.approx([5, 5, 2, 1])
    assert curve.low.tolist() == pytest.approx(curve.lift.tolist())  # all rollouts alike: nothing to resample
    worst = lift(top_counts(scores, [np.arange(10) >= 8] * 6, q), q, draws=10)
    assert worst.lift.tolist() == pytest.approx([0, 0, 0, 1])


def test_lift_of_unrelated_sets_is_one_and_the_seed_decides_the_interval():
    rng = np.random.default_rng(0)
    scores = [rng.random(60) for _ in range(200)]
    decisions = [rng.random(60) < 0.1 for _ in range(200)]
    q = np.array([0.1, 0.3, 1.0])
    counts = top_counts(scores, decisions, q)
    one, again, other = (lift(counts, q, draws=300, seed=seed) for seed in (0, 0, 1))
    assert ((one.low <= 1) & (1 <= one.high))[:2].all() and (one.high - one.low)[0] > (one.high - one.low)[1] > 0.02
    assert one.lift[2] == one.low[2] == one.high[2] == 1
    assert (one.low == again.low).all() and (one.low != other.low).any() and (one.lift == other.lift).all()


def test_the_interval_of_lift_resamples_whole_rollouts():
    # the same counts in one long rollout and in twenty short ones
    q = np.array([0.5])
    short = np.array([[[2, 5, 2, 10]], [[0, 5, 2, 10]]] * 10, float)
    whole = short.sum(axis=0, keepdims=True)
    assert lift(whole, q).low[0] == lift(whole, q).high[0] == pytest.approx(1.0)
    assert lift(short, q).high[0] - lift(short, q).low[0] > 0.3


def test_spikes_are_found_and_noise_is_not_one():
    rng = np.random.default_rng(3)
    y = np.linspace(0, 5, 200) + rng.normal(0, 0.1, 200)
    assert spikes(y) == []
    y[70] += 3
    y[120] -= 2
    assert [(s.index, s.z > 0) for s in spikes(y)] == [(70, True), (120, False)]
    assert spikes(y)[0].usual == pytest.approx(5 * 70 / 199, abs=0.1)


def test_spikes_where_most_values_are_equal():
    flat = [0.0] * 60
    assert spikes(flat) == [] and spikes([7.0] * 5 + [9.0]) == []
    flat[30] = 1.0
    assert [s.index for s in spikes(flat)] == [30]


def test_a_difference_of_shares_is_newcombes():
    # Newcombe (1998), table II, 56/70 against 48/80 and 9/10 against 3/10, method 10
    assert difference(48, 80, 56, 70) == pytest.approx((0.0524, 0.3339), abs=1e-4)
    assert difference(3, 10, 9, 10) == pytest.approx((0.1705, 0.8090), abs=1e-4)
    assert difference(10, 10, 10, 10) == pytest.approx((-0.2775, 0.2775), abs=1e-4)


def test_means_are_compared_by_welch():
    found = mean_difference([1.0, 2.0, 3.0, 4.0, 5.0], [3.0, 3.5, 4.0, 4.5, 5.0])
    # t of 4 degrees of freedom is 2.776, of 5.88 it is 2.459
    assert (found.first, found.second) == (3.0, 4.0)
    assert found.high - 4.0 == pytest.approx(2.776 * (0.625 / 5) ** 0.5, rel=0.01)
    assert found.change_high - 1.0 == pytest.approx(2.459 * (2.5 / 5 + 0.625 / 5) ** 0.5, rel=0.01)
    assert mean_difference([1.0] * 5, [1.0] * 5)[2:] == (1.0, 1.0, 0.0, 0.0)


def test_the_area_under_the_curve_counts_pairs():
    rng = np.random.default_rng(0)
    estimate, good = rng.integers(0, 6, 60).astype(float), rng.random(60) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in estimate[good] for b in estimate[~good]]
    area, low, high = auc(estimate, good, np.arange(60))
    assert area == pytest.approx(np.mean(pairs)) and 0 <= low < area < high <= 1
    twice = auc(np.tile(estimate, 4), np.tile(good, 4), np.tile(np.arange(60), 4))
    assert twice == pytest.approx((area, low, high)), "states of one completion count once"
    assert auc(good.astype(float), good, np.arange(60))[1] < 0.95, "all right is not certainty"
    assert np.isnan(auc(estimate, np.ones(60, bool), np.arange(60))).all()
