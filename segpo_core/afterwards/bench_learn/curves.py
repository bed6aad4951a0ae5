"""The curves of runs, one line a run, and what is read from them. No model, no torch.

A line is a mapping: arm, seed, learning_rate, eval_size, settings that differ from the demo's, machine; and lists as
long as its evaluations: `step`, `tokens` (through the sampler so far), `seconds` (of the processor so far, without
evaluation), held-out `answer`, `perception`, `grounded`, `length` (greedy), and of the steps since the evaluation
before `entropy`, `train_length`, `explained_variance`, `calibration_error` (null where there is none).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from segpo_core.record.store import write_atomic

Line = dict[str, Any]

#: 0.975 quantile of Student's t by degrees of freedom, from 1.
T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def read(path: Path) -> list[Line]:
    """The lines of a file; none where it is not there.

    Raises:
        ValueError: a line that is no run.
    """
    lines = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines() if path.exists() else [], 1):
        try:
            line = json.loads(text)
            lines.append(line | {"key": (line["arm"], line["seed"], line["learning_rate"], line["eval_size"])})
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number} is no run of `segpo bench-learn`: {error}") from None
    return lines


def add(path: Path, line: Line) -> None:
    """One more line, whole or not at all."""
    before = path.read_bytes() if path.exists() else b""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, before + (json.dumps(line, ensure_ascii=False) + "\n").encode())


def at(line: Line, name: str, axis: str, place: float) -> float:
    """The curve `name` at `place` of `axis`, straight between evaluations."""
    return float(np.interp(place, line[axis], line[name]))


def area(line: Line, name: str, axis: str, budget: float) -> float:
    """Mean height of the curve from 0 to `budget`: the area under it, by the budget."""
    x, y = np.asarray(line[axis], float), np.asarray(line[name], float)
    inside = x < budget
    x, y = np.append(x[inside], budget), np.append(y[inside], np.interp(budget, x, y))
    return float(np.trapezoid(y, x) / budget) if budget > 0 else float(y[0])


def first_at(line: Line, name: str, axis: str, height: float) -> float:
    """Where the curve first reaches `height`; infinite where it never does."""
    x, y = line[axis], line[name]
    for i, value in enumerate(y):
        if value >= height:
            return float(x[i] if i == 0 else np.interp(height, y[i - 1 : i + 1], x[i - 1 : i + 1]))
    return float("inf")


class Interval(NamedTuple):
    """A mean over seeds and its 95 % interval, from Student's t; one seed has none."""

    mean: float
    low: float
    high: float
    number: int


def interval(values: Sequence[float]) -> Interval:
    x = np.asarray(values, float)
    if len(x) == 0:
        return Interval(np.nan, np.nan, np.nan, 0)
    if len(x) == 1:
        return Interval(float(x[0]), float("-inf"), float("inf"), 1)
    half = T[min(len(x) - 2, len(T) - 1)] * x.std(ddof=1) / len(x) ** 0.5
    return Interval(float(x.mean()), float(x.mean() - half), float(x.mean() + half), len(x))


def p_value(i: Interval) -> float:
    """How often, two-sided, a mean of as many seeds would lie as far from 0 if the truth were 0: Student's t."""
    if i.number < 2:
        return 1.0
    df = i.number - 1
    half = (i.high - i.low) / 2 / T[min(df, len(T)) - 1]
    if half == 0:
        return float(i.mean == 0)
    angle = np.linspace(0, np.pi / 2, 20001)  # t = √df tan(angle) has the density cos^(df − 1)
    density = np.cos(angle) ** (df - 1)
    beyond = angle >= np.arctan(abs(i.mean) / half / df**0.5)
    return float(density[beyond].sum() / density.sum())


def holm(p: Sequence[float], level: float = 0.05) -> list[bool]:
    """Which of several findings stand when all are counted (Holm): the k-th smallest p of m is held to
    level / (m − k + 1), up to the first that fails."""
    stands, order = [False] * len(p), sorted(range(len(p)), key=p.__getitem__)
    for k, i in enumerate(order):
        if p[i] > level / (len(p) - k):
            break
        stands[i] = True
    return stands


