"""The neighbouring methods: their credit on small cases worked out by hand, and two steps of training with each."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from segpo_core.advantages import gae, token_rewards
from segpo_core.algos import GRPO, PAPO, PGPO, PPO, TEMPO, VCPPO, VPPO, EntropyTokens, SPOTree, TreeRL
from segpo_core.config import TrainConfig
from segpo_core.record import store
from segpo_core.training.loop import Trainer
from segpo_core.types import Rollouts, length_mask
from tests.fakes import families
from tests.fakes.toy import ToyTask

nan = math.nan

TRAINED = [
    VCPPO(critic_warmup_steps=1),
    EntropyTokens(),
    TEMPO(),
    TreeRL(branch=(3, 2), segment_tokens=3),
    VPPO(),
    PGPO(),
    PAPO(away_coef=0.5),
]


def rollouts_of(ids: list[list[int]], rewards: list[float], **fields) -> Rollouts:
    """One group; padding is token 0, which is also a real one."""
    mask = length_mask(torch.tensor([len(row) for row in ids]), max(map(len, ids)) + 1)
    padded = torch.tensor([row + [0] * (mask.shape[1] - len(row)) for row in ids])
    zeros = torch.zeros(mask.shape)
    return Rollouts(
        completion_ids=padded, mask=mask, group=torch.zeros(len(ids), dtype=torch.long), finished=mask.any(1),
        sampled_logprobs=zeros - 1, entropy=zeros, rewards=torch.tensor(rewards), **fields,
    )  # fmt: skip


# --- TEMPO --------------------------------------------------------------------------------------------------------


def test_tempo_by_hand():
    """Two of four go 1 2, and part there; the others go 1 3 and 4."""
    rollouts = rollouts_of([[1, 2, 5, 9], [1, 2, 6, 9], [1, 3, 9], [4, 9]], [1.0, 0.0, 0.0, 0.0])
    credit = TEMPO(scale_rewards="none").credit(rollouts)
    v = [1 / 4, 1 / 3, 1 / 2]  # of nothing, 1, 1 2
    difference = [
        [v[1] - v[0], v[2] - v[1], 1 - v[2], 0, 0],
        [v[1] - v[0], v[2] - v[1], 0 - v[2], 0, 0],
        [v[1] - v[0], 0 - v[1], 0, 0, 0],
        [0 - v[0], 0, 0, 0, 0],
    ]
    plain = GRPO(scale_rewards="none").credit(rollouts).advantages
    torch.testing.assert_close(credit.advantages, plain + torch.tensor(difference))
    assert credit.segment_ids.tolist() == [[0, 1, 2, 3, -1], [0, 1, 2, 3, -1], [0, 1, 2, -1, -1], [0, 1, -1, -1, -1]]
    assert credit.metrics["tempo/branching_tokens"] == 9


def test_tempo_without_a_shared_token_is_grpo_but_for_the_first():
    rollouts = rollouts_of([[1, 9, 9], [2, 9], [3, 9]], [1.0, 0.0, 0.0])
    ours, plain = TEMPO().credit(rollouts).advantages, GRPO().credit(rollouts).advantages
    assert torch.equal(ours[:, 1:], plain[:, 1:])
    torch.testing.assert_close(ours[:, 0], 2 * plain[:, 0])  # the first token is the whole way from the mean to r


def test_tempo_scales_both_parts_alike_and_leaves_unjudged_completions_alone():
    rollouts = rollouts_of([[1, 2, 9], [1, 3, 9], [1, 2, 8]], [1.0, 0.0, math.nan])
    credit = TEMPO().credit(rollouts)
    raw = TEMPO(scale_rewards="none").credit(rollouts)
    torch.testing.assert_close(credit.advantages[:2] * (0.5**0.5 + 1e-4), raw.advantages[:2])
    assert credit.advantages[2, :3].isnan().all() and not credit.loss_mask[2].any()
    without = TEMPO().credit(rollouts.select(torch.tensor([0, 1])))
    assert torch.equal(credit.advantages[:2], without.advantages)
    with pytest.raises(ValueError, match="kl_in='loss'"):
        TEMPO(beta=0.1, kl_in="reward")


# --- 80/20, VC-PPO, TreeRL ------------------------------------------------------------------------------------------


def test_only_the_tokens_of_highest_entropy_of_the_batch_are_learnt_from():
    rollouts = rollouts_of([[1] * 4, [2] * 6], [1.0, 0.0])
    rollouts.entropy = torch.where(rollouts.mask, torch.arange(14.0).view(2, 7), torch.nan)
    credit = EntropyTokens(fraction=0.3).credit(rollouts)
    assert credit.loss_mask.nonzero().tolist() == [[1, 3], [1, 4], [1, 5]]
    assert torch.equal(credit.advantages, GRPO().credit(rollouts).advantages)
    rollouts.rewards = torch.tensor([1.0, math.nan])  # a completion without verdict takes no place
    assert EntropyTokens(fraction=0.5).credit(rollouts).loss_mask.nonzero().tolist() == [[0, 2], [0, 3]]
    with pytest.raises(ValueError, match="share of tokens"):
        EntropyTokens(fraction=0)


def test_vcppo_is_ppo_with_targets_of_their_own():
    rollouts = rollouts_of([[1] * 4, [2] * 6], [1.0, 0.0])
    rollouts.values = torch.rand(rollouts.mask.shape)
    credit, ppo = VCPPO().credit(rollouts), PPO(lam=0.99).credit(rollouts)
    assert torch.equal(credit.advantages, ppo.advantages)
    torch.testing.assert_close(credit.returns, torch.where(rollouts.mask, rollouts.rewards[:, None], 0.0))
    r = token_rewards(rollouts.rewards, rollouts.mask)
    assert torch.equal(VCPPO(lam_value=0.5).credit(rollouts).returns, gae(r, rollouts.values, rollouts.mask, 1, 0.5)[1])
    assert torch.equal(VCPPO(lam_value=0.99).credit(rollouts).returns, ppo.returns)


def test_treerl_by_hand():
    """A root with the children a (leaves 1, 0) and b (leaf 0 alone)."""
    rollouts = rollouts_of([[1, 3], [1, 4], [2, 5]], [1.0, 0.0, 0.0])
    rollouts.node_ids = torch.tensor([[0, 1, -1], [0, 2, -1], [3, 4, -1]])
    credit = TreeRL().credit(rollouts)
    root, a = 0.25, 0.5
    expected = [
        [2 * (a - root) / 2**0.5, (1 - root) + (1 - a), 0],
        [2 * (a - root) / 2**0.5, (0 - root) + (0 - a), 0],
        [2 * (0 - root), (0 - root) + 0, 0],
    ]
    torch.testing.assert_close(credit.advantages, torch.tensor(expected))
    assert credit.loss_mask.tolist() == [[True, True, False], [False, True, False], [True, True, False]]
    plain = SPOTree().credit(rollouts)
    assert torch.equal(credit.segment_ids, plain.segment_ids) and torch.equal(credit.state_values, plain.state_values)
    with pytest.raises(ValueError, match="root of its leaves"):
        TreeRL(normalize=True)


# --- VPPO, PGPO -----------------------------------------------------------------------------------------------------


def seeing(contrasts: list[list[float]], rewards: list[float]) -> Rollouts:
    rollouts = rollouts_of([[1] * len(row) for row in contrasts], rewards)
    d = torch.tensor([row + [7.0] * (rollouts.mask.shape[1] - len(row)) for row in contrasts])
    return replace(rollouts, perception_contrast=d)  # what stands at padding must not matter


def test_vppo_by_hand():
    rollouts = seeing([[0.0, 1.0, 2.0, 0.0, 0.0], [0.0, 0.0, 0.5, 0.0, 0.0], [nan] * 4], [1.0, 0.0, 0.0])
    credit, plain = VPPO().credit(rollouts), GRPO().credit(rollouts)
    assert credit.loss_mask[:2].nonzero().tolist() == [[0, 1], [0, 2], [1, 0], [1, 2]], "2 of 5, ties to the earlier"
    assert torch.equal(credit.loss_mask[2], rollouts.mask[2]), "without an image it is GRPO"
    # scaled scores 1 and 0, of mean 0.5: beta = 0.9 + 0.1 / 0.5
    w = torch.tensor([1.1, 0.9, 1.0])
    torch.testing.assert_close(credit.weights, torch.where(rollouts.mask, w[:, None], 0.0))
    torch.testing.assert_close(credit.advantages, plain.advantages * w[:, None])


def test_pgpo_by_hand():
    k3 = [math.exp(-d) + d - 1 for d in (0.0, 0.5, 3.0)]
    low, *_, high = signal = [math.log1p(x) for x in k3]
    middle = (signal[1] - low) / (high - low)
    assert middle < 0.4
    raw = torch.tensor([0.0, middle / 0.4, 3.0])
    rollouts = seeing([[0.0, 0.5, 3.0], [nan] * 2], [1.0, 0.0])
    credit, plain = PGPO().credit(rollouts), GRPO().credit(rollouts)
    torch.testing.assert_close(credit.weights[0, :3], 3 * raw / raw.sum())
    torch.testing.assert_close(credit.advantages.sum(1), plain.advantages.sum(1))
    assert torch.equal(credit.advantages[1], plain.advantages[1])
    for wrong in (dict(tau=0), dict(tau=1), dict(gain=-1)):
        with pytest.raises(ValueError, match="must"):
            PGPO(**wrong)


# --- PAPO ---------------------------------------------------------------------------------------------------------


def test_papo_is_grpo_and_what_the_blind_policy_says():
    rollouts = seeing([[0.5, -2.0, 0.0], [nan, nan]], [1.0, 0.0])
    rollouts.old_logprobs = rollouts.sampled_logprobs - 0.25
    credit, plain = PAPO(away_coef=0.3).credit(rollouts), GRPO().credit(rollouts)
    assert torch.equal(credit.advantages, plain.advantages) and credit.away_coef == 0.3
    assert credit.away_logprobs[0, :3].tolist() == [-1.75, 0.75, -1.25] and credit.away_logprobs[1, :2].isnan().all()
    with pytest.raises(ValueError, match="not to look"):
        PAPO(away_coef=-1)


def test_papos_term_is_in_the_loss_of_the_update(llava, tmp_path):
    """Where no completion is better than another, the term alone moves the policy: away from the one that is blind."""
    config = TrainConfig(
        method="papo", algo=PAPO(away_coef=1.0), model_name_or_path=str(llava), output_dir=str(tmp_path / "run"),
        num_generations=4, per_device_train_batch_size=12, max_completion_length=8, max_steps=1, learning_rate=1e-4,
        eval_steps=0, score_after_update=True, cpu=True,
    )  # fmt: skip
    Trainer(config, task=ToyTask(reward_funcs=[nothing])).run()
    before = after = 0.0
    for row in store.read_rollouts(tmp_path / "run").to_pylist():
        for was, now, d in zip(row["sampled_logprobs"], row["new_logprobs"], row["perception_contrast"], strict=True):
            if d is not None:  # NaN, not measured, is null in the file
                before += math.exp(-d) + d - 1
                after += math.exp(was - d - now) - (was - d - now) - 1
    said = {row["name"]: row["value"] for row in store.read_metrics(tmp_path / "run").to_pylist()}["away_kl"]
    assert said == pytest.approx(before / 96, rel=1e-3) and after > 1.01 * before


def nothing(completions, **_):
    return [0.0] * len(completions)


def test_a_run_of_text_alone_is_grpo():
    rollouts = seeing([[nan] * 3, [nan] * 2], [1.0, 0.0])
    plain = GRPO().credit(rollouts)
    for method in (VPPO(), PGPO(), PAPO()):
        credit = method.credit(rollouts)
        assert torch.equal(credit.advantages, plain.advantages) and torch.equal(credit.loss_mask, plain.loss_mask)


# --- in a run -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return families.llava(tmp_path_factory.mktemp("llava"))


@pytest.mark.parametrize("algo", TRAINED, ids=lambda a: a.name)
def test_two_steps(algo, llava, tmp_path):
    config = TrainConfig(
        method=algo.name, algo=algo, model_name_or_path=str(llava), output_dir=str(tmp_path / "run"), num_generations=4,
        per_device_train_batch_size=12, max_completion_length=8, max_steps=2, learning_rate=1e-2, eval_steps=0,
        cpu=True,
    )  # fmt: skip
    trainer = Trainer(config, task=ToyTask())
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    trainer.run()
    moved = [name for name, value in trainer.network.state_dict().items() if not torch.equal(value, before[name])]
    assert any("value" not in name for name in moved), "the policy learns"
    rows = store.read_rollouts(tmp_path / "run").to_pylist()
    assert {row["step"] for row in rows} == {1, 2} and {row["method"] for row in rows} == {algo.name}
    assert any(any(row["loss_mask"]) for row in rows)


def test_vcppos_critic_learns_before_its_policy(llava, tmp_path):
    algo = VCPPO()
    config = TrainConfig(
        method=algo.name, algo=algo, model_name_or_path=str(llava), output_dir=str(tmp_path / "run"), num_generations=4,
        per_device_train_batch_size=8, max_completion_length=8, max_steps=2, learning_rate=1e-2, eval_steps=0, cpu=True,
    )  # fmt: skip
    trainer = Trainer(config, task=ToyTask())
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    trainer.run()
    moved = {name for name, value in trainer.network.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and all("value" in name for name in moved)
    assert replace(algo, critic_warmup_steps=0).credit(trainer.last[0]).returns.isfinite().all()
