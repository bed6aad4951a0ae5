"""The notebooks run from top to bottom, and they are shipped with outputs that read without running."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("[0-9]*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]


@pytest.fixture(scope="module")
def tool():
    """notebooks/execute.py as a module; the folder is no package."""
    spec = importlib.util.spec_from_file_location("execute", FOLDER / "execute.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_nine_in_order():
    assert [name[:2] for name in NAMES] == [f"{number:02}" for number in range(1, 10)]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_every_cell_runs(path, tool, monkeypatch):
    monkeypatch.setenv("SEGPO_SHORT", "1")
    notebook = tool.execute(path, timeout=300)
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_outputs_read_without_running(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    counts = [cell.execution_count for cell in cells]
    assert counts == list(range(1, len(cells) + 1)), "cells were not run once each, from top to bottom"
    kinds = set()
    for output in (output for cell in cells for output in cell.outputs):
        assert output.output_type != "error"
        kinds |= set(output.get("data", {}))
    assert "application/vnd.jupyter.widget-view+json" not in kinds
    assert kinds & {"text/html", "image/png"}
    assert "widgets" not in notebook.metadata


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_each_teaches(path):
    """A question first, an exercise at the end, and nothing about the machine it was run on."""
    notebook = nbformat.read(path, as_version=4)
    words = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    assert words[0].startswith("# ") and "?" in words[0]
    assert any(re.search(r"^#+ Exercise", text, re.M) for text in words)
    whole = path.read_text(encoding="utf-8")
    assert not re.search(r"/(home|root|work|Users)/", whole)
    assert path.stat().st_size < 500_000
