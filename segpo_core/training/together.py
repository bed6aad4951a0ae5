"""Several processes, one batch.

Each process samples, scores and updates with its own prompts. What looks at the whole batch (credit that is scaled or
whitened over it, the numbers about a step) is computed from the rollouts of all processes, by each of them, so that a
step is the same however many processes share it. With a single process nothing is copied.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, gather_object
from torch import Tensor

from segpo_core.sampling.server import EngineError
from segpo_core.shipped import shipped
from segpo_core.types import Credit, Rollouts, pad_rows

T = TypeVar("T")

#: What stands at padding, where it is not 0.
_FILL = {"role_ids": -1, "node_ids": -1}

#: Ways to run that the update knows nothing of.
UNKNOWN = (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)

#: What launchers set besides -> values that change nothing, what to do. It would reach the wrapped network, if any.
ENVIRONMENT = {
    "ACCELERATE_USE_DEEPSPEED": (("", "false"), "launch with fsdp2.yaml, or use LoRA"),
    "ACCELERATE_USE_MEGATRON_LM": (("", "false"), "launch with fsdp2.yaml, or use LoRA"),
    "ACCELERATE_DYNAMO_BACKEND": (("", "no"), "set its dynamo_backend to 'no'; sampling and update are not compiled"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": (("", "false"), "launch with ddp.yaml or fsdp2.yaml"),
    "FSDP_OFFLOAD_PARAMS": (("", "false"), "set fsdp_offload_params to false; use LoRA, or more cards"),
}


def check_launcher(accelerator: Accelerator) -> None:
    """Refuse what a launcher or its environment asks for and only half of a step would follow: sampling does not go
    through accelerate's wrapper, and the loss is divided by what it is made of already.

    Raises:
        ValueError: with the setting to use instead.
    """
    if accelerator.distributed_type in UNKNOWN:
        raise ValueError(
            f"{accelerator.distributed_type.value} keeps the weights in its own way, and sampling here needs "
            f"them whole: launch with {shipped('configs/accelerate/ddp.yaml')}, or fsdp2.yaml beside it; for a "
            "large model, use LoRA"
        )
    for name, (neutral, instead) in ENVIRONMENT.items():
        if (asked := os.environ.get(name, "")).lower() not in neutral:
            raise ValueError(f"the launcher sets {name}={asked}, which is not followed here: {instead}")
    if accelerator.mixed_precision != "no":
        raise ValueError(
            f"the launcher asks for mixed precision {accelerator.mixed_precision!r}, which the update would follow and "
            "sampling would not: set its mixed_precision to 'no' (unset ACCELERATE_MIXED_PRECISION) and say "
            "--dtype bfloat16, which both follow"
        )
    if accelerator.gradient_accumulation_steps != 1:
        raise ValueError(
            f"the launcher asks for {accelerator.gradient_accumulation_steps} accumulated passes: unset "
            "ACCELERATE_GRADIENT_ACCUMULATION_STEPS and say --gradient-accumulation-steps, which also says how many "
            "completions are sampled"
        )


def all_or_none(work: Callable[[], T]) -> T:
    """What `work` returns. Where the sampling engine fails one process, it has failed them all, so that none waits for
    the others. Every process must call it, and `work` must not wait for other processes itself.

    Raises:
        EngineError: it failed in some process.
    """
    failure, done = None, None
    try:
        done = work()
    except EngineError as error:
        failure = error
    told = [text for text in everyone([failure and str(failure)]) if text]
    if failure is not None:
        raise failure
    if told:
        raise EngineError(told[0])
    return done


def everyone(items: list) -> list:
    """The items of all processes, in the order of their ranks. Every process must call it."""
    return gather_object(items)


def averaged(metrics: dict[str, float], accelerator: Accelerator) -> dict[str, float]:
    """The mean over processes, name by name; the same names in each. Every process must call it."""
    if accelerator.num_processes == 1:
        return metrics
    names = sorted(metrics)
    values = torch.tensor([metrics[n] for n in names], dtype=torch.float64, device=accelerator.device)
    return dict(zip(names, accelerator.reduce(values, "mean").tolist(), strict=True))


def whole_batch(rollouts: Rollouts, first: int) -> Rollouts:
    """The rollouts of all processes, groups numbered over all of them; `tree` is left out.

    Args:
        rollouts: this process's own.
        first: number of its first prompt over all processes.
    """
    if PartialState().num_processes == 1:
        return rollouts
    device = rollouts.mask.device
    own = replace(rollouts, group=rollouts.group + first, tree=None)
    return _moved(joined(everyone([_moved(own, "cpu")])), device)


def own_part(credit: Credit, rollouts: Rollouts) -> Credit:
    """This process's rows of the whole batch's credit, padded as its own `rollouts` are."""
    if PartialState().num_processes == 1:
        return credit
    begin = sum(everyone([len(rollouts)])[: PartialState().process_index])
    rows, width = slice(begin, begin + len(rollouts)), rollouts.mask.shape[1]
    parts = {item.name: getattr(credit, item.name) for item in fields(credit)}
    return replace(credit, **{k: v[rows, :width] for k, v in parts.items() if isinstance(v, Tensor)})


def joined(parts: list[Rollouts]) -> Rollouts:
    """Rollouts one after the other, padded to the longest. What only some parts have measured is NaN in the others."""
    width = max(part.mask.shape[1] for part in parts)

    def column(name: str) -> Any:
        values = [getattr(part, name) for part in parts]
        if name == "tree" or all(value is None for value in values):
            return None
        if isinstance(values[0], list):
            return [item for value in values for item in value]
        if isinstance(values[0], dict):
            return {key: [item for value in values for item in value[key]] for key in values[0]}
        for i, part in enumerate(parts):
            if values[i] is None:
                values[i] = torch.where(part.mask, torch.nan, 0.0)
        if values[0].ndim == 1:
            return torch.cat(values)
        return pad_rows([row for value in values for row in value], _FILL.get(name, 0), width)

    return Rollouts(**{item.name: column(item.name) for item in fields(Rollouts)})


def _moved(rollouts: Rollouts, device: str | torch.device) -> Rollouts:
    tensors = {item.name: getattr(rollouts, item.name) for item in fields(rollouts)}
    return replace(rollouts, **{k: v.to(device) for k, v in tensors.items() if isinstance(v, Tensor)})
