"""The embedded policy before it has learnt anything: tokenizer, processor and network, and how it is shown a text.

It is a LLaVA (SigLIP vision tower, Qwen2 text model) of 1.3 million parameters, small enough to be trained in minutes
on two processor cores, and otherwise like any large one: chat template, processor, generation config, loaded by the
Auto classes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
)

from segpo_core.tasks.shapes import Careless, ShapesTask, demonstration

PAD, END, SYSTEM, USER, ASSISTANT, IMAGE = "<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<image>"
TAGS = [f"<{slash}{name}>" for name in ("perception", "think", "answer") for slash in ("", "/")]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CONTEXT = 512
TASK_SEED = 1_000_000  # demonstrations are of other problems than those of a training run, whose seeds are small
_CORPUS = 4000  # demonstrations that the tokenizer is trained on


def build_tokenizer(texts: Iterator[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE: any text can be written, one digit is one token, a word keeps the blank before it.

    The structure tags are tokens of their own but not special ones, so that they stay in decoded text.
    """
    bpe = Tokenizer(models.BPE())
    pieces = Regex(r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]|\s+")
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pieces, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600 - len(TAGS),
        special_tokens=[PAD, END, SYSTEM, USER, ASSISTANT, IMAGE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens={"image_token": IMAGE},
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        padding_side="left",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def build_processor(seed: int = 0) -> LlavaProcessor:
    """Tokenizer (trained on demonstrations), image processor (48 x 48, 9 patches of 16) and chat template."""
    task, rng = ShapesTask(seed=TASK_SEED + seed), random.Random(seed)

    def texts() -> Iterator[str]:
        for i in range(_CORPUS):
            example = task.train(i)
            yield example["prompt"][0]["content"][1]["text"]
            # without the tags: they are tokens anyway, and merges of their letters would be wasted
            text = demonstration(example, rng, Careless())
            for tag in TAGS:
                text = text.replace(tag, "\n")
            yield from text.split("\n")

    half = [0.5, 0.5, 0.5]
    images = SiglipImageProcessorPil(size={"height": 48, "width": 48}, image_mean=half, image_std=half)
    return LlavaProcessor(
        image_processor=images,
        tokenizer=build_tokenizer(texts()),
        patch_size=16,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(processor: LlavaProcessor) -> LlavaForConditionalGeneration:
    """The untrained model, from torch's global random numbers, in float32."""
    tokenizer = processor.tokenizer
    pad, end, image = (tokenizer.convert_tokens_to_ids(token) for token in (PAD, END, IMAGE))
    config = LlavaConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=48,
            patch_size=16,
            vision_use_head=False,
        ),
        text_config=Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            # 1/sqrt(width); the usual 0.02 is for wide models and learns three times slower here
            initializer_range=128**-0.5,
            bos_token_id=None,
            eos_token_id=end,
            pad_token_id=pad,
        ),
        image_token_index=image,
        image_seq_length=9,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    turns = [tokenizer.convert_tokens_to_ids(token) for token in (SYSTEM, USER, ASSISTANT)]
    model.generation_config = GenerationConfig(
        eos_token_id=end,
        pad_token_id=pad,
        suppress_tokens=sorted([pad, image, *turns]),
        max_new_tokens=96,
        do_sample=True,
    )
    return model


def encode(processor: LlavaProcessor, examples: list[dict], completions: list[str]) -> dict[str, Tensor]:
    """Right-padded inputs with labels on the completions (EOS included): ids, mask and labels long [B, T]."""
    texts = [
        processor.apply_chat_template([*example["prompt"], {"role": "assistant", "content": completion}])
        for example, completion in zip(examples, completions, strict=True)
    ]
    images = [image for example in examples for image in example["images"]]
    batch = dict(processor(text=texts, images=images, return_tensors="pt", padding=True, padding_side="right"))
    ids, real = batch["input_ids"], batch["attention_mask"].bool()
    turn = ids == processor.tokenizer.convert_tokens_to_ids(ASSISTANT)
    after_turn = turn.long().cumsum(dim=1).bool() & ~turn
    batch["labels"] = torch.where(after_turn & real, ids, -100)
    return batch
