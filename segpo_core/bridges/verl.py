"""Advantage estimators for verl, of our methods that ask for nothing but the group.

    VERL_USE_EXTERNAL_MODULES=segpo_core.bridges.verl python -m verl.trainer.main_ppo \\
        algorithm.adv_estimator=segpo_tempo critic.enable=False ...

verl imports the module in every process, and the module registers itself: `segpo_grpo`, `segpo_rloo`, `segpo_tempo`,
and with `register` any method of your own that reads ids, rewards and groups. An estimator of verl's is given rewards,
mask and group; the ids, which TEMPO's prefix tree is made of, are taken from the batch for which `compute_advantage` is
called.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segpo_core.algos import GRPO, RLOO, TEMPO, Method
from segpo_core.types import Rollouts

Estimator = Callable[..., tuple[Tensor, Tensor]]

_batch: contextvars.ContextVar[Mapping[str, Any] | None] = contextvars.ContextVar("batch", default=None)


def advantages(
    method: Method,
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: Sequence[Any] | np.ndarray,
    responses: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """A method's credit in verl's terms: (advantages, returns), both float32 [B, T], 0 where the mask is 0.

    Args:
        method: one that reads ids, rewards and groups only.
        token_level_rewards: float [B, T]; a completion's reward is their sum over the mask, KL terms in it.
        response_mask: [B, T], 1 at the policy's own tokens; in several turns it has holes.
        index: B names of the prompts; completions of one prompt have the same.
        responses: long [B, T], the token ids; None: the method does not look at them.

    Raises:
        ValueError: a method that needs more, or that keeps some tokens out of the loss, whose mask is verl's.
    """
    _check(method)
    chosen = response_mask.bool()
    after = chosen.flip(1).cumsum(1).flip(1) > 0  # up to the last own token: what a tool wrote is part of the text
    unknown = torch.where(after, torch.nan, 0.0)
    _, group = np.unique(np.asarray(index), return_inverse=True)
    rollouts = Rollouts(
        completion_ids=torch.zeros_like(chosen, dtype=torch.long) if responses is None else responses,
        mask=after,
        group=torch.from_numpy(group).to(chosen.device),
        finished=torch.ones(len(chosen), dtype=torch.bool, device=chosen.device),
        sampled_logprobs=unknown,
        entropy=unknown,
        rewards=torch.where(chosen, token_level_rewards, 0.0).sum(dim=1).float(),
    )
    credit = method.credit(rollouts)
    if bool((credit.loss_mask != after).any()):
        raise ValueError(
            f"{method.title} keeps tokens out of the loss, and an estimator of verl's cannot: train it with segpo or "
            "TRL"
        )
    result = torch.where(chosen, credit.advantages, 0.0)
    if bool(result.isnan().any()):
        raise ValueError(
            f"{method.title} needs log-probabilities, entropies or values of tokens, which an estimator of verl's is "
            "not given: train it with segpo or TRL"
        )
    return result, result


def estimator(method: Method) -> Estimator:
    """The method as verl calls it: `f(token_level_rewards=, response_mask=, index=, config=, **more)`."""
    _check(method)
    looks = method.name not in ("grpo", "rloo")

    def estimate(
        token_level_rewards: Tensor, response_mask: Tensor, index: Any = None, config: Any = None, **more: Any
    ) -> tuple[Tensor, Tensor]:
        if index is None:
            raise ValueError(f"{method.title} compares completions of one prompt, and this batch has no uid")
        batch = more.get("batch") if more.get("batch") is not None else _batch.get()
        ids = batch["responses"] if batch is not None and "responses" in batch.keys() else None  # noqa: SIM118
        if looks and ids is None:
            raise ValueError(
                f"{method.title} needs the token ids, and this version of verl hands its estimators no batch: import "
                "segpo_core.bridges.verl before its trainer calls compute_advantage, or pass batch="
            )
        return advantages(method, token_level_rewards, response_mask, index, ids)

    estimate.__name__ = estimate.__qualname__ = f"segpo_{method.name}"
    return estimate


def register(method: Method, register_adv_est: Callable[[str], Callable[[Estimator], Estimator]] | None = None) -> str:
    """Make the method known to verl, as `algorithm.adv_estimator=segpo_<its name>`, which is returned.

    Args:
        method: see `advantages`.
        register_adv_est: verl's decorator; None: the installed verl's.
    """
    if register_adv_est is None:
        from verl.trainer.ppo import core_algos

        register_adv_est = core_algos.register_adv_est
    name = f"segpo_{method.name}"
    register_adv_est(name)(estimator(method))
    return name


def hand_batch(trainer_module: Any) -> None:
    """Let estimators see the batch for which verl's `compute_advantage` is called."""
    inner = trainer_module.compute_advantage
    if getattr(inner, "hands_batch", False):
        return

    def compute_advantage(data: Any, *args: Any, **kwargs: Any) -> Any:
        token = _batch.set(data.batch)
        try:
            return inner(data, *args, **kwargs)
        finally:
            _batch.reset(token)

    compute_advantage.hands_batch = True  # type: ignore[attr-defined]
    trainer_module.compute_advantage = compute_advantage


def _check(method: Method) -> None:
    if method.uses_critic:
        raise ValueError(f"{method.title} learns values of its own: train it with segpo")
    samples = type(method).collect is not Method.collect or type(method).estimate is not Method.estimate
    if samples or method.uses_contrasts or method.uses_image_contrast:
        raise ValueError(
            f"{method.title} samples or scores more than the group, which an estimator of verl's cannot: train it with "
            "segpo or TRL"
        )
    if method.beta:
        raise ValueError(
            "beta is not 0: verl has KL settings of its own (algorithm.use_kl_in_reward, actor.use_kl_loss)"
        )


if find_spec("verl") is not None:
    from verl.trainer.ppo import ray_trainer

    for _method in (GRPO(), RLOO(), TEMPO()):
        register(_method)
    hand_batch(ray_trainer)
