"""The arms: what gives credit to the completions of the truth. An arm is named as on the command line."""

from __future__ import annotations

import copy
import time
from dataclasses import replace

import torch
import yaml
from torch import Tensor

from segpo_core import segments
from segpo_core.advantages import segment_gae, token_rewards
from segpo_core.afterwards.bench_credit.critics import critic_values
from segpo_core.afterwards.bench_credit.gradient import cosine, gradient
from segpo_core.afterwards.bench_credit.judged import Judged, judge
from segpo_core.afterwards.bench_credit.truth import Truth, differences, estimate
from segpo_core.algos import METHODS, Forks, Method, SPOTree
from segpo_core.algos.vineppo import ChainMethod
from segpo_core.config import from_dict
from segpo_core.policy.contrasts import contrasts, image_contrast
from segpo_core.policy.logprobs import backbone
from segpo_core.sampling.chains import estimate_values

#: Arms that are no method, with their settings.
OTHERS = {
    "oracle": ("noise",), "shuffled": (), "uniform": (), "sampled": ("n",), "true_values": ("lam", "segments"),
}  # fmt: skip
LAMBDAS = ("0", "0.8", "0.95", "0.99", "1")
#: Segmentations that true values are tried under.
CUTS = {
    "token": lambda r: segments.token_level(r.mask),
    "entropy": lambda r: segments.entropy_topk(r.entropy, r.mask, 0.3),
    "cutpoints": lambda r: segments.cutpoints(r.sampled_logprobs.exp(), r.mask, 0.9, 5),
    "cutpoint": lambda r: segments.cutpoints(r.sampled_logprobs.exp(), r.mask, 0.9, 1),
    "roles": lambda r: segments.roles(segments.role_ids(r.pieces, r.mask)[0], r.mask),
    "forks": lambda r: Forks().segments(r),
    "sequence": lambda r: segments.sequence_level(r.mask),
}
TRUE_VALUES = tuple(f"true_values segments={cut} lam={lam}" for cut in CUTS if cut != "sequence" for lam in LAMBDAS)

BOUNDS = ("oracle", "oracle noise=0.05", "oracle noise=0.2", "shuffled", "uniform")
#: Every method as its paper has it, and a small grid.
METHOD_ARMS = (
    "grpo", "rloo", "gspo", "vineppo", "srpo", "srpo corruption=mask", "srpo corruption=noise", "srpo corruption=other",
    "spo_chain", "spo_chain interval=2", "spo_chain interval=1", "spo_chain interval=1 num_continuations=32",
    "entropy_tokens", "tempo", "vppo", "pgpo",
    "forks", "forks num_continuations=2", "forks num_continuations=32", "forks least_open=0.01",
    "forks least_open=0.2", "forks least_open=0.5", "forks reading=segment", "forks mask=true",
)  # fmt: skip
CRITICS = (
    "ppo", "vcppo", "sapo", "sapo lam=0.8", "sapo lam=0", "sapo updates=300", "sapo updates=300 lam=0.8",
    "ppo updates=300", "ppo updates=300 lam=0.8",
    "sapo critic_learning_rate=1e-3 updates=300", "sapo critic_learning_rate=1e-3 updates=300 lam=0.8",
    "sapo critic_learning_rate=1e-3 updates=1000", "sapo critic_learning_rate=1e-3 updates=1000 lam=0.8",
)  # fmt: skip
#: Critics with a backbone of their own: slow.
SLOW = tuple(
    f"sapo critic=model critic_learning_rate=5e-4{updates}{lam}" for updates in ("", " updates=300")
    for lam in ("", " lam=0.8")
)  # fmt: skip
TREES = ("spo_tree branch=(4,4)", "treerl branch=(4,4)")
SAMPLED = ("sampled n=4", "sampled n=9", "sampled n=64")
SMALL = ("oracle", "shuffled", "uniform", "sampled n=9", "sampled n=64", "grpo", "spo_chain", "forks")
ALL = (*BOUNDS, *METHOD_ARMS, *CRITICS, *TRUE_VALUES, *TREES, *SLOW, *SAMPLED)


