"""Checkpoints: everything a run needs to go on exactly.

    checkpoints/step-000050/
      config.json, model.safetensors, tokenizer …   loads with `from_pretrained`, or with `--model-name-or-path`;
                                                    what was trained is float32, whatever the network computed in
      critic.safetensors                            the critic's own parameters, where there is a critic
      optimizer.pt                                  AdamW's moments
                                                    (where FSDP splits the network, each process writes a file of its
                                                    own of each kind: model-00001-of-00008.safetensors …)
      README.md                                     the model card
      trainer.json                                  written last: the step, what a resumed run must agree on, and size
                                                    and sha256 of every other file

Nothing random is stored: every random stream is named by (seed, step, …), and the learning rate is a function of the
step. A checkpoint is written beside its place and renamed, and renamed before it is removed, so one that can be seen is
whole. A disk that lost writes, or a copy that was interrupted, can still tear one: it is checked before it is used.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from segpo_core.policy.critic import ActorCritic
from segpo_core.policy.sharding import load_optimizer_state
from segpo_core.record.store import read_plain, step_name, step_of
from segpo_core.training.hold import Hold, still_held
from segpo_core.training.together import everyone

#: Seconds before a checkpoint that must be is tried again: a network file system comes back, a disk is freed.
WAITS = (1.0, 5.0, 15.0)

log = logging.getLogger(__name__)


def save(
    directory: Path,
    step: int,
    network: ActorCritic,
    weights: dict[str, Tensor],
    optimizer: dict[str, Any],
    processor: Any,
    facts: dict,
    keep: int,
    waits: Sequence[float] = (),
    card: str = "",
    hold: Hold | None = None,
) -> Path:
    """Write the checkpoint of `step` under `directory`, then remove all but the newest `keep`. Every process must call.

    Args:
        network: the `ActorCritic`, unwrapped.
        weights: this process's part of its state; see `sharding.own_state`.
        optimizer: this process's part of the optimizer's state; see `sharding.own_moments`.
        facts: goes into trainer.json.
        waits: seconds before each further attempt, where one fails.
        card: text of README.md; none where it is empty.
        hold: the main process's, of the run directory.

    Raises:
        TakenOver: that is another trainer's by now; in every process.
        OSError: no space left, say; in every process. Earlier checkpoints are untouched and no torn one is visible.
    """
    target = directory / step_name(step)
    for wait in (*waits, None):
        still_held(hold)
        try:
            _write(target, step, network, weights, optimizer, processor, facts, card, hold)
            break
        except OSError as error:
            if wait is None:
                raise
            if PartialState().is_main_process:
                log.warning("%s; it is tried again in %g s", error, wait)
            time.sleep(wait)
    if PartialState().is_main_process:
        for old in listed(directory)[:-keep] if keep > 0 else []:
            remove(old)
        for left in directory.glob(".step-*"):  # of writers that were killed
            shutil.rmtree(left, ignore_errors=True)
    return target


def _write(
    target: Path, step: int, network: ActorCritic, weights: dict[str, Tensor], optimizer: dict[str, Any],
    processor: Any, facts: dict, card: str, hold: Hold | None,
) -> None:  # fmt: skip
    """One attempt: each process writes its part, rank 0 what is whole, and the end. Any error but OSError of a library
    that writes a part of it becomes one, and an error of one process is one of all."""
    temporary = target.with_name(f".{target.name}.tmp")
    rank, main = PartialState().process_index, PartialState().is_main_process
    writers = [number for number, some in enumerate(everyone([bool(weights)])) if some]

    def begin() -> None:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)

    def part() -> None:
        if rank not in writers:
            return
        policy = {name.removeprefix("model."): w for name, w in weights.items() if name.startswith("model.")}
        own = network.critic_names()
        critic = {k: v.contiguous().cpu() for k, v in weights.items() if k in own}
        number, count = writers.index(rank) + 1, len(writers)
        place = temporary if count == 1 else temporary / f"part-{number}"
        # transformers writes in rank 0 alone, whatever the others hold
        network.model.should_save_on_this_rank = lambda is_main_process: True
        try:
            network.model.save_pretrained(place, state_dict=policy)
        finally:
            del network.model.should_save_on_this_rank
        if critic:
            save_file(critic, temporary / _of("critic.safetensors", number, count))
        torch.save(optimizer, temporary / _of("optimizer.pt", number, count))
        if count > 1:
            _one_of(place, number, count, main)

    def end() -> None:
        _in_order(temporary / "adapter_config.json")
        processor.save_pretrained(temporary)
        if card:
            (temporary / "README.md").write_text(card, encoding="utf-8")
        if len(writers) > 1:
            _index(temporary)
        # A second chat template lies in a folder of its own.
        written = sorted(path for path in temporary.rglob("*") if path.is_file())
        files = {path.relative_to(temporary).as_posix(): _facts(path) for path in written}
        (temporary / "trainer.json").write_text(json.dumps({"step": step, **facts, "files": files}, indent=2))
        for path in (*written, temporary / "trainer.json"):
            with open(path, "rb") as handle:
                os.fsync(handle.fileno())
        if hold is not None:
            hold.check()
        remove(target)
        os.replace(temporary, target)

    try:
        for act, who in ((begin, main), (part, True), (end, main)):
            _together(act, who, target)
    except BaseException:
        if main:
            shutil.rmtree(temporary, ignore_errors=True)
        raise


def _together(act: Callable[[], Any], mine: bool, target: Path) -> None:
    """Do something where it is this process's, and fail in all where it failed in one."""
    error: OSError | None = None
    if mine:
        try:
            act()
        except OSError as failed:
            error = failed
        except Exception as failed:  # safetensors and tokenizers have error types of their own for a disk that is full
            error = OSError(f"the checkpoint {target} cannot be written: {type(failed).__name__}: {failed}")
            error.__cause__ = failed
    said = [text for text in everyone([None if error is None else str(error)]) if text]
    if error is not None:
        raise error
    if said:
        raise OSError(f"another process cannot write its part of {target}: {said[0]}")


