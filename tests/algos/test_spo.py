"""VinePPO, SPO-chain and SPO-tree: from rollouts to credit, against recorded numbers and slow loops."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segpo_core.algos import GRPO, METHODS, SPOChain, SPOTree, VinePPO
from segpo_core.policy import load
from segpo_core.policy.inputs import Prompts
from segpo_core.prefix_tree import first_holders
from segpo_core.types import Rollouts, length_mask, pad_rows
from tests.fakes import families
from tests.sampling.test_generate import problems, sampler_of
from tests.sampling.test_packing import forests, rollouts_of_tree

GOLDEN = Path(__file__).parents[1] / "golden"


def chain_rollouts(probs: list[list[float]], rewards: list[float], pieces=None, group=None) -> Rollouts:
    """Rollouts with these token probabilities, no values yet."""
    logprobs = pad_rows([torch.tensor(row, dtype=torch.float64).log() for row in probs])
    lengths = torch.tensor([len(row) for row in probs])
    return Rollouts(
        completion_ids=torch.zeros(logprobs.shape, dtype=torch.long),
        mask=length_mask(lengths, logprobs.shape[1]),
        group=torch.tensor(group or [0] * len(probs)),
        finished=torch.ones(len(probs), dtype=torch.bool),
        sampled_logprobs=logprobs,
        entropy=torch.zeros(logprobs.shape),
        rewards=torch.tensor(rewards),
        pieces=pieces or [["x"] * len(row) for row in probs],
    )


def with_values(rollouts: Rollouts, values: dict[tuple[int, int], float]) -> Rollouts:
    rollouts.mc_values, rollouts.mc_stderr = (torch.full(rollouts.mask.shape, math.nan) for _ in range(2))
    for (b, t), value in values.items():
        rollouts.mc_values[b, t], rollouts.mc_stderr[b, t] = value, value / 10
    return rollouts


# --- recorded numbers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", json.loads((GOLDEN / "spo_chain.json").read_text()))
def test_chain_against_the_release(case):
    method = SPOChain(threshold=0.9, interval=case["interval"], first_state="release")
    rollouts = chain_rollouts([case["probs"]], [case["score"]])
    asked = method.boundaries(rollouts)[0].nonzero()[:, 0].tolist()
    assert asked == [t + 1 for t in case["state_after_token"]], "values are sampled at the release's boundaries"
    with_values(rollouts, {(0, t): v for t, v in zip(asked, case["mc_values"], strict=True)})
    credit = method.credit(rollouts)
    expected = torch.tensor(case["token_advantages"])
    torch.testing.assert_close(torch.where(credit.loss_mask, credit.advantages, 0)[0], expected)
    assert credit.loss_mask[0].tolist() == [p < 0.9 for p in case["probs"]]


@pytest.mark.parametrize("case", json.loads((GOLDEN / "spo_tree.json").read_text()), ids=lambda c: str(c["branch"]))
@pytest.mark.parametrize("normalize", [False, True])
def test_tree_against_the_release(case, normalize):
    paths, rewards, names = [], [], {}

    def walk(node, path):
        for child in node["children"]:
            names[child["id"]] = len(names)
            walk(child, [*path, names[child["id"]]])
        if node["leaf"]:
            paths.append(path)
            rewards.append(node["reward"])

    walk(case["tree"], [])
    rollouts = rollouts_of_tree(paths)
    rollouts.rewards = torch.tensor(rewards)
    credit = SPOTree(branch=case["branch"], normalize=normalize).credit(rollouts)
    got, seen = {}, {}
    for b, path in enumerate(paths):
        for depth, node in enumerate(path):
            at = slice(2 * depth, 2 * depth + 2)
            assert credit.advantages[b, at].unique().numel() == 1
            got[node] = float(credit.advantages[b, 2 * depth])
            seen[node] = seen.get(node, 0) + int(credit.loss_mask[b, at].sum())
    edges = case["edges_group_std" if normalize else "edges_difference"]
    assert len(edges) == len(got) == credit.metrics["tree/edges"]
    for name, advantage, _, leaf in edges:
        assert got[names[name]] == pytest.approx(advantage, rel=1e-5, abs=1e-6)
        # rollouts_of_tree has probability 1 everywhere, so the mask lets nothing in: see below for the counts
        assert leaf == any(path[-1] == names[name] for path in paths)
    assert not credit.loss_mask.any() and set(seen.values()) == {0}
    rollouts.sampled_logprobs = rollouts.sampled_logprobs - 1
    kept = SPOTree(branch=case["branch"], normalize=normalize).credit(rollouts).loss_mask
    counts = torch.bincount(rollouts.node_ids[kept], minlength=len(names)).tolist()
    for name, advantage, _, _ in edges:
        assert counts[names[name]] == (0 if abs(advantage) < 1e-9 else 2), "each edge once, zero advantages dropped"


# --- chains -----------------------------------------------------------------------------------------------------


def slow_chain(z: list[int], values: list[float], reward: float, from_prompt: bool) -> list[float]:
    """The definition, token by token."""
    result = []
    for m in z:
        end = [t for t in range(len(z)) if z[t] == m][-1] + 1
        begin = z.index(m)
        after = reward if end == len(z) else values[end]
        result.append(0.0 if m == 0 and not from_prompt else after - values[begin])
    return result


@given(
    st.lists(st.lists(st.sampled_from([0.2, 0.89, 0.9, 0.95, 1.0]), min_size=1, max_size=12), min_size=1, max_size=3),
    st.integers(1, 4),
    st.sampled_from(["prompt", "release"]),
)
def test_chain_credit_is_the_difference_of_values(probs, interval, first_state):
    method = SPOChain(interval=interval, first_state=first_state)
    rollouts = chain_rollouts(probs, [b % 2 for b in range(len(probs))])
    asked = method.boundaries(rollouts).nonzero().tolist()
    with_values(rollouts, {(b, t): ((7 * b + 3 * t) % 10) / 10 for b, t in asked})
    credit = method.credit(rollouts)
    for b, row in enumerate(probs):
        n = len(row)
        z = credit.segment_ids[b, :n].tolist()
        from_prompt = first_state == "prompt" or row[0] < 0.9
        expected = slow_chain(z, rollouts.mc_values[b].tolist(), float(b % 2), from_prompt)
        torch.testing.assert_close(credit.advantages[b, :n], torch.tensor(expected), equal_nan=True)
        learns = rollouts.sampled_logprobs[b, :n].exp() < 0.9
        needed = {z.index(m) for m, taught in zip(z, learns.tolist(), strict=True) if taught}
        assert {t for row, t in asked if row == b} == needed, "no state is asked for credit that no loss has"
        starts = [z.index(m) for m in z]
        torch.testing.assert_close(credit.state_values[b, :n], rollouts.mc_values[b, starts], equal_nan=True)
        torch.testing.assert_close(credit.state_stderr[b, :n], rollouts.mc_stderr[b, starts], equal_nan=True)
    assert credit.loss_mask.equal(rollouts.mask & (rollouts.sampled_logprobs.exp() < 0.9))
    assert credit.metrics["states_without_value"] == 0
    assert (credit.advantages[~rollouts.mask] == 0).all()


def test_a_completion_without_boundary_and_one_of_a_single_token():
    rollouts = chain_rollouts([[0.95, 0.99, 0.9], [0.5], [0.99]], [1.0, 0.0, 1.0])
    prompt, release = SPOChain(), SPOChain(first_state="release")
    assert prompt.boundaries(rollouts).nonzero().tolist() == [[1, 0]]
    assert release.boundaries(rollouts).nonzero().tolist() == [[1, 0]]
    with_values(rollouts, {(1, 0): 0.25})
    none = math.nan
    expected = torch.tensor([[none] * 3, [-0.25, 0, 0], [none, 0, 0]])
    torch.testing.assert_close(prompt.credit(rollouts).advantages, expected, equal_nan=True)
    assert release.credit(rollouts).advantages.tolist() == [[0.0] * 3, [-0.25, 0, 0], [0.0, 0, 0]]
    assert prompt.credit(rollouts).loss_mask.tolist() == [[False] * 3, [True, False, False], [False] * 3]


def test_a_batch_without_an_improbable_token_is_a_warning_not_a_nan(caplog):
    rollouts = with_values(chain_rollouts([[0.95, 0.99]], [1.0]), {(0, 0): 0.5})
    credit = SPOChain(whiten=True).credit(rollouts)
    assert not credit.loss_mask.any() and credit.advantages.isfinite().all()
    assert "loss is empty" in caplog.text


def test_what_has_no_value_is_assigned_nothing():
    """No verdict on any continuation of a state, or on the completion: its segments stay out of the loss."""
    rollouts = chain_rollouts([[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5]], [1.0, math.nan])
    with_values(rollouts, {(b, t): 0.5 for b in range(2) for t in (0, 1, 3)} | {(0, 2): 0.25})
    credit = SPOChain(interval=1).credit(rollouts)
    assert credit.advantages[0].tolist() == [0.0, -0.25, 0.25, 0.5]
    assert credit.advantages[1].isnan().tolist() == [False, True, True, True]
    assert credit.loss_mask.tolist() == [[True] * 4, [True, False, False, False]]
    assert credit.metrics["states_without_value"] == 1
    with pytest.raises(ValueError, match="no sampled state values"):
        SPOChain().credit(chain_rollouts([[0.5]], [1.0]))


def test_whitening_looks_at_the_tokens_in_the_loss_alone():
    rollouts = with_values(chain_rollouts([[0.5, 0.99, 0.5, 0.5]], [1.0]), {(0, 0): 0.0, (0, 2): 0.5, (0, 3): 0.75})
    raw, white = (SPOChain(interval=1, whiten=w).credit(rollouts) for w in (False, True))
    assert raw.advantages.tolist() == [[0.5, 0.5, 0.25, 0.25]]
    inside = white.advantages[0, [0, 2, 3]]
    assert inside.mean() == pytest.approx(0, abs=1e-6) and inside.std() == pytest.approx(1, abs=1e-5)
    assert white.advantages[0, 1] == 0.5


def test_vineppo_judges_lines_and_steps():
    pieces = [["Step ", "1: a", "\n", "Step ", "2: b", "\n", "c"]]
    rollouts = chain_rollouts([[0.99] * 7], [1.0], pieces)
    with_values(rollouts, {(0, 0): 0.25, (0, 3): 0.75, (0, 6): 0.5})
    lines = VinePPO().credit(rollouts)
    assert lines.segment_ids.tolist() == [[0, 0, 0, 1, 1, 1, 2]]
    assert lines.advantages.tolist() == [[0.5] * 3 + [-0.25] * 3 + [0.5]]
    assert lines.loss_mask.all(), "no probability mask"
    steps = VinePPO(steps="step markers").credit(rollouts)
    assert steps.segment_ids.tolist() == [[0, 0, 0, 1, 1, 1, 1]]
    assert steps.advantages.tolist() == [[0.5] * 3 + [0.25] * 4]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    path = families.llama(tmp_path_factory.mktemp("llama"))
    model, processor = load.load_model(path), load.load_processor(path)
    return model, processor, Prompts.build(problems("llama"), processor, model.config)


@pytest.mark.parametrize("method", [SPOChain(interval=2), SPOChain(interval=2, first_state="release"), VinePPO()])
def test_estimate_gives_credit_all_that_it_needs(llama, method):
    """Collect, reward, estimate, credit; and the scoring pass's rounding must not move a boundary."""
    model, processor, prompts = llama
    sampler = sampler_of(model, processor, max_completion_length=10)
    rollouts = method.collect(sampler, prompts, 3, (0, 1), 0)

    def reward_of(groups, texts):
        return [float(len(text) % 2) for text in texts]

    rollouts.rewards = torch.tensor(reward_of([], rollouts.texts))
    method.estimate(sampler, prompts, rollouts, reward_of, (0, 1), 0)
    rollouts.old_logprobs = torch.zeros_like(rollouts.sampled_logprobs)
    credit = method.credit(rollouts)
    needed = credit.loss_mask if isinstance(method, SPOChain) else rollouts.mask
    assert credit.advantages[needed].isfinite().all() and credit.metrics["states_without_value"] == 0
    assert rollouts.mc_values.isfinite().equal(method.boundaries(rollouts))
    # The state before the last segment of a finished completion and the reward bracket its advantage.
    assert credit.advantages[needed].abs().max() <= 1


