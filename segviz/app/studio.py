"""The model behind the playground: one checkpoint in memory, one worker, a short line before it.

torch is imported when the first question is asked, in the worker's thread, and gets one thread, so that a training
beside the app keeps its cores.
"""

from __future__ import annotations

import gc
import logging
import re
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segpo_core.record.store import read_manifest
from segpo_core.shipped import ROOT
from segviz.app.shelf import Missing, Place, Shelf, inside
from segviz.show.encode import tidy

if TYPE_CHECKING:
    from segpo_core.afterwards.trained import Policy

log = logging.getLogger(__name__)

LINE = 4  #: requests that may wait
KEPT = 32  #: finished requests whose results can still be looked at
SECONDS = 120.0  #: of one request, once its model is loaded
LONGEST = 512  #: tokens of one completion, where the run allows as many
EMBEDDED = ROOT / "data" / "tiny-vlm"


class Busy(Exception):
    """No more may wait; the message says how many do."""


class Stopped(Exception):
    """The request was cancelled, or its time is up."""


@dataclass(frozen=True)
class Source:
    """Which model: the checkpoint of a run at a step, or, without a run, the embedded policy."""

    run: str | None = None
    step: int | None = None

    def __str__(self) -> str:
        return "tiny-vlm, before any training" if self.run is None else f"{tidy(self.run)}, step {self.step}"


@dataclass(eq=False)
class Job:
    """One request. `state`: waiting, running, done, stopped (with what there was in time) or failed."""

    work: Callable[[Job], Any]
    name: str = field(default_factory=lambda: secrets.token_urlsafe(9))
    state: str = "waiting"
    words: str = ""
    done: int = 0  #: of `total`, in the unit of `words`
    total: int = 0
    result: Any = None
    until: float = float("inf")
    cancelled: threading.Event = field(default_factory=threading.Event)

    def say(self, words: str, total: int = 0) -> None:
        """What is being done now, of how much."""
        self.words, self.done, self.total = words, 0, total

    def progress(self, done: int, total: int) -> None:
        self.done, self.total = done, total

    def stopped(self) -> bool:
        """Whether the work should end now."""
        return self.cancelled.is_set() or time.monotonic() > self.until

    def check(self, *_: Any) -> None:
        """Count one more piece of work.

        Raises:
            Stopped: it should not go on.
        """
        if self.stopped():
            raise Stopped
        self.done = min(self.done + 1, self.total)

    @property
    def why(self) -> str:
        return "Cancelled." if self.cancelled.is_set() else f"Stopped after {SECONDS:.0f} seconds."


