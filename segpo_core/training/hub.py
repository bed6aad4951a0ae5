"""Checkpoints on the Hugging Face hub, and the card that says what one is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi

#: What only --resume needs, and what belongs to this machine.
KEPT_HERE = ["optimizer*", "trainer.json"]


def begin(name: str, private: bool | None) -> str:
    """Make the repository, if it is not there, and return its whole name: whether a run may push is known at its start.

    Raises:
        ValueError: not possible (no network, no token, a name that is not one); says why.
    """
    try:
        return HfApi().create_repo(name, private=private, exist_ok=True).repo_id
    except Exception as error:  # the hub's, its client's and the network's errors have no common class
        raise ValueError(
            f"push_to_hub: the hub gives no repository {name!r} ({_said(error)}); log in (hf auth login), set "
            "hub_model_id, or leave push_to_hub out and upload a checkpoint later: hf upload NAME FOLDER"
        ) from error


def push(folder: Path, name: str) -> str:
    """Upload a checkpoint, without what only `--resume` needs. Returns its address.

    Raises:
        OSError: it did not get there; says why, and how to try again.
    """
    try:
        message = f"{folder.name} of {folder.parent.parent.name}"
        done = HfApi().upload_folder(
            repo_id=name, folder_path=folder, commit_message=message, ignore_patterns=KEPT_HERE
        )
    except Exception as error:
        raise OSError(
            f"{folder} is not on the hub ({_said(error)}); upload it later: hf upload {name} {folder} --exclude "
            "'optimizer*' trainer.json"
        ) from error
    return str(done.commit_url).partition("/commit/")[0]


def _said(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]


def model_card(settings: Mapping[str, Any], title: str, step: int, measured: Mapping[str, float], sees: bool) -> str:
    """README.md of a checkpoint.

    Args:
        settings: as run.json holds them.
        title: the method's.
        step: after which it was written.
        measured: the last evaluation's numbers, by name.
        sees: a vision-language model.
    """
    base, peft = str(settings["model_name_or_path"]), bool(settings.get("use_peft"))
    head = {
        "library_name": "peft" if peft else "transformers",
        "pipeline_tag": "image-text-to-text" if sees else "text-generation",
        "tags": ["segpo", "reinforcement-learning", str(settings["method"])],
    }
    # Only a name of the hub is a link there; a folder of this machine is none of its business.
    if named := base.count("/") == 1 and not Path(base).exists():
        head["base_model"] = base
    shown = (
        "method", "dataset", "num_generations", "max_completion_length", "temperature", "learning_rate", "beta", "seed",
        "use_peft", "dtype",
    )  # fmt: skip
    rows = [f"| {name} | `{_short(settings[name])}` |" for name in shown if settings.get(name) not in (None, "", [])]
    numbers = [f"| {name.removeprefix('eval/')} | {value:.3f} |" for name, value in sorted(measured.items())]
    auto = "AutoModelForImageTextToText" if sees else "AutoModelForCausalLM"
    use = (
        "    from peft import PeftModel\n\n    model = PeftModel.from_pretrained(base_model, path)  # see below\n"
        if peft
        else f"    from transformers import {auto}\n\n    model = {auto}.from_pretrained(path)\n"
    )
    origin = _short(base) if named else _short(Path(base).name)
    lines = [
        "---", yaml.safe_dump(head, sort_keys=False).strip(), "---", "",
        f"# {_short(Path(str(settings['output_dir'])).name)}, step {step}", "",
        f"Trained from {origin} with {title}, by SegPO: reinforcement learning that gives each segment of a completion "
        "credit of its own.", "",
        "| setting | |", "|---|---|", *rows, "",
    ]  # fmt: skip
    if numbers:
        lines += ["On held-out problems:", "", "| | |", "|---|---|", *numbers, ""]
    return "\n".join([*lines, "## Use", "", use])


def _short(value: Any) -> str:
    """A setting in a cell of a table; of a path its name alone."""
    text = str(value)
    text = Path(text).name if Path(text).is_absolute() else text
    return text.replace("|", "/").replace("`", "'").replace("\n", " ")[:80]
