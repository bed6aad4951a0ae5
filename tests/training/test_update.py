"""What one update changes, and what it leaves alone."""

import dataclasses

import pytest
import torch

from segpo_core.advantages import gae
from segpo_core.algos import GRPO, PPO, SAPO
from segpo_core.algos.base import without_cut
from segpo_core.policy.logprobs import without_adapter
from segpo_core.training.loop import Trainer
from segpo_core.training.micro import micro_batches
from tests.algos.test_bad_method_input import batch
from tests.fakes import families
from tests.fakes.toy import ToyTask
from tests.training.test_loop import config_for, weights


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return families.llama(tmp_path_factory.mktemp("llama"))


def trainer_for(model, out, algo, **changes) -> Trainer:
    return Trainer(config_for(model, out, algo, **changes), task=ToyTask(images=False))


@pytest.mark.parametrize("algo", [GRPO(), SAPO(critic="model")], ids=["grpo", "critic"])
def test_a_step_with_nothing_to_learn_after_one_with_something(llama, tmp_path, algo):
    """Neither weight decay nor the moments of the step before move a weight."""

    class Once(type(algo)):
        steps = 0

        def credit(self, rollouts):
            credit = super().credit(rollouts)
            type(self).steps += 1
            if self.steps == 1:
                return credit
            none = torch.zeros_like(credit.loss_mask)
            return dataclasses.replace(credit, loss_mask=none, value_mask=None if credit.value_mask is None else none)

    once = Once(**dataclasses.asdict(algo))
    trainer = trainer_for(llama, tmp_path / "run", once, max_steps=2, weight_decay=0.1)
    first = weights(trainer)
    trainer.step = 1
    trainer.train_step()
    after, moments = weights(trainer), repr(trainer.learner.optimizer.state_dict()["state"])
    assert any(not torch.equal(first[name], after[name]) for name in first)
    trainer.step = 2
    trainer.train_step()
    assert all(torch.equal(value, after[name]) for name, value in weights(trainer).items())
    assert repr(trainer.learner.optimizer.state_dict()["state"]) == moments


@pytest.mark.parametrize("critic", ["head", "model"])
def test_value_pretraining_leaves_no_moments_of_the_policy(llama, tmp_path, critic):
    algo = PPO(critic=critic, critic_warmup_steps=1)
    trainer = trainer_for(llama, tmp_path / "run", algo, weight_decay=0.1)
    before = weights(trainer)
    trainer.run()
    changed = {name for name, value in weights(trainer).items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("value_") for name in changed)
    policy = {id(p) for p in trainer.learner.policy_parameters}
    assert not [p for p in trainer.learner.optimizer.state if id(p) in policy]


@pytest.mark.parametrize(("critic", "rate"), [("head", 1e-4), ("model", 1e-5)])
def test_the_critics_rate_does_not_hang_on_the_policys(llama, tmp_path, critic, rate):
    for i, learning_rate in enumerate((1e-6, 1e-3)):
        algo = SAPO(critic=critic)
        trainer = trainer_for(llama, tmp_path / f"run{i}", algo, learning_rate=learning_rate)
        assert trainer.learner.peak_rates == [learning_rate, rate]
    assert SAPO(critic=critic, critic_learning_rate=0.5).critic_rate == 0.5


def test_the_divergence_in_the_reward_is_k1_unless_told_otherwise():
    rollouts = batch([3, 2], [1.0, 0.0])
    rollouts.ref_logprobs = rollouts.sampled_logprobs - 0.25
    for told, expected in ((None, 0.25), ("k2", 0.25**2 / 2)):
        taken = SAPO(beta=0.1, kl_in="reward", kl_estimator=told).reward_kl(rollouts)
        torch.testing.assert_close(taken[rollouts.mask], torch.full((5,), expected))
    assert SAPO(kl_in="loss").estimator == "k3" and SAPO(kl_in="loss", kl_estimator="k1").estimator == "k1"