class Studio:
    """Does requests one after the other, in a thread that begins with the first one."""

    def __init__(self, shelf: Shelf):
        self.shelf = shelf
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._line: deque[Job] = deque()
        self._now: Job | None = None
        self._news = threading.Condition()
        self._closed = False
        self._worker: threading.Thread | None = None
        self._policy: tuple[tuple, Policy] | None = None

    def submit(self, work: Callable[[Job], Any]) -> Job:
        """Put a request in line; `work` runs in the worker's thread and its result stays with the job.

        Raises:
            Busy: too many wait already.
        """
        with self._news:
            if len(self._line) >= LINE:
                raise Busy(
                    f"Busy: {len(self._line) + 1} requests are before you, and no more can wait. Try again in a moment."
                )
            job = Job(work)
            self._jobs[job.name] = job
            self._line.append(job)
            over = [name for name, old in self._jobs.items() if old.state not in ("waiting", "running")]
            for name in over[: max(0, len(self._jobs) - KEPT)]:
                del self._jobs[name]
            if self._worker is None:
                self._worker = threading.Thread(target=self._work, name="studio", daemon=True)
                self._worker.start()
            self._news.notify()
        return job

    def job(self, name: str) -> Job:
        """A request that was put in line.

        Raises:
            Missing: it is not kept any more, or there never was one.
        """
        job = self._jobs.get(name)
        if job is None:
            raise Missing("This result is not kept any more; only the newest are. Ask again.")
        return job

    def before(self, job: Job) -> int:
        """How many requests are done before this one."""
        with self._news:
            return self._line.index(job) + (self._now is not None) if job in self._line else 0

    def cancel(self, name: str) -> Job:
        """End a request, or take it out of the line. Raises as `job`."""
        job = self.job(name)
        with self._news:
            job.cancelled.set()
            if job in self._line:
                self._line.remove(job)
                job.state, job.words = "stopped", "Cancelled before it began."
        return job

    def close(self) -> None:
        """End what is being done; nothing new begins."""
        with self._news:
            self._closed = True
            for job in [*self._line, *([self._now] if self._now else [])]:
                job.cancelled.set()
            self._line.clear()
            self._news.notify()
        if self._worker is not None:
            self._worker.join(5)

    def _work(self) -> None:
        while True:
            with self._news:
                self._now = None
                while not (self._line or self._closed):
                    self._news.wait()
                if self._closed:
                    return
                job = self._now = self._line.popleft()
                job.state = "running"
            try:
                result = job.work(job)
                stopped = job.stopped()
                job.result, job.words = result, job.why if stopped else ""
                job.state = "stopped" if stopped else "done"
            except Stopped:
                job.words, job.state = job.why, "stopped"
            except (ValueError, LookupError, OSError, ImportError) as error:
                job.words, job.state = _words(error), "failed"
            except Exception as error:  # whatever a model does, the next request finds a worker
                log.exception("the playground's request failed")
                job.words, job.state = f"{type(error).__name__}: {_words(error)}", "failed"

    # the model, in the worker's thread only

    def policy(self, source: Source, job: Job) -> Policy:
        """The model that is asked for, in place of the one before. The request's time begins when it is there.

        Raises:
            Missing: there is no such checkpoint (any more), or it leads outside.
            ValueError: it cannot be loaded.
        """
        found = checkpoint(self.shelf, source)
        if self._policy is None or self._policy[0] != found.key:
            job.say(f"Loading {source}…")
            self._policy = None
            gc.collect()

            def made() -> Policy:
                enough(found.path)
                return load(found.path, None if found.place is None else found.place.root, source)

            self._policy = (found.key, made() if found.place is None else self.shelf.within(found.place, made))
            import torch

            torch.set_num_threads(1)  # of this thread too: it was loaded in one that could be left behind
        if job.cancelled.is_set():
            raise Stopped
        job.until = time.monotonic() + SECONDS
        return self._policy[1]


def load(path: Path, root: Path | None, source: Source) -> Policy:
    """The policy at a path, judged by the answers alone: a run's own reward functions may be any code.

    Raises:
        Missing, ValueError: as `Studio.policy`.
    """
    import torch
    from transformers.utils import logging as transformers_logging

    from segpo_core.afterwards.trained import Policy
    from segpo_core.tasks.arithmetic import sum_reward
    from segpo_core.tasks.rewards import answer_reward

    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()  # its bars would fill the app's terminal
    if root is not None:
        _own_base(path, root, source)
    try:
        policy = Policy.load(path, reward_funcs=[answer_reward if sees(path) else sum_reward])
    except FileNotFoundError as error:
        raise Missing(f"{source}: a file of the checkpoint is not there (any more): {tidy(str(error))}") from error
    except Exception as error:  # torn weights, an unknown architecture, settings of another version
        raise ValueError(f"{source} cannot be loaded: {type(error).__name__}: {_words(error)}") from error
    if policy.step != source.step:
        raise Missing(f"The checkpoint of {source} was removed while it was being loaded; choose a newer one.")
    policy.reward_weights = None
    policy.name = str(source)
    policy.sampler.max_completion_length = min(policy.sampler.max_completion_length, LONGEST)
    return policy


@contextmanager
def interruptible(policy: Policy, job: Job) -> Iterator[None]:
    """Work within it ends by `Stopped` at the model's next pass, whatever function of the library is at work."""
    from segpo_core.policy.logprobs import backbone

    hook = backbone(policy.model).register_forward_pre_hook(job.check)
    try:
        yield
    finally:
        hook.remove()


# --- which models there are, without torch -------------------------------------------------------------------------


def sources(shelf: Shelf) -> list[dict[str, Any]]:
    """Models to choose from, those of the run that changed last first: {run, step, label, text}; `text`: a language
    model, which is asked without a picture."""
    places = shelf.places()
    at = {place.path: place for place in places.values()}
    there = shelf.patience.each(list(at), lambda path: [(n, not sees(c)) for n, c in checkpoints(at[path])])
    found: list[dict[str, Any]] = [
        {"run": run["name"], "step": step, "label": f"{run['name']} · {run['label'] or 'run'} · step {step}",
         "text": text}
        for run in shelf.described()
        if run["name"] in places
        for step, text in reversed(there.get(places[run["name"]].path, []))
    ]  # fmt: skip
    if (EMBEDDED / "config.json").is_file():
        found.append({"run": None, "step": None, "label": "tiny-vlm · before any training", "text": False})
    return found


