"""The policy gradient itself: Σ_t A_t ∇ log π(y_t), over all parameters of the policy.

It is the first update's direction, where every importance ratio is 1; a segment's or a completion's ratio has the same
gradient there, as its mean spreads over the tokens what was summed over them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from segpo_core.policy.critic import ActorCritic
from segpo_core.policy.inputs import Prompts
from segpo_core.types import Rollouts

#: Completions of one pass.
ROWS = 24


def gradient(network: ActorCritic, prompts: Prompts, rollouts: Rollouts, credit: Tensor) -> Tensor:
    """float32 [parameters], for credit [B, T]."""
    parameters = [p for name, p in network.named_parameters() if not name.startswith("value_") and p.requires_grad]
    total = [torch.zeros_like(p) for p in parameters]
    for rows in credit.abs().amax(1).nonzero()[:, 0].split(ROWS):
        width = int(rollouts.lengths[rows].max())
        ids, mask = rollouts.completion_ids[rows, :width], rollouts.mask[rows, :width]
        scores = network(prompts.batch(rollouts.group[rows], ids.device), ids, mask)
        objective = torch.where(mask, credit[rows, :width] * scores.logprobs, 0).sum()
        made = torch.autograd.grad(objective, parameters, allow_unused=True)
        total = [t if g is None else t + g for t, g in zip(total, made, strict=True)]
    return torch.cat([t.flatten() for t in total])


def cosine(x: Tensor, y: Tensor) -> float:
    """Of two gradients; 0 where one is 0."""
    x, y = x.double(), y.double()
    size = x.norm() * y.norm()
    return float(x @ y / size) if size > 0 else 0.0