def test_other_methods_sample_nothing_more(llama):
    model, processor, prompts = llama
    sampler = sampler_of(model, processor, max_completion_length=4)
    rollouts = sampler.groups(prompts, 2, (0, 0))
    before = sampler.tokens_computed
    assert GRPO().estimate(sampler, prompts, rollouts, None, (0, 0), 0) is None
    assert sampler.tokens_computed == before and rollouts.mc_values is None


# --- trees ------------------------------------------------------------------------------------------------------


def slow_tree(paths, group, rewards, normalize) -> dict[int, float]:
    """The definition, node by node."""
    children: dict = {}
    for path, g in zip(paths, group, strict=True):
        for parent, child in zip([("root", g), *path], path, strict=False):
            children.setdefault(parent, [])
            if child not in children[parent]:
                children[parent].append(child)
    leaf = {path[-1]: r for path, r in zip(paths, rewards, strict=True)}

    def value(node):
        return leaf[node] if node in leaf else sum(map(value, children[node])) / len(children[node])

    result = {}
    for parent, below in children.items():
        differences = [value(child) - value(parent) for child in below]
        spread = (sum(d * d for d in differences) / len(below)) ** 0.5
        for child, d in zip(below, differences, strict=True):
            result[child] = d / (spread + 1e-8) if normalize else d
    return result


