"""Evaluation on a fixed held-out set: the answer, what the model saw, and both together."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from segpo_core.policy.inputs import Prompts
from segpo_core.sampling.generate import Sampler
from segpo_core.tasks.rewards import run_rewards
from segpo_core.types import Rollouts

#: Name of the random streams of evaluation; training's are named by a seed and a step.
EVAL_STREAM = 2**31
BATCH = 128


def inspect(task: Any, examples: list[dict], rollouts: Rollouts) -> list[dict | None]:
    """The task's ground truth about every completion."""
    groups = rollouts.group.tolist()
    return [task.inspect(examples[g], text) for g, text in zip(groups, rollouts.texts, strict=True)]


def reward(task: Any, functions: list, weights: list[float] | None, examples: list[dict], rollouts: Rollouts):
    """Run reward functions over rollouts, with TRL's signature: (total [B], parts by name)."""
    return reward_texts(functions, weights, examples, rollouts.group.tolist(), rollouts.texts)


def reward_texts(
    functions: list, weights: list[float] | None, examples: list[dict], groups: list[int], texts: list[str]
):
    """The same for texts as answers to `examples[groups[i]]`."""
    names = {name for example in examples for name in example} - {"prompt"}
    columns = {name: [examples[g].get(name) for g in groups] for name in sorted(names)}
    prompts = [examples[g]["prompt"] for g in groups]
    completions: list[Any] = [
        text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    total, parts = run_rewards(functions, weights, prompts, completions, columns)
    if None in total:
        i = total.index(None)
        raise ValueError(
            f"completion {i} (example {examples[groups[i]].get('id', groups[i])!r}) has no reward: every "
            "reward function returned None for it; add one that applies to every row"
        )
    return total, parts


def accuracies(truth: list[dict | None], rewards: list[float]) -> dict[str, float]:
    """Shares of completions: `answer`, and where the task knows, `perception`, `reasoning`, `grounded`, `format`.

    Where the task knows nothing about its texts, `answer` is the share of completions with a reward of at least 1.
    """
    known = [t for t in truth if t is not None]
    if not known:
        return {"answer": sum(r >= 1 for r in rewards) / len(rewards)}
    share = {
        name: sum(bool(t[key]) for t in known) / len(known)
        for name, key in (
            ("answer", "answer_right"),
            ("perception", "perception_right"),
            ("reasoning", "reasoning_right"),
            ("format", "format_right"),
        )
    }
    return share | {"grounded": sum(t["answer_right"] and t["perception_right"] for t in known) / len(known)}


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
) -> dict[str, float]:
    """Measure the policy on the first `size` held-out problems.

    Args:
        samples: sampled completions a problem, besides the greedy one.
        shard: (i, n): only the i-th of n stretches of the problems.
        everyone: gathers a list's items from all shards; the result is then that of all problems, in each process.

    Returns:
        `eval/answer`, `eval/perception`, `eval/grounded`, … of greedy completions; with samples, `eval/mean@k` and
        `eval/pass@k` and the shares over samples as `eval_sampled/…`; `eval/completion_length`.
    """
    limit = size if task.eval_size is None else min(size, task.eval_size)
    numbers = list(range(limit * shard[0] // shard[1], limit * (shard[0] + 1) // shard[1]))
    greedy: list[tuple[dict | None, float, int]] = []
    sampled: list[list[tuple[dict | None, float, int]]] = []
    for begin in range(0, len(numbers), BATCH):
        part = numbers[begin : begin + BATCH]
        examples = [task.eval(i) for i in part]
        prompts = Prompts.build(examples, processor, sampler.model.config, max_prompt_length)

        def measured(count: int, temperature: float | None, examples=examples, prompts=prompts, part=part) -> list:
            rollouts = sampler.groups(prompts, count, (EVAL_STREAM, 0), part[0], temperature)
            truth = inspect(task, examples, rollouts)
            rewards, _ = reward(task, functions, weights, examples, rollouts)
            return list(zip(truth, rewards, rollouts.lengths.tolist(), strict=True))

        greedy += measured(1, 0)
        if samples:
            flat = measured(samples, None)
            sampled += [flat[i : i + samples] for i in range(0, len(flat), samples)]
    greedy, sampled = everyone(greedy), everyone(sampled)
    if not greedy:
        return {}
    result = {f"eval/{k}": v for k, v in accuracies([g[0] for g in greedy], [g[1] for g in greedy]).items()}
    result["eval/reward"] = sum(g[1] for g in greedy) / len(greedy)
    result["eval/completion_length"] = sum(g[2] for g in greedy) / len(greedy)
    if sampled:
        flat = [s for row in sampled for s in row]
        result |= {f"eval_sampled/{k}": v for k, v in accuracies([s[0] for s in flat], [s[1] for s in flat]).items()}
        right = [sum(bool(t["answer_right"]) if t else r >= 1 for t, r, _ in row) for row in sampled]
        result[f"eval/mean@{samples}"] = sum(right) / (samples * len(right))
        result[f"eval/pass@{samples}"] = sum(pass_at_k(samples, n, samples) for n in right) / len(right)
    return result
