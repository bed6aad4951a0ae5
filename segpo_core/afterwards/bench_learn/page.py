"""The page: tables, claims and plots from the curves. What stands outside the marks is written by hand and stays."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from segpo_core.afterwards.bench_learn import arms, plot
from segpo_core.afterwards.bench_learn.claims import CLAIMS, LEAST_SEEDS, TRIED, Finding, judge
from segpo_core.afterwards.bench_learn.curves import Interval, Line, Runs, area, at, first_at, interval

MARK = "<!-- {} -->"
BLOCKS = ("runs", "methods", "cost", "state", "claims", "tried", "tuning", "credit")
#: Accuracy that a run is timed to.
HEIGHT = 0.8
#: What learning is set against rightness at: axis -> how it is called.
AXES = {"tokens": "tokens", "step": "steps"}
#: Budgets are round numbers that every run of a method reaches.
ROUND = {"tokens": 5000, "seconds": 1, "step": 1}


def write(lines: list[Line], page: Path, folder: Path, credit: Path) -> None:
    """Write the page and, into `folder`, its plots.

    Args:
        lines: of the curves file.
        page: its made parts are replaced; a new one has nothing else.
        folder: of the plots.
        credit: folder with a results file of `segpo bench-credit`, or none.
    """
    runs = Runs(lines, _rate(lines))
    measured = [name for name in arms.METHODS if runs.of.get(name)] or list(runs.of)
    most = {axis: _rounded(runs.budget(measured, axis), step) for axis, step in ROUND.items()}
    titles = {name: arms.ARMS[name].title for name in measured}
    found, tried = judge(CLAIMS, runs, most), judge(TRIED, runs, most)
    plots = {f"{curve}-{axis}": plot.panels(runs, titles, curve, axis, most[axis])
             for curve, axis in (("answer", "tokens"), ("answer", "seconds"), ("grounded", "tokens"))}  # fmt: skip
    plots["claims"] = plot.differences(found)
    right = rightness(credit)
    points = {axis: _points(runs, right, axis, most[axis]) for axis in ("tokens", "step")}
    for axis, of in points.items():
        if len(of) > 2:
            y_name = f"mean answer accuracy over the run, equal {AXES[axis]}"
            plots[f"credit-{axis}"] = plot.scatter(of, "correlation of credit with true token advantages", y_name)
    folder.mkdir(parents=True, exist_ok=True)
    for name, svg in plots.items():
        (folder / f"{name}.svg").write_text(svg, encoding="utf-8")
    made = {
        "runs": _runs(lines, runs, most), "methods": _methods(runs, measured, most),
        "cost": _cost(runs, measured, most), "state": _state(runs, measured, most), "claims": _claims(found),
        "tried": _tried(tried), "tuning": _tuning(lines), "credit": _credit(points),
    }  # fmt: skip
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


def _rate(lines: list[Line]) -> float:
    """The learning rate of the plan, where there are runs with it; else that of the first run."""
    rates = [line["learning_rate"] for line in lines]
    return arms.RATE if arms.RATE in rates else rates[0]


def _rounded(value: float, step: float) -> float:
    return math.floor(value / step) * step or value


def rightness(folder: Path) -> dict[str, float]:
    """Arm -> correlation of its credit with the true one, from the results of `segpo bench-credit`; {} without."""
    path = folder / "methods.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    names = {name: name if name in found else arms.RIGHTNESS.get(name) for name in arms.METHODS}
    return {name: found[arm]["pearson"] for name, arm in names.items() if arm in found}


# --- tables -----------------------------------------------------------------------------------------


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(row) + " |" for row in rows)]
    return "\n".join(lines)


def _say(i: Interval, digits: int = 2, sign: bool = False) -> str:
    form = f"{'+' if sign else ''}.{digits}f"
    if i.number == 0:
        return ""
    if i.number < LEAST_SEEDS:  # of two, an interval is wider than the scale
        return f"{i.mean:{form}} (seeds: {i.number})"
    return f"{i.mean:{form}} [{i.low:{form}}, {i.high:{form}}]"


def _ends(runs: Runs, arm: str, name: str, most: dict[str, float]) -> list[float]:
    """The curve at the token budget, seed by seed."""
    return [at(run, name, "tokens", most["tokens"]) for run in runs.of[arm].values()]


def _runs(lines: list[Line], runs: Runs, most: dict[str, float]) -> str:
    tables = sum(len(of) for of in runs.of.values())
    minutes = sum(line["seconds"][-1] for line in lines) / 60
    sizes = " and ".join(str(size) for size in sorted({line["eval_size"] for line in lines}))
    return (
        f"{len(lines)} runs in the file, {tables} of them in the tables; {minutes:.0f} processor minutes of training. "
        f"{sizes} held-out problems, greedy. {'; '.join(sorted({line['machine'] for line in lines}))}. "
        f"Budgets: {most['tokens']:,.0f} tokens through the sampler, {most['seconds']:.0f} processor seconds, "
        f"{most['step']} steps."
    )


def _methods(runs: Runs, names: Sequence[str], most: dict[str, float]) -> str:
    rows = []
    for name in names:
        areas = [interval([*runs.areas(name, "answer", axis, most[axis]).values()]) for axis in most]
        ends = {curve: _ends(runs, name, curve, most) for curve in ("answer", "perception", "grounded")}
        rows.append((-areas[0].mean, [
            arms.ARMS[name].title, str(len(runs.of[name])), *(_say(a, 3) for a in areas),
            *(_say(interval(ends[curve])) for curve in ends), f"{min(ends['answer']):.2f}",
            f"{min(ends['grounded']):.2f}",
        ]))  # fmt: skip
    head = ("method", "seeds", "answer over the run, equal tokens", "equal time", "equal steps", "answer",
            "perception", "grounded", "worst answer", "worst grounded")  # fmt: skip
    return _table(head, [row for _, row in sorted(rows)])


def _cost(runs: Runs, names: Sequence[str], most: dict[str, float]) -> str:
    rows = []
    for name in names:
        of = list(runs.of[name].values())
        cells = []
        for axis, form in (("tokens", "{:,.0f}"), ("seconds", "{:.0f}")):
            reached = [first_at(run, "answer", axis, HEIGHT) for run in of]
            there = sum(math.isfinite(v) for v in reached)
            median = float(np.median(reached))
            cells.append(f"{form.format(median) if math.isfinite(median) else 'beyond'} ({there} of {len(of)})")
        steps = [run["step"][-1] for run in of]
        cells += [f"{np.mean([run[axis][-1] / run['step'][-1] for run in of]):{form}}"
                  for axis, form in (("tokens", ",.0f"), ("seconds", ".2f"))]  # fmt: skip
        rows.append([arms.ARMS[name].title, *cells, str(max(steps))])
    return _table(("method", f"tokens to {HEIGHT} (seeds that got there)", f"seconds to {HEIGHT}", "tokens a step",
                   "seconds a step", "steps"), rows)  # fmt: skip


def _state(runs: Runs, names: Sequence[str], most: dict[str, float]) -> str:
    def last(run: Line, name: str) -> float | None:
        """Of the steps up to the first evaluation at or after the budget."""
        i = next((i for i, tokens in enumerate(run["tokens"]) if tokens >= most["tokens"]), len(run["tokens"]) - 1)
        return run[name][i]

    rows = []
    for name in names:
        cells = []
        for column, digits in (("entropy", 3), ("length", 1), ("explained_variance", 2), ("calibration_error", 2)):
            values = [v for run in runs.of[name].values() if (v := last(run, column)) is not None]
            cells.append(_say(interval(values), digits))
        rows.append([arms.ARMS[name].title, *cells])
    head = (
        "method",
        "entropy (nats a token)",
        "length (greedy)",
        "values: explained variance",
        "values: calibration error",
    )
    return _table(head, rows)


def _claims(found: Sequence[Finding]) -> str:
    rows = []
    for f in found:
        here = f"**{f.verdict}**" if f.verdict in ("confirmed", "contradicted") else f.verdict
        rows.append([f.claim.source, *_difference(f), here])
    return _table(("paper", "claim", *DIFFERENCE, "here"), rows)


def _tried(found: Sequence[Finding]) -> str:
    words = {"confirmed": "**better**", "contradicted": "**worse**", "not measured": "too few seeds"}
    rows = [[*_difference(f), words.get(f.verdict, "not told apart")] for f in found if f.tokens.number]
    return _table(("tried", *DIFFERENCE, "here"), rows) if rows else "Nothing yet."


DIFFERENCE = ("equal tokens", "equal time", "equal steps", "seeds", "tokens")


def _difference(f: Finding) -> list[str]:
    intervals = (_say(i, 3, True) for i in (f.tokens, f.seconds, f.step))
    return [f.claim.says, *intervals, str(f.tokens.number), f"{f.token_budget / 1000:.0f}k"]


def _tuning(lines: list[Line]) -> str:
    pairs = {}
    for name in arms.METHODS:
        here = {line["learning_rate"]: line for line in lines if line["arm"] == name and line["seed"] == arms.SEEDS[0]}
        if arms.RATE in here and arms.OTHER_RATE in here:
            pairs[name] = here[arms.RATE], here[arms.OTHER_RATE]
    if not pairs:
        return "No runs with another learning rate."
    rows = []
    for name, of in pairs.items():
        common = min(line["tokens"][-1] for line in of)
        cells = [f"{area(line, curve, 'tokens', common):.3f}" for curve in ("answer", "grounded") for line in of]
        rows.append([arms.ARMS[name].title, *cells])
    return _table(("method", *(f"{curve}, {rate:g}" for curve in ("answer", "grounded")
                               for rate in (arms.RATE, arms.OTHER_RATE))), rows)  # fmt: skip


def _points(runs: Runs, right: dict[str, float], axis: str, budget: float) -> dict[str, tuple[float, float]]:
    """Title -> (rightness, area), of methods that have both."""
    areas = {name: [*runs.areas(name, "answer", axis, budget).values()] for name in right}
    return {arms.ARMS[name].title: (right[name], float(np.mean(of))) for name, of in areas.items() if of}


def _credit(points: dict[str, dict[str, tuple[float, float]]]) -> str:
    if len(points["tokens"]) <= 2:
        return "No results of `segpo bench-credit` beside the curves."
    parts = []
    for axis, of in points.items():
        x, y = (np.asarray([p[k] for p in of.values()]) for k in (0, 1))
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
