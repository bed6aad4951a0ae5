"""Files of a run directory: written whole or not at all, found by the step in their name, never waited for."""

from __future__ import annotations

import errno
import io
import os
import re
import stat
from collections.abc import Container
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

COUNTED = ("step", "group", "sample", "node")  #: columns that say which row it is: never null, never negative
_STEP = re.compile(r"step-(\d{6,9})(?:\.rank\d+)?(?:\.parquet)?")


class SchemaError(ValueError):
    """The directory is not a run, or was written by another version of the schema."""


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` so that a reader sees the whole file or none, and a power cut leaves no torn one.

    Raises:
        OSError: the disk is full or the place cannot be written; nothing is left behind and an older file stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
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


def read_table(path: str | Path, schema: pa.Schema) -> pa.Table:
    """A Parquet file as a table of `schema`. A column that the file lacks is null, others are left unread.

    Raises:
        FileNotFoundError: there is none.
        SchemaError: it cannot be read, or holds what the schema does not allow; file and column are named.
    """
    try:
        with open_plain(path) as handle:
            file = pq.ParquetFile(handle)
            names = file.schema_arrow.names
            found = file.read([name for name in schema.names if name in names], use_threads=False)
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
    return pa.table(columns, schema=schema)


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


def step_files(
    directory: str | Path, kind: str, steps: Container[int] | None = None, strict: bool = True
) -> list[Path]:
    """Files of steps (default: all), in order of the steps. Other names are not ours, and nothing but a plain file is
    read: a pipe would keep its reader waiting for ever.

    Raises:
        SchemaError: `strict`, and one is of another kind.
    """
    found = []
    for folder in Path(directory).glob(kind):
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    step = step_of(Path(entry.name)) if entry.name.endswith(".parquet") else None
                    if step is None or (steps is not None and step not in steps):
                        continue
                    if entry.is_file():
                        found.append((step, Path(entry.path)))
                    elif strict and os.path.lexists(entry.path):
                        raise SchemaError(f"{entry.path} is no plain file: remove it from the run")
        except (FileNotFoundError, NotADirectoryError):
            continue
    return [path for _, path in sorted(found)]
