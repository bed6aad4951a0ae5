"""The sampler against the scoring pass, for every model family."""

import numpy as np
import pytest
import torch
from PIL import Image

from segpo_core.policy import load
from segpo_core.policy.critic import ActorCritic
from segpo_core.policy.inputs import Prompts
from segpo_core.sampling.generate import InProcess, choose
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
    from segpo_core.policy.logprobs import backbone

    widths = []
    network = backbone(model)
    forward = network.forward
    monkeypatch.setattr(network, "forward", lambda **kw: (widths.append(kw["input_ids"].shape), forward(**kw))[1])
    prompts = Prompts.build(problems(family), processor, model.config)
    sampler_of(model, processor, max_completion_length=5).groups(prompts, 4, (0, 0))
    assert widths[0][0] == len(prompts)
    assert all(shape[1] == 1 for shape in widths[1:])
    rows = [shape[0] for shape in widths[1:]]
    assert rows == sorted(rows, reverse=True), "a row that ended takes no more part"


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
