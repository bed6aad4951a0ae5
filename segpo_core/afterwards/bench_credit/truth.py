"""Ground truth: completions of known policies with the value of every prefix, as a parquet file and back.

Values come from `forks` with a large N, which is exact but for what it samples, so each carries a standard error.

    DIR/truth.parquet           one row a completion
    DIR/step-000050/            weights of later checkpoints in float16; the truth was made with these very weights
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn.functional import pad

from segpo_core.afterwards.bench_credit.gradient import gradient
from segpo_core.afterwards.trained import Policy, run_config, run_of
from segpo_core.algos import Forks
from segpo_core.policy.inputs import Prompts
from segpo_core.record import store
from segpo_core.record.rows import token_span
from segpo_core.segments import role_ids
from segpo_core.tasks import load_task
from segpo_core.training import evaluate
from segpo_core.types import Rollouts, pad_rows

MAX_COMPLETION_LENGTH = 96


@dataclass
class Truth:
    """Completions of one policy, and what each of their states is worth to it."""

    name: str  #: of the policy
    policy: Policy
    examples: list[dict[str, Any]]
    rollouts: Rollouts  #: with rewards, without values
    values: Tensor  #: float32 [B, T], true V before each token
    stderr: Tensor  #: float32 [B, T], of it
    task: Any = None
    critics: dict[tuple[str, float, int], Tensor] = field(default_factory=dict)  #: what critics said, see critics.py
    pool: tuple[Prompts, Rollouts] | None = None  #: what critics learn from

    @cached_property
    def gradient(self) -> Tensor:
        """The policy gradient of A*, see gradient.py."""
        return gradient(self.policy.network, self.prompts, self.rollouts, self.advantages)

    @property
    def advantages(self) -> Tensor:
        """float32 [B, T], A* = V(s_{t+1}) − V(s_t); the last state is worth the reward."""
        return differences(self.values, self.rollouts)

    def select(self, rows: Tensor) -> Truth:
        """Some of the completions (long [n])."""
        made = replace(self, critics={}, pool=None)
        return replace(made, rollouts=self.rollouts.select(rows), values=self.values[rows], stderr=self.stderr[rows])

    @property
    def prompts(self) -> Prompts:
        return Prompts.build(self.examples, self.policy.processor, self.policy.model.config)

    def facts(self) -> list[dict[str, Any] | None]:
        """What the task knows about each completion, with the tokens of its first error as `error_span`."""
        known = evaluate.inspect(self.task, self.examples, self.rollouts)
        made: list[dict[str, Any] | None] = []
        for fact, pieces in zip(known, self.rollouts.pieces, strict=True):
            error = (fact or {}).get("first_error")
            span = token_span(pieces, error["start"], error["end"]) if error else (None, None)
            made.append(None if fact is None else fact | {"error_span": span})
        return made

    def reward_of(self, groups: list[int], texts: list[str]) -> list[float]:
        return [
            float("nan") if value is None else value
            for value in evaluate.reward_texts(
                self.policy.reward_funcs, self.policy.reward_weights, self.examples, groups, texts
            )[0]
        ]


def differences(values: Tensor, rollouts: Rollouts) -> Tensor:
    mask = rollouts.mask
    last = mask & ~pad(mask[:, 1:], (0, 1))
    after = torch.where(last, rollouts.rewards[:, None], pad(values[:, 1:], (0, 1)))
    return torch.where(mask, after - values, 0)


def make(
    model: str, name: str, problems: Sequence[int], size: int, number: int, least_open: float, dataset: str = "shapes"
) -> list[dict[str, Any]]:
    """Rows of one policy: `size` completions of each held-out problem, values from up to `number` continuations."""
    truth = sample(_open(model, name, problems, dataset), size, number, least_open)
    rollouts, rows = truth.rollouts, []
    for b, n in enumerate(rollouts.lengths.tolist()):
        fact = dict(rollouts.truth[b] or {})
        span, error = fact.pop("error_span", (None, None)), fact.get("first_error")
        rows.append({
            "policy": name, "dataset": dataset, "problem": problems[rollouts.group[b]], "group": int(rollouts.group[b]),
            "token_ids": rollouts.completion_ids[b, :n].tolist(), "pieces": rollouts.pieces[b],
            "logprobs": rollouts.sampled_logprobs[b, :n].tolist(), "entropy": rollouts.entropy[b, :n].tolist(),
            "reward": float(rollouts.rewards[b]), "finished": bool(rollouts.finished[b]), "text": rollouts.texts[b],
            "truth": json.dumps(fact), "error_start": span[0], "error_end": span[1],
            "error_kind": error["kind"] if error else None,
            "values": truth.values[b, :n].tolist(), "stderr": truth.stderr[b, :n].tolist(),
        })  # fmt: skip
    return rows


def sample(truth: Truth, size: int, number: int, least_open: float) -> Truth:
    """`size` completions of each of its problems by its policy, with rewards, facts and values."""
    rollouts = truth.policy.sampler.groups(truth.prompts, size, (271828,))
    rollouts.rewards = torch.tensor(truth.reward_of(rollouts.group.tolist(), rollouts.texts))
    truth.rollouts = rollouts
    rollouts.truth = truth.facts()
    rollouts.role_ids, rollouts.well_formed = role_ids(rollouts.pieces, rollouts.mask)
    truth.values, truth.stderr = estimate(truth, number, least_open, (314159,))
    return truth


def of_run(
    directory: str | Path, problems: int, size: int, number: int, least_open: float = 0.001, trust_code: bool = False
) -> Truth:
    """A truth about the policy of a run's newest checkpoint, or of a given one, on the first held-out problems of
    the run's own task.

    Raises:
        ValueError: the run's rewards cannot be loaded, or give a completion no verdict.
    """
    policy, config = Policy.load(directory, trust_code=trust_code), run_config(run_of(directory) or Path(directory))
    if not policy.reward_funcs:
        raise ValueError(
            f"{directory}: the truth of a value is rewards of further completions, but {policy.no_rewards}"
        )
    task = load_task(config.dataset, **config.dataset_args)
    examples = [task.eval(i) for i in range(min(problems, task.eval_size or problems))]
    truth = sample(Truth(policy.name, policy, examples, None, None, None, task), size, number, least_open)
    if truth.rollouts.rewards.isnan().any():
        raise ValueError(f"{directory}: its rewards give some completions no verdict, so their values are not known")
    return truth


def estimate(truth: Truth, number: int, least_open: float, stream: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Fork values of every state and their standard errors, both float32 [B, T], 0 at padding."""
    rollouts, method = copy.copy(truth.rollouts), Forks(num_continuations=number, least_open=least_open)
    method.estimate(truth.policy.sampler, truth.prompts, rollouts, truth.reward_of, stream, 0)
    return tuple(torch.where(rollouts.mask, x, 0) for x in (rollouts.mc_values, rollouts.mc_stderr))


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """One file, floats in single precision."""
    columns = ["logprobs", "entropy", "values", "stderr"]
    table = pa.Table.from_pylist(rows)
    for name in columns:
        place = table.schema.get_field_index(name)
        table = table.set_column(place, name, table[name].cast(pa.list_(pa.float32())))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    path.parent.mkdir(parents=True, exist_ok=True)
    store.write_atomic(path, sink.getvalue().to_pybytes())