@given(forests(), st.integers(0, 2**32), st.booleans())
def test_tree_credit_is_child_minus_parent(forest, seed, normalize):
    paths, group = forest
    generator = torch.Generator().manual_seed(seed)
    rollouts = rollouts_of_tree(paths, group)
    rollouts.rewards = torch.randint(0, 3, (len(paths),), generator=generator) / 2
    rollouts.sampled_logprobs = (0.5 + torch.rand(rollouts.mask.shape, generator=generator) / 2).log()
    credit = SPOTree(normalize=normalize).credit(rollouts)
    expected = slow_tree(paths, group, rollouts.rewards.tolist(), normalize)
    for b, path in enumerate(paths):
        for depth, node in enumerate(path):
            for t in (2 * depth, 2 * depth + 1):
                assert float(credit.advantages[b, t]) == pytest.approx(expected[node], abs=1e-5)
                first = all(node not in earlier for earlier in paths[:b])
                low = float(rollouts.sampled_logprobs[b, t].exp()) < 0.9
                assert bool(credit.loss_mask[b, t]) == (first and low and abs(expected[node]) > 1e-6)
                assert credit.segment_ids[b, t] == depth
    zero = sum(abs(a) < 1e-6 for a in expected.values())
    kept = int(credit.loss_mask.sum())
    assert credit.metrics["tree/edges"] == len(expected) and credit.metrics["tree/zero_advantage_edges"] == zero
    assert credit.metrics["tree/tokens_per_token_kept"] == pytest.approx(2 * len(expected) / max(kept, 1))


