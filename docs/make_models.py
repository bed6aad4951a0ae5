"""The table in docs/models.md: every family of models, tried (tests/fakes/abilities.py). Minutes of one core.

python docs/make_models.py             try all families and write the page
python docs/make_models.py mamba lfm2  try these, and say where the page says something else
"""

from __future__ import annotations

import logging
import re
import sys
import tempfile
import textwrap
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from segpo_core.policy.agreement import agreement  # noqa: E402
from segpo_core.policy.load import load_model, load_processor  # noqa: E402
from tests.fakes import sighted, zoo  # noqa: E402
from tests.fakes.abilities import TRIED, abilities  # noqa: E402

PAGE = ROOT / "docs" / "models.md"
FAMILIES = [*sighted.SIGHTED, *zoo.TEXT, *zoo.LOADED]
LOADS = "loads"
COLUMNS = list(TRIED)


def tried(family: str) -> dict[str, str]:
    """What a family can do; see `abilities`."""
    with tempfile.TemporaryDirectory() as folder:
        if family in sighted.SIGHTED:
            return abilities(sighted.SIGHTED[family](Path(folder), 0))
        path = zoo.text(family, folder)
        if family in zoo.TEXT:
            return abilities(path)
        agreement(load_model(path), load_processor(path))
        return {LOADS: "yes"}


def row(family: str, found: dict[str, str]) -> str:
    """A line of one of the two tables."""
    if LOADS in found:
        return f"| {family} | {LOADS} |"
    if "all" in found:
        return f"| {family} | {_plain(found['all'])} |"
    cells = ["" if name not in found else "yes" if found[name] == "yes" else "no" for name in COLUMNS]
    return f"| {family} | {' | '.join(cells)} |"


def _plain(words: str) -> str:
    """The reason out of an error, without figures, as they differ from machine to machine."""
    words = words.split("; choose a")[0].split(", so it would be")[0].split(": it keeps its state elsewhere")[0]
    words = re.sub(r"\(by [\d.e-]+ nats\)", "(by more than rounding)", words)
    words = re.sub(r"differ by [\d.e-]+ nats", "differ by more than rounding", words)
    return re.sub(r"<class '[\w.]*?(\w+)'>", r"\1", words).replace("|", "/").rstrip(".")


def rows(page: str) -> dict[str, str]:
    """Family -> its line on the page."""
    blocks = dict(re.findall(r"<!-- models: (\w+) -->\n(.*?)\n<!-- end", page, re.S))
    lines = [line for name in ("can", "cannot") for line in blocks[name].splitlines()[2:]]
    found = {line.split("|")[1].strip(): line for line in lines}
    loaded = re.findall(r"[a-z0-9_]+", blocks["loaded"])
    return found | {family: row(family, {LOADS: "yes"}) for family in loaded}


def page(lines: dict[str, str]) -> str:
    """The page with these lines in place of those that stand there."""
    loaded = [family for family, line in lines.items() if line.endswith(f"| {LOADS} |")]
    refused = [family for family, line in lines.items() if line.count("|") == 3 and family not in loaded]
    head = f"| family | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 1)}\n"
    tables = {
        "can": head + "\n".join(lines[f] for f in lines if f not in refused and f not in loaded),
        "loaded": textwrap.fill(", ".join(loaded) + ".", 120, break_on_hyphens=False),
        "cannot": "| family | what is said |\n|---|---|\n" + "\n".join(lines[f] for f in refused),
    }
    text = PAGE.read_text()
    for name, table in tables.items():
        start, end = f"<!-- models: {name} -->\n", "\n<!-- end of table -->"
        before, _, rest = text.partition(start)
        text = before + start + table + end + rest.partition(end)[2]
    return text


def main(names: list[str]) -> int:
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    lines = {}
    for family in names or FAMILIES:
        lines[family] = row(family, tried(family))
        print(lines[family], flush=True)
    if not names:
        PAGE.write_text(page(lines))
        return 0
    written = rows(PAGE.read_text())
    wrong = [family for family, line in lines.items() if written.get(family) != line]
    for family in wrong:
        print(f"the page says: {written.get(family)}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
