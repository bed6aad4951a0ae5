"""Evaluation on a fixed held-out set: the answer, what the model saw, and both together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from segpo_core.policy.inputs import Prompts, TooLong
from segpo_core.record.rows import rollout_rows
from segpo_core.record.store import CREDIT_SCHEMA, images_of
from segpo_core.sampling.sampler import Sampler
from segpo_core.segments import sequence_level
from segpo_core.tasks.rewards import Text, outside_training, run_rewards, wants
from segpo_core.types import Credit, Rollouts

#: Name of the random streams of evaluation; training's are named by a seed and a step.
EVAL_STREAM = 2**31
BATCH = 128
#: The weighted sums, and each function's values by its name; None is no verdict.
Rewards = tuple[list[float | None], dict[str, list[float | None]]]


def inspect(task: Any, examples: list[dict], rollouts: Rollouts) -> list[dict | None]:
    """The task's ground truth about every completion."""
    groups = rollouts.group.tolist()
    return [task.inspect(examples[g], text) for g, text in zip(groups, rollouts.texts, strict=True)]


def reward(
    functions: list,
    weights: list[float] | None,
    examples: list[dict],
    rollouts: Rollouts,
    given: Mapping[str, Any] | None = None,
) -> Rewards:
    """Run reward functions over rollouts, with TRL's signature: (total [B], parts by name); None is no verdict.

    `given`: what goes to every function beside the columns, as `rewards.outside_training`, which fills in the rest.
    """
    ids = [row[:n] for row, n in zip(rollouts.completion_ids.tolist(), rollouts.lengths.tolist(), strict=True)]
    return reward_texts(functions, weights, examples, rollouts.group.tolist(), rollouts.texts, ids, given=given)


