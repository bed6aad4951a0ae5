"""Lines about sampling: groups against the model's own `generate`, values of states against prompts sent again."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from bench_speed import Line

from segpo_core.policy.inputs import Prompts
from segpo_core.policy.logprobs import backbone
from segpo_core.sampling import generate, roomy
from segpo_core.sampling.chains import unique_states
from segpo_core.sampling.plain import step_of, whole_step
from segpo_core.training.loop import Trainer
from segpo_core.types import pad_rows
from speed.steps import TEXT, TEXT_PACKAGE, trainer


def generated(run: Trainer, prompts: Prompts, rows: list[int], number: int, limit: int | None = None) -> int:
    """`model.generate` over `number` samples of each of the rows, all at once: how many tokens it gave."""
    model, sampler = run.network.model, run.sampler
    batch = prompts.batch(rows)
    given = model.generate(
        **batch, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
        max_new_tokens=limit or sampler.max_completion_length, num_return_sequences=number,
        eos_token_id=sampler.eos.tolist(), pad_token_id=prompts.pad_token_id,
        suppress_tokens=sampler.head.suppressed.tolist() or None,
    )  # fmt: skip
    new = given[:, batch["input_ids"].shape[1] :]
    ended = torch.isin(new, sampler.eos).cumsum(dim=1)
    return int(((ended == 0) | (ended.diff(dim=1, prepend=torch.zeros_like(ended[:, :1])) == 1)).sum())


def lines(folder: Path, small: bool) -> Iterator[Line]:
    size: dict[str, Any] = {"max_completion_length": 24} if small else {}
    for batch in (8,) if small else (8, 64, 256):
        run = trainer(folder, f"sample{batch}", "grpo", per_device_train_batch_size=batch, **size)
        yield groups(run, f"sampling {batch} completions", "≥ 3", repeats=5 if batch > 64 else 9)
    for batch in (8, 32) if find_spec(TEXT_PACKAGE) and not small else ():
        run = trainer(folder, f"text{batch}", "grpo", **TEXT | {"per_device_train_batch_size": batch})
        yield groups(run, f"sampling {batch} completions, SmolLM2-135M", "≥ 2", repeats=3)
    yield from ways(folder, small)
    yield from chains(folder, small)
    yield from trees(folder, small)


def groups(run: Trainer, what: str, goal: str, repeats: int) -> Line:
    """Groups of 8, ours in a fresh random stream each time."""
    run.step = 1
    _, prompts, _ = run.examples()
    count = iter(range(1_000_000))
    return Line(
        what, "`model.generate`", goal, lambda: run.sampler.groups(prompts, 8, (0, next(count))) and None,
        lambda: generated(run, prompts, list(range(len(prompts))), 8) and None, repeats=repeats,
    )  # fmt: skip


def ways(folder: Path, small: bool) -> Iterator[Line]:
    """What each of the sampler's ways is worth: the same without it."""
    size: dict[str, Any] = {"max_completion_length": 24, "per_device_train_batch_size": 8} if small else {}
    run = trainer(folder, "ways", "grpo", **size)
    run.step = 1
    _, prompts, _ = run.examples()

    def apart(node: np.ndarray, token: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        source, row, place = roomy.branch(node, np.arange(len(node)), len(node))
        return source, token[row], place

    whole = {"step_of": lambda model, cache: partial(whole_step, backbone(model))}
    without: dict[str, dict[str, Any]] = {
        "every row computed, alike or not": {"branch": apart},
        "each step through the model's own modules": whole,
        "that, and keys and values copied at every token": whole | {"with_room": lambda cache: cache},
        "none of the three": whole | {"with_room": lambda cache: cache, "branch": apart},
    }

    def sample(changed: dict[str, Any]) -> None:
        with patch.multiple(generate, **changed):
            run.sampler.groups(prompts, 8, (0, 1))

    rows = len(prompts) * 8
    for peer, changed in without.items():
        call = partial(sample, changed)
        yield Line(f"sampling {rows} completions", peer, "–", partial(sample, {"step_of": step_of}), call, repeats=5)


def chains(folder: Path, small: bool) -> Iterator[Line]:
    """Nine continuations from every boundary of SPO-chain."""
    size: dict[str, Any] = {"max_completion_length": 24, "threshold": 1.1} if small else {}  # every token a cutpoint
    run = trainer(folder, "chain", "spo_chain", per_device_train_batch_size=8 if small else 16, **size)
    run.step, number = 1, run.method.num_continuations
    examples, prompts, first = run.examples()
    rollouts = run.method.collect(run.sampler, prompts, 8, (0, 1), first)
    run.reward(rollouts, examples)
    rows, lengths, _ = unique_states(rollouts, run.method.boundaries(rollouts))

    def no_reward(groups: list[int], texts: list[str]) -> list[float]:
        return [0.0] * len(texts)

    def ours() -> None:
        run.method.estimate(run.sampler, prompts, rollouts, no_reward, (0, 1), first)

    again = []
    for row, length in zip(rows.tolist(), lengths.tolist(), strict=True):
        prompt = prompts.rows[int(rollouts.group[row])]
        ids = torch.cat([prompt["input_ids"], rollouts.completion_ids[row : row + 1, :length]], dim=1)
        again.append(prompt | {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    resent = Prompts(tuple(again), prompts.pad_token_id)

    def theirs() -> None:  # as many rows at once as fit a pass of ours
        for part in torch.arange(len(again)).split(max(1, 256 // number)):
            generated(run, resent, part.tolist(), number)

    what = f"SPO-chain: {number} continuations of {len(again)} states"
    yield Line(what, "prompt and prefix sent again to `model.generate`", "≥ 3", ours, theirs, repeats=5)


def trees(folder: Path, small: bool) -> Iterator[Line]:
    """SPO-tree from the sampling to the gradient, against one whose nodes are texts: every prefix is a prompt that is
    sent again, every edge that teaches a row of its own."""
    size: dict[str, Any] = {"max_completion_length": 24, "branch": [2, 2], "segment_tokens": 8} if small else {}
    size["threshold"] = 1.1  # the policy is sure of most tokens: all may teach
    size["per_device_train_batch_size"] = 4 if small else 216
    run = trainer(folder, "tree", "spo_tree", gradient_accumulation_steps=1, **size)
    # So that branches differ: the policy hardly errs.
    run.problems.functions = [lambda prompts, completions, **columns: [float(i % 2) for i in range(len(completions))]]

    def ours() -> None:
        run.step = 1
        run.train_step()

    ours()
    rollouts, credit = run.last
    assert rollouts is not None and rollouts.tree is not None and rollouts.node_ids is not None and credit is not None
    _, prompts, _ = run.examples()
    tree, depth = rollouts.tree, []
    for parent in tree.parent.tolist():
        depth.append(depth[parent] + 1 if parent >= 0 else 0)
    row = {node: b for b, nodes in enumerate(rollouts.node_ids.tolist()) for node in nodes if node >= 0}
    taught = set(rollouts.node_ids[credit.loss_mask].tolist())

    def resent(node: int, end: int) -> dict[str, torch.Tensor]:
        """The prompt of a node with the first `end` tokens of its completion."""
        prompt = prompts.rows[int(tree.group[node])]
        some = rollouts.completion_ids[row.get(node, 0) :][:1, :end]
        ids = torch.cat([prompt["input_ids"], some], dim=1)
        return prompt | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    levels = []  # of each: the prefixes from which children are sampled
    for level in range(len(run.method.branch)):
        parents = sorted({p for node, p in enumerate(tree.parent.tolist()) if p >= 0 and depth[node] == level + 1})
        levels.append(Prompts(tuple(resent(p, int(tree.end[p])) for p in parents), prompts.pad_token_id))
    edges = sorted((n for n in row if n in taught), key=lambda n: int(tree.end[n]))
    before = Prompts(tuple(resent(n, int(tree.start[n])) for n in edges), prompts.pad_token_id)
    spans = [rollouts.completion_ids[row[n], int(tree.start[n]) : int(tree.end[n])] for n in edges]
    ids, real = pad_rows(spans), pad_rows([torch.ones_like(x, dtype=torch.bool) for x in spans])

    def theirs() -> None:
        left = run.sampler.max_completion_length
        for children, states in zip(run.method.branch, levels, strict=True):
            limit = left if states is levels[-1] else min(left, run.method.segment_tokens)
            for part in torch.arange(len(states)).split(max(1, 256 // children)):
                generated(run, states, part.tolist(), children, limit)
            left -= limit
        for part in torch.arange(len(before)).split(32):
            longest = int(real[part].sum(dim=1).max())
            run.network(before.batch(part), ids[part, :longest], real[part, :longest]).logprobs.sum().backward()
        run.network.zero_grad()

    what = f"SPO-tree {'-'.join(map(str, run.method.branch))}: a step"
    peer = f"prefixes sent again to `model.generate`, a row for each of the {len(edges)} edges that teach"
    yield Line(what, peer, "≥ 2", ours, theirs, repeats=3)
