"""A run that is killed at random moments, resumed, and killed again is, bit for bit, the run that nobody touched.

The processes are real. Half of the kills come after a random time, half as soon as a writer's temporary file can be
seen: the moments that hurt are short. While a run is under way it is read again and again, as the app reads it.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file

from segpo_core.record import store
from segpo_core.training import checkpoint
from tests.fakes.forks import forked, ranks, start

STEPS = 12
LIMIT = 900.0  #: seconds that a start may take; none comes near, and one that hangs is told
COMMON = (
    f"--max-steps {STEPS} --num-generations 4 --per-device-train-batch-size 4 --max-completion-length 8 --save-steps 2 "
    "--save-total-limit 99 --learning-rate 1e-3 --eval-steps 4 --eval-size 2 --cpu"
)
#: What is trained, how: name -> (flags, whether pictures are seen).
KINDS = {
    "grpo": ("--method grpo --steps-per-generation 2", False),
    "sapo": ("--method sapo", True),
    "spo_tree": ("--method spo_tree --branch 2 2 --segment-tokens 3", False),
    "srpo": ("--method srpo", True),
    "ppo": ("--method ppo", False),
    "grpo, LoRA, accumulation": ("--method grpo --use-peft --lora-r 4 --gradient-accumulation-steps 2", False),
}


@dataclass
class Told:
    """What came of one kind."""

    kills: int = 0  #: of processes that were at work
    starts: int = 0
    reads: int = 0  #: of the whole directory, while it was written
    wrong: str = ""


def read(run: Path) -> None:
    """As a reader sees it: every file that can be seen is whole.

    Raises:
        what the readers raise; nothing else may happen but that a run is not there yet.
    """
    if not (run / "run.json").exists():
        return
    store.read_manifest(run)
    store.read_metrics(run)
    for step in store.rollout_steps(run)[-1:]:
        try:
            store.read_rollouts(run, [step])
            store.read_eval(run, [step])
            store.read_nodes(run, [step])
        except FileNotFoundError:  # a resumed run takes back what it makes again
            pass
    for path in checkpoint.listed(run / "checkpoints"):
        if (why := checkpoint.damage(path)) is not None and path.exists():
            raise ValueError(f"{path} can be seen and is not whole: {why}")


def whole(run: Path) -> None:
    """After a kill: no file that can be seen is torn."""
    for path in run.glob("[!.]*/[!.]*.parquet"):
        pq.read_table(path)
    read(run)


def writing(run: Path) -> bool:
    """Whether a writer's temporary file can be seen."""
    return any(next(run.glob(pattern), None) for pattern in ("*/.*", ".*"))


def attempt(argv: list[str], run: Path, processes: int, rng: random.Random, length: float, told: Told) -> bool:
    """Start once and kill at some moment. Returns whether the run came to its end before."""
    told.starts += 1
    said = run.with_name(f"{run.name}.said")
    resumes = ["--resume"] if (run / "run.json").exists() or (run / "trainer.lock").exists() else []
    argv = [*argv, *resumes]
    started = ranks(argv, processes, said) if processes > 1 else [start(argv, said)]
    begin, moment = time.monotonic(), rng.random() * length
    at_a_file = rng.random() < 0.5
    while all(process.is_alive() for process in started):
        passed = time.monotonic() - begin
        if passed > LIMIT:
            raise TimeoutError(f"it did not end in {LIMIT:.0f} s")
        if passed >= moment and (not at_a_file or writing(run)):
            victim = rng.choice(started)
            victim.kill()
            victim.join()
            told.kills += victim.exitcode == -signal.SIGKILL
            break
        if at_a_file and passed >= moment:  # what is looked for would be gone before the reading is done
            time.sleep(0.001)
        else:
            read(run)
            told.reads += 1
            time.sleep(0.02)
    ended = all(process.exitcode == 0 for process in started)
    for process in started:
        if not ended:  # what a launcher does to the others
            process.join(2)
            process.kill()
        process.join(LIMIT)
    codes = [process.exitcode for process in started]
    if all(code == 0 for code in codes):
        return True
    if processes > 1 and "EADDRINUSE" in said.read_text():  # somebody else took the port meanwhile
        said.unlink()
        return False
    if -signal.SIGKILL not in codes:
        raise RuntimeError(f"it ended by itself with {codes}: {said.read_text()[-2000:]}")
    return False


