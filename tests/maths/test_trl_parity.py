"""TRL's own code and ours, on the same tensors: equal losses, gradients and advantages."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
import trl
from hypothesis import given, settings
from hypothesis import strategies as st

from segpo_core.advantages import group_relative, leave_one_out
from segpo_core.losses import aggregate, kl, policy_loss

LENGTH = 24
LOSS_TYPES = {  # TRL's names for what we call by what it does
    "grpo": "seq-mean-token-mean",
    "bnpo": "token-mean",
    "dapo": "token-mean",
    "luspo": "seq-mean-token-sum",
    "dr_grpo": "seq-mean-token-sum-norm",
}


# --- the GRPO loss --------------------------------------------------------------------------------


def trl_grpo_loss(
    b: SimpleNamespace, loss_type: str, level: str, epsilon_high: float, delta: float | None, beta: float
):
    """`GRPOTrainer._compute_loss` itself, on an object that holds just what it reads: (loss, metrics)."""
    shape = b.mask.shape
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (b.new, torch.zeros(shape), None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=level,
        beta=beta,
        loss_type=loss_type,
        epsilon_low=0.2,
        epsilon_high=epsilon_high,
        args=SimpleNamespace(use_bias_correction_kl=False, delta=delta, steps_per_generation=1),
        use_vllm=False,
        max_completion_length=LENGTH,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=False,
        accelerator=SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x),
        _metrics={"train": defaultdict(list)},
    )
    ids = torch.zeros(shape, dtype=torch.long)
    inputs = {
        "prompt_ids": ids,
        "prompt_mask": ids,
        "completion_ids": ids,
        "completion_mask": b.mask.long(),
        "advantages": b.advantages,
        "old_per_token_logps": b.old,
        "ref_per_token_logps": b.ref,
        "num_items_in_batch": b.mask.sum(),
    }
    return trl.GRPOTrainer._compute_loss(trainer, None, inputs), trainer._metrics["train"]


def random_batch(seed: int) -> SimpleNamespace:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, LENGTH + 1, (6, 1), generator=generator)
    old, drift, ref = (torch.randn(6, LENGTH, generator=generator) for _ in range(3))
    return SimpleNamespace(
        mask=torch.arange(LENGTH) < lengths,
        old=-old.abs(),
        new=(0.5 * drift - old.abs()).requires_grad_(),
        ref=0.3 * ref - old.abs(),
        advantages=torch.randn(6, generator=generator),
    )


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("epsilon_high", [0.2, 0.28])
@pytest.mark.parametrize("delta", [None, 1.5])
@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_grpo_loss_and_gradient(loss_type, level, epsilon_high, delta, beta):
    for seed in range(3):
        b = random_batch(seed)
        theirs, metrics = trl_grpo_loss(b, loss_type, level, epsilon_high, delta, beta)
        how = {"loss_type": LOSS_TYPES[loss_type], "max_completion_length": LENGTH}
        ours, stats = policy_loss(
            b.new, b.old, b.advantages, b.mask, level=level, epsilon_high=epsilon_high, delta=delta, **how
        )
        if beta:
            ours = ours + beta * aggregate(kl(b.new, b.ref, "k3", b.mask), b.mask, **how)
        torch.testing.assert_close(ours, theirs)
        gradients = [torch.autograd.grad(loss, b.new)[0] for loss in (ours, theirs)]
        assert gradients[0].abs().max() > 0
        torch.testing.assert_close(*gradients)

        if level == "token":  # at the other level TRL averages over completions, we over tokens
            for name in ("low", "high", "region"):
                assert stats[f"clip_ratio/{name}"].item() == pytest.approx(metrics[f"clip_ratio/{name}_mean"][0])


def test_the_cases_reach_every_branch():
    """Else the parity above would be that of an unclipped loss."""
    for level in ("token", "sequence"):
        stats = [
            policy_loss(b.new, b.old, b.advantages, b.mask, level=level, delta=1.5)[1]
            for b in map(random_batch, range(3))
        ]
        for name in ("clip_ratio/low", "clip_ratio/high", *(["clip_ratio/dual"] if level == "token" else [])):
            assert sum(s[name] for s in stats) > 0, (level, name)


# --- advantages -----------------------------------------------------------------------------------


class Replay:
    """A reward function that gives out a prepared list."""

    __name__ = "replay"

    def __init__(self) -> None:
        self.rewards: list[float | None] = []

    def __call__(self, completions, **columns) -> list[float | None]:
        return self.rewards[: len(completions)]


GENERATIONS, PROMPTS = 4, 3


def make_trainer(cls, config_cls, directory, **options):
    """A real trainer around a random model of a few hundred weights."""
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"<pad>": 0, "<eos>": 1, "a": 2, "b": 3, "c": 4}, unk_token="<pad>"))
    words.pre_tokenizer = Whitespace()
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=5,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=1,
        )
    )
    replay = Replay()
    trainer = cls(
        model=model,
        reward_funcs=replay,
        args=config_cls(
            output_dir=str(directory),
            report_to="none",
            use_cpu=True,
            bf16=False,
            per_device_train_batch_size=GENERATIONS * PROMPTS,
            num_generations=GENERATIONS,
            max_completion_length=3,
            beta=0.0,
            **options,
        ),
        train_dataset=Dataset.from_list([{"prompt": p} for p in ("a b", "b c", "c a")]),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>"),
    )
    trainer.model.train()

    def advantages(rewards: list[float | None]) -> torch.Tensor:
        replay.rewards = rewards
        prompts = [{"prompt": p} for p in ("a b", "b c", "c a") for _ in range(GENERATIONS)]
        return trainer._generate_and_score_completions(prompts)["advantages"]

    return advantages


@pytest.fixture(scope="module")
def trl_advantages(tmp_path_factory):
    """name → TRL's advantages of a list of rewards."""
    directory = tmp_path_factory.mktemp("trl")
    made = {
        f"grpo-{scale}": make_trainer(trl.GRPOTrainer, trl.GRPOConfig, directory, scale_rewards=scale)
        for scale in ("group", "batch", "none")
    }
    made["rloo"] = make_trainer(trl.RLOOTrainer, trl.RLOOConfig, directory)
    return made


numbers = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(-2, 2, width=32), st.none())


@pytest.mark.parametrize("name", ["grpo-group", "grpo-batch", "grpo-none", "rloo"])
@settings(max_examples=12)
@given(rewards=st.lists(numbers, min_size=GENERATIONS * PROMPTS, max_size=GENERATIONS * PROMPTS))
def test_advantages(trl_advantages, name, rewards):
    """A reward function may answer None: such a completion counts for nothing, in TRL and here."""
    ours = torch.tensor([float("nan") if r is None else r for r in rewards])
    group = torch.arange(PROMPTS).repeat_interleave(GENERATIONS)
    if name == "rloo":
        ours = leave_one_out(ours, group)
    else:
        ours = group_relative(ours, group, scale=name.removeprefix("grpo-"))
    torch.testing.assert_close(ours, trl_advantages[name](rewards), atol=1e-4, rtol=1e-4)
