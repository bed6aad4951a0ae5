"""A prompt that goes through the model once for all its completions, against a row a completion: the same update."""

import dataclasses

import pytest
import torch

from segpo_core.algos import GRPO, GSPO, SAPO, SRPO, EntropyTokens, SPOChain
from segpo_core.policy.packing import can_pack
from segpo_core.training.loop import Trainer
from segpo_core.training.micro import micro_batches, taught_batches
from tests.fakes import families
from tests.fakes.toy import ToyTask
from tests.training.test_loop import config_for


@pytest.fixture(scope="module", params=sorted(families.FAMILIES))
def family(request, tmp_path_factory):
    return families.FAMILIES[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return families.llava(tmp_path_factory.mktemp("llava"))


def learnt(trainer: Trainer, packing: bool, rollouts, prompts, step: int = 1, taught: bool = False):
    """(rollouts as scored, metrics, name -> gradient of the step's last update, slots that went through the model)."""
    learner, first, gradients = trainer.learner, 0, {}
    learner.config.pack_prompts = packing
    rollouts = dataclasses.replace(rollouts)
    micros = micro_batches(trainer.network.model, learner.config, rollouts, prompts, step)
    learner.score(rollouts, micros)
    credit, _ = trainer.credit(rollouts, first)
    if taught:
        micros = taught_batches(trainer.network.model, learner.config, rollouts, prompts, credit)

    def keep() -> None:
        named = trainer.network.named_parameters()
        gradients.update({name: p.grad.clone() for name, p in named if p.grad is not None})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learner.optimizer, "step", keep)  # the weights stay
        metrics = learner.update(rollouts, credit, micros, step)
    slots = sum(m.inputs[0]["input_ids"].numel() + (0 if m.predictor is not None else m.ids.numel()) for m in micros)
    return rollouts, metrics, gradients, slots


def assert_same_update(path, out, algo, **changes) -> None:
    settings = dict(max_grad_norm=0.0, temperature=0.5) | changes
    trainer = Trainer(config_for(path, out, algo, **settings), task=ToyTask(images="llama" not in str(path)))
    trainer.step = 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.learner.optimizer, "step", lambda: None)
        trainer.train_step()
    prompts = trainer.examples()[1]
    sampled = dataclasses.replace(trainer.last[0], old_logprobs=None, values=None, ref_logprobs=None)
    packed, rows = (learnt(trainer, packing, sampled, prompts) for packing in (True, False))
    for name in ("old_logprobs", "values", "ref_logprobs"):
        ours, theirs = getattr(packed[0], name), getattr(rows[0], name)
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, atol=5e-5, rtol=1e-4)
    for name, value in rows[1].items():
        assert packed[1][name] == pytest.approx(value, abs=1e-5, rel=1e-4), name
    assert packed[2].keys() == rows[2].keys() and rows[1]["grad_norm"] > 0
    for name, value in rows[2].items():
        atol = 2e-5 * max(1.0, float(value.abs().max()))
        torch.testing.assert_close(packed[2][name], value, atol=atol, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")
    assert packed[3] < rows[3] if can_pack(trainer.network.model, prompts) else packed[3] == rows[3]


@pytest.mark.parametrize("use_peft", [False, True], ids=["all weights", "lora"])
@pytest.mark.parametrize("algo", [GRPO(beta=0.04), SAPO()], ids=["grpo", "sapo"])
def test_the_same_loss_and_gradient_on_every_family(family, algo, use_peft, tmp_path):
    assert_same_update(family, tmp_path / "run", algo, use_peft=use_peft, lora_r=4)


@pytest.mark.parametrize(
    "algo",
    [SAPO(critic="model"), GSPO(), SRPO(), EntropyTokens(), SPOChain(num_continuations=2),
     GRPO(loss_type="seq-mean-token-mean")],
    ids=["own critic", "gspo", "srpo", "entropy tokens", "chain", "means of completions"],
)  # fmt: skip
def test_whatever_the_method(llava, algo, tmp_path):
    assert_same_update(llava, tmp_path / "run", algo)


def test_passes_that_tear_groups(llava, tmp_path):
    """Several updates a step take rows in random order; accumulated passes cut groups."""
    cut = dict(per_device_train_batch_size=4, steps_per_generation=3)
    assert_same_update(llava, tmp_path / "several", GRPO(), num_iterations=2, **cut)
    assert_same_update(llava, tmp_path / "accumulated", SAPO(), gradient_accumulation_steps=3, **cut)


def test_completions_of_one_token(llava, tmp_path):
    """Nothing stands after the prompt: the last prompt token predicts all there is."""
    assert_same_update(llava, tmp_path / "run", SAPO(), max_completion_length=1, temperature=1.0)


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "rows"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3}],
    ids=["one pass", "three passes"],
)
@pytest.mark.parametrize(
    "algo",
    [GRPO(), GRPO(loss_type="seq-mean-token-mean"), GSPO(), EntropyTokens()],
    ids=["grpo", "means of completions", "gspo", "entropy tokens"],
)
def test_rows_without_advantage_are_left_out_of_the_same_update(llava, tmp_path, algo, changes, packing):
    trainer = Trainer(config_for(llava, tmp_path / "run", algo, max_grad_norm=0.0, **changes), task=ToyTask())
    assert not trainer.learner.scores_first
    trainer.step = 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.learner.optimizer, "step", lambda: None)
        trainer.train_step()
    prompts, sampled = trainer.examples()[1], trainer.last[0]
    sampled.rewards = torch.where(sampled.group == 1, torch.arange(len(sampled)) % 2, 1).float()
    some, every = (learnt(trainer, packing, sampled, prompts, taught=taught) for taught in (True, False))
    assert some[1] == pytest.approx(every[1], abs=1e-6, rel=1e-5) and every[1]["grad_norm"] > 0
    assert some[2].keys() == every[2].keys() and some[3] < every[3]
    for name, value in every[2].items():
        torch.testing.assert_close(some[2][name], value, atol=2e-6 * max(1.0, float(value.abs().max())), rtol=1e-4)
    sampled.rewards = torch.ones_like(sampled.rewards)
    _, metrics, gradients, _ = learnt(trainer, packing, sampled, prompts, taught=True)
    assert metrics["grad_norm"] == 0 and gradients.keys() == every[2].keys()


def test_the_update_goes_on_from_the_scoring_pass(llava, tmp_path):
    """Where one pass takes the whole step: one forward pass fewer, and not a bit of difference."""
    learned, passes = [], []
    for way in ("one", "two"):
        trainer = Trainer(config_for(llava, tmp_path / way, SAPO()), task=ToyTask())
        with pytest.MonkeyPatch.context() as patch:
            if way == "two":
                patch.setattr(trainer.learner, "_begun", trainer.network)
            count = trainer.network.model.model.register_forward_hook(lambda *_, way=way: passes.append(way))
            trainer.step = 1
            patch.setattr(trainer, "collect", uncounted(trainer.collect, passes))
            metrics = trainer.train_step()
            count.remove()
        assert trainer.learner.begun is None and metrics["ratio/max"] == 1
        learned.append({name: value.clone() for name, value in trainer.network.state_dict().items()})
    assert passes == ["one", "two", "two"]
    assert all(torch.equal(value, learned[1][name]) for name, value in learned[0].items())


def uncounted(call, passes):
    def inner(*args):
        before = list(passes)
        result = call(*args)
        passes[:] = before
        return result

    return inner