def parse(arm: str) -> tuple[str, dict[str, str]]:
    """Name and settings of an arm such as "spo_chain interval=1".

    Raises:
        ValueError: a setting without "=".
    """
    name, *settings = arm.split()
    if wrong := [item for item in settings if "=" not in item]:
        raise ValueError(f"arm {arm!r}: {wrong[0]!r} is no setting; write NAME setting=value")
    return name, dict(item.split("=", 1) for item in settings)


def check(arm: str) -> None:
    """Raise ValueError where there is no such arm or setting."""
    name, settings = parse(arm)
    if name not in OTHERS:
        method_of(name, settings)
        return
    if unknown := set(settings) - set(OTHERS[name]):
        known = ", ".join(OTHERS[name]) or "none"
        raise ValueError(f"arm {arm!r}: {name} has no setting {min(unknown)!r}; it has: {known}")
    if settings.get("segments", "token") not in CUTS:
        raise ValueError(f"arm {arm!r}: segments must be one of {', '.join(CUTS)}")


def method_of(name: str, settings: dict[str, str]) -> tuple[Method, int]:
    """The method with these settings, and the updates that its critic learns for (`updates`, default 60).

    Raises:
        ValueError: no such arm, or an unknown setting.
    """
    if name not in METHODS:
        if "=" in name:
            raise ValueError(f"{name!r} is a setting, no arm: quote it with its arm, as in 'forks {name}'")
        raise ValueError(f"unknown arm {name!r}; known: {', '.join([*METHODS, *OTHERS])}")
    values = {key: _read(value) for key, value in settings.items()}
    updates = values.pop("updates", 60)
    method = from_dict(values | {"method": name, "output_dir": "unused"}, f"the arm {name}").algo
    if "updates" in settings and not (method.uses_critic and isinstance(updates, int) and updates > 0):
        raise ValueError(f"arm {name}: updates={settings['updates']} must be a number, of a method with a critic")
    return method, updates


def _read(value: str) -> object:
    """A setting's value: YAML's, and tuples in round brackets."""
    if value.startswith("(") and value.endswith(")"):
        value = f"[{value[1:-1]}]"
    if value.replace("e-", "", 1).replace(".", "", 1).isdigit() and "e-" in value:
        return float(value)  # YAML wants a point in 5e-4
    return yaml.safe_load(value)


class Counter:
    """Tokens that go through a model, whatever asks it; padding included."""

    def __init__(self, model: torch.nn.Module):
        self.tokens = 0
        self.hook = model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        self.tokens += 0 if ids is None else ids.numel()


def judged(arm: str, truth: Truth, seed: int = 0, with_gradient: bool = False) -> Judged:
    """What an arm says of the completions of one policy; `seed` names what it draws."""
    name, settings = parse(arm)
    method, updates = (None, 0) if name in OTHERS else method_of(name, settings)
    if isinstance(method, SPOTree):
        return _trees(method, truth, seed)
    if method is not None and method.uses_critic:
        critic_of(method, updates, truth)  # its training is no cost of these completions
    sampler, extra = truth.policy.sampler, 0
    begin, before = time.perf_counter(), sampler.tokens_computed
    if method is None:
        credit, z, states = _other(name, settings, truth, seed)
    else:
        credit, z, states, extra = _method(method, updates, truth, seed)
    size = len(credit)
    tokens, seconds = (sampler.tokens_computed - before + extra) / size, (time.perf_counter() - begin) / size
    along = float("nan")
    if with_gradient:
        along = cosine(gradient(truth.policy.network, truth.prompts, truth.rollouts, credit), truth.gradient)
    return judge(credit, z, truth.rollouts, truth.values, truth.advantages, states, tokens, seconds, along)


