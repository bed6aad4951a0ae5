"""One completion through one layer of width 64, under any vocabulary: the head is nearly all of its cost."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from segpo_core.policy.critic import ActorCritic


def one_layer(tokens: int, vocabulary: int) -> tuple[ActorCritic, dict[str, Tensor], Tensor, Tensor]:
    """(network, prompt, ids, mask) of one completion of random tokens after a prompt of four."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=16_384, tie_word_embeddings=True,
    )  # fmt: skip
    network = ActorCritic(LlamaForCausalLM(config).eval(), suppressed=[])
    prompt = {name: torch.ones(1, 4, dtype=torch.long) for name in ("input_ids", "attention_mask")}
    ids = torch.randint(vocabulary, (1, tokens))
    return network, prompt, ids, torch.ones_like(ids, dtype=torch.bool)
