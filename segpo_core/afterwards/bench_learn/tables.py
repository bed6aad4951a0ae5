"""The tables of the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from segpo_core.afterwards.bench_learn import arms
from segpo_core.afterwards.bench_learn.claims import LEAST_SEEDS, Finding
from segpo_core.afterwards.bench_learn.curves import Interval, Line, Runs, at, first_at, interval

#: Accuracy that a run is timed to.
HEIGHT = 0.8
#: Columns of a difference: heading -> what it says of a finding.
AT_RATE = {"equal tokens": "tokens", "equal time": "seconds", "equal steps": "step"}
TUNED = {"tuned, equal tokens": "tuned_tokens", "tuned, equal time": "tuned_seconds"}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(row) + " |" for row in rows)]
    return "\n".join(lines)


def say(i: Interval, digits: int = 2, sign: bool = False) -> str:
    form = f"{'+' if sign else ''}.{digits}f"
    if i.number == 0:
        return ""
    if i.number < LEAST_SEEDS:  # of two, an interval is wider than the scale
        return f"{i.mean:{form}} (seeds: {i.number})"
    return f"{i.mean:{form}} [{i.low:{form}}, {i.high:{form}}]"


def _share(i: Interval, digits: int = 2) -> str:
    """Of an accuracy, which ends at 0 and 1 whatever Student says."""
    return say(i._replace(low=max(i.low, 0.0), high=min(i.high, 1.0)), digits)


def _rate(rate: float) -> str:
    return f"{rate:.0e}".replace("e-0", "e-")


def runs(lines: Sequence[Line], of: Sequence[Runs]) -> str:
    """How many runs there are, and on what."""
    tables = sum(len(seeds) for one in of for seeds in one.of.values())
    minutes = sum(line["seconds"][-1] for line in lines) / 60
    sizes = " and ".join(str(size) for size in sorted({line["eval_size"] for line in lines}))
    return (
        f"{len(lines)} runs in the file, {tables} of them in the tables; {minutes:.0f} processor minutes of training. "
        f"{sizes} held-out problems, greedy. {'; '.join(sorted({line['machine'] for line in lines}))}."
    )


def budgets(most: dict[str, float]) -> str:
    return (
        f"Budgets: {most['tokens']:,.0f} tokens through the sampler, {most['seconds']:.0f} processor seconds, "
        f"{most['step']} steps."
    )


def _ends(of: Runs, arm: str, name: str, most: dict[str, float]) -> list[float]:
    """The curve at the token budget, seed by seed; none of a curve that the task does not have."""
    return [at(run, name, "tokens", most["tokens"]) for run in of.of[arm].values() if run[name][0] is not None]


def methods(of: Runs, names: Sequence[str], most: dict[str, float], ends: Sequence[str]) -> str:
    """Areas at each budget, and the curves `ends` at the token budget; highest area first."""
    rows = []
    for name in names:
        areas = [interval([*of.areas(name, "answer", axis, most[axis]).values()]) for axis in most]
        last = {curve: _ends(of, name, curve, most) for curve in ends}
        rows.append((-areas[0].mean, [
            arms.ARMS[name].title, str(len(of.of[name])), *(_share(a, 3) for a in areas),
            *(_share(interval(last[curve])) for curve in ends),
            *(f"{min(last[curve]):.2f}" for curve in ends if curve != "perception"),
        ]))  # fmt: skip
    worst = (f"worst {curve}" for curve in ends if curve != "perception")
    head = ("method", "seeds", "answer over the run, equal tokens", "equal time", "equal steps", *ends, *worst)
    return table(head, [row for _, row in sorted(rows)])


def tuning(of: Runs, names: Sequence[str], most: dict[str, float], rates: Sequence[float]) -> str:
    """Areas at every learning rate, and which is the better one."""
    rows = []
    for name in names:
        runs_at = {rate: of.called(name, rate) for rate in rates}
        tuned = [of.tuned(name, rates, "answer", axis, most[axis], most["tokens"]) for axis in ("tokens", "seconds")]
        if tuned[0].rate is None:
            continue
        cells = [
            say(interval([*of.areas(arm, "answer", "tokens", most["tokens"]).values()]), 3) for arm in runs_at.values()
        ]
        areas = [interval([*t.areas.values()]) for t in tuned]
        row = [arms.ARMS[name].title, *cells, _rate(tuned[0].rate), *(_share(a, 3) for a in areas)]
        rows.append((-areas[0].mean, [*row, f"{min(tuned[0].areas.values()):.3f}"]))
    if not rows:
        return "No method was run with two learning rates."
    head = ("method", *map(_rate, rates), "better", "tuned, equal tokens", "tuned, equal time",
            "worst seed, equal tokens")  # fmt: skip
    return table(head, [row for _, row in sorted(rows)])


def cost(of: Runs, names: Sequence[str]) -> str:
    rows = []
    for name in names:
        seeds = list(of.of[name].values())
        cells = []
        for axis, form in (("tokens", "{:,.0f}"), ("seconds", "{:.0f}")):
            reached = [first_at(run, "answer", axis, HEIGHT) for run in seeds]
            there = sum(math.isfinite(v) for v in reached)
            median = float(np.median(reached))
            cells.append(f"{form.format(median) if math.isfinite(median) else 'beyond'} ({there} of {len(seeds)})")
        steps = [run["step"][-1] for run in seeds]
        cells += [f"{np.mean([run[axis][-1] / run['step'][-1] for run in seeds]):{form}}"
                  for axis, form in (("tokens", ",.0f"), ("seconds", ".2f"))]  # fmt: skip
        rows.append([arms.ARMS[name].title, *cells, str(max(steps))])
    return table(("method", f"tokens to {HEIGHT} (seeds that got there)", f"seconds to {HEIGHT}", "tokens a step",
                  "seconds a step", "steps"), rows)  # fmt: skip


def state(of: Runs, names: Sequence[str], most: dict[str, float]) -> str:
    def last(run: Line, name: str) -> float | None:
        """Of the steps up to the first evaluation at or after the budget."""
        i = next((i for i, tokens in enumerate(run["tokens"]) if tokens >= most["tokens"]), len(run["tokens"]) - 1)
        return run[name][i]

    rows = []
    for name in names:
        cells = []
        for column, digits in (("entropy", 3), ("length", 1), ("explained_variance", 2), ("calibration_error", 2)):
            values = [v for run in of.of[name].values() if (v := last(run, column)) is not None]
            cells.append(say(interval(values), digits))
        rows.append([arms.ARMS[name].title, *cells])
    head = ("method", "entropy (nats a token)", "length (greedy)", "values: explained variance",
            "values: calibration error")  # fmt: skip
    return table(head, rows)


def claims(found: Sequence[Finding]) -> str:
    rows = []
    for f in found:
        here = f"**{f.verdict}**" if f.verdict in ("confirmed", "contradicted") else f.verdict
        rows.append([f.claim.source, *_difference(f, TUNED | AT_RATE), f"{here} †" if f.stands else here])
    return table(("paper", "claim", *TUNED, *AT_RATE, "seeds", "tokens", "here"), rows)


def tried(found: Sequence[Finding]) -> str:
    words = {"confirmed": "**better**", "contradicted": "**worse**", "not measured": "too few seeds"}
    rows = [
        [*_difference(f, AT_RATE), words.get(f.verdict, "not told apart") + " †" * f.stands]
        for f in found
        if f.tokens.number
    ]
    return table(("compared", *AT_RATE, "seeds", "tokens", "here"), rows) if rows else "Nothing yet."


def _difference(f: Finding, columns: dict[str, str]) -> list[str]:
    intervals = (say(getattr(f, name), 3, True) for name in columns.values())
    return [
        f.claim.says,
        *intervals,
        str(f.judged.number),
        f"{f.token_budget / 1000:.{0 if f.token_budget > 9999 else 1}f}k",
    ]
