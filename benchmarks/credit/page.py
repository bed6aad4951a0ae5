"""The page about the credit benchmark, from recorded figures: benchmarks/CREDIT.md and its picture.

    python benchmarks/credit/page.py

Figures are in benchmarks/credit/: methods.json (all completions), sampled.json (arms that sample every token, on fewer
problems, and the parameter-space gradient), draws.json (repeated draws), variance.json (where the reward is decided);
check.json lies beside the truth.
"""

from __future__ import annotations

import json
import math
from html import escape
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
Figures = dict[str, dict[str, Any]]


def cell(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def table(rows: Figures, columns: dict[str, str], digits: int = 2) -> str:
    """Markdown; a figure with an interval carries it."""
    lines = ["| credit | " + " | ".join(columns.values()) + " |", "|---" * (1 + len(columns)) + "|"]
    for arm, numbers in rows.items():
        cells = []
        for name in columns:
            low, high = numbers.get(f"{name}_low"), numbers.get(f"{name}_high")
            text = cell(numbers.get(name), 0 if name == "tokens" else digits)
            cells.append(f"{text} ({cell(low)}–{cell(high)})" if low is not None and text != "–" else text)
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def chosen(rows: Figures, start: tuple[str, ...]) -> Figures:
    return {a: n for a, n in rows.items() if a.split()[0] in start}


def grid(rows: Figures, figure: str) -> str:
    """True values: segmentations down, λ across."""
    cells: dict[str, dict[str, float]] = {}
    for arm, numbers in rows.items():
        name, *settings = arm.split()
        if name == "true_values":
            given = dict(s.split("=") for s in settings)
            cells.setdefault(given["segments"], {})[given["lam"]] = numbers[figure]
    lambdas = list(next(iter(cells.values())))
    lines = ["| segments end at | " + " | ".join(f"λ = {x}" for x in lambdas) + " |", "|---" * (1 + len(lambdas)) + "|"]
    lines += [f"| {cut} | " + " | ".join(cell(row[x]) for x in lambdas) + " |" for cut, row in cells.items()]
    return "\n".join(lines)


#: Arms with a name in the picture; all others are dots. (dx, dy) moves a name off its neighbours.
NAMED = {
    "grpo": (8, 14), "sapo": (8, -4), "srpo": (8, 12), "vineppo": (8, 4), "tempo": (8, 4), "pgpo": (8, 4),
    "spo_chain": (8, 4), "spo_chain interval=1": (8, 4), "spo_tree branch=(4,4)": (8, 4), "entropy_tokens": (8, 4),
    "forks": (8, 14), "forks num_continuations=2": (-8, 16),
    "sampled n=4": (8, 4), "sampled n=9": (8, 4), "sampled n=64": (-8, 16),
}  # fmt: skip


def picture(rows: Figures) -> str:
    """Correlation within completions against tokens computed beyond sampling, on a logarithmic axis from 0 on."""
    left, top, w, h = 52, 34, 600, 320

    def at(tokens: float, right: float) -> tuple[float, float]:
        return left + math.log10(1 + tokens) / math.log10(40_001) * w, top + h - (right + 0.1) / 1.1 * h

    parts = [f'<text x="{left}" y="18" font-weight="bold">How right credit is, and what it costs</text>']
    for tick in (0, 0.2, 0.4, 0.6, 0.8, 1):
        _, y = at(0, tick)
        parts.append(f'<line x1="{left}" x2="{left + w}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e3e0da"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#686b73">{tick:.1f}</text>')
    for tick in (0, 10, 100, 1000, 10_000):
        x, _ = at(tick, 0)
        parts.append(f'<text x="{x:.1f}" y="{top + h + 18}" text-anchor="middle" fill="#686b73">{tick:,}</text>')
    foot = "tokens computed for the credit, a completion (beyond sampling it); up: correlation with the truth within it"
    parts.append(f'<text x="{left}" y="{top + h + 38}" fill="#686b73">{foot}</text>')
    for arm, numbers in rows.items():
        if arm.split()[0] in ("oracle", "shuffled", "true_values", "uniform"):
            continue
        x, y = at(numbers["tokens"], numbers["within"])
        own = arm.startswith("forks")
        colour = "#b93c06" if own else "#1d4ed8"
        mark = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{5 if arm in NAMED else 3}" fill="{colour}"'
        parts.append(f"{mark}><title>{escape(arm)}: {numbers['within']:.2f}</title></circle>")
        if arm in NAMED:
            dx, dy = NAMED[arm]
            anchor, weight = "end" if dx < 0 else "start", ' font-weight="bold"' if own else ""
            parts.append(
                f'<text x="{x + dx:.1f}" y="{y + dy:.1f}" text-anchor="{anchor}" fill="{colour}"{weight}>'
                f"{escape(arm)}</text>"
            )
    size = f'viewBox="0 0 {left + w + 60} {top + h + 50}" width="{left + w + 60}" height="{top + h + 50}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12" role="img">'
        "<title>Correlation of credit with the truth against its cost in tokens</title>\n"
        '<rect width="100%" height="100%" fill="#fbfaf8"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def agreement(check: dict[str, Any]) -> str:
    lines = [
        "| states | number | bias (± its error) | RMS difference | expected | beyond two errors |",
        "|---" * 6 + "|",
    ]
    for name, n in check["against_plain_sampling"].items():
        lines.append(
            f"| {name} | {n['states']} | {n['bias']:+.4f} ± {n['bias_stderr']:.4f} | {n['rms']:.4f} | "
            f"{n['rms_expected']:.4f} | {n['beyond_two_errors']:.0%} |"
        )
    return "\n".join(lines)


def decided(found: dict[str, Any]) -> str:
    """Settings of the task down, shares of the reward's variance across."""
    shares = ("seeing", "reckoning", "answer", "elsewhere")
    lines = ["| task | right | " + " | ".join(shares) + " | decided | tokens |", "|---" * (4 + len(shares)) + "|"]
    for name, n in found["settings"].items():
        cells = [f"{n['right']:.2f}", *(f"{abs(n[share]):.1%}" for share in shares), cell(n["decided"], 3)]
        lines.append(f"| {name} | {' | '.join(cells)} | {n['tokens']:.0f} |")
    return "\n".join(lines)


def page() -> tuple[str, str]:
    """(CREDIT.md, its picture), from what was recorded."""

    def read(name: str) -> Figures:
        path = HERE / name
        return json.loads(path.read_text()) if path.exists() else {}

    methods, sampled, draws = read("methods.json"), read("sampled.json"), read("draws.json")
    check = json.loads((ROOT / "data" / "credit-truth" / "check.json").read_text())
    right = {
        "pearson": "all tokens", "within": "within a completion", "spearman": "Spearman", "sign": "sign",
        "hit": "finds the deciding token", "chance": "chance", "cosine": "cosine", "tokens": "tokens",
    }  # fmt: skip
    errors = {
        "first_error_hit": "first error", "first_error_chance": "chance",
        "seeing_hit": "seeing: deciding", "seeing_first_error_hit": "seeing: error",
        "reckoning_hit": "reckoning: deciding", "reckoning_first_error_hit": "reckoning: error",
        "luck_hit": "luck: deciding", "luck_first_error_hit": "luck: error",
    }  # fmt: skip
    values = {"value_rmse": "RMS error", "value_explained": "explained", "calibration": "calibration"}
    text = (HERE / "page.md").read_text()
    known = {a: n for a, n in methods.items() if n.get("value_rmse") is not None} | {
        f"{a} (fewer problems)": n for a, n in sampled.items() if a.startswith("sampled") and n.get("value_rmse")
    }
    drawn = {"pearson": "all tokens", "pearson_sd": "its deviation", "draw_sd": "of a token's credit"}
    again = {a: n for a, n in draws.items() if n.get("draw_sd") is not None}
    parts = {
        "variance": decided(json.loads((HERE / "variance.json").read_text())),
        "bounds": table(chosen(methods, ("oracle", "shuffled", "uniform")), right),
        "methods": table(
            {a: n for a, n in methods.items()
             if a.split()[0] not in ("oracle", "shuffled", "uniform", "true_values", "treerl", "spo_tree")}, right,
        ),
        "trees": table(chosen(methods, ("spo_tree", "treerl")), right),
        "sampled": table(sampled, {name: right[name] for name in ("pearson", "within", "hit", "cosine", "tokens")}
                         | {"gradient_cosine": "parameter space", "seconds": "seconds"}),
        "errors": table({a: n for a, n in methods.items() if not a.startswith("true_values")}, errors),
        "grid": grid(methods, "within"),
        "grid_all": grid(methods, "pearson"),
        "values": table(known, values),
        "draws": table(again, drawn, 3),
        "check": agreement(check),
        "second": f"{check['second_draw']['pearson']:.4f} over all tokens and {check['second_draw']['within']:.4f} "
                  f"within a completion",
        "error": f"{check['standard_error']['median']:.4f} (median), {check['standard_error']['95%']:.4f} (95 %), "
                 f"{check['standard_error']['largest']:.4f} (largest)",
    }  # fmt: skip
    for name, made in parts.items():
        text = text.replace(f"[[{name}]]", made)
    return text, picture(methods | {a: n for a, n in sampled.items() if a.startswith("sampled")})


def main() -> None:
    text, svg = page()
    (ROOT / "benchmarks" / "CREDIT.md").write_text(text)
    (ROOT / "docs" / "credit.svg").write_text(svg)


if __name__ == "__main__":
    main()
