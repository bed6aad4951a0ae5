"""Write the table of docs/trl.md from `segpo_core.trl_names` and an installed TRL: `python docs/make_trl.py`.

A test compares the page with what this prints, so the table cannot go stale.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from trl import GRPOConfig

from segpo_core.algos import GRPO
from segpo_core.config import TrainConfig
from segpo_core.trl_names import RULES

PAGE = Path(__file__).resolve().parent / "trl.md"
MARKS = ("<!-- table -->", "<!-- end of table -->")


def default(field: dataclasses.Field) -> object:
    """What a field is where nothing is said."""
    if field.default is not dataclasses.MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else None


def table() -> str:
    """A line a name of GRPOConfig."""
    ours = {field.name: default(field) for field in (*dataclasses.fields(TrainConfig), *dataclasses.fields(GRPO))}
    lines = ["| TRL's name | TRL's default | here |", "|---|---|---|"]
    for field in sorted(dataclasses.fields(GRPOConfig), key=lambda field: field.name):
        name, theirs, rule = field.name, default(field), RULES.get(field.name)
        if name in ours:
            same = "the same" if ours[name] == theirs else f"the same; default `{ours[name]}`"
            word = f"{same}. {rule.word}" if rule and rule.turn else same
        else:
            word = f"{rule.kind}: {rule.word}"
        lines.append(f"| `{name}` | `{theirs}` | {word} |")
    return "\n".join(lines)


def page(text: str) -> str:
    """The page with today's table."""
    before, rest = text.split(MARKS[0])
    return f"{before}{MARKS[0]}\n{table()}\n{MARKS[1]}{rest.split(MARKS[1])[1]}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
