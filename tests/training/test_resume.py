"""Ctrl-C, and a checkpoint that cannot be written. With a real process. (Kills: tests/torture/test_kills.py.)"""

import signal
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from segpo_core.record import store
from segpo_core.training import checkpoint
from tests.fakes import families
from tests.fakes.forks import Segpo

STEPS = 9


def command(model: Path, out: Path, *more: str) -> list[str]:
    return [
        "train", "--model-name-or-path", str(model), "--output-dir", str(out),
        "--method", "sapo", "--max-steps", str(STEPS), "--num-generations", "4", "--per-device-train-batch-size", "8",
        "--steps-per-generation", "2", "--max-completion-length", "10", "--learning-rate", "1e-3", "--save-steps", "2",
        "--save-total-limit", "20", "--eval-steps", "3", "--eval-size", "4", "--cpu", *more,
    ]  # fmt: skip


def no_torn_file(run: Path) -> None:
    """Everything a reader can see is whole."""
    for path in run.rglob("*.parquet"):
        if not path.name.startswith("."):
            pq.read_table(path)
    for path in (run / "checkpoints").glob("step-*"):
        load_file(path / "model.safetensors")
        torch.load(path / "optimizer.pt", weights_only=True)


def metrics(run: Path) -> dict:
    rows = store.read_metrics(run).to_pylist()
    return {(r["step"], r["name"]): r["value"] for r in rows if not r["name"].startswith("time/")}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return families.llava(tmp_path_factory.mktemp("llava"))


@pytest.mark.slow
def test_ctrl_c_ends_cleanly_and_saves(model, tmp_path):
    out = tmp_path / "run"
    process = Segpo(*command(model, out, "--max-steps", "1000"))
    while not (out / "metrics" / "step-000002.parquet").exists():
        assert process.poll() is None, process.said
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(300) == 0, process.said
    steps = sorted({step for step, _ in metrics(out)})
    assert checkpoint.read_step(checkpoint.latest(out / "checkpoints")) == steps[-1] < 1000


def test_a_failing_checkpoint_leaves_the_earlier_ones(model, tmp_path, monkeypatch):
    """No space left: a clear error, nothing torn, earlier results whole."""
    from segpo_core.algos import GRPO
    from segpo_core.training.loop import Trainer
    from tests.fakes.toy import ToyTask
    from tests.training.test_loop import config_for

    trainer = Trainer(
        config_for(model, tmp_path / "run", GRPO(), max_steps=4, save_steps=1, save_total_limit=9), task=ToyTask()
    )
    save = torch.save
    calls = []

    def full(*args, **kwargs):
        calls.append(1)
        if len(calls) >= 3:
            raise OSError(28, "No space left on device")
        return save(*args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        trainer.run()
    kept = checkpoint.listed(tmp_path / "run" / "checkpoints")
    assert [path.name for path in kept] == ["step-000001", "step-000002"]
    assert not list((tmp_path / "run" / "checkpoints").glob(".*")), "no leftovers"
    no_torn_file(tmp_path / "run")
