"""Chains and trees: what is sampled on from the middle of a completion is what a fresh start would sample."""

import itertools

import pytest
import torch

from segpo_core.policy import load
from segpo_core.policy.critic import ActorCritic
from segpo_core.policy.inputs import Prompts, extend, position_ids
from segpo_core.policy.logprobs import backbone
from segpo_core.prefix_tree import first_holders
from segpo_core.sampling import generate
from segpo_core.sampling.branches import grow_tree
from segpo_core.sampling.chains import continuations, estimate_values, mean_and_error, unique_states
from segpo_core.sampling.plain import step_of
from segpo_core.sampling.sampler import noise
from segpo_core.sampling.sharing import tree_of
from segpo_core.types import Rollouts, length_mask
from tests.fakes import families
from tests.sampling.test_generate import problems, sampler_of


@pytest.fixture(scope="module", params=sorted(families.FAMILIES))
def family(request, tmp_path_factory):
    path = families.FAMILIES[request.param](tmp_path_factory.mktemp(request.param))
    model, processor = load.load_model(path), load.load_processor(path)
    return model, processor, Prompts.build(problems(request.param), processor, model.config)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    path = families.llama(tmp_path_factory.mktemp("llama"))
    model, processor = load.load_model(path), load.load_processor(path)
    return model, processor, Prompts.build(problems("llama"), processor, model.config)


def fresh_logits(sampler, prompts: Prompts, group: int, prefix: torch.Tensor) -> torch.Tensor:
    """Next-token logits after one prompt and `prefix`, computed alone and without a cache."""
    ids = prefix[None]
    inputs = extend(prompts.batch([group]), ids, torch.ones_like(ids, dtype=torch.bool))
    inputs["position_ids"] = position_ids(sampler.model, inputs)
    with torch.no_grad():
        return sampler.head(backbone(sampler.model)(**inputs, use_cache=False).last_hidden_state[:, -1])[0]


def rollouts_of(rows: list[list[int]], group: list[int]) -> Rollouts:
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for b, row in enumerate(rows):
        ids[b, : len(row)] = torch.tensor(row)
    zeros = torch.zeros(ids.shape)
    return Rollouts(ids, length_mask(lengths, ids.shape[1]), torch.tensor(group), lengths > 0, zeros, zeros)


# --- chains -----------------------------------------------------------------------------------------------------


