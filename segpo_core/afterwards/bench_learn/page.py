"""The page: tables, claims and plots from the curves. What stands outside the marks is written by hand and stays."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segpo_core.afterwards.bench_learn import arms, plot, tables
from segpo_core.afterwards.bench_learn.claims import CLAIMS, ON_TEXT, TRIED, judge
from segpo_core.afterwards.bench_learn.curves import Interval, Line, Runs, interval

MARK = "<!-- {} -->"
BLOCKS = ("runs", "methods", "cost", "state", "tuning", "claims", "tried", "text", "credit")
#: What learning is set against rightness at: axis -> how it is called.
AXES = {"tokens": "tokens", "step": "steps"}
#: Budgets are round numbers that every run of a method reaches.
ROUND = {"tokens": 1000, "seconds": 1, "step": 1}
TEXT_ROUND = {"tokens": 100, "seconds": 1, "step": 1}
ENDS = ("answer", "perception", "grounded")


def write(lines: list[Line], page: Path, folder: Path, credit: Path) -> None:
    """Write the page and, into `folder`, its plots.

    Args:
        lines: of the curves file.
        page: its made parts are replaced; a new one has nothing else.
        folder: of the plots.
        credit: folder with a results file of `segpo bench-credit`, or none.
    """
    seen = [line for line in lines if line["arm"] not in arms.TEXT]
    runs = Runs(seen, _rate(seen, arms.RATE))
    measured = [name for name in arms.METHODS if runs.of.get(name)] or list(runs.of)
    at_rates = [runs.called(name, rate) for name in measured for rate in arms.RATES]
    most = _most(runs, at_rates, ROUND)
    titles = {name: arms.ARMS[name].title for name in measured}
    found, tried = judge(CLAIMS, runs, most, arms.RATES), judge(TRIED, runs, most)
    plots = {f"{curve}-{axis}": plot.panels(runs, titles, curve, axis, most[axis])
             for curve, axis in (("answer", "tokens"), ("answer", "seconds"), ("grounded", "tokens"))}  # fmt: skip
    plots["claims"] = plot.differences(found)
    right = rightness(credit)
    points = {axis: _points(runs, right, axis, most) for axis in AXES}
    for axis, of in points.items():
        if len(of) > 2:
            y_name = f"mean answer accuracy over the run, equal {AXES[axis]}, 95 % interval over seeds"
            plots[f"credit-{axis}"] = plot.scatter(of, "correlation of credit with true token advantages", y_name)
    made = {
        "methods": tables.methods(runs, measured, most, ENDS), "cost": tables.cost(runs, measured),
        "state": tables.state(runs, measured, most), "tuning": tables.tuning(runs, measured, most, arms.RATES),
        "claims": tables.claims(found), "tried": tables.tried(tried), "credit": _credit(points),
    }  # fmt: skip
    text = Runs([line for line in lines if line["arm"] in arms.TEXT], arms.TEXT_RATE)
    made["text"] = "No runs on sums."
    if on_text := [name for name in arms.TEXT if text.of.get(name)]:
        most_text = _most(text, on_text, TEXT_ROUND)
        parts = [tables.budgets(most_text), tables.methods(text, on_text, most_text, ENDS[:1]),
                 tables.state(text, on_text, most_text), tables.tried(judge(ON_TEXT, text, most_text))]  # fmt: skip
        made["text"] = "\n\n".join(parts)
        titles = {name: arms.ARMS[name].title for name in on_text}
        plots["text-tokens"] = plot.panels(text, titles, "answer", "tokens", most_text["tokens"], "text grpo")
    made["runs"] = f"{tables.runs(lines, (runs, text))} {tables.budgets(most)}"
    folder.mkdir(parents=True, exist_ok=True)
    for name, svg in plots.items():
        (folder / f"{name}.svg").write_text(svg, encoding="utf-8")
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(filled(page.read_text(encoding="utf-8") if page.exists() else _skeleton(), made), encoding="utf-8")


def filled(text: str, made: dict[str, str]) -> str:
    """The page with its made parts replaced.

    Raises:
        ValueError: a page without one of the marks.
    """
    for name, part in made.items():
        begin, end = MARK.format(name), MARK.format(f"end of {name}")
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"the page needs one {begin} and one {end}; move the page away to have a new one made")
        head, rest = text.split(begin)
        text = f"{head}{begin}\n{part}\n{end}{rest.split(end)[1]}"
    return text


def _skeleton() -> str:
    blocks = (f"{MARK.format(name)}\n{MARK.format(f'end of {name}')}\n" for name in BLOCKS)
    return "# Which method learns what\n\n" + "\n".join(blocks)


def _rate(lines: Iterable[Line], planned: float) -> float:
    """The learning rate of the plan, where there are runs with it; else that of the first run."""
    rates = [line["learning_rate"] for line in lines]
    return planned if planned in rates or not rates else rates[0]


def _most(runs: Runs, names: Sequence[str], steps: dict[str, Any]) -> dict[str, float]:
    """Axis -> the largest round budget that every run of these arms reaches."""
    reached = {axis: runs.budget(names, axis) for axis in steps}
    return {axis: math.floor(reached[axis] / step) * step or reached[axis] for axis, step in steps.items()}


# --- credit against learning ------------------------------------------------------------------------


def rightness(folder: Path) -> dict[str, float]:
    """Arm -> correlation of its credit with the true one, from the results of `segpo bench-credit`; {} without."""
    path = folder / "methods.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    names = {name: name if name in found else arms.RIGHTNESS.get(name) for name in arms.METHODS}
    return {name: found[arm]["pearson"] for name, arm in names.items() if arm in found}


Points = dict[str, tuple[float, Interval]]


def _points(runs: Runs, right: dict[str, float], axis: str, most: dict[str, float]) -> Points:
    """Title -> (rightness, area) of methods that have both; the area at the tuned rate, where there are several."""
    found = {}
    for name in right:
        tuned = runs.tuned(name, arms.RATES, "answer", axis, most[axis], most["tokens"]).areas
        if areas := tuned or runs.areas(name, "answer", axis, most[axis]):
            found[arms.ARMS[name].title] = (right[name], interval([*areas.values()]))
    return found


def _credit(points: dict[str, Points]) -> str:
    if len(points["tokens"]) <= 2:
        return "No results of `segpo bench-credit` beside the curves."
    parts = []
    for axis, of in points.items():
        x, y = np.asarray([p[0] for p in of.values()]), np.asarray([p[1].mean for p in of.values()])
        parts.append(
            f"![Rightness of credit against learning, equal {AXES[axis]}](learning/credit-{axis}.svg)\n\n"
            f"At equal {AXES[axis]}, over {len(of)} methods: rank correlation "
            f"{np.corrcoef(_ranks(x), _ranks(y))[0, 1]:+.2f}, of the values themselves {np.corrcoef(x, y)[0, 1]:+.2f}."
        )
    return "\n\n".join(parts)


def _ranks(x: np.ndarray) -> np.ndarray:
    """Equal values share their rank."""
    ordered = np.sort(x)
    return (np.searchsorted(ordered, x, "left") + np.searchsorted(ordered, x, "right")) / 2
