"""Credit of other methods for rollouts that were recorded: the same completions, judged again, side by side.

    RUN/credit/<method>/step-000012.parquet     columns as `store.CREDIT_SCHEMA`

What a method needs and the record lacks (sampled values, contrasts, a critic's values) is measured with the run's
newest checkpoint: for an early step that is a later policy than the one that sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from segpo_core.afterwards.trained import Policy, recorded_example, run_config, run_rewards
from segpo_core.algos import METHODS, Method, SPOTree
from segpo_core.algos.base import without_cut
from segpo_core.algos.vineppo import ChainMethod
from segpo_core.config import TrainConfig, method_class
from segpo_core.policy.contrasts import contrasts, image_contrast
from segpo_core.policy.critic import score
from segpo_core.policy.inputs import Prompts
from segpo_core.record import store
from segpo_core.record.rows import rollout_rows, rollouts_from_rows
from segpo_core.training import checkpoint, evaluate
from segpo_core.types import Rollouts


def recompute(
    directory: str | Path,
    methods: Sequence[str],
    steps: Sequence[int] | None = None,
    critic: str | Path | None = None,
    trust_code: bool = False,
) -> list[Path]:
    """Compute and store the credit that methods give recorded rollouts. Returns the files, method by method.

    The run's own method has the settings of the run, any other its defaults.

    Args:
        directory: the run.
        methods: names, as in `segpo train --method`; those of your own as "file.py:Class".
        steps: which; None: all that were recorded.
        critic: a run of the same model whose critic is asked for values that were not recorded; None: this run's own.
        trust_code: load the files and modules that the run names, for its own method and for its rewards (where a
            method asks for rewards of further texts); that runs what is in them.

    Raises:
        ValueError: no run, an unknown method, a step that was not recorded, or a method that cannot be computed here
            (those that can are named), or one that needs rewards which are not trusted; nothing was written then.
    """
    run = Run(Path(directory), Path(critic or directory), trust_code)
    chosen = [run.method(name) for name in methods]
    there = store.rollout_steps(directory)
    steps = there if steps is None else list(steps)
    missing = [step for step in steps if step not in there]
    if missing or not there:
        raise ValueError(f"{directory} has no rollouts of step {missing[0] if missing else 1}; recorded: {there}")
    for method in chosen:
        run.check(method, steps[0])
    return [run.write(method, step) for method in chosen for step in steps]


@dataclass
class Run:
    """A recorded run."""

    directory: Path
    critic: Path | None = None  #: the run whose critic is asked; None: this one
    trust_code: bool = False  #: load what the run names for its rewards

    @cached_property
    def judge(self) -> Run:
        """The run whose critic is asked."""
        return self if self.critic in (None, self.directory) else Run(self.critic)

    @cached_property
    def config(self) -> TrainConfig:
        return run_config(self.directory, self.trust_code)

    @property
    def own(self) -> str:
        """Name of the method that trained, which need not be the toolkit's."""
        return store.read_manifest(self.directory)["config"].get("method", TrainConfig.method)

    def method(self, name: str) -> Method:
        """The run's own method as it was set, any other with its defaults.

        Raises:
            ValueError: there is none of that name.
        """
        if name == self.own:
            if self.config.method == name:
                return self.config.algo
            code = store.read_manifest(self.directory).get("method_code") or "file.py:Class, where its class is"
            raise ValueError(f"{name} is the run's own method: read {code}, then give --trust-code, or name that")
        chosen = method_class(name)
        return run_config(self.directory, method=name).algo if chosen.name == self.own else chosen()

    def rows(self, step: int) -> list[dict[str, Any]]:
        """The recorded rows of a step, in order."""
        return sorted(store.read_rollouts(self.directory, [step]).to_pylist(), key=lambda r: (r["group"], r["sample"]))

    @property
    def checkpoint(self) -> Path | None:
        """The newest one, if there is any."""
        found = checkpoint.listed(self.directory / "checkpoints")
        return found[-1] if found else None

    def missing(self, method: Method, rollouts: Rollouts) -> tuple[bool, bool, bool, bool]:
        """What the method reads and the record lacks: (a critic's values, sampled values, the contrasts of roles, that
        of the image at all tokens). All but the first serve the method alone that measured them: where, and how, is a
        matter of its settings."""
        own = method.name == self.own
        values = method.uses_critic and rollouts.values is None
        chains = isinstance(method, ChainMethod) and not (own and rollouts.mc_values is not None)
        roles = method.uses_contrasts and not (own and rollouts.reasoning_contrast is not None)
        image = method.uses_image_contrast and not (own and rollouts.perception_contrast is not None)
        return values, chains, roles, image

    def obstacle(self, method: Method, rollouts: Rollouts) -> str | None:
        """Why the method cannot be computed, None where it can."""
        values, chains, roles, image = self.missing(method, rollouts)
        if isinstance(method, SPOTree) and rollouts.node_ids is None:
            return "its values are those of a tree, and these completions were sampled one by one"
        known = self.judge.checkpoint
        if values and (known is None or not any(known.glob("critic*.safetensors"))):
            return "it needs a critic's values, and this run has no critic"
        if (chains or roles or image) and self.checkpoint is None:
            return "it needs the policy, and this run has no checkpoint"
        return None

    def check(self, method: Method, step: int) -> None:
        """Raise ValueError where the method cannot be computed."""
        rollouts = rollouts_from_rows(self.rows(step))
        why = self.obstacle(method, rollouts)
        if why is not None:
            names = ", ".join(name for name in METHODS if self.obstacle(self.method(name), rollouts) is None)
            raise ValueError(f"{method.title} cannot be computed for {self.directory}: {why}; these can: {names}")
        if self.missing(method, rollouts)[1]:
            _ = self.reward_funcs  # continuations are judged by them: whether they load is said now

    def write(self, method: Method, step: int) -> Path:
        """Compute and store the credit of one step."""
        rows = self.rows(step)
        rollouts, examples = rollouts_from_rows(rows), self.examples(rows)
        self.measure(method, rollouts, examples, step, rows[0]["group"])
        credit = method.credit(rollouts)
        if self.config.mask_truncated_completions:
            credit = without_cut(credit, rollouts)
        made = rollout_rows(rollouts, credit, examples, [[]] * len(examples), step=step, method=method.name)
        ids = [{name: row[name] for name in ("group", "sample")} for row in rows]
        table = pa.Table.from_pylist(
            [new | own for new, own in zip(made, ids, strict=True)], schema=store.CREDIT_SCHEMA
        )
        path = self.directory / "credit" / method.name / f"{store.step_name(step)}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        store.write_atomic(path, store.table_bytes(table))
        return path

    def examples(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The problems of a step, as the task gave them; `answer` is text.

        Raises:
            ValueError: an image of them is missing or cannot be read.
        """
        first = {row["group"]: row for row in reversed(rows)}
        return [recorded_example(row, self.images(row["images"])) for _, row in sorted(first.items())]

    def images(self, names: Sequence[str]) -> dict[str, bytes]:
        """sha256 -> file, of those that are there."""
        hexadecimal = [name for name in names if name and not set(name) - set("0123456789abcdef")]  # no other path
        paths = {name: store.image_file(self.directory, name) for name in hexadecimal}
        return {name: store.read_plain(path) for name, path in paths.items() if path is not None and path.is_file()}

    def measure(self, method: Method, rollouts: Rollouts, examples: list[dict], step: int, first: int) -> None:
        """Fill in what the method reads and the record lacks."""
        values, chains, roles, image = self.missing(method, rollouts)
        if not (values or chains or roles or image):
            return
        stream = (self.config.seed, step)
        policy = self.policy
        network, processor, sampler = policy.network, policy.processor, policy.sampler
        for item in fields(rollouts):
            if isinstance(value := getattr(rollouts, item.name), Tensor):
                setattr(rollouts, item.name, value.to(policy.device))
        prompts = Prompts.build(examples, processor, network.model.config, self.config.max_prompt_length)
        if values:
            rollouts.values = self.values(rollouts, prompts)
        if chains:
            method.estimate(sampler, prompts, rollouts, self.reward_of(examples), stream, first)
        if roles:
            # The record's log-probabilities are the old policy's: both sides of a contrast come from this one.
            old, rollouts.old_logprobs = rollouts.old_logprobs, None
            rollouts.perception_contrast, rollouts.reasoning_contrast = contrasts(
                network, examples, prompts, rollouts, processor, method.corruption, stream, first,
                self.config.per_device_train_batch_size, method.tags,
            )  # fmt: skip
            rollouts.old_logprobs = old
        if image:
            rollouts.perception_contrast = image_contrast(
                network, examples, prompts, replace(rollouts, old_logprobs=None), processor, method.corruption, stream,
                first, self.config.per_device_train_batch_size,
            )  # fmt: skip

    def values(self, rollouts: Rollouts, prompts: Prompts) -> Tensor:
        """float32 [B, T], the critic's."""
        parts = []
        for rows in torch.arange(len(rollouts)).split(self.config.per_device_train_batch_size):
            batch = prompts.batch(rollouts.group[rows], rollouts.mask.device)
            ids, mask = rollouts.completion_ids[rows], rollouts.mask[rows]
            parts.append(score(self.judge.policy.network, batch, ids, mask).values)
        return torch.cat(parts)

    def reward_of(self, examples: list[dict]):
        """The run's rewards of further texts, for `Method.estimate`."""

        def rewards(groups: list[int], texts: list[str]) -> list[float]:
            weights, tokenizer = self.config.reward_weights, self.policy.sampler.tokenizer
            total, _ = evaluate.reward_texts(self.reward_funcs, weights, examples, groups, texts, tokenizer=tokenizer)
            return [float("nan") if value is None else value for value in total]

        return rewards

    @cached_property
    def reward_funcs(self) -> list[Callable]:
        return run_rewards(self.config, self.directory, self.trust_code)

    @cached_property
    def policy(self) -> Policy:
        """The newest checkpoint, with the critic that the run had."""
        return Policy.load(self.directory, reward_funcs=[])
