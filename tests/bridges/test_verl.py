"""Our credit by verl's calling convention, as its `compute_advantage` has it. verl itself is not installed here."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from segpo_core.algos import GRPO, RLOO, SAPO, SRPO, TEMPO, EntropyTokens, Forks, SPOTree
from segpo_core.bridges import verl
from segpo_core.types import Rollouts, length_mask

G, T = 4, 9


def batch(seed=0, prompts=3, least=2):
    """Tensors as verl names them, with the group's rows apart from each other, and rewards on the last token."""
    generator = torch.Generator().manual_seed(seed)
    n = G * prompts
    lengths = torch.randint(least, T + 1, (n,), generator=generator)
    order = torch.randperm(n, generator=generator)
    mask = length_mask(lengths, T)
    rewards = torch.zeros(n, T)
    rewards[torch.arange(n), lengths - 1] = torch.randint(0, 2, (n,), generator=generator).float()
    return {
        "token_level_rewards": rewards,
        "response_mask": mask.long(),
        "responses": torch.randint(0, 2, (n, T), generator=generator),
        "uid": np.array([f"uid-{int(i) % prompts}" for i in order], dtype=object),
    }


def as_verl_does(data, registry, name):
    """What verl's `compute_advantage` hands to an estimator that is registered by name."""
    return registry[name](
        token_level_rewards=data.batch["token_level_rewards"],
        response_mask=data.batch["response_mask"],
        config=None,
        index=data.non_tensor_batch["uid"],
    )


def registry_of(*methods):
    registry = {}

    def register_adv_est(name):
        def decorator(function):
            registry[name] = function
            return function

        return decorator

    for method in methods:
        assert verl.register(method, register_adv_est) == f"segpo_{method.name}"
    return registry


@pytest.mark.parametrize("seed", range(3))
def test_rloo_and_grpo_by_a_slow_loop(seed):
    b = batch(seed)
    data = SimpleNamespace(batch=b, non_tensor_batch={"uid": b["uid"]})
    registry = registry_of(GRPO(), RLOO())
    rloo, returns = as_verl_does(data, registry, "segpo_rloo")
    grpo, _ = as_verl_does(data, registry, "segpo_grpo")
    assert torch.equal(rloo, returns)
    total = b["token_level_rewards"].sum(1).tolist()
    for i, name in enumerate(b["uid"]):
        group = [total[j] for j, other in enumerate(b["uid"]) if other == name]
        others = [total[j] for j, other in enumerate(b["uid"]) if other == name and j != i]
        for t in range(T):
            real = bool(b["response_mask"][i, t])
            assert rloo[i, t] == pytest.approx(total[i] - sum(others) / len(others) if real else 0, abs=1e-6)
            spread = np.std(group, ddof=1) + 1e-4
            assert grpo[i, t] == pytest.approx((total[i] - np.mean(group)) / spread if real else 0, abs=1e-5)


def test_tempo_sees_the_ids_of_the_batch_it_is_called_for():
    b = batch(7)
    data = SimpleNamespace(batch=b, non_tensor_batch={"uid": b["uid"]})
    registry = registry_of(TEMPO())
    module = SimpleNamespace(compute_advantage=lambda data, adv_estimator: as_verl_does(data, registry, adv_estimator))
    with pytest.raises(ValueError, match="needs the token ids"):
        module.compute_advantage(data, "segpo_tempo")
    verl.hand_batch(module)
    verl.hand_batch(module)  # imported twice, wrapped once
    found, _ = module.compute_advantage(data, adv_estimator="segpo_tempo")

    mask = b["response_mask"].bool()
    _, group = np.unique(b["uid"], return_inverse=True)
    rollouts = Rollouts(
        completion_ids=b["responses"], mask=mask, group=torch.from_numpy(group), finished=mask.any(1),
        sampled_logprobs=torch.zeros(mask.shape), entropy=torch.zeros(mask.shape),
        rewards=b["token_level_rewards"].sum(1),
    )  # fmt: skip
    assert torch.equal(found, torch.where(mask, TEMPO().credit(rollouts).advantages, 0.0))
    varies = [len(set(row[m].tolist())) > 1 for row, m in zip(found, mask, strict=True)]
    assert any(varies)  # credit within a completion, which GRPO has not


def test_what_a_tool_wrote_is_read_but_earns_nothing():
    b = batch(1, least=3)
    b["response_mask"][:, 1] = 0
    b["token_level_rewards"][:, 1] = 5.0
    found, _ = verl.advantages(TEMPO(), b["token_level_rewards"], b["response_mask"], b["uid"], b["responses"])
    assert not found[:, 1].any() and found[:, 0].any()
    plain = batch(1, least=3)
    same, _ = verl.advantages(
        TEMPO(), plain["token_level_rewards"], plain["response_mask"], plain["uid"], plain["responses"]
    )
    keep = b["response_mask"].bool() & (torch.arange(T) != 1)
    torch.testing.assert_close(found[keep], same[keep])


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (SAPO(), "learns values"),
        (SPOTree(), "samples or scores more"),
        (Forks(), "samples or scores more"),
        (SRPO(), "samples or scores more"),
        (EntropyTokens(), "keeps tokens out of the loss"),
        (GRPO(beta=0.1), "KL settings of its own"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_what_cannot_be_is_refused(method, words):
    b = batch()
    with pytest.raises(ValueError, match=words):
        verl.advantages(method, b["token_level_rewards"], b["response_mask"], b["uid"], b["responses"])


def test_a_batch_without_groups():
    b = batch()
    with pytest.raises(ValueError, match="no uid"):
        verl.estimator(GRPO())(
            token_level_rewards=b["token_level_rewards"], response_mask=b["response_mask"], config=None
        )