def straight(argv: list[str], run: Path, processes: int) -> float:
    """The run that nobody touches. Returns the seconds that it took."""
    first = forked.Process(target=int)  # the server imports everything now
    first.start()
    first.join(LIMIT)
    begin, told = time.monotonic(), Told()
    if not attempt(argv, run, processes, random.Random(0), 100 * LIMIT, told):
        raise RuntimeError(run.with_name(f"{run.name}.said").read_text()[-2000:])
    return time.monotonic() - begin


def command(kind: str, model: Path, problems: Path, out: Path) -> list[str]:
    flags, pictures = KINDS[kind]
    seen = [] if pictures else ["--dataset", str(problems)]
    own = ["--model-name-or-path", str(model), "--output-dir", str(out), *seen]
    return ["train", *own, "--reward-funcs", "tests.fakes.toy:lucky_text", *COMMON.split(), *flags.split()]


def killed(kind: str, model: Path, place: Path, kills: int, processes: int = 1, seed: int = 0) -> Told:
    """Kill runs of one kind until that many kills are done, and hold each against the one that nobody touched."""
    rng, told = random.Random(seed), Told()
    problems = place / "sums.jsonl"
    problems.write_text("\n".join(json.dumps({"prompt": f"{i} + 1 =", "answer": str(i + 1)}) for i in range(12)))
    try:
        one = place / "straight"
        length = straight(command(kind, model, problems, one), one, processes)
        while told.kills < kills:
            two = place / "killed"
            argv, before = command(kind, model, problems, two), told.kills
            while not attempt(argv, two, processes, rng, length, told):
                whole(two)
                if told.kills >= kills:  # enough: now to the end
                    length = 100 * LIMIT
            if told.kills > before and (why := difference(one, two)):
                raise ValueError(why)
            shutil.rmtree(two)
    except Exception as error:
        told.wrong = f"{type(error).__name__}: {error}"
    return told


def difference(one: Path, two: Path) -> str | None:
    """What of two runs is not the same, bit for bit; times are left out."""
    a, b = (_numbers(run) for run in (one, two))
    if a != b:
        return f"metrics: {sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))[:3]}"
    for reader in (store.read_rollouts, store.read_eval, store.read_nodes):
        if not reader(one).equals(reader(two)):
            return reader.__name__
    names = [sorted(p.name for p in (run / "images").iterdir()) for run in (one, two)]
    if names[0] != names[1] and not set(names[0]) <= set(names[1]):
        return "images"
    saved = [[path.name for path in checkpoint.listed(run / "checkpoints")] for run in (one, two)]
    if saved[0] != saved[1]:
        return f"checkpoints: {saved}"
    for name in saved[0]:
        paths = [run / "checkpoints" / name for run in (one, two)]
        # the card names the run's folder, and the evaluation that this start of it has seen
        for file in sorted({p.name for path in paths for p in path.iterdir()} - {"trainer.json", "README.md"}):
            if not _same(paths[0] / file, paths[1] / file):
                return f"checkpoints/{name}/{file}"
    if left := [path for path in two.rglob(".*")]:
        return f"left behind: {left[0]}"
    return None


def _numbers(run: Path) -> dict:
    rows = store.read_metrics(run).to_pylist()
    return {(r["step"], r["name"]): repr(r["value"]) for r in rows if not r["name"].startswith("time/")}


def _same(one: Path, two: Path) -> bool:
    if not (one.exists() and two.exists()):
        return False
    if one.suffix == ".pt":
        a, b = (torch.load(path, weights_only=True) for path in (one, two))
        return _equal(a, b)
    if one.suffix == ".safetensors":
        a, b = load_file(one), load_file(two)
        return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    return one.read_bytes() == two.read_bytes()


def _equal(one: object, two: object) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(two, torch.Tensor) and torch.equal(one, two)
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(_equal(one[k], two[k]) for k in one)
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        return len(one) == len(two) and all(map(_equal, one, two))
    return one == two