def _of(name: str, number: int, count: int) -> str:
    """The name of one file of several, as transformers has it: model-00001-of-00002.safetensors."""
    stem, dot, ending = name.rpartition(".")
    return name if count == 1 else f"{stem}-{number:05d}-of-{count:05d}{dot}{ending}"


def _one_of(place: Path, number: int, count: int, rest: bool) -> None:
    """Move what `save_pretrained` wrote of a part to where all parts are, with the files beside it if `rest`."""
    for path in place.iterdir():
        if path.suffix == ".safetensors":
            os.replace(path, place.parent / _of(path.name, number, count))
        elif rest:
            os.replace(path, place.parent / path.name)
    shutil.rmtree(place)


def _index(folder: Path) -> None:
    """Say which file holds which weight, as `from_pretrained` reads it."""
    held, size = {}, 0
    for path in sorted(folder.glob("model-*.safetensors")):
        with safe_open(path, framework="pt") as file:
            held |= dict.fromkeys(file.keys(), path.name)
        size += path.stat().st_size
    said = {"metadata": {"total_size": size}, "weight_map": held}
    (folder / "model.safetensors.index.json").write_text(json.dumps(said, indent=2, sort_keys=True))


def _in_order(path: Path) -> None:
    """peft writes sets in the order of their hashes, which differs from process to process."""
    if path.exists():
        said = json.loads(path.read_text())
        for name in ("target_modules", "exclude_modules"):
            if isinstance(said.get(name), list):
                said[name].sort()
        path.write_text(json.dumps(said, indent=2, sort_keys=True))


def remove(path: Path) -> None:
    """Remove a checkpoint, under another name, so that no reader meets half of one."""
    if path.exists():
        gone = path.with_name(f".{path.name}.gone")
        shutil.rmtree(gone, ignore_errors=True)
        os.replace(path, gone)
        shutil.rmtree(gone, ignore_errors=True)


def listed(directory: Path) -> list[Path]:
    """Checkpoints, oldest first."""
    found = (path for path in directory.glob("step-*") if step_of(path) is not None)
    return sorted((path for path in found if (path / "trainer.json").exists()), key=step_of)


def latest(directory: Path) -> Path:
    """The newest whole checkpoint; what is wrong with newer ones is told.

    Raises:
        FileNotFoundError: there is none.
        ValueError: there are some, but none is whole.
    """
    found, torn = listed(directory), []
    for path in reversed(found):
        why = damage(path)
        if why is None:
            if torn:
                log.warning("%s; going on from %s", "; ".join(torn), path)
            return path
        torn.append(f"{path} is not whole ({why})")
    if torn:
        raise ValueError("; ".join(torn) + ": there is no whole checkpoint to go on from; bring one back from a copy")
    raise FileNotFoundError(f"there is no checkpoint in {directory} to resume from; start the run without --resume")


def damage(path: Path) -> str | None:
    """What of a checkpoint is missing or not as it was written; None where it is whole. Reads every byte of it."""
    try:
        facts = json.loads(read_plain(path / "trainer.json"))
        if not isinstance(facts["step"], int):
            return "trainer.json names no step"
        for name, wanted in facts.get("files", {}).items():
            if not (path / name).is_file():
                return f"{name} is missing"
            if (path / name).stat().st_size != wanted["size"]:
                return f"{name} has {(path / name).stat().st_size} bytes of {wanted['size']}"
            if _facts(path / name) != wanted:
                return f"{name} has changed since it was written"
    except OSError as error:
        return str(error)
    except (ValueError, KeyError, TypeError, AttributeError):
        return "trainer.json cannot be read"
    return None


def _facts(path: Path) -> dict[str, Any]:
    with open(path, "rb") as handle:
        return {"size": os.fstat(handle.fileno()).st_size, "sha256": hashlib.file_digest(handle, "sha256").hexdigest()}


def read_step(path: Path) -> int:
    """The step after which the checkpoint was written."""
    return json.loads(read_plain(path / "trainer.json"))["step"]


def load_critic(path: Path, network: ActorCritic) -> None:
    """Put a checkpoint's critic in place, where it has one; the model was already loaded from `path`.

    Raises:
        ValueError: it was saved with another kind of critic.
    """
    if critic := read_critic(path):
        missing, own = network.load_state_dict(critic, strict=False).missing_keys, network.critic_names()
        torn = [name for name in missing if name in own]
        if torn:
            raise ValueError(f"the critic in {path} lacks {torn[0]}: it was saved with another kind of critic")


def read_critic(path: Path) -> dict[str, Tensor]:
    """The critic's own parameters in a checkpoint; none where it has no critic."""
    return {k: v for file in sorted(path.glob("critic*.safetensors")) for k, v in load_file(file).items()}


def load_optimizer(path: Path, optimizer: torch.optim.Optimizer) -> int:
    """Put a checkpoint's optimizer state in place, however many processes wrote it. Returns the step after which it was
    written."""
    # Mapped, not read: each process takes its part of each tensor.
    files = sorted(path.glob("optimizer*.pt"))
    parts = [torch.load(file, map_location="cpu", weights_only=True, mmap=True) for file in files]
    moments = {number: entry for part in parts for number, entry in part["state"].items()}
    load_optimizer_state(optimizer, parts[0] | {"state": moments})
    return read_step(path)
