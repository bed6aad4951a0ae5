"""The policy with an optional critic, as one module: what is trained, and what `accelerate` wraps.

The critic is a value head on the policy's own backbone (`critic="head"`, one forward pass for both) or on a backbone
of its own (`critic="model"`, begun as a copy of the policy's; under LoRA only the adapter is copied, and both sit on
the same frozen weights).
"""

from __future__ import annotations

import copy
import re
from typing import NamedTuple

import torch
from torch import Tensor, nn

from segpo_core.policy.inputs import extend, position_ids
from segpo_core.policy.logprobs import Head, backbone, scatter, token_logprobs, without_adapter

#: What peft names its own parameters.
_ADAPTER = re.compile(r"\blora_|\bmodules_to_save\b")


class Scores(NamedTuple):
    """What one pass over prompts and completions says, each float32 [B, T], 0 at padding."""

    logprobs: Tensor
    entropy: Tensor
    values: Tensor | None  #: V before each token; None without a critic


class ValueHead(nn.Module):
    """Hidden state [.., H] to a value [..], in float32. Starts at 0: the first advantages are the rewards."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.inner = nn.Linear(hidden_size, hidden_size)
        self.out = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        x = self.norm(hidden.float())
        return self.out(nn.functional.gelu(self.inner(x)))[..., 0]


def second(model: nn.Module) -> nn.Module:
    """A second backbone, trained where the first is; with an adapter, a second adapter on the same weights."""
    network = backbone(model)
    if without_adapter(model) is model:
        return copy.deepcopy(network)
    shared = {name: p for name, p in network.named_parameters() if not _ADAPTER.search(name)}
    other = copy.deepcopy(network, {id(p): p for p in shared.values()})
    for name, parameter in other.named_parameters():
        parameter.requires_grad_(name not in shared)
    return other


class ActorCritic(nn.Module):
    """A language model, its head with suppressed ids, and a critic or none.

    Args:
        model: transformers model with a language-model head.
        suppressed: ids with probability 0 under the policy.
        temperature: the sampling temperature; it is in every log-probability and entropy.
        critic: None, "head" or "model".
    """

    def __init__(self, model: nn.Module, suppressed: list[int], temperature: float = 1.0, critic: str | None = None):
        super().__init__()
        self.model, self.temperature = model, temperature
        self.head = Head(model, suppressed)
        size = without_adapter(model).config.get_text_config().hidden_size
        self.value_head = ValueHead(size) if critic else None
        self.value_backbone = second(model) if critic == "model" else None

    def forward(
        self, prompts: dict[str, Tensor], completion_ids: Tensor, mask: Tensor, predictor: Tensor | None = None
    ) -> Scores:
        """One teacher-forced pass.

        Args:
            prompts: collated prompt inputs, left-padded (see inputs.py), pixel inputs included; for packed trees
                the whole of their inputs (see packing.py).
            completion_ids: long [B, T]; mask: bool [B, T], the tokens that are scored.
            predictor: packed trees: long [N], the slot that predicts each token of `mask`.
        """
        inputs = prompts
        if predictor is None:
            inputs = extend(prompts, completion_ids, mask)
            inputs["position_ids"] = position_ids(self.model, inputs)
        hidden = self._hidden(backbone(self.model), inputs, mask, predictor)
        tokens = completion_ids[mask]
        logprobs, entropy = token_logprobs(hidden, self.head, tokens, self.temperature)
        values = None
        if self.value_head is not None:
            if self.value_backbone is not None:
                hidden = self._hidden(self.value_backbone, inputs, mask, predictor)
            values = scatter(self.value_head(hidden), mask)
        return Scores(scatter(logprobs, mask), scatter(entropy, mask), values)

    @staticmethod
    def _hidden(network: nn.Module, inputs: dict[str, Tensor], mask: Tensor, predictor: Tensor | None) -> Tensor:
        """[N, H]: for each real completion token, the hidden state of the token before it, which predicts it."""
        states = network(**inputs, use_cache=False).last_hidden_state
        if predictor is not None:
            return states.flatten(0, 1)[predictor]
        return states[:, -mask.shape[1] - 1 : -1][mask]

    def critic_names(self) -> set[str]:
        """Names, as in `state_dict`, of what is the critic's alone, and so its part of a checkpoint."""
        policy = {id(p) for p in self.model.parameters()}
        shared = {name for name, p in self.named_parameters(remove_duplicate=False) if id(p) in policy}
        return {name for name in self.state_dict() if name.startswith("value_")} - shared

    def groups(self, learning_rate: float, critic_learning_rate: float, weight_decay: float) -> list[dict]:
        """Optimizer groups: the policy's trainable parameters, and the critic's own."""
        critic = [p for name, p in self.named_parameters() if name.startswith("value_") and p.requires_grad]
        policy = [p for name, p in self.named_parameters() if not name.startswith("value_") and p.requires_grad]
        groups = [{"params": policy, "lr": learning_rate, "weight_decay": weight_decay}]
        if critic:
            groups.append({"params": critic, "lr": critic_learning_rate, "weight_decay": weight_decay})
        return groups


@torch.no_grad()
def score(network: nn.Module, prompts: dict[str, Tensor], completion_ids: Tensor, mask: Tensor) -> Scores:
    """A pass without gradient."""
    return network(prompts, completion_ids, mask)
