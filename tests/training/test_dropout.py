"""Adapters with dropout: what it touches, what it leaves alone, and that it repeats."""

import pytest
import torch
from torch import nn

from segpo_core.algos import GRPO, SAPO
from segpo_core.policy.load import load_model, load_processor, with_adapter
from segpo_core.record import store
from segpo_core.training.loop import Trainer
from tests.fakes import families
from tests.fakes.toy import ToyTask
from tests.training.test_loop import config_for, weights

LORA = dict(use_peft=True, lora_r=4, learning_rate=1e-2)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return families.llama(tmp_path_factory.mktemp("llama"))


def trainer_for(model, out, algo, **changes) -> Trainer:
    return Trainer(config_for(model, out, algo, **LORA | changes), task=ToyTask(images=False))


def dropped(trainer: Trainer) -> list[float]:
    """Shares of what the adapters' dropout takes away, one a call, from now on."""
    found: list[float] = []
    for module in trainer.network.modules():
        if isinstance(module, nn.Dropout) and module.p > 0:
            module.register_forward_hook(lambda m, x, y: found.append(float((y[x[0] != 0] == 0).float().mean())))
    return found


@pytest.mark.parametrize("pack_prompts", [True, False])
def test_it_is_on_where_the_adapter_learns_and_off_elsewhere(llama, tmp_path, pack_prompts):
    trainer = trainer_for(llama, tmp_path / "run", SAPO(), lora_dropout=0.4, pack_prompts=pack_prompts)
    shares, update = dropped(trainer), trainer.learner.update
    counted = {}

    def watched(*args):
        counted["before"], shares[:] = list(shares), []
        numbers = update(*args)
        counted["update"], shares[:] = list(shares), []
        return numbers

    trainer.learner.update = watched
    trainer.step = 1
    trainer.train_step()
    assert counted["before"] and not any(counted["before"]), "sampling and scoring"
    assert counted["update"] and all(0.2 < share < 0.6 for share in counted["update"])
    assert not trainer.network.training and not any(shares)


def test_sampling_and_scores_are_those_of_a_run_without(llama, tmp_path):
    """The first step draws the same and says the same of it; what is learnt is another thing."""
    with_it, without = (
        trainer_for(llama, tmp_path / str(p), GRPO(), lora_dropout=p, num_iterations=2) for p in (0.3, 0.0)
    )
    assert all(torch.equal(a, b) for a, b in zip(weights(with_it).values(), weights(without).values(), strict=True))
    for trainer in (with_it, without):
        trainer.run()
    rows = [store.read_rollouts(t.directory).select(["token_ids", "old_logprobs", "sampled_logprobs", "advantages"])
            for t in (with_it, without)]  # fmt: skip
    assert rows[0].equals(rows[1])
    assert any(not torch.equal(a, b) for a, b in zip(weights(with_it).values(), weights(without).values(), strict=True))


def test_the_ratio_of_a_single_update_is_one(llama, tmp_path):
    trainer_for(llama, tmp_path / "run", GRPO(), lora_dropout=0.3).run()
    seen = {m["name"]: m["value"] for m in store.read_metrics(tmp_path / "run").to_pylist()}
    assert seen["ratio/min"] == seen["ratio/max"] == 1


def test_what_is_computed_again_drops_the_same(llama, tmp_path):
    """Gradient checkpointing changes no weight; another seed does."""
    learnt = []
    for name, changes in {"plain": {}, "again": {"gradient_checkpointing": True}, "other": {"seed": 1}}.items():
        trainer = trainer_for(llama, tmp_path / name, GRPO(), lora_dropout=0.3, **changes)
        trainer.run()
        learnt.append(weights(trainer))
    for name, value in learnt[0].items():
        torch.testing.assert_close(learnt[1][name], value, atol=1e-6, rtol=1e-5)
    assert any((learnt[2][name] - value).abs().max() > 1e-3 for name, value in learnt[0].items())


def test_a_resumed_run_drops_what_the_straight_one_does(llama, tmp_path):
    settings = dict(lora_dropout=0.3, num_iterations=2, per_device_train_batch_size=6, steps_per_generation=2)
    straight = trainer_for(llama, tmp_path / "straight", GRPO(), max_steps=3, **settings)
    straight.run()
    trainer_for(llama, tmp_path / "run", GRPO(), max_steps=1, **settings).run()
    torch.rand(7)  # whatever else has drawn in between
    again = trainer_for(llama, tmp_path / "run", GRPO(), max_steps=3, resume=True, **settings)
    again.run()
    for name, value in weights(straight).items():
        assert torch.equal(weights(again)[name], value), name
    with pytest.raises(ValueError, match=r"lora_dropout was 0\.3, is 0\.1"):
        trainer_for(llama, tmp_path / "run", GRPO(), max_steps=4, resume=True, **settings | {"lora_dropout": 0.1})


def test_draws_leave_other_random_numbers_alone(llama, tmp_path):
    trainer = trainer_for(llama, tmp_path / "run", GRPO(), lora_dropout=0.3)
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    trainer.step = 1
    trainer.train_step()
    assert torch.equal(torch.rand(3), wanted)


def test_what_it_cannot_be(llama, tmp_path):
    with pytest.raises(ValueError, match=r"lora_dropout is 1\.0: it is a probability"):
        config_for(llama, tmp_path / "run", GRPO(), lora_dropout=1.0)
    assert config_for(llama, tmp_path / "run", GRPO(), lora_dropout=0.05).dropout == 0, "no adapter, no dropout"
    model = with_adapter(load_model(llama), 4, 8, 0.0, None)
    with pytest.raises(ValueError, match="hand over the model alone"):
        Trainer(config_for(llama, tmp_path / "run", GRPO(), lora_dropout=0.1, **LORA), model=model,
                processor=load_processor(llama), task=ToyTask(images=False))  # fmt: skip
