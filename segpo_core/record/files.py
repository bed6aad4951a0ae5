"""Files of a run directory: written whole or not at all, found by the step in their name, never waited for."""

from __future__ import annotations

import errno
import io
import os
import re
import stat
from collections.abc import Callable, Collection, Container, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

COUNTED = ("step", "group", "sample", "node")  #: columns that say which row it is: never null, never negative
_STEP = re.compile(r"step-(\d{6,9})(?:\.rank\d+)?(?:\.parquet)?")
_SPAN = re.compile(r"step-(\d{6,9})(?:-(\d{6,9}))?(?:\.rank(\d+))?\.parquet")


class SchemaError(ValueError):
    """The directory is not a run, or was written by another version of the schema."""


def write_atomic(path: Path, data: bytes, before: Callable[[], object] | None = None) -> None:
    """Write `data` so that a reader sees the whole file or none, and a power cut leaves no torn one.

    Args:
        before: called when all is written and nothing can be seen yet; what it raises keeps the file from appearing.

    Raises:
        OSError: the disk is full or the place cannot be written; nothing is left behind and an older file stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        if before is not None:
            before()
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def open_plain(path: str | Path) -> BinaryIO:
    """A plain file, open for reading. A pipe or a device is never waited for, and a name need not be UTF-8.

    Raises:
        OSError: there is no such file, it cannot be read, or it is of another kind.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "no plain file", str(path))
    return open(descriptor, "rb")


def read_plain(path: str | Path) -> bytes:
    """The bytes of a plain file; errors as `open_plain`."""
    with open_plain(path) as handle:
        return handle.read()


def read_table(path: str | Path, schema: pa.Schema, steps: Collection[int] | None = None) -> pa.Table:
    """A Parquet file as a table of `schema`. A column that the file lacks is null, others are left unread.

    Args:
        steps: only rows of these, and of the file only the row groups that may hold them; `schema` has the step.

    Raises:
        FileNotFoundError: there is none.
        SchemaError: it cannot be read, or holds what the schema does not allow; file and column are named.
    """
    try:
        with open_plain(path) as handle:
            file = pq.ParquetFile(handle)
            names = file.schema_arrow.names
            wanted = [name for name in schema.names if name in names]
            if steps is None:
                found = file.read(wanted, use_threads=False)
            else:
                found = file.read_row_groups(_groups(file.metadata, steps), wanted, use_threads=False)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise SchemaError(
            f"{path} could not be read: {error} If it is being written or copied, try again in a moment; else it is "
            "damaged, and the other steps can still be opened."
        ) from error
    columns = []
    for field in schema:
        if field.name not in names and field.name not in COUNTED:
            columns.append(pa.nulls(len(found), field.type))
            continue
        try:
            if field.name not in names:
                raise ValueError("there is no such column")
            columns.append(found[field.name].cast(field.type))
            columns[-1].validate(full=True)
            if field.name in COUNTED and len(found) and (columns[-1].null_count or pc.min(columns[-1]).as_py() < 0):
                raise ValueError("a row has none, or a negative one")
        except (pa.ArrowException, KeyError, ValueError) as error:
            raise SchemaError(f"{path}: column {field.name} must hold {field.type}: {error}") from error
    table = pa.table(columns, schema=schema)
    return table if steps is None else table.filter(pc.is_in(table["step"], pa.array(sorted(steps), pa.int32())))


def _groups(facts: pq.FileMetaData, steps: Collection[int]) -> list[int]:
    """The row groups that may hold a row of some steps."""
    place = next((i for i in range(facts.num_columns) if facts.schema.column(i).path == "step"), None)
    found = []
    for group in range(facts.num_row_groups):
        known = None if place is None else facts.row_group(group).column(place).statistics
        if known is None or not known.has_min_max or any(known.min <= step <= known.max for step in steps):
            found.append(group)
    return found


def table_bytes(table: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file (zstd)."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def step_name(step: int) -> str:
    """`step-000012`: names sort as numbers do."""
    return f"step-{step:06d}"


def step_of(path: Path) -> int | None:
    """The step in a name such as `step-000012.rank0.parquet`; None for a name of another kind, a copy's say."""
    named = _STEP.fullmatch(path.name)
    return int(named[1]) if named else None


class Span(NamedTuple):
    """The steps that a file's name speaks of: of `step-000001-000200.rank0.parquet` 1, 200, "0"."""

    first: int
    last: int
    rank: str

    @property
    def several(self) -> bool:
        """Whether it was put together from files of single steps (see together.py)."""
        return self.first < self.last


def span_of(name: str) -> Span | None:
    """The steps in the name of a file of rollouts or nodes; None for a name of another kind."""
    named = _SPAN.fullmatch(name)
    if not named:
        return None
    span = Span(int(named[1]), int(named[2] or named[1]), named[3] or "")
    return span if span.first <= span.last else None


def shown(names: Iterable[str]) -> dict[str, Span]:
    """Of the names in a folder those that count, in order of their steps. A file whose steps lie within those of
    another one of the same process was put together into it and waits for its removal: its steps would show twice."""
    known = [(span, name) for name in names if (span := span_of(name)) is not None]
    reach: dict[str, int] = {}
    found = {}
    for span, name in sorted(known, key=lambda item: (item[0].first, -item[0].last, item[1])):
        if span.last > reach.get(span.rank, -1):
            reach[span.rank] = span.last
            found[name] = span
    return found


def step_files(
    directory: str | Path, kind: str, steps: Container[int] | None = None, strict: bool = True
) -> list[Path]:
    """Files of single steps (default: all), in order of the steps. Other names are not ours, and nothing but a plain
    file is read: a pipe would keep its reader waiting for ever.

    Raises:
        SchemaError: `strict`, and one is of another kind.
    """
    found = []
    for folder in Path(directory).glob(kind):
        for path in _plain_files(folder, strict, steps):
            step = step_of(path)
            if step is not None and (steps is None or step in steps):
                found.append((step, path))
    return [path for _, path in sorted(found)]


def span_files(folder: Path, steps: Collection[int] | None = None, strict: bool = True) -> list[tuple[Span, Path]]:
    """Files of rollouts or nodes that may hold some steps (default: all), in order; else as `step_files`."""
    spans = shown(path.name for path in _plain_files(folder, strict, steps))
    found = [(span, folder / name) for name, span in spans.items()]
    if steps is None:
        return found
    return [(span, path) for span, path in found if any(span.first <= step <= span.last for step in steps)]


def _plain_files(folder: Path, strict: bool, steps: Container[int] | None) -> Iterator[Path]:
    """Plain files of a folder with names of steps; of another kind: an error where `strict` and among the steps that
    are wanted, else left out."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.endswith(".parquet") or (span := span_of(entry.name)) is None:
                    continue
                wanted = steps is None or span.several or span.first in steps
                if entry.is_file():
                    yield Path(entry.path)
                elif strict and wanted and os.path.lexists(entry.path):
                    raise SchemaError(f"{entry.path} is no plain file: remove it from the run")
    except (FileNotFoundError, NotADirectoryError):
        return
