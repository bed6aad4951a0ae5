"""Lines about the update of larger prompts and vocabularies: models of random weights, time and peak memory."""

from __future__ import annotations

import ctypes
import dataclasses
import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from bench_speed import Line
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText

from segpo_core.config import from_dict
from segpo_core.policy.load import load_processor
from segpo_core.tasks.shapes import ShapesTask
from segpo_core.training.loop import Trainer
from segpo_core.training.micro import micro_batches
from speed.one_layer import one_layer
from speed.steps import MODEL


def peak_megabytes(call: Callable[[], object]) -> float:
    """How much more memory than before the process held at once while `call` ran (Linux)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free goes back to the system, not to the next call unseen
    Path("/proc/self/clear_refs").write_text("5")  # forgets the highest mark
    before = _status("VmRSS")
    call()
    return max(0.1, (_status("VmHWM") - before) / 1024)


def _status(name: str) -> float:
    """A number of kB from /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(name + ":")))


class LargeImages(ShapesTask):
    """The problems, with images of `side` x `side` pixels."""

    side = 512

    def train(self, index: int) -> dict:
        example = super().train(index)
        images = [image.resize((self.side, self.side), Image.Resampling.NEAREST) for image in example["images"]]
        return example | {"images": images}


def long_prompts(folder: Path, small: bool) -> Trainer:
    """One prompt of 1,024 image tokens with 8 completions of 64 random tokens, on LLaVA of random weights."""
    side, width = (128, 64) if small else (512, 256)
    config = AutoConfig.from_pretrained(MODEL)
    config.vision_config.image_size = side
    config.image_seq_length = (side // config.vision_config.patch_size) ** 2
    text = config.text_config
    text.hidden_size, text.intermediate_size, text.num_attention_heads, text.num_key_value_heads = (
        width,
        3 * width,
        4,
        2,
    )
    text.max_position_embeddings = 4096
    if getattr(text, "head_dim", None):
        text.head_dim = width // 4
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config)
    model.generation_config = type(model.generation_config).from_pretrained(MODEL)
    path = folder / "long"
    model.save_pretrained(path)
    processor = load_processor(MODEL)
    processor.image_processor.size = {"height": side, "width": side}
    if getattr(processor, "image_seq_length", None):
        processor.image_seq_length = config.image_seq_length
    processor.save_pretrained(path)
    LargeImages.side = side
    settings = {
        "method": "grpo", "model_name_or_path": str(path), "output_dir": str(folder / "long-run"), "cpu": True,
        "num_generations": 8, "per_device_train_batch_size": 8, "max_completion_length": 64, "learning_rate": 1e-7,
        "eval_steps": 0, "save_steps": 0, "record_steps": 0,
    }  # fmt: skip
    run = Trainer(from_dict(settings, "bench_speed"), task=LargeImages())
    run.problems.functions = [lambda prompts, completions, **columns: [float(i % 2) for i in range(len(completions))]]
    return run


def updates(folder: Path, small: bool) -> Iterator[Line]:
    run = long_prompts(folder, small)
    run.step = 1
    run.train_step()
    rollouts, credit = run.last
    assert rollouts is not None and credit is not None
    _, prompts, _ = run.examples()

    def update(packing: bool) -> Callable[[], None]:
        def call() -> None:
            run.learner.config.pack_prompts = packing
            micros = micro_batches(run.network.model, run.config, rollouts, prompts, 1)
            run.learner.update(dataclasses.replace(rollouts), credit, micros, 1)

        return call

    length = int(prompts.lengths[0])
    what = f"update of 8 completions after a prompt of {length} tokens with its image"
    peer = "a row a completion, the image with each"
    yield Line(what, peer, "≥ 2", update(True), update(False), repeats=5)
    ours, theirs = (lambda on=on: peak_megabytes(update(on)) for on in (True, False))
    yield Line(f"peak memory of that {what.partition(' of')[0]}", peer, "≥ 3", ours, theirs, repeats=3, unit="MB")


def lines(folder: Path, small: bool) -> Iterator[Line]:
    """One completion of many tokens under a vocabulary of 150,000."""
    tokens, vocabulary = (64, 20_000) if small else (2048, 150_000)
    network, prompt, ids, mask = one_layer(tokens, vocabulary)

    def backward(loss: Tensor) -> None:
        loss.backward()
        network.zero_grad()

    def ours() -> None:
        backward(network(prompt, ids, mask).logprobs.sum())

    def theirs() -> None:
        logits = network.model(torch.cat([prompt["input_ids"], ids], dim=1)).logits[0, 3:-1].float()
        backward(logits.log_softmax(-1).gather(-1, ids[0, :, None]).sum())

    what = f"peak memory of the update of {tokens:,} tokens, vocabulary {vocabulary:,}"
    yield Line(
        what, "all logits at once, float32", "≥ 8", lambda: peak_megabytes(ours), lambda: peak_megabytes(theirs),
        repeats=3, unit="MB",
    )  # fmt: skip
