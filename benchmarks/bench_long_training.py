"""A long training of tiny steps with an app that watches it: memory and open files of both, every 250 steps.

    python benchmarks/bench_long_training.py [STEPS] [--recorded]        (default 10,000: about an hour)

A real training, with a model of 100,000 parameters and random weights, a prompt and 4 completions of 4 tokens a step,
every step recorded; and the real server, asked every few seconds for what an open browser asks. Of memory both numbers
are shown: all that is resident, and what is the process's alone (that of libraries' files left out).

`--recorded`: no training, the steps of bench_long_run.py (60 metrics, half of its rollouts) written by the trainer's
recorder as fast as it can, in some minutes: for the app.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from bench_app import ROOT, Asker, app

EVERY = 250  #: steps between two looks

TRAIN = """
import sys, torch
from pathlib import Path
from segpo_core.config import from_dict
from segpo_core.training.loop import Trainer
from tests.fakes.families import llama
from tests.fakes.toy import ToyTask
torch.set_num_threads(1)
place, steps = Path(sys.argv[1]), int(sys.argv[2])
settings = {
    "method": "grpo", "model_name_or_path": str(llama(place / "model")), "output_dir": str(place / "runs" / "long"),
    "cpu": True, "num_generations": 4, "per_device_train_batch_size": 4, "max_completion_length": 4,
    "learning_rate": 1e-5, "max_steps": steps, "eval_steps": 0, "save_steps": 0, "record_steps": 1,
}
Trainer(from_dict(settings, "bench"), task=ToyTask(images=False)).run()
"""

WRITE = """
import math, os, sys
from pathlib import Path
sys.path.insert(0, "benchmarks")
from bench_long_run import NAMES, patterns
from segpo_core.record.store import Recorder
recorder, steps = Recorder(Path(sys.argv[1]) / "runs" / "long"), int(sys.argv[2])
recorder.start({"method": "sapo", "max_steps": steps})
rows = [table.to_pylist()[:4] for table in patterns()]
os.fsync = lambda file: None
for step in range(1, steps + 1):
    recorder.rollouts(step, [row | {"step": step} for row in rows[step % len(rows)]], {})
    recorder.metrics(step, {name: math.sin(step * place) for place, name in enumerate(NAMES)})
recorder.finish()
"""


def main(steps: int, recorded: bool) -> None:
    with tempfile.TemporaryDirectory() as place, app(Path(place) / "runs") as (address, server):
        run = Path(place) / "runs" / "long"
        command = [sys.executable, "-c", WRITE if recorded else TRAIN, place, str(steps)]
        with subprocess.Popen(command, cwd=ROOT) as training:
            trainer, asker = psutil.Process(training.pid), Asker(address)
            print("| step | files of the run | trainer: MB, its own, open files | app: MB, its own, open files |")
            print("|---|---|---|---|")
            marks = list(range(EVERY, steps, EVERY))
            while training.poll() is None:
                time.sleep(3)
                asker.ask("runs")
                step = asker.ask("runs")["runs"][0]["step"] if asker.ask("runs")["runs"] else None
                if step is None:
                    continue
                asker.ask("live", run="long")
                asker.ask("rollouts", run="long", limit=50)
                if marks and step >= marks[0]:
                    marks = [mark for mark in marks if mark > step]
                    try:
                        print(row(step, run, trainer, server), flush=True)
                    except psutil.NoSuchProcess:
                        break
        print(f"the trainer ended with {training.returncode}; {row_of(server)}; {files(run):,} files at the end")


def row(step: int, run: Path, trainer: psutil.Process, server: psutil.Process) -> str:
    return f"| {step:,} | {files(run):,} | {row_of(trainer)} | {row_of(server)} |"


def row_of(process: psutil.Process) -> str:
    memory = process.memory_full_info()
    return f"{memory.rss / 1e6:.0f}, {memory.uss / 1e6:.0f}, {process.num_fds()}"


def files(run: Path) -> int:
    return sum(len(list((run / kind).glob("*"))) for kind in ("metrics", "rollouts", "nodes"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", type=int, nargs="?", default=10_000)
    parser.add_argument("--recorded", action="store_true", help="no training: its record, as fast as it can be written")
    main(**vars(parser.parse_args()))
