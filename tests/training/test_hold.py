"""The lock of a run directory, with real processes: killed, frozen, on other machines, and many at once.

A process that plays another machine has a host's name of its own where the system allows it (a UTS namespace), says
that it was booted another time, and asks for no lock of the kernel's: between machines some file systems carry none.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from segpo_core.algos import GRPO
from segpo_core.record import store
from segpo_core.training import hold as module
from segpo_core.training.hold import LOCK, Hold
from segpo_core.training.loop import Trainer
from tests.fakes import families
from tests.fakes.forks import forked, ranks
from tests.fakes.toy import ToyTask
from tests.torture.disks import called
from tests.training.test_loop import config_for

BEAT, STALE = 0.1, 1.0
LIMIT = 120.0


def no_locks(handle: int, operation: int) -> None:
    raise OSError(errno.ENOTSUP, "no locks here")


def elsewhere(name: str) -> None:
    """From here on this process is on another machine."""
    module.BEAT, module.STALE = BEAT, STALE
    module.machine = lambda: f"booted as {name}"
    module.fcntl.flock = no_locks
    try:
        called("unshare", 0x4000000)  # CLONE_NEWUTS
        socket.sethostname(name)
    except OSError:
        module.socket.gethostname = lambda: name


def holds(run: str, machine: str, said: str) -> None:
    """Hold a directory until the end is asked for, and say in a file how that went."""
    if machine:
        elsewhere(machine)
    told = Path(said)
    try:
        hold = Hold(Path(run))
    except ValueError as error:
        told.write_text(f"refused: {error}")
        return
    told.write_text("held")
    while not told.with_suffix(".end").exists():
        if lost := hold.lost():
            told.write_text(f"lost: {lost}")
            return
        time.sleep(0.02)
    hold.release()
    told.write_text("released")


def begin(run: Path, machine: str = "", name: str = "one"):
    said = run.with_name(f"{name}.said")
    process = forked.Process(target=holds, args=(str(run), machine, str(said)), daemon=True)
    process.start()
    return process, said


def wait(said: Path, *words: str) -> str:
    until = time.monotonic() + LIMIT
    while time.monotonic() < until:
        if said.exists() and (text := said.read_text()).startswith(words):
            return text
        time.sleep(0.01)
    raise AssertionError(f"{words} was not said")


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(module, "BEAT", BEAT)
    monkeypatch.setattr(module, "STALE", STALE)


@pytest.fixture
def lockless(short, monkeypatch):
    """As seen from a machine whose file system carries no locks."""
    monkeypatch.setattr(module.fcntl, "flock", no_locks)


@pytest.mark.parametrize("locks", [True, False])
def test_on_one_machine_a_dead_owner_holds_nothing_and_a_living_one_all(tmp_path, monkeypatch, locks):
    """At once, with signs of life as rare as they are for users."""
    run = tmp_path / "run"
    if not locks:
        monkeypatch.setattr(module.fcntl, "flock", no_locks)
    owner, said = begin(run)
    wait(said, "held")
    with pytest.raises(ValueError, match=rf"being trained by process {owner.pid} on {socket.gethostname()} since 20"):
        Hold(run)
    os.kill(owner.pid, signal.SIGSTOP)  # a frozen one lives
    with pytest.raises(ValueError, match="being trained"):
        Hold(run)
    owner.kill()
    owner.join()
    began = time.monotonic()
    hold = Hold(run)
    assert time.monotonic() - began < module.BEAT / 2 and not hold.lost()
    hold.release()
    assert (run / LOCK).read_bytes() == b"" and os.listdir(run) == [LOCK]


def test_an_owner_on_another_machine_is_refused_by_a_sign_of_life(tmp_path, lockless):
    owner, said = begin(tmp_path / "run", "node-7")
    wait(said, "held")
    began = time.monotonic()
    with pytest.raises(ValueError, match=rf"being trained by process {owner.pid} on node-7 since 20.*--output-dir"):
        Hold(tmp_path / "run")
    assert time.monotonic() - began < STALE
    said.with_suffix(".end").touch()
    wait(said, "released")
    Hold(tmp_path / "run").release()


@pytest.mark.parametrize("locks", [True, False])
def test_one_that_died_on_another_machine_is_waited_for_and_then_taken_over(
    tmp_path, short, monkeypatch, caplog, locks
):
    """Also where a lock of the kernel is to be had: it may hold on this machine alone."""
    if not locks:
        monkeypatch.setattr(module.fcntl, "flock", no_locks)
    monkeypatch.setattr(time, "time", lambda: 0.0)  # this machine's clock says nothing
    run = tmp_path / "run"
    owner, said = begin(run, "node-7")
    wait(said, "held")
    owner.kill()
    owner.join()
    began = time.monotonic()
    hold = Hold(run)
    assert 0.5 * STALE < time.monotonic() - began < 2 * STALE + 1 and not hold.lost()
    assert "waiting at most 1 s for a sign of its life" in caplog.text and "is taken for dead" in caplog.text
    hold.release()
    owner, said = begin(run, "node-7", "two")
    wait(said, "held")
    owner.kill()
    owner.join()
    for moved, most in ((-3600, 0.5), (3600, 2 * STALE + 1)):  # long ago; and by a server whose clock was set back
        os.utime(run / LOCK, (os.stat(run / LOCK).st_mtime + moved,) * 2)
        began, before = time.monotonic(), (run / LOCK).read_bytes()
        hold = Hold(run)
        assert time.monotonic() - began < most
        hold.release()
        (run / LOCK).write_bytes(before)
    assert os.listdir(run) == [LOCK]


def test_of_many_that_take_over_at_once_one_has_it(tmp_path):
    run = tmp_path / "run"
    owner, said = begin(run, "node-0")
    wait(said, "held")
    owner.kill()
    owner.join()
    others = [begin(run, f"node-{i}", str(i)) for i in range(1, 9)]
    told = [wait(said, "refused", "held", "lost") for _, said in others]
    time.sleep(5 * BEAT)
    told = [said.read_text() for _, said in others]
    assert sum(text == "held" for text in told) == 1, told
    assert all(text == "held" or "node-" in text for text in told), told
    for process, said in others:
        said.with_suffix(".end").touch()
        process.join(LIMIT)
    assert os.listdir(run) == [LOCK]


def files(run: Path) -> dict[str, tuple[int, int]]:
    return {str(p.relative_to(run)): (p.stat().st_mtime_ns, p.stat().st_size) for p in run.rglob("*") if p.is_file()}


def trains(model: str, run: str, machine: str, said: str, steps: int, resume: bool) -> None:
    elsewhere(machine)
    told = Path(said)
    try:
        config = config_for(Path(model), Path(run), GRPO(), max_steps=steps, save_steps=1, save_total_limit=2)
        config.resume = resume
        Trainer(config, task=ToyTask(images=False), on_step=lambda step, *rest: told.write_text(f"step {step}")).run()
        told.write_text("ended")
    except (ValueError, OSError) as error:
        told.write_text(f"error: {error}")


@pytest.mark.slow
def test_a_frozen_trainer_that_was_taken_over_writes_no_more(tmp_path):
    """Stopped in the middle of its work, longer than an owner may be silent; another machine trains on to the end."""
    model, run = families.llama(tmp_path / "model"), tmp_path / "run"

    def start(machine: str, steps: int, resume: bool):
        said = tmp_path / f"{machine}.said"
        process = forked.Process(target=trains, args=(str(model), str(run), machine, str(said), steps, resume))
        process.start()
        return process, said

    first, said = start("node-1", 100_000, False)
    wait(said, "step 3", "error", "step 4", "step 5", "step 6")
    os.kill(first.pid, signal.SIGSTOP)
    saved = store.metric_steps(run)[-1]
    second, told = start("node-2", saved + 3, True)
    assert wait(told, "ended", "error") == "ended"
    second.join(LIMIT)
    assert store.metric_steps(run) == list(range(1, saved + 4)), "it went on from what the first one had saved"
    before = files(run)
    os.kill(first.pid, signal.SIGCONT)
    words = wait(said, "error", "ended")
    first.join(LIMIT)
    assert "was taken over by another trainer, which has ended since" in words and "writes no more" in words
    assert {name: facts for name, facts in files(run).items() if not name.endswith(".tmp")} == before


@pytest.mark.slow
def test_of_several_processes_all_end(tmp_path):
    """The main process finds out, and none waits for it."""
    model, run, said = families.llama(tmp_path / "model"), tmp_path / "run", tmp_path / "said"
    problems = tmp_path / "sums.jsonl"
    problems.write_text("\n".join(json.dumps({"prompt": f"{i} + 1 =", "answer": str(i + 1)}) for i in range(12)))
    flags = (
        "--method grpo --max-steps 100000 --num-generations 2 --per-device-train-batch-size 2 --cpu "
        "--max-completion-length 4 --save-steps 1 --eval-steps 0"
    )
    own = ["--model-name-or-path", str(model), "--output-dir", str(run), "--dataset", str(problems)]
    started = ranks(["train", *own, *flags.split()], 2, said)
    until = time.monotonic() + LIMIT
    while not (run / "metrics" / "step-000002.parquet").exists():
        assert time.monotonic() < until and all(process.is_alive() for process in started), said.read_text()
        time.sleep(0.01)
    owner = {"host": "node-9", "process": 1, "started": "2026-01-01T00:00:00+00:00", "token": "another's"}
    (tmp_path / "lock").write_text(json.dumps(owner))
    os.replace(tmp_path / "lock", run / LOCK)
    for process in started:
        process.join(LIMIT)
    words = " ".join(said.read_text().split())
    assert [process.exitcode for process in started] == [1, 1], words
    assert words.count("was taken over by process 1 on node-9 since 2026") >= 2 and "Traceback" not in words
    assert json.loads((run / LOCK).read_text()) == owner, "what is another's is left alone"


def test_a_directory_that_is_made_again_is_held_again(tmp_path, short):
    run = tmp_path / "run"
    hold = Hold(run)
    (run / LOCK).unlink()
    until = time.monotonic() + LIMIT
    while not (run / LOCK).exists() or not (run / LOCK).stat().st_size:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert not hold.lost()
    with pytest.raises(ValueError, match=f"process {os.getpid()} on"):
        Hold(run)
    hold.release()
    Hold(run).release()


def test_what_was_let_go_was_not_taken(tmp_path):
    """After its run, a trainer may still evaluate, or save once more."""
    trainer = Trainer(config_for(families.llama(tmp_path / "m"), tmp_path / "run", GRPO()), task=ToyTask(images=False))
    trainer.run()
    trainer.evaluate()
    assert trainer.save()


def test_a_trainer_that_is_dropped_lets_go(tmp_path):
    hold = Hold(tmp_path / "run")
    del hold
    Hold(tmp_path / "run").release()


@pytest.mark.parametrize(
    "text", [b"", b"\0" * 512, b'{"host": [], "process": 1e999, "started": {}}', b"[" * 4000, b"x" * 9000, b'{"host":']
)
def test_a_lock_that_says_nothing_holds_nobody(tmp_path, text):
    (tmp_path / LOCK).write_bytes(text)
    Hold(tmp_path).release()


def test_a_pipe_for_a_lock_is_said(tmp_path):
    os.mkfifo(tmp_path / LOCK)
    with pytest.raises(ValueError, match="no plain file: remove it"):
        Hold(tmp_path)


def test_the_lock_of_an_earlier_version_counts(tmp_path, short):
    """It names no machine; where it is from another host, its age decides."""
    owner = {"host": "node-7", "process": 1, "started": "2026-01-01T00:00:00+00:00"}
    (tmp_path / LOCK).write_text(json.dumps(owner))
    began = time.monotonic()
    Hold(tmp_path).release()
    assert time.monotonic() - began > 0.5 * STALE
    (tmp_path / LOCK).write_text(json.dumps(owner | {"host": socket.gethostname()}))
    Hold(tmp_path).release()


def test_signs_of_life_keep_no_process_alive(tmp_path):
    """Neither at its end nor where the trainer is never run; and the end lets go."""
    code = (
        "import sys; from pathlib import Path; from segpo_core.training.hold import Hold; h = Hold(Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=LIMIT)
    assert (tmp_path / LOCK).read_bytes() == b""