def test_what_was_cut_leaves_the_critics_loss_too():
    rollouts = batch([3, 2], [1.0, 0.0])
    rollouts.finished = torch.tensor([True, False])
    credit = without_cut(PPO().credit(rollouts), rollouts)
    assert credit.value_mask[0].any() and not credit.value_mask[1].any() and not credit.loss_mask[1].any()
    assert without_cut(GRPO().credit(rollouts), rollouts).value_mask is None


@pytest.mark.parametrize("method", [PPO(whiten=False, lam=0.9, lam_value=1.0), SAPO(lam=0.9, lam_value=1.0)])
def test_the_critic_may_have_a_lambda_of_its_own(method):
    """VC-PPO: at lambda 1 the critic learns the return itself, whatever the advantages are made with."""
    rollouts = batch([4, 3, 1], [1.0, 0.0, 0.5])
    credit = method.credit(rollouts)
    plain = dataclasses.replace(method, lam_value=None).credit(rollouts)
    torch.testing.assert_close(credit.advantages, plain.advantages)
    expected = rollouts.rewards[:, None].expand_as(credit.returns)
    torch.testing.assert_close(credit.returns[rollouts.mask], expected[rollouts.mask])
    assert not torch.allclose(plain.returns[rollouts.mask], expected[rollouts.mask])
    if isinstance(method, PPO):
        rewards = torch.zeros_like(rollouts.values)
        rewards[torch.arange(3), rollouts.lengths - 1] = rollouts.rewards
        torch.testing.assert_close(credit.advantages, gae(rewards, rollouts.values, rollouts.mask, 1.0, 0.9)[0])


