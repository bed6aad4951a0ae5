"""Weights split over processes (FSDP2) where they rest, whole where they are used.

Sampling runs the network as often as its own completions need, other processes run theirs: no process may wait for the
others in a forward pass. So every process holds the weights whole from one optimizer step to the next, in the network's
precision; gradients, AdamW's moments and the optimizer step are split. That is what takes most of the memory: of 16
bytes a parameter in float32, 12 are divided by the number of processes.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch import distributed as dist
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


def owners(network: nn.Module) -> dict[str, int]:
    """Which process writes each entry of the network's state into a checkpoint: rank 0 all of it, unless it is split.

    A layer goes to one process, as what files hold may be made of all of its entries; the largest first, each to the
    process that has least. Of a network with an adapter only what is trained is written, by rank 0, and the rest has no
    entry. Tied entries belong together.
    """
    state, parameters = network.state_dict(), dict(network.named_parameters(remove_duplicate=False))
    if not units(network):
        return dict.fromkeys(state, 0)
    if hasattr(network.model, "peft_config"):
        return {name: 0 for name in state if name not in parameters or parameters[name].requires_grad}
    first: dict[int, str] = {}  # parameter -> the name that says where it goes
    layer = {name: _layer(first.setdefault(id(parameters.get(name, state[name])), name)) for name in state}
    sizes: dict[str, int] = {}
    for name, value in state.items():
        sizes[layer[name]] = sizes.get(layer[name], 0) + value.numel()
    load, place = [0] * dist.get_world_size(), {}
    for one in sorted(sizes, key=sizes.__getitem__, reverse=True):
        place[one] = load.index(min(load))
        load[place[one]] += sizes[one]
    return {name: place[layer[name]] for name in state}


def _layer(name: str) -> str:
    """The numbered layer that an entry is in, else its module: model.layers.3 of model.layers.3.mlp.up_proj.weight."""
    numbered = re.match(r".*?\.\d+(?=\.)", name)
    return numbered[0] if numbered else name.rpartition(".")[0]


def own_state(network: nn.Module, gathered: bool = False) -> dict[str, Tensor]:
    """This process's part of the network's `state_dict`, in whole tensors, on the CPU where they were split: no process
    holds more than its part; `gathered`: rank 0's is all. Tied ones stay one tensor. Every process must call it."""
    state, parameters = network.state_dict(), dict(network.named_parameters(remove_duplicate=False))
    owner, rank = owners(network), PartialState().process_index
    if gathered:
        owner = dict.fromkeys(owner, 0)
    found: dict[int, Any] = {}
    for name in owner:
        key = id(parameters.get(name, state[name]))
        if key not in found:
            found[key] = _at(state[name], owner[name])
    own = {name: found[id(parameters.get(name, state[name]))] for name, at in owner.items() if at == rank}
    whole(network)  # asking for its state split the network
    return own


def own_moments(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's `state_dict` with the moments of this process's part, as `own_state`."""
    owner, rank = owners(network), PartialState().process_index
    parameters = {id(p): owner.get(name, 0) for name, p in network.named_parameters()}
    state = optimizer.state_dict()
    listed = [parameters.get(id(p), 0) for group in optimizer.param_groups for p in group["params"]]
    moments = {}
    for number, entry in state["state"].items():
        gathered = {k: _at(v, listed[number]) for k, v in entry.items()}
        if listed[number] == rank:
            moments[number] = gathered
    return state | {"state": moments}


def _at(value: Any, owner: int) -> Any:
    """The whole of a tensor in the process `owner`, on its CPU; something else in the others. Not split: as it is."""
    if not isinstance(value, DTensor):
        return value
    part, processes = value.to_local(), dist.get_world_size()
    rows = -(-value.shape[0] // processes)  # split along the first axis, the last parts shorter or empty
    even = part.new_zeros(rows, *value.shape[1:])
    even[: len(part)] = part
    parts = [torch.empty_like(even) for _ in range(processes)] if dist.get_rank() == owner else None
    dist.gather(even, parts, dst=owner)
    return None if parts is None else torch.cat(parts)[: value.shape[0]].cpu()


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
