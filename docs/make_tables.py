"""Fill the tables of the documentation from the code: `python docs/make_tables.py`.

A table stands between `<!-- table: NAME -->` and `<!-- end of table -->`; NAME is a class with settings (`SAPO`), or
`memory`. A test compares the pages with what this makes, so no default can go stale.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
from pathlib import Path

from segpo_core import algos
from segpo_core.algos.base import CriticMethod, Method
from segpo_core.algos.vineppo import ChainMethod
from segpo_core.config import TrainConfig

DOCS = Path(__file__).resolve().parent
TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end of table -->)", re.S)
BASES = {"Method": Method, "CriticMethod": CriticMethod, "ChainMethod": ChainMethod, "TrainConfig": TrainConfig}


def said(owner: type) -> dict[str, str]:
    """Field -> the docstring under it, in the class itself."""
    body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0].body
    found = {}
    for line, after in zip(body, body[1:], strict=False):
        text = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else None
        if isinstance(line, ast.AnnAssign) and isinstance(text, str):
            found[line.target.id] = " ".join(text.split())
    return found


def default(item: dataclasses.Field) -> str:
    value = item.default if item.default is not dataclasses.MISSING else item.default_factory()
    return " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def settings(owner: type) -> str:
    """What a class adds to the settings of its parent, or changes in them, as a table."""
    parent = owner.__mro__[1]
    before = {f.name: default(f) for f in dataclasses.fields(parent)} if dataclasses.is_dataclass(parent) else {}
    words: dict[str, str] = {}
    for ancestor in reversed(owner.__mro__[:-1]):
        if dataclasses.is_dataclass(ancestor):
            words |= said(ancestor)
    rows = ["| setting | default | |", "|---|---|---|"]
    for item in dataclasses.fields(owner):
        new = item.name not in before
        if new or before[item.name] != default(item):
            note = words[item.name] if new else f"{words[item.name]} ({parent.__name__}: {before[item.name]})"
            rows.append(f"| `{item.name}` | {default(item)} | {note.replace('|', chr(92) + '|')} |")
    return "\n".join(rows) + "\n" if len(rows) > 2 else f"No setting of its own: those of `{parent.__name__}`.\n"


#: Models of the usual sizes: parameters, and the share that a LoRA adapter of rank 16 on all linear layers adds.
SIZES = {"3B": (3e9, 0.010), "7B": (7e9, 0.006), "32B": (32e9, 0.004)}
GIB = 2**30


def memory() -> str:
    """GiB of what stays in memory: weights, gradients, AdamW's two moments. Activations and the cache come on top.

    Full: float32 masters, gradients and moments (16 bytes a parameter), with bfloat16 the copy to compute with and its
    gradient (4 more), as `dtype` in TrainConfig says. LoRA: 2 bytes a parameter of the model in bfloat16, 16 for each of
    the adapter. FSDP2 divides all of it by the number of GPUs.
    """
    rows = [
        "| model | all weights, float32 | all weights, bfloat16 | a GPU, of 8 with FSDP2 | LoRA r 16, bfloat16 | a reference model more |",
        "|---|---|---|---|---|---|",
    ]
    for name, (n, adapter) in SIZES.items():
        full, mixed = 16 * n, 20 * n
        cells = (full, mixed, mixed / 8, 2 * n + 16 * adapter * n, 2 * n)
        rows.append(f"| {name} | " + " | ".join(f"{cell / GIB:.0f}" for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def table(name: str) -> str:
    return memory() if name == "memory" else settings(BASES.get(name) or getattr(algos, name))


def page(text: str) -> str:
    """The page with today's tables in it."""
    return TABLE.sub(lambda found: found[1] + table(found[2]) + found[3], text)


if __name__ == "__main__":
    for path in sorted(DOCS.rglob("*.md")):
        text = path.read_text(encoding="utf-8")
        if page(text) != text:
            path.write_text(page(text), encoding="utf-8")
            print(path.relative_to(DOCS))
