"""Critics of a frozen policy, for arms that need one.

A critic learns what the policy's completions of training problems earned: the squared distance to the reward at every
token (λ = 1), while the policy stays as it is. That is the best case of a critic: in training, its target moves.
"""

from __future__ import annotations

import torch
from torch import Tensor

from segpo_core.afterwards.bench_credit.truth import Truth
from segpo_core.policy.critic import ActorCritic
from segpo_core.policy.inputs import Prompts, extend, position_ids
from segpo_core.policy.logprobs import backbone
from segpo_core.training import evaluate
from segpo_core.types import Rollouts

#: What a critic learns from: completions of so many training problems, so many of each; updates take some in turn.
PROBLEMS, COMPLETIONS, BATCH = 128, 8, 32
#: Updates after which a critic is asked; the most of them is how long it learns.
UPDATES = (60, 300)


def critic_values(truth: Truth, kind: str, updates: int, rate: float) -> Tensor:
    """float32 [B, T]: what the critic says of the truth's completions after so many updates.

    Args:
        kind: "head" on the policy's backbone, or "model" with one of its own.
        updates: one of `UPDATES`, or any number.
        rate: its learning rate.
    """
    known = truth.critics
    if (kind, rate, updates) not in known:
        wanted = sorted({updates, *(n for n in UPDATES if n < updates)})
        for number, values in zip(wanted, _learn(truth, kind, wanted, rate), strict=True):
            known[kind, rate, number] = values
    return known[kind, rate, updates]


def _learn(truth: Truth, kind: str, updates: list[int], rate: float) -> list[Tensor]:
    torch.manual_seed(0)
    network = ActorCritic(truth.policy.model, truth.policy.network.head.suppressed.tolist(), critic=kind)
    prompts, pool = _pool(truth)
    whose = network.value_backbone if kind == "model" else backbone(truth.policy.model)
    fixed = None if kind == "model" else _hidden(network, whose, prompts, pool)
    learnt = [p for name, p in network.named_parameters() if name.startswith("value_")]
    optimizer = torch.optim.AdamW(learnt, lr=rate, weight_decay=0.0)
    order, asked = torch.Generator().manual_seed(0), []
    rows = torch.randperm(len(pool), generator=order)
    for update in range(1, max(updates) + 1):
        if len(rows) < BATCH:
            rows = torch.randperm(len(pool), generator=order)
        some, rows = rows[:BATCH], rows[BATCH:]
        batch = pool.select(some)
        hidden = fixed[some] if fixed is not None else _states(network, whose, prompts, batch)
        values = network.value_head(hidden)[:, : batch.mask.shape[1]]
        mask = batch.mask
        loss = 0.5 * (values - batch.rewards[:, None])[mask].square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learnt, 1.0)
        optimizer.step()
        if update in updates:
            asked.append(_ask(network, whose, truth))
    return asked


@torch.no_grad()
def _ask(network: ActorCritic, whose: torch.nn.Module, truth: Truth) -> Tensor:
    hidden = _states(network, whose, truth.prompts, truth.rollouts)
    return torch.where(truth.rollouts.mask, network.value_head(hidden), 0)


def _pool(truth: Truth) -> tuple[Prompts, Rollouts]:
    """Completions of training problems, with rewards; sampled once a policy."""
    if truth.pool is None:
        examples = [truth.task.train(i) for i in range(PROBLEMS)]
        prompts = Prompts.build(examples, truth.policy.processor, truth.policy.model.config)
        rollouts = truth.policy.sampler.groups(prompts, COMPLETIONS, (577215,))
        total, _ = evaluate.reward_texts(
            truth.policy.reward_funcs, truth.policy.reward_weights, examples, rollouts.group.tolist(), rollouts.texts
        )
        rollouts.rewards = torch.tensor(total)
        truth.pool = prompts, rollouts
    return truth.pool


@torch.no_grad()
def _hidden(network: ActorCritic, whose: torch.nn.Module, prompts: Prompts, rollouts: Rollouts) -> Tensor:
    """[B, T, H], the hidden state before each token, of all rows: a frozen backbone says it once."""
    parts = [_states(network, whose, prompts, rollouts.select(rows)) for rows in torch.arange(len(rollouts)).split(64)]
    return torch.cat(parts)


def _states(network: ActorCritic, whose: torch.nn.Module, prompts: Prompts, rollouts: Rollouts) -> Tensor:
    batch = prompts.batch(rollouts.group, "cpu")
    inputs = extend(batch, rollouts.completion_ids, rollouts.mask)
    inputs["position_ids"] = position_ids(network.model, inputs)
    states = whose(**inputs, use_cache=False).last_hidden_state
    return states[:, -rollouts.mask.shape[1] - 1 : -1]
