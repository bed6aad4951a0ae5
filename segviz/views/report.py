"""The report: one offline HTML file with the run's facts, its learning curves and chosen rollouts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from segpo_core.record.blame import tour
from segviz.parts.credit import blamed, error_of, reason_of, signed, token_credit
from segviz.parts.heading import pictures
from segviz.parts.scoreboard import Verdicts, judge, scored
from segviz.parts.story import story
from segviz.parts.tokens import LONG
from segviz.runs.light import RolloutTable
from segviz.runs.rollout import Rollout
from segviz.runs.run import Run
from segviz.show.encode import escape, tidy
from segviz.show.theme import level, symmetric_limit
from segviz.show.view import View
from segviz.views.board import board_data, listed
from segviz.views.over_training import over_training_data
from segviz.views.ribbon import ribbon_data

Key = tuple[int, int, int]  #: step, group, sample

THUMBNAIL = 64  #: stripes of a gallery button
ODD_STEPS = 3  #: unusual steps whose rollouts travel with the page

#: Kind of rollout -> why it is worth a look.
KINDS = {
    "Right and grounded": "The answer is right and so is what it says it sees.",
    "Right but ungrounded": "The answer is right although the perception is wrong: the outcome reward cannot see this.",
    "Perception error": "The first error is in what it sees.",
    "Reasoning error": "It sees right and goes wrong later.",
    "Most blamed": "The most negative segment of this step.",
    "Right": "The answer is right.",
    "Wrong": "The answer is wrong.",
    "Highest reward": "The highest reward of this step.",
    "Lowest reward": "The lowest reward of this step.",
    "Chosen": "Asked for by name.",
}


def report(run: Run, out: str | Path | None = None, rollouts: Iterable[Key] | None = None) -> Path:
    """Write one offline HTML file about a run.

    Args:
        run: from `sv.open`.
        out: the file, default `report.html` inside the run directory.
        rollouts: (step, group, sample) of the rollouts to show; default: telling ones of the first, middle and last
            recorded step.

    Raises:
        KeyError: a rollout that was asked for is not recorded.
    """
    out = Path(out) if out is not None else run.path / "report.html"
    return report_view(run, rollouts).save(out)


def report_view(run: Run, rollouts: Iterable[Key] | None = None) -> View:
    """The report as a View."""
    chosen = [("Chosen", key) for key in rollouts] if rollouts is not None else pick(run)
    gallery: list[dict[str, Any]] = []
    images: dict[str, dict[str, Any]] = {}
    ribbons: dict[Key, int] = {}
    drawn: list[dict[str, Any]] = []

    def embed(key: Key) -> int:
        if key not in ribbons:
            rollout = run.rollout(*key)
            images.update(pictures(rollout))
            ribbons[key] = len(drawn)
            drawn.append(ribbon_data(rollout) | {"strip": thumbnail(rollout)})
        return ribbons[key]

    for kind, key in chosen:
        if key is None:
            gallery.append({"kind": kind[1], "step": kind[0], "ribbon": None})
            continue
        name = kind if isinstance(kind, str) else kind[1]
        gallery.append({"kind": name, "why": KINDS[name], "step": key[0], "ribbon": embed(key)})
    board = board_data([run])
    board["rollouts"] = of_marks(run, board, {key[0] for _, key in chosen if key}) if rollouts is None else []
    for item in board["rollouts"]:
        embed((item["step"], item["group"], item["sample"]))
    verdicts = _verdicts(run)
    guided = [] if rollouts is not None or verdicts is None else guide(run, verdicts)
    for stop in guided:
        stop["ribbon"] = embed(stop.pop("key"))
    title = f"{run.name} · {run.method_label}"
    found, known, told = scored(run, verdicts), facts(run), story(run)
    data = {
        "kind": "report",
        "title": tidy(title),
        "name": run.name,
        "method": run.method_label,
        "facts": known,
        "headline": told["headline"],
        "sentence": told["sentence"],
        "found": found,
        "board": board,
        "over": over(run) if rollouts is None else None,
        "tour": guided,
        "gallery": gallery,
        "ribbons": drawn,
        "pictures": images,
        "problems": run.problems,
    }
    lines = "".join(f"<li>{escape(name)}: {escape(value)}</li>" for name, value in known)
    answer = "".join(f"<p>{escape(line)}</p>" for line in (told["sentence"], found["said"] if found else "") if line)
    return View("report", title, data, f"<h3>{escape(title)}</h3>{answer}<ul>{lines}</ul>")


def over(run: Run) -> dict[str, Any] | None:
    """The same held-out problems at each evaluation; None where none are recorded, or they cannot be read."""
    try:
        return over_training_data(run)[0]
    except (ValueError, OSError):
        return None


def _verdicts(run: Run) -> Verdicts | None:
    """What scoreboard and tour go by, read once for both; None where it cannot be read."""
    try:
        return judge(run)
    except (ValueError, OSError):
        return None


def guide(run: Run, verdicts: Verdicts) -> list[dict[str, Any]]:
    """A tour of up to three wrong completions: an error in seeing found, one in reckoning found, one missed, each with
    `kind`, `key` and `why` in words. Empty where no error is known or the credit names no place."""
    found = tour(verdicts.rows, {key: blame for key, (_, blame) in verdicts.tally})
    return [{"kind": kind, "key": key, "why": _explained(run.rollout(*key))} for kind, key in found.items()]


def _explained(rollout: Rollout) -> str:
    """What the credit blames most, beside the first true error."""
    place, error, credit = blamed(rollout), error_of(rollout), token_credit(rollout)
    if place.start is None or error is None:
        return ""
    quote = lambda start, end: "“" + tidy("".join(rollout.pieces[start:end])).strip()[:60] + "”"  # noqa: E731
    wrong = quote(error["start"], error["end"])
    if place.hit:
        said = (
            f"The first error is {wrong}{reason_of(error)}, and there the blame is strongest: {signed(place.credit)}."
        )
        return said if not place.by_token else said + " Credit is given token by token here."
    there = [x for x in credit[error["start"] : error["end"]] if math.isfinite(x)]
    cost = f"credit {signed(min(there))} at the most" if there else "no credit at all"
    return (
        f"The first error is {wrong}{reason_of(error)}, with {cost}: for the reward it decided little. "
        f"Most blamed is {quote(place.start, place.end)} with {signed(place.credit)}."
    )


def of_marks(run: Run, board: dict[str, Any], steps: set[int]) -> list[dict[str, Any]]:
    """Telling rollouts of `steps` and of the steps that are unusual in most charts: what the board's curves lead to.
    Very long ones stay out of the page."""
    marks = Counter(odd["step"] for chart in board["charts"] for line in chart["lines"] for odd in line.get("odd", ()))
    recorded = run.steps
    odd = [min(recorded, key=lambda s: abs(s - step)) for step, _ in marks.most_common(ODD_STEPS)] if recorded else []
    rows = [row for row in run.rollouts_at(*steps, *odd) if row["tokens"] is None or row["tokens"] <= LONG]
    return listed(rows)


def facts(run: Run) -> list[tuple[str, str]]:
    """What this run is, in words: (name, value)."""
    manifest, config = run.manifest, run.config
    packages = manifest.get("packages") if isinstance(manifest.get("packages"), dict) else {}
    versions = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
    last = max((series.steps[-1] for series in run.metrics.values()), default=0)
    planned = config.get("max_steps")
    found = [
        ("method", run.method_label),
        ("model", run.model),
        ("data", config.get("dataset")),
        ("steps", f"{last} of {planned}" if planned else str(last)),
        ("completions a prompt", config.get("num_generations")),
        ("learning rate", config.get("learning_rate")),
        ("seed", config.get("seed", manifest.get("seed"))),
        ("started", str(manifest.get("started") or "").replace("T", " ").replace("+00:00", " UTC")),
        ("steps with rollouts", f"{len(run.steps):,}"),
        ("versions", versions),
        ("commit", str(manifest.get("git_commit") or "")[:12]),
        ("machine", manifest.get("machine")),
    ]
    return [(name, tidy(str(value))) for name, value in found if value not in (None, "")]


def pick(run: Run) -> list[tuple[tuple[int, str], Key | None]]:
    """Telling rollouts of the first, middle and last recorded step: ((step, kind), key or None where there is none)."""
    steps = run.steps
    chosen = sorted({steps[0], steps[len(steps) // 2], steps[-1]}) if steps else []
    every = run.rollouts_at(*chosen)
    tables = {step: table for step in chosen if len(table := every.where(step=step))}
    if any(row["perception_right"] is not None for row in every):
        kinds = list(KINDS)[:5]
    elif any(row["answer_right"] is not None for row in every):
        kinds = ["Right", "Wrong", "Most blamed"]
    else:
        kinds = ["Highest reward", "Lowest reward", "Most blamed"]
    picked = []
    for step, table in tables.items():
        seen: set[Key] = set()
        found: dict[str, Key | None] = {}
        # the most blamed one is what it is; the others then prefer a rollout that is not shown yet
        for kind in sorted(kinds, key=lambda kind: kind != "Most blamed"):
            row = _best(table, kind, seen)
            found[kind] = None if row is None else (row["step"], row["group"], row["sample"])
            seen |= {found[kind]} if row else set()
        picked += [((step, kind), found[kind]) for kind in kinds]
    return picked


def thumbnail(rollout: Rollout) -> list[int]:
    """The ribbon at a glance: up to `THUMBNAIL` shades, -10 … 10, and -99 where nothing was trained."""
    credit, mask = rollout.column("advantages") or [], rollout.column("loss_mask")
    total = len(rollout.pieces)
    trained = [value is not None and (mask is None or bool(mask[t])) for t, value in enumerate(credit)]
    limit = symmetric_limit(credit, trained)
    stripes, count = [], min(total, THUMBNAIL)
    for i in range(count):
        part = range(i * total // count, max(i * total // count + 1, (i + 1) * total // count))
        known = [credit[t] for t in part if credit and trained[t]]
        stripes.append(level(max(known, key=abs), limit) if known else -99)
    return stripes


def _best(table: RolloutTable, kind: str, seen: set[Key]) -> dict[str, Any] | None:
    """The most telling rollout of a kind: the strongest credit, finished before cut, not shown yet."""
    tests = {
        "Right and grounded": lambda r: r["answer_right"] and r["perception_right"],
        "Right but ungrounded": lambda r: r["answer_right"] and r["perception_right"] is False,
        "Perception error": lambda r: r["answer_right"] is False and r["error_kind"] == "perception",
        "Reasoning error": lambda r: r["answer_right"] is False and r["error_kind"] == "reasoning",
        "Most blamed": lambda r: r["lowest"] is not None and r["lowest"] < 0,
        "Right": lambda r: r["answer_right"],
        "Wrong": lambda r: r["answer_right"] is False,
        "Highest reward": lambda r: r["reward"] is not None,
        "Lowest reward": lambda r: r["reward"] is not None,
    }
    rows = table.where(tests[kind]).rows
    if kind == "Most blamed":
        return min(rows, key=lambda r: r["lowest"], default=None)

    def worth(row: dict[str, Any]) -> tuple:
        strongest = max(abs(row["lowest"] or 0), abs(row["highest"] or 0))
        reward = row["reward"] or 0
        extreme = {"Highest reward": reward, "Lowest reward": -reward}.get(kind, 0)
        fresh = (row["step"], row["group"], row["sample"]) not in seen
        # a very long completion is told better by a shorter one with the same story
        readable = row["tokens"] is None or row["tokens"] <= LONG
        return extreme, fresh, bool(row["finished"]), readable, strongest

    return max(rows, key=worth, default=None)
