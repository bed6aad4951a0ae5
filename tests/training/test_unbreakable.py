"""What clusters, disks and second processes do to a run: nothing learnt is lost, nothing ends in a traceback."""

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from segpo_core.algos import GRPO
from segpo_core.cli import parse_train
from segpo_core.record import store
from segpo_core.training import checkpoint
from segpo_core.training.loop import Trainer
from tests.fakes import families
from tests.fakes.forks import Segpo
from tests.fakes.toy import ToyTask
from tests.training.test_loop import config_for

SEGPO = [sys.executable, "-m", "segpo_core.cli"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return families.llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "sums.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"{i} + 1 =", "answer": str(i + 1)}) for i in range(12)))
    return path


def command(model: Path, problems: Path, out: Path, *more: str) -> list[str]:
    return [
        "train", "--model-name-or-path", str(model), "--output-dir", str(out),
        "--method", "grpo", "--dataset", str(problems), "--max-steps", "100000", "--num-generations", "2",
        "--per-device-train-batch-size", "2", "--max-completion-length", "4", "--save-steps", "0", "--eval-steps", "0",
        "--cpu", *more,
    ]  # fmt: skip


def launch(*args: object) -> Segpo:
    return Segpo(*command(*args))


def wait_for_step(process: Segpo, out: Path, step: int) -> None:
    deadline = time.monotonic() + 100
    while not (out / "metrics" / f"step-{step:06d}.parquet").exists():
        assert process.poll() is None, process.said
        assert time.monotonic() < deadline, "the run did not get there"
        time.sleep(0.01)


def trainer(model: Path, out: Path, **changes: object) -> Trainer:
    return Trainer(config_for(model, out, GRPO(), **changes), task=ToyTask(images=False))


def weights(run: Path) -> bytes:
    return (checkpoint.latest(run / "checkpoints") / "model.safetensors").read_bytes()


def test_one_trainer_a_directory_and_sigterm_saves(model, problems, tmp_path):
    """A second trainer is refused by name; SIGTERM ends the step, saves and says so in the exit code."""
    out = tmp_path / "run"
    first = launch(model, problems, out)
    wait_for_step(first, out, 1)
    flags = command(model, problems, out, "--resume")[1:]
    with pytest.raises(ValueError, match=rf"is being trained by process {first.pid} on "):
        Trainer(parse_train(flags))
    first.send_signal(signal.SIGTERM)
    output, _ = first.communicate(timeout=60)
    assert first.returncode == 143 and "SIGTERM: ended after step" in output, output
    last = store.metric_steps(out)[-1]
    assert checkpoint.read_step(checkpoint.latest(out / "checkpoints")) == last
    again = Trainer(parse_train([*flags, "--max-steps", str(last)]))  # whose owner is gone is free
    assert again.step == last
    again.run()


def test_a_killed_owner_holds_nothing_and_its_run_begins_again(model, problems, tmp_path):
    """Killed before its first checkpoint: `--resume` starts again at step 0 and makes the same numbers."""
    out = tmp_path / "run"
    process = launch(model, problems, out)
    wait_for_step(process, out, 2)
    process.kill()
    assert process.wait(60) == -signal.SIGKILL
    before = {(r["step"], r["name"]): r["value"] for r in store.read_metrics(out).to_pylist() if r["step"] <= 2}
    again = launch(model, problems, out, "--resume", "--max-steps", "2")
    output, _ = again.communicate(timeout=60)
    assert again.returncode == 0 and "starts again from step 0" in " ".join(output.split()), output
    after = {(r["step"], r["name"]): r["value"] for r in store.read_metrics(out).to_pylist()}
    assert after.keys() == before.keys() and {step for step, _ in after} == {1, 2}
    assert not [k for k in after if "time/" not in k[1] and after[k] != before[k] and after[k] == after[k]]


def test_checkpoints_by_the_clock(model, tmp_path):
    for minutes, steps in ((1e-9, [1, 2, 3]), (1e9, [3])):
        run = trainer(
            model, tmp_path / str(minutes), max_steps=3, save_steps=0, save_minutes=minutes, save_total_limit=9
        )
        run.run()
        assert [store.step_of(path) for path in checkpoint.listed(run.directory / "checkpoints")] == steps


def test_checkpoints_that_are_lost_do_not_cost_the_record(model, tmp_path):
    trainer(model, tmp_path / "run", max_steps=3, save_steps=1).run()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        trainer(model, tmp_path / "run", max_steps=3, save_steps=1, resume=True)
    assert store.rollout_steps(tmp_path / "run") == [1, 2, 3]


def test_a_start_that_was_interrupted_is_no_run(model, tmp_path):
    for name in ("metrics", "rollouts", "images", "checkpoints"):
        (tmp_path / "run" / name).mkdir(parents=True)
    (tmp_path / "run" / "trainer.lock").touch()
    assert trainer(model, tmp_path / "run", max_steps=1).run().exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="not empty and is not a run"):
        trainer(model, tmp_path / "mine", max_steps=1)
    assert os.listdir(tmp_path / "mine") == ["thesis.tex"], "nothing in it was touched"


