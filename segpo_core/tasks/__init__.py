"""Where problems come from. A task is any object with the members of `Task`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from segpo_core.loading import load_object, names_code
from segpo_core.tasks.rows import SUFFIXES


class Task(Protocol):
    """Problems with a verifiable answer.

    A problem is a dict with the columns `prompt`, `images`, `answer` and `id`; further ones go to the reward functions.
    """

    name: str
    train_size: int | None  #: None: unlimited
    eval_size: int | None
    reward_funcs: list[Callable]  #: TRL's signature

    def train(self, index: int) -> dict:
        """Training problem `index`; with a size, every stretch of so many numbers holds each problem once."""

    def eval(self, index: int) -> dict:
        """Held-out problem `index`, modulo the size; no training problem is among them."""

    def inspect(self, example: Mapping, text: str) -> dict | None:
        """Ground truth about a completion, None when it is not known: `answer_right`, and what else there is to know of
        `perception_right`, `reasoning_right`, `format_right` (bool) and `first_error` (None or `start`, `end`, `kind`,
        `why`)."""


def load_task(name_or_path: Any, judges: Sequence[Callable] = (), **settings: Any) -> Task:
    """The task "shapes" or "arithmetic", one of your own ("file.py:Task", "package.module:Task"), or a data set: a file
    (JSONL, JSON, Parquet, CSV), a saved data set's directory, a hub name, or one in memory (Dataset, IterableDataset,
    list of dicts).

    Args:
        judges: reward functions in place of the task's own; where none asks for an answer, a data set needs none.

    Raises: ValueError when there is no such task or a setting is unknown to it.
    """
    if not isinstance(name_or_path, str | Path):
        settings = {"path": f"<{type(name_or_path).__name__}>", "data": name_or_path} | settings
        name_or_path = settings["path"] + SUFFIXES[0]
    name_or_path = str(name_or_path)
    if names_code(name_or_path):
        return _own(name_or_path, settings)
    # Imported on use: reading data sets takes libraries that the shapes do without.
    if name_or_path == "shapes":
        from segpo_core.tasks.shapes import ShapesTask as task
    elif name_or_path == "arithmetic":
        from segpo_core.tasks.arithmetic import ArithmeticTask as task
    elif Path(name_or_path).exists() or name_or_path.endswith(SUFFIXES) or name_or_path.count("/") == 1:
        from segpo_core.tasks.files import FilesTask

        task, settings = FilesTask, {"path": name_or_path, "judges": tuple(judges)} | settings
    else:
        raise ValueError(
            f"unknown task {name_or_path!r}; known: shapes, arithmetic, a file ({', '.join(SUFFIXES)}), the directory "
            "of a saved data set, one of your own (file.py:Task), or a data set on the hub (owner/name)"
        )
    known = task.__dataclass_fields__
    if unknown := sorted(set(settings) - set(known)):
        raise ValueError(f"task {name_or_path!r} has no setting {', '.join(unknown)}; it has: {', '.join(known)}")
    return task(**{setting: _typed(setting, str(known[setting].type), value) for setting, value in settings.items()})


def _own(spec: str, settings: dict[str, Any]) -> Task:
    """A task that `spec` names: a class or function that makes it of the settings, or the task itself."""
    task = load_object(spec, "data set")
    if callable(task):
        try:
            wanted = {name: str(item.type) for name, item in getattr(task, "__dataclass_fields__", {}).items()}
            settings = {name: _typed(name, wanted.get(name, "str"), value) for name, value in settings.items()}
            inspect.signature(task).bind(**settings)
        except TypeError as error:
            raise ValueError(f"data set {spec!r}: {error}; its settings are {inspect.signature(task)}") from None
        task = task(**settings)
    elif settings:
        raise ValueError(f"data set {spec!r} is an object and takes no settings, such as {next(iter(settings))}")
    if missing := [name for name in (*Task.__annotations__, "train", "eval", "inspect") if not hasattr(task, name)]:
        raise ValueError(
            f"data set {spec!r} has no {', '.join(missing)}: a task has the members of segpo_core.tasks.Task"
        )
    return task


def _typed(setting: str, wanted: str, value: Any) -> Any:
    """A setting of the command line, a text, as what the field wants."""
    if not isinstance(value, str) or wanted.startswith("str"):
        return value
    if wanted.startswith("tuple"):
        return tuple(value.replace(",", " ").split())
    try:
        if wanted.startswith("float"):
            return float(value)
        return {"true": True, "false": False}[value.lower()] if wanted == "bool" else int(value)
    except (KeyError, ValueError):
        raise ValueError(f"{setting} is {value!r}: it must be of the kind {wanted}") from None
