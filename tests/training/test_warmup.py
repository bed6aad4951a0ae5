"""The embedded policy: its tokenizer, its saved form, its training in small, and the one that is shipped."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from segpo_core.tasks.shapes import ShapesTask, demonstration
from segpo_core.training import warmup as module
from segpo_core.training.model_card import measure
from segpo_core.training.tiny_policy import ASSISTANT, END, IMAGE, PAD, SYSTEM, TAGS, USER, encode
from segpo_core.training.warmup import WarmupConfig, warmup

SHIPPED = Path(__file__).resolve().parents[2] / "data" / "tiny-vlm"
TINY = WarmupConfig(vision_steps=2, steps=3, careless_steps=2, batch_size=4, threads=1, eval_problems=0, progress=False)
TASK = ShapesTask()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return warmup(replace(TINY, out_dir=str(tmp_path_factory.mktemp("warmup") / "model")))


@pytest.fixture(scope="module")
def fresh():
    """A processor that was never saved, and an untrained model."""
    processor = module.build_processor()
    torch.manual_seed(0)
    return module.build_model(processor).eval(), processor


@pytest.fixture(scope="module")
def processor(made: Path):
    return AutoProcessor.from_pretrained(made)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return AutoModelForImageTextToText.from_pretrained(path).state_dict()


def test_same_settings_same_weights(made: Path, tmp_path: Path) -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    again = warmup(replace(TINY, out_dir=str(tmp_path / "again")))
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads
    first, second = weights(made), weights(again)
    assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
    other = weights(warmup(replace(TINY, out_dir=str(tmp_path / "other"), seed=1)))
    assert not all(torch.equal(first[k], other[k]) for k in first)


def test_saved_and_loaded_it_is_the_same(fresh, tmp_path: Path) -> None:
    model, processor = fresh
    module._save(tmp_path / "model", model, processor, "card")
    loaded, reader = (c.from_pretrained(tmp_path / "model") for c in (AutoModelForImageTextToText, AutoProcessor))
    examples = [TASK.train(i) for i in range(3)]
    texts = [demonstration(example, random.Random(0)) for example in examples]
    here, there = encode(processor, examples, texts), encode(reader, examples, texts)
    assert here.keys() == there.keys() and all(torch.equal(here[k], there[k]) for k in here)
    assert loaded.dtype == torch.float32
    with torch.no_grad():
        assert (model(**here).logits - loaded.eval()(**there).logits).abs().max() == 0
        # the image is looked at
        other = dict(there, pixel_values=there["pixel_values"].flip(0))
        assert (loaded(**other).logits - loaded(**there).logits).abs().max() > 1e-4


def test_tokenizer(processor) -> None:
    tokenizer = processor.tokenizer
    assert tokenizer.tokenize("a 12 red 3") == ["a", "Ġ1", "2", "Ġred", "Ġ3"]
    words = ("topleft", "medium", "yellow", "triangle", "=", "Perhaps")
    assert all(len(tokenizer.tokenize(f" {word}")) == 1 for word in words)
    assert all(tokenizer.tokenize(tag) == [tag] for tag in (*TAGS, PAD, END, SYSTEM, USER, ASSISTANT, IMAGE))
    special = {token.content: token.special for token in tokenizer.added_tokens_decoder.values()}
    assert special == dict.fromkeys(TAGS, False) | dict.fromkeys((PAD, END, SYSTEM, USER, ASSISTANT, IMAGE), True)
    text = demonstration(TASK.train(0), random.Random(0))
    ids = tokenizer(text)["input_ids"] + [tokenizer.eos_token_id]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    for text in ("naïve café – 漢字 🙂", "  two  blanks\n\ttab ", "</script>${1+1}{{x}}"):
        assert tokenizer.decode(tokenizer(text)["input_ids"], clean_up_tokenization_spaces=False) == text
    assert tokenizer.padding_side == "left" and tokenizer.pad_token == PAD and tokenizer.eos_token == END


def test_chat_template_and_image_tokens(processor) -> None:
    messages = [{"role": "system", "content": "Look."}, *TASK.train(0)["prompt"]]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    question = messages[1]["content"][1]["text"]
    assert text == f"{SYSTEM}Look.{END}{USER}{IMAGE}{question}{END}{ASSISTANT}"
    inputs = processor(text=[text], images=TASK.train(0)["images"], return_tensors="pt")
    image = processor.tokenizer.convert_tokens_to_ids(IMAGE)
    assert (inputs["input_ids"] == image).sum() == 9 and inputs["pixel_values"].shape == (1, 3, 48, 48)


def test_labels_cover_the_completion_and_its_end(processor) -> None:
    examples = [TASK.train(i) for i in range(4)]
    texts = [demonstration(example, random.Random(0)) for example in examples]
    batch = encode(processor, examples, texts)
    columns = (batch[name] for name in ("input_ids", "labels", "attention_mask"))
    for ids, labels, mask, text in zip(*columns, texts, strict=True):
        kept = labels[labels != -100]
        assert processor.tokenizer.decode(kept) == text + END
        assert torch.equal(ids[labels != -100], kept) and int(mask[labels != -100].sum()) == len(kept)


def test_placeholders_are_never_sampled(made: Path, processor) -> None:
    settings = json.loads((made / "generation_config.json").read_text())
    names = processor.tokenizer.convert_ids_to_tokens(settings["suppress_tokens"])
    assert set(names) == {PAD, IMAGE, SYSTEM, USER, ASSISTANT}
    assert processor.tokenizer.convert_ids_to_tokens(settings["eos_token_id"]) == END


def test_a_directory_with_other_things_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists and is not a model directory"):
        warmup(replace(TINY, out_dir=str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_model_is_replaced_whole_or_not_at_all(fresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, (model, processor) = tmp_path / "model", fresh
    module._save(out, model, processor, "first")
    (out / "left-over").write_text("")

    def full_disk(*args, **kwargs):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(processor, "save_pretrained", full_disk, raising=False)
        with pytest.raises(OSError, match="no space"):
            module._save(out, model, processor, "second")
    assert (out / "README.md").read_text() == "first" and [p.name for p in tmp_path.iterdir()] == ["model"]
    module._save(out, model, processor, "third")
    assert (out / "README.md").read_text() == "third" and not (out / "left-over").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"batch_size": 0}, {"threads": 0}, {"learning_rate": 0.0}])
def test_settings_that_cannot_be(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        WarmupConfig(**wrong)


def test_every_setting_has_a_help_text() -> None:
    source = Path(module.__file__).read_text(encoding="utf-8").split("class WarmupConfig:")[1].split("def ")[0]
    for name in WarmupConfig.__dataclass_fields__:
        assert f"    {name}: " in source
        assert source.split(f"    {name}: ")[1].split("\n")[1].strip().startswith('"""')


