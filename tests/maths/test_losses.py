"""Ratios, clipping, aggregation, value loss and KL."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segpo_core import losses as L
from segpo_core.segments import fixed_length
from tests.fakes import reference as slow
from tests.fakes.reference import mask_of, padded

LEVELS = ("token", "segment", "sequence")
LOSS_TYPES = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm")
LENGTH = 16  # what sum-norm divides by
nan = float("nan")
levels, loss_types = st.sampled_from(LEVELS), st.sampled_from(LOSS_TYPES)
row_lengths = st.lists(st.integers(0, 8), min_size=1, max_size=5)


def random_batch(lengths: list[int], seed: int = 0, dtype: torch.dtype = torch.float64) -> SimpleNamespace:
    """Log-probabilities and advantages of completions of these lengths; segments of three tokens."""
    generator = torch.Generator().manual_seed(seed)
    rows = [[0.0] * n for n in lengths]
    mask = mask_of(rows)
    old, noise, advantages, values, returns = (
        torch.randn(mask.shape, generator=generator, dtype=dtype) for _ in range(5)
    )
    old = -old.abs()
    return SimpleNamespace(
        mask=mask,
        old=old,
        new=(old + 0.4 * noise).requires_grad_(),
        advantages=advantages,
        values=values,
        returns=returns,
        ids=fixed_length(mask, 3),
    )


def loss_of(batch: SimpleNamespace, rows: slice = slice(None), **options) -> torch.Tensor:
    options = {"max_completion_length": LENGTH, "epsilon": 0.2, "epsilon_high": 0.28, "delta": 1.5} | options
    new, old, advantages, mask, ids = (x[rows] for x in (batch.new, batch.old, batch.advantages, batch.mask, batch.ids))
    return L.policy_loss(new, old, advantages, mask, segment_ids=ids, **options)[0]


def level_ids(level: str, length: int) -> list[int]:
    return [{"token": t, "segment": t // 3, "sequence": 0}[level] for t in range(length)]


# --- importance ratio -----------------------------------------------------------------------------


@given(row_lengths, levels, st.integers(0, 99))
def test_log_ratio(lengths, level, seed):
    b = random_batch(lengths, seed)
    ours = L.log_ratio(b.new, b.old, b.mask, level, b.ids)
    expected = [
        slow.log_ratio(b.new[i, :n].tolist(), b.old[i, :n].tolist(), level_ids(level, n)) for i, n in enumerate(lengths)
    ]
    torch.testing.assert_close(ours, padded(expected))


def test_a_mean_ratio_hands_its_gradient_to_every_token_of_the_segment():
    mask = torch.ones(1, 4, dtype=torch.bool)
    ids = torch.tensor([[0, 0, 0, 1]])
    new = torch.zeros(1, 4, requires_grad=True)
    L.log_ratio(new, torch.zeros(1, 4), mask, "segment", ids)[0, 0].backward()
    torch.testing.assert_close(new.grad, torch.tensor([[1 / 3, 1 / 3, 1 / 3, 0]]))
    new.grad = None
    L.log_ratio(new, torch.zeros(1, 4), mask, "sequence")[0, 0].backward()
    torch.testing.assert_close(new.grad, torch.full((1, 4), 0.25))


def test_the_mean_is_over_the_tokens_of_the_mask():
    """With a mask that has holes, the tokens in the holes have no part in their segment's ratio."""
    mask = torch.tensor([[True, False, True, True]])
    new, old = torch.tensor([[1.0, 50.0, 3.0, 7.0]]), torch.zeros(1, 4)
    ids = torch.tensor([[0, 0, 0, 1]])
    assert L.log_ratio(new, old, mask, "segment", ids).tolist() == [[2, 0, 2, 7]]
    torch.testing.assert_close(L.log_ratio(new, old, mask, "sequence"), torch.tensor([[11, 0, 11, 11]]) / 3)


# --- policy loss ----------------------------------------------------------------------------------


@given(
    row_lengths,
    levels,
    loss_types,
    st.sampled_from([None, 0.28]),
    st.sampled_from([None, 1.5, 3.0]),
    st.integers(0, 99),
)
def test_policy_loss(lengths, level, loss_type, epsilon_high, delta, seed):
    b = random_batch(lengths, seed)
    loss = loss_of(b, level=level, loss_type=loss_type, epsilon_high=epsilon_high, delta=delta)
    per_token = []
    for i, n in enumerate(lengths):
        ratios = slow.log_ratio(b.new[i, :n].tolist(), b.old[i, :n].tolist(), level_ids(level, n))
        pairs = zip(ratios, b.advantages[i, :n].tolist(), strict=True)
        per_token.append([-slow.surrogate(r, a, 0.2, epsilon_high or 0.2, delta) for r, a in pairs])
    assert loss.item() == pytest.approx(slow.aggregate(per_token, loss_type, LENGTH), abs=1e-9)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("cut", [[0, 3, 7], [0, 1, 2, 3, 4, 5, 6, 7], [0, 6, 7]])
