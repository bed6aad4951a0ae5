"""Checkpoints: everything a run needs to go on exactly.

    checkpoints/step-000050/
      config.json, model.safetensors, tokenizer …   loads with `from_pretrained`, or with `--model_name_or_path`;
                                                    what was trained is float32, whatever the network computed in
      critic.safetensors                            the critic's own parameters, where there is a critic
      optimizer.pt                                  AdamW's moments
      trainer.json                                  the step, and what a resumed run must agree on

Nothing random is stored: every random stream is named by (seed, step, …), and the learning rate is a function of the
step. A checkpoint is written beside its place and renamed, so one that can be seen is whole.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from segpo_core.policy.sharding import load_optimizer_state
from segpo_core.record.store import step_name


def save(
    directory: Path,
    step: int,
    network: nn.Module,
    weights: dict[str, Tensor],
    optimizer: dict[str, Any],
    processor: Any,
    facts: dict,
    keep: int,
) -> Path:
    """Write the checkpoint of `step` under `directory`, then remove all but the newest `keep`.

    Args:
        network: the `ActorCritic`, unwrapped.
        weights: its state; see `sharding.whole_state`.
        optimizer: the optimizer's state; see `sharding.optimizer_state`.
        facts: goes into trainer.json.

    Raises:
        OSError: no space left, say. Earlier checkpoints are untouched and no torn one is visible.
    """
    target, temporary = directory / step_name(step), directory / f".{step_name(step)}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        policy = {name.removeprefix("model."): w for name, w in weights.items() if name.startswith("model.")}
        network.model.save_pretrained(temporary, state_dict=policy)
        processor.save_pretrained(temporary)
        critic = {k: v.contiguous().cpu() for k, v in weights.items() if k.startswith("value_")}
        if critic:
            save_file(critic, temporary / "critic.safetensors")
        torch.save(optimizer, temporary / "optimizer.pt")
        (temporary / "trainer.json").write_text(json.dumps({"step": step, **facts}, indent=2))
        for path in temporary.iterdir():
            with open(path, "rb") as handle:
                os.fsync(handle.fileno())
        shutil.rmtree(target, ignore_errors=True)
        os.replace(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for old in listed(directory)[:-keep] if keep > 0 else []:
        shutil.rmtree(old, ignore_errors=True)
    return target


def listed(directory: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(path for path in directory.glob("step-*") if (path / "trainer.json").exists())


def latest(directory: Path) -> Path:
    """The newest checkpoint.

    Raises:
        FileNotFoundError: there is none.
    """
    found = listed(directory)
    if not found:
        raise FileNotFoundError(f"there is no checkpoint in {directory} to resume from; start the run without --resume")
    return found[-1]


def read_step(path: Path) -> int:
    """The step after which the checkpoint was written."""
    return json.loads((path / "trainer.json").read_text())["step"]


def load_critic(path: Path, network: nn.Module) -> None:
    """Put a checkpoint's critic in place, where it has one; the model was already loaded from `path`.

    Raises:
        ValueError: it was saved with another kind of critic.
    """
    critic_file = path / "critic.safetensors"
    if critic_file.exists():
        missing = network.load_state_dict(load_file(critic_file), strict=False).missing_keys
        torn = [name for name in missing if name.startswith("value_")]
        if torn:
            raise ValueError(f"{critic_file} lacks {torn[0]}: it was saved with another kind of critic")


def load_optimizer(path: Path, optimizer: torch.optim.Optimizer) -> int:
    """Put a checkpoint's optimizer state in place. Returns the step after which it was written."""
    load_optimizer_state(optimizer, torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True))
    return read_step(path)
