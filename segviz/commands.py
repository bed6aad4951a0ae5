"""The commands of `segpo` that look at runs; pyproject.toml names them, and the core's command line finds them there.

So the core never imports the views: `segpo app` and `segpo report` are there because this package is.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

import segviz


def app(argv: list[str]) -> int:
    """`segpo app`: watch runs in a browser while they train."""
    with segviz.drawing():
        from segviz.app.main import main  # gradio takes seconds to import

    return main(argv)


def report(argv: list[str]) -> int:
    """`segpo report`: write one offline HTML file about a run."""
    parser = argparse.ArgumentParser(prog="segpo report", description="Write one offline HTML file about a run.")
    parser.add_argument("run", help="run directory")
    parser.add_argument("others", nargs="*", help="further runs, to compare its curves with: beside.html in the first")
    parser.add_argument("--out", help="file to write; default: report.html in the run directory")
    args = parser.parse_args(argv)
    run = segviz.open(args.run)
    if args.others:
        curves = segviz.board([run, *map(segviz.open, args.others)])
        written = curves.save(Path(args.run) / "beside.html")
        Console(stderr=True).print(f"wrote {written}, the curves of all {1 + len(args.others)} runs", highlight=False)
    path = segviz.report(run, args.out)
    Console(stderr=True).print(f"wrote {path}; open it in a browser, it needs no network", highlight=False)
    return 0
