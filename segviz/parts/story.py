"""What became of a run so far, for somebody who sees it for the first time: a few numbers, and one sentence of them.

The report, the app and the notebooks ask here, so that they say the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from segviz.runs.pulse import seconds_left
from segviz.runs.run import Run
from segviz.runs.series import Series
from segviz.show.encode import tidy
from segviz.show.statistics import difference, mean_difference, wilson

LEAST = 10  #: steps from which the first and the last tenth of them can be compared
MARGIN = 0.05  #: a share that has fallen by less than this, with 95 % confidence, is as high as before

NOTES = {
    "eval": "held-out, greedy",
    "train": "training completions, mean of the first and of the last steps",
    "": "mean of the first and of the last steps",
}


class Change(NamedTuple):
    """A number at the start and at the end, and what is known about how sure that is."""

    start: float
    end: float
    interval: tuple[float, float] | None  #: 95 %, of the end
    change: tuple[float, float] | None  #: 95 %, of end − start


def story(run: Run) -> dict[str, Any]:
    """{name, method, headline, sentence, progress}: what is told of a run before anything else."""
    tiles = headline(run)
    return {
        "name": tidy(run.name),
        "method": run.method_label,
        "headline": tiles,
        "sentence": sentence(tiles, run),
        "progress": progress(run),
    }


def headline(run: Run) -> list[dict[str, Any]]:
    """Start and end of the accuracies: [{label, note, share, start, end, steps, problems, interval, change, best}].

    `best` is the step with the highest value, and that value. Held-out shares where there are some: `interval` is
    Wilson's (95 %) of the end and `change` Newcombe's of the difference, None where the run does not say how many
    problems they are shares of. Else shares of the training completions, and where there are none either, the reward:
    means over the first and the last steps, with the interval that the spread from step to step gives, None below
    `LEAST` steps.
    """
    found = []
    for label in ("answer", "perception", "grounded", "reward"):
        if label == "reward" and found:
            break
        for room in ("eval", "train", ""):
            name = f"{room}/{label}" if room else label
            series = _measured(run.metrics.get(name))
            if series is None or (not room and label != "reward"):
                continue
            problems = _problems(run) if room == "eval" else None
            told = _of_problems(series, problems) if room == "eval" else _of_steps(series)
            found.append(
                {"label": label, "note": NOTES[room], "share": label != "reward", "start": told.start, "end": told.end,
                 "steps": [series.steps[0], series.steps[-1]], "problems": problems, "interval": told.interval,
                 "change": told.change, "best": _best(series)}
            )  # fmt: skip
            break
    return found


def sentence(tiles: Sequence[dict[str, Any]], run: Run) -> str:
    """The numbers in plain words, and no more than their intervals allow."""
    if not tiles:
        return "Nothing is measured yet."
    by_label = {tile["label"]: tile for tile in tiles}
    first = tiles[0]
    if first["steps"][0] == first["steps"][1]:
        names = {"answer": "answers right", "perception": "seen right", "grounded": "both", "reward": "reward"}
        told = ", ".join(f"{names[tile['label']]} {_value(tile, tile['end'])}" for tile in tiles)
        every = run.config.get("eval_steps")
        when = f" The next evaluation comes with step {first['steps'][1] + every}." if _whole(every) else ""
        begun = "Before training" if first["steps"][0] == 0 else f"At step {first['steps'][0]}, the only one measured"
        return f"{begun}: {told}.{when if first['note'] == NOTES['eval'] else ''}"
    said = [_answers(first)]
    if (seen := by_label.get("perception")) is not None:
        said.append(_looks(seen))
    if (both := by_label.get("grounded")) is not None and (more := _ungrounded(by_label["answer"], both)):
        said.append(more)
    return f"{'; '.join(said)}."


def progress(run: Run) -> dict[str, Any]:
    """{step, planned, done, left}: the last step, None before the first; how many are planned; the share that is done;
    seconds that the rest will take, None where nobody knows."""
    last = max((series.steps[-1] for series in run.metrics.values() if series.steps), default=None)
    planned = run.config.get("max_steps")
    planned = planned if _whole(planned) else None
    if last is None or planned is None:
        return {"step": last, "planned": planned, "done": None, "left": None}
    left = None if last >= planned else seconds_left(run, planned)
    return {"step": last, "planned": planned, "done": min(1.0, last / planned), "left": left}


# --- the numbers ------------------------------------------------------------------------------------------------------


def _problems(run: Run) -> int | None:
    """Held-out problems of an evaluation: as it counted them, in an older run as they were asked for."""
    counted = _measured(run.metrics.get("eval/problems"))
    size = counted.values[-1] if counted else run.config.get("eval_size")
    return int(size) if isinstance(size, int | float) and size >= 1 else None


def _of_problems(series: Series, problems: int | None) -> Change:
    """The first and the last evaluation. The two are of the same problems, which Newcombe's interval knows nothing of:
    it is rather too wide than too narrow."""
    start, end = series.values[0], series.values[-1]
    if problems is None or not (0 <= start <= 1 and 0 <= end <= 1):
        return Change(start, end, None, None)
    low, high = (float(x) for x in wilson(end * problems, problems))
    return Change(start, end, (low, high), difference(start * problems, problems, end * problems, problems))


def _of_steps(series: Series) -> Change:
    """Means over the first and over the last tenth of the steps, five at least."""
    n = len(series.values)
    if n < LEAST:
        return Change(series.values[0], series.values[-1], None, None)
    wide = max(LEAST // 2, n // 10)
    told = mean_difference(series.values[:wide], series.values[-wide:])
    return Change(told.first, told.second, (told.low, told.high), (told.change_low, told.change_high))


def _measured(series: Series | None) -> Series | None:
    if series is not None and not np.isfinite(series.values).all():
        points = [p for p in zip(*series, strict=True) if math.isfinite(p[1])]
        series = Series([x for x, _ in points], [y for _, y in points])
    return series if series is not None and series.steps else None


def _best(series: Series) -> tuple[int, float]:
    """The last step with the highest value, and that value."""
    last = len(series.values) - 1 - int(np.argmax(series.values[::-1]))
    return series.steps[last], series.values[last]


# --- the words --------------------------------------------------------------------------------------------------------


def _answers(tile: dict[str, Any]) -> str:
    name = "Answers" if tile["label"] == "answer" else "Perception" if tile["label"] == "perception" else "Reward"
    points, change = _points(tile), tile["change"]
    if change is None:
        unsure = "too few steps" if tile["problems"] is None and tile["note"] != NOTES["eval"] else "how sure, unknown"
        return f"{name} {points} ({unsure})"
    if change[0] > 0 or change[1] < 0:
        return f"{name} {points}"
    of = f"{tile['problems']:,} problems" if tile["problems"] else "the steps so far"
    return f"{name} {points}, which {of} cannot tell from no change"


def _looks(tile: dict[str, Any]) -> str:
    points, change = _points(tile), tile["change"]
    if change is None:
        return f"perception {points} (how sure, unknown)"
    (step, best), n, end = tile["best"], tile["problems"], tile["end"]
    if n and difference(best * n, n, end * n, n)[1] < -MARGIN and change[1] >= 0:  # well below: the best is a lucky one
        return f"looks less than at step {step} (perception {100 * best:.1f} → {100 * end:.1f} %)"
    if change[0] > 0:
        return f"sees better ({points})"
    if change[1] < 0:
        return f"looks less (perception {points})"
    if change[0] > -MARGIN:
        return "still looks at the picture"
    return f"whether it still looks is open (perception {points}, 95 %: {_signed(change[0])} to {_signed(change[1])})"


def _ungrounded(answer: dict[str, Any], both: dict[str, Any]) -> str:
    """Right answers over a wrong perception, where they have become more; '' where nobody can tell."""
    n = answer["problems"]
    if n is None or both["problems"] != n or answer["steps"] != both["steps"]:
        return ""
    start, end = (max(0.0, answer[when] - both[when]) for when in ("start", "end"))
    if difference(start * n, n, end * n, n)[0] <= 0:
        return ""
    return f"right answers over a wrong perception went from {100 * start:.1f} to {100 * end:.1f} %"


def _value(tile: dict[str, Any], value: float) -> str:
    return f"{100 * value:.1f} %" if tile["share"] else f"{value:.3g}"


def _points(tile: dict[str, Any]) -> str:
    change = tile["end"] - tile["start"]
    return f"{_signed(change)} points" if tile["share"] else f"{change:+.3g}".replace("-", "−")


def _signed(share: float) -> str:
    """Points with their sign; what rounds to none has none."""
    text = f"{100 * share:+.1f}".replace("-", "−")
    return "0.0" if text[1:] == "0.0" else text


def _whole(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number > 0
