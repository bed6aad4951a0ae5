"""Files that another trainer wrote, with the interface of a run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from segviz.runs.light import LIGHT, RolloutTable
from segviz.runs.rollout import Rollout
from segviz.runs.run import Run
from segviz.runs.series import Series

#: Reads a file: (rows with the columns of ROLLOUT_SCHEMA, what a reader should know about them).
Reader = Callable[[Path], tuple[list[dict[str, Any]], set[str]]]

#: Lists files: (step, file) in the order of steps; step None where only the rows say it.
Finder = Callable[[], list[tuple[int | None, Path]]]


class Dump(Run):
    """Another trainer's rollouts with the interface of a `Run`, read only.

    Files are read when their step is asked for, again when they change. One that cannot be read (or is being written)
    is left out and named in `problems`; `rollout` of its step raises.

    Raises:
        FileNotFoundError, ValueError: there is no file, or not one of them can be read; the message is the first's.
    """

    def __init__(self, path: Path, trainer: str, find: Finder, reader: Reader):
        self.path = path
        self.trainer = trainer
        self.manifest = {"name": path.stem if path.is_file() else path.resolve().name, "trainer": trainer}
        self._reader, self._find = reader, find
        self._read: dict[Path, tuple[tuple, dict[int, list[dict[str, Any]]]]] = {}
        self._last: tuple[Path | None, list[dict[str, Any]]] = (None, [])
        self._problems: dict[str, str] = {}
        self._folders = {}
        self._notes: dict[str, None] = {}
        first: Exception | None = None
        for _, file in find():
            try:
                self._table(file)
                return
            except (ValueError, OSError) as error:
                first = first or error
        raise first

    def __repr__(self) -> str:
        return f"Dump({str(self.path)!r}, {self.trainer}, {len(self.steps)} recorded steps)"

    @property
    def method(self) -> str:
        return unknown_method(self.trainer)

    @property
    def steps(self) -> list[int]:
        found = {step for step, _ in self._find() if step is not None}
        for step, file in self._find():
            if step is None:
                found |= set(self._light_rows(file))
        return sorted(found)

    @property
    def metrics(self) -> dict[str, Series]:
        """Means over the rollouts of each step: `reward`, `reward_std`, `rewards/<name>/mean`. Nothing else is in a
        dump; each file is read for it once."""
        found: dict[str, Series] = {}
        for step in self.steps:
            rows = self._step(step)
            columns: dict[str, list[float]] = {"reward": [row["reward"] for row in rows if row["reward"] is not None]}
            for row in rows:
                for name, value in row["parts"].items():
                    if value is not None:
                        columns.setdefault(f"rewards/{name}/mean", []).append(value)
            numbers = {name: sum(values) / len(values) for name, values in columns.items() if values}
            if len(columns["reward"]) > 1:
                apart = math.hypot(*(value - numbers["reward"] for value in columns["reward"]))
                numbers["reward_std"] = apart / math.sqrt(len(columns["reward"]) - 1)
            for name, value in numbers.items():
                series = found.setdefault(name, Series([], []))
                series.steps.append(step)
                series.values.append(value)
        return found

    @property
    def rollouts(self) -> RolloutTable:
        return RolloutTable([row for step in self.steps for row in self._step(step)])

    def rollouts_at(self, *steps: int) -> RolloutTable:
        return RolloutTable([row for step in sorted(set(steps)) for row in self._step(step)])

    @property
    def problems(self) -> list[str]:
        """What the dump does not hold, and files that could not be read."""
        missing = (
            f"{self.trainer} records no tokens, log-probabilities, entropies or segments: sv.annotate(rollouts, model, "
            "processor) adds them"
        )
        return [missing, *self._notes, *self._problems.values()]

    def _whole(self, step: int, group: int, more: Sequence[tuple] = ()) -> list[Rollout]:
        """As `Run._whole`.

        Raises:
            ValueError: the file of the step cannot be read.
        """
        wanted = {"step": step, "group": group} | {name: value for name, _, value in more}
        found = []
        for file in self._of_step(step):
            self._table(file)
            if self._last[0] != file:
                self._last = (file, self._reader(file)[0])
            rows = [row for row in self._last[1] if all(row[name] == value for name, value in wanted.items())]
            found += [Rollout(row, {}, self.name) for row in rows]
        return found

    def nodes(self, step: int, group: int | None = None) -> list[dict[str, Any]]:
        """None: trees and chains are SegPO's."""
        return []

    def image(self, sha: str) -> bytes | None:
        """None: images are not in these dumps."""
        return None

    def _of_step(self, step: int) -> list[Path]:
        return [
            file for known, file in self._find() if known == step or (known is None and step in self._light_rows(file))
        ]

    def _step(self, step: int) -> list[dict[str, Any]]:
        found = []
        for file in self._of_step(step):
            steps = self._light_rows(file)
            found += steps.get(step, [])
            if steps and step not in steps:
                self._problems[str(file)] = (
                    f"Left out: {file} is named as step {step}, but its rows are of {listed(sorted(steps))}; "
                    "read this file by itself"
                )
        return found

    def _light_rows(self, file: Path) -> dict[int, list[dict[str, Any]]]:
        """Light rows of a file by step; none, with a problem noted, where it cannot be read."""
        try:
            rows = self._table(file)
        except (ValueError, OSError) as error:
            self._problems[str(file)] = f"Left out: {error}"
            return {}
        self._problems.pop(str(file), None)
        return rows

    def _table(self, file: Path) -> dict[int, list[dict[str, Any]]]:
        status = file.stat()
        stamp = (status.st_mtime_ns, status.st_size)
        if file in self._read and self._read[file][0] == stamp:
            return self._read[file][1]
        rows, notes = self._reader(file)
        self._notes |= dict.fromkeys(sorted(notes))
        self._last = (file, rows)
        steps: dict[int, list[dict[str, Any]]] = {}
        for row in rows:
            steps.setdefault(row["step"], []).append(_light(row))
        self._read[file] = (stamp, steps)
        return steps


def _light(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row without its texts, as in `RolloutTable`; `parts` are the reward's."""
    light = {name: row[name] for name in LIGHT if not name.startswith("segment_")}
    credit = (row["segment_advantage"] or [None])[0]
    return light | {
        "tokens": None, "segments": None, "lowest": credit, "highest": credit, "grounded": None,
        "parts": json.loads(row["reward_parts"]),
    }  # fmt: skip


def unknown_method(trainer: str) -> str:
    """What stands where the method's name would."""
    return f"{trainer} (method not recorded)"


def listed(items: Sequence[Any], most: int = 8) -> str:
    """Items for a sentence, not too many of them."""
    return ", ".join(map(str, items[:most])) + (f", … ({len(items)} in all)" if len(items) > most else "")
