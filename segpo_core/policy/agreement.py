"""Whether our two ways through a model give what the model itself gives: asked once, when it is loaded.

Training scores tokens with a head of ours on the backbone's hidden states (logprobs.py), and samples them one at a time
on a cache (generate.py). A model that scales its logits in a way of its own, or that pays no heed to the cache, would
train wrongly in silence.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from segpo_core.policy.inputs import Prompts, decode_inputs, is_sequence, prefill_inputs
from segpo_core.policy.logprobs import Head, backbone, without_adapter

#: Largest difference in nats, by precision: what rounding alone does stays well below.
TOLERANCE = {torch.float32: 0.01, torch.float16: 0.25, torch.bfloat16: 1.0}
TEXT = "What is 12 + 34? The answer is 46."


class Agreement(NamedTuple):
    """Largest differences of log-probabilities, in nats, over the last three tokens of a short text."""

    head: float  #: our head on the backbone, against the model's own logits
    decoding: float  #: the last two tokens one at a time on a cache, against one pass over all


@torch.no_grad()
def agreement(model: nn.Module, processor: Any) -> Agreement:
    """Compare our passes over a short text with the model's own.

    Raises:
        ValueError: they differ by more than rounding does; what cannot be trained with is said.
    """
    name, inner = type(without_adapter(model)).__name__, without_adapter(model)
    prompts = Prompts.build([{"prompt": TEXT, "images": []}], processor, inner.config)
    batch = prompts.batch(device=next(model.parameters()).device)
    inputs, _ = prefill_inputs(model, batch)
    own = model(**inputs, use_cache=False).logits[0, -3:].float().log_softmax(-1)
    head = Head(model, [])
    ours = head(backbone(model)(**inputs, use_cache=False).last_hidden_state[0, -3:]).log_softmax(-1)
    try:
        stepwise = torch.cat(_one_at_a_time(model, batch, head)).log_softmax(-1)
    except (TypeError, AttributeError, NotImplementedError) as error:
        raise ValueError(f"{name} cannot be sampled from token by token on a cache of transformers: {error}") from error
    found = Agreement(float((own - ours).abs().max()), float((own - stepwise).abs().max()))
    limit = TOLERANCE.get(next(model.parameters()).dtype, 1.0)
    if not found.head <= limit:
        raise ValueError(
            f"{name} makes its logits in a way that is not known here: its own log-probabilities and ours differ by "
            f"{found.head:.3g} nats, so it would be trained on other probabilities than it samples with"
        )
    if not found.decoding <= limit:
        raise ValueError(
            f"{name} says something else when it goes on from a cache than in one pass (by {found.decoding:.3g} nats): "
            "it keeps its state elsewhere, or not at all, and what it samples would be scored wrongly"
        )
    return found


def _one_at_a_time(model: nn.Module, batch: dict[str, Tensor], head: Head) -> list[Tensor]:
    """Logits [1, V] after all but two tokens, after all but one, and after all: as the sampler makes them."""
    short = {key: value[:, :-2] if is_sequence(batch, key) else value for key, value in batch.items()}
    inputs, position = prefill_inputs(model, short)
    cache = DynamicCache(config=without_adapter(model).config.get_text_config())
    network, attended = backbone(model), short["attention_mask"]
    hidden = network(**inputs, past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
    logits = [head(hidden)]
    for t in (-2, -1):
        attended = torch.cat([attended, attended.new_ones(1, 1)], dim=1)
        token = batch["input_ids"][:, [t]]
        step = decode_inputs(token, attended, position)
        hidden = network(**step, past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
        logits.append(head(hidden))
        position = position + 1
    return logits
