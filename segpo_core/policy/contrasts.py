"""What a completion owes to seeing, and its reasoning to what it saw: the two contrasts of SRPO (arXiv 2605.07274), and
the first of them at every token, for methods that know no roles.

Both come from the policy itself, on its own tokens, without gradient and without a second model. Each is one more
scoring pass, over those completions only that have tokens to judge, and no further than the last of them.

B completions, T tokens, P prompts.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from segpo_core.policy.corruptions import corrupt
from segpo_core.policy.critic import ActorCritic
from segpo_core.policy.inputs import Prompts
from segpo_core.policy.packing import can_pack, pack
from segpo_core.prefix_tree import shared_beginnings
from segpo_core.segments import PERCEPTION, REASONING, TAGS, role_ids
from segpo_core.types import Rollouts, length_mask

#: Last part of the name of the random streams of image corruption; a sampler's ends with a small number.
CORRUPTION_STREAM = 2**31 + 1


def contrasts(
    network: ActorCritic,
    examples: Sequence[Mapping[str, Any]],
    prompts: Prompts,
    rollouts: Rollouts,
    processor: Any,
    corruption: str = "blank",
    stream: tuple[int, ...] = (0,),
    first: int = 0,
    batch_size: int = 16,
    tags: Sequence[str] = TAGS,
    pack_prompts: bool = True,
) -> tuple[Tensor | None, Tensor]:
    """SRPO's d_t and c_t, each float32 [B, T], 0 wherever they are not defined.

    d_t = logp(y_t | I, x, y_<t) − logp(y_t | Ĩ, x, y_<t) at perception tokens, Ĩ the corrupted images;
    c_t = logp(y_t | I, x, y_<t) − logp(y_t | I, x, y_<t without P) at reasoning tokens, P the perception block.

    What is taken out as P are the tokens of role perception, that is the block's content. Its tags stay, so that c_t
    measures the missing evidence and not the unusual form; of a token that holds the end of a tag *and* content, the
    tag's part goes too. Ids are cut out, never encoded again, and what follows moves up.

    The policy's own log-probabilities are `rollouts.old_logprobs`, or one more pass where those are None.

    Args:
        network: the policy that sampled the completions.
        examples, prompts: the same P problems, as they are and as model inputs; `rollouts.group` indexes both.
        processor: makes model inputs of the corrupted images.
        corruption: one of `corruptions.KINDS`.
        stream, first: name of the random stream, such as (seed, step), and number of the first prompt within the step:
            what is done to a prompt's images depends on these two alone ("other" also on the batch).
        batch_size: completions in one forward pass.
        tags: names of the perception, reasoning and answer tags.
        pack_prompts: run what completions share through the model once, where it allows that (`packing.can_pack`).

    Returns:
        (d, c). d is None where no prompt has an image that can be corrupted, and NaN (not measured, unlike 0) at the
        perception tokens of single prompts without images. Malformed completions have no roles: all 0.

    Raises:
        ValueError: unknown corruption, or "other" for a single prompt.
    """
    role, _ = role_ids(rollouts.pieces, rollouts.mask, tags)
    perception, reasoning = role == PERCEPTION, role == REASONING
    own = rollouts.old_logprobs
    if own is None:
        own = logprobs(network, prompts, rollouts, perception | reasoning, None, batch_size, pack_prompts)

    d = _against_corrupted(
        network, examples, rollouts, processor, own, perception, corruption, stream, first, batch_size, pack_prompts
    )
    at = reasoning & perception.any(dim=1, keepdim=True)  # from an empty block there is nothing to take out
    without = logprobs(network, prompts, rollouts, at, perception, batch_size, pack_prompts)
    return d, torch.where(at, own - without, 0.0)


def image_contrast(
    network: ActorCritic,
    examples: Sequence[Mapping[str, Any]],
    prompts: Prompts,
    rollouts: Rollouts,
    processor: Any,
    corruption: str = "mask",
    stream: tuple[int, ...] = (0,),
    first: int = 0,
    batch_size: int = 16,
    pack_prompts: bool = True,
) -> Tensor:
    """d_t of `contrasts` at *every* token, whatever its role: float32 [B, T], 0 at padding; NaN (not measured, unlike
    0) in completions of prompts without images. Arguments and errors as there."""
    own, mask = rollouts.old_logprobs, rollouts.mask
    if own is None:
        own = logprobs(network, prompts, rollouts, mask, None, batch_size, pack_prompts)
    d = _against_corrupted(
        network, examples, rollouts, processor, own, mask, corruption, stream, first, batch_size, pack_prompts
    )
    return torch.where(mask, torch.nan, 0.0) if d is None else d


def _against_corrupted(
    network: ActorCritic,
    examples: Sequence[Mapping[str, Any]],
    rollouts: Rollouts,
    processor: Any,
    own: Tensor,
    wanted: Tensor,
    corruption: str,
    stream: tuple[int, ...],
    first: int,
    batch_size: int,
    pack_prompts: bool,
) -> Tensor | None:
    """`own` log-probabilities minus those with corrupted images at the tokens `wanted` (bool [B, T]), 0 elsewhere; NaN
    without an image, None where no prompt has one."""
    spoiled = corrupted(examples, corruption, stream, first)
    if spoiled is None:
        return None
    blind = Prompts.build(spoiled, processor, network.model.config)
    images = torch.tensor([bool(example["images"]) for example in spoiled], device=wanted.device)
    at = wanted & images[rollouts.group, None]
    d = torch.where(at, own - logprobs(network, blind, rollouts, at, None, batch_size, pack_prompts), 0.0)
    return d.masked_fill(wanted & ~at, torch.nan)


def corrupted(
    examples: Sequence[Mapping[str, Any]], kind: str, stream: tuple[int, ...], first: int = 0
) -> list[dict[str, Any]] | None:
    """The examples with corrupted images; None, with a notice, where there is no image to corrupt, or for "other" no
    second prompt's to take its place. Arguments as `contrasts`."""
    images: list[list[Image.Image]] = [list(example.get("images") or []) for example in examples]
    illustrated = [p for p, own in enumerate(images) if own]
    alone = kind == "other" and len(illustrated) == 1 and len(examples) > 1  # a single prompt is an error, of `corrupt`
    if not illustrated or alone:
        warnings.warn(
            "no prompt of this batch has an image to corrupt: what tokens owe to it is not measured, and they have "
            "weight 1 before rescaling; SRPO goes by its reasoning contrast alone",
            stacklevel=2,
        )
        return None
    spoiled = []
    for p, example in enumerate(examples):
        rng = np.random.default_rng((*stream, first + p, CORRUPTION_STREAM))
        donors = [image for q in illustrated if q != p for image in images[q]] if kind == "other" else []
        changed = [
            corrupt(image, kind, rng, donors[rng.integers(len(donors))] if donors else None) for image in images[p]
        ]
        spoiled.append({**example, "images": changed})
    return spoiled


