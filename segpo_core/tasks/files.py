"""Problems from a data set: files, saved Hugging Face data sets, names on the hub, or data sets in memory.

A row has a prompt, an answer where a reward asks for one, and any number of images. Everything else in it goes to
the reward functions.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segpo_core.pictures import as_rgb, remember
from segpo_core.tasks.rewards import answer_reward, load_reward, math_reward, wants
from segpo_core.tasks.rows import Rows, read_rows, rows_of

IMAGE_TAG = "<image>"
_EXAMPLE_KEYS = ("prompt", "images", "answer", "id")
_NOT_PASSED_ON = ("prompts", "completions")  # reward functions get arguments of these names


@dataclass(frozen=True)
class FilesTask:
    """A data set as a task. Reading starts, and the columns and images are checked, when the task is made.

    Raises: ValueError that names the file and the line or row, and what to change.
    """

    path: str
    """A .jsonl, .json, .parquet or .csv file, a saved data set's directory, or a name on the hub."""
    eval_path: str | None = None
    """Held-out problems in another file or data set."""
    split: str = "train"
    """Split to train on, where the data set has splits."""
    eval_split: str | None = None
    """Held-out split of the data set."""
    eval_rows: int | None = None
    """Without eval_path and eval_split, so many of the rows are held out (default: a tenth, at most 200)."""
    spread_eval: bool = True
    """Held-out rows are drawn from all over the file, the same ones in every run; false: they are the last rows.
    Evaluation takes the first of them, in the drawn order."""
    stratify_by_column: str | None = None
    """Draw the held-out rows so that each value of this column has its share."""
    shuffle_dataset: bool = True
    """Train on the rows in an order drawn anew for each pass over them (by the run's seed); false: in the file's."""
    config_name: str | None = None
    """Configuration of a hub data set."""
    prompt_column: str = "prompt"
    """A text, in which <image> marks the place of an image, or a list of messages."""
    images_column: str | None = None
    """Paths (relative to the file), bytes or images, one or a list. Default: images, or image, if there is one."""
    answer_column: str = "answer"
    """The reference answer: a text, a number or a boolean; of a list any counts; of verl's struct its ground_truth. Not
    needed where no reward function asks for `answer`."""
    id_column: str = "id"
    """A stable name of the row; without this column it is the row number."""
    system_prompt: str | None = None
    """Put before every prompt as a system message."""
    reward: str | None = None
    """A reward function (see rewards.load_reward). Default: math_reward if most answers have a digit or are LaTeX,
    else answer_reward."""
    checked_rows: int = 1000
    """Rows whose images are opened before work starts; later ones are opened when they are needed."""
    stream_rows: int = 10_000
    """Rows taken of a data set that streams (an IterableDataset), before work starts."""
    data: Any = field(default=None, repr=False)
    """A data set in memory, in place of the one at `path`: a Dataset, an IterableDataset, or a list of dicts."""
    eval_data: Any = field(default=None, repr=False)
    """Held-out problems, in memory."""
    judges: tuple[Callable, ...] = field(default=(), repr=False)
    """The run's own reward functions, in place of `reward`."""

    def __post_init__(self) -> None:
        _ = self.reward_funcs
        for rows in {id(rows): rows for rows in (self._train_rows, self._eval_rows)}.values():
            self._check(rows)
        if self.train_size < 1 or self.eval_size < 1:
            raise ValueError(
                f"{self.path} has {len(self._train_rows)} rows, and eval_rows={self.eval_rows} are to be held out; "
                "at least one row must be left to train on and one to evaluate on"
            )

    @property
    def name(self) -> str:
        return Path(self.path).stem

    @cached_property
    def _train_rows(self) -> Rows:
        if self.data is not None:
            return rows_of(self.data, self.path, self.split, most=self.stream_rows)
        return read_rows(self.path, self.split, self.config_name)

    @cached_property
    def _eval_rows(self) -> Rows:
        if self.eval_data is not None:
            name = f"the held-out rows of {self.path}"
            return rows_of(self.eval_data, name, self.eval_split or self.split, most=self.stream_rows)
        if self.eval_path is None and self.eval_split is None:
            return self._train_rows
        if self.data is not None and self.eval_path is None:
            return rows_of(self.data, self.path, self.eval_split or "", most=self.stream_rows)
        return read_rows(self.eval_path or self.path, self.eval_split or self.split, self.config_name)

    @property
    def _held_out(self) -> int:
        """Rows of the training data that are held out."""
        if self._eval_rows is not self._train_rows:
            return 0
        n = len(self._train_rows)
        return min(200, max(1, n // 10)) if self.eval_rows is None else self.eval_rows

    @cached_property
    def _split(self) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers (to train on, in the file's order; to evaluate on, in the order of evaluation)."""
        rows, n = self._eval_rows, len(self._eval_rows)
        strata = None if self.stratify_by_column is None else rows.column(self.stratify_by_column)
        own = rows is not self._train_rows
        if not self.spread_eval:
            return np.arange(self.train_size), np.arange(0 if own else self.train_size, n)
        drawn = spread(n, strata)
        return (np.arange(self.train_size), drawn) if own else (
            np.sort(drawn[self._held_out :]), drawn[: self._held_out])  # fmt: skip

    @property
    def train_size(self) -> int:
        return len(self._train_rows) - self._held_out

    @property
    def eval_size(self) -> int:
        return self._held_out if self._eval_rows is self._train_rows else len(self._eval_rows)

    @cached_property
    def reward_funcs(self) -> list[Callable]:
        if self.judges:
            return list(self.judges)
        if self.reward is not None:
            return [load_reward(self.reward)]
        rows = self._train_rows
        if self.answer_column not in rows.columns:
            return [answer_reward]  # the check of the columns says so
        answers = [str(answer) for answer in rows.column(self.answer_column)[:: max(1, len(rows) // 100)]]
        mathematical = sum(any(c.isdigit() or c == "\\" for c in answer) for answer in answers)
        return [math_reward if 2 * mathematical >= len(answers) else answer_reward]

    def train(self, index: int) -> dict:
        """Training problem `index`: every stretch of `train_size` numbers is one pass over the rows."""
        turn, place = divmod(index, self.train_size)
        if self.shuffle_dataset:
            place = _order(self.train_size, turn)[place]
        return self._example(self._train_rows, int(self._split[0][place]), "train")

    def eval(self, index: int) -> dict:
        """Held-out problem `index`, modulo the size."""
        return self._example(self._eval_rows, int(self._split[1][index % self.eval_size]), "eval")

    def inspect(self, example: Mapping, text: str) -> None:
        """Nothing but the answer is known about a data set's problems."""
        return None

    def _images_name(self, rows: Rows) -> str | None:
        if self.images_column is not None:
            return self.images_column
        return next((name for name in ("images", "image") if name in rows.columns), None)

    @cached_property
    def _judged_by_answer(self) -> bool:
        return any(wants(func, "answer") for func in self.reward_funcs)

    def _check(self, rows: Rows) -> None:
        wanted = {"prompt_column": self.prompt_column}
        if self._judged_by_answer:
            wanted["answer_column"] = self.answer_column
        if self.images_column is not None:
            wanted["images_column"] = self.images_column
        if self.stratify_by_column is not None and rows is self._eval_rows:
            wanted["stratify_by_column"] = self.stratify_by_column
        for setting, column in wanted.items():
            if column not in rows.columns:
                raise ValueError(
                    f"{rows.source} has no column {column!r}; it has: {', '.join(rows.columns)} (set {setting})"
                )
        for column in filter(None, (self.prompt_column, wanted.get("answer_column"))):
            for i, value in enumerate(rows.column(column)):
                if value is None:
                    raise ValueError(f"{rows.where(i)} has no {column!r}")
                if column == self.answer_column:
                    _answer(value, f"{rows.where(i)}: {column!r}")
        for i in range(min(len(rows), self.checked_rows)):
            row = rows[i]
            self._messages(rows, i, row, len(self._images(rows, i, row)))

    def _images(self, rows: Rows, i: int, row: Mapping) -> list[Image.Image]:
        """The row's images, in RGB."""
        column = self._images_name(rows)
        value = row.get(column) if column else None
        values = [] if value is None else value if isinstance(value, list | tuple) else [value]
        return [_open(image, rows.folder, f"{rows.where(i)}, column {column!r}") for image in values]

    def _messages(self, rows: Rows, i: int, row: Mapping, images: int) -> list[dict]:
        """The prompt as messages, with a placeholder part for every image."""
        prompt = row[self.prompt_column]
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if not isinstance(messages, Sequence) or not all(isinstance(m, Mapping) and "role" in m for m in messages):
            raise ValueError(f"{rows.where(i)}: {self.prompt_column!r} is neither a text nor a list of messages")
        parts = [(message["role"], _parts(message.get("content"))) for message in messages]
        found = sum(part["type"] == "image" for _, content in parts for part in content)
        if found == 0 and images:
            user = next((content for role, content in parts if role == "user"), None)
            if user is None:
                raise ValueError(f"{rows.where(i)}: there are images but no user message in {self.prompt_column!r}")
            user[:0] = [{"type": "image"}] * images
        elif found != images:
            raise ValueError(f"{rows.where(i)}: {found} image places in {self.prompt_column!r} for {images} images")
        if self.system_prompt and not any(role == "system" for role, _ in parts):
            parts.insert(0, ("system", [{"type": "text", "text": self.system_prompt}]))
        # templates of text models know only strings
        return [
            {"role": role, "content": content if images else "".join(part["text"] for part in content)}
            for role, content in parts
        ]

    def _example(self, rows: Rows, i: int, split: str) -> dict:
        row = rows[i]
        images = self._images(rows, i, row)
        used = (*_EXAMPLE_KEYS, *_NOT_PASSED_ON, self._images_name(rows))
        prompt, answer = row[self.prompt_column], row.get(self.answer_column)
        if self._judged_by_answer:
            answer = _answer(answer, f"{rows.where(i)}: {self.answer_column!r}")
        return {
            **{name: value for name, value in row.items() if name not in used},
            "prompt": self._messages(rows, i, row, len(images)),
            **({"prompt_text": prompt} if isinstance(prompt, str) else {}),
            "images": images,
            "answer": answer,
            "id": str(row.get(self.id_column) or f"{self.name}/{split}/{i}"),
        }


def _answer(value: Any, where: str) -> str | list[str]:
    """A reference answer as text, or as several texts of which any counts.

    Raises: ValueError that says what is there instead.
    """
    if isinstance(value, Mapping) and "ground_truth" in value:  # verl's reward_model
        value = value["ground_truth"]
    if isinstance(value, list | tuple) and value:
        several = [_answer(one, where) for one in value]
        if all(isinstance(one, str) for one in several):
            return several[0] if len(several) == 1 else several
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float | Decimal | date) and not value != value:  # NaN is a number table's null
        if str(value).strip():
            return str(value)
        raise ValueError(f"{where} is an empty text; give an answer, or leave the row out")
    raise ValueError(
        f"{where} is {_kind(value)}; an answer is a text, a number or a boolean, or a list of these of which any counts"
    )


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"an object with {', '.join(map(str, value)) or 'nothing in it'}"
    return f"{type(value).__name__} {str(value)[:60]}"


def spread(n: int, strata: Sequence | None = None) -> np.ndarray:
    """The numbers below n in a fixed random order, the same everywhere; with `strata` [n], every beginning of it holds
    each stratum's share, up to rounding."""
    order = np.random.default_rng(n).permutation(n)
    if strata is None:
        return order
    sizes = Counter(map(str, strata))
    seen: Counter = Counter()
    places = np.empty(n)
    for position, i in enumerate(order):
        name = str(strata[i])
        places[position] = (seen[name] + 0.5) / sizes[name]
        seen[name] += 1
    return order[np.argsort(places, kind="stable")]


@lru_cache(maxsize=4)
def _order(n: int, turn: int) -> np.ndarray:
    """The order of n rows in pass number `turn`."""
    return np.random.default_rng((n, abs(turn), turn < 0)).permutation(n)


def _parts(content: Any) -> list[dict]:
    """A message's content as parts; <image> in a text is the place of an image."""
    if isinstance(content, str):
        texts = content.split(IMAGE_TAG)
        parts: list[dict] = []
        for k, text in enumerate(texts):
            parts += [{"type": "image"}] * (k > 0) + [{"type": "text", "text": text}] * bool(text)
        return parts
    return [
        {"type": "image"} if part["type"] == "image" else {"type": "text", "text": part.get("text") or ""}
        for part in content or []
    ]


def _open(value: Any, folder: Path, where: str) -> Image.Image:
    """An RGB image from a path, bytes, a {"bytes", "path"} dict or an image; decoded, so that a cut file is noticed."""
    path = None
    if isinstance(value, Mapping):
        value, path = value.get("bytes") or value.get("path"), value.get("path")
    try:
        if isinstance(value, Image.Image):
            return as_rgb(value)
        if not isinstance(value, bytes):
            path = folder / str(value)
            value = path.read_bytes()
        image = Image.open(io.BytesIO(value))
        image.load()
        return remember(image, value)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{where}: the image {path or 'in the row'} does not open: {error}") from error
