"""Tiny vision-language models of further families (see families.py), with random weights and real processors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers as tf
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from segpo_core.policy.video import NoVideoProcessor, video_stand_in
from tests.fakes import families
from tests.fakes.families import _TEXT, _VISION, _ids, _save, tokenizer

_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]}
_SIGLIP = dict(model_type="siglip_vision_model", image_size=32, patch_size=16, **_VISION)


def _text(tok: Any, kind: str = "llama", **more: Any) -> dict[str, Any]:
    return {"model_type": kind, "num_hidden_layers": 2, "max_position_embeddings": 512, **_TEXT, **_ids(tok), **more}


def _qwen(kind: str, path: Path, seed: int) -> Path:
    """Qwen2-VL, Qwen3-VL and Qwen3.5, which has linear attention in every other layer."""
    names = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>",
             "vision_bos_token": "<|vision_start|>", "vision_eos_token": "<|vision_end|>"}  # fmt: skip
    tok = tokenizer("<|vision_start|><|image_pad|><|vision_end|>", names)
    images = Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 64, "longest_edge": 4096}
    )
    with video_stand_in():
        made = tf.Qwen2VLProcessor if kind == "Qwen2VL" else tf.Qwen3VLProcessor
        processor = made(images, tok, NoVideoProcessor(), chat_template=tok.chat_template)
    vision: dict[str, Any] = dict(depth=2, num_heads=2, patch_size=4, spatial_merge_size=2, temporal_patch_size=2)
    text = _text(tok, "", rope_parameters=_MROPE)
    if kind == "Qwen2VL":
        vision |= dict(embed_dim=32, hidden_size=_TEXT["hidden_size"], mlp_ratio=2)
    else:
        vision |= dict(hidden_size=32, intermediate_size=48, out_hidden_size=_TEXT["hidden_size"],
                       num_position_embeddings=64, deepstack_visual_indexes=[0])  # fmt: skip
        text |= dict(head_dim=12)
    if kind == "Qwen3_5":
        vision.pop("deepstack_visual_indexes")
        text |= dict(layer_types=["linear_attention", "full_attention"], linear_num_value_heads=4,
                     linear_num_key_heads=2, linear_key_head_dim=12, linear_value_head_dim=12,
                     rope_parameters=_MROPE | {"partial_rotary_factor": 1.0})  # fmt: skip
    text.pop("model_type")
    config = getattr(tf, f"{kind}Config")(
        vision_config=vision, text_config=text, image_token_id=tok.image_token_id, video_token_id=tok.video_token_id,
        vision_start_token_id=tok.vision_bos_token_id, vision_end_token_id=tok.vision_eos_token_id,
    )  # fmt: skip
    return _save(getattr(tf, f"{kind}ForConditionalGeneration")(config), processor, path, seed)


def _idefics3(path: Path, seed: int) -> Path:
    """Idefics 3: an image is cut into tiles and comes once more as a whole. SmolVLM is the same with other tiles."""
    names = {"image_token": "<image>", "fake_image_token": "<fake_token_around_image>",
             "global_image_token": "<global-img>", "end_of_utterance_token": "<end_of_utterance>"}  # fmt: skip
    tok = tokenizer("<image>", names)
    size = dict(size={"longest_edge": 32}, max_image_size={"longest_edge": 32}, do_image_splitting=True)
    config = tf.Idefics3Config(
        vision_config=dict(image_size=32, patch_size=8, **_VISION), text_config=_text(tok), scale_factor=2,
        image_token_id=tok.image_token_id, pad_token_id=tok.pad_token_id,
    )  # fmt: skip
    images = Idefics3ImageProcessorPil(**size)
    processor = tf.Idefics3Processor(images, tok, image_seq_len=4, chat_template=tok.chat_template)
    return _save(tf.Idefics3ForConditionalGeneration(config), processor, path, seed)


def _idefics2(path: Path, seed: int) -> Path:
    """Idefics 2: a perceiver makes two tokens of every image."""
    names = {"image_token": "<image>", "image_boundary_token": "<fake_token_around_image>",
             "end_of_utterance_token": "<end_of_utterance>"}  # fmt: skip
    tok = tokenizer("<image>", names)
    images = Idefics2ImageProcessorPil(size={"shortest_edge": 16, "longest_edge": 32}, do_image_splitting=False)
    config = tf.Idefics2Config(
        vision_config=dict(image_size=32, patch_size=8, **_VISION), text_config=_text(tok, "mistral"),
        perceiver_config=dict(resampler_n_latents=2, resampler_depth=1, resampler_n_heads=2, resampler_head_dim=8,
                              num_key_value_heads=1, hidden_size=_TEXT["hidden_size"]),
        image_token_id=tok.image_token_id,
    )  # fmt: skip
    processor = tf.Idefics2Processor(images, tok, image_seq_len=2, chat_template=tok.chat_template)
    return _save(tf.Idefics2ForConditionalGeneration(config), processor, path, seed)


def _internvl(path: Path, seed: int) -> Path:
    """InternVL: tiles of one size, tokens merged four to one."""
    names = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
             "video_token": "<video>"}  # fmt: skip
    tok = tokenizer("<IMG_CONTEXT>", names)
    images = GotOcr2ImageProcessorPil(size={"height": 32, "width": 32}, crop_to_patches=False)
    with video_stand_in():
        processor = tf.InternVLProcessor(images, tok, NoVideoProcessor(), 4, chat_template=tok.chat_template)
    config = tf.InternVLConfig(
        vision_config=dict(image_size=[32, 32], patch_size=[8, 8], **_VISION), text_config=_text(tok, "qwen2"),
        image_token_id=tok.context_image_token_id, image_seq_length=4, downsample_ratio=0.5,
    )  # fmt: skip
    return _save(tf.InternVLForConditionalGeneration(config), processor, path, seed)


def _llava_next(path: Path, seed: int) -> Path:
    """LLaVA-NeXT: the number of tiles follows the shape of the image."""
    tok = tokenizer("<image>", {"image_token": "<image>"})
    grid = [[32, 64], [64, 32], [64, 64]]
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=grid
    )
    config = tf.LlavaNextConfig(
        vision_config=_SIGLIP, text_config=_text(tok), image_token_id=tok.image_token_id, image_grid_pinpoints=grid,
        vision_feature_select_strategy="full", vision_feature_layer=-1,
    )  # fmt: skip
    processor = tf.LlavaNextProcessor(
        images, tok, patch_size=16, vision_feature_select_strategy="full", chat_template=tok.chat_template
    )
    return _save(tf.LlavaNextForConditionalGeneration(config), processor, path, seed)


def _llava_onevision(path: Path, seed: int) -> Path:
    tok = tokenizer("<image>", {"image_token": "<image>", "video_token": "<video>"})
    grid = [[32, 64], [64, 32], [64, 64]]
    images = LlavaOnevisionImageProcessorPil(size={"height": 32, "width": 32}, image_grid_pinpoints=grid)
    with video_stand_in():
        processor = tf.LlavaOnevisionProcessor(images, tok, NoVideoProcessor(), num_image_tokens=4,
                                               vision_feature_select_strategy="full",
                                               chat_template=tok.chat_template)  # fmt: skip
    config = tf.LlavaOnevisionConfig(
        vision_config=_SIGLIP, text_config=_text(tok, "qwen2"), image_token_id=tok.image_token_id,
        video_token_id=tok.video_token_id, image_grid_pinpoints=grid, vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )  # fmt: skip
    return _save(tf.LlavaOnevisionForConditionalGeneration(config), processor, path, seed)


def _config_alone(made: Any) -> Callable[..., Path]:
    """A family that is refused by what its configuration says: no weights are needed."""

    def save(path: Path, seed: int) -> Path:
        made().save_pretrained(path)
        return path

    return save


#: Family -> what writes it to a directory.
SIGHTED: dict[str, Callable[..., Path]] = {
    "llava": families.llava, "llava_next": _llava_next, "llava_onevision": _llava_onevision,
    "qwen2_vl": lambda path, seed=0: _qwen("Qwen2VL", path, seed), "qwen2_5_vl": families.qwen2_5_vl,
    "qwen3_vl": lambda path, seed=0: _qwen("Qwen3VL", path, seed),
    "qwen3_5": lambda path, seed=0: _qwen("Qwen3_5", path, seed),
    "gemma3": families.gemma3, "idefics2": _idefics2, "idefics3": _idefics3,
    "internvl": _internvl,
    "paligemma": _config_alone(tf.PaliGemmaConfig), "mllama": _config_alone(tf.MllamaConfig),
}  # fmt: skip