@torch.no_grad()
def logprobs(
    network: ActorCritic,
    prompts: Prompts,
    rollouts: Rollouts,
    at: Tensor,
    cut: Tensor | None = None,
    batch_size: int = 16,
    pack_prompts: bool = True,
) -> Tensor:
    """log π of the tokens `at` (bool [B, T]), with the tokens `cut` (bool [B, T], none of `at`) taken out of the
    completions: float32 [B, T], every number at its token's own place, 0 elsewhere."""
    out = torch.zeros_like(rollouts.sampled_logprobs)
    # The policy is causal: what comes after the last token asked for changes nothing and is left out.
    keep = at.flip(1).cumsum(1).flip(1) > 0
    if cut is not None:
        keep &= ~cut
    place = (~keep).int().argsort(dim=1, stable=True)  # of the kept tokens, in their order; then of the others
    mask = length_mask(keep.sum(dim=1), keep.shape[1])
    ids, wanted = rollouts.completion_ids.gather(1, place), at.gather(1, place) & mask
    kept, order = replace(rollouts, completion_ids=ids, mask=mask), torch.arange(len(at), device=at.device)
    packing = pack_prompts and can_pack(network.model, prompts)
    if packing:
        order, kept.node_ids = shared_beginnings(ids, mask, rollouts.group)
    rows = order[wanted[order].any(dim=1)]
    for part in rows.split(batch_size) if len(rows) else ():
        if packing:
            packed = pack(network.model, prompts, kept, wanted, part)
            scores = network(packed.inputs, packed.ids, packed.mask, packed.predictor)
        else:
            width = int(kept.lengths[part].max())
            scores = network(prompts.batch(rollouts.group[part], at.device), ids[part, :width], mask[part, :width])
        out[part] = out[part].scatter(1, place[part, : scores.logprobs.shape[1]], scores.logprobs)
    return torch.where(at, out, 0.0)