def sees(path: Path) -> bool:
    """Whether the model of a checkpoint takes pictures: then its processor is there, and not only a tokenizer."""
    return any((path / name).is_file() for name in ("processor_config.json", "preprocessor_config.json"))


def checkpoints(place: Place) -> list[tuple[int, Path]]:
    """(step, directory) of a run's whole checkpoints, oldest first."""
    found = []
    for path in place.path.glob("checkpoints/step-*"):
        number = re.fullmatch(r"step-(\d{1,9})", path.name)
        if number and inside(path / "trainer.json", place.root) and (path / "trainer.json").is_file():
            found.append((int(number[1]), path))
    return sorted(found)


@dataclass(frozen=True)
class Found:
    """The directory of a model. `place`: the run that it belongs to; None: the embedded one. `text`: a language model.
    `key`: changes where its files do."""

    path: Path
    place: Place | None
    text: bool
    key: tuple


def checkpoint(shelf: Shelf, source: Source) -> Found:
    """Where a model lies.

    Raises:
        Missing: no such run or checkpoint, a link in it leads outside, or it does not answer.
    """
    if source.run is None:
        if not (EMBEDDED / "config.json").is_file():
            raise Missing("The embedded policy is not part of this installation; choose a run's checkpoint.")
        return Found(EMBEDDED, None, not sees(EMBEDDED), _stamp(EMBEDDED))
    place = shelf.place(source.run)
    return shelf.within(place, lambda: _checkpoint(place, source))


def _stamp(path: Path) -> tuple:
    files = (path / "config.json", path / "adapter_config.json", path / "trainer.json")
    return (path, *(file.stat().st_mtime_ns if file.exists() else 0 for file in files))


def _checkpoint(place: Place, source: Source) -> Found:
    there = dict(checkpoints(place))
    path = there.get(source.step if source.step is not None else -1)
    if path is None:
        steps = ", ".join(map(str, there)) or "none"
        raise Missing(f"{tidy(source.run)} has no checkpoint of step {source.step} (any more); there are: {steps}.")
    for file in (place.path / "run.json", *path.rglob("*")):
        if not inside(file, place.root):
            raise Missing(f"{file.name} of {source} is a link that leads out of {place.root}; it is not followed.")
    return Found(path, place, not sees(path), _stamp(path))


def _own_base(path: Path, root: Path, source: Source) -> None:
    """Of an adapter: its base model must lie in the directory that was given too, or be the embedded one, or that of
    an installed package (as of the demo's language model), which only holds what whoever installed it put there.

    Raises:
        Missing: it lies elsewhere; SchemaError: run.json cannot be read.
    """
    from segpo_core.policy.gguf import PACKAGE
    from segpo_core.policy.load import find_model

    config = read_manifest(path.parent.parent).get("config") or {}
    if config.get("use_peft"):
        name = str(config.get("model_name_or_path"))
        base = Path(find_model(name))
        here = base.is_dir() and (inside(base, root) or base.resolve() == EMBEDDED.resolve())
        if not here and not name.startswith(PACKAGE):
            raise Missing(
                f"{source} is an adapter of {tidy(str(base))}, which lies outside the directories that this app may "
                "read; start the app with a directory that holds both."
            )


def enough(path: Path) -> None:
    """Raise ValueError where the weights at a path would not fit into the memory that is free."""
    need = 1.3 * sum(file.stat().st_size for file in path.glob("*.safetensors"))
    try:
        told = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:  # not Linux
        return
    if told and need > int(told[1]) * 1024:
        raise ValueError(
            f"This model needs about {need / 1e9:.1f} GB of memory and {int(told[1]) / 1e6:.1f} GB are free; choose a "
            "smaller one, or end what else is running."
        )


def _words(error: BaseException) -> str:
    words = tidy(str(error.args[0] if isinstance(error, KeyError) and error.args else error))
    return words if len(words) <= 600 else words[:600] + "…"
