"""Held-out accuracy before and after training on the demo's own settings: methods x seeds.

    python benchmarks/learning_curves.py                     # the table and runs behind the README's picture
    python benchmarks/learning_curves.py --methods sapo --seeds 0 --steps 50

Each run is a process of its own on one core; `--jobs` of them at a time. Runs that are there already are read, not
repeated, so the table can be printed again at no cost.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from segpo_core.record import store

ROOT = Path(__file__).resolve().parent.parent
SHOWN = ("answer", "perception", "grounded")


def run(directory: Path, method: str, seed: int, steps: int) -> None:
    if (directory / "metrics" / f"{store.step_name(steps)}.parquet").exists():
        return
    command = [
        sys.executable, "-m", "segpo_core.cli", "train", "--config", str(ROOT / "configs/demo.yaml"),
        "--method", method, "--output-dir", str(directory), "--seed", str(seed), "--max-steps", str(steps),
        "--eval-size", "200",
        "--save-steps", "0", "--record-steps", "10",
    ]  # fmt: skip
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{directory.name} failed:\n{done.stderr}")


def curve(directory: Path) -> dict[tuple[int, str], float]:
    rows = store.read_metrics(directory).to_pylist()
    return {(row["step"], row["name"]): row["value"] for row in rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["grpo", "sapo"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "curves")
    args = parser.parse_args()
    jobs = [(args.out / f"{m}-{s}", m, s, args.steps) for s in args.seeds for m in args.methods]
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda job: run(*job), jobs))
    print(f"{os.cpu_count()} cores {platform.machine()}, {args.steps} steps, held-out, greedy; seeds {args.seeds}\n")
    print("| method | | before | best mean | at step | after | after, each seed |\n|---|---|---|---|---|---|---|")
    for method in args.methods:
        curves = [curve(args.out / f"{method}-{seed}") for seed in args.seeds]
        steps = sorted({step for step, name in curves[0] if name == "eval/answer"})
        for name in SHOWN:
            mean = {step: statistics.mean(c[step, f"eval/{name}"] for c in curves) for step in steps}
            best = max(mean, key=mean.get)
            last = [c[steps[-1], f"eval/{name}"] for c in curves]
            each = ", ".join(f"{value:.2f}" for value in last)
            print(f"| {method} | {name} | {mean[0]:.2f} | {mean[best]:.2f} | {best} | {mean[steps[-1]]:.2f} | {each} |")


if __name__ == "__main__":
    main()
