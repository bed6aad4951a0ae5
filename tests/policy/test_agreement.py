"""Our passes against the model's own, for every family here; and models for which they would not agree."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM, MllamaConfig, RwkvConfig, RwkvForCausalLM

from segpo_core.policy.agreement import agreement
from segpo_core.policy.load import load_model, load_processor
from tests.fakes import families


@pytest.mark.parametrize("family", families.FAMILIES)
def test_families_agree(family, tmp_path):
    path = families.FAMILIES[family](tmp_path)
    found = agreement(load_model(path), load_processor(path))
    assert max(found) < 1e-3
    assert max(agreement(load_model(path, use_peft=True), load_processor(path))) < 1e-3


class Doubled(LlamaForCausalLM):
    """Multiplies its logits, which its configuration says nothing of."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = 2 * output.logits
        return output


def test_a_head_of_another_kind_is_told(tmp_path):
    path = families.llama(tmp_path)
    with pytest.raises(ValueError, match="Doubled makes its logits in a way that is not known here"):
        agreement(Doubled.from_pretrained(path, dtype=torch.float32).eval(), load_processor(path))


def test_a_model_that_ignores_the_cache_is_told(tmp_path):
    path = families.llama(tmp_path)
    model = load_model(path)
    forward = model.model.forward

    def forgetful(past_key_values=None, use_cache=None, position_ids=None, attention_mask=None, **kwargs):
        return forward(use_cache=False, **kwargs)

    model.model.forward = forgetful
    with pytest.raises(ValueError, match="when it goes on from a cache"):
        agreement(model, load_processor(path))


def test_rwkv_and_cross_attention_are_refused_before_weights_are_read(tmp_path):
    tokenizer = families.tokenizer()
    config = RwkvConfig(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        hidden_size=32,
        num_hidden_layers=2,
        attention_hidden_size=32,
    )
    model = RwkvForCausalLM(config).eval()
    with pytest.raises(ValueError, match="cache"):  # also where nobody knows its name
        agreement(model, tokenizer)
    model.save_pretrained(tmp_path / "rwkv")
    with pytest.raises(ValueError, match="'rwkv' are not supported: it keeps a running state of its own"):
        load_model(tmp_path / "rwkv")
    MllamaConfig().save_pretrained(tmp_path / "mllama")
    with pytest.raises(ValueError, match="'mllama' are not supported: it reads its images through cross-attention"):
        load_model(tmp_path / "mllama")
