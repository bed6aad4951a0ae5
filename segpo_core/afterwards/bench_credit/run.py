"""`segpo bench-credit`: every arm on the ground truth, its figures and its cost."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from segpo_core.afterwards.bench_credit import arms, truth
from segpo_core.afterwards.bench_credit.figures import figures, interval
from segpo_core.types import pad_rows

COLUMNS = ("pearson", "spearman", "within", "sign", "hit", "chance", "first_error_hit", "cosine", "tokens", "seconds")
#: `--small`: prompts of each policy.
SMALL_PROMPTS = 1


def main(argv: list[str], root: Path) -> int:
    parser = argparse.ArgumentParser(
        prog="segpo bench-credit", description="How right methods' credit is, on completions of known value."
    )
    parser.add_argument("arms", nargs="*", help='methods, settings after a space: forks "spo_chain interval=1"')
    parser.add_argument("--small", action="store_true", help="few prompts and arms: minutes on two cores")
    parser.add_argument("--truth", type=Path, default=root / "data" / "credit-truth", help="directory of the truth")
    parser.add_argument("--start", default=str(root / "data" / "tiny-vlm"), help="model of the policy 'start'")
    parser.add_argument("--draws", type=int, default=1, help="independent draws of what an arm samples")
    parser.add_argument("--json", type=Path, help="write {arm: figures} to this file")
    args = parser.parse_args(argv)
    if args.draws < 1:
        raise ValueError(f"--draws is {args.draws}: at least one is needed")
    names = args.arms or (arms.SMALL if args.small else arms.ALL)
    for arm in names:  # bad names before any work
        name, settings = arms.parse(arm)
        if name not in ("oracle", "shuffled", "uniform", "sampled", "true_values"):
            arms.method_of(name, settings)
    later = {path.name: str(path) for path in args.truth.iterdir() if path.is_dir()} if args.truth.is_dir() else {}
    truths = truth.read(args.truth, {"start": args.start} | later, SMALL_PROMPTS if args.small else None)
    found = {arm: measure(arm, truths, args.draws) for arm in names}
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")
    show(found)
    return 0


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
        table.add_row(arm, *(f"{numbers[c]:.0f}" if c == "tokens" else f"{numbers[c]:.2f}" for c in COLUMNS))
    console.print(table)


def measure(arm: str, truths: list[truth.Truth], draws: int = 1) -> dict[str, float]:
    """Figures of one arm over the completions of all policies; tokens and seconds a completion."""
    runs = [_once(arm, truths, seed) for seed in range(draws)]
    mean = {key: sum(run[key] for run in runs) / draws for key in runs[0]}
    values = torch.tensor([run["pearson"] for run in runs])
    return mean | ({"pearson_sd": float(values.std())} if draws > 1 else {})


def _once(arm: str, truths: list[truth.Truth], seed: int) -> dict[str, float]:
    parts = [arms.credit_of(arm, each, seed) for each in truths]

    def joined(tensors: list, fill: float = 0) -> torch.Tensor:
        return pad_rows([row for tensor in tensors for row in tensor], fill)

    rollouts = [each.rollouts for each in truths]
    credit, true = joined([part[0] for part in parts]), joined([each.advantages for each in truths])
    mask, z = joined([r.mask for r in rollouts], False), joined([part[1] for part in parts], -1)
    start = [t["error_span"][0] for r in rollouts for t in r.truth]
    reward, size = torch.cat([r.rewards for r in rollouts]), len(mask)
    offset, prompt = 0, []
    for r in rollouts:
        prompt.append(r.group + offset)
        offset += int(r.group.max()) + 1
    low, high = interval(credit, true, mask, torch.cat(prompt))
    return figures(
        credit, true, mask, z, joined([r.sampled_logprobs.exp() for r in rollouts]), reward < 0.5,
        torch.tensor([-1 if s is None else s for s in start]),
    ) | {
        "pearson_low": low, "pearson_high": high,
        "tokens": sum(part[2] * len(r) for part, r in zip(parts, rollouts, strict=True)) / size,
        "seconds": sum(part[3] for part in parts) / size,
    }  # fmt: skip
