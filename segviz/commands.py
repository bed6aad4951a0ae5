"""The commands of `segpo` that look at runs; pyproject.toml names them, and the core's command line finds them there.

So the core never imports the views: `segpo app` and `segpo report` are there because this package is.
"""

from __future__ import annotations

import argparse

from rich.console import Console

import segviz


def app(argv: list[str]) -> int:
    """`segpo app`: watch runs in a browser while they train."""
    from segviz.app.main import main  # gradio takes seconds to import

    return main(argv)


def report(argv: list[str]) -> int:
    """`segpo report`: write one offline HTML file about a run."""
    parser = argparse.ArgumentParser(prog="segpo report", description="Write one offline HTML file about a run.")
    parser.add_argument("run", help="run directory")
    parser.add_argument("--out", help="file to write; default: report.html in the run directory")
    args = parser.parse_args(argv)
    path = segviz.report(segviz.open(args.run), args.out)
    Console(stderr=True).print(f"wrote {path}; open it in a browser, it needs no network", highlight=False)
    return 0
