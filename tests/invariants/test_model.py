"""The lines of METHODS.md that concern models: which tokens count, padding, temperature, pixels, ids."""

import pytest
import torch

from segpo_core.policy import load
from segpo_core.policy.critic import ActorCritic
from segpo_core.policy.inputs import Prompts
from segpo_core.policy.logprobs import Head, backbone, gather, token_logprobs
from tests.fakes import families
from tests.sampling.test_generate import problems, sampler_of


@pytest.fixture(scope="module", params=sorted(families.FAMILIES))
def setup(request, tmp_path_factory):
    """(family, model, processor, network with critic, prompts, rollouts)."""
    path = families.FAMILIES[request.param](tmp_path_factory.mktemp(request.param))
    model, processor = load.load_model(path), load.load_processor(path)
    network = ActorCritic(model, load.suppressed_token_ids(model, processor), 0.8, critic="head")
    torch.nn.init.normal_(network.value_head.out.weight)
    prompts = Prompts.build(problems(request.param), processor, model.config)
    rollouts = sampler_of(model, processor, temperature=0.8, max_completion_length=12).groups(prompts, 2, (3,))
    return request.param, model, processor, network, prompts, rollouts


@torch.no_grad()
def scores(network, prompts, rollouts, rows=None, pad=0):
    rows = torch.arange(len(rollouts)) if rows is None else rows
    ids, mask = rollouts.completion_ids[rows], rollouts.mask[rows]
    if pad:
        ids = torch.nn.functional.pad(ids, (0, pad))
        mask = torch.nn.functional.pad(mask, (0, pad))
    return network(prompts.batch(rollouts.group[rows], "cpu"), ids, mask)


def test_line_02_numbers_cover_exactly_the_completion(setup):
    *_, network, prompts, rollouts = setup
    for values in scores(network, prompts, rollouts):
        assert torch.equal(values != 0, rollouts.mask), "the EOS counts, padding does not"


def test_line_03_values_are_those_before_the_token(setup):
    """The value at t must not change with token t, and must change with token t − 1."""
    *_, network, prompts, rollouts = setup
    before = scores(network, prompts, rollouts).values
    changed = rollouts.select(torch.arange(len(rollouts)))
    at = 1
    assert (rollouts.lengths > at + 1).any()
    changed.completion_ids = changed.completion_ids.clone()
    changed.completion_ids[:, at] = (changed.completion_ids[:, at] + 5) % 100 + 10
    after = scores(network, prompts, changed).values
    rows = rollouts.lengths > at + 1
    torch.testing.assert_close(after[rows, : at + 1], before[rows, : at + 1], atol=1e-5, rtol=1e-5)
    assert ((after - before)[rows, at + 1].abs() > 1e-6).all()


def test_line_05_a_pad_or_eos_id_inside_does_not_end_the_mask(setup):
    """Masks come from lengths: the same completion with an EOS id written into its middle keeps all its tokens."""
    _, model, processor, network, prompts, rollouts = setup
    odd = rollouts.select(torch.arange(len(rollouts)))
    odd.completion_ids = odd.completion_ids.clone()
    odd.completion_ids[:, 0] = load.eos_token_ids(model, processor)[0]
    assert torch.equal(scores(network, prompts, odd).values != 0, rollouts.mask)


def test_line_06_ids_are_kept_as_sampled(setup):
    """Texts are derived from ids and never encoded again: ids that do not survive a round trip stay."""
    _, model, processor, _, _, rollouts = setup
    tokenizer = load.get_tokenizer(processor)
    again = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in rollouts.texts]
    kept = [row[mask].tolist() for row, mask in zip(rollouts.completion_ids, rollouts.mask, strict=True)]
    assert again != kept, "random text should not survive; otherwise this test shows nothing"
    assert [len(p) for p in rollouts.pieces] == [len(k) for k in kept]


def test_line_07_the_temperature_is_in_every_number(setup):
    _, model, processor, _, prompts, rollouts = setup
    suppressed = load.suppressed_token_ids(model, processor)
    batch = prompts.batch(rollouts.group, "cpu")
    results = {}
    with torch.no_grad():
        for temperature in (0.5, 1.0):
            network = ActorCritic(model, suppressed, temperature)
            results[temperature] = network(batch, rollouts.completion_ids, rollouts.mask)
    mask = rollouts.mask
    assert not torch.allclose(results[0.5].logprobs[mask], results[1.0].logprobs[mask])
    assert results[0.5].entropy[mask].mean() < results[1.0].entropy[mask].mean()


