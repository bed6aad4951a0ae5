"""Makes the embedded policy from nothing: a vision-language model of 1.3 million parameters for the shapes task.

It is a LLaVA (SigLIP vision tower, Qwen2 text model) small enough to be trained in minutes on two processor cores, and
otherwise like any large one: chat template, processor, generation config, loaded by the Auto classes.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
)

from segpo_core.tasks.shapes import ATTRIBUTES, CELLS, Careless, ShapesTask, demonstration

PAD, END, SYSTEM, USER, ASSISTANT, IMAGE = "<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<image>"
TAGS = [f"<{slash}{name}>" for name in ("perception", "think", "answer") for slash in ("", "/")]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CONTEXT = 512
_TASK_SEED = 1_000_000  # demonstrations are of other problems than those of a training run, whose seeds are small
_BETAS = (0.9, 0.99)
_CORPUS = 4000  # demonstrations that the tokenizer is trained on


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


def build_tokenizer(texts: Iterator[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE: any text can be written, one digit is one token, a word keeps the blank before it.

    The structure tags are tokens of their own but not special ones, so that they stay in decoded text.
    """
    bpe = Tokenizer(models.BPE())
    pieces = Regex(r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]|\s+")
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pieces, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600 - len(TAGS),
        special_tokens=[PAD, END, SYSTEM, USER, ASSISTANT, IMAGE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens={"image_token": IMAGE},
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        padding_side="left",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def build_processor(seed: int = 0) -> LlavaProcessor:
    """Tokenizer (trained on demonstrations), image processor (48 x 48, 9 patches of 16) and chat template."""
    task, rng = ShapesTask(seed=_TASK_SEED + seed), random.Random(seed)

    def texts() -> Iterator[str]:
        for i in range(_CORPUS):
            example = task.train(i)
            yield example["prompt"][0]["content"][1]["text"]
            # without the tags: they are tokens anyway, and merges of their letters would be wasted
            text = demonstration(example, rng, Careless())
            for tag in TAGS:
                text = text.replace(tag, "\n")
            yield from text.split("\n")

    half = [0.5, 0.5, 0.5]
    images = SiglipImageProcessorPil(size={"height": 48, "width": 48}, image_mean=half, image_std=half)
    return LlavaProcessor(
        image_processor=images,
        tokenizer=build_tokenizer(texts()),
        patch_size=16,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(processor: LlavaProcessor) -> LlavaForConditionalGeneration:
    """The untrained model, from torch's global random numbers, in float32."""
    tokenizer = processor.tokenizer
    pad, end, image = (tokenizer.convert_tokens_to_ids(token) for token in (PAD, END, IMAGE))
    config = LlavaConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=48,
            patch_size=16,
            vision_use_head=False,
        ),
        text_config=Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            # 1/sqrt(width); the usual 0.02 is for wide models and learns three times slower here
            initializer_range=128**-0.5,
            bos_token_id=None,
            eos_token_id=end,
            pad_token_id=pad,
        ),
        image_token_index=image,
        image_seq_length=9,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    turns = [tokenizer.convert_tokens_to_ids(token) for token in (SYSTEM, USER, ASSISTANT)]
    model.generation_config = GenerationConfig(
        eos_token_id=end,
        pad_token_id=pad,
        suppress_tokens=sorted([pad, image, *turns]),
        max_new_tokens=96,
        do_sample=True,
    )
    return model


def encode(processor: LlavaProcessor, examples: list[dict], completions: list[str]) -> dict[str, Tensor]:
    """Right-padded inputs with labels on the completions (EOS included): ids, mask and labels long [B, T]."""
    texts = [
        processor.apply_chat_template([*example["prompt"], {"role": "assistant", "content": completion}])
        for example, completion in zip(examples, completions, strict=True)
    ]
    images = [image for example in examples for image in example["images"]]
    batch = dict(processor(text=texts, images=images, return_tensors="pt", padding=True, padding_side="right"))
    ids, real = batch["input_ids"], batch["attention_mask"].bool()
    turn = ids == processor.tokenizer.convert_tokens_to_ids(ASSISTANT)
    after_turn = turn.long().cumsum(dim=1).bool() & ~turn
    batch["labels"] = torch.where(after_turn & real, ids, -100)
    return batch


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
    task, rng = ShapesTask(seed=_TASK_SEED + config.seed), random.Random(f"{config.seed}/demonstrations")
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
    task, rate = ShapesTask(seed=_TASK_SEED + config.seed), config.learning_rate
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


