"""TRL's own trainer with our credit, on tiny random models: its gradients are those of our own loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from trl import GRPOConfig

from segpo_core import losses
from segpo_core.algos import (
    GRPO,
    GSPO,
    PAPO,
    PPO,
    RLOO,
    SAPO,
    SRPO,
    TEMPO,
    VPPO,
    EntropyTokens,
    Forks,
    SPOChain,
    SPOTree,
)
from segpo_core.bridges import trl as bridge
from segpo_core.bridges.trl import SegmentGRPOTrainer
from segpo_core.policy.critic import ActorCritic
from segpo_core.policy.inputs import Prompts
from segpo_core.policy.load import load_processor
from segpo_core.sampling.truncation import Truncation
from segpo_core.segments import count
from tests.fakes import families
from tests.fakes.toy import lucky_text

LENGTH = 8


def now_and_then(completions, **columns):
    """No verdict on every fifth text."""
    return [None if len(c if isinstance(c, str) else c[0]["content"]) % 5 == 0 else 0.5 for c in completions]


def make(tmp_path, method, images=False, reward_funcs=(lucky_text,), cls=SegmentGRPOTrainer, **settings):
    """A real trainer around a random model that reads texts, or texts and images."""
    path = (families.llava if images else families.llama)(tmp_path / "model", seed=3)
    auto = AutoModelForImageTextToText if images else AutoModelForCausalLM
    model = auto.from_pretrained(path, dtype=torch.float32)
    rows = [
        {"prompt": [{"role": "user", "content": f"{i} + 2 ="}], "answer": str(i + 2)}
        for i in range(4 if images else 16)
    ]
    if images:
        pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
        rows = [row | {"images": [Image.fromarray(p)]} for row, p in zip(rows, pixels, strict=True)]
    defaults = dict(
        output_dir=str(tmp_path / "trl"), report_to="none", use_cpu=True, bf16=False, per_device_train_batch_size=8,
        num_generations=4, max_completion_length=LENGTH, max_steps=2, learning_rate=1e-3, logging_steps=1,
        save_strategy="no", num_iterations=2, seed=1,
    )  # fmt: skip
    extra = {} if method is None else {"method": method}
    return cls(
        model=model,
        reward_funcs=list(reward_funcs),
        args=GRPOConfig(**defaults | settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=load_processor(path),
        **extra,
    )


def sampled(trainer, count=2):
    """A generation batch, as the training loop asks for it."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1  # the training loop's
    rows = [row for row in list(trainer.train_dataset)[:count] for _ in range(4)]
    return trainer._generate_and_score_completions(rows)


def our_loss(trainer, network):
    """The same loss by our own scoring and our own losses.py."""
    batch, credit = trainer.last
    method, rollouts = trainer.method, batch.rollouts
    prompts = Prompts.build(batch.examples, trainer.processing_class, network.model.config)
    scores = network(prompts.batch(rollouts.group), rollouts.completion_ids, rollouts.mask)
    loss, _ = losses.policy_loss(
        scores.logprobs, rollouts.old_logprobs, credit.advantages, credit.loss_mask,
        level=method.importance_sampling_level, segment_ids=credit.segment_ids, epsilon=method.epsilon,
        epsilon_high=method.epsilon_high, delta=method.delta, loss_type=method.loss_type, max_completion_length=LENGTH,
    )  # fmt: skip
    if method.beta:
        kl = losses.kl(scores.logprobs, rollouts.ref_logprobs, "k3", credit.loss_mask)
        loss = loss + method.beta * losses.aggregate(kl, credit.loss_mask, method.loss_type)
    return loss


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


CASES = {
    "grpo": GRPO(),
    "grpo, dual clip": GRPO(epsilon=0.05, epsilon_high=0.1, delta=1.2),
    "grpo, kl": GRPO(beta=0.1),
    "grpo, mean over completions": GRPO(loss_type="seq-mean-token-mean", scale_rewards="batch"),
    "dr. grpo": GRPO(loss_type="seq-mean-token-sum-norm", scale_rewards="none"),
    "grpo, sums": GRPO(loss_type="seq-mean-token-sum"),
    "rloo": RLOO(),
    "gspo": GSPO(),
    "tempo": TEMPO(),
    "tempo, segment ratio": TEMPO(importance_sampling_level="segment", epsilon=0.02),
    "80/20": EntropyTokens(),
    "srpo, segment ratio": SRPO(importance_sampling_level="segment"),
    "spo-chain, segment ratio": SPOChain(importance_sampling_level="segment", interval=2),
    "forks": Forks(),
}


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_is_that_of_our_own_loss(tmp_path, name):
    trainer = make(tmp_path, CASES[name])
    inputs = sampled(trainer)
    batch, credit = trainer.last
    assert "old_per_token_logps" in inputs  # two passes over a batch: ratios leave 1
    assert credit.loss_mask.any() and credit.advantages[credit.loss_mask].abs().max() > 0
    if name in ("tempo, segment ratio", "spo-chain, segment ratio"):
        assert count(credit.segment_ids).max() > 1
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    inputs["num_items_in_batch"] = inputs["num_items_in_batch"].float()
    theirs = trainer.compute_loss(trainer.model, inputs)
    network = ActorCritic(trainer.model, [], trainer.temperature)
    ours = our_loss(trainer, network)
    assert abs(float(theirs - ours)) < 1e-6 * max(1, abs(float(ours)))
    a, b = gradients(trainer.model, theirs), gradients(trainer.model, ours)
    assert b.abs().max() > 0
    assert (a - b).norm() < 3e-6 * b.norm()


