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

#: Weights up to which a decoder's products are joined, which takes a copy. The products of larger ones cost what they
#: read.
SMALL = 2**25
#: (tokens long [n], mask long [n, S + 1], positions long [n], cache of S tokens) -> hidden states [n, H].
Step = Callable[[Tensor, Tensor, Tensor, DynamicCache], Tensor]


def step_of(model: nn.Module, cache: DynamicCache) -> Step:
    """What computes the next token of each row, and puts it into the cache: plain where that is exact. It is made for
    the weights as they are."""
    decoder = without_adapter(model).get_decoder()
    if is_plain(decoder) and all(type(layer) is RoomyLayer for layer in cache.layers):
        return PlainStep(decoder)
    return lambda *inputs: whole_step(backbone(model), *inputs)


def whole_step(network: nn.Module, tokens: Tensor, mask: Tensor, position: Tensor, cache: DynamicCache) -> Tensor:
    """The step through the model itself."""
    return continued(network, decode_inputs(tokens[:, None], mask, position), cache)[:, -1]


def is_plain(decoder: nn.Module) -> bool:
    """Whether `PlainStep` does what the decoder does: one of three kinds of layers, as they were made, on a CPU in
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


class PlainStep:
    """The step of a decoder that `is_plain`, as long as its weights stay."""

    def __init__(self, decoder: nn.Module):
        self.decoder, small = decoder, sum(p.numel() for p in decoder.parameters()) <= SMALL
        self.projections = []  # of each layer: (query, key and value; gate and up)
        for layer in decoder.layers:
            own, mlp = layer.self_attn, layer.mlp
            together = ([own.q_proj, own.k_proj, own.v_proj], [mlp.gate_proj, mlp.up_proj])
            self.projections.append([_joined(modules, small) for modules in together])

    @torch.inference_mode()
    def __call__(self, tokens: Tensor, mask: Tensor, position: Tensor, cache: DynamicCache) -> Tensor:
        decoder = self.decoder
        x, rows = decoder.embed_tokens(tokens), len(tokens)
        cos, sin = decoder.rotary_emb(x[:, None], position[:, None])  # [n, 1, D]
        half = cos.shape[-1] // 2
        # A half turn takes (a, b) to (−b, a): the sign goes to the sine, so that the halves need only be swapped.
        sin = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
        hidden_from = None if mask.all() else x.new_zeros(mask.shape).masked_fill(mask == 0, -torch.inf)[:, None, None]
        for layer, (attended, gate_up), stored in zip(decoder.layers, self.projections, cache.layers, strict=True):
            own, mlp = layer.self_attn, layer.mlp
            every = attended(_rms(x, layer.input_layernorm)).view(rows, -1, own.head_dim)  # heads of q, k and v
            shared = stored.keys.shape[1]
            both, value = every[:, :-shared], every[:, -shared:]
            if isinstance(layer, Qwen3DecoderLayer):
                both = torch.cat([_rms(both[:, :-shared], own.q_norm), _rms(both[:, -shared:], own.k_norm)], dim=1)
            both = both.roll(half, dims=-1).mul_(sin).addcmul_(both, cos)
            keys, values = stored.update(both[:, -shared:, None], value[:, :, None])
            # The heads that share keys stand where several queries would.
            query = both[:, :-shared].reshape(rows, shared, -1, own.head_dim)
            seen = scaled_dot_product_attention(query, keys, values, hidden_from, scale=own.scaling)
            x = _linear(seen.reshape(rows, -1), own.o_proj).add_(x)
            gate, up = gate_up(_rms(x, layer.post_attention_layernorm)).chunk(2, dim=-1)
            x = _linear(mlp.act_fn(gate).mul_(up), mlp.down_proj).add_(x)
        return _rms(x, decoder.norm)


def _joined(modules: list[nn.Module], small: bool) -> Callable[[Tensor], Tensor]:
    """What several modules say of one input, side by side: one product where their weights can stand side by side."""
    biased = {getattr(module, "bias", None) is not None for module in modules}
    if not small or len(biased) > 1 or any(type(module) is not nn.Linear for module in modules):
        return lambda x: torch.cat([_linear(x, module) for module in modules], dim=-1)
    weight = torch.cat([module.weight.detach() for module in modules])
    bias = torch.cat([module.bias.detach() for module in modules]) if biased == {True} else None
    return lambda x: linear(x, weight, bias)


def _linear(x: Tensor, module: nn.Module) -> Tensor:
    # An adapter's layer is none: it is called.
    return linear(x, module.weight, module.bias) if type(module) is nn.Linear else module(x)


def _rms(x: Tensor, norm: nn.Module) -> Tensor:
    return rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)
