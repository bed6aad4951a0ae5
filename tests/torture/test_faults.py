"""Renames that fail, as they do on network file systems and full disks: nothing learnt is lost, training goes on."""

import errno
import os
import random

import pytest

from segpo_core.algos import GRPO
from segpo_core.record import store
from segpo_core.training import checkpoint
from segpo_core.training.loop import Trainer
from tests.fakes import families
from tests.fakes.toy import ToyTask
from tests.training.test_loop import config_for

FAULTS = (errno.ESTALE, errno.EIO, errno.ENOSPC, errno.EROFS, errno.ENOTEMPTY, errno.EXDEV, errno.EDQUOT, errno.EACCES)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return families.llama(tmp_path_factory.mktemp("llama"))


def trainer(model, out, **changes):
    return Trainer(config_for(model, out, GRPO(), **changes), task=ToyTask(images=False))


def weights(run):
    return (checkpoint.latest(run / "checkpoints") / "model.safetensors").read_bytes()


def failing(monkeypatch, fails):
    """`os.replace` raises where `fails(target)` gives an error number."""
    real = os.replace

    def replace(source, target, **more):
        if number := fails(os.fspath(target)):
            raise OSError(number, os.strerror(number), os.fspath(target))
        return real(source, target, **more)

    monkeypatch.setattr(os, "replace", replace)


def test_renames_fail_now_and_then(model, tmp_path, monkeypatch, caplog):
    whole = trainer(model, tmp_path / "whole", max_steps=6, save_steps=2).run()
    monkeypatch.setattr(checkpoint, "WAITS", (0.0,) * 40)
    rng = random.Random(0)
    run = trainer(model, tmp_path / "run", max_steps=6, save_steps=2)
    failing(monkeypatch, lambda target: rng.choice(FAULTS) if rng.random() < 0.4 else 0)
    run.run()
    assert run.recorder.failures > 0 and "were not recorded, training goes on" in caplog.text
    assert weights(tmp_path / "run") == weights(whole), "what was learnt is the same"
    run.recorder.metrics(7, {"reward": 0.0})  # the disk is whole again in the end
    monkeypatch.undo()
    run.recorder.metrics(8, {"reward": 0.0})
    assert store.metric_steps(tmp_path / "run") == list(range(1, 9)), "metrics waited for their file"
    assert not [path for path in (tmp_path / "run").rglob("*.tmp")]


def test_a_last_checkpoint_that_cannot_be_written_is_said(model, tmp_path, monkeypatch):
    """The one before stays, and the run can go on from it."""
    run = trainer(model, tmp_path / "run", max_steps=3, save_steps=2)
    monkeypatch.setattr(checkpoint, "WAITS", (0.0, 0.0))
    tried = []
    failing(monkeypatch, lambda target: tried.append(1) or errno.ENOSPC if target.endswith("step-000003") else 0)
    with pytest.raises(OSError, match="No space left"):
        run.run()
    assert len(tried) == 3 and checkpoint.read_step(checkpoint.latest(tmp_path / "run" / "checkpoints")) == 2
    monkeypatch.undo()
    assert trainer(model, tmp_path / "run", max_steps=3, save_steps=2, resume=True).run()
