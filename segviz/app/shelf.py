"""The run directories that the app was given: which runs there are, how they are, and nothing outside them.

A run is known by a name, and names are looked up, never joined to a path. A link that leads out of the directory that
was given counts as not being there.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from segpo_core.record.files import span_of
from segpo_core.record.store import IMAGE_SUFFIXES, SchemaError, read_manifest, step_of
from segviz.app.metrics import MetricLog
from segviz.app.patience import Hangs, Missing, Patience
from segviz.runs.folder import Folder
from segviz.runs.light import RolloutTable
from segviz.runs.pulse import trained_here
from segviz.runs.rollout import Rollout
from segviz.runs.run import Run
from segviz.runs.series import Series
from segviz.show.encode import tidy
from segviz.show.theme import method_label
from segviz.views.rightness import results_of

T = TypeVar("T")
KINDS = ("run.json", "metrics", "rollouts", "eval", "nodes", "images", "credit")
BUSY = 60.0  #: seconds without a new step until a run is called quiet


@dataclass(frozen=True)
class Place:
    """Where a run lies. `root` is the directory that was given, resolved; `path` lies in it, or is it."""

    name: str
    path: Path
    root: Path


class ShelfRun(Run):
    """A run of which no link leads outside, with metrics that are read once and kept small."""

    def __init__(self, place: Place, log: MetricLog):
        self.place, self.log, self.root = place, log, place.root
        for kind in KINDS:
            if not inside(place.path / kind, place.root):
                raise Missing(f"{place.name}: {kind} is a link that leads out of {place.root}; it is not followed.")
        super().__init__(place.path)

    @property
    def name(self) -> str:
        return self.place.name

    @property
    def metrics(self) -> dict[str, Series]:
        return self.log.series()

    def rollout(self, step: int, group: int, sample: int) -> Rollout:
        self.check_step(step)
        return super().rollout(step, group, sample)

    def group(self, step: int, group: int) -> list[Rollout]:
        self.check_step(step)
        return super().group(step, group)

    def nodes(self, step: int, group: int | None = None) -> list[dict[str, Any]]:
        self.check_step(step)
        return super().nodes(step, group)

    def rollouts_at(self, *steps: int) -> RolloutTable:
        self.check_step(*steps)
        return super().rollouts_at(*steps)

    def image(self, sha: str) -> bytes | None:
        paths = (self.path / "images" / f"{sha}{suffix}" for suffix in IMAGE_SUFFIXES)
        return super().image(sha) if all(inside(path, self.root) for path in paths) else None

    def evaluations(self, steps: Sequence[int]) -> list[Rollout]:
        self.check_step(*steps)
        return super().evaluations(steps)

    def _folder(self, kind: str) -> Folder:
        self._folders.setdefault(kind, Folder(self.path / kind, self.root))  # of which no link leads outside
        return super()._folder(kind)

    def check_links(self) -> None:
        """Raise Missing where a file of rollouts or nodes is a link that leads outside."""
        for kind in ("rollouts", "nodes"):
            for name in self._folder(kind).links:
                raise Missing(f"{name or kind} is a link that leads out of {self.root}; it is not followed.")

    def check_step(self, *steps: int) -> None:
        """Raise Missing where a file of some steps is a link that leads outside."""
        for kind in ("rollouts", "eval", "nodes", *(f"credit/{name}" for name in credits(self.place))):
            for name in self._folder(kind).links:
                if (span := span_of(name)) is not None and any(span.first <= step <= span.last for step in steps):
                    raise Missing(f"{name} is a link that leads out of {self.root}; it is not followed.")


class Shelf:
    """All runs of the directories that were given."""

    def __init__(self, roots: Sequence[str | Path]):
        self.roots = [Path(root).resolve() for root in roots]
        self.names = [str(root) for root in roots]  #: as they were given, for people
        self.left_out: list[str] = []  #: what `places` found and does not show, and why
        self._logs: dict[Path, MetricLog] = {}
        self._manifests: dict[Path, tuple[tuple, dict[str, Any] | str]] = {}
        self._lock = threading.Lock()
        self.patience = Patience()

    def places(self) -> dict[str, Place]:
        """Name -> place, by name. A directory is a run when it holds run.json, or what a run without it would hold."""
        found: list[tuple[Path, Path]] = []
        left_out: list[str] = []
        for root in self.roots:
            try:
                paths = self.patience.ask(root, partial(_folders, root))
            except Hangs as error:
                left_out.append(str(error))
                continue
            except FileNotFoundError:  # nothing was recorded yet
                continue
            except OSError as error:
                left_out.append(f"{root} cannot be read: {error.strerror}")
                continue
            answers = self.patience.each(paths, partial(_seen, root=root))
            for path in paths:
                answer = answers.get(path, True)  # what hangs may be a run, and is shown as one that does not answer
                if isinstance(answer, str):
                    left_out.append(answer)
                elif answer:
                    found.append((path, root))
        self.left_out = [tidy(words) for words in left_out]
        places: dict[str, Place] = {}
        for path, root in found:
            name = printable(path.name)
            while name in places:  # the same name in two directories
                name = f"{root.parent.name}~{name}" if root == path else f"{root.name}~{name}"
            places[name] = Place(name, path, root)
        return places

    def place(self, name: str) -> Place:
        """Where a run lies.

        Raises:
            Missing: there is no such run.
        """
        places = self.places()
        if name not in places:
            there = ", ".join(places) or "none"
            raise Missing(f"There is no run {name!r} here (any more). Runs that are there: {there}.")
        return places[name]

    def reading(self, name: str, work: Callable[[ShelfRun], T]) -> T:
        """What `work` makes of a run as it is now. Whatever reads its files belongs in there: it is not waited for for
        ever.

        Raises:
            Missing: there is no such run, it hangs, or a link in it leads outside.
            SchemaError: its run.json is missing, broken or of another version.
        """
        place = self.place(name)
        return self.within(place, lambda: work(ShelfRun(place, self.log(place))))

    def within(self, place: Place, work: Callable[[], T]) -> T:
        """What `work` finds in a run's directory. Raises Hangs: it does not answer."""
        return self.patience.ask(place.path, work)

    def log(self, place: Place) -> MetricLog:
        """The metrics of a run, read as far as there was time."""
        with self._lock:
            log = self._logs.setdefault(place.path, MetricLog(place.path, place.root))
        log.refresh()
        return log

    def described(self) -> list[dict[str, Any]]:
        """What is on the shelf, in words: the latest change first."""
        places = self.places()
        with self._lock:  # what was deleted is forgotten
            kept = {place.path for place in places.values()}
            self._logs = {path: log for path, log in self._logs.items() if path in kept}
            self._manifests = {path: known for path, known in self._manifests.items() if path in kept}
        at = {place.path: place for place in places.values()}
        answers = self.patience.each(list(at), lambda path: self.describe(at[path]))
        found = [answers.get(path) or _unanswered(place) for path, place in at.items()]
        return sorted(found, key=lambda run: (-run["changed"], run["name"]))

    def describe(self, place: Place) -> dict[str, Any]:
        """One run: name, method, label, step, planned, changed (seconds since the epoch), state and its words,
        credits (other methods whose credit was computed), judged (`segpo bench-credit` held them against the truth),
        evals (whether held-out completions are recorded)."""
        manifest = self._manifest(place)
        step, changed = last_step(place.path / "metrics", place.root)
        about = _about(place) | {
            "step": step, "changed": changed, "credits": credits(place), "judged": results_of(place.path).is_file(),
            "evals": inside(place.path / "eval", place.root) and (place.path / "eval").is_dir(),
        }  # fmt: skip
        if isinstance(manifest, str):
            return about | {"state": "unreadable", "words": tidy(manifest)}
        config = manifest.get("config") if isinstance(manifest.get("config"), dict) else {}
        method = str(manifest.get("method") or config.get("method") or "")
        planned = config.get("max_steps") if isinstance(config.get("max_steps"), int) else None
        about |= {"method": method, "label": method_label(method), "planned": planned}
        quiet = time.time() - changed > BUSY
        alive = trained_here(place.path) if quiet and inside(place.path / "trainer.lock", place.root) else None
        slow, quiet = quiet and bool(alive), quiet and not alive
        if step is not None and planned is not None and step >= planned:
            return about | {"state": "finished", "words": f"finished, {step} steps"}
        of = f"step {step} of {planned}" if planned else f"step {step}"
        if step is None:
            words = "started, then no step" if quiet else "started, no step yet"
            return about | {"state": "quiet" if quiet else "running", "words": words}
        if quiet:
            return about | {"state": "quiet", "words": f"{of}, {'stopped' if alive is False else 'no news'}"}
        return about | {"state": "running", "words": f"{of}, the next takes long" if slow else of}

    def identity(self, place: Place) -> str:
        """What a run is known by wherever its folder lies: the folder's name, and when it was started. Raises Hangs."""
        manifest = self.within(place, lambda: self._manifest(place))
        started = manifest.get("started") if isinstance(manifest, dict) else None
        return f"{printable(place.path.name)}@{started or ''}"

    def _manifest(self, place: Place) -> dict[str, Any] | str:
        """run.json, or why it cannot be read."""
        path = place.path / "run.json"
        if not inside(path, place.root):
            return "run.json is a link that leads outside; it is not followed."
        try:
            stat = path.stat()
        except OSError:
            return "no run.json (yet): perhaps the run is just being copied here"
        stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        known = self._manifests.get(place.path)
        if known is None or known[0] != stamp:
            try:
                known = (stamp, read_manifest(place.path))
            except (SchemaError, OSError) as error:
                known = (stamp, str(error))
            self._manifests[place.path] = known
        return known[1]