def test_measures_and_card(made: Path, processor) -> None:
    numbers = measure(AutoModelForImageTextToText.from_pretrained(made), processor, 3, generations=2)
    assert all(0 <= v <= 1 for k, v in numbers.items() if "tokens" not in k) and numbers["prompt_tokens"] > 9
    assert {"greedy/answer", "sampled/grounded", "mixed_groups", "completion_tokens"} <= numbers.keys()
    card = (made / "README.md").read_text()
    assert "Not measured" in card and "segpo warmup" in card and "Apache-2.0" in card


def test_the_shipped_policy_sees_and_reckons_both_ways() -> None:
    """A few held-out problems; the model card has the numbers of four hundred."""
    model, processor = AutoModelForImageTextToText.from_pretrained(SHIPPED), AutoProcessor.from_pretrained(SHIPPED)
    assert sum(f.stat().st_size for f in SHIPPED.iterdir()) < 8e6
    numbers = measure(model, processor, 40, generations=4)
    assert numbers["sampled/format"] > 0.9 and 0.5 < numbers["greedy/perception"] < 0.9
    assert 0.15 < numbers["greedy/answer"] < 0.5, "it prefers wrong prices, and mistakes some shapes for others"
    assert 0.2 < numbers["sampled/answer"] < 0.5 and numbers["mixed_groups"] > 0.5
    assert numbers["sampled/perception_error"] > 0.2 and numbers["sampled/reasoning_error"] > 0.2
    assert 50 < numbers["completion_tokens"] < 70
    card = (SHIPPED / "README.md").read_text()
    assert "| answer right |" in card and "400 held-out problems" in card
