"""The sampler against the scoring pass, for every model family."""

from functools import partial

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import DynamicCache

from segpo_core.policy import load
from segpo_core.policy.critic import ActorCritic
from segpo_core.policy.inputs import Prompts, extend, position_ids, prefill_inputs
from segpo_core.policy.logprobs import backbone
from segpo_core.sampling import generate, plain
from segpo_core.sampling.generate import InProcess, choose
from segpo_core.sampling.plain import PlainStep, is_plain, whole_step
from segpo_core.sampling.roomy import RoomyLayer, arrange, branch, with_room
from segpo_core.sampling.sampler import noise, token_pieces
from tests.fakes import families


def picture(width: int, height: int, seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def problems(family: str) -> list[dict]:
    """Prompts of different length: one image, two images of different size, none."""
    if family == "llama":
        return [{"prompt": "How many red circles?", "images": []}, {"prompt": "2 + 3 =", "images": []}]

    def ask(text: str, images: list) -> dict:
        parts = [{"type": "image"}] * len(images) + [{"type": "text", "text": text}]
        return {"prompt": [{"role": "user", "content": parts}], "images": images}

    return [
        ask("How many red circles are there?", [picture(40, 40, 0)]),
        ask("Which one is larger?", [picture(64, 32, 1), picture(30, 50, 2)]),
        ask("2 + 3 =", []),
    ]


@pytest.fixture(scope="module", params=sorted(families.FAMILIES))
def loaded(request, tmp_path_factory):
    path = families.FAMILIES[request.param](tmp_path_factory.mktemp(request.param))
    return request.param, load.load_model(path), load.load_processor(path)


def sampler_of(model, processor, **kwargs) -> InProcess:
    """A sampler for which a quarter of the vocabulary ends a completion: random weights would rarely end one."""
    suppressed = load.suppressed_token_ids(model, processor)
    vocabulary = model.config.get_text_config().vocab_size
    eos = set(range(0, vocabulary, 4)) - set(suppressed) | set(load.eos_token_ids(model, processor))
    return InProcess(model, load.get_tokenizer(processor), sorted(eos), suppressed, **kwargs)


def test_sampled_logprobs_are_those_of_the_scoring_pass(loaded):
    family, model, processor = loaded
    sampler = sampler_of(model, processor, temperature=0.7, max_completion_length=12)
    prompts = Prompts.build(problems(family), processor, model.config)
    rollouts = sampler.groups(prompts, 3, (0, 1))
    network = ActorCritic(model, load.suppressed_token_ids(model, processor), temperature=0.7)
    with torch.no_grad():
        scores = network(prompts.batch(rollouts.group, "cpu"), rollouts.completion_ids, rollouts.mask)
    assert rollouts.lengths.min() >= 1 and len(rollouts.lengths.unique()) > 1, "rows should end at different places"
    torch.testing.assert_close(scores.logprobs, rollouts.sampled_logprobs, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scores.entropy, rollouts.entropy, atol=1e-4, rtol=1e-4)


def test_a_row_is_sampled_the_same_alone_and_in_a_batch(loaded):
    family, model, processor = loaded
    sampler = sampler_of(model, processor, max_completion_length=10)
    examples = problems(family)
    together = sampler.groups(Prompts.build(examples, processor, model.config), 2, (7, 3))
    for i, example in enumerate(examples):
        alone = sampler.groups(Prompts.build([example], processor, model.config), 2, (7, 3), first=i)
        for g in range(2):
            row = together.completion_ids[2 * i + g][together.mask[2 * i + g]]
            assert row.tolist() == alone.completion_ids[g][alone.mask[g]].tolist()


def test_completions_end_at_any_eos_and_never_hold_a_placeholder(loaded):
    family, model, processor = loaded
    sampler = sampler_of(model, processor, max_completion_length=40)
    rollouts = sampler.groups(Prompts.build(problems(family), processor, model.config), 8, (1, 1))
    eos = set(sampler.eos.tolist())
    for ids, n, finished in zip(
        rollouts.completion_ids.tolist(), rollouts.lengths.tolist(), rollouts.finished, strict=True
    ):
        assert (ids[n - 1] in eos) == bool(finished)
        assert not eos & set(ids[: n - 1])
        assert not set(load.suppressed_token_ids(model, processor)) & set(ids[:n])
    assert rollouts.finished.any()


def test_every_prompt_and_its_images_are_computed_once(loaded, monkeypatch):
    family, model, processor = loaded
    widths = []
    network = backbone(model)
    forward, step_of = network.forward, generate.step_of

    def prefilled(**inputs):
        if inputs["input_ids"].shape[1] > 1:
            widths.append(inputs["input_ids"].shape)
        return forward(**inputs)

    def counting(model, cache):
        step = step_of(model, cache)
        return lambda tokens, *rest: (widths.append((len(tokens), 1)), step(tokens, *rest))[1]

    monkeypatch.setattr(network, "forward", prefilled)
    monkeypatch.setattr(generate, "step_of", counting)
    prompts = Prompts.build(problems(family), processor, model.config)
    rollouts = sampler_of(model, processor, max_completion_length=5).groups(prompts, 4, (0, 0))
    assert widths[0][0] == len(prompts)
    assert all(shape[1] == 1 for shape in widths[1:])
    rows = list(zip(rollouts.group.tolist(), rollouts.completion_ids.tolist(), rollouts.lengths.tolist(), strict=True))
    for t, (number, _) in enumerate(widths[1:], start=1):
        different = {(group, *ids[:t]) for group, ids, length in rows if length > t}
        assert number == len(different), "what rows share is computed once, and a row that ended takes no more part"


@torch.no_grad()
def one_by_one(sampler: InProcess, prompts: Prompts, number: int, stream: tuple[int, ...]) -> list[list[int]]:
    """Completions as they are defined: each alone, its whole sequence through the model for every token."""
    found = []
    for p in range(len(prompts)):
        for g in range(number):
            ids: list[int] = []
            for uniform in noise(sampler.max_completion_length, *stream, p, g):
                row = torch.tensor([ids], dtype=torch.long)
                inputs = extend(prompts.batch([p]), row, torch.ones_like(row, dtype=torch.bool))
                inputs["position_ids"] = position_ids(sampler.model, inputs)
                hidden = backbone(sampler.model)(**inputs, use_cache=False).last_hidden_state[:, -1]
                token = choose(sampler.head(hidden), torch.tensor([uniform]), sampler.temperature)
                ids.append(int(token))
                if ids[-1] in sampler.eos.tolist():
                    break
            found.append(ids)
    return found


def test_tokens_are_those_of_the_slow_way(loaded):
    family, model, processor = loaded
    sampler = sampler_of(model, processor, max_completion_length=12, temperature=0.5)
    prompts = Prompts.build(problems(family), processor, model.config)
    rollouts = sampler.groups(prompts, 4, (3, 4))
    found = [ids[:n] for ids, n in zip(rollouts.completion_ids.tolist(), rollouts.lengths.tolist(), strict=True)]
    assert found == one_by_one(sampler, prompts, 4, (3, 4))


@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "Qwen3"])
@torch.no_grad()
def test_the_plain_step_is_the_models_own(kind, monkeypatch):
    size = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_hidden_layers": 2}
    text = dict(size, vocab_size=100, num_key_value_heads=2, max_position_embeddings=64)
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**text)).eval()
    for parameter in model.parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.2 + (parameter.ndim == 1))
    ids, mask = torch.randint(100, (5, 9)), torch.ones(5, 9, dtype=torch.long)
    mask[1:3, :4] = 0
    ends = []
    joined = PlainStep(model.model)
    monkeypatch.setattr(plain, "SMALL", 0)
    steps = [joined, PlainStep(model.model), partial(whole_step, model.model)]
    for step in steps:
        inputs, position = prefill_inputs(model, {"input_ids": ids, "attention_mask": mask})
        cache, seen, hidden = DynamicCache(config=model.config), mask, []
        model.model(**inputs, past_key_values=cache, use_cache=True)
        with_room(cache)
        assert is_plain(model.model) and all(type(layer) is RoomyLayer for layer in cache.layers)
        for t in range(4):
            seen = torch.cat([seen, seen.new_ones(5, 1)], dim=1)
            hidden.append(step(ids[:, t], seen, position + t, cache))
        ends.append(torch.stack(hidden))
    assert ends[0].abs().max() > 0.1
    for end in ends[:2]:
        torch.testing.assert_close(end, ends[2], atol=1e-5, rtol=1e-5)
    model.model.layers[1].mlp.register_forward_hook(lambda *_: None)
    assert not is_plain(model.model), "who listens is not passed by"