def _folders(root: Path) -> list[Path]:
    """The root itself where it is a run, else what lies in it."""
    if _like_run(root):
        return [root]
    with os.scandir(root) as entries:
        return sorted(Path(entry.path) for entry in entries if not entry.name.startswith("."))


def _seen(path: Path, root: Path) -> bool | str:
    """Whether a folder is a run, or why it is left out."""
    if not inside(path, root):
        return f"{printable(path.name)} is a link that leads out of {root}; it is not followed."
    try:
        if path.is_dir() and _like_run(path):
            os.listdir(path)
            return True
    except OSError as error:
        return f"{printable(path.name)} cannot be read: {error.strerror}"
    return False


def _about(place: Place) -> dict[str, Any]:
    return {
        "name": tidy(place.name), "path": tidy(str(place.path)), "method": "", "label": "", "step": None,
        "planned": None, "changed": 0.0, "credits": [], "judged": False, "evals": False,
    }  # fmt: skip


def _unanswered(place: Place) -> dict[str, Any]:
    return _about(place) | {"state": "unreadable", "words": "does not answer: its file system seems to hang"}


def printable(name: str) -> str:
    """A file's name as text that can be shown and sent: bytes that are not UTF-8 become U+FFFD."""
    return os.fsencode(name).decode("utf-8", "replace")


def credits(place: Place) -> list[str]:
    """Methods whose credit was computed for a run."""
    folders = place.path.glob("credit/*/")
    return sorted(printable(folder.name) for folder in folders if inside(folder, place.root))


def inside(path: Path, root: Path) -> bool:
    """Whether a path, its links followed, lies in `root`. What is not there lies where its name says."""
    try:
        return path.resolve().is_relative_to(root)
    except (OSError, ValueError, RuntimeError):  # a loop of links, a NUL
        return False


def last_step(folder: Path, root: Path) -> tuple[int | None, float]:
    """(the last recorded step, None without any; when the run last changed, in seconds since the epoch)."""
    try:
        if not inside(folder, root):
            return None, 0.0
        changed = folder.stat().st_mtime
        steps = (step_of(Path(name)) for name in os.listdir(folder) if name.endswith(".parquet"))
        return max((step for step in steps if step is not None), default=None), changed
    except (OSError, ValueError):
        try:
            return None, folder.parent.stat().st_mtime
        except OSError:
            return None, 0.0


def _like_run(path: Path) -> bool:
    return (path / "run.json").exists() or (path / "metrics").is_dir() or (path / "rollouts").is_dir()