def test_images_reach_the_contrast_and_the_loss(tmp_path):
    trainer = make(tmp_path, VPPO(fraction=0.5), images=True)
    inputs = sampled(trainer)
    batch, credit = trainer.last
    d = batch.rollouts.perception_contrast
    assert d[batch.rollouts.mask].abs().max() > 1e-3  # another image, other log-probabilities
    assert credit.loss_mask.sum() < batch.rollouts.mask.sum()
    ours = our_loss(trainer, ActorCritic(trainer.model, [], trainer.temperature))
    theirs = trainer.compute_loss(trainer.model, inputs)
    a, b = gradients(trainer.model, theirs), gradients(trainer.model, ours)
    assert (a - b).norm() < 3e-6 * b.norm()


def test_an_unjudged_completion_teaches_nothing(tmp_path):
    trainer = make(tmp_path, GRPO(), reward_funcs=[now_and_then], per_device_train_batch_size=16)
    inputs = sampled(trainer, 4)
    unjudged = trainer.last[0].rollouts.rewards.isnan()
    assert 0 < unjudged.sum() < len(unjudged)
    assert not inputs["tool_mask"][unjudged].any()
    assert inputs["num_items_in_batch"] == inputs["tool_mask"].sum()


@pytest.mark.parametrize("method", [TEMPO(importance_sampling_level="segment"), SPOChain()], ids=lambda m: m.name)
def test_it_trains(tmp_path, method):
    settings = dict(gradient_accumulation_steps=2, num_iterations=1, per_device_train_batch_size=4, max_steps=3)
    trainer = make(tmp_path, method, reward_funcs=[lucky_text, now_and_then], gradient_checkpointing=True, **settings)
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    assert trainer.state.global_step == 3
    assert any(not torch.equal(before[name], p) for name, p in trainer.model.named_parameters())
    logged = [entry for entry in trainer.state.log_history if "segments" in entry]
    assert len(logged) == 3 and all(np.isfinite(entry["grad_norm"]) for entry in logged)
    # what TRL shows of credit is the method's
    batch, credit = trainer.last
    means = (credit.advantages.nan_to_num() * credit.loss_mask).sum(1) / credit.loss_mask.sum(1).clamp(min=1)
    torch.testing.assert_close(torch.tensor(list(trainer._logs["advantages"]))[-8:], means)


def test_chains_draw_from_what_trl_draws_from(tmp_path, monkeypatch):
    made = []

    class Noting(bridge.InProcess):
        def decode(self, *args, **kwargs):
            made.append((self.truncation, super().decode(*args, **kwargs)))
            return made[-1][1]

    monkeypatch.setattr(bridge, "InProcess", Noting)
    make(tmp_path, SPOChain(num_continuations=2), top_p=0.8, top_k=4, min_p=0.01, max_steps=1).train()
    assert made and all(cut == Truncation(0.8, 4, 0.01) for cut, _ in made)
    left = torch.cat([draw.truncated[draw.truncated != 0] for _, draw in made])
    whole = torch.cat([draw.logprobs[draw.truncated != 0] for _, draw in made])
    assert len(left) and (left > whole + 0.5).all(), "four tokens of a random model have little of all probability"


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        (SAPO(), {}, "trains no critic"),
        (PPO(), {}, "trains no critic"),
        (SPOTree(), {}, "samples groups"),
        (PAPO(), {}, "adds a term to the loss"),
        (TEMPO(importance_sampling_level="segment", beta=0.1), {}, "segment means"),
        (GRPO(beta=0.1, kl_in="reward"), {}, "in the reward"),
        (GRPO(beta=0.1, kl_estimator="k2"), {}, "set to k2"),
        (GRPO(), {"epsilon": 0.3}, "epsilon is 0.3 in GRPOConfig and 0.2 in the method"),
        (GRPO(), {"loss_type": "cispo"}, "loss_type is 'cispo'"),
        (GRPO(), {"use_liger_kernel": True}, "use_liger_kernel"),
        (GRPO(), {"multi_objective_aggregation": "normalize_then_sum"}, "weighted sum"),
        (Forks(), {"top_p": 0.9}, "TRL does not say what top_p 0.9 left of them"),
        (SPOChain(), {"repetition_penalty": 1.1}, "samples on without repetition_penalty"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, method, settings, words):
    with pytest.raises(ValueError, match=words):
        make(tmp_path, method, **settings)


def test_no_sampling_on_beside_tools(tmp_path):
    with pytest.raises(ValueError, match="rollout_func makes completions"):
        SegmentGRPOTrainer("nothing", [lucky_text], GRPOConfig(use_cpu=True), method=Forks(), rollout_func=print)
