"""A generation batch of TRL's trainers as `Rollouts`: what both the trainer with our credit and the recorder read.

TRL 1.16 hands it out in two places: `_calculate_rewards` is given the examples and the ids as they were sampled, and
gives the rewards of all processes; `_generate_and_score_completions` gives the padded tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from segpo_core.sampling.sampler import token_pieces
from segpo_core.segments import role_ids
from segpo_core.types import Credit, Rollouts, length_mask

#: Columns in which data sets keep the reference answer, the first that is there counts.
ANSWERS = ("answer", "solution", "ground_truth")

Data = TypeVar("Data", Rollouts, Credit)


@dataclass(frozen=True)
class Asked:
    """What `_calculate_rewards` was given on this process, and what it gave."""

    inputs: Sequence[Mapping[str, Any]]  #: B rows of the data set
    completions: Sequence[Any]  #: B texts, or lists of messages (with tools: several)
    ids: Sequence[Sequence[int]]  #: B lists of token ids
    rewards: Tensor  #: float32 [all processes' B, reward functions], NaN: no verdict


@dataclass(frozen=True)
class Generation:
    """A generation batch of this process."""

    rollouts: Rollouts
    examples: list[dict[str, Any]]  #: one a prompt; `rollouts.group` indexes them
    first: int  #: number of the first prompt over all processes
    samples: list[int]  #: B, number of each completion within its group
    chosen: Tensor  #: bool [B, T], tokens that the policy chose; not those that a tool wrote


def generation(trainer: Any, asked: Asked, output: Mapping[str, Any]) -> Generation:
    """The batch that `_generate_and_score_completions` gave as `output`.

    A group may be spread over processes. Log-probabilities that TRL did not compute, and the entropy, are NaN.
    """
    ids, device = output["completion_ids"], output["completion_ids"].device
    n, lengths = len(asked.ids), torch.tensor([len(row) for row in asked.ids], device=device)
    mask = length_mask(lengths, ids.shape[1])
    number = trainer.accelerator.process_index * n + torch.arange(n, device=device)
    group = number // trainer.num_generations
    first = int(group[0])
    group = group - first
    begin = torch.searchsorted(group, torch.arange(int(group[-1]) + 1, device=device)).tolist()
    tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
    pieces = [token_pieces(tokenizer, list(row)) for row in asked.ids]
    own = asked.rewards[int(number[0]) : int(number[0]) + n]
    weighted = (
        (own * trainer.reward_weights.to(own.device)).nansum(dim=1).masked_fill(own.isnan().all(dim=1), torch.nan)
    )
    unknown = torch.where(mask, torch.nan, 0.0)
    roles, well_formed = role_ids(pieces, mask)
    rollouts = Rollouts(
        completion_ids=ids,
        mask=mask,
        group=group,
        finished=torch.tensor([len(row) > 0 and row[-1] in trainer.eos_token_ids for row in asked.ids], device=device),
        sampled_logprobs=output.get("sampling_per_token_logps", unknown),
        entropy=unknown.clone(),
        old_logprobs=output.get("old_per_token_logps"),
        ref_logprobs=output.get("ref_per_token_logps"),
        rewards=weighted.float().to(device),
        role_ids=roles,
        well_formed=well_formed,
        texts=["".join(row) for row in pieces],
        pieces=pieces,
        reward_parts={
            name: [None if math.isnan(value) else value for value in own[:, i].tolist()]
            for i, name in enumerate(trainer.reward_func_names)
        },
        truth=[None] * n,
    )
    chosen = mask & output["tool_mask"].bool() if "tool_mask" in output else mask
    examples = [example_of(asked.inputs[i]) for i in begin]
    return Generation(rollouts, examples, first, (number % trainer.num_generations).tolist(), chosen)


def example_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of TRL's data set as one of ours: `images` is a list, `answer` is there where some column holds it."""
    images = row.get("images") or ([row["image"]] if row.get("image") is not None else [])
    rest = {name: value for name, value in row.items() if name not in ("image", "images")}
    known = [row[name] for name in ANSWERS if row.get(name) is not None]
    return {"prompt": "", "answer": known[0] if known else None, **rest, "images": list(images)}


def pictures(content: Any) -> list[Image.Image]:
    """The images within messages, in order: those that a tool returned stand in its completion."""
    if isinstance(content, Image.Image):
        return [content]
    if isinstance(content, Mapping):
        return [image for value in content.values() for image in pictures(value)]
    if isinstance(content, list):
        return [image for item in content for image in pictures(item)]
    return []


def on_cpu(data: Data) -> Data:
    """The same, without gradients, on the CPU."""
    values = {item.name: getattr(data, item.name) for item in fields(data)}
    return replace(data, **{name: v.detach().cpu() for name, v in values.items() if isinstance(v, Tensor)})
