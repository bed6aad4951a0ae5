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


#: Text models of the usual sizes: layers, width, width of keys and values, width of the MLP, words, whether the
#: embedding is also the last layer.
SIZES = {
    "3B": (36, 2048, 256, 11008, 151_936, True),
    "7B": (28, 3584, 512, 18944, 152_064, False),
    "32B": (64, 5120, 1024, 27648, 152_064, False),
}
GPUS, RANK = 8, 16


def memory() -> str:
    """GiB that stay on each GPU: weights, gradients, AdamW's two moments. Activations and the cache come on top."""
    rows = [
        f"| model | parameters | float32: 16 | bfloat16: 20 | bfloat16, FSDP2 on {GPUS}: 2 + 16/{GPUS} "
        f"| LoRA, rank {RANK}: 2 + 16 an adapter's | a reference more: 2 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, (layers, width, kv, mlp, words, tied) in SIZES.items():
        linear = [(width, width), (width, kv), (width, kv), (width, width), (width, mlp), (width, mlp), (mlp, width)]
        n = layers * sum(a * b for a, b in linear) + words * width * (1 if tied else 2)
        adapter = layers * RANK * sum(a + b for a, b in linear)
        cells = (16 * n, 20 * n, (2 + 16 / GPUS) * n, 2 * n + 16 * adapter, 2 * n)
        rows.append(f"| {name} | {n / 1e9:.1f} × 10⁹ | " + " | ".join(f"{cell / 2**30:.0f}" for cell in cells) + " |")
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
