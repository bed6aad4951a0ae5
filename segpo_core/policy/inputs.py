"""Prompts and images -> model inputs: left-padded batches, completions appended, positions for any padding.

Each prompt goes through chat template and processor alone, once. Batches are collated from the results, so
that a row always carries its own images, however many it has and however many tokens they take.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedConfig

from segpo_core.pictures import as_rgb
from segpo_core.policy.load import context_length, get_tokenizer, pad_token_id

Batch = dict[str, Tensor]


class TooLong(ValueError):
    """A prompt that does not fit: a run may leave it out."""


@dataclass(frozen=True)
class Prompts:
    """P prompts as model inputs.

    `rows[i]` holds what the processor returned for prompt i alone: sequence keys of shape [1, L_i]
    (input_ids, attention_mask, token types …) and, if it has images, image keys of any shape (pixel_values,
    image_grid_thw …).
    """

    rows: tuple[Batch, ...]
    pad_token_id: int
    images: tuple[tuple[Image.Image, ...], ...] = ()  #: of each prompt, as the processor was given them

    @classmethod
    def joined(cls, parts: "Sequence[Prompts]") -> "Prompts":
        """The prompts of all parts, in order."""
        rows = tuple(row for part in parts for row in part.rows)
        return cls(rows, parts[0].pad_token_id, tuple(images for part in parts for images in part.images))

    @classmethod
    def build(
        cls,
        examples: Sequence[Mapping[str, Any]],
        processor: Any,
        config: PreTrainedConfig,
        max_prompt_length: int | None = None,
        max_completion_length: int = 1,
    ) -> "Prompts":
        """Process each example ("prompt", "images", "id") by chat template and processor.

        A conversational prompt (a list of messages) goes through the chat template. A string prompt is text
        as it stands; with images it becomes a user message with the images first. `processor` may be a
        tokenizer. `max_completion_length` tokens must still fit into the model's context.

        Raises:
            TooLong: a prompt is longer than `max_prompt_length` or leaves no room in the model's context.
            ValueError: images for a model without image processor; image placeholders and images differ in
                number; a prompt that is empty.
        """
        rows, pictures = [], []
        for number, example in enumerate(examples):
            name = f"example {example.get('id', number)!r}"
            row = _process(example, processor, name)
            length, context = row["input_ids"].shape[1], context_length(config)
            if length == 0:
                raise ValueError(f"{name}: the prompt has no tokens; give it some text")
            if max_prompt_length is not None and length > max_prompt_length:
                raise TooLong(
                    f"{name}: the prompt has {length} tokens, over max_prompt_length={max_prompt_length}; "
                    "raise max_prompt_length, shorten the prompt or use a smaller image"
                )
            if context is not None and length + max_completion_length > context:
                room = f" and leaves no room for {max_completion_length} more" if length < context else ""
                raise TooLong(
                    f"{name}: the prompt has {length} tokens and fills the model's context of {context}{room}; "
                    "shorten the prompt, use a smaller image, lower max_completion_length or use a model with a "
                    "longer context"
                )
            rows.append(row)
            pictures.append(tuple(as_rgb(image) for image in example.get("images") or []))
        return cls(tuple(rows), pad_token_id(config, processor), tuple(pictures))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> Tensor:
        """Prompt lengths in tokens, long [P]."""
        return torch.tensor([row["input_ids"].shape[1] for row in self.rows], dtype=torch.long)

    def select(self, rows: Iterable[int] | Tensor) -> "Prompts":
        """The prompts `rows`, in that order; repeats allowed."""
        chosen = [int(row) for row in rows]
        images = tuple(self.images[row] for row in chosen) if self.images else ()
        return Prompts(tuple(self.rows[row] for row in chosen), self.pad_token_id, images)

    def batch(self, rows: Iterable[int] | Tensor | None = None, device: str | torch.device = "cpu") -> Batch:
        """Collate prompts `rows` (default all; repeats allowed) into one left-padded batch of B rows.

        Sequence keys become [B, L] (padded with the pad token in input_ids, else 0). Image keys are
        concatenated on dim 0 in row order, zero-padded at the end of further dims where sizes differ; prompts
        without images add nothing, and without any image there are no image keys.
        """
        chosen = list(self.rows if rows is None else self.select(rows).rows)
        length = max(row["input_ids"].shape[1] for row in chosen)
        batch: Batch = {}
        for key in dict.fromkeys(key for row in chosen for key in row):
            if any(key in row and is_sequence(row, key) for row in chosen):
                fill = self.pad_token_id if key == "input_ids" else 0
                value = chosen[0]["input_ids"].new_full((len(chosen), length), fill)
                for i, row in enumerate(chosen):
                    if key in row:
                        value[i, length - row[key].shape[1] :] = row[key][0]
            else:
                value = _concatenate([row[key] for row in chosen if key in row])
            batch[key] = value.to(device)
        return batch


def is_sequence(batch: Batch, key: str) -> bool:
    """True for keys with one integer a token, such as input_ids and token types; False for image keys."""
    value = batch[key]
    return value.shape == batch["input_ids"].shape and not value.is_floating_point()


def _concatenate(values: list[Tensor]) -> Tensor:
    """Concatenate on dim 0; further dims are zero-padded at their end to the largest size. Models crop or
    skip what was padded (images of a row in Idefics 3, patches in LLaVA-NeXT, pixels in Pixtral), as their
    processors pad so."""
    largest = [max(sizes) for sizes in zip(*(value.shape[1:] for value in values), strict=True)]
    padded = []
    for value in values:
        target = value.new_zeros(value.shape[0], *largest)
        target[tuple(slice(size) for size in value.shape)] = value
        padded.append(target)
    return torch.cat(padded)


def _process(example: Mapping[str, Any], processor: Any, name: str) -> Batch:
    """Chat template and processor for one example -> tensors as in `Prompts.rows`."""
    tokenizer, images = get_tokenizer(processor), list(example.get("images") or [])
    for image in images:
        if not isinstance(image, Image.Image):
            raise TypeError(f"{name}: images must be PIL images, not {type(image).__name__}")
    if images and not hasattr(processor, "image_processor"):
        raise ValueError(
            f"{name} has {len(images)} image(s), but the model has no image processor and reads text only; "
            "use a vision-language model or drop the 'images' column"
        )
    prompt = example["prompt"]
    if not images and getattr(processor, "chat_template", None) is None:
        prompt = _plain(prompt, name)
    if isinstance(prompt, str) and not images:
        text, special = prompt, {}
    else:
        messages = _messages(prompt, len(images), name, as_text=processor is tokenizer)
        ends_open = messages[-1]["role"] == "assistant"
        text = processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=not ends_open, continue_final_message=ends_open
        )
        # As transformers does: a template's BOS is not doubled, and for a tokenizer the template is all.
        has_bos = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
        special = {"add_special_tokens": False} if has_bos or processor is tokenizer else {}
    if processor is tokenizer:
        output = tokenizer([text], return_tensors="pt", **special)
        return {key: output[key] for key in ("input_ids", "attention_mask")}
    placeholder = getattr(processor, "image_token", None)
    found = text.count(placeholder) if placeholder else len(images)
    if found != len(images):
        raise ValueError(
            f"{name}: {found} image placeholders {placeholder!r} in the rendered prompt for {len(images)} "
            f"image(s); the text must not contain {placeholder!r} itself, and the chat template must write "
            "one for every image part"
        )
    nested = [[as_rgb(image) for image in images]] if images else None
    output = processor(text=[text], images=nested, return_tensors="pt", **special)
    return {key: value for key, value in output.items() if isinstance(value, Tensor)}


def _plain(prompt: str | Sequence[Mapping[str, Any]], name: str) -> str:
    """The text of a prompt for a base model, which has no chat template: the user's, after the system's if any."""
    if isinstance(prompt, str):
        return prompt
    messages = _messages(prompt, 0, name, as_text=True)
    if [message["role"] for message in messages] not in (["user"], ["system", "user"]):
        raise ValueError(
            f"{name}: the prompt is a conversation and the model has no chat template; give the prompt as one text, or "
            "use a model with a chat template"
        )
    return "\n\n".join(message["content"] for message in messages)


def _messages(prompt: str | Sequence[Mapping[str, Any]], images: int, name: str, as_text: bool) -> list[dict[str, Any]]:
    """Messages whose contents are lists of parts, one image part an image; strings if `as_text`.

    Where no message has parts, the images are put first in the first user message, as TRL does.
    """
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    messages = [{key: value for key, value in message.items() if value is not None} for message in prompt]
    bare = all(isinstance(message.get("content"), str) for message in messages)
    for message in messages:
        content = message.get("content") or ""
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        # Columns of a data set give every part every key, most of them None.
        message["content"] = [{k: v for k, v in part.items() if v is not None} for part in parts]
    if bare and images:
        first = next((m for m in messages if m["role"] == "user"), messages[0])
        first["content"] = [{"type": "image"}] * images + first["content"]
    placeholders = sum(part.get("type") == "image" for message in messages for part in message["content"])
    if placeholders != images:
        raise ValueError(
            f"{name}: the prompt has {placeholders} image part(s) but {images} image(s); give one "
            '{"type": "image"} part for each image, in order'
        )
    if as_text:
        for message in messages:
            message["content"] = "".join(part.get("text", "") for part in message["content"])
    return messages


# --- teacher forcing and decoding ---


def extend(batch: Batch, completion_ids: Tensor, mask: Tensor) -> Batch:
    """Append completions to a left-padded prompt batch, for a teacher-forced forward pass.

    Args:
        batch: of `Prompts.batch`, B rows, prompts of L tokens.
        completion_ids: long [B, T], right padded with any valid token id.
        mask: bool [B, T], True at real completion tokens.

    Returns:
        the batch with [B, L + T] sequence keys (token types of completion tokens are 0, text). The logits at
        L − 1 + t predict completion token t. Pass `position_ids(model, …)` along.
    """
    ids = batch["input_ids"]
    if completion_ids.shape != mask.shape or completion_ids.shape[0] != ids.shape[0]:
        raise ValueError(
            f"completion_ids {tuple(completion_ids.shape)} and mask {tuple(mask.shape)} must both be [B, T] "
            f"with B={ids.shape[0]}, the rows of the prompt batch"
        )
    tails = {"input_ids": completion_ids, "attention_mask": mask}
    text = torch.zeros_like(completion_ids)
    return {
        key: torch.cat([value, tails.get(key, text).to(value)], dim=1) if is_sequence(batch, key) else value
        for key, value in batch.items()
    }


def position_ids(model: nn.Module, batch: Batch) -> Tensor:
    """Positions that no padding changes: long [B, L], or [3, B, L] (time, height, width) for mrope models.

    mrope models (Qwen2-VL and its kin) say themselves where image tokens lie (`get_rope_index`); given
    explicitly, the model neither uses nor stores its `rope_deltas`, so nothing leaks from batch to batch.
    """
    mask = batch["attention_mask"]
    mrope = next((module for module in model.modules() if hasattr(module, "get_rope_index")), None)
    if mrope is None:
        return (mask.cumsum(dim=1) - 1).clamp(min=0)
    positions, _ = mrope.get_rope_index(
        input_ids=batch["input_ids"],
        mm_token_type_ids=batch["mm_token_type_ids"],
        image_grid_thw=batch.get("image_grid_thw"),
        attention_mask=mask,
    )
    return positions


def prefill_inputs(model: nn.Module, batch: Batch) -> tuple[Batch, Tensor]:
    """Inputs of the forward pass over the prompts, and the position of each first completion token, long [B].

    Decoding goes on with `decode_inputs`; repeat or select mask and position along with the cache rows.
    """
    positions = position_ids(model, batch)
    last = positions.amax(dim=-1)
    return {**batch, "position_ids": positions}, (last.amax(dim=0) if last.ndim == 2 else last) + 1


def decode_inputs(input_ids: Tensor, attention_mask: Tensor, next_position: Tensor) -> Batch:
    """Inputs of a forward pass over the next n tokens of each row, with all before them in the cache.

    Args:
        input_ids: long [B, n], usually n = 1.
        attention_mask: [B, all cached tokens + n], also for layers with a sliding window.
        next_position: long [B], position of the first of the n tokens.

    No image or token-type key is needed: the images are in the cache. One position a token also serves mrope
    models, where text has the same position on every axis.
    """
    offsets = torch.arange(input_ids.shape[1], device=input_ids.device)
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "position_ids": next_position[:, None] + offsets,
    }