def read(directory: str | Path, models: dict[str, str], prompts: int | None = None) -> list[Truth]:
    """The truth of a directory, policy by policy.

    Args:
        directory: holds truth.parquet.
        models: policy -> directory of its weights.
        prompts: only the first of each policy; None: all.

    Raises:
        FileNotFoundError: there is no truth here.
        ValueError: rows of a policy whose weights are not named.
    """
    path = Path(directory) / "truth.parquet"
    if not path.exists():
        raise FileNotFoundError(f"{directory} has no truth.parquet: make it with benchmarks/credit/make_truth.py")
    rows = pq.read_table(path).to_pylist()
    truths = []
    for name in dict.fromkeys(row["policy"] for row in rows):
        if name not in models:
            raise ValueError(f"{path} has completions of the policy {name!r}, whose weights are not given")
        mine = [r for r in rows if r["policy"] == name and (prompts is None or r["group"] < prompts)]
        first = {row["group"]: row["problem"] for row in mine}
        truth = _open(models[name], name, [first[g] for g in sorted(first)], mine[0]["dataset"])
        lengths = torch.tensor([len(row["token_ids"]) for row in mine])

        def column(key: str, dtype: torch.dtype = torch.float32, mine: list = mine) -> Tensor:
            return pad_rows([torch.tensor(row[key], dtype=dtype) for row in mine])

        ids = column("token_ids", torch.long)
        truth.rollouts = Rollouts(
            completion_ids=ids, mask=torch.arange(ids.shape[1]) < lengths[:, None],
            group=torch.tensor([row["group"] for row in mine]),
            finished=torch.tensor([row["finished"] for row in mine]), sampled_logprobs=column("logprobs"),
            entropy=column("entropy"), rewards=torch.tensor([row["reward"] for row in mine]),
            texts=[row["text"] for row in mine], pieces=[row["pieces"] for row in mine],
            truth=[
                json.loads(row["truth"]) | {"error_span": (row["error_start"], row["error_end"])} for row in mine
            ],
        )  # fmt: skip
        truth.rollouts.role_ids, truth.rollouts.well_formed = role_ids(truth.rollouts.pieces, truth.rollouts.mask)
        truth.values, truth.stderr = column("values"), column("stderr")
        truths.append(truth)
    return truths


def _open(model: str, name: str, problems: Sequence[int], dataset: str) -> Truth:
    task = load_task(dataset)
    policy = Policy.load(model, reward_funcs=task.reward_funcs)
    policy.model.float()
    policy.sampler.max_completion_length = MAX_COMPLETION_LENGTH
    return Truth(name, policy, [task.eval(i) for i in problems], None, None, None, task)
