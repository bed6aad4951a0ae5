"""Run the notebooks and keep their outputs, so that they read without running.

    python notebooks/execute.py              every notebook, in place
    python notebooks/execute.py 02 03        some of them, by number

Figures are kept as plotly and as PNG, views in their still form. A live widget needs a kernel, and a script a notebook
that is trusted, so neither is kept.
"""

from __future__ import annotations

import base64
import io
import os
import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).resolve().parent
WIDGET = "application/vnd.jupyter.widget-view+json"


def execute(path: Path, timeout: int = 1200) -> nbformat.NotebookNode:
    """The notebook with fresh outputs, all cells run from top to bottom in a kernel of their own.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed; the message holds the cell and its traceback.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=timeout, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    )
    client.execute()
    return tidy(notebook)


def tidy(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without what is gone when the kernel is gone, and without what differs from run to run for no reason."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        for output in cell.outputs:
            data = output.get("data", {})
            if "text/html" in data:
                data["text/html"] = re.sub(r"<script>.*?</script>", "", data["text/html"], flags=re.S)
            if "image/png" in data:
                data["image/png"] = smaller(data["image/png"])
            if data.pop(WIDGET, None) and not data.get("text/html"):
                data.clear()  # the words that stand in for a control say nothing to a reader
        # progress bars write to stderr
        cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr" and ("data" not in o or o["data"])]
    return notebook


def smaller(png: str) -> str:
    """A picture of a figure, in base64, with no more colours than it needs."""
    with Image.open(io.BytesIO(base64.b64decode(png))) as picture:
        paper = Image.new("RGB", picture.size, "white")
        paper.paste(picture, mask=picture.getchannel("A") if picture.mode == "RGBA" else None)
    sink = io.BytesIO()
    paper.quantize(96, dither=Image.Dither.NONE).save(sink, format="PNG", optimize=True)
    return base64.b64encode(sink.getvalue()).decode()


def main() -> None:
    os.environ["PLOTLY_RENDERER"] = "plotly_mimetype+png"  # kernels inherit it
    for path in sorted(HERE.glob("[0-9]*.ipynb")):
        if sys.argv[1:] and path.name[:2] not in sys.argv[1:]:
            continue
        begin = time.perf_counter()
        notebook = execute(path)
        nbformat.write(notebook, path)
        print(f"{path.name}: {time.perf_counter() - begin:.0f} s, {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
