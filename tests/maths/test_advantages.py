"""Advantages: each against a slow loop, and at its corners."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segpo_core import advantages as A
from segpo_core.segments import count, starts
from tests.fakes import reference as slow
from tests.fakes.reference import mask_of, padded

TOLERANCE = {torch.float32: {"atol": 2e-5, "rtol": 2e-5}, torch.float64: {"atol": 1e-9, "rtol": 1e-9}}
dtypes = st.sampled_from(list(TOLERANCE))
unit = st.floats(-1, 1, width=32)
shares = st.sampled_from([0.0, 0.3, 0.95, 0.99, 1.0])
nan = float("nan")


@st.composite
def groups(draw) -> tuple[list[float], list[int]]:
    rewards = draw(st.lists(unit, min_size=1, max_size=12))
    return rewards, draw(st.lists(st.sampled_from([-3, 0, 7]), min_size=len(rewards), max_size=len(rewards)))


@st.composite
def cut_rows(draw) -> tuple[list[list[float]], list[list[float]], list[list[int]]]:
    """Rewards, values and segment ids of some completions."""
    lengths = draw(st.lists(st.integers(0, 20), min_size=1, max_size=4))
    numbers = [[draw(st.lists(unit, min_size=n, max_size=n)) for n in lengths] for _ in range(2)]
    cuts = [draw(st.lists(st.integers(0, max(n - 1, 0)), max_size=n)) for n in lengths]
    return *numbers, [slow.ids_from_starts(c, n) for c, n in zip(cuts, lengths, strict=True)]


# --- groups ---------------------------------------------------------------------------------------


@given(groups(), st.sampled_from(["group", "batch", "none"]))
def test_group_relative(case, scale):
    rewards, group = case
    ours = A.group_relative(torch.tensor(rewards, dtype=torch.float64), torch.tensor(group), scale)
    torch.testing.assert_close(ours, torch.tensor(slow.group_relative(rewards, group, scale), dtype=torch.float64))


@given(groups())
def test_leave_one_out(case):
    rewards, group = case
    ours = A.leave_one_out(torch.tensor(rewards, dtype=torch.float64), torch.tensor(group))
    torch.testing.assert_close(ours, torch.tensor(slow.leave_one_out(rewards, group), dtype=torch.float64))


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 1 / 3, -7.3e5])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_equal_rewards_give_exactly_zero(reward, size):
    rewards, group = torch.full((size,), reward), torch.zeros(size, dtype=torch.long)
    for scale in ("group", "batch", "none"):
        assert (A.group_relative(rewards, group, scale) == 0).all()
    assert (A.leave_one_out(rewards, group) == 0).all()


def test_a_missing_reward_changes_nothing_for_the_others():
    rewards, group = torch.tensor([1.0, 0.0, 0.5, 2.0]), torch.tensor([0, 0, 0, 1])
    with_gap, gap_group = torch.tensor([1.0, nan, 0.0, 0.5, 2.0, nan]), torch.tensor([0, 0, 0, 0, 1, 2])
    here = [0, 2, 3, 4]
    for method in (A.leave_one_out, *(lambda r, g, s=s: A.group_relative(r, g, s) for s in ("group", "batch", "none"))):
        result = method(with_gap, gap_group)
        torch.testing.assert_close(result[here], method(rewards, group))
        assert result[1] == 0 and result[5] == 0


# --- generalised advantage estimation -------------------------------------------------------------


@given(cut_rows(), shares, shares, dtypes)
def test_gae(case, gamma, lam, dtype):
    rewards, values, _ = case
    r, v, mask = padded(rewards, nan, dtype), padded(values, nan, dtype), mask_of(rewards)
    advantages, returns = A.gae(r, v, mask, gamma, lam)
    both = [slow.gae(*row, gamma, lam) for row in zip(rewards, values, strict=True)]
    torch.testing.assert_close(advantages, padded([a for a, _ in both], dtype=dtype), **TOLERANCE[dtype])
    torch.testing.assert_close(returns, padded([r for _, r in both], dtype=dtype), **TOLERANCE[dtype])


@given(cut_rows(), shares, shares, st.sampled_from(["start", "end"]), dtypes, st.integers(0, 2))
def test_segment_gae(case, gamma, lam, value_at, dtype, extra):
    rewards, values, ids = case
    r, v = padded(rewards, nan, dtype, extra), padded(values, nan, dtype, extra)
    segment_ids = padded(ids, -1, torch.long, extra)
    advantages, returns = A.segment_gae(r, v, segment_ids, gamma, lam, value_at)
    both = [slow.segment_gae(*row, gamma, lam, value_at) for row in zip(rewards, values, ids, strict=True)]
    torch.testing.assert_close(advantages, padded([a for a, _ in both], dtype=dtype, extra=extra), **TOLERANCE[dtype])
    torch.testing.assert_close(returns, padded([r for _, r in both], dtype=dtype, extra=extra), **TOLERANCE[dtype])
    assert torch.equal(segment_ids, padded(ids, -1, torch.long, extra))  # the inputs are left alone


def test_the_bound_used_on_accelerators_gives_the_same(monkeypatch):
    """There, segment GAE does not count the segments; it leaves room for one a token."""
    ids = torch.tensor([[0, 0, 1, 2, -1], [0, 1, 1, -1, -1]])
    r, v = torch.randn(2, 5), torch.randn(2, 5)
    expected = A.segment_gae(r, v, ids, 1.0, 0.9)
    monkeypatch.setattr(A, "_most_segments", lambda ids: ids.shape[1])
    for ours, theirs in zip(A.segment_gae(r, v, ids, 1.0, 0.9), expected, strict=True):
        assert torch.equal(ours, theirs)


def test_long_completions_keep_their_precision():
    torch.manual_seed(0)
    rewards, values = torch.randn(1, 3000), torch.randn(1, 3000)
    ours, _ = A.gae(rewards, values, torch.ones(1, 3000, dtype=torch.bool), 1.0, 1.0)
    exact, _ = slow.gae(rewards[0].tolist(), values[0].tolist(), 1.0, 1.0)
    torch.testing.assert_close(ours[0], torch.tensor(exact), atol=1e-3, rtol=1e-5)


def test_advantages_are_constants_to_the_gradient():
    values = torch.zeros(1, 3, requires_grad=True)
    ids = torch.tensor([[0, 0, 1]])
    assert not any(x.requires_grad for x in A.gae(values, values, ids >= 0, 1.0, 1.0))
    assert not any(x.requires_grad for x in A.segment_gae(values, values, ids, 1.0, 1.0))


def test_token_rewards():
    mask = torch.tensor([[True, True, False], [True, True, True], [False, False, False]])
    kl = torch.tensor([[1.0, 2.0, nan], [0.0, 0.0, 4.0], [nan, nan, nan]])
    rewards = torch.tensor([1.0, -1.0, 5.0])
    assert A.token_rewards(rewards, mask).tolist() == [[0, 1, 0], [0, 0, -1], [0, 0, 0]]
    assert A.token_rewards(rewards, mask, kl, 0.5).tolist() == [[-0.5, 0, 0], [0, 0, -3], [0, 0, 0]]


# --- chains and trees -----------------------------------------------------------------------------


@given(cut_rows(), st.lists(unit, min_size=4, max_size=4), st.integers(0, 2))
def test_value_difference(case, outcomes, extra):
    rows, _, ids = case
    segment_ids = padded(ids, -1, torch.long, extra)
    values = [[(5 * m + b) % 7 / 7 for m in range(max(row, default=-1) + 1)] for b, row in enumerate(ids)]
    reward = torch.tensor(outcomes[: len(rows)], dtype=torch.float64)
    v = padded(values, nan, extra=extra)  # nothing beyond the last segment may be read
    if v.shape[1]:
        ours = A.value_difference(v, reward, segment_ids)
        pairs = zip(values, reward.tolist(), ids, strict=True)
        expected = padded([slow.value_difference(*row) if row[2] else [] for row in pairs], extra=extra)
        torch.testing.assert_close(ours, expected)
        # Inside a completion the differences add up to what happened, minus what was expected of the prompt.
        total = torch.where(starts(segment_ids), ours, 0).sum(1)
        some = count(segment_ids) > 0
        torch.testing.assert_close(total[some], (reward - v[:, 0])[some])


def test_the_release_leaves_the_first_segment_alone_unless_it_begins_at_a_cutpoint():
    ids, values = torch.tensor([[0, 1], [0, 1]]), torch.tensor([[nan, 0.25], [0.75, 0.25]])
    first = torch.tensor([False, True])
    ours = A.value_difference(values, torch.ones(2), ids, first_state="release", first_is_boundary=first)
    assert ours.tolist() == [[0, 0.75], [-0.5, 0.75]]
    with pytest.raises(ValueError, match="first_is_boundary"):
        A.value_difference(values, torch.ones(2), ids, first_state="release")


@st.composite
def forests(draw) -> list[int]:
    n = draw(st.integers(1, 25))
    parent = [draw(st.integers(-1, i - 1)) for i in range(n)]
    order = draw(st.permutations(range(n)))  # parents need not come first
    place = {old: new for new, old in enumerate(order)}
    return [place[parent[old]] if parent[old] >= 0 else -1 for old in order]


@given(
    forests(), st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=25, max_size=25), st.booleans(), st.integers(0, 3)
)
def test_tree_advantages(parent, rewards, normalize, too_deep):
    n = len(parent)
    inner = set(parent)
    read = [nan if i in inner else rewards[i] for i in range(n)]  # rewards of inner nodes are not read
    expected = slow.tree_values(parent, rewards[:n])

    def depth(i: int) -> int:
        return 0 if parent[i] < 0 else 1 + depth(parent[i])

    levels = max(map(depth, range(n)))
    given_rewards = torch.tensor(read, dtype=torch.float64)
    values, advantages = A.tree_advantages(torch.tensor(parent), given_rewards, normalize, depth=levels + too_deep)
    for a, b in zip(
        (values, advantages), A.tree_advantages(torch.tensor(parent), given_rewards, normalize), strict=True
    ):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64))
    for i, p in enumerate(parent):
        difference = 0.0 if p < 0 else expected[i] - expected[p]
        if normalize and p >= 0:
            siblings = [expected[j] for j in range(n) if parent[j] == p]
            difference /= math.sqrt(sum((v - expected[p]) ** 2 for v in siblings) / len(siblings)) + 1e-8
        assert advantages[i].item() == pytest.approx(difference, abs=1e-6)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("reward", [0.1, 0.7, 1 / 3])
def test_equal_leaves_give_exactly_zero(reward, normalize):
    """Else rounding errors, divided by their own spread, would become advantages of size one."""
    for children in (3, 6, 7, 11):
        parent = torch.tensor([-1] + [0] * children + [1] * 5)
        values, advantages = A.tree_advantages(parent, torch.full((len(parent),), reward), normalize)
        assert (advantages == 0).all() and (values == torch.tensor(reward)).all()


def test_a_circle_is_not_a_tree():
    with pytest.raises(ValueError, match="its own ancestor"):
        A.tree_advantages(torch.tensor([1, 0]), torch.zeros(2))


# --- whitening ------------------------------------------------------------------------------------


@given(st.lists(st.lists(unit, max_size=8), min_size=1, max_size=4), dtypes)
def test_whiten(rows, dtype):
    mask = mask_of(rows)
    ours = A.whiten(padded(rows, nan, dtype), mask)
    x = padded(rows, 0, dtype)[mask]
    expected = x if len(x) < 2 else (x - x.mean()) / (x.var() + 1e-8).sqrt()
    torch.testing.assert_close(ours[mask], expected, **({"atol": 1e-3, "rtol": 1e-3} if dtype == torch.float32 else {}))
    assert (ours[~mask] == 0).all()


@pytest.mark.parametrize("value", [0.1, 1000.1, -3e7])
def test_whitening_a_constant_gives_zero(value):
    assert A.whiten(torch.full((3, 5), value), torch.ones(3, 5, dtype=torch.bool)).abs().max() < 1e-6


def test_errors_say_what_is_wrong():
    x = torch.zeros(1, 1)
    for call in (
        lambda: A.group_relative(x[0], x[0], scale="std"),
        lambda: A.segment_gae(x, x, x.long(), 1.0, 1.0, value_at="middle"),
        lambda: A.value_difference(x, x[0], x.long(), first_state="first"),
    ):
        with pytest.raises(ValueError, match="must be"):
            call()
