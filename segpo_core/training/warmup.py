"""Makes the embedded policy from nothing: three stages of supervised training on the shapes task, in minutes."""

from __future__ import annotations

import os
import random
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from segpo_core.tasks.shapes import ATTRIBUTES, CELLS, Careless, ShapesTask, demonstration
from segpo_core.training.model_card import measure, model_card
from segpo_core.training.tiny_policy import TASK_SEED, build_model, build_processor, encode

_BETAS = (0.9, 0.99)


@dataclass(frozen=True)
class WarmupConfig:
    """How the embedded policy is made. The same settings give the same weights on the same machine."""

    out_dir: str = "runs/tiny-vlm"
    """Directory to write; a model that is there is replaced."""
    vision_steps: int = 250
    """Steps of the first stage, in which the vision tower learns to name what is in each cell."""
    steps: int = 1100
    """Steps of the second stage, in which the whole model learns from correct demonstrations."""
    careless_steps: int = 700
    """Steps of the third stage, on demonstrations with mistakes in seeing and in reckoning; 0: a clean start, for which
    fewer steps leave more to learn."""
    seed: int = 0
    """Decides weights at the start, problems and mistakes."""
    batch_size: int = 32
    """Demonstrations a step."""
    learning_rate: float = 2e-3
    """Peak learning rate of AdamW; it rises over 50 steps and falls in the last third."""
    threads: int = 2
    """Processor threads; another number gives other weights."""
    eval_problems: int = 400
    """Held-out problems to measure on afterwards, for the model card; 0 measures nothing."""
    progress: bool = True
    """Show a progress bar."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if min(self.vision_steps, self.careless_steps) < 0 or self.learning_rate <= 0:
            raise ValueError("vision_steps and careless_steps must not be negative, learning_rate must be positive")


def warmup(config: WarmupConfig | None = None) -> Path:
    """Build, train and save the policy; returns its directory, written whole or not at all.

    Raises: ValueError when `out_dir` is something else than a model or an empty directory.
    """
    config = config or WarmupConfig()
    out = Path(config.out_dir)
    if out.exists() and not (out.is_dir() and ((out / "config.json").exists() or not any(out.iterdir()))):
        raise ValueError(f"{out} exists and is not a model directory; choose another --out-dir")
    before = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            processor = build_processor(config.seed)
            model = build_model(processor)
            seconds = _train(model, processor, config)
        numbers = measure(model, processor, config.eval_problems) if config.eval_problems else {}
    finally:
        torch.set_num_threads(before)
    _save(out, model, processor, model_card(config, seconds, model.num_parameters(), numbers))
    return out


def _train(model: LlavaForConditionalGeneration, processor: LlavaProcessor, config: WarmupConfig) -> float:
    """The three stages of supervised training, in place; returns the seconds they took."""
    start = time.monotonic()
    task, rng = ShapesTask(seed=TASK_SEED + config.seed), random.Random(f"{config.seed}/demonstrations")
    total = config.steps + config.careless_steps
    with _bar(config.progress) as bar:
        _train_vision(model, processor, config, bar)
        line = bar.add_task("demonstrations", total=total, loss="")
        optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, betas=_BETAS, weight_decay=0.01)
        model.train()
        for step in range(total):
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * _schedule(step, step / total)
            careless = Careless() if step >= config.steps else None
            examples = [task.train(i) for i in range(step * config.batch_size, (step + 1) * config.batch_size)]
            batch = encode(processor, examples, [demonstration(example, rng, careless) for example in examples])
            loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if step % 20 == 19 or step + 1 == total:
                bar.update(line, completed=step + 1, loss=f"loss {loss.item():.3f}")
    model.eval()
    return time.monotonic() - start


def _train_vision(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, config: WarmupConfig, bar: Progress
) -> None:
    """Teach tower and projector to tell each cell's attributes, with a head that is thrown away. Through the language
    model alone the shapes come last and take ten times as long."""
    task, rate = ShapesTask(seed=TASK_SEED + config.seed), config.learning_rate
    sizes = [len(values) for values in ATTRIBUTES.values()]
    head = torch.nn.Linear(model.config.text_config.hidden_size, 1 + sum(sizes))
    tower = [*model.model.vision_tower.parameters(), *model.model.multi_modal_projector.parameters()]
    optimizer = torch.optim.AdamW([*tower, *head.parameters()], lr=rate, weight_decay=0.01)
    size, line = 2 * config.batch_size, bar.add_task("vision", total=config.vision_steps, loss="")
    for step in range(config.vision_steps):
        examples = [task.train(i) for i in range(step * size, (step + 1) * size)]
        pixels = processor.image_processor([e["images"][0] for e in examples], return_tensors="pt")["pixel_values"]
        taken = torch.zeros(size, len(CELLS))
        labels = torch.full((size, len(CELLS), len(sizes)), -100)  # nothing to name in an empty cell
        for b, example in enumerate(examples):
            for obj in example["scene"]["objects"]:
                cell = CELLS.index(obj["cell"])
                taken[b, cell] = 1
                labels[b, cell] = torch.tensor([values.index(obj[name]) for name, values in ATTRIBUTES.items()])
        features = torch.stack(list(model.model.get_image_features(pixels, return_dict=True).pooler_output))
        there, *named = head(features.view(size, len(CELLS), -1)).split([1, *sizes], dim=-1)
        loss = F.binary_cross_entropy_with_logits(there[..., 0], taken)
        for a, scores in enumerate(named):
            loss = loss + F.cross_entropy(scores.flatten(0, 1), labels[..., a].flatten(), ignore_index=-100)
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 50)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bar.update(line, completed=step + 1, loss=f"loss {loss.item():.3f}")


def _schedule(step: int, passed: float) -> float:
    """Factor on the learning rate: up over 50 steps, level, then down to a tenth over the last third."""
    return min(1.0, (step + 1) / 50) * (1.0 - 0.9 * max(0.0, 3 * passed - 2))


def _bar(shown: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"))
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=not shown)


def _save(out: Path, model: torch.nn.Module, processor: LlavaProcessor, card: str) -> None:
    """Write everything beside `out`, then put it in place by renaming."""
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = (out.with_name(f".{out.name}.{word}-{os.getpid()}") for word in ("new", "old"))
    try:
        model.save_pretrained(fresh)
        processor.save_pretrained(fresh)
        (fresh / "README.md").write_text(card, encoding="utf-8")
        if out.exists():
            out.rename(old)
        fresh.rename(out)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
