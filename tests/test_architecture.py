"""The rooms and their one direction, read from the imports: see docs/architecture.md.

An import counts wherever it stands, inside a function too; one that is only there for type checkers does not.
"""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

#: Rooms from the ground up. A room imports what stands before it, or itself; those in one line do not know each other.
FLOORS = {
    "segpo_core": (
        ("shipped", "types", "segments", "moved", "pictures", "loading", "trl_turns", "typed"),
        ("trl_names",),
        ("advantages", "losses", "weights", "prefix_tree"),
        ("record", "tasks"),
        ("policy",),
        ("sampling",),
        ("algos",),
        ("config",),
        ("training",),
        ("afterwards", "bridges"),
        ("cli", "__main__"),
    ),
    "segviz": (("show",), ("runs",), ("parts",), ("views",), ("notebook",), ("app",), ("commands",)),
}
MATHS = ("types", "segments", "advantages", "losses", "weights", "prefix_tree")
#: What the views may ask of the core: the record, the maths, tasks, and the policy that a run left behind.
FOR_VIEWS = (
    "shipped", "loading", "types", "segments", "record", "tasks", "policy", "sampling", "afterwards", "algos", "config",
)  # fmt: skip


class _Imports(ast.NodeVisitor):
    def __init__(self) -> None:
        self.found: set[str] = set()

    def visit_If(self, node: ast.If) -> None:
        if "TYPE_CHECKING" not in ast.unparse(node.test):
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        self.found |= {name.name for name in node.names}

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert node.level == 0, "imports are absolute here"
        self.found |= {f"{node.module}.{name.name}" for name in node.names}


@cache
def modules() -> dict[str, Path]:
    """Module -> file, for both packages."""
    found = {}
    for package in FLOORS:
        for file in sorted((ROOT / package).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


@cache
def arrows() -> dict[str, set[str]]:
    """Module -> modules of ours that it imports."""
    graph = {}
    for module, file in modules().items():
        visitor = _Imports()
        visitor.visit(ast.parse(file.read_text(encoding="utf-8")))
        targets = set()
        for name in visitor.found:
            while name and name not in modules():
                name = name.rpartition(".")[0]
            targets |= {name} - {"", module}
        graph[module] = targets
    return graph


def room(module: str) -> tuple[str, str]:
    package, _, rest = module.partition(".")
    return package, rest.partition(".")[0]


def floor(package: str, name: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS[package]) if name in rooms)


def test_every_module_stands_in_a_room():
    known = {(package, name) for package, floors in FLOORS.items() for rooms in floors for name in rooms}
    assert {room(module) for module in modules() if "." in module} <= known


def test_no_import_goes_up():
    up = [
        f"{module} imports {target}"
        for module, targets in arrows().items()
        for target in targets
        if "." in module and "." in target and room(module)[0] == room(target)[0] and room(module) != room(target)
        if floor(*room(target)) >= floor(*room(module))
    ]
    assert not up


def test_no_circle():
    graph, state = arrows(), {}

    def visit(module: str, path: tuple[str, ...]) -> None:
        if state.get(module) == "done":
            return
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        for target in graph[module]:
            if "." in target:  # the packages' front doors lead everywhere, lazily
                visit(target, (*path, module))
        state[module] = "done"

    for module in graph:
        visit(module, ())


def test_the_core_knows_no_views():
    assert not [m for m, targets in arrows().items() if m.startswith("segpo_core") for t in targets if "segviz" in t]


def test_views_know_no_trainer():
    asked = {
        (module, target)
        for module, targets in arrows().items()
        for target in targets
        if module.startswith("segviz") and target.startswith("segpo_core.")
    }
    assert asked and not [pair for pair in asked if room(pair[1])[1] not in FOR_VIEWS]


def test_the_maths_knows_no_model():
    for name in MATHS:
        visitor = _Imports()
        visitor.visit(ast.parse(modules()[f"segpo_core.{name}"].read_text(encoding="utf-8")))
        outside = {found.partition(".")[0] for found in visitor.found} - set(sys.stdlib_module_names)
        assert outside <= {"torch", "segpo_core", "numpy"}, name
        assert all(room(target)[1] in MATHS for target in arrows()[f"segpo_core.{name}"]), name


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import segpo_core", "torch transformers numpy"),
        ("import segviz", "torch transformers plotly anywidget"),
        ("import segpo_core.algos", "transformers datasets"),
        ("import segpo_core.cli", "torch transformers plotly"),
    ],
)
def test_what_is_not_needed_is_not_loaded(statement, unwanted):
    code = f"{statement}; import sys; print(*[m for m in {unwanted.split()} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_front_doors_open_to_every_name():
    import segpo_core
    import segviz

    for package in (segpo_core, segviz):
        assert all(getattr(package, name) is not None for name in package.__all__)
        assert set(package.__all__) <= set(dir(package))
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            package.nothing  # noqa: B018


def test_the_picture_of_the_rooms_is_todays():
    spec = importlib.util.spec_from_file_location("make_architecture", ROOT / "docs" / "make_architecture.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    text = script.PAGE.read_text(encoding="utf-8")
    assert script.page(text) == text, "run: python docs/make_architecture.py"


def test_nothing_that_is_loaded_runs_code():
    """`torch.load` takes weights only; `trust_remote_code` is never switched on here, see policy/load.py. Pickle and
    the like are ruff's."""
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert isinstance(node.value, ast.Constant) and node.value.value is False, name
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert "weights_only=True" in ast.unparse(node), name
            if isinstance(node, ast.Dict):
                said = [ast.unparse(v) for k, v in zip(node.keys, node.values, strict=True) if _says(k)]
                assert set(said) <= {"False"}, name


def _says(key: ast.expr | None) -> bool:
    return isinstance(key, ast.Constant) and key.value == "trust_remote_code"
