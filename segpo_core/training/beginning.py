"""Where a run begins: in a directory that is free for it, from its newest checkpoint or from nothing."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from accelerate import PartialState

from segpo_core.record.store import SchemaError, metric_steps, read_manifest
from segpo_core.training import agreed, checkpoint
from segpo_core.training.hold import LOCK, Hold
from segpo_core.training.together import everyone

log = logging.getLogger(__name__)


def hold_for_all(directory: Path) -> Hold | None:
    """Keep other trainers out of the directory until it is released; the main process does for all, and has the hold.

    Raises:
        ValueError: another trainer is at work there; every process says so.
    """
    hold, refusal = None, None
    if PartialState().is_main_process:
        try:
            hold = Hold(directory)
        except ValueError as error:
            refusal = str(error)
    refused = [text for text in everyone([refusal]) if text]
    if refused:
        raise ValueError(refused[0])
    return hold


def start_point(directory: Path, resume: bool, save_steps: float, settings: dict[str, Any]) -> Path | None:
    """The checkpoint to go on from, or None for a run from its beginning.

    Args:
        directory: of the run.
        resume, save_steps: as in the config.
        settings: as run.json has them.

    Raises:
        ValueError, FileNotFoundError: the directory holds another run, or nothing to resume.
    """
    manifest = directory / "run.json"
    began = manifest.exists() or not (directory / LOCK).exists()  # else its start was interrupted
    if resume and began:
        agreed.check(directory, read_manifest(directory)["config"], settings)
        return _newest(directory, save_steps)
    if manifest.exists():
        raise ValueError(
            f"{directory} already holds a run: resume it (--resume), or name another --output-dir; "
            "nothing in it was touched"
        )
    if directory.exists() and any(map(_holds_something, directory.iterdir())):
        raise SchemaError(f"{directory} is not empty and is not a run: name another --output-dir")
    return None


def _newest(directory: Path, save_steps: float) -> Path | None:
    """The newest whole checkpoint; None for a run that was killed before its first one."""
    try:
        return checkpoint.latest(directory / "checkpoints")
    except FileNotFoundError:
        # A run that got past a step at which it saves has lost its checkpoints: what it recorded is kept.
        recorded = max(metric_steps(directory), default=0)
        if save_steps and recorded > save_steps:
            raise
        log.warning("%s has no checkpoint yet: it starts again from step 0", directory)
        return None


def _holds_something(path: Path) -> bool:
    """Whether a path is more than what an interrupted start leaves behind."""
    if path.name == LOCK or path.name.endswith(".tmp"):
        return False
    return path.is_symlink() or not path.is_dir() or any(map(_holds_something, path.iterdir()))
