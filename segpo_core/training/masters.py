"""Weights in float32 behind a network that computes in bfloat16.

bfloat16 has 8 bits of precision: an AdamW step of 1e-6 on a weight of 0.02 is rounded away, step after step, and the
policy does not move. So the optimizer works on a float32 copy of every trained parameter, the master, and the network
holds that copy rounded. Of 20 bytes a parameter at the optimizer step, 2 are the network's, 2 its gradient's (while a
backward pass runs), 4 each the master's and its gradient's, 8 AdamW's moments; activations take half of float32's.
"""

from __future__ import annotations

import torch
from torch import nn


class Masters:
    """Round the network's float32 parameters to `dtype`, keeping what is trained in float32 beside them.

    Args:
        network: an `ActorCritic` with float32 parameters. Its value head stays float32, and so does what the model
            itself asks to keep so.
        dtype: what the network computes in.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype):
        keep = set(getattr(network.model, "_keep_in_fp32_modules_strict", None) or ()) | {"value_head"}
        self.of: dict[nn.Parameter, nn.Parameter] = {}  #: the network's parameter -> its master
        for name, parameter in network.named_parameters():
            if parameter.dtype != torch.float32 or keep & set(name.split(".")):
                continue
            if parameter.requires_grad:
                self.of[parameter] = nn.Parameter(parameter.data)
            parameter.data = parameter.data.to(dtype)

    def groups(self, groups: list[dict]) -> list[dict]:
        """Optimizer groups with masters in place of the network's parameters."""
        return [group | {"params": [self.of.get(p, p) for p in group["params"]]} for group in groups]

    def take_gradients(self) -> None:
        """Add the network's gradients to the masters', and free them."""
        for parameter, master in self.of.items():
            if parameter.grad is not None:
                gradient = parameter.grad.float()
                master.grad = gradient if master.grad is None else master.grad.add_(gradient)
                parameter.grad = None

    @torch.no_grad()
    def give_back(self) -> None:
        """After an optimizer step: the network holds the masters again, rounded."""
        for parameter, master in self.of.items():
            parameter.copy_(master)
