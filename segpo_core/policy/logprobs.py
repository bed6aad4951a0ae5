"""Log-probabilities and entropies of completion tokens, without ever holding [B, T, V] in float32.

The backbone gives hidden states; the head is applied to the completion's real tokens only, a bounded number of rows
at a time, and recomputed in the backward pass. Peak memory is one chunk of logits instead of the whole batch's.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

#: Largest number of float32 logits held at once (64 MB).
MAX_LOGITS = 2**24


#: What families call the bound that tanh keeps their logits within.
SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


def logit_scale(config: Any) -> float:
    """What a family multiplies its logits by, or, which is the same, the hidden states before its head.

    Cohere, Falcon H1 and Muse multiply, Granite, MiniCPM and Inkling divide; HyperCLOVA multiplies by what Granite
    divides by. What is not known here, `agreement` tells.
    """

    def factor(name: str) -> float:
        return getattr(config, name, None) or 1.0

    scaling = factor("logits_scaling")
    return (
        factor("logit_scale") * factor("lm_head_multiplier") * factor("output_multiplier")
        * (scaling if config.model_type.startswith("hyperclovax") else 1 / scaling)
        / factor("logits_mup_width_multiplier")
    )  # fmt: skip


class Head(nn.Module):
    """Hidden states to float32 logits, as the model's own forward does it, without tokens that may not be sampled.

    Args:
        model: a transformers model with a language-model head (peft-wrapped or not).
        suppressed: ids whose probability is zero under the policy (padding, image placeholders).
    """

    def __init__(self, model: nn.Module, suppressed: list[int]):
        super().__init__()
        inner = without_adapter(model)
        text = inner.config.get_text_config()
        self.softcap = next(filter(None, (getattr(text, name, None) for name in SOFTCAPS)), None)
        self.scale = logit_scale(text)
        self.suppressed: Tensor
        self.register_buffer("suppressed", torch.tensor(suppressed, dtype=torch.long), persistent=False)
        # In a tuple, so that the head's weights stay the model's and are not counted twice.
        self._linear = (inner.get_output_embeddings(),)

    def forward(self, hidden: Tensor) -> Tensor:
        """[N, H] -> float32 [N, V]; suppressed ids get the lowest finite value, hence probability exactly 0."""
        logits = self._linear[0](hidden).float()
        if self.scale != 1:  # each of these is one more [N, V]
            logits = logits * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        if len(self.suppressed) == 0:
            return logits
        return logits.index_fill(-1, self.suppressed, torch.finfo(torch.float32).min / 4)


def without_adapter(model: nn.Module) -> nn.Module:
    """The transformers model inside a peft wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def backbone(model: nn.Module) -> nn.Module:
    """The part of the model that ends in hidden states."""
    inner = without_adapter(model)
    return getattr(inner, inner.base_model_prefix, None) or inner.model  # Llama 4's text model names another


def continued(network: nn.Module, inputs: dict[str, Tensor], cache: Any) -> Tensor:
    """Hidden states [B, n, H] of n more tokens of each row, after what `cache` holds; it then holds them too.

    Args:
        network: of `backbone`.
        inputs: of `prefill_inputs` or `decode_inputs`.
        cache: of `DynamicCache`, as long as the model keeps one.
    """
    takes = inspect.signature(network.forward).parameters
    # transformers 5.24 calls it `cache` everywhere; before, it had two names.
    name = next((name for name in ("cache", "cache_params") if name in takes), "past_key_values")
    # Mamba and its kin. Their states hold no padding, and a mask is read as one of the new tokens alone.
    if cache.layers and all(cache.is_linear) and inputs["attention_mask"].shape != inputs["input_ids"].shape:
        inputs = {key: value for key, value in inputs.items() if key != "attention_mask"}
    return network(**inputs, **{name: cache}, use_cache=True).last_hidden_state


def gather(logits: Tensor, tokens: Tensor, temperature: float, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Log-probability of `tokens` and entropy of the distribution, both float32 [N], at the sampling temperature.

    Args:
        logits: float32 [U, V].
        tokens: long [N].
        temperature: > 0.
        rows: long [N], which of the U distributions each token is of; default its own, U = N.
    """
    scaled = logits if temperature == 1 else logits / temperature
    total = scaled.logsumexp(dim=-1)
    own = scaled.gather(-1, tokens[:, None])[:, 0] if rows is None else scaled[rows, tokens]
    with torch.no_grad():  # entropy is a diagnostic and a cutting signal; no gradient goes through it
        probs = (scaled - total[:, None]).exp_()
        entropy = total - probs.mul_(scaled).sum(dim=-1)
        entropy = entropy.clamp(min=0)
    if rows is None:
        return own - total, entropy
    return own - total[rows], entropy[rows]


def token_logprobs(hidden: Tensor, head: Head, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """`gather` for hidden states [N, H], in chunks of at most `MAX_LOGITS` logits."""

    def chunk(part: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return gather(head(part), targets, temperature)

    vocabulary = head._linear[0].weight.shape[0]
    size = max(1, MAX_LOGITS // vocabulary)
    if hidden.shape[0] <= size:
        return chunk(hidden, tokens)
    recompute = torch.is_grad_enabled() and hidden.requires_grad
    parts = [
        checkpoint(chunk, part, targets, use_reentrant=False) if recompute else chunk(part, targets)
        for part, targets in zip(hidden.split(size), tokens.split(size), strict=True)
    ]
    logprobs, entropies = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


def scatter(values: Tensor, mask: Tensor) -> Tensor:
    """[N] values of the real tokens back to their places in [B, T]; 0 elsewhere."""
    return values.new_zeros(mask.shape).masked_scatter(mask, values)
