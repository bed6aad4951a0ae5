"""The board: learning curves, with what the model answers and what it sees always in the same picture."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from segviz.run import Run, Series
from segviz.theme import method_label
from segviz.view import View, escape

POINTS = 600  #: more points than a chart has pixels are averaged

#: Charts that show several metrics together: title, hint, [(label, names that may hold it)], share of 1.
TOGETHER = (
    (
        "Held-out problems, greedy",
        "grounded: answer and perception both right",
        [("answer", ["eval/answer"]), ("perception", ["eval/perception"]), ("grounded", ["eval/grounded"])],
    ),
    (
        "Held-out problems, sampled",
        "the same, at the sampling temperature",
        [
            ("answer", ["eval_sampled/answer", "eval/answer_sampled"]),
            ("perception", ["eval_sampled/perception", "eval/perception_sampled"]),
            ("grounded", ["eval_sampled/grounded", "eval/grounded_sampled"]),
        ],
    ),
    (
        "Training completions",
        "shares of what was sampled for training",
        [
            ("answer", ["train/answer"]),
            ("perception", ["train/perception"]),
            ("grounded", ["train/grounded"]),
        ],
    ),
)

#: Charts with one metric each: title, names that may hold it.
SINGLE = (
    ("Reward", ["reward", "train/reward"]),
    ("KL to the reference", ["kl"]),
    ("Entropy (nats)", ["entropy"]),
    ("Completion length (tokens)", ["completion_length", "completions/mean_length"]),
    ("Clipped share", ["clip_ratio", "clip_ratio/region", "clip_ratio/region_mean"]),
    ("Value loss", ["value_loss"]),
    ("Explained variance of the critic", ["explained_variance"]),
    ("Tokens per second", ["tokens_per_second", "time/tokens_per_second"]),
)

#: What tells runs of one experiment apart; runs that differ only here are its seeds.
_SEED_KEYS = ("seed", "output_dir", "resume", "run_name", "report_to")


def board(runs: Run | Sequence[Run], title: str = "Does it learn, and does it still look?") -> View:
    """Learning curves of a run; of several runs laid over each other, seeds as one line with a band.

    Raises:
        ValueError: no run was given.
    """
    runs = [runs] if isinstance(runs, Run) else list(runs)
    if not runs:
        raise ValueError("board needs at least one run: sv.board(sv.open('runs/…'))")
    data = board_data(runs, title)
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(series['label'])}</td><td>{series['y'][0]:.4g}</td>"
        f"<td>{series['y'][-1]:.4g}</td></tr>"
        for chart in data["charts"]
        for name, lines in ((chart["title"], chart["lines"]),)
        for series in lines
    )
    head = "<tr><th>chart</th><th>line</th><th>first</th><th>last</th></tr>"
    fallback = f"<h3>{escape(title)}</h3><table>{head}{rows}</table>"
    return View("board", title, data, fallback)


def board_data(runs: Sequence[Run], title: str = "Does it learn, and does it still look?") -> dict[str, Any]:
    """What the script needs to draw the board."""
    groups = _groups(runs)
    several = len(groups) > 1
    charts, used = [], set()
    for name, hint, wanted in TOGETHER:
        lines = []
        for place, (label, names) in enumerate(wanted):
            used.update(names)
            for g, (group, metrics) in enumerate(groups.items()):
                if line := _line(metrics, names):
                    # one run: colour tells the metric; several: each metric has its own panel, colour tells the run
                    style = g if several else place
                    lines.append(line | {"label": group if several else label, "panel": label, "style": style})
        if lines:
            charts.append({"title": name, "hint": hint, "share": True, "panels": several, "lines": lines})
    rest = sorted({name for metrics in groups.values() for m in metrics for name in m})
    for title_of, names in SINGLE:
        used.update(names)
        lines = _lines_of(groups, names, several)
        if lines:
            charts.append({"title": title_of, "lines": lines})
    other = [
        {"title": name, "lines": lines}
        for name in rest
        if name not in used and (lines := _lines_of(groups, [name], several))
    ]
    return {
        "kind": "board",
        "title": title,
        "groups": [{"label": label, "runs": len(metrics)} for label, metrics in groups.items()],
        "charts": charts,
        "other": other,
        "empty": "" if charts or other else "No metrics are recorded yet.",
    }


def _lines_of(groups: dict[str, list[dict[str, Series]]], names: list[str], several: bool) -> list[dict[str, Any]]:
    lines = []
    for g, (group, metrics) in enumerate(groups.items()):
        if line := _line(metrics, names):
            lines.append(line | {"label": group if several else "", "panel": "", "style": g if several else 4})
    return lines


def _groups(runs: Sequence[Run]) -> dict[str, list[dict[str, Series]]]:
    """Label -> metrics of each of its runs. Runs that differ only in their seed share a label."""
    sorted_runs: dict[str, list[Run]] = {}
    for run in runs:
        config = {key: value for key, value in run.config.items() if key not in _SEED_KEYS}
        key = json.dumps([run.method, config], sort_keys=True, default=str) if config else str(run.path)
        sorted_runs.setdefault(key, []).append(run)
    groups: dict[str, list[dict[str, Series]]] = {}
    labels = [method_label(members[0].method) for members in sorted_runs.values()]
    for members, label in zip(sorted_runs.values(), labels, strict=True):
        if labels.count(label) > 1:
            label = f"{label}, {members[0].name}"
        while label in groups:
            label += "′"
        groups[label] = [run.metrics for run in members]
    return groups


def _line(metrics: list[dict[str, Series]], names: list[str]) -> dict[str, Any] | None:
    """Mean over runs at each step, with the smallest and largest as a band where there is more than one run."""
    points: dict[int, list[float]] = {}
    for run in metrics:
        series = next((run[name] for name in names if name in run), None)
        for step, value in zip(*series, strict=True) if series else ():
            if not math.isfinite(value):
                continue
            points.setdefault(step, []).append(value)
    if not points:
        return None
    steps = sorted(points)
    bucket = -(-len(steps) // POINTS)
    x, y, low, high = [], [], [], []
    for i in range(0, len(steps), bucket):
        part = steps[i : i + bucket]
        x.append(part[len(part) // 2])
        y.append(_round(sum(sum(points[s]) / len(points[s]) for s in part) / len(part)))
        low.append(_round(sum(min(points[s]) for s in part) / len(part)))
        high.append(_round(sum(max(points[s]) for s in part) / len(part)))
    line = {"x": x, "y": y, "bucket": bucket, "runs": len(metrics)}
    return line | {"low": low, "high": high} if len(metrics) > 1 else line


def _round(value: float) -> float:
    return float(f"{value:.5g}")
