"""Weights split over processes (FSDP2) where they rest, whole where they are used.

Sampling runs the network as often as its own completions need, other processes run theirs: no process may wait for the
others in a forward pass. So every process holds the weights whole from one optimizer step to the next, in the network's
precision; gradients, AdamW's moments and the optimizer step are split. That is what takes most of the memory: of 16
bytes a parameter in float32, 12 are divided by the number of processes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def wanted(accelerator: Accelerator) -> bool:
    """Whether the launcher asked for FSDP. On a CPU accelerate does not pass that on, so its variable is read here."""
    asked = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" and accelerator.num_processes > 1
    return asked or accelerator.distributed_type == DistributedType.FSDP


def shard(network: nn.Module, accelerator: Accelerator, dtype: torch.dtype = torch.float32) -> None:
    """Split the network over all processes: each layer that must not be cut is a unit, the rest is one.

    Call it before the optimizer is made: parameters become others. `whole` afterwards. Where the network computes in
    another `dtype` than float32, its parts stay float32 and are rounded as they are gathered; so the optimizer works in
    float32. The value head computes in float32 in any case.
    """
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    blocks = set(getattr(network.model, "_no_split_modules", None) or ())
    mixed = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    policy = MixedPrecisionPolicy() if dtype == torch.float32 else mixed
    for module in [m for m in network.modules() if type(m).__name__ in blocks]:
        fully_shard(module, mesh=mesh, mp_policy=policy)
    head = getattr(network, "value_head", None)
    if head is not None and any(True for _ in head.parameters()):
        fully_shard(head, mesh=mesh)  # float32 also beside a network of lower precision
    fully_shard(network, mesh=mesh, mp_policy=policy)
    network._get_fsdp_state()._lazy_init()  # the root must be known before a part of it runs alone, as in sampling
    network.set_reshard_after_backward(False)
    for unit in units(network):
        unit.set_reshard_after_forward(False)


def units(network: nn.Module) -> list[FSDPModule]:
    return [module for module in network.modules() if isinstance(module, FSDPModule)]


def whole(network: nn.Module) -> None:
    """Gather the weights: afterwards every process can use the network alone."""
    for unit in units(network):
        unit.unshard()


@contextlib.contextmanager
def split(network: nn.Module) -> Iterator[None]:
    """For an optimizer step: parameters and gradients are this process's parts. Nothing happens without FSDP."""
    for unit in units(network):
        unit.reshard()
    yield
    whole(network)


def whole_state(network: nn.Module) -> dict[str, Tensor]:
    """The network's `state_dict` with whole tensors, on the CPU where they were split; tied ones stay one tensor. Every
    process must call it."""
    state, owners = network.state_dict(), dict(network.named_parameters(remove_duplicate=False))
    gathered: dict[int, Tensor] = {}
    for name, value in state.items():
        owner = id(owners.get(name, value))
        if owner not in gathered:
            gathered[owner] = value.full_tensor().cpu() if isinstance(value, DTensor) else value
        state[name] = gathered[owner]
    whole(network)  # asking for its state split the network
    return state


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's `state_dict` with whole tensors, on the CPU where they were split. Every process must call it."""
    state = optimizer.state_dict()
    moments = {
        number: {k: v.full_tensor().cpu() if isinstance(v, DTensor) else v for k, v in entry.items()}
        for number, entry in state["state"].items()
    }
    return state | {"state": moments}


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Put a whole state in place, split as the parameters are."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def part(number: int, value: Any) -> Any:
        owner = parameters[number]
        if isinstance(owner, DTensor) and isinstance(value, Tensor) and value.shape == owner.shape:
            return distribute_tensor(value.to(owner.device), owner.device_mesh, owner.placements)
        return value

    moments = {n: {k: part(n, v) for k, v in entry.items()} for n, entry in state["state"].items()}
    optimizer.load_state_dict(state | {"state": moments})
