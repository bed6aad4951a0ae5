"""`segpo bench-credit`: every arm on the ground truth, its figures and its cost."""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from segpo_core.afterwards.bench_credit import arms, truth
from segpo_core.afterwards.bench_credit.figures import DECISIVE, figures
from segpo_core.afterwards.bench_credit.judged import join
from segpo_core.record import store

#: Of the table that is printed; the JSON file has all.
COLUMNS = ("pearson", "within", "sign", "hit", "chance", "first_error_hit", "cosine", "gradient_cosine", "tokens")


def main(argv: list[str], root: Path) -> int:
    parser = argparse.ArgumentParser(
        prog="segpo bench-credit", description="How right methods' credit is, on completions of known value."
    )
    parser.add_argument("arms", nargs="*", help='methods, settings after a space: forks "spo_chain interval=1"')
    parser.add_argument("--small", action="store_true", help="few arms, one problem of each policy: minutes")
    parser.add_argument("--problems", type=int, help="only the first of each policy; default: all")
    parser.add_argument("--truth", type=Path, default=root / "data" / "credit-truth", help="directory of the truth")
    parser.add_argument("--start", default=str(root / "data" / "tiny-vlm"), help="model of the policy 'start'")
    parser.add_argument("--run", type=Path, help="a run or a checkpoint: its policy and task, instead of the truth")
    parser.add_argument("--size", type=int, default=8, help="of a run: completions of each problem")
    parser.add_argument("--number", type=int, default=256, help="of a run: N of the fork values that are its truth")
    parser.add_argument("--trust-code", action="store_true", help="load what the run names for its rewards")
    parser.add_argument("--draws", type=int, default=1, help="independent draws of what an arm samples")
    parser.add_argument("--gradient", action="store_true", help="also the cosine in parameter space: a pass an arm")
    parser.add_argument("--json", type=Path, help="write {arm: figures} to this file, arm by arm; of a run: beside it")
    args = parser.parse_args(argv)
    for name in ("draws", "problems", "size", "number"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise ValueError(f"--{name} is {value}: at least one is needed")
    if args.run and args.json is None:
        args.json = beside(args.run)
    names = args.arms or (arms.SMALL if args.small else arms.ALL)
    for arm in names:  # bad names before any work
        arms.check(arm)
    console = Console(stderr=True)
    truths = of_run(args, console) if args.run else stored(args)
    found: dict[str, dict[str, Any]] = {}
    for arm in names:
        found[arm] = measure(arm, truths, args.draws, args.gradient)
        console.print(f"{arm}: pearson {found[arm]['pearson']:.2f}", highlight=False, markup=False)
        if args.json:
            save(args.json, found)
    show(found)
    if args.run:
        console.print(f"kept in {args.json}; the app shows it (Compare, Against the truth), and sv.rightness(path)")
    return 0


def beside(run: Path) -> Path:
    """Where the results about a run, or one of its checkpoints, are kept: beside the run, not in it."""
    run = run.resolve()
    while run.parent != run and not (run / "run.json").is_file():
        run = run.parent
    return run.with_name(f"{run.name}.bench-credit.json")


def stored(args: argparse.Namespace) -> list[truth.Truth]:
    """The truth that ships, or another directory's."""
    later = {path.name: str(path) for path in args.truth.iterdir() if path.is_dir()} if args.truth.is_dir() else {}
    return truth.read(args.truth, {"start": args.start} | later, args.problems or (1 if args.small else None))


def of_run(args: argparse.Namespace, console: Console) -> list[truth.Truth]:
    """A run's own, and what it is worth, in words."""
    problems = args.problems or (2 if args.small else 12)
    made = truth.of_run(args.run, problems, args.size, args.number, trust_code=args.trust_code)
    error = made.stderr[made.rollouts.mask].double()
    console.print(
        f"{made.name}: {len(made.rollouts)} completions of {len(made.examples)} held-out problems, mean reward "
        f"{made.rollouts.rewards.mean():.2f}. Taken for true: fork values with N = {args.number}, standard error "
        f"{error.median():.3f} (median), {error.max():.3f} (largest). `forks` shares their tree of completions, and so "
        "whatever bias they had; sample plainly (sampled n=64) where that matters.", highlight=False, markup=False,
    )  # fmt: skip
    if made.advantages.abs().max() <= DECISIVE:
        console.print(
            f"Nothing is decided in these completions: no token's true advantage exceeds {DECISIVE}. Name an earlier "
            "checkpoint, or more problems; correlations with next to nothing mean nothing.", highlight=False,
        )  # fmt: skip
    return [made]


def measure(arm: str, truths: list[truth.Truth], draws: int = 1, gradient: bool = False) -> dict[str, float]:
    """Figures of one arm over the completions of all policies, means over draws; `draw_sd` is the standard deviation
    of a token's credit from draw to draw (root mean square over tokens)."""
    drawn = [join([arms.judged(arm, each, seed, gradient) for each in truths]) for seed in range(draws)]
    runs = [figures(one) for one in drawn]
    mean = {key: sum(run[key] for run in runs) / draws for key in runs[0]}
    mean |= {"completions": len(drawn[0].mask), "draws": draws}
    if draws > 1:
        mean["pearson_sd"] = float(torch.tensor([run["pearson"] for run in runs]).std())
        if len({one.credit.shape for one in drawn}) == 1 and all(one.mask.equal(drawn[0].mask) for one in drawn):
            credit = torch.stack([one.credit[one.mask] for one in drawn])
            mean["draw_sd"] = float(credit.var(0).mean().sqrt())
    return mean


def machine() -> str:
    return f"{os.cpu_count()} cores {platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def save(path: Path, found: dict[str, dict[str, Any]]) -> None:
    """{arm: figures}; null where a figure is not about an arm."""
    plain = {
        arm: {name: None if value != value else round(value, 5) for name, value in numbers.items()}
        for arm, numbers in found.items()
    }
    store.write_atomic(path, (json.dumps(plain, indent=1) + "\n").encode())


def show(found: dict[str, dict[str, float]]) -> None:
    """A table of the arms."""
    console = Console()
    if not console.is_terminal:
        console.width = 160  # a file has no edge
    table = Table()
    table.add_column("credit", no_wrap=True)
    for name in COLUMNS:
        table.add_column(name.replace("_", " "), justify="right")
    for arm, numbers in found.items():
        table.add_row(arm, *(cell(name, numbers[name]) for name in COLUMNS))
    console.print(table)


def cell(name: str, value: float) -> str:
    """A figure as it stands in a table; a dash where there is none."""
    return "–" if value != value else f"{value:.0f}" if name == "tokens" else f"{value:.2f}"