def test_rows_part_where_their_tokens_differ():
    node, token = np.array([0, 0, 0, 2, 2, 1]), np.array([5, 3, 5, 1, 1, 0])
    source, tokens, new = branch(node, token, 10)
    assert source[new].tolist() == node.tolist() and tokens[new].tolist() == token.tolist()
    assert len(source) == 4 and new[0] == new[2] and new[3] == new[4]
    assert source[:3].tolist() == [0, 1, 2], "a node stays where it was"
    rng = np.random.default_rng(0)
    for _ in range(200):
        size, rows = rng.integers(1, 8), rng.integers(1, 20)
        node, token = rng.integers(0, size, rows), rng.integers(0, 4, rows)
        source, tokens, new = branch(node, token, 4)
        assert source[new].tolist() == node.tolist() and tokens[new].tolist() == token.tolist()
        assert set(new.tolist()) == set(range(len(source))) == set(range(len(set(zip(node, token, strict=True)))))
        moved = np.flatnonzero(source != np.arange(len(source)))
        assert not set(moved.tolist()) & set(source.tolist()), "what is copied from is not written over"


def test_a_cache_with_room_holds_what_it_was_given():
    rng, first = torch.Generator().manual_seed(0), [torch.randn(3, 2, 5, 4) for _ in range(2)]
    cache = DynamicCache()
    cache.update(*first, 0)
    with_room(cache)
    rows = [[x.clone() for x in pair] for pair in zip(*first, strict=True)]  # what each row should hold
    for t in range(40):
        new = [torch.randn(len(rows), 2, 1, 4, generator=rng) for _ in range(2)]
        cache.update(*new, 0)
        rows = [[torch.cat([a, b[i]], dim=1) for a, b in zip(r, new, strict=True)] for i, r in enumerate(rows)]
        node = torch.randint(len(rows), (4 + t % 5,), generator=rng).numpy()
        source, _, _ = branch(node, np.arange(len(node)) % 2, 2)
        arrange(cache, source, torch.device("cpu"))
        rows = [rows[i] for i in source]
        for held, part in ((cache.layers[0].keys, 0), (cache.layers[0].values, 1)):
            assert held.equal(torch.stack([row[part] for row in rows]))


