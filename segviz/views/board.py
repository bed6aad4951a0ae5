"""The board: learning curves, with what the model answers and what it sees always in the same picture."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from segviz.parts.charts import curves_picture
from segviz.parts.credit import signed
from segviz.runs.pulse import trained_here
from segviz.runs.run import Run
from segviz.runs.series import Series
from segviz.show.encode import escape, tidy
from segviz.show.statistics import spikes
from segviz.show.still import details
from segviz.show.theme import method_label
from segviz.show.view import View

POINTS = 600  #: more points than a chart has pixels are averaged
SPIKES = 5  #: unusual steps that are marked on a line, the most unusual ones
STEPS = 300  #: steps whose rollouts are listed
TELLING = 4  #: rollouts listed of a step

#: Charts whose scale ends somewhere, whatever the values: one bad step would flatten all the others.
FLOORS = {"Explained variance of the critic": -1.0}

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
    ("Sampling engine against network (nats a token)", ["sampling/sampling_logp_difference/mean"]),
    ("Importance weight of the engine's tokens, largest", ["sampling/importance_sampling_ratio/max"]),
    ("Value loss", ["value_loss"]),
    ("Explained variance of the critic", ["explained_variance"]),
    ("Tokens per second", ["tokens_per_second", "time/tokens_per_second"]),
)

#: What tells runs of one experiment apart; runs that differ only here are its seeds.
_SEED_KEYS = ("seed", "output_dir", "resume", "run_name", "report_to")


def board(runs: Run | Sequence[Run], title: str | None = None) -> View:
    """Learning curves of a run; of several runs laid over each other, seeds as one line with a band. Unusual steps are
    marked, and a click or Enter on a step lists its most telling rollouts.

    Raises:
        ValueError: no run was given.
    """
    runs = [runs] if isinstance(runs, Run) else list(runs)
    if not runs:
        raise ValueError("board needs at least one run: sv.board(sv.open('runs/…'))")
    title = title or question(runs)
    data = board_data(runs, title) | {"rollouts": telling(runs)}
    rows = "".join(
        f"<tr><td>{escape(chart['title'])}</td><td>{escape(series['panel'])}</td><td>{escape(series['label'])}</td>"
        f"<td>{series['y'][0]:.4g}</td>"
        f"<td>{series['y'][-1]:.4g}</td></tr>"
        for chart in data["charts"]
        for series in chart["lines"]
    )
    head = "<tr><th>chart</th><th>metric</th><th>run</th><th>first</th><th>last</th></tr>"
    notes = "".join(f"<p>{escape(note)}</p>" for note in (data["empty"], *data["status"]) if note)
    table = details("First and last of every line", f"<table>{head}{rows}</table>") if rows else ""
    drawn = f"<p>{curves_picture(data['charts'], _words(data))}</p>" if data["charts"] else ""
    fallback = f"<h3>{escape(title)}</h3>{notes}{drawn}{table}"
    return View("board", title, data, fallback)


def _words(data: Mapping[str, Any]) -> str:
    """The first chart in words, for those who do not see the picture."""
    chart = data["charts"][0]
    names = [" ".join(dict.fromkeys(filter(None, (line["panel"], line["label"])))) for line in chart["lines"]]
    ends = (
        f"{name} from {line['y'][0]:.3g} to {line['y'][-1]:.3g}"
        for name, line in zip(names, chart["lines"], strict=True)
    )
    return f"{chart['title']}: {', '.join(ends)}."


def question(runs: Sequence[Run]) -> str:
    """What the curves answer: only a task with pictures knows whether a policy still looks at them."""
    looks = any("perception" in name for run in runs for name in run.metrics)
    return "Does it learn, and does it still look?" if looks else "Does it learn?"


def board_data(runs: Sequence[Run], title: str = "Does it learn?", apart: bool = False) -> dict[str, Any]:
    """What the script needs to draw the board, but for the lists of rollouts, which `telling` makes.

    `apart`: each run is a line of its own under its own name, also where runs differ only in their seed.
    """
    groups = _groups(runs, apart and len(runs) > 1)
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
            hint = hint if any(line["panel"] == "grounded" for line in lines) else ""
            charts.append({"title": name, "hint": hint, "share": True, "panels": several, "lines": lines})
    rest = sorted({name for metrics in groups.values() for m in metrics for name in m})
    for title_of, names in SINGLE:
        used.update(names)
        lines = _lines_of(groups, names, several)
        if lines:
            charts.append({"title": title_of, "lines": lines} | _floor(lines, FLOORS.get(title_of)))
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
        "status": [words for run in runs if (words := status(run))],
    }


def status(run: Run) -> str:
    """What the curves cannot say: that a run has only begun, or is not at its end. '' for a finished one."""
    last = max((series.steps[-1] for series in run.metrics.values()), default=None)
    planned = run.config.get("max_steps")
    if last is None:
        started = _minute(run.manifest.get("started"))
        return tidy(f"{run.name}: started{f' {started}' if started else ''}, no step is finished yet.")
    if not isinstance(planned, int) or last >= planned:
        return ""
    times = [stamp.changed / 1e9 for stamp in run.files("metrics").values()]
    written = f", last written {_minute(datetime.fromtimestamp(max(times), UTC).isoformat())}" if times else ""
    known = {True: "It is being trained.", False: "It was stopped: its trainer has ended."}
    how = known.get(trained_here(run.path), "It is still being written, or was stopped.")
    return tidy(f"{run.name}: step {last} of {planned}{written}. {how}")


def telling(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """`listed` of every recorded step, of many steps of an even selection; `run` is '' where there is only one."""
    found = []
    for run in runs:
        steps = run.steps
        if len(steps) > STEPS:
            steps = sorted({steps[i * (len(steps) - 1) // (STEPS - 1)] for i in range(STEPS)})
        found += listed(run.rollouts_at(*steps), tidy(run.name) if len(runs) > 1 else "")
    return found


def listed(rows: Iterable[dict[str, Any]], run: str = "") -> list[dict[str, Any]]:
    """The most telling of some rollouts, a few of each step: [{step, run, group, sample, words}]."""
    steps: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        steps.setdefault(row["step"], []).append(row)
    return [
        {"step": step, "group": row["group"], "sample": row["sample"], "run": run, "words": _story(row)}
        for step, there in sorted(steps.items())
        for row in _pick(there)
    ]


def _pick(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The most blamed rollout, the most praised one, one that is right without seeing right, one with an error; then
    those of the strongest credit."""
    rows = sorted(rows, key=lambda row: -_strength(row))
    wishes = (
        min((row for row in rows if (row["lowest"] or 0) < 0), key=lambda row: row["lowest"], default=None),
        max((row for row in rows if (row["highest"] or 0) > 0), key=lambda row: row["highest"], default=None),
        next((row for row in rows if row["answer_right"] and row["perception_right"] is False), None),
        next((row for row in rows if row["error_kind"]), None),
    )
    picked: list[dict[str, Any]] = []
    for row in (*wishes, *rows):
        if row is not None and len(picked) < TELLING and all(row is not other for other in picked):
            picked.append(row)
    return picked


