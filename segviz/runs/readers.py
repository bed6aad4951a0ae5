"""Rollouts that other trainers wrote down, as a run: TRL's completion tables and verl's rollout dumps.

    run = sv.read_trl("outputs/completions")          # GRPOTrainer, RLOOTrainer with log_completions=True
    run = sv.read_verl("rollouts")                    # trainer.rollout_data_dir

Neither holds tokens, log-probabilities or entropies; `sv.annotate` adds them. What a dump lacks is None, and
`problems` says what that is.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from segpo_core.record.files import open_plain, read_plain
from segpo_core.record.store import ROLLOUT_SCHEMA
from segviz.runs.dump import Dump, Finder, listed, unknown_method

_TRL_COLUMNS = ("step", "prompt", "completion", "advantage")
_VERL_COLUMNS = ("input", "output", "score")


def read_trl(path: str | Path, reward_weights: Mapping[str, float] | None = None) -> Dump:
    """TRL's completion tables: what a GRPO or RLOO trainer writes with `log_completions=True`.

    A row becomes a rollout: reward parts are the reward functions' columns, the reward is their weighted sum, the one
    advantage is the completion's. Rows with equal prompts in a step are a group. Further columns go to `columns`.

    Args:
        path: `completions_00012.parquet`, the directory of these, or the output directory above it.
        reward_weights: name of each reward column -> its weight (TRL does not record weights). Default: every column
            of floating-point numbers but the advantage, with weight 1.

    Raises:
        FileNotFoundError: nothing there, or no completions_*.parquet.
        ValueError: a column is missing, or the file is empty or no Parquet file.
    """
    path = Path(path)
    if (path / "completions").is_dir():
        path = path / "completions"
    find = _finder(path, r"completions_(\d+)\.parquet", "completions_00001.parquet, …: train with log_completions=True")
    return Dump(path, "TRL", find, lambda file: _trl_rows(file, reward_weights))


def read_verl(path: str | Path) -> Dump:
    """verl's rollout dumps: what its trainer writes with `trainer.rollout_data_dir`, one JSON object a line.

    `score` is the reward and `gts` the reference answer; what the reward function returned besides goes to `columns`,
    numbers also to the reward parts, and `acc`, where it is 0 or 1, says whether the answer is right. Rows with equal
    prompts in a step are a group.

    Args:
        path: `12.jsonl`, or the directory of these.

    Raises:
        FileNotFoundError: nothing there, or no <step>.jsonl.
        ValueError: a line is not JSON or lacks a key (the message has its number), or the file is empty.
    """
    path = Path(path)
    find = _finder(path, r"(\d+)\.jsonl", "1.jsonl, 2.jsonl, …: train with trainer.rollout_data_dir")
    return Dump(path, "verl", find, _verl_rows)


def _finder(path: Path, pattern: str, expected: str) -> Finder:
    """Lists a folder's files as they are now: a trainer may still be writing. The step of a single file is what its
    rows say."""
    if path.is_file():
        return lambda: [(None, path)]
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: there is no such file or folder")

    def find() -> list[tuple[int | None, Path]]:
        return sorted((int(m[1]), file) for file in path.iterdir() if (m := re.fullmatch(pattern, file.name)))

    if not find():
        there = listed(sorted(file.name for file in path.iterdir())) or "nothing"
        raise FileNotFoundError(f"{path} has no files {expected}. In it: {there}")
    return find


def _trl_rows(file: Path, reward_weights: Mapping[str, float] | None) -> tuple[list[dict[str, Any]], set[str]]:
    try:
        with open_plain(file) as handle:
            table = pq.read_table(handle)
        table.validate(full=True)
    except pa.ArrowException as error:
        raise ValueError(f"{file} is not a whole Parquet file: {error}") from error
    if missing := [name for name in _TRL_COLUMNS if name not in table.column_names]:
        raise ValueError(
            f"{file} has no column {', '.join(missing)}; TRL's completion tables have {', '.join(_TRL_COLUMNS)} and "
            f"one column a reward function. It has: {', '.join(table.column_names) or 'none'}"
        )
    if table.num_rows == 0:
        raise ValueError(f"{file} has no rows")
    others = [name for name in table.column_names if name not in _TRL_COLUMNS]
    weights = reward_weights
    if weights is None:
        weights = {name: 1.0 for name in others if pa.types.is_floating(table.schema.field(name).type)}
    if unknown := sorted(set(weights) - set(others)):
        raise ValueError(f"{file} has no reward column {', '.join(unknown)}; it has: {', '.join(others) or 'none'}")
    notes = set()
    if reward_weights is None and len(weights) > 1:
        notes.add(
            f"TRL records no reward weights: the reward is the plain sum of {', '.join(weights)}; "
            "give read_trl(…, reward_weights={name: weight})"
        )
    rows, groups = [], _Groups()
    for number, raw in enumerate(table.to_pylist()):
        messages, completion = _tidy(raw["prompt"]), _tidy(raw["completion"])
        if raw["step"] is None or messages is None or completion is None:
            raise ValueError(f"{file}, row {number}: step, prompt or completion is null")
        if not isinstance(raw["step"], int) or not _conversation(messages) or not _conversation(completion):
            raise ValueError(
                f"{file}, row {number}: step must be a whole number, prompt and completion texts or lists of messages"
            )
        if isinstance(completion, list) and len(completion) != 1:
            notes.add("Some completions are several messages (tools, turns): they are shown one after the other.")
        if _pictures(messages):
            notes.add(
                "TRL records no images: they are missing here, and prompts that differ in nothing but their image "
                "are one group."
            )
        parts = {name: _number(raw[name]) for name in weights}
        known = [weights[name] * value for name, value in parts.items() if value is not None]
        prompt = json.dumps(messages)
        place = groups.place(raw["step"], prompt)
        extra = {name: raw[name] for name in others if name not in weights}
        rows.append(
            _row("TRL", raw["step"], place, prompt, _text(completion), sum(known) if known else None, parts, extra)
            | _credit(_number(raw["advantage"]))
        )
    return rows, notes


def _verl_rows(file: Path) -> tuple[list[dict[str, Any]], set[str]]:
    named = re.fullmatch(r"(\d+)\.jsonl", file.name)
    rows, groups, notes = [], _Groups(), set()
    for number, line in enumerate(read_plain(file).splitlines(), 1):
        if not line.strip():
            continue
        try:
            raw = json.loads(line)
        except (ValueError, RecursionError) as error:  # broken JSON, bytes that are no text, or far too deep
            raise ValueError(f"{file}, line {number} is not JSON: {error}") from error
        if not isinstance(raw, dict):
            raise ValueError(f"{file}, line {number} is not a JSON object but {type(raw).__name__}")
        if missing := [name for name in _VERL_COLUMNS if name not in raw]:
            raise ValueError(
                f"{file}, line {number} has no {', '.join(missing)}; verl's rollouts have {', '.join(_VERL_COLUMNS)}. "
                f"It has: {', '.join(raw) or 'nothing'}"
            )
        step = raw.get("step", int(named[1]) if named else None)
        if not isinstance(step, int):
            raise ValueError(f"{file}, line {number} has no step, and the file is not named <step>.jsonl")
        if not isinstance(raw["output"], str):
            raise ValueError(f"{file}, line {number}: output is not a text but {type(raw['output']).__name__}")
        prompt = json.dumps(raw["input"])
        place = groups.place(step, prompt)
        extra = {name: value for name, value in raw.items() if name not in (*_VERL_COLUMNS, "gts", "step")}
        parts = {name: value for name in raw if (name in extra) and (value := _verdict(raw[name])) is not None}
        answer = raw.get("gts")
        right = {0: False, 1: True}.get(_said(raw.get("acc")))
        if _said(raw["score"]) is None:
            notes.add(
                f"Some scores are no numbers ({str(raw['score'])[:40]!r}): these completions have no reward here."
            )
        rows.append(
            _row("verl", step, place, prompt, raw["output"], _said(raw["score"]), parts, extra)
            | {
                "answer": answer if answer is None or isinstance(answer, str) else json.dumps(answer),
                "answer_right": right,
            }
        )
    if not rows:
        raise ValueError(f"{file} has no rows")
    return rows, notes


class _Groups:
    """Numbers prompts within each step in the order in which they come, and the completions of each."""

    def __init__(self) -> None:
        self.seen: dict[tuple[int, str], list[int]] = {}
        self.prompts: dict[int, int] = {}

    def place(self, step: int, prompt: str) -> tuple[int, int]:
        """(group, sample) of the next completion."""
        if (step, prompt) not in self.seen:
            self.seen[step, prompt] = [self.prompts.get(step, 0), -1]
            self.prompts[step] = self.prompts.get(step, 0) + 1
        place = self.seen[step, prompt]
        place[1] += 1
        return place[0], place[1]


def _row(
    trainer: str,
    step: int,
    place: tuple[int, int],
    prompt: str,
    text: str,
    reward: float | None,
    parts: Mapping[str, float | None],
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """A row with the columns of ROLLOUT_SCHEMA; what is not recorded is None."""
    return dict.fromkeys(ROLLOUT_SCHEMA.names) | {
        "step": step,
        "group": place[0],
        "sample": place[1],
        "method": unknown_method(trainer),
        "example_id": "",
        "prompt": prompt,
        "images": [],
        "columns": json.dumps(extra, default=str),
        "text": text,
        "reward": reward,
        "reward_parts": json.dumps(parts),
    }


def _credit(advantage: float | None) -> dict[str, Any]:
    """The one advantage of a completion whose tokens are not recorded: the text is shown as a single token."""
    if advantage is None:
        return {}
    return {
        "advantages": [advantage],
        "segment_start": [0],
        "segment_end": [1],
        "segment_advantage": [advantage],
        "segment_rule": ["the whole completion: TRL records one advantage for it"],
    }


def _tidy(value: Any) -> Any:
    """Messages without the keys that a Parquet column gives every message, most of them null."""
    if isinstance(value, list):
        return [_tidy(item) for item in value]
    if isinstance(value, dict):
        return {key: _tidy(item) for key, item in value.items() if item is not None}
    return value


def _text(completion: Any) -> str:
    """The text of a completion: a string, or messages; of several, each under its role."""
    if isinstance(completion, str):
        return completion
    if len(completion) == 1:
        return _content(completion[0])
    return "\n".join(f"[{message.get('role', '')}]\n{_content(message)}" for message in completion)


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    calls = [json.dumps(call, ensure_ascii=False) for call in message.get("tool_calls") or []]
    if isinstance(content, list):
        content = "".join(part.get("text", "") for part in content)
    return "\n".join([*([content] if content else []), *calls])


def _conversation(value: Any) -> bool:
    """Whether it is a text, or messages: mappings whose content is a text or a list of parts."""
    if isinstance(value, str):
        return True
    return isinstance(value, list) and all(
        isinstance(message, dict)
        and isinstance(message.get("content", ""), str | list)
        and isinstance(message.get("tool_calls", []), list)
        and (isinstance(message.get("content", ""), str) or all(map(_part, message["content"])))
        for message in value
    )


def _part(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("text", ""), str)


def _pictures(messages: Any) -> bool:
    parts = [message.get("content") for message in messages] if isinstance(messages, list) else []
    return any(part.get("type") == "image" for part in parts if isinstance(part, list) for part in part)


def _number(value: Any) -> float | None:
    """A finite number, else None: null, NaN and what is no number are 'no verdict'."""
    if isinstance(value, (bool, int, float)) and math.isfinite(value):
        return float(value)
    return None


def _verdict(value: Any) -> float | None:
    """The same, of a JSON that was written with default=str: numpy's booleans became "True" and "False"."""
    return {"True": 1.0, "False": 0.0}.get(value) if isinstance(value, str) else _number(value)


def _said(value: Any) -> float | None:
    """The same, of what must be a number: numpy's numbers became texts as well."""
    if isinstance(value, str) and _verdict(value) is None:
        try:
            value = float(value)
        except ValueError:
            return None
    return _verdict(value)
