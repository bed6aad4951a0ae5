"""Draw the picture in docs/architecture.md from the imports: `python docs/make_architecture.py`.

A test compares the page with what this prints, so the picture cannot go stale.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "architecture.md"
MARKS = ("<!-- rooms -->", "<!-- end of rooms -->")
PACKAGES = ("segpo_core", "segviz")
MATHS = ("advantages", "losses", "weights", "segments", "types")  #: one box: the maths is files, not a folder
#: Small helpers that many rooms use.
HIDDEN = ("loading", "moved", "pictures", "shipped", "trl_names", "trl_turns", "typed")


def room(module: str) -> str:
    """segpo_core.policy.load -> segpo_core.policy; the files of the maths are one room."""
    package, _, rest = module.partition(".")
    name = rest.partition(".")[0]
    return f"{package}.maths" if package == "segpo_core" and name in MATHS else f"{package}.{name}" if name else ""


def imports(file: Path) -> set[str]:
    """Our modules that a file imports, anywhere in it, but for type checkers."""
    found: set[str] = set()

    def walk(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.ImportFrom):
            found.update(f"{node.module}.{name.name}" for name in node.names)
        for child in ast.iter_child_nodes(node):
            walk(child)

    walk(ast.parse(file.read_text(encoding="utf-8")))
    return {name for name in found if name.partition(".")[0] in PACKAGES}


def arrows() -> set[tuple[str, str]]:
    """(room, room that it imports)."""
    found = set()
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            here = room(".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
            found |= {(here, room(name)) for name in imports(file)}
    return {(a, b) for a, b in found if a and b and a != b and not {a, b} & {f"segpo_core.{h}" for h in HIDDEN}}


def essential(edges: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """The arrows that no path of others replaces, sorted: fewer lines, the same order."""
    to: dict[str, set[str]] = {}
    for a, b in edges:
        to.setdefault(a, set()).add(b)

    def reach(a: str, without: str | None = None) -> set[str]:
        seen, todo = set(), [b for b in to.get(a, ()) if b != without]
        while todo:
            here = todo.pop()
            if here not in seen:
                seen.add(here)
                todo.extend(to.get(here, ()))
        return seen

    return sorted((a, b) for a, b in edges if b not in reach(a, without=b))


def drawing() -> str:
    """The rooms as a Mermaid chart, arrows from who imports to what is imported."""
    edges = arrows()
    rooms = sorted({name for edge in edges for name in edge})
    lines = ["```mermaid", "flowchart TD"]
    for package in PACKAGES:
        lines.append(f"  subgraph {package}")
        lines += [
            f'    {name.replace(".", "_")}["{name.partition(".")[2]}"]' for name in rooms if name.startswith(package)
        ]
        lines.append("  end")
    lines += [f"  {a.replace('.', '_')} --> {b.replace('.', '_')}" for a, b in essential(edges)]
    return "\n".join([*lines, "```"])


def page(text: str) -> str:
    """The page with today's drawing in it."""
    before, rest = text.split(MARKS[0])
    return f"{before}{MARKS[0]}\n{drawing()}\n{MARKS[1]}{rest.split(MARKS[1])[1]}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
