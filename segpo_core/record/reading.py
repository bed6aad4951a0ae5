"""What is recorded of the rollouts, read: of all steps or of some, however they lie in files."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

from segpo_core.record.files import Span, read_table, span_files, step_files
from segpo_core.record.schema import CREDIT_SCHEMA, NODE_SCHEMA, ROLLOUT_SCHEMA
from segpo_core.record.together import STEP, steps_in


def rollout_steps(directory: str | Path) -> list[int]:
    """Steps whose rollouts are recorded, in order.

    Raises:
        SchemaError: a file of several steps cannot be read.
    """
    while True:
        try:
            files = span_files(Path(directory) / "rollouts", strict=False)
            return sorted({s for span, path in files for s in (steps_in(path) if span.several else span[:1])})
        except FileNotFoundError:  # put together with others since it was listed
            continue


def read_rollouts(
    directory: str | Path, steps: Iterable[int] | None = None, columns: list[str] | None = None
) -> pa.Table:
    """Recorded rollouts of the given steps (default: all), every rank's, as one table of `ROLLOUT_SCHEMA`.

    A column that an older file of the same version lacks is null.
    """
    schema = ROLLOUT_SCHEMA if columns is None else pa.schema([ROLLOUT_SCHEMA.field(name) for name in columns])
    return _read(Path(directory) / "rollouts", schema, steps)


def read_eval(directory: str | Path, steps: Iterable[int] | None = None, columns: list[str] | None = None) -> pa.Table:
    """Held-out completions that were recorded at evaluations, as `read_rollouts`; empty for a run without any."""
    schema = ROLLOUT_SCHEMA if columns is None else pa.schema([ROLLOUT_SCHEMA.field(name) for name in columns])
    return _read(Path(directory) / "eval", schema, steps)


def read_nodes(directory: str | Path, steps: Iterable[int] | None = None) -> pa.Table:
    """Recorded nodes of the given steps (default: all), every rank's, as one table of `NODE_SCHEMA`; empty for a method
    that samples no values."""
    return _read(Path(directory) / "nodes", NODE_SCHEMA, steps)


def _read(folder: Path, schema: pa.Schema, steps: Iterable[int] | None) -> pa.Table:
    """The rows of some steps, step by step and within each process by process."""
    wanted = None if steps is None else set(steps)
    whole = schema if "step" in schema.names else pa.schema([*STEP, *schema])
    while True:
        try:
            tables = [(span, read_steps(path, span, whole, wanted)) for span, path in span_files(folder, wanted)]
        except FileNotFoundError:  # put together with others, or taken back by a resumed run, since it was listed
            continue
        return in_order(tables).select(schema.names) if tables else schema.empty_table()


def read_steps(path: Path, span: Span, schema: pa.Schema, steps: Iterable[int] | None = None) -> pa.Table:
    """The rows of some steps (default: all) of a file that `span_files` found; `schema` has the step, errors as
    `read_table`."""
    if steps is None or not span.several:
        return read_table(path, schema)
    return read_table(path, schema, [step for step in steps if span.first <= step <= span.last])


def in_order(tables: list[tuple[Span, pa.Table]]) -> pa.Table:
    """Tables of the same columns as one, in order of the steps; those of several processes alternate step by step."""
    if not any(span.several for span, _ in tables) or len({span.rank for span, _ in tables}) == 1:
        return pa.concat_tables([table for _, table in tables])
    parts = []
    for span, table in tables:
        steps = table["step"].to_numpy()
        cuts = [0, *(np.flatnonzero(np.diff(steps)) + 1).tolist(), len(table)]
        parts += [(int(steps[a]), span.rank, table.slice(a, b - a)) for a, b in pairwise(cuts) if b > a]
    if not parts:
        return tables[0][1]
    return pa.concat_tables([table for *_, table in sorted(parts, key=lambda part: part[:2])])


def read_credit(
    directory: str | Path, methods: Iterable[str] | None = None, steps: Iterable[int] | None = None
) -> pa.Table:
    """Credit that was computed for recorded rollouts (see afterwards/credit.py), as one table of `CREDIT_SCHEMA`.

    Args:
        methods: names; None: all that are there.
        steps: None: all that are there.
    """
    there = sorted(path.name for path in (Path(directory) / "credit").glob("*/"))
    wanted = None if steps is None else set(steps)
    tables = [
        read_table(path, CREDIT_SCHEMA)
        for method in (there if methods is None else methods)
        for path in step_files(directory, f"credit/{method}", wanted)
    ]
    return pa.concat_tables(tables) if tables else CREDIT_SCHEMA.empty_table()
