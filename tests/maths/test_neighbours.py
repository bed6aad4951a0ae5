"""The credit of the neighbouring methods against slow, obvious loops, and what must always hold."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segpo_core.advantages import group_relative, tree_advantages, tree_rl_advantages
from segpo_core.losses import MOST_DIVERGENCE, divergence_to_keep
from segpo_core.prefix_tree import prefix_values
from segpo_core.types import pad_rows
from segpo_core.weights import grounded_weights, image_k3, seeing_completions, seeing_tokens, top_entropy

nan = float("nan")
rewards_of = st.sampled_from([0.0, 0.1, 0.7, 1.0, nan])


@st.composite
def groups(draw):
    """(rows of ids, rewards, groups): a small alphabet, so that prefixes are shared; row of any length, 1 up."""
    rows = draw(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=6), min_size=1, max_size=7))
    return rows, [draw(rewards_of) for _ in rows], [draw(st.integers(0, 1)) for _ in rows]


@given(groups())
def test_prefix_values(case):
    rows, rewards, group = case
    ids = pad_rows([torch.tensor(row) for row in rows], 1)  # a pad id that is also a token
    mask = pad_rows([torch.ones(len(row), dtype=torch.bool) for row in rows])
    values, number = prefix_values(ids, mask, torch.tensor(rewards, dtype=torch.float64), torch.tensor(group))
    for b, row in enumerate(rows):
        for t in range(ids.shape[1] + 1):
            prefix = row[:t]
            like = [
                r
                for other, r, g in zip(rows, rewards, group, strict=True)
                if g == group[b] and other[: len(prefix)] == prefix and not math.isnan(r)
            ]
            assert number[b, t] == len(like)
            expected = sum(like) / len(like) if like else nan
            assert values[b, t].item() == pytest.approx(expected, abs=1e-12, nan_ok=True)
            if like and len(set(like)) == 1 and not math.isnan(rewards[b]):
                assert values[b, t].item() == rewards[b], "equal rewards: exactly that reward"


@given(groups())
def test_prefix_values_telescope(case):
    """Along a completion the differences sum to what its end is worth above the group's mean."""
    rows, rewards, group = case
    ids = pad_rows([torch.tensor(row) for row in rows])
    mask = pad_rows([torch.ones(len(row), dtype=torch.bool) for row in rows])
    r, g = torch.tensor(rewards, dtype=torch.float64), torch.tensor(group)
    values, _ = prefix_values(ids, mask, r, g)
    centred = group_relative(r, g, "none")
    scored = ~r.isnan()
    torch.testing.assert_close((r - values[:, 0])[scored], centred[scored])
    alone = scored & torch.tensor([rows.count(row) == 1 and not any(o[: len(row)] == row for o in rows if o is not row)
                                   for row in rows])  # fmt: skip
    torch.testing.assert_close(values[alone, -1], r[alone])


@st.composite
def forests(draw):
    """(parents, leaf rewards) of a forest: every node's parent stands before it."""
    parent = [-1]
    for n in range(1, draw(st.integers(1, 12))):
        parent.append(draw(st.integers(-1, n - 1)))
    return parent, [draw(st.sampled_from([0.0, 0.5, 1.0])) for _ in parent]


@given(forests())
def test_tree_rl_advantages(case):
    parent, rewards = case
    up = torch.tensor(parent)
    values, _ = tree_advantages(up, torch.tensor(rewards, dtype=torch.float64))
    found = tree_rl_advantages(up, values)

    def leaves(n: int) -> int:
        children = [c for c, p in enumerate(parent) if p == n]
        return sum(map(leaves, children)) if children else 1

    for n, p in enumerate(parent):
        root = n
        while parent[root] >= 0:
            root = parent[root]
        v = values.tolist()
        expected = 0.0 if p < 0 else ((v[n] - v[root]) + (v[n] - v[p])) / math.sqrt(leaves(n))
        assert found[n].item() == pytest.approx(expected, abs=1e-12)


@given(st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.5, 2.0]), min_size=1, max_size=6), min_size=1, max_size=5),
       st.sampled_from([0.05, 0.2, 0.5, 0.7, 1.0]))  # fmt: skip
def test_top_entropy(rows, fraction):
    entropy, mask = (
        pad_rows([torch.tensor(row) for row in rows], nan),
        pad_rows([torch.ones(len(r)).bool() for r in rows]),
    )
    kept = top_entropy(entropy, mask, fraction)
    flat = sorted((-h, b, t) for b, row in enumerate(rows) for t, h in enumerate(row))
    expected = flat[: math.ceil(round(len(flat) * fraction, 9))]
    assert {(b, t) for b, t in kept.nonzero().tolist()} == {(b, t) for _, b, t in expected}


