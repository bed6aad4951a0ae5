"""Packed trees against the same completions one by one: log-probabilities, entropies and gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segpo_core.policy import load
from segpo_core.policy.critic import ActorCritic, Scores
from segpo_core.policy.inputs import Prompts
from segpo_core.policy.packing import Packed, can_pack, pack
from segpo_core.prefix_tree import first_holders, shared_beginnings
from segpo_core.sampling.branches import grow_tree
from segpo_core.types import Rollouts, length_mask, pad_rows
from tests.fakes import families
from tests.sampling.test_generate import problems, sampler_of

PACKABLE = ["llama", "llava", "qwen2_5_vl"]


def loaded(family: str, path):
    model, processor = load.load_model(path), load.load_processor(path)
    prompts = Prompts.build(problems(family), processor, model.config)
    return model, processor, prompts, ActorCritic(model, load.suppressed_token_ids(model, processor), 0.8)


@pytest.fixture(scope="module", params=PACKABLE)
def family(request, tmp_path_factory):
    return loaded(request.param, families.FAMILIES[request.param](tmp_path_factory.mktemp(request.param)))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return loaded("llama", families.llama(tmp_path_factory.mktemp("llama")))


def gradients(network: ActorCritic, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    network.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def one_by_one(network: ActorCritic, prompts: Prompts, rollouts: Rollouts, targets, rows):
    """Log-probabilities and entropies of the targets, [b, T], from a pass of its own for every row."""
    logprobs, entropy = [], []
    for b in rows.tolist():
        n, row = int(rollouts.lengths[b]), slice(b, b + 1)
        batch = prompts.batch(rollouts.group[row])
        scores = network(batch, rollouts.completion_ids[row, :n], rollouts.mask[row, :n])
        logprobs.append(torch.where(targets[b, :n], scores.logprobs[0], 0))
        entropy.append(torch.where(targets[b, :n], scores.entropy[0], 0))
    return pad_rows(logprobs), pad_rows(entropy)


def passed(network: ActorCritic, packed: Packed) -> Scores:
    """The pass that the update makes of it."""
    return network(packed.inputs, packed.ids, packed.mask, packed.predictor)


def assert_same(network, prompts, rollouts, targets, rows, max_slots=None):
    """Packed and one by one: values, and the gradients of a loss that weighs every target differently."""
    packed = pack(network.model, prompts, rollouts, targets, rows, max_slots)
    assert packed.rows.equal(rows) and packed.mask.equal(targets[rows, : packed.mask.shape[1]])
    logprobs, entropy, _ = passed(network, packed)
    expected, expected_entropy = one_by_one(network, prompts, rollouts, targets, rows)
    torch.testing.assert_close(logprobs, expected, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(entropy, expected_entropy, atol=2e-5, rtol=1e-5)
    weights = torch.randn(logprobs.shape, generator=torch.Generator().manual_seed(0))
    ours, theirs = gradients(network, (weights * logprobs).sum()), gradients(network, (weights * expected).sum())
    for name, value in theirs.items():
        atol = 2e-5 * max(1.0, float(value.abs().max()))
        torch.testing.assert_close(ours[name], value, atol=atol, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")
    return packed


def test_a_packed_tree_is_its_rows_one_by_one(family):
    model, processor, prompts, network = family
    assert can_pack(model, prompts)
    sampler = sampler_of(model, processor, temperature=0.8, max_completion_length=12)
    tree = grow_tree(sampler, prompts, (2, 2, 2), 3, (0, 1))
    own = first_holders(tree.node_ids)
    rows = torch.arange(len(tree))
    packed = assert_same(network, prompts, tree, own, rows)
    # Every token once, except the last of each leaf, which predicts nothing.
    assert packed.tokens == int(prompts.lengths.sum() + own.sum() - len(tree))
    torch.testing.assert_close(
        passed(network, packed).logprobs, torch.where(own, tree.sampled_logprobs, 0), atol=1e-4, rtol=1e-4
    )


def test_a_group_is_a_tree(family):
    """Completions sampled one by one: the prompt goes through the model once, and what they begin with alike too."""
    model, processor, prompts, network = family
    sampler = sampler_of(model, processor, temperature=0.3, max_completion_length=8)
    rollouts = sampler.groups(prompts, 5, (0, 1), 0)
    order, rollouts.node_ids = shared_beginnings(rollouts.completion_ids, rollouts.mask, rollouts.group)
    assert_same(network, prompts, rollouts, rollouts.mask, order)
    whole = pack(model, prompts, rollouts, rollouts.mask, order, max_slots=10_000)
    rows = list(zip(rollouts.group.tolist(), rollouts.completion_ids.tolist(), rollouts.lengths.tolist(), strict=True))
    beginnings = {(group, *ids[:t]) for group, ids, n in rows for t in range(1, n)}  # the last predicts nothing
    assert whole.tokens == int(prompts.lengths.sum()) + len(beginnings)
    assert len(beginnings) < int((rollouts.lengths - 1).sum()), "some begin alike"
    if "pixel_values" in whole.inputs:
        images = prompts.batch(range(len(prompts)))["pixel_values"]
        assert whole.inputs["pixel_values"].shape == images.shape, "each image is encoded once"
    for part in order.split(4):  # what was torn from its group finds its prompt there as well
        assert_same(network, prompts, rollouts, rollouts.mask, part)


def test_what_teaches_nothing_is_left_out(family):
    model, processor, prompts, network = family
    sampler = sampler_of(model, processor, temperature=0.8, max_completion_length=12)
    tree = grow_tree(sampler, prompts, (3, 2), 4, (2, 1))
    chance = torch.rand(tree.mask.shape, generator=torch.Generator().manual_seed(0))
    some = first_holders(tree.node_ids) & (chance < 0.3)
    needed = set()
    for b, t in some.nonzero().tolist():
        needed |= {(int(tree.node_ids[b, c]), c) for c in range(t)}
    rows = torch.arange(len(tree))
    packed = assert_same(network, prompts, tree, some, rows)
    assert packed.tokens == int(prompts.lengths.sum()) + len(needed)


def test_a_tree_cut_into_several_passes_is_the_same_tree(family):
    model, processor, prompts, network = family
    sampler = sampler_of(model, processor, temperature=0.8, max_completion_length=10)
    tree = grow_tree(sampler, prompts, (3, 2), 3, (2, 1))
    own = first_holders(tree.node_ids)
    for rows in torch.arange(len(tree)).split(4):
        assert_same(network, prompts, tree, own, rows)


def test_a_long_tree_is_cut_into_sequences(family):
    model, processor, prompts, network = family
    sampler = sampler_of(model, processor, temperature=0.8, max_completion_length=12)
    tree = grow_tree(sampler, prompts, (3, 2), 4, (2, 1))
    own, rows = first_holders(tree.node_ids), torch.arange(len(tree))
    whole, least = (assert_same(network, prompts, tree, own, rows, slots) for slots in (10_000, 1))
    assert len(whole.inputs["input_ids"]) == len(prompts) < len(least.inputs["input_ids"])
    assert least.tokens > whole.tokens
    for slots in (int(prompts.lengths.max()) + extra for extra in (11, 14, 17)):  # the longest row needs 11
        assert pack(model, prompts, tree, own, rows, slots).inputs["input_ids"].shape[1] <= slots


def test_no_target_at_all_gives_a_zero_loss_with_a_gradient(llama):
    model, processor, prompts, network = llama
    tree = grow_tree(sampler_of(model, processor, max_completion_length=6), prompts, (2, 2), 2, (0, 0))
    packed = pack(model, prompts, tree, torch.zeros_like(tree.mask), torch.arange(len(tree)))
    logprobs = passed(network, packed).logprobs
    assert packed.tokens == int(prompts.lengths.sum())
    assert all(g.abs().max() == 0 for g in gradients(network, logprobs.sum()).values())


def test_eager_attention_takes_the_same_mask(llama, tmp_path):
    model, processor, prompts, network = llama
    model.save_pretrained(tmp_path)
    eager = type(model).from_pretrained(tmp_path, attn_implementation="eager").eval()
    tree = grow_tree(sampler_of(model, processor, max_completion_length=8), prompts, (2, 2), 3, (0, 0))
    own, rows = first_holders(tree.node_ids), torch.arange(len(tree))
    with torch.no_grad():
        values = [
            passed(n, pack(n.model, prompts, tree, own, rows)).logprobs
            for n in (network, ActorCritic(eager, network.head.suppressed.tolist(), network.temperature))
        ]
    assert can_pack(eager, prompts)
    torch.testing.assert_close(*values, atol=1e-5, rtol=1e-5)


def test_rows_out_of_order_are_refused(llama):
    model, processor, prompts, _ = llama
    tree = rollouts_of_tree([[0, 1], [0, 2], [0, 1, 3]])  # the first and the last share more than the one between
    with pytest.raises(ValueError, match="depth-first order"):
        pack(model, prompts, tree, first_holders(tree.node_ids), torch.arange(3))


def test_gemma_trains_by_rows(tmp_path):
    """Sliding layers and image tokens that see each other: not packed."""
    model, _, prompts, _ = loaded("gemma3", families.gemma3(tmp_path))
    assert not can_pack(model, prompts)


def test_a_sliding_window_alone_rules_packing_out(llama):
    from transformers import MistralConfig, MistralForCausalLM

    model, _, prompts, _ = llama
    sizes = dict(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1)
    for window in (4, None):
        config = MistralConfig(sliding_window=window, num_attention_heads=1, num_key_value_heads=1, **sizes)
        assert can_pack(MistralForCausalLM(config), prompts) == (window is None)


def test_positions_that_are_read_off_the_mask_or_the_place_rule_packing_out(llama):
    from transformers import BloomConfig, BloomForCausalLM, GPTNeoConfig, GPTNeoForCausalLM

    config = BloomConfig(vocab_size=16, hidden_size=8, n_layer=1, n_head=2)
    assert not can_pack(BloomForCausalLM(config), llama[2])
    for kind in ("global", "local"):
        config = GPTNeoConfig(
            vocab_size=16, hidden_size=8, num_layers=1, num_heads=2, attention_types=[[[kind], 1]], window_size=4
        )
        assert can_pack(GPTNeoForCausalLM(config), llama[2]) == (kind == "global")


# --- any tree ---------------------------------------------------------------------------------------------------


def rollouts_of_tree(paths: list[list[int]], group: list[int] | None = None, size: int = 2) -> Rollouts:
    """Rows along paths of nodes of `size` tokens each; a node's tokens follow from its number."""
    node_ids = pad_rows([torch.tensor(path).repeat_interleave(size) for path in paths], -1)
    column = torch.arange(node_ids.shape[1])
    ids = torch.where(node_ids >= 0, (node_ids * 31 + column * 7) % 300 + 20, 0)
    mask = length_mask((node_ids >= 0).sum(1), node_ids.shape[1])
    zeros = torch.zeros(mask.shape)
    groups = torch.tensor(group or [0] * len(paths))
    return Rollouts(ids, mask, groups, groups >= 0, zeros, zeros, node_ids=node_ids)


@st.composite
def forests(draw):
    """Paths of a random forest over two prompts, depth first."""
    paths, group, count = [], [], 0

    def grow(path, depth, g):
        nonlocal count
        children = draw(st.integers(0 if path else 1, 3)) if depth < 3 else 0
        if not children:
            paths.append(path)
            group.append(g)
        for _ in range(children):
            count += 1
            grow([*path, count - 1], depth + 1, g)

    for g in range(2):
        grow([], 0, g)
    return paths, group


@given(
    forests(), st.integers(1, 3), st.integers(0, 2**32), st.sampled_from([0.2, 0.7, 1.0]),
    st.sampled_from([1, 20, 1000, None]),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_any_tree_with_any_targets(llama, forest, size, seed, share, max_slots):
    _, _, prompts, network = llama
    rollouts = rollouts_of_tree(*forest, size=size)
    generator = torch.Generator().manual_seed(seed)
    targets = first_holders(rollouts.node_ids) & (torch.rand(rollouts.mask.shape, generator=generator) < share)
    rows = torch.randperm(len(rollouts), generator=generator)[: 1 + seed % len(rollouts)].sort().values
    assert_same(network, prompts, rollouts, targets, rows, max_slots)
