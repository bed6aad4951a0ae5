"""Fork values' maths: exact against enumeration, against a slow obvious loop, and its properties."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segpo_core.prefix_tree import off_estimate, prefix_tree, roots, shared_beginnings, tree_sum, tree_values
from segpo_core.types import length_mask, pad_rows

LENGTH, VOCABULARY = 4, 3


def toy(seed):
    """A policy of its own for every prefix, and a reward for every completion of LENGTH tokens."""
    generator = torch.Generator().manual_seed(seed)
    probs = {
        prefix: torch.rand(VOCABULARY, generator=generator, dtype=torch.float64).add(0.05)
        for n in range(LENGTH)
        for prefix in itertools.product(range(VOCABULARY), repeat=n)
    }
    probs = {prefix: p / p.sum() for prefix, p in probs.items()}
    paths = list(itertools.product(range(VOCABULARY), repeat=LENGTH))
    rewards = dict(zip(paths, torch.rand(len(paths), generator=generator).tolist(), strict=True))
    return probs, rewards


def value(probs, rewards, prefix):
    if len(prefix) == LENGTH:
        return rewards[prefix]
    return sum(float(p) * value(probs, rewards, (*prefix, c)) for c, p in enumerate(probs[prefix]))


def off_value(probs, rewards, prefix, held):
    """Value of beginning with none of `held`."""
    rest = [(float(p), value(probs, rewards, (*prefix, c))) for c, p in enumerate(probs[prefix]) if c not in held]
    return sum(p * v for p, v in rest) / sum(p for p, _ in rest) if rest else math.nan


def tree_of(probs, rewards, paths, groups=None):
    ids = torch.tensor(paths)
    logprobs = torch.tensor([[math.log(probs[path[:t]][path[t]]) for t in range(len(path))] for path in paths])
    group = torch.zeros(len(paths), dtype=torch.long) if groups is None else torch.tensor(groups)
    return prefix_tree(
        ids, torch.ones_like(ids, dtype=torch.bool), group, logprobs, torch.tensor([rewards[p] for p in paths])
    )


def prefix_of(paths, tree, n):
    return tuple(paths[int(tree.row[n])][: int(tree.length[n])])


@given(st.integers(0, 50), st.integers(1, 12))
def test_exact_against_enumeration_where_the_rest_is_known(seed, size):
    probs, rewards = toy(seed)
    generator = torch.Generator().manual_seed(seed)
    everything = list(rewards)
    paths = [everything[i] for i in torch.randint(len(everything), (size,), generator=generator)]
    tree = tree_of(probs, rewards, paths)
    prefixes = [prefix_of(paths, tree, n) for n in range(len(tree.parent))]
    assert len(set(prefixes)) == len(prefixes)  # each state once
    off = torch.tensor([
        off_value(probs, rewards, prefix, {p[-1] for p in prefixes if len(p) == len(prefix) + 1 and p[:-1] == prefix})
        if len(prefix) < LENGTH else math.nan
        for prefix in prefixes
    ], dtype=torch.float64)  # fmt: skip
    values, variance = tree_values(tree, off, torch.zeros_like(off))
    expected = torch.tensor([value(probs, rewards, prefix) for prefix in prefixes], dtype=torch.float64)
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-5)
    assert (variance == 0).all()


def test_unbiased_and_its_error_honest_over_repeats():
    probs, rewards = toy(3)
    paths = [(0, 0, 0, 0), (0, 1, 2, 0), (2, 0, 0, 1)]
    tree = tree_of(probs, rewards, paths)
    prefixes = [prefix_of(paths, tree, n) for n in range(len(tree.parent))]
    exact = torch.tensor([value(probs, rewards, p) for p in prefixes], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    wanted = (tree.open > 0.01).nonzero()[:, 0].tolist()
    choices = {}
    for n in wanted:
        held = {p[-1] for p in prefixes if p[:-1] == prefixes[n] and len(p) == len(prefixes[n]) + 1}
        ends = [p for p in rewards if p[: len(prefixes[n])] == prefixes[n] and p[len(prefixes[n])] not in held]
        weight = [math.prod(float(probs[p[:t]][p[t]]) for t in range(len(prefixes[n]), LENGTH)) for p in ends]
        choices[n] = torch.tensor([rewards[p] for p in ends]), torch.tensor(weight)
    draws = []
    for _ in range(400):
        r, s = [], []
        for n, (worth, weight) in choices.items():
            r.append(worth[torch.multinomial(weight, 3, replacement=True, generator=generator)])
            s += [n] * 3
        off, variance = off_estimate(torch.cat(r), torch.tensor(s), roots(tree), tree)
        draws.append(torch.stack(tree_values(tree, off, variance)))
    values, variance = torch.stack(draws).unbind(1)
    error = values.std(0) / 20
    assert ((values.mean(0) - exact).abs() < 4.5 * error + 1e-6).all()
    known = values.std(0) > 1e-6
    ratio = variance.mean(0)[known].sqrt() / values.std(0)[known]
    # A state that is calmer than its group gets too large an error, never one much too small.
    assert (ratio > 0.7).all() and ratio.median() < 1.5
    assert (variance.mean(0)[~known] == 0).all()


@given(st.integers(0, 1000), st.integers(1, 9))
def test_against_an_obvious_loop(seed, size):
    """Ragged completions, several groups, some without verdict, some states sampled."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 5, (size,), generator=generator).tolist()
    rows = [[*torch.randint(0, 2, (n - 1,), generator=generator).tolist(), 2] for n in lengths]  # 2 ends
    ids = pad_rows([torch.tensor(row) for row in rows], 7)
    mask = torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]
    group = torch.randint(0, 2, (size,), generator=generator) * 5
    rewards = torch.rand(size, generator=generator)
    rewards[torch.rand(size, generator=generator) < 0.2] = torch.nan
    own = {}  # one probability a state
    logprobs = torch.full(ids.shape, torch.nan)
    for b, row in enumerate(rows):
        for t in range(len(row)):
            key = (int(group[b]), *row[: t + 1])
            logprobs[b, t] = own.setdefault(key, math.log(0.05 + 0.28 * torch.rand(1, generator=generator).item()))
    tree = prefix_tree(ids, mask, group, logprobs, rewards)
    off = torch.where(
        torch.rand(len(tree.parent), generator=generator) < 0.5,
        torch.rand(len(tree.parent), generator=generator),
        torch.nan,
    ).double()
    spread = torch.rand(len(tree.parent), generator=generator).double()
    values, variance = tree_values(tree, off, spread)

    def slow(n):
        if not tree.reward[n].isnan():
            return float(tree.reward[n]), 0.0
        children = (tree.parent == n).nonzero()[:, 0].tolist()
        if off[n].isnan() and not children:
            return math.nan, 0.0
        held = sum(float(tree.prob[c]) for c in children)
        below = [(float(tree.prob[c]), *slow(c)) for c in children]
        if off[n].isnan():
            return sum(p * v for p, v, _ in below) / held, sum(p * p * e for p, _, e in below) / held**2
        return (
            sum(p * v for p, v, _ in below) + (1 - held) * float(off[n]),
            sum(p * p * e for p, _, e in below) + (1 - held) ** 2 * float(spread[n]),
        )

    expected = torch.tensor([slow(n) for n in range(len(tree.parent))], dtype=torch.float64).reshape(-1, 2)
    torch.testing.assert_close(values, expected[:, 0], equal_nan=True)
    torch.testing.assert_close(variance, expected[:, 1])
    judged = mask & ~rewards.isnan()[:, None]
    assert (tree.before[~judged] == -1).all() and (tree.before[judged] >= 0).all()
    assert torch.equal(tree.parent[tree.after[judged]], tree.before[judged])
    for b, row in enumerate(rows):
        for t in range(len(row)):
            if judged[b, t]:
                assert tree.prob[tree.after[b, t]] == pytest.approx(
                    math.exp(own[int(group[b]), *row[: t + 1]]), rel=1e-5
                )


