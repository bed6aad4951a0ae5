"""Open a run directory and read it as a viewer needs it: lazily, while training may still be writing."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from segpo_core.record.files import SchemaError, read_plain, step_of
from segpo_core.record.reading import in_order, read_credit, read_eval, read_steps
from segpo_core.record.schema import NODE_SCHEMA, ROLLOUT_SCHEMA
from segpo_core.record.store import image_file, read_manifest
from segpo_core.record.together import steps_in
from segviz.runs.folder import Folder, Stamp
from segviz.runs.light import LIGHT_SCHEMA, RolloutTable, lightened
from segviz.runs.rollout import Rollout
from segviz.runs.series import Metrics, Series
from segviz.show.theme import method_label


class Run:
    """A run directory, read only. Nothing is kept that training could still change except what it wrote whole."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        self._folders: dict[str, Folder] = {}
        self._light: dict[str, tuple[Stamp, pa.Table]] = {}  # name of a file -> its light rows
        self._steps: dict[str, tuple[Stamp, list[int]]] = {}  # name of a file of several steps -> which
        self._problems: dict[str, str] = {}
        self._metrics = Metrics(self.path / "metrics", self._problems)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {self.method_label}, {len(self.steps)} recorded steps)"

    @property
    def name(self) -> str:
        return str(self.manifest.get("name") or self.path.resolve().name)

    @property
    def config(self) -> dict[str, Any]:
        config = self.manifest.get("config")
        return config if isinstance(config, dict) else {}

    @property
    def method(self) -> str:
        """Name of the method, '' where neither run.json nor a rollout says it."""
        for place in (self.manifest, self.config):
            for key in ("method", "algorithm", "algo"):
                found = place.get(key)
                if isinstance(found, dict):
                    found = found.get("name") or found.get("method")
                if found:
                    return str(found)
        if self.steps:
            methods = {row["method"] for row in self.rollouts_at(self.steps[-1]) if row["method"]}
            if len(methods) == 1:
                return methods.pop()
        return ""

    @property
    def method_label(self) -> str:
        label = method_label(self.method)  # a method of one's own is known by its title
        return str(self.manifest.get("method_title") or label) if label == self.method else label

    @property
    def model(self) -> str:
        for key in ("model_name_or_path", "model", "policy"):
            found = self.manifest.get(key) or self.config.get(key)
            if found:
                return str(found)
        return ""

    @property
    def steps(self) -> list[int]:
        """Steps whose rollouts are recorded so far."""
        folder = self._folder("rollouts")
        found: set[int] = set()
        for name, stamp in folder.files.items():
            if not folder.spans[name].several:
                found.add(folder.spans[name].first)
                continue
            if name not in self._steps or self._steps[name][0] != stamp:
                try:
                    self._steps[name] = (stamp, steps_in(folder.path / name))
                except FileNotFoundError:  # taken back by a resumed run
                    del self._folders["rollouts"]
                    return self.steps
                except (ValueError, OSError) as error:
                    self._problems[name] = f"Rollouts in {name} could not be read: {error}"
                    self._steps[name] = (stamp, [])
            found.update(self._steps[name][1])
        return sorted(found)

    @property
    def eval_steps(self) -> list[int]:
        """Steps at whose evaluation held-out completions were recorded so far; step 0: before training."""
        return sorted({step for name in self.files("eval") if (step := step_of(Path(name))) is not None})

    def evaluations(self, steps: Sequence[int]) -> list[Rollout]:
        """The recorded held-out completions of some evaluations, whole, by step and problem (`group`).

        Raises:
            SchemaError, OSError: a file cannot be read.
        """
        rows = read_eval(self.path, steps).to_pylist()
        shas = {sha for row in rows for sha in row.get("images") or []}
        pictures = {sha: data for sha in shas if (data := self.image(sha)) is not None}
        rows.sort(key=lambda row: (row["step"], row["group"], row["sample"]))
        return [
            Rollout(row, {sha: pictures[sha] for sha in row.get("images") or [] if sha in pictures}, self.name)
            for row in rows
        ]

    @property
    def problems(self) -> list[str]:
        """Files that could not be read, and recordings that the trainer says it lost."""
        lost = self.metrics.get("record/failures")
        notes = list(self._problems.values())
        if lost and lost.values and lost.values[-1] > 0:
            notes.append(f"The trainer could not record rollouts {int(lost.values[-1])} times.")
        return notes

    @property
    def metrics(self) -> dict[str, Series]:
        """Metric name -> steps and values, as recorded so far; the same object as long as no file changed."""
        try:
            return self._metrics.read(self.files("metrics"))
        except FileNotFoundError:  # put together with others, or taken back by a resumed run: look again
            del self._folders["metrics"]
            return self.metrics

    @property
    def rollouts(self) -> RolloutTable:
        """Every rollout recorded so far, without its token streams."""
        return RolloutTable(self._rows())

    def rollouts_at(self, *steps: int) -> RolloutTable:
        """Rollouts of one step, or of several, without reading the others. Empty where nothing is recorded."""
        return RolloutTable(self._rows(steps))

    def rollout(self, step: int, group: int, sample: int) -> Rollout:
        """One rollout, whole.

        Raises:
            KeyError: it is not recorded; the message says what is.
            SchemaError, OSError: it cannot be read.
        """
        if found := self._whole(step, group, [("sample", "=", sample)]):
            return found[0]
        raise KeyError(f"{self._recorded(step, group)}; there is no sample {sample}")

    def group(self, step: int, group: int) -> list[Rollout]:
        """Every completion of one prompt, whole, by sample number.

        Raises:
            KeyError: it is not recorded; the message says what is.
            SchemaError, OSError: it cannot be read.
        """
        if found := self._whole(step, group):
            return sorted(found, key=lambda rollout: rollout.row["sample"])
        raise KeyError(self._recorded(step, group))

    def credits(self, step: int, group: int, sample: int) -> dict[str, Rollout]:
        """One rollout under every method whose credit is known: as trained first, then what `segpo credit` computed.

        Raises:
            KeyError: the rollout is not recorded; the message says what is.
        """
        own = self.rollout(step, group, sample)
        found = {own.row.get("method") or self.method: own}
        for folder in sorted((self.path / "credit").glob("*/")):
            try:
                rows = read_credit(self.path, [folder.name], [step]).to_pylist()
            except (ValueError, OSError) as error:
                self._problems[f"credit {folder.name} {step}"] = (
                    f"Credit of {folder.name} at step {step} could not be read: {error}"
                )
                continue
            for row in rows:
                if (row["group"], row["sample"]) == (group, sample):
                    found.setdefault(folder.name, own.judged(row))
        return found

    def _whole(self, step: int, group: int, more: Sequence[tuple] = ()) -> list[Rollout]:
        """Rollouts of a group with all of their columns; of `more` pyarrow filters, those that pass."""
        table = self.read("rollouts", ROLLOUT_SCHEMA, [step])
        for column, _, value in [("group", "=", group), *more]:
            table = table.filter(pc.equal(table[column], value))
        rows = table.to_pylist()
        shas = {sha for row in rows for sha in row.get("images") or []}
        pictures = {sha: data for sha in shas if (data := self.image(sha)) is not None}
        return [
            Rollout(row, {sha: pictures[sha] for sha in row.get("images") or [] if sha in pictures}, self.name)
            for row in rows
        ]

    def read(
        self, kind: str, schema: pa.Schema, steps: Collection[int], torn: list[SchemaError] | None = None
    ) -> pa.Table:
        """Columns of some steps' rollouts or nodes, every process's, in order of the steps; empty where none are
        recorded. Each file is read once.

        Args:
            schema: the columns, among them the step.
            torn: takes up what is wrong with files that cannot be read, and the others' rows are returned.

        Raises:
            SchemaError, OSError: they cannot be read.
        """
        folder, tables = self._folder(kind), []
        for name in folder.at(*steps):
            try:
                tables.append((folder.spans[name], read_steps(folder.path / name, folder.spans[name], schema, steps)))
            except FileNotFoundError:  # put together with others, or taken back, since it was listed
                del self._folders[kind]
                return self.read(kind, schema, steps, torn)
            except SchemaError as error:
                if torn is None:
                    raise
                torn.append(error)
        return in_order(tables) if tables else schema.empty_table()

    def _recorded(self, step: int, group: int) -> str:
        """What is recorded instead of a group or rollout that is not."""
        if step not in self.steps:
            steps = ", ".join(map(str, self.steps)) or "none yet"
            return f"step {step} has no recorded rollouts in {self.path}; recorded steps: {steps}"
        there = sorted((row["group"], row["sample"]) for row in self.rollouts_at(step))
        samples = [sample for g, sample in there if g == group]
        if samples:
            return f"step {step}, group {group} has samples {samples}"
        return f"step {step} has no group {group}; its groups: {sorted({g for g, _ in there})}"

    def nodes(self, step: int, group: int | None = None) -> list[dict[str, Any]]:
        """Nodes of a step's trees or chains, of one group or of all, by group and number; columns as in
        `segpo_core.record.store.NODE_SCHEMA`. Empty where none were recorded."""
        try:
            rows = self.read("nodes", NODE_SCHEMA, [step]).to_pylist()
        except (ValueError, OSError) as error:
            self._problems[f"nodes {step}"] = f"Nodes of step {step} could not be read: {error}"
            return []
        rows = [row for row in rows if group is None or row["group"] == group]
        return sorted(rows, key=lambda row: (row["group"], row["node"]))

    def has_image(self, sha: str) -> bool:
        """Whether an image lies in the run, without reading it."""
        return _digest(sha) and image_file(self.path, sha) is not None

    def image(self, sha: str) -> bytes | None:
        """The file of an image, a PNG or a JPEG; None where it is missing."""
        if not _digest(sha):
            return None
        try:
            path = image_file(self.path, sha)
            return None if path is None else read_plain(path)
        except OSError:
            return None

    def files(self, kind: str) -> dict[str, Stamp]:
        """Files of steps in a folder of the run ("metrics", "rollouts", …): name -> what tells whether one changed."""
        return self._folder(kind).files

    def has(self, kind: str, step: int) -> bool:
        """Whether a folder of the run ("nodes", "credit/rloo", …) has a file that may hold a step."""
        return bool(self._folder(kind).at(step))

    def _folder(self, kind: str) -> Folder:
        """A folder of the run, as it is now."""
        folder = self._folders.setdefault(kind, Folder(self.path / kind))
        folder.look()
        for name in folder.odd:
            self._problems[name] = f"{kind}/{name} is no plain file and was left out"
        return folder

    def _rows(self, steps: Collection[int] | None = None) -> pa.Table:
        """Light rows of some steps, or of all. A file that was read whole is read again only when it changed: a resumed
        run writes steps anew."""
        folder = self._folder("rollouts")
        for name in set(self._light) - set(folder.files):
            del self._light[name]
        tables = []
        for name in list(folder.files) if steps is None else folder.at(*steps):
            span, stamp = folder.spans[name], folder.files[name]
            part = steps if span.several else None
            known, table = self._light.get(name, (None, None))
            if known == stamp and part is not None:
                table = table.filter(pc.is_in(table["step"], pa.array(part, pa.int32())))
            elif known != stamp:
                try:
                    table = lightened(read_steps(folder.path / name, span, LIGHT_SCHEMA, part))
                except FileNotFoundError:  # put together with others, or taken back, since it was listed
                    del self._folders["rollouts"]
                    return self._rows(steps)
                except (ValueError, OSError) as error:
                    which = f"steps {span.first} to {span.last}" if span.several else f"step {span.first}"
                    self._problems[name] = f"Rollouts of {which} could not be read: {error}"
                    continue
                self._problems.pop(name, None)
                if part is None:
                    self._light[name] = (stamp, table)
            tables.append((span, table))
        return in_order(tables) if tables else lightened(LIGHT_SCHEMA.empty_table())


def _digest(sha: str) -> bool:
    """Whether it is a digest: it comes from a file, and nothing else may reach the file system."""
    return 0 < len(sha) <= 128 and all(letter in "0123456789abcdef" for letter in sha)


def open(path: str | Path) -> Run:  # noqa: A001 - `sv.open` is what people will look for
    """Open a run directory.

    Raises:
        SchemaError: it is not a run, or another version of the schema wrote it.
    """
    if not Path(path).is_dir():
        raise SchemaError(f"{path} is not a run directory: there is no such folder")
    return Run(path)
