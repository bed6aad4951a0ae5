"""The run directory: what training writes and every view reads. The contract between the two.

    runs/<name>/
      run.json                               schema version, config, model, package versions, git commit, seed, start
      metrics/step-000012.parquet            step, name, value; every 200 steps put together, see metrics.py
      rollouts/step-000012.rank0.parquet     one row a completion, columns of `ROLLOUT_SCHEMA`
      eval/step-000025.rank0.parquet         a few held-out completions, the same columns, no credit
      nodes/step-000012.rank0.parquet        trees and chains: one row a state, columns of `NODE_SCHEMA`
                                             both every 200 steps put together, see together.py
      images/<sha256>.png                    each image once, as the model received it (.jpg where a JPEG is just that)
      checkpoints/step-000012/               see checkpoint.py

Every file appears by atomic rename: it is complete, or not there. A reader may look at any time. Recording never
stops a training run: a failure is counted, logged once and shown as the metric `record/failures`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import math
import os
import platform
import re
import subprocess
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from segpo_core.pictures import as_rgb, jpeg_of
from segpo_core.record import together
from segpo_core.record.files import (
    SchemaError,
    read_plain,
    step_files,
    step_name,
    step_of,
    table_bytes,
    write_atomic,
)
from segpo_core.record.metrics import METRIC_SCHEMA, TOGETHER, forget_metrics_after, put_together
from segpo_core.record.metrics import metric_steps as metric_steps
from segpo_core.record.metrics import read_metrics as read_metrics
from segpo_core.record.reading import read_credit as read_credit
from segpo_core.record.reading import read_eval as read_eval
from segpo_core.record.reading import read_nodes as read_nodes
from segpo_core.record.reading import read_rollouts as read_rollouts
from segpo_core.record.reading import rollout_steps as rollout_steps
from segpo_core.record.schema import CREDIT_SCHEMA as CREDIT_SCHEMA
from segpo_core.record.schema import NODE_SCHEMA, ROLLOUT_SCHEMA, SCHEMA_VERSION

IMAGE_SUFFIXES = (".png", ".jpg")
log = logging.getLogger(__name__)


def nullable(values: Iterable[float]) -> list[float | None]:
    """A list in which NaN, that is 'not assigned', became None."""
    return [None if math.isnan(v) else v for v in values]


class Recorder:
    """Writes one run directory. Rank 0 owns `run.json` and the metrics; each rank writes its own rollouts and nodes.

    `before`: called before a file appears; it raises OSError where none may any more.
    """

    def __init__(self, directory: str | Path, rank: int = 0, before: Callable[[], object] | None = None):
        self.directory, self.rank, self.before, self.failures = Path(directory), rank, before, 0
        self.unwritten: dict[int, dict[str, float]] = {}  #: metrics of steps that wait for their file
        self.manifest: bytes | None = None  #: run.json, written again where somebody removed the directory
        self._covered: float | None = None  #: since when files wait for their removal, which are in another one now
        for name in ("metrics", "rollouts", "images", "checkpoints"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        if rank == 0:
            with contextlib.suppress(OSError):  # a new run has none yet
                self.manifest = read_plain(self.directory / "run.json")
            self._sweep()
            self._put_together(0)

    def start(self, config: dict[str, Any], **facts: Any) -> None:
        """Write `run.json`. Called once, before the first step."""
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "config": config,
            "git_commit": _git_commit(),
            "packages": {name: _version(name) for name in ("segpo", "torch", "transformers", "peft", "accelerate")},
            "python": platform.python_version(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            **facts,
        }
        self.manifest = json.dumps(manifest, indent=2, default=str).encode()
        write_atomic(self.directory / "run.json", self.manifest, self.before)

    def _sweep(self) -> None:
        """Remove the temporary files of writers that were killed. One of a process that lives is left alone: another
        rank of this run, say, or `segpo credit`."""
        for path in self.directory.glob("**/.*.tmp"):
            writer = re.fullmatch(r"\..*\.(\d{1,9})\.tmp", path.name)
            if writer and path.is_file() and "checkpoints" not in path.parts and not _lives(int(writer[1])):
                path.unlink(missing_ok=True)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Write one step's numbers. Those that could not be written are tried again with the next step's."""
        self.unwritten[step] = values
        path = self.directory / "run.json"
        if self.manifest is not None and not path.exists():
            with self._counted(step, "run.json"):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(path, self.manifest, self.before)
        for late, numbers in list(self.unwritten.items()):
            rows = [{"step": late, "name": name, "value": float(value)} for name, value in sorted(numbers.items())]
            with self._counted(late, "metrics"):
                self._write(Path("metrics") / f"{step_name(late)}.parquet", rows, METRIC_SCHEMA)
                del self.unwritten[late]
        if step % TOGETHER == 0 and not self.unwritten:
            self._put_together(step)

    def _put_together(self, step: int) -> None:
        with self._counted(step, "older metrics"):
            put_together(self.directory)

    def rollouts(self, step: int, rows: list[dict[str, Any]], images: dict[str, Image.Image]) -> None:
        """Write one step's rollouts, its images first, so that no row names an image that is not there.

        Args:
            step: number of the step.
            rows: see `ROLLOUT_SCHEMA`.
            images: sha256 -> image, every image the rows name.
        """
        self._completions("rollouts", step, rows, images)

    def evaluation(self, step: int, rows: list[dict[str, Any]], images: dict[str, Image.Image]) -> None:
        """Write a few held-out completions of an evaluation, as `rollouts`; `group` numbers the held-out problems."""
        self._completions("eval", step, rows, images)

    def _completions(self, kind: str, step: int, rows: list[dict[str, Any]], images: dict[str, Image.Image]) -> None:
        with self._counted(step, kind):
            for digest, image in images.items():
                if image_file(self.directory, digest) is None:
                    jpeg = jpeg_of(image)  # encoding a photograph takes far longer than reading one
                    path = self.directory / "images" / f"{digest}{'.png' if jpeg is None else '.jpg'}"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_atomic(path, png_bytes(image) if jpeg is None else jpeg, self.before)
            self._write(self._file(kind, step), rows, ROLLOUT_SCHEMA)
        if kind == "rollouts" and step % together.TOGETHER == 0:
            with self._counted(step, "older rollouts"):
                if any([together.put_together(self.directory / each, self.rank) for each in ("rollouts", "nodes")]):
                    self._covered = time.monotonic()
        self._remove_covered(step)

    def _remove_covered(self, step: int) -> None:
        if self._covered is not None and time.monotonic() - self._covered >= together.SETTLED:
            self._covered = None
            with self._counted(step, "older rollouts"):
                for kind in ("rollouts", "nodes"):
                    together.remove_covered(self.directory / kind, self.rank)

    def finish(self) -> None:
        """After the last step: leave no file behind whose steps are in another one."""
        if self._covered is not None:
            time.sleep(max(0.0, self._covered + together.SETTLED - time.monotonic()))
            self._remove_covered(0)

    def nodes(self, step: int, rows: list[dict[str, Any]]) -> None:
        """Write the nodes of one step's trees or chains. `rows`: see `NODE_SCHEMA`."""
        with self._counted(step, "nodes"):
            self._write(self._file("nodes", step), rows, NODE_SCHEMA)

    def _file(self, kind: str, step: int) -> Path:
        return Path(kind) / f"{step_name(step)}.rank{self.rank}.parquet"

    def _write(self, name: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)  # someone may have removed it
        write_atomic(path, table_bytes(pa.Table.from_pylist(rows, schema=schema)), self.before)

    @contextlib.contextmanager
    def _counted(self, step: int, what: str) -> Iterator[None]:
        """A failure to write is counted, and told once."""
        try:
            yield
        except (OSError, pa.ArrowException, ValueError, TypeError) as error:
            self.failures += 1
            if self.failures == 1:
                log.warning("step %d: %s were not recorded, training goes on: %s", step, what, error)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return process != os.getpid()