def test_a_share_of_nothing_or_of_more_than_all_is_refused():
    for fraction in (0.0, 1.1, nan):
        with pytest.raises(ValueError, match="share of tokens"):
            top_entropy(torch.zeros(1, 2), torch.ones(1, 2).bool(), fraction)


# --- what tokens owe to the image -----------------------------------------------------------------


def slow_k3(d: float) -> float:
    return min(math.exp(-max(min(d, 20), -20)) + max(min(d, 20), -20) - 1, 10.0)


contrast_rows = st.lists(
    st.lists(st.sampled_from([-40.0, -2.0, -0.5, 0.0, 0.25, 1.0, 3.0]), min_size=1, max_size=6).flatmap(
        lambda row: st.sampled_from([row, [nan] * len(row)])
    ),
    min_size=1,
    max_size=5,
)


def padded(rows: list[list[float]]) -> tuple[torch.Tensor, torch.Tensor]:
    d = pad_rows([torch.tensor(row, dtype=torch.float64) for row in rows], 5.0)
    return image_k3(d), pad_rows([torch.ones(len(row), dtype=torch.bool) for row in rows], False)


@given(contrast_rows, st.sampled_from([0.1, 0.4, 1.0]), st.sampled_from([0.5, 0.9, 1.0]))
def test_vppo(rows, fraction, least):
    k3, mask = padded(rows)
    kept, w = seeing_tokens(k3, mask, fraction), seeing_completions(k3, mask, least)
    scores = {b: sum(map(slow_k3, row)) / len(row) for b, row in enumerate(rows) if not math.isnan(row[0])}
    for b, row in enumerate(rows):
        ranked = sorted(range(len(row)), key=lambda t: (-slow_k3(row[t]), t))
        some = ranked[: math.ceil(round(len(row) * fraction, 9))] if b in scores else ranked
        assert kept[b].nonzero()[:, 0].tolist() == sorted(some)
        low, high = (min(scores.values()), max(scores.values())) if scores else (0, 0)
        expected = 1.0
        if b in scores and high - low > 1e-6:
            mean = sum((s - low) / (high - low) for s in scores.values()) / len(scores)
            expected = least + (scores[b] - low) / (high - low) * (1 - least) / mean
        assert w[b].item() == pytest.approx(expected)
    assert w.mean().item() == pytest.approx(1), "what the batch learns from keeps its weight"
    assert (w >= least - 1e-9).all()


@given(contrast_rows, st.sampled_from([0.2, 0.4, 0.8]), st.sampled_from([0.0, 2.0]))
def test_pgpo(rows, tau, gain):
    k3, mask = padded(rows)
    w = grounded_weights(k3, mask, tau, gain)
    for b, row in enumerate(rows):
        signal = [math.log1p(slow_k3(d)) for d in row] if not math.isnan(row[0]) else [0.0] * len(row)
        low, high = min(signal), max(signal)
        raw = [1.0] * len(row)
        if high - low > 1e-6:
            scaled = [(x - low) / (high - low) for x in signal]
            raw = [x / tau if x < tau else 1 + gain * (x - tau) / (1 - tau) for x in scaled]
        assert w[b, : len(row)].tolist() == pytest.approx([len(row) * x / sum(raw) for x in raw])
    assert (w >= 0).all() and (w[~mask] == 0).all()
    torch.testing.assert_close(w.sum(1), mask.sum(1).double())


@given(contrast_rows)
def test_the_divergence_that_papo_keeps(rows):
    """By hand at every token, its gradient too: 1 − exp(Δ) below the bound, none above it, none without an image."""
    d = pad_rows([torch.tensor(row, dtype=torch.float64) for row in rows], 5.0)
    mask = pad_rows([torch.ones(len(row), dtype=torch.bool) for row in rows], False)
    logprobs = torch.full_like(d, -1.5, requires_grad=True)
    k3 = divergence_to_keep(logprobs, logprobs.detach() - d, mask)
    (gradient,) = torch.autograd.grad(k3.sum(), logprobs)
    for b, row in enumerate(rows):
        for t, x in enumerate(row):
            plain = 0.0 if math.isnan(x) else math.exp(-x) + x - 1
            slope = 0.0 if math.isnan(x) or plain > MOST_DIVERGENCE else 1 - math.exp(-x)
            assert k3[b, t].item() == pytest.approx(min(plain, MOST_DIVERGENCE))
            assert gradient[b, t].item() == pytest.approx(slope)
    assert (k3[~mask] == 0).all() and (gradient[~mask] == 0).all()