def test_state_values_and_their_errors():
    rollouts = rollouts_of_tree([[0, 1], [0, 2], [3]])
    rollouts.rewards = torch.tensor([1.0, 0.0, 1.0])
    credit = SPOTree().credit(rollouts)
    assert credit.state_values.tolist() == [[0.75, 0.75, 0.5, 0.5]] * 2 + [[0.75, 0.75, 0, 0]]
    assert credit.state_stderr[:, 0].tolist() == [0.25] * 3
    assert credit.state_stderr[0, 2] == 0.5


def test_equal_values_are_exactly_zero_even_when_normalized():
    """The mean of six equal thirds is not a third in floating point; the noise must not become an advantage."""
    paths = [[i * 4, i * 4 + j] for i in range(6) for j in (1, 2, 3)]
    rollouts = rollouts_of_tree(paths)
    rollouts.sampled_logprobs -= 1
    rollouts.rewards = torch.tensor([1.0, 0.0, 0.0] * 6)
    credit = SPOTree(normalize=True).credit(rollouts)
    assert (credit.advantages[:, :2] == 0).all() and not credit.loss_mask[:, :2].any()
    assert credit.loss_mask[:, 2:].all() and credit.metrics["tree/zero_advantage_edges"] == 6


def test_a_leaf_without_verdict_stays_out_of_its_tree():
    rollouts = rollouts_of_tree([[0, 1], [0, 2], [3, 4], [3, 5]])
    rollouts.sampled_logprobs -= 1
    rollouts.rewards = torch.tensor([1.0, math.nan, 0.0, math.nan])
    credit = SPOTree().credit(rollouts)
    assert credit.advantages[0].tolist() == [0.5, 0.5, 0, 0] and credit.advantages[2].tolist() == [-0.5, -0.5, 0, 0]
    assert credit.advantages[1].isnan().all()
    assert credit.loss_mask[:, :2].tolist() == [[True] * 2, [False] * 2] * 2 and not credit.loss_mask[:, 2:].any()


