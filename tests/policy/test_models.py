"""What docs/models.md says of models: some lines are tried again here; `python docs/make_models.py` tries all."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from segpo_core.policy.inputs import Prompts
from segpo_core.policy.load import load_model, load_processor
from segpo_core.policy.logprobs import Head, backbone
from segpo_core.sampling.generate import InProcess, check_continuable
from tests.fakes import zoo

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def made():
    """docs/make_models.py, which is no package."""
    spec = importlib.util.spec_from_file_location("make_models", ROOT / "docs" / "make_models.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_family_has_a_line(made):
    assert set(made.rows(made.PAGE.read_text())) == set(made.FAMILIES)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3_5", "mamba", "xlstm", "mllama"])
def test_the_page_says_what_is_so(made, family):
    assert made.row(family, made.tried(family)) == made.rows(made.PAGE.read_text())[family]


def test_figures_and_names_of_places_are_not_on_the_page(made):
    said = "Net says it in a way that is not known here: they differ by 5.13 nats, so it would be trained on other ones"
    assert made.row("net", {"all": said}).endswith("not known here: they differ by more than rounding |")
    said = "Net wants <class 'a.b.Cache'>, not | this (by 0.4 nats): it keeps its state elsewhere"
    assert made.row("net", {"all": said}) == "| net | Net wants Cache, not / this (by more than rounding) |"
    assert made.row("net", {"train": "yes", "chain": "it cannot"}) == "| net | yes | no |  |  |  |  |  |"


@pytest.mark.parametrize("family", ["jamba", "falcon_h1"])
def test_running_states_are_copied_and_not_taken_up_in_the_middle(family, tmp_path):
    """A group from one state, also where one layer has keys and a running state; and the words for a chain."""
    path = zoo.text(family, tmp_path)
    model, tokenizer = load_model(path), load_processor(path)
    prompts = Prompts.build([{"prompt": text, "images": []} for text in ("12 + 3 =", "4")], tokenizer, model.config)
    sampler = InProcess(model, tokenizer, [tokenizer.eos_token_id], [], max_completion_length=6)
    rollouts = sampler.groups(prompts, 3, (0, 1))
    ids = rollouts.completion_ids
    for row, group in enumerate(rollouts.group.tolist()):
        whole = torch.cat([prompts.rows[group]["input_ids"][0], ids[row][rollouts.mask[row]]])[None]
        with torch.no_grad():
            hidden = backbone(model)(input_ids=whole, use_cache=False).last_hidden_state[0]
        n = int(rollouts.lengths[row])
        logprobs = Head(model, [])(hidden[-n - 1 : -1]).log_softmax(-1).gather(1, ids[row, :n, None])[:, 0]
        torch.testing.assert_close(rollouts.sampled_logprobs[row, :n], logprobs, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="(Jamba|FalconH1).* cannot go on from the middle .* grpo, sapo or spo_tree"):
        check_continuable(model)
