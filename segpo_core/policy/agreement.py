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
from segpo_core.policy.logprobs import Head, backbone, continued, without_adapter

#: Largest difference in nats, by precision: what rounding alone does stays well below.
TOLERANCE = {torch.float32: 0.01, torch.float16: 0.25, torch.bfloat16: 1.0}
TEXT = "What is 12 + 34? The answer is 46."


class Agreement(NamedTuple):
    """Largest differences of log-probabilities, in nats, over a few tokens of a short text."""

    head: float  #: our head on the backbone, against the model's own logits
    decoding: float  #: the last two tokens one at a time on a cache, against one pass over all
    padding: float  #: the same from half the text, beside a longer one and copied, as groups are sampled


@torch.no_grad()
def agreement(model: nn.Module, processor: Any) -> Agreement:
    """Compare our passes over a short text with the model's own.

    Raises:
        ValueError: they differ by more than rounding does, or one is not possible; what cannot be trained with is said.
    """
    name, inner = type(without_adapter(model)).__name__, without_adapter(model)
    prompts = Prompts.build([{"prompt": TEXT, "images": []}], processor, inner.config)
    batch, head = prompts.batch(device=next(model.parameters()).device), Head(model, [])
    inputs, _ = prefill_inputs(model, batch)
    try:
        own = model(**inputs, use_cache=False).logits[0].float().log_softmax(-1)
        ours = head(backbone(model)(**inputs, use_cache=False).last_hidden_state[0]).log_softmax(-1)
        length = len(own)
        states, ends = _one_at_a_time(model, prompts, head, [length - 2, length // 2])
        stepwise = states.log_softmax(-1) - own[ends]
        head_difference = float((own - ours)[-3:].abs().max())
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # every family has ways of its own not to be what ours are
        raise ValueError(
            f"{name} cannot be run as it is sampled and scored here, on a cache of transformers: "
            f"{type(error).__name__}: {error}"
        ) from error
    found = Agreement(head_difference, float(stepwise[:, 0].abs().max()), float(stepwise[:, 1:].abs().max()))
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
    if not found.padding <= limit:
        raise ValueError(
            f"{name} says something else beside a longer text than alone (by {found.padding:.3g} nats): it reads the "
            "padding before a prompt, or its state cannot be copied, and what it samples would be scored wrongly"
        )
    return found


def _one_at_a_time(model: nn.Module, prompts: Prompts, head: Head, lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Two tokens after each of two beginnings of a text, as the sampler makes them: prefilled together, the second one
    continued twice.

    Returns:
        logits [3, 3, V]: before, between and after the two tokens; of the first beginning, the second, and again.
        The token after which each stands, long [3, 3].
    """
    (row,) = prompts.rows
    cut = [{k: v[:, :n] if is_sequence(row, k) else v for k, v in row.items()} for n in lengths]
    device, network = next(model.parameters()).device, backbone(model)
    inputs, position = prefill_inputs(model, Prompts(tuple(cut), prompts.pad_token_id).batch(device=device))
    cache = DynamicCache(config=without_adapter(model).config.get_text_config())
    hidden = continued(network, inputs, cache)[:, -1]
    copies = torch.tensor([0, 1, 1], device=device)
    cache.reorder_cache(copies)
    hidden, position, attended = hidden[copies], position[copies], inputs["attention_mask"][copies]
    ends, logits = torch.tensor(lengths, device=device)[copies], [head(hidden)]
    for step in range(2):
        attended = torch.cat([attended, attended.new_ones(len(copies), 1)], dim=1)
        token = row["input_ids"].to(device)[0, ends + step][:, None]
        hidden = continued(network, decode_inputs(token, attended, position + step), cache)[:, -1]
        logits.append(head(hidden))
    return torch.stack(logits), ends - 1 + torch.arange(3, device=device)[:, None]
