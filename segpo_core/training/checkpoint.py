"""Checkpoints: everything a run needs to go on exactly.

    checkpoints/step-000050/
      config.json, model.safetensors, tokenizer …   loads with `from_pretrained`, or with `--model_name_or_path`;
                                                    what was trained is float32, whatever the network computed in
      critic.safetensors                            the critic's own parameters, where there is a critic
      optimizer.pt                                  AdamW's moments
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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from segpo_core.policy.critic import ActorCritic
from segpo_core.policy.sharding import load_optimizer_state
from segpo_core.record.store import read_plain, step_name, step_of

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
) -> Path:
    """Write the checkpoint of `step` under `directory`, then remove all but the newest `keep`.

    Args:
        network: the `ActorCritic`, unwrapped.
        weights: its state; see `sharding.whole_state`.
        optimizer: the optimizer's state; see `sharding.optimizer_state`.
        facts: goes into trainer.json.
        waits: seconds before each further attempt, where one fails.

    Raises:
        OSError: no space left, say. Earlier checkpoints are untouched and no torn one is visible.
    """
    target = directory / step_name(step)
    for wait in (*waits, None):
        try:
            _write(target, step, network, weights, optimizer, processor, facts)
            break
        except OSError as error:
            if wait is None:
                raise
            log.warning("%s; it is tried again in %g s", error, wait)
            time.sleep(wait)
    for old in listed(directory)[:-keep] if keep > 0 else []:
        remove(old)
    for left in directory.glob(".step-*"):  # of writers that were killed
        shutil.rmtree(left, ignore_errors=True)
    return target


def _write(
    target: Path, step: int, network: ActorCritic, weights: dict[str, Tensor], optimizer: dict[str, Any],
    processor: Any, facts: dict,
) -> None:  # fmt: skip
    """One attempt. Any error but OSError of a library that writes a part of it becomes one."""
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        policy = {name.removeprefix("model."): w for name, w in weights.items() if name.startswith("model.")}
        network.model.save_pretrained(temporary, state_dict=policy)
        _in_order(temporary / "adapter_config.json")
        processor.save_pretrained(temporary)
        own = network.critic_names()
        critic = {k: v.contiguous().cpu() for k, v in weights.items() if k in own}
        if critic:
            save_file(critic, temporary / "critic.safetensors")
        torch.save(optimizer, temporary / "optimizer.pt")
        # A second chat template lies in a folder of its own.
        written = sorted(path for path in temporary.rglob("*") if path.is_file())
        files = {path.relative_to(temporary).as_posix(): _facts(path) for path in written}
        (temporary / "trainer.json").write_text(json.dumps({"step": step, **facts, "files": files}, indent=2))
        for path in (*written, temporary / "trainer.json"):
            with open(path, "rb") as handle:
                os.fsync(handle.fileno())
        remove(target)
        os.replace(temporary, target)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    except Exception as error:  # safetensors and tokenizers have error types of their own for a disk that is full
        shutil.rmtree(temporary, ignore_errors=True)
        raise OSError(f"the checkpoint {target} cannot be written: {type(error).__name__}: {error}") from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


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
    critic_file = path / "critic.safetensors"
    if critic_file.exists():
        missing = network.load_state_dict(load_file(critic_file), strict=False).missing_keys
        torn = [name for name in missing if name in network.critic_names()]
        if torn:
            raise ValueError(f"{critic_file} lacks {torn[0]}: it was saved with another kind of critic")


def load_optimizer(path: Path, optimizer: torch.optim.Optimizer) -> int:
    """Put a checkpoint's optimizer state in place. Returns the step after which it was written."""
    load_optimizer_state(optimizer, torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True))
    return read_step(path)