def test_a_deep_tree_is_summed_exactly():
    parent = torch.arange(-1, 1000)
    weight = torch.full((1001,), 0.99, dtype=torch.float64)
    own = torch.ones(1001, dtype=torch.float64)
    assert float(tree_sum(parent, weight, own)[0]) == pytest.approx((1 - 0.99**1001) / 0.01)


def test_no_completion_with_a_verdict():
    ids = torch.zeros(2, 3, dtype=torch.long)
    tree = prefix_tree(
        ids,
        torch.ones_like(ids, dtype=torch.bool),
        torch.zeros(2, dtype=torch.long),
        torch.zeros(2, 3),
        torch.full((2,), torch.nan),
    )
    assert (tree.before == -1).all() and tree.open.tolist() == [1.0]


@given(st.lists(st.tuples(st.integers(0, 2), st.lists(st.integers(0, 2), max_size=5)), min_size=1, max_size=9))
def test_beginnings_are_shared_as_an_obvious_loop_says(rows):
    """Two tokens are one node if, and only if, all before them and they themselves agree; rows stand depth first."""
    group, lists = torch.tensor([g for g, _ in rows]), [row for _, row in rows]
    ids = pad_rows([torch.tensor(row, dtype=torch.long) for row in lists], 1, length=1)  # a padding that is a token too
    mask = length_mask(torch.tensor([len(row) for row in lists]), ids.shape[1])
    order, node = shared_beginnings(ids, mask, group)
    assert sorted(order.tolist()) == list(range(len(rows)))
    assert torch.equal(node >= 0, mask)
    places = mask.nonzero().tolist()
    for a, t in places:
        for b, u in places:
            same = rows[a][0] == rows[b][0] and lists[a][: t + 1] == lists[b][: u + 1]
            assert (node[a, t] == node[b, u]) == same
    walked = [(rows[b][0], lists[b]) for b in order.tolist()]
    assert walked == sorted(walked), "those that begin alike are neighbours, the shorter first"
