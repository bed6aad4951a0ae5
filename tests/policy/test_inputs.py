"""Batches of prompts give what each prompt gives alone: logits, teacher forcing, decoding with a cache."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import DynamicCache

from segpo_core.policy.corruptions import KINDS, corrupt
from segpo_core.policy.inputs import Prompts, decode_inputs, extend, prefill_inputs
from segpo_core.policy.inputs import position_ids as positions_of
from segpo_core.policy.load import load_config, load_model, load_processor
from tests.fakes.families import FAMILIES, GEMMA_WINDOW

CLOSE = dict(atol=1e-4, rtol=0)


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request, tmp_path_factory):
    """Name, model (fp32), processor."""
    path = FAMILIES[request.param](tmp_path_factory.mktemp(request.param))
    return request.param, load_model(path), load_processor(path)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def example(text: str, images: list[Image.Image], name: str = "e") -> dict:
    parts = [{"type": "image"}] * len(images) + [{"type": "text", "text": text}]
    return {"prompt": [{"role": "user", "content": parts}], "images": images, "id": name}


def mixed(name: str) -> list[dict]:
    """Prompts of different length with one, two and no images, of different sizes (no images for a text
    model)."""
    text = "How many red circles are there? " * 2
    shots = [[picture(32, 32, 1)], [picture(24, 40, 2), picture(64, 16, 3)], [], [picture(40, 24, 4)]]
    if name == "llama":
        shots = [[] for _ in shots]
    return [example(text[: 8 + 16 * i], images, f"e{i}") for i, images in enumerate(shots)]


@torch.no_grad()
def forced_logits(model, batch, ids, mask) -> torch.Tensor:
    """Logits that predict each completion token, and the one after the last: [B, T + 1, V]."""
    full = extend(batch, ids, mask)
    logits = model(**full, position_ids=positions_of(model, full), use_cache=False).logits
    return logits[:, batch["input_ids"].shape[1] - 1 :]


def completions(rows: int, length: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Random text tokens of different lengths, right padded."""
    ids = torch.randint(20, 300, (rows, length), generator=torch.Generator().manual_seed(7))
    mask = torch.arange(length) < (length - 2 * torch.arange(rows) % 5)[:, None]
    return ids.masked_fill(~mask, 0), mask


def test_batch_equals_single(family):
    name, model, processor = family
    prompts = Prompts.build(mixed(name), processor, model.config)
    assert len(set(prompts.lengths.tolist())) == len(prompts) == 4
    rows = [2, 0, 1, 1, 3]
    ids, mask = completions(len(rows))
    batched = forced_logits(model, prompts.batch(rows), ids, mask)
    assert prompts.batch(rows)["input_ids"].shape == (5, int(prompts.lengths.max()))
    for i, row in enumerate(rows):
        n = int(mask[i].sum())
        alone = forced_logits(model, prompts.batch([row]), ids[i : i + 1, :n], mask[i : i + 1, :n])
        torch.testing.assert_close(batched[i, : n + 1], alone[0], **CLOSE)
        # Against the model's own positions, with no padding and no explicit position ids at all.
        single = extend(prompts.batch([row]), ids[i : i + 1, :n], mask[i : i + 1, :n])
        with torch.no_grad():
            own = model(**single, use_cache=False).logits
        torch.testing.assert_close(alone[0], own[0, -n - 1 :], **CLOSE)