def test_the_terminal_goes_and_the_run_saves(model, problems, tmp_path):
    """A real terminal that is closed: SIGHUP, and writing to it fails from then on."""
    out = tmp_path / "run"
    pid, terminal = pty.fork()
    if pid == 0:
        line = [*SEGPO, *command(model, problems, out)]
        os.execve(sys.executable, line, os.environ | {"OMP_NUM_THREADS": "1"})
    os.set_blocking(terminal, False)
    deadline = time.monotonic() + 60
    while not (out / "metrics" / "step-000001.parquet").exists():
        assert time.monotonic() < deadline
        try:
            os.read(terminal, 65536)
        except BlockingIOError:
            time.sleep(0.01)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 129
    assert checkpoint.read_step(checkpoint.latest(out / "checkpoints")) == store.metric_steps(out)[-1]


def test_a_second_signal_ends_now():
    """In a process that is in the middle of something long."""
    code = (
        "import sys, time; from segpo_core.training.watch import Interrupt\n"
        "with Interrupt():\n    print('ready', flush=True)\n    for _ in range(600): time.sleep(0.1)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert process.poll() is None, "the first one is a request"
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == -signal.SIGTERM
    process.stdout.close()


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (lambda path: os.truncate(path / "model.safetensors", 1000), "model.safetensors has 1000 bytes of"),
        (lambda path: (path / "optimizer.pt").unlink(), "optimizer.pt is missing"),
        (lambda path: (path / "trainer.json").write_text('{"step": 3'), "trainer.json cannot be read"),
        (lambda path: flip(path / "optimizer.pt"), "optimizer.pt has changed since it was written"),
    ],
    ids=["truncated", "missing", "manifest", "flipped"],
)
def test_a_torn_checkpoint_is_told_and_the_one_before_is_used(model, tmp_path, caplog, harm, why):
    out = tmp_path / "run"
    trainer(model, out, max_steps=3, save_steps=1).run()
    whole = weights(out)
    harm(checkpoint.listed(out / "checkpoints")[-1])
    again = trainer(model, out, max_steps=3, save_steps=1, resume=True)
    assert again.step == 2
    assert "step-000003 is not whole" in caplog.text and why in caplog.text
    again.run()
    assert weights(out) == whole, "the same run again"


