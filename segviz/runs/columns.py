"""Columns of many rollouts as arrays, for statistics: from a run, or from rollouts that one has in hand."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segpo_core.record.files import SchemaError
from segpo_core.record.schema import ROLLOUT_SCHEMA
from segviz.runs.rollout import Rollout
from segviz.runs.run import Run

MOST = 4096  #: rollouts that are read of a long run, the latest ones

Rollouts = Run | Rollout | Mapping[str, Any] | Iterable[Rollout | Mapping[str, Any]]
Row = dict[str, Any]


def rollout_columns(source: Rollouts, names: Sequence[str], steps: int | Iterable[int] | None = None) -> list[Row]:
    """One dict a rollout with `names`, and step, group, sample and method. Lists of numbers are float arrays, NaN where
    a value is null; None where the column was not recorded.

    Args:
        source: a run, a rollout, or several (mappings have the columns of `ROLLOUT_SCHEMA`).
        names: columns of `ROLLOUT_SCHEMA`.
        steps: of a run; default: all that are recorded and can be read, of a long run the latest `MOST` rollouts.

    Raises:
        TypeError: the source is none of these.
        ValueError: there is no rollout, or a step is not recorded or cannot be read.
    """
    names = list(dict.fromkeys(["step", "group", "sample", "method", *names]))
    if isinstance(source, Run):
        return _of_run(source, names, steps)
    if isinstance(source, (Rollout, Mapping)):
        source = [source]
    rows = []
    for item in source:
        row = item.row if isinstance(item, Rollout) else item
        if not isinstance(row, Mapping):
            raise TypeError(f"expected a run, or rollouts (from run.rollout, or mappings), got {type(item).__name__}")
        rows.append({name: _plain(row.get(name)) for name in names})
    if not rows:
        raise ValueError("there are no rollouts to look at: pass a run with recorded steps, or at least one rollout")
    return rows


def whence(rows: Sequence[Row], source: Rollouts, asked: int | Iterable[int] | None = None) -> str:
    """Which rollouts these are, in words: "steps 1 to 60, 3,840 rollouts"; with `source` and `asked` as they were given
    to `rollout_columns`, also which steps of a run could not be read."""
    steps = sorted({row["step"] for row in rows if row["step"] is not None})
    span = "" if not steps else f"step {steps[0]}, " if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}, "
    said = f"{span}{len(rows):,} rollout{'' if len(rows) == 1 else 's'}"
    # of a long run the earlier steps were not looked at
    first = steps[0] if len(rows) >= MOST else 0
    lost = (
        [s for s in source.steps if s >= first and s not in steps] if isinstance(source, Run) and asked is None else []
    )
    if lost:
        said += f" (could not be read: step {', '.join(map(str, lost[:5]))}{', …' if len(lost) > 5 else ''})"
    return said


def _of_run(run: Run, names: list[str], steps: int | Iterable[int] | None) -> list[Row]:
    recorded = run.steps
    if not recorded:
        raise ValueError(f"{run.path} has no recorded rollouts yet")
    wanted = recorded if steps is None else [steps] if isinstance(steps, int) else list(steps)
    if missing := sorted(set(wanted) - set(recorded)):
        raise ValueError(
            f"{run.path} has no recorded rollouts of step {', '.join(map(str, missing))}; "
            f"recorded steps: {', '.join(map(str, recorded))}"
        )
    schema = pa.schema([ROLLOUT_SCHEMA.field(name) for name in names])
    table = _latest(run, schema, recorded) if steps is None else run.read("rollouts", schema, wanted)
    if not len(table):
        raise ValueError(f"{run.path} has no rollouts at step {', '.join(map(str, wanted))}")
    return table_rows(table)


def _latest(run: Run, schema: pa.Schema, left: list[int]) -> pa.Table:
    """The rollouts of the latest of some steps, which are in order: `MOST`, and the rest of the first one's step. A
    file that cannot be read is left out, and `whence` says which steps are missing.

    Raises:
        SchemaError: none can be read.
    """
    parts: list[pa.Table] = []
    torn: list[SchemaError] = []
    found, read, more = 0, 0, 1
    while left and found < MOST:
        left, some = left[:-more], left[-more:]
        parts.append(run.read("rollouts", schema, some, torn))
        found, read = found + len(parts[-1]), read + len(some)
        more = -(-read * (MOST - found) // found) if found else 2 * read  # were the others like these
    table = pa.concat_tables(reversed(parts))
    if torn and not found:
        raise torn[0]
    return table.filter(pc.greater_equal(table["step"], table["step"][-MOST])) if found > MOST else table


def table_rows(table: pa.Table) -> list[Row]:
    """The rows of a table of rollouts, as `rollout_columns` gives them."""
    columns = [_lists(table[name]) for name in table.column_names]
    return [dict(zip(table.column_names, cells, strict=True)) for cells in zip(*columns, strict=True)]


def _lists(column: pa.ChunkedArray) -> list:
    """A column as Python values; lists of numbers as arrays, made without touching each number."""
    if not _numeric(column.type):
        return column.to_pylist()
    lists = column.combine_chunks()
    if isinstance(lists, pa.ChunkedArray):  # a table without rows has no chunk
        return []
    flat = lists.flatten().to_numpy(zero_copy_only=False).astype(float)
    ends = np.cumsum(lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)).astype(int)
    parts = (flat[a:b] for a, b in pairwise([0, *ends.tolist()]))
    return [part if valid else None for part, valid in zip(parts, lists.is_valid().to_pylist(), strict=True)]


def _numeric(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) and not pa.types.is_string(kind.value_type)


def _plain(value: Any) -> Any:
    if isinstance(value, (str, bytes)) or value is None or not isinstance(value, (Sequence, np.ndarray)):
        return value
    if len(value) and isinstance(next((v for v in value if v is not None), None), str):
        return list(value)
    return np.array(value, dtype=float)


def question(prompt: str | None) -> str:
    """The words of a recorded prompt: the texts of its messages, a line each; what is no JSON stays as it is."""
    try:
        messages = json.loads(prompt or "")
    except ValueError:
        return prompt or ""
    words: list[str] = []
    for message in messages if isinstance(messages, list) else [messages]:
        content = message.get("content") if isinstance(message, dict) else message
        for part in content if isinstance(content, list) else [content]:
            text = part.get("text") if isinstance(part, dict) else part
            words += [text] if isinstance(text, str) else []
    return "\n".join(words)
