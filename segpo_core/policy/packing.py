"""Trees in training: a prefix that many completions share goes through the model once.

A group is a tree too: its completions share their prompt, images included, and whatever they begin with alike
(`prefix_tree.shared_beginnings`). Completions of a tree stand in one sequence after their prompt: the first whole, of
each further one what no earlier one holds. Each token has the position it has in its own completion and sees the prompt
and what comes before it in its own completion, nothing else. So log-probabilities and gradients are those of the
completions one by one. What teaches nothing, and leads to nothing that does, is left out.

The rows of a tree are in depth-first order, so what lies below a token is one run of slots: slot j is seen from the
slots j … reach[j] − 1. That is the whole attention mask.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from segpo_core.policy.inputs import Prompts, extend, prefill_inputs
from segpo_core.policy.logprobs import backbone, without_adapter
from segpo_core.prefix_tree import first_holders
from segpo_core.types import Rollouts


@dataclass
class Packed:
    """Rows of trees as model inputs: n sequences, each of one prompt, of S slots."""

    inputs: dict[str, Tensor]  #: all that the backbone takes; the attention mask is [n, 1, S, S]
    predictor: Tensor  #: long [N], the slot (counted over all n · S) that predicts each target, in the order of `mask`
    rows: Tensor  #: long [b], which rows of the rollouts
    ids: Tensor  #: long [b, t], their tokens
    mask: Tensor  #: bool [b, t], the N targets among them
    tokens: int  #: slots that hold a token


def can_pack(model: nn.Module, prompts: Prompts) -> bool:
    """Whether packing is exact for this model: whether its attention sees all that came before, and takes a mask.

    Not so with sliding windows or running states, with image tokens that see each other both ways
    (`token_type_ids`, as in Gemma 3), with positions that are read off the attention mask (ALiBi, as in BLOOM), and
    with attention kernels that know only lengths. Groups and trees of such models train as one row a completion, with
    the same result.
    """
    config = without_adapter(model).config.get_text_config()
    return (
        all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)
        and not any("token_type_ids" in row for row in prompts.rows)
        and "local" not in getattr(config, "attention_layers", ())  # GPT-Neo, whose cache does not say so
        and "position_ids" in inspect.signature(backbone(model).forward).parameters
        and config._attn_implementation in ("sdpa", "eager")
    )


def pack(
    model: nn.Module,
    prompts: Prompts,
    rollouts: Rollouts,
    targets: Tensor,
    rows: Tensor,
    max_slots: int | None = None,
) -> Packed:
    """Pack what the targets in some rows need.

    Args:
        model: the policy (see `can_pack`).
        prompts: P prompts.
        rollouts: with `node_ids`, as `branches.grow_tree` or `prefix_tree.shared_beginnings` gives them.
        targets: bool [B, T], tokens whose log-probability is wanted.
        rows: long [b], b > 0, in depth-first order.
        max_slots: longest sequence, where one row is not longer; a tree that takes more is cut into several, which
            repeat what they share. Default: what costs least (`best_slots`).

    Raises:
        ValueError: the rows of a tree are not in depth-first order.
    """
    width = int(rollouts.lengths[rows].max())
    ids, node, mask = (x[rows, :width] for x in (rollouts.completion_ids, rollouts.node_ids, targets))
    column = torch.arange(width, device=node.device).expand_as(node)
    last = torch.where(mask, column, 0).amax(dim=1)  # a row needs what comes before its last target
    group = rollouts.group[rows]
    longest = int(prompts.lengths[group.cpu()].max())
    sequence, groups = cut(node, last, group, longest, max_slots or best_slots(model, prompts))
    new, slot, reach = layout(node, last, sequence)

    place = (sequence[:, None].expand_as(node)[new], slot[new])
    size = (len(groups), int(slot[new].max()) + 1 if len(place[0]) else 0)

    def placed(values: Tensor, fill: int = 0) -> Tensor:
        return values.new_full(size, fill).index_put(place, values[new])

    batch = prompts.batch(groups, node.device)
    ahead, position = prefill_inputs(model, batch)
    prompt, total = batch["input_ids"].shape[1], batch["input_ids"].shape[1] + size[1]
    real = placed(new.long())
    inputs = extend(batch, placed(ids, prompts.pad_token_id), real > 0)
    visible = _visible(torch.cat([batch["attention_mask"] * total, placed(reach + prompt)], dim=1))
    inputs["attention_mask"] = _as_mask(model, visible)
    positions = (position[:, None] + placed(column)).expand(*ahead["position_ids"].shape[:-1], -1)
    inputs["position_ids"] = torch.cat([ahead["position_ids"], positions], dim=-1)

    ends = last.nonzero()[:, 0]
    path = visible[sequence[ends], prompt + slot[ends, last[ends] - 1], prompt:].sum(dim=1)
    if not torch.equal(path, last[ends]):
        raise ValueError("the rows of a tree must be in depth-first order to be packed, as grow_tree gives them")
    before = prompt + pad(slot[:, :-1], (1, 0), value=-1) + total * sequence[:, None]
    return Packed(inputs, before[mask], rows, ids, mask, int(batch["attention_mask"].sum() + real.sum()))


def best_slots(model: nn.Module, prompts: Prompts) -> int:
    """The length S of sequence at which a packed token costs least.

    Each layer does about 12 H² multiplications a token, and 2 S H in attention, which computes every pair of slots,
    whether one sees the other or not. Each sequence repeats its prompt of P tokens, so a useful token costs in
    proportion to (S + S² / 6H) / (S − P), least at P + √(P² + 6 H P).
    """
    hidden = without_adapter(model).config.get_text_config().hidden_size
    prompt = float(prompts.lengths.float().mean())
    return int(prompt + (prompt**2 + 6 * hidden * prompt) ** 0.5)


def cut(node: Tensor, last: Tensor, group: Tensor, prompt: int, max_slots: int) -> tuple[Tensor, list[int]]:
    """Which sequence each row goes to (long [b]), and the prompt of each sequence: neighbours fill one up to
    `max_slots`, of which the prompt takes `prompt`. Further arguments as `layout`; `group` long [b]."""
    shared = [0, *(node[1:] == node[:-1]).cumprod(dim=1).sum(dim=1).tolist()]  # tokens that the row before has too
    sequence, groups, used, placed = [], [], 0, 0  # `placed`: how many tokens of this row the sequence holds
    for g, need, common in zip(group.tolist(), last.tolist(), shared, strict=True):
        placed = min(placed, common)
        if not groups or g != groups[-1] or used + max(0, need - placed) > max_slots:
            groups.append(g)
            used, placed = prompt, 0
        used, placed = used + max(0, need - placed), max(placed, need)
        sequence.append(len(groups) - 1)
    return torch.tensor(sequence, device=node.device), groups


def layout(node: Tensor, last: Tensor, sequence: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where tokens go: (bool [b, t] is placed from this row; long [b, t] slot after the prompt; long [b, t] reach).

    Args:
        node: long [b, t], -1 at padding.
        last: long [b], how many of its first tokens each row needs.
        sequence: long [b], which sequence the row is packed in, 0, 1, … in order.
    """
    # A node has a place in each sequence of its own: number it there.
    held = torch.where(node >= 0, node + (int(node.max()) + 1) * sequence[:, None], -1)
    node = held.unique(return_inverse=True)[1] - int(bool((held < 0).any()))
    at, column = node.clamp(min=0), torch.arange(node.shape[1], device=node.device).expand_as(node)
    needed = column < last[:, None]

    def most(values: Tensor) -> Tensor:  # [nodes]: the largest of its rows' values
        return values.new_zeros(int(node.max()) + 1).scatter_reduce(0, node[needed], values[needed], "amax")

    new = first_holders(node) & (column < most(column + 1)[at])
    # New tokens fill their sequence in order. A node's are neighbours there, so one offset places it for all its rows.
    counts = torch.zeros_like(sequence).index_add(0, sequence, new.sum(dim=1))
    order = new.flatten().cumsum(0).view_as(node) - 1 - (counts.cumsum(0) - counts)[sequence][:, None]
    offset = torch.zeros(int(node.max()) + 1, dtype=torch.long, device=node.device)
    slot = offset.index_put((node[new],), (order - column)[new])[at] + column
    end = slot.gather(1, (last - 1).clamp(min=0)[:, None]) + 1
    return new, slot, most(end.expand_as(node))[at]


def _visible(reach: Tensor) -> Tensor:
    """bool [n, S, S]: slot i sees slot j where j <= i < reach[j]; and itself, as a softmax over nothing is NaN."""
    slot = torch.arange(reach.shape[1], device=reach.device)
    i, j = slot[:, None], slot[None, :]
    return (j <= i) & (i < reach[:, None, :]) | (i == j)


def _as_mask(model: nn.Module, visible: Tensor) -> Tensor:
    """[n, 1, S, S] as the model's attention takes it: True where to look, or, for eager attention, what is added."""
    visible = visible[:, None]
    if without_adapter(model).config.get_text_config()._attn_implementation == "sdpa":
        return visible
    return torch.zeros_like(visible, dtype=model.dtype).masked_fill(~visible, torch.finfo(model.dtype).min)
