"""One decoding step of a plain decoder (Llama, Qwen2, Qwen3), without the layers of Python around its modules.

A small model's step on a CPU is mostly Python: masks made anew, arguments checked and handed on, outputs wrapped. Here
stands what is left, with the model's own weights, in the order of its own operations, so that results are the same (to
the bit, where we looked). Everything else goes through the model itself.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from segpo_core.policy.inputs import decode_inputs
from segpo_core.policy.logprobs import backbone, continued, without_adapter
from segpo_core.sampling.roomy import RoomyLayer

#: (tokens long [n], mask long [n, S + 1], positions long [n], cache of S tokens) -> hidden states [n, H].
Step = Callable[[Tensor, Tensor, Tensor, DynamicCache], Tensor]


def step_of(model: nn.Module, cache: DynamicCache) -> Step:
    """What computes the next token of each row, and puts it into the cache: plain where that is exact."""
    decoder = without_adapter(model).get_decoder()
    if is_plain(decoder) and all(type(layer) is RoomyLayer for layer in cache.layers):
        return lambda *inputs: plain_step(decoder, *inputs)
    return lambda *inputs: whole_step(backbone(model), *inputs)


def whole_step(network: nn.Module, tokens: Tensor, mask: Tensor, position: Tensor, cache: DynamicCache) -> Tensor:
    """The step through the model itself."""
    return continued(network, decode_inputs(tokens[:, None], mask, position), cache)[:, -1]


def is_plain(decoder: nn.Module) -> bool:
    """Whether `plain_step` does what the decoder does: one of three kinds of layers, as they were made, on a CPU in
    float32, with nobody listening at its modules (sharded weights are put together so)."""
    layers = getattr(decoder, "layers", ())
    weights = list(decoder.parameters())
    return (
        len(layers) > 0
        and all(type(x) in (LlamaDecoderLayer, Qwen2DecoderLayer, Qwen3DecoderLayer) for x in layers)
        and decoder.config._attn_implementation == "sdpa"
        and all(type(x) is nn.Parameter and x.dtype == torch.float32 and x.device.type == "cpu" for x in weights)
        and not any(x._forward_hooks or x._forward_pre_hooks or "forward" in vars(x) for x in decoder.modules())
    )


def plain_step(decoder: nn.Module, tokens: Tensor, mask: Tensor, position: Tensor, cache: DynamicCache) -> Tensor:
    """The step of a decoder that `is_plain`."""
    x, rows = decoder.embed_tokens(tokens), len(tokens)
    cos, sin = decoder.rotary_emb(x[:, None], position[:, None])  # [n, 1, D]
    half = cos.shape[-1] // 2
    # A half turn takes (a, b) to (−b, a): the sign goes to the sine, so that the halves need only be swapped.
    sin = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
    hidden_from = None if mask.all() else x.new_zeros(mask.shape).masked_fill(mask == 0, -torch.inf)[:, None, None]
    for layer, stored in zip(decoder.layers, cache.layers, strict=True):
        own = layer.self_attn
        normed = _rms(x, layer.input_layernorm)
        query, key, value = (
            _linear(normed, p).view(rows, -1, own.head_dim) for p in (own.q_proj, own.k_proj, own.v_proj)
        )
        if isinstance(layer, Qwen3DecoderLayer):
            query, key = _rms(query, own.q_norm), _rms(key, own.k_norm)
        both = torch.cat([query, key], dim=1)
        both = both * cos + both.roll(half, dims=-1) * sin
        heads = query.shape[1]
        keys, values = stored.update(both[:, heads:, None], value[:, :, None])
        # The heads that share keys stand where several queries would.
        shared = both[:, :heads].reshape(rows, keys.shape[1], -1, own.head_dim)
        seen = scaled_dot_product_attention(shared, keys, values, hidden_from, scale=own.scaling)
        x = x + _linear(seen.reshape(rows, -1), own.o_proj)
        normed, mlp = _rms(x, layer.post_attention_layernorm), layer.mlp
        gated = mlp.act_fn(_linear(normed, mlp.gate_proj)) * _linear(normed, mlp.up_proj)
        x = x + _linear(gated, mlp.down_proj)
    return _rms(x, decoder.norm)


def _linear(x: Tensor, module: nn.Module) -> Tensor:
    # An adapter's layer is none: it is called.
    return linear(x, module.weight, module.bias) if type(module) is nn.Linear else module(x)


def _rms(x: Tensor, norm: nn.Module) -> Tensor:
    return rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)