def _strength(row: dict[str, Any]) -> float:
    return max(abs(row["lowest"] or 0.0), abs(row["highest"] or 0.0))


def _story(row: dict[str, Any]) -> str:
    """A rollout in a line of words."""
    parts = ["no reward" if row["reward"] is None else f"reward {row['reward']:.3g}"]
    for name in ("answer", "perception"):
        if row[f"{name}_right"] is not None:
            parts.append(f"{name} {'right' if row[f'{name}_right'] else 'wrong'}")
    if row["error_kind"]:
        parts.append(f"first error: {row['error_kind']}")
    credit = [value for value in (row["lowest"], row["highest"]) if value is not None]
    parts.append(f"strongest credit {signed(max(credit, key=abs))}" if credit else "no credit")
    return tidy(", ".join(parts))


def _floor(lines: list[dict[str, Any]], floor: float | None) -> dict[str, Any]:
    """Where a chart's scale ends although values go on below: {floor, below, lowest, step}. Empty where none do."""
    if floor is None:
        return {}
    under = [
        (y, x) for line in lines for x, y in zip(line["x"], line.get("low") or line["y"], strict=True) if y < floor
    ]
    if not under:
        return {}
    lowest, step = min(under)
    return {"floor": {"at": floor, "below": len(under), "lowest": lowest, "step": step}}


def _minute(time: Any) -> str:
    """An ISO time as people read it."""
    return str(time or "")[:16].replace("T", " ") + (" UTC" if time else "")


def _spikes(runs: list[tuple[np.ndarray, np.ndarray]]) -> list[dict[str, float]]:
    """Unusual steps of a metric, over all runs of a line: [{step, y, usual}], in order of their steps."""
    found = []
    for steps, values in runs:
        found += [(spike, int(steps[spike.index]), float(values[spike.index])) for spike in spikes(values)]
    found = sorted(sorted(found, key=lambda item: -abs(item[0].z))[:SPIKES], key=lambda item: item[1])
    return [{"step": x, "y": _round(y), "usual": _round(spike.usual)} for spike, x, y in found]


def _lines_of(groups: dict[str, list[dict[str, Series]]], names: list[str], several: bool) -> list[dict[str, Any]]:
    lines = []
    for g, (group, metrics) in enumerate(groups.items()):
        if line := _line(metrics, names):
            lines.append(line | {"label": group if several else "", "panel": "", "style": g if several else 4})
    return lines


def _groups(runs: Sequence[Run], apart: bool = False) -> dict[str, list[dict[str, Series]]]:
    """Label -> metrics of each of its runs. Runs that differ only in their seed share a label, unless kept apart."""
    if apart:
        return {f"{run.name} · {method_label(run.method)}": [run.metrics] for run in runs}
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
    found = [points for run in metrics if (points := _finite(run, names)) is not None]
    at, values = (np.concatenate(column) for column in zip(*found, strict=True)) if found else ([], [])
    if not len(at):
        return None
    order = np.argsort(at, kind="stable")
    at, values = at[order], values[order]
    first = np.flatnonzero(np.diff(at, prepend=at[0] - 1))  # of the values of each step
    steps = at[first]
    counts = np.diff(first, append=len(at))
    bucket = -(-len(steps) // POINTS)
    edges = np.arange(0, len(steps), bucket)
    sizes = np.diff(edges, append=len(steps))

    def means(of_steps: np.ndarray) -> list[float]:
        return [_round(value) for value in np.add.reduceat(of_steps, edges) / sizes]

    x, y = steps[edges + sizes // 2].tolist(), means(np.add.reduceat(values, first) / counts)
    line = {"x": x, "y": y, "bucket": bucket, "runs": len(metrics), "odd": _spikes(found)}
    if len(metrics) > 1:
        line |= {"low": means(np.minimum.reduceat(values, first)), "high": means(np.maximum.reduceat(values, first))}
    return line


def _finite(run: dict[str, Series], names: list[str]) -> tuple[np.ndarray, np.ndarray] | None:
    """Steps and finite values of the first of some metrics that a run has."""
    series = next((run[name] for name in names if name in run), None)
    if series is None:
        return None
    steps, values = np.array(series.steps, int), np.array(series.values, float)
    return steps[np.isfinite(values)], values[np.isfinite(values)]


def _round(value: float) -> float:
    return float(f"{value:.5g}")