@torch.no_grad()
def test_decoding_equals_teacher_forcing(family):
    name, model, processor = family
    prompts = Prompts.build(mixed(name), processor, model.config)
    model(**prompts.batch([1]))  # what an earlier batch left in the model must not matter
    rows, repeats = torch.tensor([2, 1, 0]), 2
    inputs, position = prefill_inputs(model, prompts.batch(rows))
    cache = DynamicCache(config=model.config)
    first = model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
    cache.batch_repeat_interleave(repeats)
    row_of = rows.repeat_interleave(repeats)
    ids, mask = completions(len(row_of))
    expected = forced_logits(model, prompts.batch(row_of), ids, mask)
    torch.testing.assert_close(first.repeat_interleave(repeats, 0), expected[:, 0], **CLOSE)

    attention = inputs["attention_mask"].repeat_interleave(repeats, 0)
    position, alive = position.repeat_interleave(repeats), torch.arange(len(row_of))
    for t in range(ids.shape[1]):
        if t in (4, 8):  # finished rows leave the batch
            keep = mask[alive, t]
            cache.batch_select_indices(keep.nonzero()[:, 0])
            alive, attention, position = alive[keep], attention[keep], position[keep]
        attention = torch.cat([attention, mask[alive, t : t + 1].long()], dim=1)
        step = decode_inputs(ids[alive, t : t + 1], attention, position)
        logits = model(**step, past_key_values=cache, use_cache=True).logits[:, -1]
        live = mask[alive, t]
        torch.testing.assert_close(logits[live], expected[alive, t + 1][live], **CLOSE)
        position = position + 1
    assert len(alive) < len(row_of)
    if name == "gemma3":
        kinds = [type(layer).__name__ for layer in cache.layers]
        assert kinds == ["DynamicSlidingWindowLayer", "DynamicLayer", "DynamicSlidingWindowLayer"]
        assert cache.layers[0].keys.shape[2] == GEMMA_WINDOW - 1
        padding = int((attention == 0).sum(dim=1).max())
        assert padding > GEMMA_WINDOW


@torch.no_grad()
def test_several_tokens_at_once(family):
    name, model, processor = family
    batch = Prompts.build(mixed(name), processor, model.config).batch()
    ids, _ = completions(4, 10)
    mask = torch.ones_like(ids, dtype=torch.bool)
    inputs, position = prefill_inputs(model, batch)
    cache = DynamicCache(config=model.config)
    model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
    attention = torch.cat([batch["attention_mask"], mask.long()], dim=1)
    logits = model(**decode_inputs(ids, attention, position), past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(logits, forced_logits(model, batch, ids, mask)[:, 1:], **CLOSE)


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    """Configuration and processor."""
    path = FAMILIES["llava"](tmp_path_factory.mktemp("llava"))
    return load_config(path), load_processor(path)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    path = FAMILIES["llama"](tmp_path_factory.mktemp("llama"))
    return load_config(path), load_processor(path)


def rendered(prompts: Prompts, processor, row: int = 0) -> str:
    return processor.decode(prompts.rows[row]["input_ids"][0])


def test_prompt_forms(llava, llama):
    config, processor = llava
    shot = picture(32, 32)
    forms = [
        example("How many?", [shot]),
        {"prompt": "How many?", "images": [shot]},
        {"prompt": [{"role": "user", "content": "How many?"}], "images": [shot.convert("RGBA")]},
        # as a data set stores it: every part has every key
        {
            "prompt": [
                {
                    "role": "user",
                    "content": [{"type": "image", "text": None}, {"type": "text", "text": "How many?"}],
                }
            ],
            "images": [shot.convert("RGB")],
        },
    ]
    prompts = Prompts.build(forms, processor, config)
    for row in prompts.rows[1:]:
        assert all(torch.equal(row[key], prompts.rows[0][key]) for key in row)
    expected = "<|im_start|>user\n" + "<image>" * 4 + "How many?<|im_end|>\n<|im_start|>assistant\n"
    assert rendered(prompts, processor) == expected

    config, tok = llama
    opened = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "The answer"}]
    texts = Prompts.build([{"prompt": "2 + 3 ="}, {"prompt": opened}], tok, config)
    assert rendered(texts, tok, 0) == "2 + 3 ="  # a plain string is not wrapped in a conversation
    assert rendered(texts, tok, 1).endswith("<|im_start|>assistant\nThe answer")


