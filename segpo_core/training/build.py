"""The network that a run trains, from its settings and, where it goes on, from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from segpo_core.config import TrainConfig
from segpo_core.policy.critic import ActorCritic
from segpo_core.policy.load import (
    adopt_model,
    find_model,
    freeze_vision,
    load_model,
    make_reference,
    suppressed_token_ids,
)
from segpo_core.training import checkpoint
from segpo_core.training.masters import Masters


def build_network(
    config: TrainConfig, processor: Any, start_from: Path | None = None, given: nn.Module | None = None
) -> tuple[ActorCritic, ActorCritic | None]:
    """The network to train, and its reference where the method's divergence needs one that is no adapter switched off.

    Args:
        config: what to train.
        processor: the model's.
        start_from: a checkpoint that holds the policy's weights; None: the model as it was.
        given: a loaded model in place of the one that the config names.

    Returns:
        (network, reference). Without LoRA the network's weights are float32, and `Learner` rounds them to the config's
        dtype; the reference is rounded already.
    """
    source, computed = find_model(config.model_name_or_path), getattr(torch, config.dtype)
    # What is trained is kept in float32 (see masters.py); what an adapter sits on is not.
    dtype = computed if config.use_peft else torch.float32
    if given is not None:
        model = adopt_model(
            given, dtype, start_from, config.use_peft, config.lora_r, config.lora_alpha, config.dropout,
            config.lora_target_modules, **config.lora_args,
        )  # fmt: skip
    elif config.use_peft and start_from is not None:
        model = PeftModel.from_pretrained(load_model(source, dtype), start_from, is_trainable=True).eval()
    else:
        model = load_model(
            start_from or source,
            dtype,
            use_peft=config.use_peft,
            lora_r=config.lora_r,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.dropout,
            lora_target_modules=config.lora_target_modules,
            lora_args=config.lora_args,
        )
    if config.freeze_vision_tower:
        freeze_vision(model)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    suppressed = suppressed_token_ids(model, processor)
    network = ActorCritic(model, suppressed, config.temperature, getattr(config.algo, "critic", None))
    if start_from is not None:
        checkpoint.load_critic(start_from, network)
    if config.algo.beta == 0 or config.use_peft:
        return network, None
    origin = model if start_from is None else given if given is not None else load_model(source, dtype)
    reference = ActorCritic(make_reference(origin), suppressed, config.temperature)
    Masters(reference, computed)
    return network, reference