def test_no_whole_checkpoint_is_said(model, tmp_path):
    trainer(model, tmp_path / "run", max_steps=1).run()
    (checkpoint.latest(tmp_path / "run" / "checkpoints") / "config.json").unlink()
    with pytest.raises(ValueError, match="config.json is missing.*no whole checkpoint"):
        trainer(model, tmp_path / "run", max_steps=2, resume=True)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_recording_never_stops_training(model, tmp_path, caplog):
    """Folders that are removed are made again; what cannot be written is told, tried again, and arrives."""
    run = trainer(model, tmp_path / "run", max_steps=6, save_steps=2)

    def harm(step: int, *_: object) -> None:
        for name in ("metrics", "rollouts", "checkpoints"):
            place = tmp_path / "run" / name
            if step == 1:  # removed
                shutil.rmtree(place)
            if step in (2, 3):  # a file where a folder belongs: no write there can succeed
                shutil.rmtree(place, ignore_errors=True)
                place.unlink(missing_ok=True)
                place.touch()
            if step == 4:
                place.unlink()

    run.on_step = harm
    run.run()
    assert run.step == 6 and run.recorder.failures > 0 and not run.recorder.unwritten
    assert "were not recorded, training goes on" in caplog.text and "no checkpoint, training goes on" in caplog.text
    assert store.metric_steps(tmp_path / "run") == [3, 4, 5, 6], "those of step 3 and 4 waited"
    assert store.rollout_steps(tmp_path / "run") == [5, 6]
    saved = [checkpoint.read_step(path) for path in checkpoint.listed(tmp_path / "run" / "checkpoints")]
    assert saved == [4, 6]


def test_checkpoints_are_removed_under_another_name(model, tmp_path, monkeypatch):
    """A reader never meets half of one."""
    real, seen = shutil.rmtree, []
    monkeypatch.setattr(
        checkpoint.shutil, "rmtree", lambda path, **kw: (seen.append(Path(path).name), real(path, **kw))
    )
    trainer(model, tmp_path / "run", max_steps=4, save_steps=1, save_total_limit=2).run()
    assert seen and all(name.startswith(".") for name in seen)
    assert sorted(os.listdir(tmp_path / "run" / "checkpoints")) == ["step-000003", "step-000004"]
    assert torch.load(tmp_path / "run" / "checkpoints" / "step-000004" / "optimizer.pt", weights_only=True)


def test_leftovers_of_killed_writers_go(model, tmp_path):
    """Temporary files of processes that are gone; those of a process that lives stay."""
    dead = subprocess.Popen(["true"])
    dead.wait()
    run = tmp_path / "run"
    for place in ("metrics", "rollouts", "images", "credit/rloo"):
        (run / place).mkdir(parents=True)
        (run / place / f".step-000001.parquet.{dead.pid}.tmp").touch()
        (run / place / f".step-000001.parquet.{os.getppid()}.tmp").touch()
    (run / "trainer.lock").touch()
    shutil.rmtree(run / "credit")
    trainer(model, run, max_steps=1).run()
    left = [path.name for path in run.rglob("*.tmp")]
    assert set(left) == {f".step-000001.parquet.{os.getppid()}.tmp"} and len(left) == 3


def test_copies_among_the_steps_are_not_read(model, tmp_path):
    run = trainer(model, tmp_path / "run", max_steps=1).run()
    whole = store.read_rollouts(run)
    for name in (
        "step-000001.copy.parquet",
        "step-000001 (1).parquet",
        "step-000001.rank0.parquet.bak",
        "step-1.parquet",
    ):
        shutil.copy(run / "rollouts" / "step-000001.rank0.parquet", run / "rollouts" / name)
    (run / "rollouts" / "step-000007.rank0.parquet").mkdir()
    assert store.rollout_steps(run) == [1] and store.read_rollouts(run, [1]).equals(whole)
    assert store.step_of(Path("step-1000000.parquet")) == 1_000_000


def test_an_adapters_checkpoint_is_the_same_in_every_process(model, problems, tmp_path):
    """peft keeps module names in a set, whose order differs from process to process."""
    said = []
    for seed in "01":
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": seed}
        line = [*SEGPO, *command(model, problems, tmp_path / seed, "--use-peft", "--max-steps", "1")]
        subprocess.run(line, env=env, check=True, capture_output=True)
        said.append((tmp_path / seed / "checkpoints" / "step-000001" / "adapter_config.json").read_bytes())
    assert said[0] == said[1]