def test_line_12_dropout_is_off(setup):
    *_, network, prompts, rollouts = setup
    network.train()
    a, b = scores(network, prompts, rollouts), scores(network, prompts, rollouts)
    network.eval()
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_line_13_each_row_gets_its_own_image(setup):
    family, model, processor, network, prompts, rollouts = setup
    if family == "llama":
        assert all(not example["images"] for example in problems(family))
        return
    swapped = [dict(example) for example in problems(family)]
    swapped[0]["images"] = [image.rotate(90, expand=False).point(lambda v: 255 - v) for image in swapped[0]["images"]]
    other = Prompts.build(swapped, processor, model.config)
    before, after = scores(network, prompts, rollouts).logprobs, scores(network, other, rollouts).logprobs
    moved = (before - after).abs().amax(1)
    first = rollouts.group == 0
    assert (moved[first] > 1e-4).all(), "another image must change the log-probabilities"
    torch.testing.assert_close(before[~first], after[~first], atol=1e-5, rtol=1e-5)


def test_line_14_a_batch_is_its_rows_one_by_one(setup):
    *_, network, prompts, rollouts = setup
    together = scores(network, prompts, rollouts)
    for b in range(len(rollouts)):
        alone = scores(network, prompts, rollouts, torch.tensor([b]))
        for x, y in zip(alone, together, strict=True):
            torch.testing.assert_close(x[0], y[b], atol=1e-4, rtol=1e-4)


def test_line_15_placeholders_have_no_probability(setup):
    _, model, processor, _, prompts, rollouts = setup
    suppressed = load.suppressed_token_ids(model, processor)
    head = Head(model, suppressed)
    logits = head(torch.randn(4, model.config.get_text_config().hidden_size))
    assert suppressed and (logits.softmax(-1)[:, suppressed] == 0).all()
    assert not set(suppressed) & set(rollouts.completion_ids[rollouts.mask].tolist())


def test_line_19_padding_columns_change_nothing(setup):
    *_, network, prompts, rollouts = setup
    width = rollouts.mask.shape[1]
    for x, y in zip(scores(network, prompts, rollouts), scores(network, prompts, rollouts, pad=5), strict=True):
        torch.testing.assert_close(x, y[:, :width], atol=1e-5, rtol=1e-5)
        assert (y[:, width:] == 0).all()


def test_chunks_of_logits_change_neither_values_nor_gradients(setup, monkeypatch):
    """And no more than `MAX_LOGITS` logits are made at a time."""
    _, model, processor, *_ = setup
    head = Head(model, load.suppressed_token_ids(model, processor))
    weight = head._linear[0].weight
    hidden = torch.randn(37, weight.shape[1], requires_grad=True)
    tokens = torch.randint(10, 50, (37,))
    expected, entropy = gather(head(hidden), tokens, 0.9)
    want = torch.autograd.grad(expected.sum(), [hidden, weight])
    sizes = []
    forward = Head.forward
    monkeypatch.setattr(Head, "forward", lambda self, x: (sizes.append(x.shape[0]), forward(self, x))[1])
    monkeypatch.setattr("segpo_core.policy.logprobs.MAX_LOGITS", 8 * weight.shape[0])
    got, spread = token_logprobs(hidden, head, tokens, 0.9)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(spread, entropy)
    for x, y in zip(torch.autograd.grad(got.sum(), [hidden, weight]), want, strict=True):
        torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-4)
    assert max(sizes) == 8


def test_the_head_gives_the_model_s_own_logits(setup):
    _, model, processor, _, prompts, _ = setup
    suppressed = load.suppressed_token_ids(model, processor)
    batch = prompts.batch([0], "cpu")
    with torch.no_grad():
        logits = model(**batch).logits[0, -1]
        ours = Head(model, suppressed)(backbone(model)(**batch).last_hidden_state[:, -1])[0]
    kept = torch.ones_like(logits, dtype=torch.bool)
    kept[suppressed] = False
    torch.testing.assert_close(ours[kept], logits[kept], atol=1e-5, rtol=1e-5)
