"""The tab Start a run: training, of the demo task or your own, in another process, watched and stopped from here."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from segpo_core.loading import names_code
from segpo_core.shipped import ROOT
from segpo_core.tasks import SUFFIXES
from segviz.app.patience import Hangs, Patience
from segviz.show.encode import tidy
from segviz.show.theme import METHODS

CONFIG = "configs/demo.yaml"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
TAIL = 16_000  #: bytes of the output that are shown
_BOUNDS = (
    ("max_steps", 1, 100_000), ("seed", 0, 2**31 - 1), ("num_generations", 1, 1024), ("completions", 1, 65_536),
    ("eval_steps", 0, 100_000), ("eval_size", 1, 100_000),
)  # fmt: skip
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True)
class Settings:
    """What can be chosen; everything else is as in configs/demo.yaml.

    Raises:
        ValueError: a value that cannot work; the message says what can.
    """

    name: str
    method: str = "sapo"
    max_steps: int = 150
    seed: int = 0
    learning_rate: float = 1e-4
    num_generations: int = 8
    completions: int = 64  #: a step
    eval_steps: int = 25
    eval_size: int = 200
    dataset: str = "shapes"

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(
                "The name must begin with a letter or digit and hold at most 64 letters, digits, dots, dashes and "
                "underscores: it becomes a folder."
            )
        if self.method not in METHODS and not names_code(self.method):
            raise ValueError(f"The method must be one of {', '.join(METHODS)}, or file.py:Class.")
        for setting in (self.method, self.dataset):
            _check_place(setting)
        for field, low, high in _BOUNDS:
            value = getattr(self, field)
            if not (isinstance(value, int) and low <= value <= high):
                raise ValueError(f"{field.replace('_', ' ')} must be a whole number from {low} to {high}.")
        if not 0 < self.learning_rate < 1:
            raise ValueError("The learning rate must lie between 0 and 1, such as 0.0001.")
        if self.completions % self.num_generations:
            raise ValueError(
                f"Completions a step ({self.completions}) must be a multiple of the completions a prompt "
                f"({self.num_generations}), so that no group is torn."
            )

    def flags(self, folder: str) -> list[str]:
        """What `segpo` is told."""
        return [
            "train", "--config", _short(ROOT / CONFIG), "--method", self.method, "--output-dir", folder,
            "--max-steps", str(self.max_steps), "--seed", str(self.seed), "--learning-rate", f"{self.learning_rate:g}",
            "--num-generations", str(self.num_generations), "--per-device-train-batch-size", str(self.completions),
            "--eval-steps", str(self.eval_steps), "--eval-size", str(self.eval_size),
            *(["--dataset", self.dataset] if self.dataset != "shapes" else []),
        ]  # fmt: skip


def _check_place(setting: str) -> None:
    """A file that is named must be there, and one whose code would run must lie where the app was started: who can
    open the app may start what stands beside it, not every file of the machine.

    Raises:
        ValueError: it is not.
    """
    place = Path(setting.rpartition(":")[0] if names_code(setting) else setting)
    if place.suffix in (".py", *SUFFIXES) and not place.is_file():
        raise ValueError(f"There is no file {place}.")
    if place.suffix == ".py" and not place.resolve().is_relative_to(Path.cwd().resolve()):
        raise ValueError(f"{place} is outside the folder in which the app was started; start it with segpo train.")


class Starter:
    """At most one training process, in the first directory of runs and in a process group of its own."""

    def __init__(self, root: Path):
        self.root, self.patience = root, Patience()
        self._process: subprocess.Popen | None = None
        self._settings: Settings | None = None
        self._output: Any = None
        self._stopping = False
        self._started = 0.0
        self._lock = threading.Lock()

    def command(self, settings: Settings) -> str:
        """The command line that does the same."""
        return shlex.join(["segpo", *settings.flags(_short(self.root / settings.name))])

    def free_name(self, method: str = "sapo") -> str:
        """A name that no folder has yet; where the disk does not answer, the first."""
        try:
            return self.patience.ask(self.root, lambda: self._free(method))
        except Hangs:
            return f"{method}-1"

    def _free(self, method: str) -> str:
        return next(name for i in itertools.count(1) if not os.path.lexists(self.root / (name := f"{method}-{i}")))

    def start(self, settings: Settings) -> None:
        """Start training.

        Raises:
            ValueError: something is running, or there is such a folder already; Hangs: nobody can tell.
        """
        with self._lock:
            if self._alive():
                raise ValueError(f"{self._settings.name} is still training; stop it first, or wait for its end.")
            if self.patience.ask(self.root, lambda: os.path.lexists(self.root / settings.name)):
                raise ValueError(f"There is a folder {settings.name} already; choose another name.")
            if self._output is not None:
                self._output.close()
            self._output = tempfile.TemporaryFile(prefix="segpo-app-")
            self._settings, self._stopping, self._started = settings, False, time.time()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "segpo_core.cli", *settings.flags(str(self.root / settings.name))],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C for the app is not one for the training
            )

    def stop(self) -> None:
        """Ask the training to end after the step at hand; asked again, it ends at once.

        Raises:
            ValueError: nothing is running.
        """
        with self._lock:
            if not self._alive():
                raise ValueError("Nothing is training that was started here.")
            self._stopping = True
            os.killpg(self._process.pid, signal.SIGINT)

    def status(self) -> dict[str, Any]:
        """state (idle, running, stopping, ended, failed), words, name, command, output (its last lines)."""
        with self._lock:
            if self._process is None:
                return {"state": "idle", "words": "Nothing was started here yet.", "name": "", "output": ""}
            code, name = self._process.poll(), self._settings.name
            if code is None:
                state = "stopping" if self._stopping else "running"
                words = f"{name} ends after the step at hand." if self._stopping else f"{name} is training."
            elif code == 0:
                state, words = "ended", f"{name} was stopped." if self._stopping else f"{name} has finished."
            else:
                state, words = "failed", f"{name} ended with an error (exit code {code}). Its last words stand below."
            return {"state": state, "words": words, "name": name, "output": self._tail()}

    def close(self) -> None:
        """The app ends. Training does not: that is said on the terminal."""
        with self._lock:
            if self._alive():
                print(
                    f"{self._settings.name} goes on training; to end it after its step: kill -INT {self._process.pid}",
                    file=sys.stderr,
                )
            if self._output is not None:
                self._output.close()

    def _alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _tail(self) -> str:
        size = os.fstat(self._output.fileno()).st_size
        # the process writes at the file's shared position: read elsewhere without moving it
        raw = os.pread(self._output.fileno(), TAIL, max(0, size - TAIL))
        return tidy(_ESCAPES.sub("", raw.decode("utf-8", "replace"))).strip()


def tab(starter: Starter) -> None:
    """The tab: a form, the command line that does the same, and what the process says."""
    with gr.Row(elem_classes="start"):
        with gr.Column(scale=5, min_width=320):
            with gr.Group():
                where = f"a new folder in {_short(starter.root)}"
                name = gr.Textbox(starter.free_name, label="Name", elem_id="start-name", info=where, max_length=64)
                known = [(label, key) for key, label in METHODS.items()]
                says = "which part of a completion is credited, and how; your own: file.py:Class"
                method = gr.Dropdown(
                    known, value="sapo", label="Method", elem_id="start-method", info=says, allow_custom_value=True,
                )  # fmt: skip
                what = "shapes, a .jsonl or .parquet file, or your own task, file.py:Task"
                data = gr.Textbox("shapes", label="Problems", elem_id="start-dataset", info=what)
                with gr.Row():
                    steps = gr.Number(150, label="Steps", elem_id="start-steps", precision=0, minimum=1)
                    seed = gr.Number(0, label="Seed", elem_id="start-seed", precision=0, minimum=0)
                    rate = gr.Number(1e-4, label="Learning rate", elem_id="start-rate", minimum=0)
                with gr.Row():
                    group = gr.Number(8, label="Completions a prompt", elem_id="start-group", precision=0, minimum=1)
                    batch = gr.Number(64, label="Completions a step", elem_id="start-batch", precision=0, minimum=1)
                with gr.Row():
                    every = gr.Number(
                        25,
                        label="Evaluate every",
                        elem_id="start-every",
                        info="steps; 0: never",
                        precision=0,
                        minimum=0,
                    )
                    size = gr.Number(
                        200,
                        label="Held-out problems",
                        elem_id="start-size",
                        info="of an evaluation",
                        precision=0,
                        minimum=1,
                    )
            command = gr.Textbox(
                label="The same on the command line",
                elem_id="start-command",
                lines=3,
                interactive=False,
                buttons=["copy"],
            )
            begin = gr.Button("Start training", variant="primary", elem_id="start-begin")
        with gr.Column(scale=6, min_width=320):
            gr.HTML("<segpo-trainer></segpo-trainer>", elem_classes="bare")
    inputs = [name, method, steps, seed, rate, group, batch, every, size, data]

    def show(*values: Any) -> str:
        try:
            return starter.command(_settings(values))
        except ValueError as error:
            return f"# {error}"

    def rename(method: str, name: str) -> Any:
        """A suggested name follows the method; one's own name stays."""
        suggested = re.fullmatch(rf"({'|'.join(METHODS)}|own)-\d+", name or "")
        known = method if method in METHODS else "own"
        return starter.free_name(known) if suggested or not name else gr.skip()

    def start(name: str, method: str, steps: float, seed: float, rate: float, group: float, batch: float, every: float,
              size: float, dataset: str = "shapes") -> str:  # fmt: skip
        """Start training; returns what was started. At most one training runs at a time."""
        try:
            settings = _settings((name, method, steps, seed, rate, group, batch, every, size, dataset))
            starter.start(settings)
        except (ValueError, OSError, Hangs) as error:
            raise gr.Error(str(error), duration=None, print_exception=False) from None
        return starter.command(settings)

    def stop() -> str:
        """Stop the training that was started here after its step."""
        try:
            starter.stop()
        except (ValueError, OSError) as error:
            raise gr.Error(str(error), print_exception=False) from None
        return starter.status()["words"]

    method.change(rename, [method, name], name, show_progress="hidden", api_visibility="private", queue=False)
    # without triggers: when the page is opened, and whenever one of them changes
    gr.on(None, show, inputs, command, show_progress="hidden", api_visibility="private", queue=False)
    begin.click(start, inputs, command, show_progress="hidden", api_name="start")
    gr.api(stop, api_name="stop")


def _settings(values: tuple) -> Settings:
    name, method, *numbers, dataset = values
    if any(number is None for number in numbers):
        raise ValueError("Every number must be given.")
    steps, seed, rate, group, completions, every, size = numbers
    return Settings(
        name or "", method or "", int(steps), int(seed), float(rate), int(group), int(completions), int(every),
        int(size), dataset or "shapes",
    )  # fmt: skip


def _short(path: Path) -> str:
    """The path as a person at this place would write it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
