"""Makes docs/dependencies.md, the licences of what is installed, and, with a report of pip, requirements.lock.

python docs/make_dependencies.py
pip install --dry-run --no-deps --ignore-installed --report report.json -r constraints.txt
python docs/make_dependencies.py report.json
"""

from __future__ import annotations

import json
import re
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEAD = """# Dependencies and their licences

What `constraints.txt` pins, as its packages' own metadata say it; made by `docs/make_dependencies.py`. None of it is
part of this project's files. Each comes under its own licence, which lies in it.

| package | version | licence |
|---|---|---|
"""
LOCK = """# The tested environment, file by file: Python 3.11, Linux, x86-64, torch for the CPU. pip takes no other:
#   pip install --require-hashes -r requirements.lock && pip install --no-deps --no-build-isolation -e .
# Made from constraints.txt by docs/make_dependencies.py.
"""


def pins() -> dict[str, str]:
    """Package -> version."""
    return dict(re.findall(r"^([^#=\s]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))


def licence(said: metadata.PackageMetadata) -> str:
    """In words: the expression, else the short form, else the classifiers."""
    text = said.get("License-Expression") or ""
    short = (said.get("License") or "").strip()
    if not text and short and len(short) < 40 and "\n" not in short and short != "UNKNOWN":
        text = short
    classifiers = [one.split(" :: ")[-1] for one in said.get_all("Classifier") or [] if one.startswith("License")]
    return text or ", ".join(classifiers) or _named(short)


def _named(text: str) -> str:
    """What a whole licence calls itself."""
    known = {"Apache License": "Apache-2.0", "MIT License": "MIT", "Redistribution and use": "BSD"}
    return next((name for words, name in known.items() if words in text), "see its files")


def table() -> str:
    """The page.

    Raises:
        PackageNotFoundError: a pinned package is not installed.
    """
    rows = [f"| {name} | {version} | {licence(metadata.metadata(name))} |\n" for name, version in pins().items()]
    return HEAD + "".join(rows)


def locked(report: dict) -> str:
    """requirements.lock, from what `pip install --report` says it would install."""
    lines = []
    for item in sorted(report["install"], key=lambda item: item["metadata"]["name"].lower()):
        name, version = item["metadata"]["name"], item["metadata"]["version"].partition("+")[0]
        (sha256,) = [item["download_info"]["archive_info"]["hashes"]["sha256"]]
        lines.append(f"{name}=={version} --hash=sha256:{sha256}\n")
    return LOCK + "".join(lines)


if __name__ == "__main__":
    (ROOT / "docs" / "dependencies.md").write_text(table(), encoding="utf-8")
    for name in sys.argv[1:]:
        (ROOT / "requirements.lock").write_text(locked(json.loads(Path(name).read_text())), encoding="utf-8")
