"""A run's numbers: one file a step, and from time to time the steps before put together into one.

`metrics/step-000200.parquet` holds the steps up to 200 that have no file of their own any more, so that a run of
100,000 steps is some hundred files. It takes the place of the last step's file in one rename, and only then are the
others removed: at any time a reader finds every step, for a moment twice, and counts it once.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from segpo_core.record.files import SchemaError, read_table, step_files, step_name, step_of, table_bytes, write_atomic

METRIC_SCHEMA = pa.schema([("step", pa.int32()), ("name", pa.string()), ("value", pa.float64())])
TOGETHER = 200  #: steps in one file


def read_metrics(directory: str | Path) -> pa.Table:
    """Every metric recorded so far, [step, name, value], sorted by step. Empty when none is there yet."""
    while True:
        try:
            return _merged(step_files(directory, "metrics"))
        except FileNotFoundError:  # put together with others, or taken back by a resumed run, since it was listed
            continue


def metric_steps(directory: str | Path) -> list[int]:
    """Steps whose metrics are recorded, in order."""
    return sorted(pc.unique(read_metrics(directory)["step"]).to_pylist())


def last_evaluation(directory: str | Path) -> dict[str, float]:
    """The numbers of the last recorded evaluation, by name; none where there was none, or it cannot be read."""
    try:
        table = read_metrics(directory)
    except (SchemaError, OSError):
        return {}
    table = table.filter(pc.match_substring_regex(table["name"], "^eval(_sampled)?/"))
    last = table.filter(pc.equal(table["step"], pc.max(table["step"])))
    return dict(zip(last["name"].to_pylist(), last["value"].to_pylist(), strict=True))


def put_together(directory: str | Path) -> None:
    """Make one file of every full `TOGETHER` steps.

    Raises:
        SchemaError, OSError: a file cannot be read or written; no step is lost.
    """
    windows: dict[int, list[Path]] = {}
    for path in step_files(directory, "metrics"):
        windows.setdefault(-(-step_of(path) // TOGETHER) * TOGETHER, []).append(path)
    for end, paths in windows.items():
        last = Path(directory) / "metrics" / f"{step_name(end)}.parquet"
        if len(paths) > 1 and paths[-1] == last:
            write_atomic(last, table_bytes(_merged(paths)))
            _remove(paths[:-1])


def forget_metrics_after(directory: str | Path, step: int) -> None:
    """Remove metrics of later steps; of a file that holds earlier ones too, these stay."""
    for path in step_files(directory, "metrics"):
        if step_of(path) > step:
            table = read_table(path, METRIC_SCHEMA)
            earlier = table.filter(pc.less_equal(table["step"], step))
            if len(earlier):
                kept = path.with_name(f"{step_name(pc.max(earlier['step']).as_py())}.parquet")
                write_atomic(kept, table_bytes(earlier))
            _remove([path])


def _merged(paths: list[Path]) -> pa.Table:
    """The metrics of some files, in order; a step that several have is taken from the last."""
    tables: list[pa.Table] = []
    seen: set[int] = set()
    for path in reversed(paths):
        table = read_table(path, METRIC_SCHEMA)
        steps = set(pc.unique(table["step"]).to_pylist())
        if twice := steps & seen:
            table = table.filter(pc.invert(pc.is_in(table["step"], pa.array(sorted(twice), pa.int32()))))
        tables.append(table)
        seen |= steps
    return pa.concat_tables([METRIC_SCHEMA.empty_table(), *reversed(tables)])


def _remove(paths: list[Path]) -> None:
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
