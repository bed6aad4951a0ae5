"""Tiny text models of every family that a configuration can make tiny, with random weights; nothing is downloaded.

A family is a `model_type` of transformers. Where its configuration takes the usual names, the usual small numbers are
enough; what else a family needs stands beside its name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.fakes.families import _ids, _save, tokenizer

#: By the names that configurations have for them; each takes those that it knows.
SMALL: dict[str, Any] = dict(
    hidden_size=48, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
    head_dim=12, max_position_embeddings=512, n_embd=48, n_layer=4, n_head=4, d_model=48, n_inner=64, n_positions=512,
    ffn_dim=64, num_layers=4, num_heads=4, num_experts=4, num_local_experts=4, n_routed_experts=4,
    num_experts_per_tok=2, moe_intermediate_size=32, n_group=1, topk_group=1, n_shared_experts=1, state_size=8,
    ffn_hidden_size=64, sliding_window=8, d_ff=64,
)  # fmt: skip
_MLA = dict(
    num_key_value_heads=4, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=12, v_head_dim=12
)
_MAMBA = dict(mamba_d_state=8, mamba_n_heads=4, mamba_d_head=24, mamba_n_groups=1, mamba_expand=2, mamba_chunk_size=8)

#: Family -> what its configuration is told beside the usual.
TEXT: dict[str, dict[str, Any]] = {
    "llama": {}, "mamba": {},
    "jamba": dict(attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, mamba_d_state=8,
        mamba_dt_rank=4),
    "mamba2": dict(num_heads=4, head_dim=24, expand=2, n_groups=1, chunk_size=8), "falcon_mamba": {},
    "bamba": dict(**_MAMBA, attn_layer_indices=[1, 3]),
    "granitemoehybrid": dict(**_MAMBA, layer_types=["mamba", "attention"] * 2, logits_scaling=4.0),
    "falcon_h1": dict(**_MAMBA, mamba_d_ssm=96, lm_head_multiplier=0.5),
    "nemotron_h": dict(mamba_num_heads=4, mamba_head_dim=24, n_groups=1, ssm_state_size=8, chunk_size=8),
    "zamba2": dict(n_mamba_heads=4, mamba_d_state=8, mamba_ngroups=1, chunk_size=8, mamba_headdim=24,
        layers_block_type=["mamba", "hybrid"] * 2, num_mem_blocks=1),
    "qwen3_next": dict(linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=12,
        linear_value_head_dim=12, shared_expert_intermediate_size=32),
    "qwen3_5_text": dict(linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=12,
        linear_value_head_dim=12),
    "olmo_hybrid": dict(linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=12,
        linear_value_head_dim=12),
    "kimi_linear": dict(**_MLA, layer_types=["linear_attention", "full_attention"] * 2, linear_head_dim=12,
        mlp_layer_types=["dense", "sparse"] * 2, linear_num_heads=4, num_experts_per_token=2),
    "lfm2": dict(layer_types=["conv", "full_attention"] * 2, block_ff_dim=64),
    "lfm2_moe": dict(layer_types=["conv", "full_attention"] * 2, num_dense_layers=1), "mistral": {}, "mixtral": {},
    "qwen2": {}, "qwen3": {}, "qwen3_moe": {}, "gemma2": {}, "gemma3_text": {}, "phi3": {}, "olmo2": {},
    "gpt_oss": {}, "cohere2": {}, "granite": dict(logits_scaling=4.0), "granitemoe": dict(logits_scaling=4.0),
    "glm4": {}, "gpt_neox": {}, "opt": {}, "falcon": dict(num_kv_heads=2), "hyperclovax": dict(logits_scaling=4.0),
    "minicpm3": dict(**_MLA, dim_model_base=12), "deepseek_v2": dict(**_MLA, first_k_dense_replace=1),
    # what is refused
    "recurrent_gemma": dict(lru_width=48, attention_window_size=8, logits_soft_cap=5.0), "minimax": {},
    "rwkv": dict(attention_hidden_size=48), "xlstm": dict(qk_dim_factor=0.5, chunk_size=8), "bert": {},
    "bart": dict(encoder_ffn_dim=64, decoder_ffn_dim=64, encoder_layers=1, decoder_layers=2,
        encoder_attention_heads=4, decoder_attention_heads=4),
}  # fmt: skip

#: Families of which only the check at load is tried.
LOADED: dict[str, dict[str, Any]] = {
    "gpt2": {}, "deepseek_v3": dict(**_MLA, first_k_dense_replace=1, head_dim=8),
    "llama4_text": dict(intermediate_size_mlp=64, attention_chunk_size=8, use_qk_norm=False), "ministral3": {},
    "qwen2_moe": dict(shared_expert_intermediate_size=32), "gemma": {}, "phi": {}, "phimoe": {}, "olmo3": {},
    "olmoe": {}, "smollm3": {}, "cohere": {}, "glm4_moe": {}, "ernie4_5": {}, "exaone4": {}, "nemotron": {},
    "starcoder2": {}, "hunyuan_v1_dense": {}, "seed_oss": {}, "minimax_m2": {}, "helium": {}, "arcee": {},
    "apertus": {}, "bitnet": {}, "nanochat": {}, "vaultgemma": {}, "gpt_bigcode": {}, "mpt": {},
    "gptj": dict(rotary_dim=4), "codegen": dict(rotary_dim=4),
    "gpt_neo": dict(attention_types=[[["global", "local"], 2]], window_size=8),
    "stablelm": dict(partial_rotary_factor=0.5), "persimmon": {},
}  # fmt: skip


def text(family: str, path: str | Path, seed: int = 0) -> Path:
    """A tiny model of a family of `TEXT` or `LOADED`, saved with a tokenizer."""
    tok = tokenizer()
    made = CONFIG_MAPPING[family]
    usual = {**SMALL, **_ids(tok)}
    settings = {k: v for k, v in usual.items() if k in made.__dataclass_fields__} | (TEXT | LOADED)[family]
    torch.manual_seed(seed)
    return _save(AutoModelForCausalLM.from_config(made(**settings)), tok, path, seed)