def reward_texts(
    functions: list,
    weights: list[float] | None,
    examples: list[dict],
    groups: list[int],
    texts: list[str],
    ids: list[list[int]] | None = None,
    tokenizer: Any = None,
    given: Mapping[str, Any] | None = None,
) -> Rewards:
    """The same for texts as answers to `examples[groups[i]]`.

    A prompt that was a text in the data set is one for the functions, and its completions are texts; otherwise both are
    messages. `ids` are the completions' tokens; without them `tokenizer` cuts the texts, if a function asks for them.
    """
    names = {name for example in examples for name in example} - {"prompt", "prompt_text"}
    columns = {name: [examples[g].get(name) for g in groups] for name in sorted(names)}
    if ids is None and tokenizer is not None and any(wants(func, "completion_ids") for func in functions):
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    if ids is not None:
        columns["completion_ids"] = ids
    prompts = [examples[g].get("prompt_text", examples[g]["prompt"]) for g in groups]
    completions: list[Any] = [
        Text(text) if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    return run_rewards(functions, weights, prompts, completions, columns, {**outside_training(), **(given or {})})


class Kept:
    """The first `size` held-out completions as rows of the run directory, and their images by digest. Nothing was
    learnt from them: they have no credit and no segments."""

    def __init__(self, size: int, step: int, method: str):
        self.size, self.step, self.method = size, step, method
        self.rows: list[dict[str, Any]] = []
        self.images: dict[str, Any] = {}

    def __call__(self, examples: list[dict], rollouts: Rollouts, first: int) -> None:
        """Take in completions of P problems, with rewards and truth; `first` is the first one's number."""
        if first >= self.size:
            return
        rollouts = rollouts.select(torch.arange(min(len(rollouts), self.size - first)))
        digests, images = images_of(examples)
        self.images |= images
        nothing = Credit(
            advantages=torch.where(rollouts.mask, torch.nan, 0.0),
            segment_ids=sequence_level(rollouts.mask),
            loss_mask=torch.zeros_like(rollouts.mask),
            rule="",
        )
        ids = {"step": self.step, "method": self.method, "first_group": first}
        found = rollout_rows(rollouts, nothing, examples, digests, **ids)
        self.rows += [row | dict.fromkeys(CREDIT_SCHEMA.names[4:]) for row in found]


def accuracies(truth: list[dict | None], rewards: list[float | None]) -> dict[str, float]:
    """Shares of completions: `answer`, and where the task knows, `perception`, `reasoning`, `grounded`, `format`.

    Where the task knows nothing about its texts, `answer` is the share of completions with a reward of at least 1,
    among those that have one.
    """
    known = [t for t in truth if t is not None]
    if not known:
        judged = [r for r in rewards if r is not None]
        return {"answer": sum(r >= 1 for r in judged) / len(judged)} if judged else {}
    share = {
        name: sum(bool(t[key]) for t in known) / len(known)
        for name, key in (
            ("answer", "answer_right"),
            ("perception", "perception_right"),
            ("reasoning", "reasoning_right"),
            ("format", "format_right"),
        )
        if all(t.get(key) is not None for t in known)  # a task without pictures says nothing of perception
    }
    if "perception" in share and "answer" in share:
        share["grounded"] = sum(t["answer_right"] and t["perception_right"] for t in known) / len(known)
    return share


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k samples is right, from `right` of `samples` (Chen et al., 2021)."""
    if samples - right < k:
        return 1.0
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def evaluate(
    sampler: Sampler,
    task: Any,
    processor: Any,
    functions: list,
    weights: list[float] | None,
    size: int,
    samples: int = 0,
    shard: tuple[int, int] = (0, 1),
    max_prompt_length: int | None = None,
    everyone: Callable[[list], list] = list,
    filter_overlong_prompts: bool = True,
    keep: Kept | None = None,
    agreed: Callable[[Callable[[], int]], int] = lambda work: work(),
) -> dict[str, float]:
    """Measure the policy on the first `size` held-out problems.

    Args:
        samples: sampled completions a problem, besides the greedy one.
        shard: (i, n): only the i-th of n stretches of the problems.
        everyone: gathers a list's items from all shards; the result is then that of all problems, in each process.
        filter_overlong_prompts: leave out problems that do not fit, and count them as `eval/left_out`.
        keep: takes the first greedy completions.
        agreed: does the work of one shard, and tells the others if it fails.

    Returns:
        `eval/problems`, how many these are shares of: `eval/answer`, `eval/perception`, `eval/grounded`, … of greedy
        completions; with samples, `eval/mean@k` and `eval/pass@k` and the shares over samples as `eval_sampled/…`;
        `eval/completion_length`.
    """
    limit = size if task.eval_size is None else min(size, task.eval_size)
    numbers = list(range(limit * shard[0] // shard[1], limit * (shard[0] + 1) // shard[1]))
    greedy: list[tuple[dict | None, float | None, int]] = []
    sampled: list[list[tuple[dict | None, float | None, int]]] = []

    def measure() -> int:
        """Fill both lists; returns the number of problems that did not fit."""
        left_out = 0
        for begin in range(0, len(numbers), BATCH):
            part = numbers[begin : begin + BATCH]
            examples, built = [], []
            for example in map(task.eval, part):
                try:
                    limits = max_prompt_length, sampler.max_completion_length
                    built.append(Prompts.build([example], processor, sampler.config, *limits))
                except TooLong:
                    if not filter_overlong_prompts:
                        raise
                    left_out += 1
                    continue
                examples.append(example)
            if not examples:
                continue
            prompts = Prompts.joined(built)

            def measured(count: int, temperature: float | None, examples=examples, prompts=prompts, part=part) -> list:
                rollouts = sampler.groups(prompts, count, (EVAL_STREAM, 0), part[0], temperature)
                truth = inspect(task, examples, rollouts)
                rewards, parts = reward(functions, weights, examples, rollouts)
                if keep is not None and temperature == 0:
                    rollouts.truth, rollouts.reward_parts = truth, parts
                    rollouts.rewards = torch.tensor([math.nan if r is None else r for r in rewards])
                    keep(examples, rollouts, part[0])
                return list(zip(truth, rewards, rollouts.lengths.tolist(), strict=True))

            greedy.extend(measured(1, 0))
            if samples:
                flat = measured(samples, None)
                sampled.extend(flat[i : i + samples] for i in range(0, len(flat), samples))
        return left_out

    left_out = agreed(measure)
    greedy, sampled, left = everyone(greedy), everyone(sampled), sum(everyone([left_out]))
    if not greedy:
        return {"eval/left_out": float(left)} if left else {}
    result = {f"eval/{k}": v for k, v in accuracies([g[0] for g in greedy], [g[1] for g in greedy]).items()}
    judged = [g[1] for g in greedy if g[1] is not None]
    result |= {"eval/reward": sum(judged) / len(judged)} if judged else {}
    result |= {"eval/left_out": float(left)} if left else {}
    result["eval/problems"] = float(len(greedy))
    result["eval/completion_length"] = sum(g[2] for g in greedy) / len(greedy)
    if sampled:
        flat = [s for row in sampled for s in row]
        result |= {f"eval_sampled/{k}": v for k, v in accuracies([s[0] for s in flat], [s[1] for s in flat]).items()}
        right = [sum(bool(t["answer_right"]) if t else (r or 0) >= 1 for t, r, _ in row) for row in sampled]
        result[f"eval/mean@{samples}"] = sum(right) / (samples * len(right))
        result[f"eval/pass@{samples}"] = sum(pass_at_k(samples, n, samples) for n in right) / len(right)
    return result