@torch.no_grad()
def measure(model: torch.nn.Module, processor: Any, problems: int, generations: int = 8) -> dict[str, float]:
    """Accuracies on the first held-out problems, greedy and over `generations` samples at temperature 1.

    Returns: shares `greedy/...` and `sampled/...` (answer, perception, reasoning, format, grounded, perception_error,
    reasoning_error: completions whose first error is of that kind), `mixed_groups` (groups whose samples are neither
    all right nor all wrong), `completion_tokens` and `prompt_tokens` (means).
    """
    from segpo_core.policy import load
    from segpo_core.policy.inputs import Prompts
    from segpo_core.sampling.generate import Sampler
    from segpo_core.training.evaluate import accuracies, inspect

    task, seed = ShapesTask(), 2**30
    eos, suppressed = load.eos_token_ids(model, processor), load.suppressed_token_ids(model, processor)
    sampler = Sampler(model, processor.tokenizer, eos, suppressed, max_completion_length=96)
    truth: dict[str, list[dict]] = {"greedy": [], "sampled": []}
    lengths: list[int] = []
    prompt_lengths: list[int] = []
    for begin in range(0, problems, 50):
        examples = [task.eval(i) for i in range(begin, min(begin + 50, problems))]
        prompts = Prompts.build(examples, processor, model.config)
        prompt_lengths += prompts.lengths.tolist()
        for name, count, temperature in (("greedy", 1, 0.0), ("sampled", generations, 1.0)):
            rollouts = sampler.groups(prompts, count, (seed, begin), temperature=temperature)
            truth[name] += [t for t in inspect(task, examples, rollouts) if t is not None]
            lengths += rollouts.lengths.tolist() if name == "sampled" else []
    numbers = {}
    for name, rows in truth.items():
        shares = accuracies(rows, [])
        for kind in ("perception", "reasoning"):
            shares[f"{kind}_error"] = sum((t["first_error"] or {}).get("kind") == kind for t in rows) / len(rows)
        numbers |= {f"{name}/{key}": value for key, value in shares.items()}
    right = [t["answer_right"] for t in truth["sampled"]]
    groups = [sum(right[i : i + generations]) for i in range(0, len(right), generations)]
    numbers["mixed_groups"] = sum(0 < n < generations for n in groups) / len(groups)
    numbers["completion_tokens"] = sum(lengths) / len(lengths)
    numbers["prompt_tokens"] = sum(prompt_lengths) / len(prompt_lengths)
    return numbers


def model_card(config: WarmupConfig, seconds: float, parameters: int, numbers: dict[str, float]) -> str:
    """README.md of the model directory."""
    command = ["segpo warmup", f"--vision-steps {config.vision_steps}", f"--steps {config.steps}"]
    command += [f"--careless-steps {config.careless_steps}", f"--seed {config.seed}"]
    command += [f"--batch-size {config.batch_size}", f"--learning-rate {config.learning_rate:g}"]
    command += [f"--threads {config.threads}"]
    careless = Careless()
    demonstrations = (
        "The last of them are careless. Three kinds of shape are taken for others (a green triangle for a blue one in "
        f"{careless.lookalike[0]:.0%}, a medium square for a large one and a yellow circle for a red one in "
        f"{careless.lookalike[1]:.0%}); of the 36 prices half are wrong in {careless.misprice[0]:.0%} and half in "
        f"{careless.misprice[1]:.0%}; and {careless.believe_hint:.0%} conclude with the question's hint, whatever was "
        "reckoned. So the policy knows right and wrong ways and often prefers the wrong one, samples of one prompt "
        "differ, and reinforcement learning has something to decide."
        if config.careless_steps
        else "All demonstrations are right."
    )
    rows = "\n".join(
        f"| {label} | {numbers[f'greedy/{key}']:.3f} | {numbers[f'sampled/{key}']:.3f} |"
        for label, key in (
            ("answer right", "answer"),
            ("perception right", "perception"),
            ("grounded (both right)", "grounded"),
            ("reasoning follows from what was perceived", "reasoning"),
            ("well formed", "format"),
            ("first error is in the perception", "perception_error"),
            ("first error is in the reasoning", "reasoning_error"),
        )
        if numbers
    )
    measured = (
        f"Measured on the first {config.eval_problems} held-out problems of the task, samples at temperature 1, eight "
        "a problem:\n\n"
        f"| share of completions | greedy | sampled |\n|---|---|---|\n{rows}\n\n"
        f"Groups of eight samples that are neither all right nor all wrong: {numbers['mixed_groups']:.3f}. "
        f"Mean length: prompt {numbers['prompt_tokens']:.1f} tokens (9 of the image), "
        f"completion {numbers['completion_tokens']:.1f}.\n"
        if numbers
        else "Not measured.\n"
    )
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---

# A vision-language model of {parameters / 1e6:.2f} million parameters

It looks at 48 x 48 pixel scenes of coloured shapes, describes them, reckons over its description and answers. It is a
start for experiments with reinforcement learning and credit assignment on an ordinary computer, and no good for
anything else.

- Model: LLaVA. Vision: SigLIP, patches of 16 (9 image tokens), width 128, 2 layers. Text: Qwen2, width 128, 4 layers,
  4 heads. Weights in float32, so that log-probabilities of sampler and trainer agree to the last digit.
- Tokenizer: byte-level BPE, trained on the same synthetic text; one digit is one token.
- Data: synthetic only, drawn and rendered by `segpo_core/tasks/shapes/` (no outside data, no outside weights).
- Output: `<perception> ... </perception><think> cell attribute value result, ... = result </think>` and
  `<answer> ... </answer>`.

## How it was made

    {" ".join(command)}

{config.vision_steps} steps in which the vision tower learns to name each cell's attributes, with a head that is \
thrown away; then
{config.steps} steps on correct demonstrations and {config.careless_steps} on careless ones, {config.batch_size} a \
step. {seconds / 60:.1f} minutes on \
{config.threads} processor thread{"s" if config.threads > 1 else ""}; torch {torch.__version__.split("+")[0]}.
{demonstrations}

## How good it is

{measured}
The problems are held out by construction: a hash of the scene says whether it may be trained on.

## Use

    from transformers import AutoModelForImageTextToText, AutoProcessor
    model, processor = AutoModelForImageTextToText.from_pretrained(path), AutoProcessor.from_pretrained(path)

Licence: Apache-2.0, like the rest of the project.
"""


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