class Runs:
    """The runs of all arms that the tables are made of.

    Args:
        lines: as `read` gives them.
        rate: of the arms as they are called; those of another one are "ARM at RATE".
    """

    def __init__(self, lines: list[Line], rate: float):
        self.rate = rate
        self.of: dict[str, dict[int, Line]] = {}
        for line in lines:
            arm, seed = self.called(line["arm"], line["learning_rate"]), line["seed"]
            if seed not in self.of.setdefault(arm, {}) or line["step"][-1] > self.of[arm][seed]["step"][-1]:
                self.of[arm][seed] = dict(line)
        for runs in self.of.values():
            typical_seconds(list(runs.values()))

    def called(self, arm: str, rate: float) -> str:
        """The name here of an arm that trains with `rate`."""
        return arm if rate == self.rate else f"{arm} at {rate:g}"

    def budget(self, arms: Sequence[str], axis: str) -> float:
        """As far as every run of these arms gets."""
        return min((run[axis][-1] for arm in arms for run in self.of.get(arm, {}).values()), default=0.0)

    def areas(self, arm: str, name: str, axis: str, budget: float) -> dict[int, float]:
        """Seed -> area."""
        return {seed: area(run, name, axis, budget) for seed, run in sorted(self.of.get(arm, {}).items())}

    def tuned(self, arm: str, rates: Sequence[float], name: str, axis: str, budget: float, tokens: float) -> Tuned:
        """An arm's areas at the better of its learning rates.

        That is the rate with the largest mean area under the answer's curve up to `tokens`, over the seeds that were
        run at all rates; fewer than two of them choose nothing. The same runs choose and are reported, so where rates
        are close the area is a little too good. (To let each seed's rate be chosen by the others is worse: where rates
        are close, a seed that is bad at one of them is what makes the others prefer it least, and gets it itself.)
        """
        runs = {rate: self.of.get(self.called(arm, rate), {}) for rate in rates}
        seeds = sorted(set.intersection(*(set(of) for of in runs.values())))
        if len(seeds) < 2:
            return Tuned(None, {})
        best = max(rates, key=lambda rate: sum(area(runs[rate][seed], "answer", "tokens", tokens) for seed in seeds))
        return Tuned(best, {seed: area(runs[best][seed], name, axis, budget) for seed in seeds})

    def difference(self, better: str, worse: str, name: str, axis: str, most: float) -> tuple[Interval, float]:
        """Area of one arm less that of another, seed by seed (the same problems), and the budget it is over."""
        budget = min(self.budget((better, worse), axis), most)
        return paired(*(self.areas(arm, name, axis, budget) for arm in (better, worse))), budget


class Tuned(NamedTuple):
    """The learning rate chosen, and seed -> area."""

    rate: float | None
    areas: dict[int, float]


def paired(one: dict[int, float], other: dict[int, float]) -> Interval:
    """Of the differences, over the seeds that both have."""
    return interval([one[seed] - other[seed] for seed in one if seed in other])


def typical_seconds(runs: list[Line]) -> None:
    """Give the runs of one arm the same times, in place: each step's share is the median over them. Others use the
    machine too, and what a run happened to wait says nothing about its method."""
    shares: dict[int, list[float]] = {}
    for run in runs:
        for i in range(1, len(run["step"])):
            each = (run["seconds"][i] - run["seconds"][i - 1]) / (run["step"][i] - run["step"][i - 1])
            shares.setdefault(run["step"][i], []).append(each)
    for run in runs:
        spans = np.diff(run["step"])
        parts = [float(np.median(shares[step])) * span for step, span in zip(run["step"][1:], spans, strict=True)]
        run["seconds"] = [0.0, *np.cumsum(parts).tolist()]
