"""Tiny models of four families, built from configurations with random weights, saved with their processors.

Every model has fewer than a million parameters. Weights are drawn wide (std 0.2), so that the next-token
distributions are far from flat and another image visibly changes the logits. Nothing is downloaded.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from segpo_core.policy.video import NoVideoProcessor, video_stand_in

GEMMA_WINDOW = 8  # far shorter than the prompts, so that the sliding layers really slide
_LINES = [
    "How many red circles are there? Look at the picture and think step by step.",
    "<perception> small red circle at top left, large blue square </perception>",
    "<think> there are 2 red circles and 3 blue squares, so 2 + 3 = 5 </think><answer> 5 </answer>",
    "What is the sum of 12 and 34? The answer is 46. 0 1 2 3 4 5 6 7 8 9",
]
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_TEXT = dict(hidden_size=48, intermediate_size=64, num_attention_heads=4, num_key_value_heads=2)
_VISION = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)


def tokenizer(image: str = "", extra: dict[str, str] | None = None) -> PreTrainedTokenizerFast:
    """Byte-level BPE of about 400 tokens; `image` is what the chat template writes for an image, `extra`
    names further special tokens (attribute name -> token)."""
    extra = extra or {}
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", *extra.values()]
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    backend.train_from_iterator(_LINES, trainer)
    result = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|im_start|>", "<|endoftext|>"],
        extra_special_tokens=extra,
    )
    result.chat_template = _TEMPLATE.replace("IMAGE", image)
    return result


def _save(model: PreTrainedModel, processor, path: str | Path, seed: int) -> Path:
    """Draw the weights and write model and processor to `path`."""
    tok = getattr(processor, "tokenizer", processor)
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d | nn.Conv3d):
            nn.init.normal_(module.weight, std=0.2, generator=generator)
    for name, parameter in model.named_parameters():
        if name.endswith("mm_input_projection_weight"):
            nn.init.normal_(parameter, std=0.2, generator=generator)
    model.tie_weights()
    model.generation_config.eos_token_id = [tok.eos_token_id, tok.convert_tokens_to_ids("<|endoftext|>")]
    model.generation_config.pad_token_id = tok.pad_token_id
    assert sum(p.numel() for p in model.parameters()) < 1_000_000
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return Path(path)


def _ids(tok: PreTrainedTokenizerFast) -> dict[str, int]:
    return dict(vocab_size=len(tok), pad_token_id=tok.pad_token_id, eos_token_id=tok.eos_token_id, bos_token_id=None)


def llava(path: str | Path, seed: int = 0) -> Path:
    """LLaVA: SigLIP vision (32×32 pixels, 4 image tokens an image) and Qwen2 text."""
    tok = tokenizer("<image>", {"image_token": "<image>"})
    image_processor = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    processor = LlavaProcessor(
        image_processor,
        tok,
        patch_size=16,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        image_token="<image>",
        chat_template=tok.chat_template,
    )
    config = LlavaConfig(
        vision_config=dict(model_type="siglip_vision_model", image_size=32, patch_size=16, **_VISION),
        text_config=dict(model_type="qwen2", num_hidden_layers=2, max_position_embeddings=512, **_TEXT, **_ids(tok)),
        image_token_id=tok.image_token_id,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        image_seq_length=4,
    )
    return _save(LlavaForConditionalGeneration(config), processor, path, seed)


def qwen2_5_vl(path: str | Path, seed: int = 0) -> Path:
    """Qwen2.5-VL: the number of image tokens follows the image size; positions have three axes (mrope)."""
    extra = {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "vision_bos_token": "<|vision_start|>",
        "vision_eos_token": "<|vision_end|>",
    }
    tok = tokenizer("<|vision_start|><|image_pad|><|vision_end|>", extra)
    image_processor = Qwen2VLImageProcessorPil(
        patch_size=4,
        merge_size=2,
        temporal_patch_size=2,
        size={"shortest_edge": 8 * 8, "longest_edge": 64 * 64},
    )
    with video_stand_in():
        processor = Qwen2_5_VLProcessor(image_processor, tok, NoVideoProcessor(), chat_template=tok.chat_template)
    config = Qwen2_5_VLConfig(
        vision_config=dict(
            depth=2,
            hidden_size=32,
            intermediate_size=48,
            num_heads=2,
            out_hidden_size=_TEXT["hidden_size"],
            patch_size=4,
            spatial_merge_size=2,
            temporal_patch_size=2,
            window_size=16,
            fullatt_block_indexes=[1],
        ),
        text_config=dict(
            num_hidden_layers=2,
            max_position_embeddings=512,
            **_TEXT,
            **_ids(tok),
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]},
        ),
        image_token_id=tok.image_token_id,
        video_token_id=tok.video_token_id,
        vision_start_token_id=tok.vision_bos_token_id,
        vision_end_token_id=tok.vision_eos_token_id,
    )
    return _save(Qwen2_5_VLForConditionalGeneration(config), processor, path, seed)


def gemma3(path: str | Path, seed: int = 0) -> Path:
    """Gemma 3: image tokens see each other both ways (`token_type_ids`); two of three layers slide."""
    extra = {
        "image_token": "<image_soft_token>",
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
    }
    tok = tokenizer("<start_of_image>", extra)
    image_processor = Gemma3ImageProcessorPil(size={"height": 32, "width": 32}, image_seq_length=4)
    processor = Gemma3Processor(image_processor, tok, image_seq_length=4, chat_template=tok.chat_template)
    config = Gemma3Config(
        vision_config=dict(model_type="siglip_vision_model", image_size=32, patch_size=8, **_VISION),
        text_config=dict(
            num_hidden_layers=3,
            head_dim=12,
            max_position_embeddings=512,
            sliding_window=GEMMA_WINDOW,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            query_pre_attn_scalar=12,
            **_TEXT,
            **_ids(tok),
        ),
        mm_tokens_per_image=4,
        image_token_id=tok.image_token_id,
        boi_token_id=tok.boi_token_id,
        eoi_token_id=tok.eoi_token_id,
    )
    return _save(Gemma3ForConditionalGeneration(config), processor, path, seed)


def byte_fallback_tokenizer() -> PreTrainedTokenizerFast:
    """One token a letter, and one for each byte that is in no letter's token, as Llama 2, Mistral and Gemma have it."""
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz0123456789<|>_?+="]
    names = ["<pad>", "<eos>", "<unk>", *(f"<0x{b:02X}>" for b in range(256)), *letters, *(f"▁{x}" for x in "abcd")]
    vocabulary = {name: i for i, name in enumerate(names)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    result = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")
    result.chat_template = _TEMPLATE
    return result


def llama(path: str | Path, seed: int = 0, tok: PreTrainedTokenizerFast | None = None) -> Path:
    """Llama: text only, a tokenizer with a chat template and no processor."""
    tok = tok or tokenizer()
    config = LlamaConfig(num_hidden_layers=2, max_position_embeddings=256, **_TEXT, **_ids(tok))
    return _save(LlamaForCausalLM(config), tok, path, seed)


FAMILIES: dict[str, Callable[..., Path]] = {
    "llava": llava,
    "qwen2_5_vl": qwen2_5_vl,
    "gemma3": gemma3,
    "llama": llama,
}
