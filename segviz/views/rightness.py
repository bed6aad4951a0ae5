"""How right is the credit? What `segpo bench-credit` found: every method against true values, with its cost."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segpo_core.shipped import ROOT
from segviz.show.encode import escape, tidy
from segviz.show.still import CARD, INK, LINE, POS, SOFT, WIDTH, picture, words
from segviz.show.theme import method_label
from segviz.show.view import View

#: What the project measured itself: 288 completions of known value.
RECORDED = ROOT / "benchmarks" / "credit" / "methods.json"
#: Arms that are no method: bounds, and λ and segments with the true values.
BOUNDS = ("oracle", "shuffled", "uniform", "true_values", "sampled")
LARGEST = 2**20  #: bytes of a results file

_NUMBERS = ("within", "within_low", "within_high", "hit", "hit_low", "hit_high", "chance", "tokens")


def results_of(run: str | Path) -> Path:
    """Where `segpo bench-credit --run RUN` keeps its results: beside the run, not in it."""
    run = Path(run)
    return run.with_name(f"{run.name}.bench-credit.json")


def rightness(found: Mapping[str, Mapping[str, Any]] | str | Path = RECORDED, title: str = "How right is the credit?",
              whence: str = "") -> View:  # fmt: skip
    """Every arm of `segpo bench-credit`: how often its most blamed token is the one that decided, beside chance; its
    correlation with the true advantage within a completion; its cost.

    Args:
        found: {arm: figures}, or the JSON file that `segpo bench-credit --json` wrote; default: what the project
            recorded on the completions that it ships.
        whence: what it was measured on, in words.

    Raises:
        ValueError: the file is not such a file.
        OSError: it cannot be read.
    """
    if isinstance(found, (str, Path)):
        whence = whence or ("288 completions of three policies, values known" if found == RECORDED else str(found))
        found = read(Path(found))
    rows = sorted((_row(arm, figures) for arm, figures in found.items()), key=lambda row: -(row["within"] or 0))
    own = [row for row in rows if row["plain"]]
    data = {
        "kind": "rightness", "title": title, "whence": tidy(whence), "verdict": _verdict(own or rows),
        "rows": rows, "most": max((row["tokens"] or 0 for row in rows), default=0),
    }  # fmt: skip
    return View("rightness", title, data, _fallback(data))


def read(path: Path) -> dict[str, dict[str, Any]]:
    """{arm: figures} of a results file.

    Raises:
        ValueError: it is not one.
        OSError: it cannot be read.
    """
    if not path.is_file():
        raise OSError(f"{path} is not there; `segpo bench-credit` writes it (--json FILE, or --run RUN)")
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path.name} is {path.stat().st_size:,} bytes: no file of `segpo bench-credit` is so large")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path.name} is not a JSON file: {error}") from None
    if not isinstance(found, dict) or not found or not all(isinstance(one, dict) for one in found.values()):
        raise ValueError(f'{path.name} must hold {{"method": {{"hit": …}}}}, as `segpo bench-credit --json` writes it')
    for arm, figures in found.items():
        wrong = [n for n in _NUMBERS if not isinstance(figures.get(n), (int, float, type(None)))]
        if wrong or not {"hit", "within", "tokens"} <= set(figures):
            raise ValueError(f"{path.name}: {arm!r} lacks {wrong or ['hit', 'within', 'tokens']} as numbers")
    return found


def _row(arm: str, figures: Mapping[str, Any]) -> dict[str, Any]:
    method, _, settings = arm.partition(" ")
    bound = method in BOUNDS
    numbers = {name: figures.get(name) for name in _NUMBERS}
    finite = {n: None if x is None or not math.isfinite(x) else round(float(x), 4) for n, x in numbers.items()}
    label = method.replace("_", " ") if bound else method_label(method)
    return {
        "arm": tidy(label),
        "settings": tidy(settings),
        "plain": not settings and not bound,
        "bound": bound,
        **finite,
    }


def _verdict(rows: list[dict[str, Any]]) -> list[str]:
    known = [row for row in rows if row["hit"] is not None]
    if not known:
        return ["No method's credit was held against failed completions."]
    best = max(known, key=lambda row: (row["hit"], -(row["tokens"] or 0)))
    said = [f"The token that decided is found most often by {_named(best)}: in {best['hit']:.0%} of failed completions"]
    if best["chance"] is not None:
        said[0] += f" (chance {best['chance']:.0%})"
    said[0] += f", for {best['tokens'] or 0:.0f} more tokens a completion."
    others = sorted((row for row in known if row is not best), key=lambda row: -row["hit"])
    if others:
        said.append("Then " + ", ".join(f"{_named(row)} {row['hit']:.0%}" for row in others[:4]) + ".")
    return said


def _named(row: Mapping[str, Any]) -> str:
    return f"{row['arm']} {row['settings']}".strip()


def _fallback(data: Mapping[str, Any]) -> str:
    """A bar an arm for what it finds, chance as a mark, and the numbers beside it."""
    shown = [row for row in data["rows"] if row["plain"]] or data["rows"][:24]
    left, wide, parts = 230, WIDTH - 230 - 190, []
    for i, row in enumerate(shown):
        y, hit = 10 + 24 * i, row["hit"]
        parts.append(words(_named(row)[:34], 10, y + 13, fill=INK))
        parts.append(f'<rect x="{left}" y="{y}" width="{wide}" height="16" fill="{CARD}" stroke="{LINE}"/>')
        if hit is not None:
            parts.append(f'<rect x="{left}" y="{y}" width="{wide * hit:.1f}" height="16" fill="{POS}"/>')
        if row["chance"] is not None:
            at = left + wide * row["chance"]
            parts.append(f'<path d="M{at:.1f} {y - 2}V{y + 18}" stroke="{INK}" stroke-width="2"/>')
        said = "not measured" if hit is None else f"{hit:.0%} · within {_two(row['within'])}"
        parts.append(words(f"{said} · {row['tokens'] or 0:.0f} tokens", left + wide + 10, y + 13, size=11, fill=SOFT))
    drawn = picture("".join(parts), 20 + 24 * len(shown), " ".join(data["verdict"]))
    return (
        f"<div><h2>{escape(data['title'])}</h2><p>{escape(' '.join(data['verdict']))}</p><p>{drawn}</p>"
        f"<p><small>{escape(data['whence'])}. Bar: failed completions whose most blamed token is the one that decided; "
        "mark: chance.</small></p></div>"
    )


def _two(x: float | None) -> str:
    return "–" if x is None else f"{x:.2f}"
