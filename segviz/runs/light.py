"""Rollouts without their token streams: kept as columns, so that a long run has room, and made rows when looked at."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segpo_core.record.schema import ROLLOUT_SCHEMA

#: Columns that say what a rollout is without its token streams. `segment_*` lists are short.
LIGHT = (
    "step group sample method example_id answer reward finished answer_right perception_right reasoning_right "
    "error_kind segment_end segment_advantage"
).split()
LIGHT_SCHEMA = pa.schema([ROLLOUT_SCHEMA.field(name) for name in LIGHT])

BATCH = 4096  #: rows made at once while iterating


class RolloutTable:
    """A light table of rollouts, one row a completion. `where` narrows it, iteration gives dicts."""

    def __init__(self, rows: Sequence[dict[str, Any]] | pa.Table):
        self._table = rows if isinstance(rows, pa.Table) else None
        self._rows = None if isinstance(rows, pa.Table) else list(rows)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All of them as dicts, made once."""
        if self._rows is None:
            self._rows = self._table.to_pylist()
        return self._rows

    def __len__(self) -> int:
        return len(self._rows) if self._rows is not None else self._table.num_rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if self._rows is not None:
            yield from self._rows
        else:
            for batch in self._table.to_batches(BATCH):
                yield from batch.to_pylist()

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self._rows is not None or isinstance(index, slice):
            return self.rows[index]
        place = range(len(self))[index]
        return self._table.slice(place, 1).to_pylist()[0]

    def where(self, test: Callable[[dict], bool] | None = None, **wanted: Any) -> RolloutTable:
        """Rows that pass `test` and have the wanted values, e.g. `where(step=3, error_kind="perception")`.

        A collection means "one of these", a callable is asked about the value.

        Raises:
            KeyError: there is no such column.
        """
        known = set(wanted) if not len(self) else set(self._table.column_names if self._rows is None else self._rows[0])
        if unknown := set(wanted) - known:
            raise KeyError(f"no column {', '.join(sorted(unknown))}; there are: {', '.join(sorted(known))}")

        def fits(value: Any, want: Any) -> bool:
            if callable(want):
                return bool(want(value))
            if isinstance(want, Collection) and not isinstance(want, str):
                return value in want
            return value == want

        if self._rows is not None:
            rows = [row for row in self._rows if all(fits(row[name], want) for name, want in wanted.items())]
            return RolloutTable([row for row in rows if test(row)] if test else rows)
        table = self._table
        for name, want in wanted.items() if len(self) else ():
            table = table.filter(pa.array([fits(value, want) for value in table[name].to_pylist()], pa.bool_()))
        return RolloutTable([row for row in RolloutTable(table) if test(row)] if test else table)

    def to_arrow(self) -> pa.Table:
        return pa.Table.from_pylist(self._rows) if self._table is None else self._table

    def __repr__(self) -> str:
        steps = pc.min_max(self._table["step"]).as_py().values() if self._table is not None else None
        known = sorted(steps if steps is not None else {row["step"] for row in self._rows}) if len(self) else []
        span = f", steps {known[0]} to {known[-1]}" if known else ""
        return f"RolloutTable({len(self)} rollouts{span})"


def lightened(table: pa.Table) -> pa.Table:
    """A table of `LIGHT_SCHEMA` with, in place of the segments' lists: tokens, segments, lowest and highest credit;
    grounded: both answer and perception are right."""
    table = table.combine_chunks()
    ends, credit = table["segment_end"], table["segment_advantage"]
    lengths = pc.list_value_length(ends)
    some = pc.greater(pc.fill_null(lengths, 0), 0)
    segments = pc.if_else(some, lengths, None)
    # the last of each list: where the next one begins, less one
    flat = pc.list_flatten(ends)
    last = np.cumsum(pc.fill_null(lengths, 0).to_numpy()) - 1
    tokens = (
        flat.take(pa.array(np.maximum(last, 0), mask=~some.to_numpy()))
        if len(flat)
        else pa.nulls(len(table), pa.int32())
    )
    lowest, highest = _extremes(credit)
    derived = {
        "tokens": tokens, "segments": segments, "lowest": lowest, "highest": highest,
        "grounded": pc.and_(table["perception_right"], table["answer_right"]),
    }  # fmt: skip
    table = table.drop_columns(["segment_end", "segment_advantage"])
    for name, column in derived.items():
        table = table.append_column(name, column)
    return table


def _extremes(lists: pa.ChunkedArray) -> tuple[pa.Array, pa.Array]:
    """(smallest, largest) number of each list, null where it has none."""
    values = pc.list_flatten(lists).combine_chunks()
    owner = pc.list_parent_indices(lists).combine_chunks()
    found = pa.table({"owner": owner, "value": values}).group_by("owner").aggregate([("value", "min_max")])
    place, pair = found["owner"].to_numpy(), found["value_min_max"].combine_chunks()
    where = np.full(len(lists), -1)
    where[place] = np.arange(len(place))
    picks = pa.array(where, mask=where < 0)
    return tuple(pc.struct_field(pair, name).take(picks) for name in ("min", "max"))
