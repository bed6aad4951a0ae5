"""The problems that a run trains on, and what judges the completions of them.

One unusable row ends no run: a prompt that is too long is left out, and another problem takes its place; a completion
that no reward function judges has no reward, and is left out of the update. Both are counted, and told once.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedConfig, TrainerState

from segpo_core.config import TrainConfig
from segpo_core.policy.inputs import Prompts, TooLong
from segpo_core.sampling.chains import RewardOf
from segpo_core.tasks import load_task
from segpo_core.tasks.rewards import check_columns, load_reward, no_answer_read, spoken
from segpo_core.training import evaluate
from segpo_core.types import Rollouts

log = logging.getLogger(__name__)

TRIES = 100  #: problems that are looked at for one place before the run gives up


class Problems:
    """Problems and rewards of a run.

    Args:
        config: names both.
        task: in place of the one that `config.dataset` names.
        dataset: the same as a data set: a path, a Dataset, an IterableDataset, a list of dicts.
        eval_dataset: held-out problems, if `dataset` does not hold them.
        reward_funcs: in place of `config.reward_funcs`: functions, or names of them.

    Raises:
        ValueError: what is wrong with them.
    """

    def __init__(
        self,
        config: TrainConfig,
        task: Any = None,
        dataset: Any = None,
        eval_dataset: Any = None,
        reward_funcs: Sequence[Any] | Callable | str | None = None,
    ):
        self.config = config
        named = config.reward_funcs if reward_funcs is None else reward_funcs
        own = [load_reward(one) for one in (named if isinstance(named, list | tuple) else [named])]
        if task is None:
            held_out: dict[str, Any] = {}
            if eval_dataset is not None:
                held_out = {"eval_path" if isinstance(eval_dataset, str) else "eval_data": eval_dataset}
            source = config.dataset if dataset is None else dataset
            task = source if hasattr(source, "reward_funcs") and hasattr(source, "train") else load_task(
                source, own, **(held_out | config.dataset_args))  # fmt: skip
        self.task = task
        self.functions: list[Callable] = own or list(task.reward_funcs)
        self.weights = config.reward_weights
        if self.weights is not None and len(self.weights) != len(self.functions):
            raise ValueError(
                f"reward_weights has {len(self.weights)} numbers for {len(self.functions)} reward functions"
            )
        check_columns(self.functions, set(task.train(0)) - {"prompt"})
        self.left_out: set[str] = set()  #: ids of problems that did not fit
        self.logged: dict[str, list[float]] = defaultdict(list)
        self._told: set[str] = set()
        self.described = self._describe(dataset if dataset is not None else eval_dataset, reward_funcs)

    def _describe(self, given: Any, reward_funcs: Any) -> dict[str, Any]:
        """Settings of the config that Python objects replaced, as run.json has them: what can be named is named."""
        said: dict[str, Any] = {}
        if given is not None and not isinstance(given, str):
            said["dataset"] = f"<{type(given).__name__}>"
        elif given is not None:
            said["dataset"] = given
        if reward_funcs is not None or (said and not self.config.reward_funcs):
            said["reward_funcs"] = [spoken(func) for func in self.functions]
        return said

    def max_steps(self, processes: int) -> int:
        """Steps to train: the config's own, or as many as `num_train_epochs` passes take.

        Raises:
            ValueError: there are problems without end, so no pass over them.
        """
        epochs, size = self.config.num_train_epochs, self.task.train_size
        if epochs is None:
            return self.config.max_steps
        if size is None:
            raise ValueError(
                f"num_train_epochs is {epochs}, but {self.task.name} has problems without end: set max_steps"
            )
        return max(1, math.ceil(epochs * size / (self.config.prompts_per_step(processes) * processes)))

    def take(
        self, step: int, first: int, number: int, world_first: int, processor: Any, model: PreTrainedConfig
    ) -> tuple[list[dict], Prompts]:
        """`number` problems of a step as examples and as model inputs.

        Args:
            step: of training, from 1.
            first: number of the first of them within the step, over all processes.
            world_first: number of the step's first problem within the run.
        """
        # Each seed trains on its own stretch of an unlimited split, and on its own passes over a limited one.
        offset = self.config.seed * 1_000_003 * (self.task.train_size or 1)
        fitting = [
            self._fitting(world_first + first + i + offset, (self.config.seed, step, first + i), processor, model)
            for i in range(number)
        ]
        return [example for example, _ in fitting], Prompts.joined([prompt for _, prompt in fitting])

    def _fitting(
        self, index: int, stream: tuple[int, ...], processor: Any, model: PreTrainedConfig
    ) -> tuple[dict, Prompts]:
        """Problem `index`, or one drawn in its place where its prompt is too long: a matter of the stream's name alone,
        so a run that goes on from a checkpoint draws the same."""
        config = self.config
        for attempt in range(TRIES):
            example = self.task.train(index)
            try:
                lengths = config.max_prompt_length, config.max_completion_length
                return example, Prompts.build([example], processor, model, *lengths)
            except TooLong as error:
                if not config.filter_overlong_prompts:
                    raise
                why = error
                self.left_out.add(str(example.get("id", index)))
                self.tell("long", f"left out of training, and counted as left_out/long_prompts: {error}")
            index = int(np.random.default_rng([*stream, attempt]).integers(0, self.task.train_size or 10**9))
        raise ValueError(f"{TRIES} problems in a row do not fit, the last one so: {why}")

    def reward(self, rollouts: Rollouts, examples: list[dict], step: int) -> None:
        """Fill in rewards (NaN for no verdict), their parts, ground truth, and what the functions logged."""
        extra: dict[str, list] = {}

        def log_extra(column: str, values: list) -> None:
            if len(values) != len(rollouts):
                raise ValueError(f"log_extra({column!r}) has {len(values)} values for {len(rollouts)} completions")
            extra[column] = list(values)

        given = {"log_extra": log_extra, "log_metric": lambda name, value: self.logged[name].append(float(value))}
        total, parts = evaluate.reward(
            self.functions, self.weights, examples, rollouts, given | {"trainer_state": self._state(step)}
        )
        numbers = [float("nan") if value is None else value for value in total]
        rollouts.rewards = torch.tensor(numbers, dtype=torch.float32, device=rollouts.mask.device)
        rollouts.reward_parts, rollouts.extra = parts, extra
        rollouts.truth = evaluate.inspect(self.task, examples, rollouts)
        if None in total:
            i = total.index(None)
            name = examples[int(rollouts.group[i])].get("id", "")
            text = f"step {step}: no reward function judges completion {i} (example {name!r})"
            self.tell("none", f"{text}: it is left out of the update, and counted as left_out/no_reward")
        if no_answer_read(self.functions, rollouts.texts):
            places = "<answer>…</answer>, \\boxed{…} and a closing sentence are looked at; does the prompt ask for one?"
            self.tell("answer", f"step {step}: no completion holds an answer that could be read: {places}")

    def reward_of(self, examples: list[dict], tokenizer: Any) -> RewardOf:
        """The rewards of further texts, for `Method.estimate`."""

        def rewards(groups: list[int], texts: list[str]) -> list[float]:
            total, _ = evaluate.reward_texts(self.functions, self.weights, examples, groups, texts, tokenizer=tokenizer)
            return [float("nan") if value is None else value for value in total]

        return rewards

    def metrics(self, whole: Rollouts, left_out: int, logged: list[dict[str, list[float]]]) -> dict[str, float]:
        """What was left out, and the means of what reward functions logged.

        Args:
            whole: the step's rollouts, of all processes.
            left_out: problems that did not fit so far, over all processes.
            logged: `logged` of each process; own ones are forgotten here.
        """
        self.logged.clear()
        found: dict[str, list[float]] = defaultdict(list)
        for one in logged:
            for name, values in one.items():
                found[name] += values
        counts = {
            "long_prompts": left_out,
            "no_reward": 0 if whole.rewards is None else int(whole.rewards.isnan().sum()),
        }
        return {f"left_out/{name}": float(n) for name, n in counts.items() if n} | {
            name: sum(values) / len(values) for name, values in found.items()
        }

    def _state(self, step: int) -> TrainerState:
        """TRL's `trainer_state`: how far training is, before this step."""
        size = self.task.train_size
        epoch = 0.0 if not size else (step - 1) * self.config.prompts_per_step(1) / size
        return TrainerState(global_step=step - 1, max_steps=self.config.max_steps, epoch=epoch)

    def tell(self, kind: str, text: str) -> None:
        """Say something once."""
        if kind not in self._told:
            self._told.add(kind)
            log.warning(text)