def test_micro_batches_add_up(level, loss_type, cut):
    """With the global count as normalizer, the pieces' losses and gradients sum to those of the whole."""
    b = random_batch([5, 1, 0, 8, 3, 7, 2])
    loss_of(b, level=level, loss_type=loss_type).backward()
    whole, gradient = loss_of(b, level=level, loss_type=loss_type).detach(), b.new.grad.clone()

    b.new.grad = None
    total = L.count_items(b.mask, loss_type)
    pieces = []
    for start, stop in zip(cut, cut[1:], strict=False):
        piece = loss_of(b, slice(start, stop), level=level, loss_type=loss_type, normalizer=total)
        piece.backward()
        pieces.append(piece.detach())
    torch.testing.assert_close(sum(pieces), whole)
    torch.testing.assert_close(b.new.grad, gradient)
    counts = [L.count_items(b.mask[i:j], loss_type) for i, j in zip(cut, cut[1:], strict=False)]
    assert sum(counts) == total
    torch.testing.assert_close(loss_of(b, level=level, loss_type=loss_type, normalizer=float(total)), whole)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_is_the_slope_of_the_loss(level, dtype):
    b = random_batch([4, 2], dtype=dtype)
    loss_of(b, level=level).backward()
    assert b.new.grad.dtype == dtype and (b.new.grad[~b.mask] == 0).all()
    exact = {name: x.detach().double() if x.is_floating_point() else x for name, x in vars(b).items()}
    h = 1e-6
    for place in [(0, 0), (0, 3), (1, 1)]:
        step = torch.zeros_like(exact["new"])
        step[place] = h
        up, down = (loss_of(SimpleNamespace(**exact | {"new": exact["new"] + s}), level=level) for s in (step, -step))
        slope = (up - down).item() / (2 * h)
        assert b.new.grad[place].item() == pytest.approx(slope, abs=1e-6)


def test_gspo_is_the_sequence_level_with_a_mean_of_means():
    """GSPO, eq. 5: one clipped ratio times one advantage a completion, mean over completions."""
    b = random_batch([5, 2, 8])
    advantages = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)
    loss, _ = L.policy_loss(b.new, b.old, advantages, b.mask, level="sequence", loss_type="seq-mean-token-mean")
    difference = torch.where(b.mask, b.new - b.old, 0)
    s = (difference.sum(1) / b.mask.sum(1)).exp()
    torch.testing.assert_close(loss, -torch.min(s * advantages, s.clamp(0.8, 1.2) * advantages).mean())


def test_dual_clip():
    """Only where A < 0 and the ratio is above delta: the loss is held at delta · |A|, without gradient."""
    new = torch.log(torch.tensor([[5.0, 5.0, 2.0]])).requires_grad_()
    advantages, mask = torch.tensor([[-1.0, 1.0, -1.0]]), torch.ones(1, 3, dtype=torch.bool)
    loss, stats = L.policy_loss(new, torch.zeros(1, 3), advantages, mask, delta=3.0, loss_type="seq-mean-token-sum")
    loss.backward()
    assert loss.item() == pytest.approx(3.0 - 1.2 + 2.0)
    torch.testing.assert_close(new.grad, torch.tensor([[0.0, 0.0, 2.0]]))
    assert stats["clip_ratio/dual"].item() == pytest.approx(1 / 3)


def test_stats():
    new = torch.log(torch.tensor([[0.5, 2.0, 1.0, 1.0], [2.0, 0.5, 1.0, 9.0]]))
    advantages = torch.tensor([[-1.0, 1.0, 1.0, -1.0], [-1.0, 1.0, 1.0, nan]])
    mask = torch.tensor([[True] * 4, [True, True, True, False]])
    _, stats = L.policy_loss(new.requires_grad_(), torch.zeros(2, 4), advantages, mask)
    assert not any(x.requires_grad or x.dim() for x in stats.values())
    numbers = {name: x.item() for name, x in stats.items()}
    assert numbers["clip_ratio/low"] == numbers["clip_ratio/high"] == pytest.approx(1 / 7)
    assert numbers["clip_ratio/region"] == pytest.approx(2 / 7)
    assert (numbers["ratio/min"], numbers["ratio/max"]) == pytest.approx((0.5, 2.0))
    assert numbers["ratio/mean"] == pytest.approx(8 / 7)
    assert numbers["approx_kl"] == pytest.approx(1 / 7)  # the logarithms cancel here
    assert numbers["tokens"] == 7


def test_an_extreme_ratio_stays_finite():
    """0 · inf must not arise where the advantage is 0, nor inf where it is negative."""
    new = torch.tensor([[500.0, 500.0, -500.0]], requires_grad=True)
    advantages, mask = torch.tensor([[0.0, -1.0, 1.0]]), torch.ones(1, 3, dtype=torch.bool)
    loss, _ = L.policy_loss(new, torch.zeros(1, 3), advantages, mask)
    loss.backward()
    assert loss.isfinite() and new.grad.isfinite().all()


# --- value loss, KL, explained variance -----------------------------------------------------------


