"""Rollouts and nodes of a long run: one file a step, and the older ones put together, some hundred steps a file.

`rollouts/step-000001-000200.rank0.parquet` holds what the files of the steps 1 to 200 of process 0 held. It appears by
atomic rename, and from then on those count no more (`files.shown`): at any moment, also of a kill, every step is there,
once. They are removed some seconds later, when no reader can be in the middle of a listing that began before the rename
and would miss both. Each process puts its own files together, so none waits for another.

In such a file the rows stand in order of their steps, a few steps a row group, so that one step is found by the file's
name and the row groups' smallest and largest step, and read without the others.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segpo_core.record.files import (
    SchemaError,
    Span,
    open_plain,
    read_table,
    shown,
    span_files,
    span_of,
    step_name,
    write_atomic,
)

TOGETHER = 200  #: files of single steps in one file
LARGEST = 32 << 20  #: bytes after which a file is full with fewer of them
GROUP = 4 << 20  #: bytes, not compressed, after which a row group is full
AT_ONCE = 8  #: files that are made in one go: what an older run left is caught up with over several
SETTLED = 2.0  #: seconds that a listing of a folder takes at the most

STEP = pa.schema([("step", pa.int32())])


def put_together(folder: Path, rank: int) -> bool:
    """Make one file of every `TOGETHER` files of single steps of a process. Returns whether any was made:
    `remove_covered` then takes away what it was made of.

    Raises:
        SchemaError, OSError: one could not be made; the others were, and no step is lost.
    """
    made, failed = 0, None
    for window in _windows(folder, str(rank)):
        if made == AT_ONCE:
            break
        span = Span(window[0][0].first, window[-1][0].last, str(rank))
        try:
            write_atomic(folder / _name(span), _joined([path for _, path in window]))
            made += 1
        except (pa.ArrowException, OSError, SchemaError) as error:
            failed = failed or error
    if failed:
        raise failed
    return made > 0


def remove_covered(folder: Path, rank: int) -> None:
    """Remove the files of a process whose steps are in another one, after a look that they are."""
    names = [path.name for path in folder.glob(f"step-*.rank{rank}.parquet")]
    counted = shown(names)
    covered = [(span, name) for name in names if name not in counted and (span := span_of(name)) is not None]
    held: dict[str, set[int]] = {}
    for span, name in covered:
        home = next(n for n, s in counted.items() if s.first <= span.first and span.last <= s.last)
        if home not in held:
            held[home] = set(steps_in(folder / home))
        own = {span.first} if not span.several else set(steps_in(folder / name))
        if own <= held[home]:
            _remove(folder / name)


def steps_in(path: Path) -> list[int]:
    """Steps that a file holds, in order.

    Raises:
        FileNotFoundError, SchemaError: as `read_table`.
    """
    return sorted(pc.unique(read_table(path, STEP)["step"]).to_pylist())


def take_back(folder: Path, step: int) -> None:
    """Remove rows of later steps, every process's; of a file that holds earlier ones too, these stay.

    Raises:
        SchemaError, OSError: a file cannot be read, written or removed. Called again, it goes on where it stopped.
    """
    counted = span_files(folder)
    crossing = [(span, path) for span, path in counted if span.first <= step < span.last]
    for span, path in crossing:
        earlier = [table.filter(pc.field("step") <= step) for table in _whole(path)]
        last = max((pc.max(table["step"]).as_py() for table in earlier if len(table)), default=None)
        if last is not None:
            write_atomic(folder / _name(Span(span.first, last, span.rank)), file_of(filter(len, earlier)))
    if crossing:
        time.sleep(SETTLED)
    later = [(span, path) for path in folder.glob("step-*") if (span := span_of(path.name)) and span.last > step]
    # what hides others goes last
    for _, path in sorted(later, key=lambda item: (item[0].several, item in counted)):
        _remove(path)


def _windows(folder: Path, rank: str) -> Iterator[list[tuple[Span, Path]]]:
    """Files of single steps that fill a file together; each of the same columns, as one file has to have."""
    window: list[tuple[Span, Path]] = []
    size, columns = 0, None
    for span, path in span_files(folder, strict=False):
        if span.several or span.rank != rank:
            continue
        own = _columns(path)
        if own is None or own != columns:
            if len(window) > 1 and columns is not None:
                yield window  # what follows has other columns: this one will not get fuller
            window, size, columns = [], 0, own
        if own is None:  # damaged: it stays alone
            continue
        window.append((span, path))
        size += path.stat().st_size
        if len(window) == TOGETHER or size >= LARGEST:
            if len(window) > 1:
                yield window
            window, size = [], 0


def _columns(path: Path) -> pa.Schema | None:
    try:
        with open_plain(path) as handle:
            return pq.read_schema(handle)
    except (pa.ArrowException, OSError):
        return None


def _joined(paths: list[Path]) -> bytes:
    """The rows of files in one file."""
    return file_of(table for path in paths for table in _whole(path))


def _whole(path: Path) -> Iterator[pa.Table]:
    """Every column of a file, a row group at a time."""
    with open_plain(path) as handle:
        file = pq.ParquetFile(handle)
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, use_threads=False)


def file_of(tables: Iterable[pa.Table]) -> bytes:
    """Tables of the same columns as the bytes of one file, a row group for every `GROUP` bytes."""
    sink, waiting, writer = io.BytesIO(), [], None
    for table in tables:
        writer = writer or pq.ParquetWriter(sink, table.schema, compression="zstd")
        waiting.append(table)
        if sum(part.nbytes for part in waiting) >= GROUP:
            writer.write_table(pa.concat_tables(waiting))
            waiting = []
    if writer is not None:
        if waiting:
            writer.write_table(pa.concat_tables(waiting))
        writer.close()
    return sink.getvalue()


def _name(span: Span) -> str:
    last = f"-{step_name(span.last).removeprefix('step-')}" if span.several else ""
    return f"{step_name(span.first)}{last}{f'.rank{span.rank}' if span.rank else ''}.parquet"


def _remove(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