def test_choose_follows_the_distribution_and_never_takes_probability_zero():
    logits = torch.tensor([[0.0, 1.0, -1.0, torch.finfo(torch.float32).min / 4]]).repeat(20000, 1)
    uniform = torch.from_numpy(noise(20000, 5))
    share = torch.bincount(choose(logits, uniform, 0.5), minlength=4) / 20000
    torch.testing.assert_close(share, (logits[0] / 0.5).softmax(-1), atol=0.01, rtol=0)
    assert share[3] == 0
    assert choose(logits[:1], torch.tensor([1 - 2**-53], dtype=torch.float64), 1.0).item() == 2
    assert choose(logits[:1], torch.tensor([0.999]), 0).item() == 1


def test_pieces_join_to_the_text_even_within_characters():
    tokenizer = families.tokenizer()
    text = "2 + 3 = 5 \N{BLACK HEART SUIT} \N{GRINNING FACE}é"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    for cut in range(1, len(ids) + 1):
        pieces = token_pieces(tokenizer, ids[:cut])
        assert len(pieces) == cut
        assert "".join(pieces) == tokenizer.decode(ids[:cut], skip_special_tokens=True)


def test_pieces_of_a_tokenizer_with_byte_fallback():
    tokenizer, face = families.byte_fallback_tokenizer(), "\N{GRINNING FACE}"

    def ids(*tokens: str | int) -> list[int]:
        return tokenizer.convert_tokens_to_ids([t if isinstance(t, str) else f"<0x{t:02X}>" for t in tokens])

    four, whole = face.encode(), ["", "", "", face]
    assert token_pieces(tokenizer, ids("▁a", *four, *four, "▁b")) == [" a", *whole, *whole, " b"]
    stray = ids(*four, *four[:2], "a", "▁b")
    assert token_pieces(tokenizer, stray) == [*whole, "", "", "\ufffd\ufffda", " b"]
    assert token_pieces(tokenizer, ids("a", *four[:2])) == ["a", "", "\ufffd\ufffd"], "cut within a character"
    assert token_pieces(tokenizer, ids(*four[:2], "a")) == ["", "", "\ufffd\ufffda"]
    for row in np.random.default_rng(0).integers(0, len(tokenizer), (20, 40)).tolist():
        pieces = token_pieces(tokenizer, row)
        assert len(pieces) == 40
        for i, piece in zip(tokenizer.convert_ids_to_tokens(row), pieces, strict=True):
            assert len(i) > 2 or piece.endswith(i.replace("▁", " ")), "a letter is its own token's"