def _other(name: str, settings: dict[str, str], truth: Truth, seed: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """(credit, segment ids, values) of an arm that is no method."""
    rollouts, true = copy.copy(truth.rollouts), truth.advantages
    mask, generator = rollouts.mask, torch.Generator().manual_seed(seed)
    z, states = segments.token_level(mask), None
    if name == "oracle":
        noise = float(settings.get("noise", 0)) * torch.randn(true.shape, generator=generator)
        credit = torch.where(mask, true + noise, 0)
    elif name == "shuffled":
        credit = true.gather(1, torch.where(mask, torch.rand(true.shape, generator=generator), 2).argsort(1))
    elif name == "uniform":
        credit = torch.where(mask, rollouts.rewards[:, None] - truth.values[:, :1], 0)
        z = segments.sequence_level(mask)
    elif name == "sampled":
        number = int(settings.get("n", 9))
        estimate_values(truth.policy.sampler, truth.prompts, rollouts, mask, number, truth.reward_of, (seed, 7))
        credit, states = differences(rollouts.mc_values, rollouts), rollouts.mc_values
    else:
        z = CUTS[settings.get("segments", "token")](rollouts)
        r = token_rewards(rollouts.rewards, mask)
        credit = segment_gae(r, truth.values, z, 1.0, float(settings.get("lam", 0.99)))[0]
    return credit, z, states


def critic_of(method: Method, updates: int, truth: Truth) -> Tensor:
    return critic_values(truth, method.critic, updates, method.critic_rate)


def _method(method: Method, updates: int, truth: Truth, seed: int) -> tuple[Tensor, Tensor, Tensor | None, int]:
    """(credit, segment ids, values, tokens of scoring passes beyond sampling) of a method.

    A critic's training is in no figure of cost: it is shared by all steps of a run."""
    rollouts = replace(truth.rollouts, old_logprobs=truth.rollouts.sampled_logprobs)
    policy, counter = truth.policy, None
    if method.uses_critic:
        rollouts.values = critic_of(method, updates, truth)
    if isinstance(method, ChainMethod):
        method.estimate(policy.sampler, truth.prompts, rollouts, truth.reward_of, (seed, 7), 0)
    if method.uses_contrasts or method.uses_image_contrast:
        counter = Counter(backbone(policy.model))
        common = policy.network, truth.examples, truth.prompts, rollouts, policy.processor, method.corruption, (seed,)
        if method.uses_contrasts:
            rollouts.perception_contrast, rollouts.reasoning_contrast = contrasts(*common)
        else:
            rollouts.perception_contrast = image_contrast(*common)
        counter.hook.remove()
    made = method.credit(rollouts)
    credit = torch.where(made.loss_mask, made.advantages, 0).nan_to_num()
    return credit, made.segment_ids, made.state_values, counter.tokens if counter else 0


#: Problems of each policy that trees are grown for, and how their truth is known (as make_truth.py's).
TREE_PROBLEMS, NUMBER, LEAST_OPEN = 3, 400, 0.001


def _trees(method: SPOTree, truth: Truth, seed: int) -> Judged:
    """A method that samples its own completions is judged on those, each whole, whoever holds a token for the update:
    their values are made as the truth's were. Its values cost nothing beyond the sampling of what is learnt from."""
    own = replace(truth, examples=truth.examples[:TREE_PROBLEMS], critics={}, pool=None)
    own.rollouts = method.collect(own.policy.sampler, own.prompts, 1, (seed, 11), 0)
    own.rollouts.rewards = torch.tensor(own.reward_of(own.rollouts.group.tolist(), own.rollouts.texts))
    own.rollouts.truth = own.facts()
    own.values, own.stderr = estimate(own, NUMBER, LEAST_OPEN, (314159,))
    begin, rollouts = time.perf_counter(), own.rollouts
    made = method.credit(rollouts)
    kept = rollouts.mask & (rollouts.sampled_logprobs.exp() < method.threshold)
    credit = torch.where(kept, made.advantages, 0).nan_to_num()
    seconds = (time.perf_counter() - begin) / len(credit)
    return judge(credit, made.segment_ids, rollouts, own.values, own.advantages, made.state_values, 0.0, seconds)
