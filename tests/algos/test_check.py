"""What is wrong with a method's credit is said by name, before anything is learnt from it."""

import dataclasses
import math

import pytest
import torch

from segpo_core.algos import GRPO, METHODS, PPO
from segpo_core.algos.check import checked
from segpo_core.training.loop import Trainer
from tests.algos.test_bad_method_input import batch
from tests.fakes import families
from tests.fakes.toy import ToyTask
from tests.training.test_loop import config_for

LENGTHS = [3, 0, 2]


def rollouts():
    return batch(LENGTHS, [1.0, 0.5, 0.0])


@pytest.mark.parametrize("method", [method() for method in METHODS.values()], ids=list(METHODS))
@pytest.mark.parametrize("rewards", [[1.0, 0.0, 0.5], [math.nan, 1.0, 0.0], [math.nan] * 3], ids=["all", "two", "none"])
def test_every_method_of_the_toolkit_keeps_the_rules(method, rewards):
    seen = batch(LENGTHS, rewards)
    credit = method.credit(seen)
    assert checked(credit, seen, method.title) is credit


def spoiled(name: str, row: int, token: int, value):
    def change(credit):
        column = getattr(credit, name).clone()
        column[row, token] = value
        return dataclasses.replace(credit, **{name: column})

    return change


WRONG = {
    "no credit": (lambda c: c.advantages, TypeError, "must return a segpo_core.types.Credit, not Tensor"),
    "a list": (lambda c: dataclasses.replace(c, advantages=c.advantages.tolist()), TypeError, "advantages must be"),
    "nothing": (lambda c: dataclasses.replace(c, segment_ids=None), TypeError, "segment_ids must be a tensor"),
    "a number a completion": (
        lambda c: dataclasses.replace(c, advantages=c.advantages[:, 0]), ValueError,
        r"advantages has shape \(3,\); it must be \[B, T\] = \(3, 4\)",
    ),
    "double": (lambda c: dataclasses.replace(c, advantages=c.advantages.double()), TypeError, "advantages is torch"),
    "a mask of numbers": (
        lambda c: dataclasses.replace(c, loss_mask=c.loss_mask.float()), TypeError, "loss_mask is torch.float32"
    ),
    "padding in the loss": (
        spoiled("loss_mask", 2, 3, True), ValueError, "loss_mask is True at padding at 1 token, .* 3 of completion 2"
    ),
    "NaN in the loss": (
        spoiled("advantages", 0, 1, math.nan), ValueError, "advantages is NaN or infinite .* token 1 of completion 0"
    ),
    "credit at padding": (spoiled("advantages", 1, 0, 0.5), ValueError, "advantages is not 0 at padding"),
    "NaN at padding": (spoiled("advantages", 1, 0, math.nan), ValueError, "advantages is not 0 at padding"),
    "a segment at padding": (spoiled("segment_ids", 0, 3, 0), ValueError, "segment_ids is not -1 at padding"),
    "no segment": (spoiled("segment_ids", 0, 1, -1), ValueError, "segment_ids is out of order at 2 tokens"),
    "not from 0": (spoiled("segment_ids", 0, 0, 1), ValueError, "segment_ids is out of order .*token 0 of"),
    "a gap": (spoiled("segment_ids", 2, 1, 7), ValueError, "segment_ids is out of order .*token 1 of completion 2"),
    "padding for the critic": (spoiled("value_mask", 1, 1, True), ValueError, "value_mask is True at padding"),
    "NaN for the critic": (spoiled("returns", 2, 1, math.inf), ValueError, "returns is NaN or infinite inside"),
    "returns for nobody": (lambda c: dataclasses.replace(c, value_mask=None), ValueError, "returns and value_mask"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "error", "words"), WRONG.values(), ids=list(WRONG))
def test_what_is_wrong_is_named(change, error, words):
    seen = rollouts()
    with pytest.raises(error, match=f"^Mine: .*{words}"):
        checked(change(PPO().credit(seen)), seen, "Mine")


def test_a_critic_that_was_never_asked():
    seen = rollouts()
    credit = PPO().credit(seen)
    seen.values = None
    with pytest.raises(ValueError, match="no critic's values: uses_critic must be True"):
        checked(credit, seen, "Mine")


def test_training_stops_before_the_first_update(tmp_path):
    class Everywhere(GRPO):
        def credit(self, rollouts):
            credit = super().credit(rollouts)
            return dataclasses.replace(credit, loss_mask=torch.ones_like(credit.loss_mask))

    model = families.llama(tmp_path / "llama")
    config = config_for(model, tmp_path / "run", Everywhere(), num_generations=6)
    trainer = Trainer(config, task=ToyTask(images=False))
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    with pytest.raises(ValueError, match=r"GRPO \(Everywhere.credit\): loss_mask is True at padding"):
        trainer.run()
    assert all(torch.equal(value, before[name]) for name, value in trainer.network.state_dict().items())
