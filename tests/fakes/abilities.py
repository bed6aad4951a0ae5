"""What a model can do here, tried: with one step of training for each ability. docs/models.md is made from it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from segpo_core.algos import GRPO, Method, SPOChain, SPOTree
from segpo_core.config import TrainConfig
from segpo_core.policy.load import is_vision_config, load_config
from segpo_core.training.loop import Trainer
from tests.fakes.toy import ToyTask, lucky_text

#: Column -> the method that shows it, how many images each prompt has, further settings.
TRIED: dict[str, tuple[Method, int, dict[str, Any]]] = {
    "train": (GRPO(), 0, {}),
    "chain": (SPOChain(threshold=2.0, interval=2, num_continuations=2), 0, {}),
    "tree": (SPOTree(branch=(2, 2), segment_tokens=2), 0, {}),
    "LoRA": (GRPO(), 0, {"use_peft": True, "lora_r": 2}),
    "one image": (GRPO(), 1, {}),
    "two images": (GRPO(), 2, {}),
    "mixed": (GRPO(), -1, {}),
}


def problems(images: int) -> list[dict]:
    """Three prompts of different lengths, with so many images each; -1: with one, none and two."""
    task = ToyTask()
    numbers = {0: (2, 5, 8), 1: (0, 1, 3), 2: (4, 9, 19), -1: (0, 2, 4)}[images]
    return [task.train(i) for i in numbers]


def abilities(path: Path) -> dict[str, str]:
    """Column -> "yes", or what was said when it was refused. Under "all": the model as a whole was refused.

    Each "yes" is a step that was made: log-probabilities as sampled and as scored agree within 1e-3, weights moved.

    Raises:
        Exception: anything else than words.
    """
    found: dict[str, str] = {}
    sees = is_vision_config(load_config(path))
    for name, (algo, images, more) in TRIED.items():
        if images and not sees:
            continue
        try:
            _step(path, algo, images, more)
        except ValueError as error:
            if name == "train":
                return {"all": str(error)}
            found[name] = str(error)
        else:
            found[name] = "yes"
    return found


def _step(path: Path, algo: Method, images: int, more: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as out:
        config = TrainConfig(
            method=algo.name, algo=algo, model_name_or_path=str(path), output_dir=f"{out}/run", num_generations=4,
            per_device_train_batch_size=12, max_completion_length=6, max_steps=1, learning_rate=1e-2, eval_steps=0,
            record_steps=0, num_iterations=2, cpu=True, **more,
        )  # fmt: skip
        trainer = Trainer(config, dataset=problems(images), reward_funcs=[lucky_text])
        before = {n: p.detach().clone() for n, p in trainer.network.named_parameters() if p.requires_grad}
        trainer.step = 1
        metrics = trainer.train_step()
        trainer.hold.release()
        after = dict(trainer.network.named_parameters())
        # Two updates a step: the first of them scores what was sampled by itself.
        assert metrics["sampling_logp_difference"] < 1e-3, metrics["sampling_logp_difference"]
        assert metrics["grad_norm"] > 0 and metrics["skipped_updates"] == 0
        assert any(not torch.equal(after[n], value) for n, value in before.items())