def test_rows_keep_their_images(llava):
    config, processor = llava
    shots = [picture(32, 32, seed) for seed in range(3)]
    prompts = Prompts.build([example("a", shots[:2]), example("b", []), example("c", shots[2:])], processor, config)
    pixels = [prompts.batch([row]).get("pixel_values") for row in range(3)]
    assert pixels[1] is None
    batch = prompts.batch(torch.tensor([2, 1, 0, 2]))
    torch.testing.assert_close(batch["pixel_values"], torch.cat([pixels[2], pixels[0], pixels[2]]))
    assert "pixel_values" not in prompts.batch([1, 1])
    picked = prompts.select([2, 0])
    assert len(picked) == 2 and picked.lengths.tolist() == prompts.lengths[[2, 0]].tolist()
    assert batch["attention_mask"].sum(dim=1).tolist() == prompts.lengths[[2, 1, 0, 2]].tolist()


def test_image_keys_of_different_shape_are_zero_padded():
    def row(n: int) -> dict:
        return {
            "input_ids": torch.ones(1, 4 + n, dtype=torch.long),
            "pixel_values": torch.ones(1, n, 3, 2, 2),
        }

    pixels = Prompts((row(1), row(3)), 0).batch()["pixel_values"]
    assert pixels.shape == (2, 3, 3, 2, 2)
    assert pixels[0].sum() == 12 and pixels[0, 1:].sum() == 0 and pixels[1].sum() == 36


def test_errors(llava, llama):
    config, processor = llava
    shot = picture(32, 32)
    with pytest.raises(ValueError, match=r"'q7': the prompt has \d+ tokens, over max_prompt_length=8; raise"):
        Prompts.build([example("How many?", [shot], "q7")], processor, config, max_prompt_length=8)
    with pytest.raises(ValueError, match=r"'long'.*context of 512"):
        Prompts.build([example("red circle " * 400, [], "long")], processor, config)
    with pytest.raises(ValueError, match="no tokens"):
        Prompts.build([{"prompt": ""}], llama[1], llama[0])
    two_parts = example("How many?", [shot, shot], "q8") | {"images": [shot]}
    with pytest.raises(ValueError, match=r"'q8': the prompt has 2 image part\(s\) but 1 image"):
        Prompts.build([two_parts], processor, config)
    with pytest.raises(ValueError, match="must not contain '<image>' itself"):
        Prompts.build([example("What is <image>?", [shot])], processor, config)
    with pytest.raises(TypeError, match="PIL"):
        Prompts.build([example("How many?", ["picture.png"])], processor, config)
    with pytest.raises(ValueError, match="'q9' has 1 image.*reads text only"):
        Prompts.build([example("How many?", [shot], "q9")], llama[1], llama[0])
    batch = Prompts.build([example("How many?", [])], *llava[::-1]).batch()
    with pytest.raises(ValueError, match="B=1"):
        extend(batch, torch.ones(2, 3, dtype=torch.long), torch.ones(2, 3, dtype=torch.bool))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(48, 48), (50, 31), (3, 2)])
def test_corruptions(kind, size):
    image, other = picture(*size, seed=1), picture(20, 30, seed=2)
    before = np.asarray(image).copy()
    first, again = (corrupt(image, kind, np.random.default_rng(5), other) for _ in range(2))
    assert first.size == image.size and first.mode == "RGB"
    pixels = np.asarray(first)
    np.testing.assert_array_equal(pixels, np.asarray(again))
    np.testing.assert_array_equal(np.asarray(image), before)
    if size == (48, 48):
        assert (pixels != before).any()
        mean = before.reshape(-1, 3).mean(axis=0).round()
        if kind == "blank":
            assert (pixels == mean).all()
        if kind == "mask":
            hidden = (pixels == mean).all(axis=-1).mean()
            assert hidden == pytest.approx(0.6, abs=0.02)
        if kind == "shuffle":
            assert sorted(map(tuple, pixels.reshape(-1, 3))) == sorted(map(tuple, before.reshape(-1, 3)))


def test_corruption_errors():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="fog.*blank, noise"):
        corrupt(picture(8, 8), "fog", rng)
    with pytest.raises(ValueError, match="another prompt's image"):
        corrupt(picture(8, 8), "other", rng)
    assert corrupt(picture(8, 8).convert("RGBA"), "blur", rng).mode == "RGB"