@given(row_lengths, st.sampled_from([None, 0.2]), st.integers(0, 99))
def test_value_loss(lengths, clip, seed):
    b = random_batch(lengths, seed)
    hidden = [torch.where(b.mask, x, nan) for x in (b.values, b.old, b.returns)]
    loss, stats = L.value_loss(*hidden, b.mask, clip)
    total, clipped, n = 0.0, 0, int(b.mask.sum())
    for v, old, r in zip(*(x[b.mask].tolist() for x in (b.values, b.old, b.returns)), strict=True):
        errors = [(v - r) ** 2]
        if clip is not None:
            errors.append((min(max(v, old - clip), old + clip) - r) ** 2)
        total += 0.5 * max(errors)
        clipped += errors[-1] > errors[0]
    assert loss.item() == pytest.approx(total / max(n, 1))
    assert stats["clip_ratio"].item() == pytest.approx(clipped / max(n, 1))
    if n:
        doubled, _ = L.value_loss(*hidden, b.mask, clip, normalizer=2 * n)
        assert 2 * doubled.item() == pytest.approx(loss.item())


def test_kl_estimators():
    log_p, log_q = torch.tensor([[0.3, -0.2]]).log_softmax(-1), torch.tensor([[-1.0, 0.4]]).log_softmax(-1)
    difference = log_p - log_q
    torch.testing.assert_close(L.kl(log_p, log_q, "k1"), difference)
    torch.testing.assert_close(L.kl(log_p, log_q, "k2"), difference**2 / 2)
    torch.testing.assert_close(L.kl(log_p, log_q, "k3"), (-difference).exp() - 1 + difference)
    exact = (log_p.exp() * difference).sum()
    for estimator in ("k1", "k3"):  # these two are unbiased
        torch.testing.assert_close((log_p.exp() * L.kl(log_p, log_q, estimator)).sum(), exact)
    assert (L.kl(log_p, log_q, "k3") >= 0).all()
    assert (L.kl(log_p, log_p) == 0).all()


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("junk", [nan, float("inf"), -float("inf")])
def test_kl_with_a_mask_keeps_padding_out(estimator, junk):
    mask = torch.tensor([[True, False]])
    new = torch.tensor([[-0.5, junk]], requires_grad=True)
    result = L.kl(new, torch.tensor([[-1.0, junk]]), estimator, mask)
    result.sum().backward()
    assert result[0, 1] == 0 and new.grad[0, 1] == 0 and new.grad.isfinite().all()


def test_explained_variance():
    mask = torch.tensor([[True, True, True, False]])
    returns = torch.tensor([[1.0, 2.0, 3.0, nan]])
    assert L.explained_variance(returns, returns, mask) == 1
    assert L.explained_variance(torch.full_like(returns, 7), returns, mask) == 0
    torch.testing.assert_close(L.explained_variance(returns / 2, returns, mask), torch.tensor(0.75))
    assert L.explained_variance(returns, torch.ones(1, 4), mask).isnan()


def test_errors_say_what_is_wrong():
    x, mask = torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool)
    for call, message in (
        (lambda: L.log_ratio(x, x, mask, "word"), "level must be"),
        (lambda: L.log_ratio(x, x, mask, "segment"), "needs segment_ids"),
        (lambda: L.aggregate(x, mask, "mean"), "loss_type must be"),
        (lambda: L.aggregate(x, mask, "seq-mean-token-sum-norm"), "needs max_completion_length"),
        (lambda: L.kl(x, x, "k4"), "estimator must be"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("mode", ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"])
@pytest.mark.parametrize("bounds", [(1.3, None), (None, 0.8), (1.3, 0.8), (None, None)])
def test_importance_weights_against_a_loop(mode, bounds):
    generator = torch.Generator().manual_seed(3)
    ours, theirs = (torch.randn(4, 6, generator=generator) * 0.3 - 1 for _ in range(2))
    mask = torch.arange(6) < torch.tensor([6, 3, 1, 5])[:, None]
    theirs[0, 2] = math.nan
    high, low = bounds
    got = L.importance_weights(ours, theirs, mask, mode, high, low)
    for b in range(4):
        gaps = [
            0.0 if math.isnan(theirs[b, t]) else float(ours[b, t] - theirs[b, t]) for t in range(int(mask[b].sum()))
        ]
        for t in range(6):
            if not mask[b, t]:
                assert got[b, t] == 0
                continue
            weight = math.exp(sum(gaps) if mode.startswith("sequence") else gaps[t])
            outside = (high is not None and weight > high) or (low is not None and weight < low)
            if outside and mode.endswith("mask"):
                weight = 0.0
            elif outside:
                weight = high if high is not None and weight > high else low
            assert float(got[b, t]) == pytest.approx(weight, rel=1e-5)


def test_importance_weights_multiply_each_tokens_gradient():
    logprobs = torch.tensor([[-1.0, -2.0, -0.5]], requires_grad=True)
    old, advantages = logprobs.detach(), torch.tensor([[1.0, -1.0, 2.0]])
    mask, weights = torch.tensor([[True, True, False]]), torch.tensor([[0.5, 3.0, math.nan]])
    loss, _ = L.policy_loss(logprobs, old, advantages, mask, weights=weights)
    loss.backward()
    torch.testing.assert_close(logprobs.grad, -(advantages * torch.tensor([[0.5, 3.0, 0.0]])) / 2)
