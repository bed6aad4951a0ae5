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
from segpo_core.afterwards.bench_credit.figures import figures
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
    parser.add_argument("--draws", type=int, default=1, help="independent draws of what an arm samples")
    parser.add_argument("--gradient", action="store_true", help="also the cosine in parameter space: a pass an arm")
    parser.add_argument("--json", type=Path, help="write {arm: figures} to this file, arm by arm")
    args = parser.parse_args(argv)
    for name in ("draws", "problems"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise ValueError(f"--{name} is {value}: at least one is needed")
    names = args.arms or (arms.SMALL if args.small else arms.ALL)
    for arm in names:  # bad names before any work
        arms.check(arm)
    later = {path.name: str(path) for path in args.truth.iterdir() if path.is_dir()} if args.truth.is_dir() else {}
    truths = truth.read(args.truth, {"start": args.start} | later, args.problems or (1 if args.small else None))
    found: dict[str, dict[str, Any]] = {}
    console = Console(stderr=True)
    for arm in names:
        found[arm] = measure(arm, truths, args.draws, args.gradient)
        console.print(f"{arm}: pearson {found[arm]['pearson']:.2f}", highlight=False, markup=False)
        if args.json:
            save(args.json, found)
    show(found)
    return 0


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
