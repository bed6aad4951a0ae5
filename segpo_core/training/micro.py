"""How a step's rows are cut into forward passes. Scoring and every update take the same ones."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from segpo_core.config import TrainConfig
from segpo_core.policy.inputs import Prompts
from segpo_core.policy.packing import can_pack, pack
from segpo_core.prefix_tree import shared_beginnings
from segpo_core.types import Credit, Rollouts


@dataclass
class Micro:
    """Some rows of a step's rollouts, as one forward pass takes them. Cut once a step, so that the scoring pass and
    every update see the same shapes: before the first update, ratios are exactly 1."""

    rows: Tensor  #: long [b]
    prompts: dict[str, Tensor]
    ids: Tensor  #: long [b, t], t the longest of these rows
    mask: Tensor  #: bool [b, t], tokens that the pass scores
    predictor: Tensor | None = None  #: packed trees: long [N], see packing.py; `prompts` is then all of the inputs

    @property
    def inputs(self) -> tuple:
        """Arguments of the network."""
        return self.prompts, self.ids, self.mask, self.predictor

    def cut(self, values: Tensor) -> Tensor:
        """These rows of a [B, T] tensor, as [b, t]."""
        return values[self.rows, : self.ids.shape[1]]

    def put(self, part: Tensor, whole: Tensor) -> None:
        """Write what a pass says of its tokens, [b, t], to their places in [B, T]."""
        width = self.ids.shape[1]
        whole[self.rows, :width] = torch.where(self.mask, part, whole[self.rows, :width])


def micro_batches(
    model: nn.Module, config: TrainConfig, rollouts: Rollouts, prompts: Prompts, step: int
) -> list[Micro]:
    """All rows of a step. Several updates a step take them in random order, so that no update sees whole groups
    only."""
    order = torch.arange(len(rollouts))
    if config.passes > config.gradient_accumulation_steps:
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        order = torch.randperm(len(rollouts), generator=generator)
    parts = order.to(rollouts.mask.device).split(config.per_device_train_batch_size)
    alike, order, packing = _alike(model, config, rollouts, prompts)
    if packing:
        place = order.argsort()
        return [_packed(model, rows[place[rows].argsort()], alike, prompts, rollouts.mask) for rows in parts]
    return [_micro(rows, rollouts, prompts, rollouts.mask) for rows in parts]


def taught_batches(
    model: nn.Module, config: TrainConfig, rollouts: Rollouts, prompts: Prompts, credit: Credit
) -> list[Micro]:
    """The rows of a step that teach something, once their credit is known: of trees always, of groups where no pass
    comes before the update.

    A completion of a group without advantage has no gradient then, and its ratio, which is 1, nothing to tell.
    Neighbours stay together: they share what is before them. Every process makes the same number of passes, however
    much teaches.
    """
    teaches, micros = credit.loss_mask.any(dim=1), []
    if rollouts.tree is not None:
        packing = config.pack_prompts and can_pack(model, prompts)
        taught = teaches.nonzero()[:, 0]
    else:
        if credit.away_logprobs is None:
            teaches &= (credit.advantages != 0).any(dim=1)
        rollouts, order, packing = _alike(model, config, rollouts, prompts)
        taught = order[teaches[order]]
    for rows in taught.tensor_split(config.passes):
        targets = credit.loss_mask
        if len(rows) == 0:  # nothing is left for this pass: one without a token
            rows, targets = torch.zeros(1, dtype=torch.long, device=taught.device), torch.zeros_like(targets)
        if packing:
            micros.append(_packed(model, rows, rollouts, prompts, targets))
        else:
            micros.append(_micro(rows, rollouts, prompts, rollouts.mask & targets.any()))
    return micros


def _alike(
    model: nn.Module, config: TrainConfig, rollouts: Rollouts, prompts: Prompts
) -> tuple[Rollouts, Tensor, bool]:
    """(The rollouts of groups, with a node for each of their shared beginnings if they can be packed; their rows in
    depth-first order; whether they can)."""
    if not (config.pack_prompts and len(rollouts) > len(prompts) and can_pack(model, prompts)):
        return rollouts, torch.arange(len(rollouts), device=rollouts.mask.device), False
    order, node_ids = shared_beginnings(rollouts.completion_ids, rollouts.mask, rollouts.group)
    return replace(rollouts, node_ids=node_ids), order, True


def _packed(model: nn.Module, rows: Tensor, rollouts: Rollouts, prompts: Prompts, targets: Tensor) -> Micro:
    """Some rows that share nodes, in depth-first order, for one pass over every node."""
    packed = pack(model, prompts, rollouts, targets, rows)
    return Micro(packed.rows, packed.inputs, packed.ids, packed.mask, packed.predictor)


def _micro(rows: Tensor, rollouts: Rollouts, prompts: Prompts, mask: Tensor) -> Micro:
    """Some rows for one pass, cut to the longest of them."""
    longest = int(rollouts.lengths[rows].max())
    batch = prompts.batch(rollouts.group[rows], rows.device)
    return Micro(rows, batch, rollouts.completion_ids[rows, :longest], mask[rows, :longest])