def test_a_state_within_a_completion_is_that_of_a_fresh_prefill(family):
    model, processor, prompts = family
    sampler = sampler_of(model, processor, max_completion_length=14)
    rollouts = sampler.groups(prompts, 4, (0, 1))
    prefixes = sampler.prefixes(prompts, rollouts.completion_ids, rollouts.mask, rollouts.group)
    rows, lengths = rollouts.mask.nonzero().unbind(1)  # every prefix of every row, the prompt's included
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    rows, lengths = rows[order], lengths[order]
    state = prefixes.at(rows, lengths)
    fresh = [
        fresh_logits(sampler, prompts, int(rollouts.group[b]), rollouts.completion_ids[b, :t])
        for b, t in zip(rows, lengths.tolist(), strict=True)
    ]
    assert len(fresh) > 20 and lengths.max() > 4
    torch.testing.assert_close(state.logits, torch.stack(fresh), atol=1e-4, rtol=1e-4)

    # And all that is sampled after it.
    uniform = torch.rand(len(rows), 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    draw = sampler.decode(state, uniform)
    network = ActorCritic(model, load.suppressed_token_ids(model, processor))
    for i, (b, t) in enumerate(zip(rows.tolist(), lengths.tolist(), strict=True)):
        n = int(draw.lengths[i])
        ids = torch.cat([rollouts.completion_ids[b, :t], draw.ids[i, :n]])[None]
        with torch.no_grad():
            scores = network(prompts.batch(rollouts.group[b : b + 1]), ids, torch.ones_like(ids, dtype=torch.bool))
        torch.testing.assert_close(scores.logprobs[0, t:], draw.logprobs[i, :n], atol=1e-4, rtol=1e-4)


def test_equal_prefixes_of_a_group_are_one_state():
    rollouts = rollouts_of([[5, 6, 7], [5, 6, 8], [5, 9], [5, 6, 7]], [0, 0, 0, 1])
    wanted = torch.tensor([[1, 0, 1], [1, 1, 1], [0, 1, 0], [1, 0, 1]], dtype=torch.bool)
    rows, lengths, which = unique_states(rollouts, wanted)
    states = list(zip(rows.tolist(), lengths.tolist(), strict=True))
    assert states == [(0, 0), (3, 0), (1, 1), (0, 2), (3, 2)]
    assert [states[i] for i in which] == [(0, 0), (0, 2), (0, 0), (1, 1), (0, 2), (1, 1), (3, 0), (3, 2)]


def test_continuations_do_not_depend_on_batching_and_keep_the_limit(family):
    model, processor, prompts = family
    sampler = sampler_of(model, processor, max_completion_length=9)
    rollouts = sampler.groups(prompts, 2, (3, 1))
    wanted = rollouts.mask & (torch.arange(rollouts.mask.shape[1]) % 3 == 0)
    rows, lengths, _ = unique_states(rollouts, wanted)

    def all_of(max_rows: int) -> list[list[int]]:
        result = []
        for prefix, draw in continuations(sampler, prompts, rollouts, rows, lengths, 2, (3, 1), max_rows=max_rows):
            assert (lengths[prefix] + draw.lengths <= 9).all()
            assert (draw.finished | (lengths[prefix] + draw.lengths == 9)).all()
            result += [ids[:n] for ids, n in zip(draw.ids.tolist(), draw.lengths.tolist(), strict=True)]
        return result

    assert all_of(1024) == all_of(5) and len(all_of(1024)) == 2 * len(rows)


def test_values_are_means_over_continuations_of_each_state(llama):
    """Against a loop: every state alone, prefilled from scratch, with the streams that the docstring names."""
    model, processor, prompts = llama
    sampler = sampler_of(model, processor, max_completion_length=6)
    rollouts = sampler.groups(prompts, 3, (0, 4), first=10)
    wanted = rollouts.mask.clone()
    wanted[0, 0] = False
    calls = []

    def reward_of(groups, texts):
        calls.append(len(texts))
        pairs = zip(groups, map(len, texts), strict=True)
        return [float("nan") if n % 5 == 0 else float(n % 2 + g) for g, n in pairs]

    estimate_values(sampler, prompts, rollouts, wanted, 4, reward_of, (0, 4), first=10, max_rows=7)
    assert len(calls) == 1
    seen = {}
    for b, t in wanted.nonzero().tolist():
        group, ids = int(rollouts.group[b]), rollouts.completion_ids[b, :t].tolist()
        owner = seen.setdefault((group, *ids), b)
        rewards = []
        for n in range(4):
            text, uniform = list(ids), noise(6 - t, 0, 4, 10 + group, owner % 3, t, n)
            for u in uniform:
                logits = fresh_logits(sampler, prompts, group, torch.tensor(text, dtype=torch.long))
                text.append(int(torch.searchsorted(logits.double().softmax(-1).cumsum(-1), u, right=True)))
                if text[-1] in sampler.eos:
                    break
            rewards += reward_of([group], [sampler.tokenizer.decode(text, skip_special_tokens=True)])
        scored = torch.tensor([r for r in rewards if r == r])
        mean = scored.mean() if len(scored) else torch.tensor(torch.nan)
        error = scored.std() / len(scored) ** 0.5 if len(scored) > 1 else torch.tensor(torch.nan)
        torch.testing.assert_close(rollouts.mc_values[b, t], mean, equal_nan=True)
        torch.testing.assert_close(rollouts.mc_stderr[b, t], error, equal_nan=True)
    assert rollouts.mc_values[~wanted].isnan().all() and rollouts.mc_stderr[~wanted].isnan().all()


def test_prompts_and_completions_are_computed_once(llama):
    model, processor, prompts = llama
    sampler = sampler_of(model, processor, max_completion_length=6)
    rollouts = sampler.groups(prompts, 3, (0, 4))
    rows, lengths, _ = unique_states(rollouts, rollouts.mask)
    before = sampler.tokens_computed
    batches = continuations(sampler, prompts, rollouts, rows, lengths, 3, (0, 4), max_rows=5)
    drawn = sum(draw.tokens_computed for _, draw in batches)
    once = prompts.batch()["input_ids"].numel() + len(rows.unique()) * int(lengths.max())
    assert sampler.tokens_computed - before == once + drawn


def test_mean_and_error():
    nan = torch.nan
    mean, error = mean_and_error(torch.tensor([[1.0, 0, 1, 0], [1, nan, 0, nan], [nan, 1, nan, nan], [nan] * 4]))
    torch.testing.assert_close(mean, torch.tensor([0.5, 0.5, 1.0, nan]), equal_nan=True)
    torch.testing.assert_close(error, torch.tensor([(1 / 3 / 4) ** 0.5, 0.5, nan, nan]), equal_nan=True)


# --- trees ------------------------------------------------------------------------------------------------------


def test_a_tree_is_what_sampling_its_paths_alone_gives(family):
    """Each row is one completion: its tokens are those that its nodes' streams choose, its log-probabilities those of
    the scoring pass."""
    model, processor, prompts = family
    branch, size = (2, 1, 3), 3
    sampler = sampler_of(model, processor, max_completion_length=11)
    tree = grow_tree(sampler, prompts, branch, size, (5, 2), first=4)
    network = ActorCritic(model, load.suppressed_token_ids(model, processor))
    with torch.no_grad():
        scores = network(prompts.batch(tree.group), tree.completion_ids, tree.mask)
    torch.testing.assert_close(scores.logprobs, tree.sampled_logprobs, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scores.entropy, tree.entropy, atol=1e-4, rtol=1e-4)

    expected = []
    for group in range(len(prompts)):
        for path in itertools.product(*map(range, branch)):
            ids, ended = [], False
            for depth in range(1, len(branch) + 1):
                for u in noise(11 if depth == len(branch) else size, 5, 2, 4 + group, *path[:depth]):
                    if ended or len(ids) == 11:
                        break
                    logits = fresh_logits(sampler, prompts, group, torch.tensor(ids, dtype=torch.long))
                    ids.append(int(torch.searchsorted(logits.double().softmax(-1).cumsum(-1), u, right=True)))
                    ended = ids[-1] in sampler.eos
                if ended:
                    break
            if (group, path[:depth], ids, ended) not in expected:  # a node that ended early is one leaf
                expected.append((group, path[:depth], ids, ended))
    ids = [row[:n] for row, n in zip(tree.completion_ids.tolist(), tree.lengths.tolist(), strict=True)]
    rows = list(zip(tree.group.tolist(), ids, tree.finished.tolist(), strict=True))
    assert rows == [(group, ids, ended) for group, _, ids, ended in expected]
    assert tree.texts == ["".join(pieces) for pieces in tree.pieces]


def test_nodes_of_a_tree(family):
    model, processor, prompts = family
    sampler = sampler_of(model, processor, max_completion_length=12)
    tree = grow_tree(sampler, prompts, (3, 2), 4, (0, 0))
    nodes, node_ids = tree.tree, tree.node_ids
    assert (node_ids >= 0).equal(tree.mask)
    roots = nodes.parent < 0
    assert roots.sum() == len(prompts) and (nodes.end - nodes.start)[roots].eq(0).all()
    assert (nodes.end > nodes.start)[~roots].all()
    for n in (~roots).nonzero()[:, 0].tolist():
        rows, columns = (node_ids == n).nonzero().unbind(1)
        assert set(columns.tolist()) == set(range(int(nodes.start[n]), int(nodes.end[n])))
        held = tree.completion_ids[rows.unique()][:, nodes.start[n] : nodes.end[n]]
        assert (held == held[0]).all(), "rows that share a node share its tokens"
        assert tree.group[rows].eq(nodes.group[n]).all()
        parent = int(nodes.parent[n])
        assert nodes.end[parent] == nodes.start[n] and nodes.group[parent] == nodes.group[n]
        if nodes.start[n] > 0:
            assert (node_ids[rows, nodes.start[n] - 1] == parent).all()
    last = node_ids.gather(1, tree.lengths[:, None] - 1)[:, 0]
    assert last.unique().numel() == len(tree), "one row a leaf"
    assert not torch.isin(last, nodes.parent).any()
    assert (nodes.end - nodes.start)[~roots & (nodes.start == 0)].le(4).all()

    own = first_holders(node_ids)
    seen = set()
    for b, t in itertools.product(*map(range, node_ids.shape)):
        name = (int(node_ids[b, t]), t)
        assert own[b, t] == (bool(tree.mask[b, t]) and name not in seen)
        seen |= {name} if tree.mask[b, t] else set()


def test_a_tree_does_not_depend_on_batching(family):
    model, processor, prompts = family
    sampler = sampler_of(model, processor, max_completion_length=9)
    together = grow_tree(sampler, prompts, (2, 2), 3, (1, 1))
    alone = grow_tree(sampler, prompts, (2, 2), 3, (1, 1), max_rows=1)
    assert together.completion_ids.equal(alone.completion_ids) and together.node_ids.equal(alone.node_ids)
    last = grow_tree(sampler, prompts.select([len(prompts) - 1]), (2, 2), 3, (1, 1), first=len(prompts) - 1)
    assert together.texts[-len(last) :] == last.texts


def test_the_tree_can_be_read_from_its_rows(llama):
    model, processor, prompts = llama
    sampler = sampler_of(model, processor, max_completion_length=12)
    rollouts = grow_tree(sampler, prompts, (3, 2, 2), 3, (0, 0))

    def same(a, b) -> bool:
        return all(getattr(a, name).equal(getattr(b, name)) for name in ("parent", "group", "start", "end"))

    tree, node_ids = tree_of(rollouts.node_ids, rollouts.group)
    assert same(tree, rollouts.tree) and node_ids.equal(rollouts.node_ids)
    again, node_ids = tree_of(torch.where(rollouts.mask, rollouts.node_ids * 7 + 3, -1), rollouts.group)
    assert same(again, tree) and node_ids.equal(rollouts.node_ids)
    part = rollouts.select(torch.tensor([0, 2]))
    some, node_ids = tree_of(part.node_ids, part.group)
    assert len(some.parent) == part.node_ids[part.mask].unique().numel() + 1 and (some.parent < 0).sum() == 1
    none, _ = tree_of(torch.full((2, 3), -1), torch.tensor([0, 0]))
    assert len(none.parent) == 0


@pytest.mark.parametrize("seed", [0, 1])
def test_a_tree_computes_each_token_about_once(tmp_path_factory, monkeypatch, seed):
    """A 6-6-6 tree, its prompt with images: less than 1.1 forward tokens a unique token."""
    path = families.llava(tmp_path_factory.mktemp("llava"))
    model, processor = load.load_model(path), load.load_processor(path)
    prompts = Prompts.build(problems("llava")[:1], processor, model.config)
    sampler = sampler_of(model, processor, max_completion_length=40)
    sampler.eos = sampler.eos[:: 8 + 8 * seed]  # longer completions: few or no nodes end above the last level
    computed, images = [], []
    network = backbone(model)
    forward = network.forward

    def counted(**inputs):
        computed.append(inputs["input_ids"].numel())
        images.append("pixel_values" in inputs)
        return forward(**inputs)

    def counting(model, cache):
        step = step_of(model, cache)
        return lambda tokens, *rest: (computed.append(len(tokens)), step(tokens, *rest))[1]

    monkeypatch.setattr(network, "forward", counted)
    monkeypatch.setattr(generate, "step_of", counting)
    rollouts = grow_tree(sampler, prompts, (6, 6, 6), 8, (seed, 0))
    unique = int(prompts.lengths.sum() + (rollouts.tree.end - rollouts.tree.start).sum())
    assert len(rollouts) > 60 and sum(images) == 1
    assert 0.5 * unique < sum(computed) <= sampler.tokens_computed < 1.1 * unique
