"""The arms: what gives credit to the completions of the truth. An arm is named as on the command line."""

from __future__ import annotations

import copy
import time
from dataclasses import replace

import torch
from torch import Tensor

from segpo_core.advantages import gae, token_rewards
from segpo_core.afterwards.bench_credit.truth import Truth, differences
from segpo_core.algos import METHODS
from segpo_core.algos.vineppo import ChainMethod
from segpo_core.config import from_dict
from segpo_core.sampling.chains import estimate_values
from segpo_core.segments import sequence_level, token_level

#: Arms that are no method: what bounds the others, above and below.
BOUNDS = ("oracle", "oracle noise=0.1", "shuffled", "uniform", "sampled n=9", "sampled n=64")
#: True values under a λ: what the way from values to advantages loses.
LAMBDAS = tuple(f"true_values lam={lam}" for lam in ("0.99", "0.95", "0.8", "0.5", "0.0"))
SMALL = ("oracle", "shuffled", "uniform", "sampled n=9", "sampled n=64", "grpo", "spo_chain", "forks")
ALL = (
    *BOUNDS, *LAMBDAS, "grpo", "rloo", "gspo", "vineppo", "spo_chain", "spo_chain interval=1", "forks",
    "forks num_continuations=2", "forks reading=segment", "forks least_open=0.5",
)  # fmt: skip


def parse(arm: str) -> tuple[str, dict[str, str]]:
    """Name and settings of an arm such as "spo_chain interval=1".

    Raises:
        ValueError: a setting without "=".
    """
    name, *settings = arm.split()
    if wrong := [item for item in settings if "=" not in item]:
        raise ValueError(f"arm {arm!r}: {wrong[0]!r} is no setting; write NAME setting=value")
    return name, dict(item.split("=", 1) for item in settings)


def method_of(name: str, settings: dict[str, str]):
    """The method with these settings.

    Raises:
        ValueError: no such arm, a method whose critic or contrasts the truth has no part of, or an unknown setting.
    """
    if name not in METHODS:
        raise ValueError(f"unknown arm {name!r}; known: {', '.join([*METHODS, 'oracle', 'shuffled', 'uniform'])}, "
                         "sampled n=N, true_values lam=λ, oracle noise=σ")  # fmt: skip
    import yaml

    values = {key: yaml.safe_load(value) for key, value in settings.items()}
    method = from_dict(values | {"method": name, "output_dir": "unused"}, f"the arm {name}").algo
    if method.uses_critic or method.uses_contrasts or name == "spo_tree":
        raise ValueError(
            f"{method.title} needs a critic, contrasts or trees that the ground truth does not hold; arms without: "
            "ppo and sapo with true values are 'true_values lam=λ'"
        )
    return method


def credit_of(arm: str, truth: Truth, seed: int = 0) -> tuple[Tensor, Tensor, float, float]:
    """(credit [B, T], 0 outside the loss; segment ids; tokens computed for it a completion; seconds)."""
    name, settings = parse(arm)
    rollouts, sampler = copy.copy(truth.rollouts), truth.policy.sampler
    mask, true = rollouts.mask, truth.advantages
    generator = torch.Generator().manual_seed(seed)
    begin, before = time.perf_counter(), sampler.tokens_computed
    z = token_level(mask)
    if name == "oracle":
        noise = float(settings.get("noise", 0)) * torch.randn(true.shape, generator=generator)
        credit = torch.where(mask, true + noise, 0)
    elif name == "shuffled":
        order = torch.where(mask, torch.rand(true.shape, generator=generator), 2).argsort(1)
        credit = true.gather(1, order)
    elif name == "uniform":
        credit, z = torch.where(mask, rollouts.rewards[:, None] - truth.values[:, :1], 0), sequence_level(mask)
    elif name == "sampled":
        number = int(settings.get("n", 9))
        estimate_values(sampler, truth.prompts, rollouts, mask, number, truth.reward_of, (seed, 7))
        credit = differences(rollouts.mc_values, rollouts)
    elif name == "true_values":
        r = token_rewards(rollouts.rewards, mask)
        credit = gae(r, truth.values, mask, 1.0, float(settings.get("lam", 0.99)))[0]
    else:
        method = method_of(name, settings)
        if isinstance(method, ChainMethod):
            method.estimate(sampler, truth.prompts, rollouts, truth.reward_of, (seed, 7), 0)
        made = method.credit(replace(rollouts, old_logprobs=rollouts.sampled_logprobs))
        credit, z = torch.where(made.loss_mask, made.advantages, 0).nan_to_num(), made.segment_ids
    tokens = (sampler.tokens_computed - before) / len(mask)
    return credit, z, tokens, time.perf_counter() - begin
