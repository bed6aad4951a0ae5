"""Lines about sampling: groups against the model's own `generate`, values of states against prompts sent again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from bench_speed import Line

from segpo_core.policy.inputs import Prompts
from segpo_core.sampling.chains import unique_states
from segpo_core.training.loop import Trainer
from speed.steps import trainer


def generated(run: Trainer, prompts: Prompts, rows: list[int], number: int) -> int:
    """`model.generate` over `number` samples of each of the rows, all at once: how many tokens it gave."""
    model, sampler = run.network.model, run.sampler
    batch = prompts.batch(rows)
    given = model.generate(
        **batch, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=sampler.max_completion_length,
        num_return_sequences=number, eos_token_id=sampler.eos.tolist(), pad_token_id=prompts.pad_token_id,
        suppress_tokens=sampler.head.suppressed.tolist(),
    )  # fmt: skip
    new = given[:, batch["input_ids"].shape[1] :]
    ended = torch.isin(new, sampler.eos).cumsum(dim=1)
    return int(((ended == 0) | (ended.diff(dim=1, prepend=torch.zeros_like(ended[:, :1])) == 1)).sum())


def lines(folder: Path, small: bool) -> Iterator[Line]:
    size: dict[str, Any] = {"max_completion_length": 24} if small else {}
    for batch in (8,) if small else (8, 64, 256):
        run = trainer(folder, f"sample{batch}", "grpo", per_device_train_batch_size=batch, **size)
        run.step = 1
        _, prompts, _ = run.examples()
        counts = {"ours": 0, "theirs": 0}

        def ours(run=run, prompts=prompts, counts=counts) -> None:
            counts["ours"] += 1
            run.sampler.groups(prompts, 8, (0, counts["ours"]))

        def theirs(run=run, prompts=prompts) -> None:
            generated(run, prompts, list(range(len(prompts))), 8)

        what = f"sampling {batch} completions"
        yield Line(what, "`model.generate`", "≥ 3", ours, theirs, repeats=5 if batch > 64 else 9)
    yield from chains(folder, small)


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