@pytest.mark.parametrize("wrong", [{"lam_value": 1.5}, {"lam": -0.1}, {"critic_warmup_steps": -1}])
def test_settings_of_the_critic_that_make_no_sense(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PPO(**wrong)


# --- bfloat16 ---------------------------------------------------------------------------------------------------


def learnt(model, out, dtype: str, **changes) -> tuple[Trainer, torch.Tensor]:
    """A trainer after its run, and how far its run moved the policy's weights, in one row."""
    trainer = trainer_for(model, out, changes.pop("algo", GRPO()), dtype=dtype, max_steps=3, **changes)
    before = {name: value.detach().clone().float() for name, value in trainer.learner.weights().items()}
    trainer.run()
    after = trainer.learner.weights()
    return trainer, torch.cat([(after[name].detach() - before[name]).flatten() for name in sorted(before)])


def test_bfloat16_learns_what_float32_learns_at_a_tiny_rate(llama, tmp_path):
    """Steps far below the resolution of bfloat16 add up. The two runs part as their samples do; the first step is the
    same but for rounding."""
    (_, exact), (trainer, rounded) = (
        learnt(llama, tmp_path / dtype, dtype, learning_rate=1e-6) for dtype in ("float32", "bfloat16")
    )
    assert {p.dtype for p in trainer.network.parameters()} == {torch.bfloat16}
    assert {value.dtype for value in trainer.learner.weights().values()} == {torch.float32}
    share = [float((change != 0).float().mean()) for change in (exact, rounded)]
    assert share[1] == pytest.approx(share[0], abs=0.02) and share[0] > 0.5
    assert float(rounded.norm()) == pytest.approx(float(exact.norm()), rel=0.2)


def test_one_update_in_bfloat16_points_where_float32_points(llama, tmp_path):
    """Of the same rollouts. Adam's first step is a sign, so gradients near zero part."""
    changes, rollouts, credit = [], None, None
    for dtype in ("float32", "bfloat16"):
        trainer = trainer_for(llama, tmp_path / dtype, GRPO(), dtype=dtype, learning_rate=1e-6)
        before = {name: value.detach().clone() for name, value in trainer.learner.weights().items()}
        trainer.step = 1
        if rollouts is None:
            trainer.train_step()
            rollouts, credit = trainer.last
        else:
            prompts = trainer.examples()[1]
            trainer.learner.update(
                rollouts, credit, micro_batches(trainer.network.model, trainer.config, rollouts, prompts, 1), 1
            )
        after = trainer.learner.weights()
        changes.append(torch.cat([(after[name].detach() - before[name]).flatten() for name in sorted(before)]))
    assert float(torch.cosine_similarity(*changes, dim=0)) > 0.8
    network = trainer.network.state_dict()
    assert all(torch.equal(network[name], value.to(network[name].dtype)) for name, value in after.items())


@pytest.mark.parametrize("algo", [GRPO(beta=0.01), SAPO(), SAPO(critic="model")], ids=["kl", "head", "model"])
def test_bfloat16_resumes_as_if_never_interrupted(llama, tmp_path, algo):
    settings = dict(dtype="bfloat16", per_device_train_batch_size=4, gradient_accumulation_steps=3)
    straight = trainer_for(llama, tmp_path / "straight", algo, max_steps=2, **settings)
    straight.run()
    trainer_for(llama, tmp_path / "run", algo, max_steps=1, **settings).run()
    again = trainer_for(llama, tmp_path / "run", algo, max_steps=2, resume=True, **settings)
    again.run()
    mine, theirs = again.learner.weights(), straight.learner.weights()
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    moments = [t.learner.optimizer.state_dict()["state"] for t in (again, straight)]
    assert {v.dtype for entry in moments[0].values() for v in entry.values()} == {torch.float32}
    assert all(torch.equal(moments[0][n][k], v) for n, entry in moments[1].items() for k, v in entry.items())


def test_lora_in_bfloat16_stays_as_it_was(llama, tmp_path):
    trainer = trainer_for(llama, tmp_path / "run", GRPO(), dtype="bfloat16", use_peft=True, lora_r=4)
    assert trainer.learner.masters is None
    assert {p.dtype for p in trainer.network.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in trainer.network.parameters() if not p.requires_grad} == {torch.bfloat16}


# --- memory -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return families.llava(tmp_path_factory.mktemp("llava"))


@pytest.mark.parametrize("changes", [{}, {"use_peft": True, "lora_r": 4}], ids=["all weights", "lora"])
def test_gradient_checkpointing_computes_layers_again_and_changes_nothing(llava, tmp_path, changes):
    after, calls = {}, {}
    for on in (False, True):
        config = config_for(llava, tmp_path / str(on), SAPO(), gradient_checkpointing=on, **changes)
        trainer = Trainer(config, task=ToyTask())
        layer = without_adapter(trainer.network.model).get_decoder().layers[0]
        seen = calls[on] = []
        layer.input_layernorm.register_forward_hook(lambda *_, seen=seen: seen.append(torch.is_grad_enabled()))
        trainer.run()
        after[on] = weights(trainer)
    assert sum(calls[True]) == 2 * sum(calls[False]) > 0, "once more in the backward pass"
    without = [len(calls[on]) - sum(calls[on]) for on in (False, True)]
    assert without[1] == without[0] + 1, "and nowhere else: but the update cannot go on from the scoring pass"
    for name, value in after[False].items():
        torch.testing.assert_close(after[True][name], value, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("critic", ["head", "model"])
def test_a_frozen_vision_tower_stays_as_it_is(llava, tmp_path, critic):
    config = config_for(llava, tmp_path / "run", SAPO(critic=critic), freeze_vision_tower=True, max_steps=2)
    trainer = Trainer(config, task=ToyTask())
    before = weights(trainer)
    trainer.run()
    changed = {name for name, value in weights(trainer).items() if not torch.equal(value, before[name])}
    assert any("language_model" in name for name in changed) and "model.lm_head.weight" in changed
    assert not [name for name in changed if "vision" in name or "projector" in name]
    held = {id(p) for group in trainer.learner.optimizer.param_groups for p in group["params"]}
    assert not [n for n, p in trainer.network.named_parameters() if "vision" in n and id(p) in held]
