"""Write the table of docs/trl.md from `segpo_core.trl_names` and an installed TRL: `python docs/make_trl.py`.

A test compares the page with what this prints, so the table cannot go stale.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from trl import GRPOConfig, ModelConfig
from trl.scripts.grpo import GRPOScriptArguments

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


#: What a script of TRL's is told, and by which words the page calls it.
THEIRS = {"GRPOConfig": GRPOConfig, "ModelConfig": ModelConfig, "The script's own": GRPOScriptArguments}


def table() -> str:
    """A line a name of each of TRL's classes, and of each name that only older versions have, or that stands within one
    of these."""
    ours = {field.name: default(field) for field in (*dataclasses.fields(TrainConfig), *dataclasses.fields(GRPO))}
    lines, told = [], set()
    for title, theirs in THEIRS.items():
        lines += [f"### {title}", "", "| TRL's name | TRL's default | here |", "|---|---|---|"]
        for field in sorted(dataclasses.fields(theirs), key=lambda field: field.name):
            lines.append(f"| `{field.name}` | `{default(field)}` | {word(field.name, ours, default(field))} |")
            told.add(field.name)
        lines.append("")
    lines += ["### Names of older versions, and of what stands within others", "", "| name | here |", "|---|---|"]
    return "\n".join(lines + [f"| `{name}` | {word(name, ours)} |" for name in sorted({*RULES} - told)])


def word(name: str, ours: dict[str, object], theirs: object = None) -> str:
    """What becomes of a name."""
    rule = RULES.get(name)
    if name not in ours:
        return f"{rule.kind}: {rule.word}"
    same = "the same" if ours[name] == theirs else f"the same; default `{ours[name]}`"
    return f"{same}. {rule.word}" if rule and rule.turn else same


def page(text: str) -> str:
    """The page with today's table."""
    before, rest = text.split(MARKS[0])
    return f"{before}{MARKS[0]}\n{table()}\n{MARKS[1]}{rest.split(MARKS[1])[1]}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