def test_credit_of_some_rows_and_of_padded_rows(llama):
    model, processor, prompts = llama
    sampler = sampler_of(model, processor, max_completion_length=12)
    method = SPOTree(branch=(3, 2), segment_tokens=4)
    rollouts = method.collect(sampler, prompts, 99, (0, 1), 0)
    assert rollouts.group.bincount().max() <= method.completions_per_prompt(99) == 6
    rollouts.rewards = torch.tensor([float(len(text) % 2) for text in rollouts.texts])
    whole = method.credit(rollouts)
    part = (rollouts.group == 1).nonzero()[:, 0]
    alone = method.credit(rollouts.select(part))
    assert alone.advantages.equal(whole.advantages[part]) and alone.loss_mask.equal(whole.loss_mask[part])
    assert not (whole.loss_mask & ~first_holders(rollouts.node_ids)).any()
    with pytest.raises(ValueError, match="no trees"):
        method.credit(dataclasses.replace(rollouts, node_ids=None))


# --- settings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SPOTree(branch=(1, 1)), "some level 2 or more"),
        (lambda: SPOTree(branch=()), "some level 2 or more"),
        (lambda: SPOTree(branch=(2, 0)), "at least 1 child"),
        (lambda: SPOTree(segment_tokens=0), "segment_tokens"),
        (lambda: SPOTree(beta=0.1, kl_in="reward"), "kl_in='loss'"),
        (lambda: VinePPO(beta=0.1, kl_in="reward"), "kl_in='loss'"),
        (lambda: VinePPO(num_continuations=0), "num_continuations"),
        (lambda: SPOChain(interval=0), "interval"),
        (lambda: SPOChain(threshold=0), "threshold"),
    ],
)
def test_settings_that_make_no_sense(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_settings_from_a_file():
    assert SPOTree(branch=[6, 1, 6]).branch == (6, 1, 6)
    assert {"vineppo", "spo_chain", "spo_tree"} <= set(METHODS)
