"""How good the embedded policy is, and the README of its directory that says so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from segpo_core.tasks.shapes import Careless, ShapesTask

if TYPE_CHECKING:
    from segpo_core.training.warmup import WarmupConfig


@torch.no_grad()
def measure(model: torch.nn.Module, processor: Any, problems: int, generations: int = 8) -> dict[str, float]:
    """Accuracies on the first held-out problems, greedy and over `generations` samples at temperature 1.

    Returns: shares `greedy/...` and `sampled/...` (answer, perception, reasoning, format, grounded, perception_error,
    reasoning_error: completions whose first error is of that kind), `mixed_groups` (groups whose samples are neither
    all right nor all wrong), `completion_tokens` and `prompt_tokens` (means).
    """
    from segpo_core.policy import load
    from segpo_core.policy.inputs import Prompts
    from segpo_core.sampling.generate import InProcess
    from segpo_core.training.evaluate import accuracies, inspect

    task, seed = ShapesTask(), 2**30
    eos, suppressed = load.eos_token_ids(model, processor), load.suppressed_token_ids(model, processor)
    sampler = InProcess(model, processor.tokenizer, eos, suppressed, max_completion_length=96)
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