def image_file(directory: str | Path, digest: str) -> Path | None:
    """Where an image of a run lies; None where it is not there."""
    places = (Path(directory) / "images" / f"{digest}{suffix}" for suffix in IMAGE_SUFFIXES)
    return next((path for path in places if path.exists()), None)


def png_bytes(image: Image.Image) -> bytes:
    """The image as PNG; the same pixels give the same bytes, so the digest names the picture."""
    sink = io.BytesIO()
    # A photograph takes twice as long, and gets no smaller, where zlib looks for more than runs.
    runs = {"compress_type": zlib.Z_RLE} if image.width * image.height > 1_000_000 else {}
    as_rgb(image).save(sink, format="PNG", **runs)
    return sink.getvalue()


def image_digest(image: Image.Image) -> str:
    """sha256 of the image's size and RGB pixels: encoding a photograph as PNG would cost more than reading it."""
    pixels = as_rgb(image)
    return hashlib.sha256(f"{pixels.width} {pixels.height} ".encode() + pixels.tobytes()).hexdigest()


def images_of(examples: Iterable[dict[str, Any]]) -> tuple[list[list[str]], dict[str, Image.Image]]:
    """The digests of each example's images, and the images by digest."""
    digests, images = [], {}
    for example in examples:
        pictures = example.get("images") or []
        digests.append([image_digest(image) for image in pictures])
        images |= dict(zip(digests[-1], pictures, strict=True))
    return digests, images


def read_manifest(directory: str | Path) -> dict[str, Any]:
    """`run.json` of a run directory.

    Raises:
        SchemaError: there is none, it cannot be read, or it is of another schema version.
    """
    path = Path(directory) / "run.json"
    try:
        manifest = json.loads(read_plain(path).decode())
        version = manifest["schema_version"]
    except FileNotFoundError:
        raise SchemaError(f"{directory} is not a run directory: it has no run.json") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise SchemaError(f"{path} cannot be read as a run's manifest: {error!r}") from error
    if version != SCHEMA_VERSION:
        raise SchemaError(
            f"{directory} was written with schema version {version!r:.40}, this is version {SCHEMA_VERSION}: "
            "open it with the segpo that wrote it (its version stands in run.json under packages)"
        )
    return manifest


def forget_after(directory: str | Path, step: int) -> None:
    """Remove metrics, rollouts, evaluations, nodes and credit of later steps: a run that goes on from `step` makes them
    again."""
    forget_metrics_after(directory, step)
    for kind in ("rollouts", "nodes"):
        together.take_back(Path(directory) / kind, step)
    for kind in ("eval", "credit/*"):
        for path in step_files(directory, kind):
            if (step_of(path) or 0) > step:
                path.unlink()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            cwd=Path(__file__).parent,
            check=True,
        )
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
