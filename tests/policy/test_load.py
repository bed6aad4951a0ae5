"""Loading, adapters, references and special tokens, for four families of models."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import Qwen2VLProcessor, Qwen3VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.processing_utils import MODALITY_TO_AUTOPROCESSOR_MAPPING
from transformers.utils import is_torchvision_available

from segpo_core.policy.load import (
    context_length,
    disable_dropout,
    eos_token_ids,
    get_tokenizer,
    is_vision_config,
    load_config,
    load_model,
    load_processor,
    make_reference,
    pad_token_id,
    reference_context,
    suppressed_token_ids,
)
from segpo_core.policy.video import NoVideoProcessor, video_stand_in
from tests.fakes.families import FAMILIES, tokenizer

needs_stand_in = pytest.mark.skipif(is_torchvision_available(), reason="the real video processor is used")


@pytest.fixture(scope="module", params=list(FAMILIES))
def saved(request, tmp_path_factory):
    return request.param, FAMILIES[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return FAMILIES["qwen2_5_vl"](tmp_path_factory.mktemp("qwen"))


def test_load(saved):
    name, path = saved
    model, processor = load_model(path), load_processor(path)
    assert is_vision_config(load_config(path)) == (name != "llama") == hasattr(processor, "image_processor")
    assert type(model).__name__.endswith("ForCausalLM" if name == "llama" else "ForConditionalGeneration")
    assert not model.training and model.dtype == torch.float32
    assert load_model(path, "bfloat16").dtype == torch.bfloat16
    assert context_length(model.config) == (256 if name == "llama" else 512)


def test_processor_round_trip(saved, tmp_path):
    name, path = saved
    first = load_processor(path)
    first.save_pretrained(tmp_path)
    load_config(path).save_pretrained(tmp_path)
    second = load_processor(tmp_path)
    assert type(first) is type(second)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many?"}]}]
    text = first.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == second.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    if name != "llama":
        pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
        a, b = (p(text=[text], images=[[Image.fromarray(pixels)]], return_tensors="pt") for p in (first, second))
        assert set(a) == set(b) and all(torch.equal(a[key], b[key]) for key in a)


def test_token_ids(saved):
    name, path = saved
    model, processor = load_model(path), load_processor(path)
    tok = get_tokenizer(processor)
    assert tok.convert_ids_to_tokens(eos_token_ids(model, processor)) == ["<|im_end|>", "<|endoftext|>"]
    assert pad_token_id(model.config, processor) == tok.convert_tokens_to_ids("<|pad|>")
    placeholders = {
        "llava": {"<image>"},
        "qwen2_5_vl": {"<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"},
        "gemma3": {"<image_soft_token>", "<start_of_image>", "<end_of_image>"},
        "llama": set(),
    }[name]
    assert set(tok.convert_ids_to_tokens(suppressed_token_ids(model, processor))) == placeholders | {"<|pad|>"}
    model.generation_config.suppress_tokens = [42]
    assert 42 in suppressed_token_ids(model, processor)


def test_end_of_turn_from_chat_template_and_pad_that_is_eos(tmp_path):
    path = FAMILIES["llama"](tmp_path)
    model, tok = load_model(path), load_processor(path)
    end, text = tok.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    model.config.eos_token_id = model.generation_config.eos_token_id = text
    tok.eos_token = tok.pad_token = "<|endoftext|>"
    assert eos_token_ids(model, tok) == sorted([end, text])
    assert suppressed_token_ids(model, tok) == []
    tok.chat_template = None
    assert eos_token_ids(model, tok) == [text]


def lora(path):
    model = load_model(path, use_peft=True, lora_r=4, lora_alpha=8)
    return model, {name for name, p in model.named_parameters() if p.requires_grad}


def test_lora_on_the_language_model_only(saved):
    name, path = saved
    model, trained = lora(path)
    assert trained and all("lora_" in n for n in trained)
    assert not any("vision" in n or "visual" in n or "projector" in n or "lm_head" in n for n in trained)
    adapted = {n.split(".lora_")[0].rsplit(".", 1)[-1] for n in trained}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    few = load_model(path, use_peft=True, lora_target_modules=["q_proj"])
    assert {n.split(".lora_")[0].rsplit(".", 1)[-1] for n, p in few.named_parameters() if p.requires_grad} == {"q_proj"}


def test_reference(saved):
    name, path = saved
    ids = torch.tensor([[30, 40, 50]])
    base = load_model(path)
    before = base(input_ids=ids).logits

    reference = make_reference(base)
    assert not any(p.requires_grad for p in reference.parameters())
    adapted, trained = lora(path)
    assert make_reference(adapted) is None
    for model in (base, adapted):
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += 0.1
        assert not torch.allclose(model(input_ids=ids).logits, before)
    for model, given in ((base, reference), (adapted, None)):
        with reference_context(model, given) as policy:
            logits = policy(input_ids=ids).logits
            assert not logits.requires_grad
        torch.testing.assert_close(logits, before)
    assert not torch.allclose(adapted(input_ids=ids).logits, before)
    assert {n for n, p in adapted.named_parameters() if p.requires_grad} == trained
    with pytest.raises(ValueError, match="no adapter"), reference_context(base):
        pass


def test_disable_dropout():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    model[0].attention_dropout = 0.3
    disable_dropout(model)
    assert model[1].p == 0.0 and model[0].attention_dropout == 0.0


@needs_stand_in
@pytest.mark.parametrize("processor_class", [Qwen2VLProcessor, Qwen3VLProcessor])
def test_stand_in_for_other_processors(processor_class, qwen, tmp_path):
    extra = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    extra |= {"vision_bos_token": "<|vision_start|>", "vision_eos_token": "<|vision_end|>"}
    tok = tokenizer("<|image_pad|>", extra)
    before = dict(MODALITY_TO_AUTOPROCESSOR_MAPPING._MAPPING_NAMES)
    with video_stand_in():
        made = processor_class(Qwen2VLImageProcessorPil(patch_size=4), tok, NoVideoProcessor(fps=2))
    made.save_pretrained(tmp_path)
    load_config(qwen).save_pretrained(tmp_path)
    loaded = load_processor(tmp_path)
    assert type(loaded) is processor_class
    assert before == MODALITY_TO_AUTOPROCESSOR_MAPPING._MAPPING_NAMES
    # What a machine with torchvision will read is what was there.
    loaded.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "processor_config.json").read_text())["video_processor"] == {"fps": 2}
    with pytest.raises(ImportError, match="torchvision"):
        loaded.video_processor([np.zeros((2, 8, 8, 3))])


def test_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_model(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="nobody/nothing"):
        load_processor("nobody/nothing")
    with pytest.raises(ValueError, match="not a model directory"):
        load_processor(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="adapter"):
        load_model(tmp_path)
    with pytest.raises(ValueError, match="float33"):
        load_model(FAMILIES["llama"](tmp_path / "m"), "float33")


def test_padding_passes_over_ids_without_an_embedding(tmp_path):
    """[PAD] was added to the tokenizer alone; older configurations say -1."""
    path = FAMILIES["llama"](tmp_path)
    config, processor = load_config(path), load_processor(path)
    known = pad_token_id(config, processor)
    processor.add_special_tokens({"pad_token": "[ANOTHER PAD]"})
    config.vocab_size, config.pad_token_id = processor.pad_token_id, -1
    assert processor.pad_token_id >= config.vocab_size
    assert pad_token_id(config, processor) == processor.eos_token_id and known < config.vocab_size
    config.vocab_size, config.eos_token_id = 1, None
    with pytest.raises(ValueError, match="names a pad or EOS token among the model's 1"):
        pad_token_id(config, processor)
