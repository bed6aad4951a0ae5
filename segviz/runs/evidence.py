"""What recorded rollouts say about a method's estimates: each estimate beside what it should have been."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from segpo_core.record.blame import spans
from segviz.runs.columns import Row

#: Columns that `evidence` reads.
COLUMNS = (
    "reward values mc_values mc_stderr node_ids segment_ids segment_start segment_end segment_advantage segment_value "
    "segment_stderr"
).split()

#: (step, group, sample) -> value of the state before each token, NaN where not known; or (values, standard errors).
Truth = Mapping[tuple[int, int, int], Any]


@dataclass
class Evidence:
    """What is known about S states and M segments of some rollouts. NaN: not known."""

    estimator: str = ""  #: "critic", "chain", "tree" or "" (no values)
    against: str = "outcomes"  #: what the estimates are held against
    estimate: np.ndarray = field(default_factory=lambda: np.zeros(0))  #: [S]
    truth: np.ndarray = field(default_factory=lambda: np.zeros(0))  #: [S]
    truth_error: np.ndarray = field(default_factory=lambda: np.zeros(0))  #: [S] its standard error
    owner: np.ndarray = field(default_factory=lambda: np.zeros(0, int))  #: [S] number of the rollout
    outcome: np.ndarray = field(default_factory=lambda: np.zeros(0))  #: [S] the rollout's reward
    advantage: np.ndarray = field(default_factory=lambda: np.zeros(0))  #: [M] as recorded
    noise: np.ndarray = field(default_factory=lambda: np.zeros(0))  #: [M] standard error of a sampled advantage
    agreed: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))  #: [M] all samples of a state beside agreed
    true_advantage: np.ndarray = field(default_factory=lambda: np.zeros(0))  #: [M] V*(after) − V*(before)
    true_noise: np.ndarray = field(default_factory=lambda: np.zeros(0))  #: [M] its standard error
    stderr: np.ndarray = field(default_factory=lambda: np.zeros(0))  #: standard errors of sampled values
    samples: np.ndarray = field(default_factory=lambda: np.zeros(0))  #: rewards behind each, NaN: not known

    @property
    def has_truth(self) -> bool:
        return self.against != "outcomes"


def evidence(rows: Sequence[Row], truth: Truth | None = None) -> Evidence:
    """What the rollouts say about their estimates. `rows` as `rollout_columns` gives them, with `COLUMNS`."""
    critic = any(row["values"] is not None for row in rows)
    valued = any(row["segment_value"] is not None for row in rows)
    sampled = any(row["mc_values"] is not None for row in rows)
    tree = not critic and valued and not sampled and any(row["node_ids"] is not None for row in rows)
    estimator = "critic" if critic else "tree" if tree else "chain" if valued else ""
    own = sampled and estimator != "chain"  # the Monte Carlo values are not what is judged
    found = Evidence(estimator, "given values" if truth is not None else "Monte Carlo values" if own else "outcomes")
    leaves = _leaves(rows) if tree and truth is None else {}
    parts: dict[str, list[np.ndarray]] = defaultdict(list)
    for number, row in enumerate(rows):
        known = _true_values(row, truth) if found.has_truth else None
        total = _length(row)
        cut = spans(row, total)
        reward = math.nan if row["reward"] is None else float(row["reward"])
        before = _estimates(row, cut, total, leaves)
        if found.has_truth:
            states = np.flatnonzero(np.isfinite(known[0]) & np.isfinite(before)) if known is not None else []
            parts["truth"].append(known[0][states] if known is not None else np.zeros(0))
            parts["truth_error"].append(known[1][states] if known is not None else np.zeros(0))
        else:
            states = np.flatnonzero(np.isfinite(before)) if math.isfinite(reward) else []
            states = np.intersect1d(states, cut[:, 0])
            parts["truth"].append(np.full(len(states), reward))
            parts["truth_error"].append(np.full(len(states), np.nan))
        parts["estimate"].append(before[states] if len(states) else np.zeros(0))
        parts["owner"].append(np.full(len(states), number))
        parts["outcome"].append(np.full(len(states), reward))
        advantage = row["segment_advantage"]
        if advantage is not None and len(advantage) == len(cut):
            parts["advantage"].append(advantage)
            # a critic's error is none of sampling
            noise = _padded(None if estimator == "critic" else row["segment_stderr"], len(cut))
            parts["noise"].append(np.hypot(noise, np.append(noise[1:], 0.0)))  # the last state's value is its reward
            parts["agreed"].append((noise == 0) | (np.append(noise[1:], np.nan) == 0))
            after = None if known is None else (np.append(known[0], reward), np.append(known[1], 0.0))
            a, b = cut[:, 0], cut[:, 1]
            parts["true_advantage"].append(after[0][b] - after[0][a] if after else np.full(len(cut), np.nan))
            parts["true_noise"].append(np.hypot(after[1][b], after[1][a]) if after else np.full(len(cut), np.nan))
        sources = (("mc_values", "mc_stderr"), ("segment_value", "segment_stderr"))
        for value, error in sources[: 1 if estimator == "critic" else 2]:
            if row[value] is not None and row[error] is not None and len(row[value]) == len(row[error]):
                measured = np.isfinite(row[error])
                parts["stderr"].append(row[error][measured])
                parts["samples"].append(row[value][measured])
                break
    for name, arrays in parts.items():
        setattr(found, name, np.concatenate(arrays))
    found.samples = samples_behind(found.samples, found.stderr)
    return found


def samples_behind(values: np.ndarray, stderr: np.ndarray) -> np.ndarray:
    """Number of rewards of 0 or 1 behind each mean, from its standard error √(p(1 − p)/(n − 1)); all [S].

    NaN where that gives no one number for most of them: rewards were others, or their numbers differ.
    """
    unsure = (stderr > 0) & (values > 0) & (values < 1)
    numbers = 1 + values[unsure] * (1 - values[unsure]) / stderr[unsure] ** 2
    n = np.round(np.median(numbers)) if len(numbers) else np.nan
    same = len(numbers) > 0 and np.mean(np.abs(numbers - n) < 0.1) > 0.8
    return np.full(len(stderr), n if same else np.nan)


def _length(row: Row) -> int:
    for name in ("values", "mc_values", "segment_ids", "node_ids"):
        if row[name] is not None:
            return len(row[name])
    return int(row["segment_end"][-1]) if row["segment_end"] is not None and len(row["segment_end"]) else 0


def _true_values(row: Row, truth: Truth | None) -> tuple[np.ndarray, np.ndarray] | None:
    """(value before each token, its standard error), both [T]."""
    if truth is None:
        values, errors = row["mc_values"], row["mc_stderr"]
    else:
        key = (row["step"], row["group"], row["sample"])
        values = truth.get(key)
        values, errors = values if isinstance(values, tuple) else (values, None)
    if values is None:
        return None
    values = np.array(values, dtype=float)
    if len(values) != _length(row):
        if truth is None:  # a recorded column that does not fit its tokens
            return None
        where = "/".join(str(row[name]) for name in ("step", "group", "sample"))
        raise ValueError(
            f"rollout {where} has {_length(row)} tokens but {len(values)} true values: one a token is needed"
        )
    return values, np.full(len(values), np.nan) if errors is None else np.array(errors, dtype=float)


def _estimates(row: Row, cut: np.ndarray, total: int, leaves: dict) -> np.ndarray:
    """The method's value before each token, NaN where it has none."""
    if row["values"] is not None:
        return row["values"]
    before, values = np.full(total, np.nan), row["segment_value"]
    if values is None or len(values) != len(cut):
        return before
    before[cut[:, 0]] = values if not leaves else [_without_own(row, int(start), leaves) for start in cut[:, 0]]
    return before


def _leaves(rows: Sequence[Row]) -> dict[tuple, list[float]]:
    """(step, group, node) -> rewards of the completions through it; node 0 is the prompt."""
    found: dict[tuple, list[float]] = defaultdict(list)
    for row in rows:
        if row["reward"] is None or row["node_ids"] is None:
            continue
        for node in {0, *row["node_ids"].astype(int)}:
            found[row["step"], row["group"], node].append(row["reward"])
    return found


def _without_own(row: Row, start: int, leaves: dict[tuple, list[float]]) -> float:
    """Mean reward of the other completions through the state before token `start`; NaN where there is no other."""
    node = int(row["node_ids"][start - 1]) if start else 0
    rewards = leaves.get((row["step"], row["group"], node), [])
    if row["reward"] is None or len(rewards) < 2:
        return math.nan
    return (sum(rewards) - row["reward"]) / (len(rewards) - 1)


def _padded(column: np.ndarray | None, size: int) -> np.ndarray:
    return column if column is not None and len(column) == size else np.full(size, np.nan)
