"""The staircase: the value of the states along a completion, with its noise, and the reward at the end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from segviz.parts.charts import staircase_picture
from segviz.parts.credit import error_of, has_truth, key_of, reason_of, signed
from segviz.parts.heading import facts, where
from segviz.parts.stills import as_text, asked, place_of
from segviz.parts.stills import head as still_head
from segviz.parts.tokens import LONG, text_columns
from segviz.runs.rollout import Rollout
from segviz.show.encode import escape, floats, pack, tidy
from segviz.show.still import details
from segviz.show.theme import method_label
from segviz.show.view import View

QUESTION = "Where did the chance of success fall, beyond noise?"

Z = 1.96  #: standard errors that a band reaches to each side, and that a difference must exceed to be beyond noise
FALLBACK_STEPS = 200  #: steps that the static fallback shows

SOURCES = {
    "mc": "Treads: Monte Carlo values, the mean reward of continuations sampled from the state before the token.",
    "segment": "Treads: the value recorded for the state before each segment.",
    "critic": "Treads: the critic's value of the state before each token.",
    "critic_cuts": "Treads: the critic's value of the state before each segment.",
}


class State(NamedTuple):
    """Value of the state before token `start`; `stderr` is None where it was not recorded."""

    start: int
    value: float
    stderr: float | None


class Step(NamedTuple):
    """What happened between two states: the tokens from `start` to `end` (exclusive) changed the value."""

    start: int
    end: int
    before: State
    after: State | None  #: None after the last state: there the reward stands
    change: float | None  #: None where no reward is recorded
    z: float | None  #: change over its standard error; None where that is not known

    @property
    def judgement(self) -> str:
        """beyond noise, within noise, or unknown"""
        return "unknown" if self.z is None else "beyond" if abs(self.z) >= Z else "within"


def staircase(rollout: Rollout | Mapping[str, Any], title: str = QUESTION) -> View:
    """Value along the completion with its uncertainty, the reward at the end; each rise and fall judged against noise.

    Args:
        rollout: from `Run.rollout` or `Run.credits`, or a mapping with the columns of `ROLLOUT_SCHEMA`.
    """
    rollout = rollout if isinstance(rollout, Rollout) else Rollout(rollout)
    return View("staircase", title, staircase_data(rollout, title), _fallback(rollout, title))


def staircase_data(rollout: Rollout, title: str = QUESTION) -> dict[str, Any]:
    """What the script needs to draw a staircase."""
    source, states = states_of(rollout)
    steps = steps_of(rollout, states)
    long = len(rollout.pieces) > LONG
    columns = text_columns(rollout) | {
        "st_start": np.array([step.start for step in steps], dtype=np.uint32),
        "st_value": floats([step.before.value for step in steps], long),
        "st_err": floats([step.before.stderr for step in steps], long),
        "st_z": floats([step.z for step in steps], long),
        "st_j": np.array([("unknown", "within", "beyond").index(step.judgement) for step in steps], dtype=np.uint8),
    }
    if (critic := rollout.column("values")) is not None:
        columns["val"] = floats(critic, long)
    if source == "mc" and (other := _other_values(rollout, states)):
        columns["own_start"] = np.array([state.start for state in other], dtype=np.uint32)
        columns["own_value"] = floats([state.value for state in other], long)
    return {
        "kind": "staircase",
        "key": key_of(rollout.row),
        "title": title,
        "where": where(rollout),
        "method": method_label(rollout.row.get("method")),
        "verdict": verdict(rollout, steps),
        "facts": facts(rollout),
        "error": error_of(rollout),
        "tokens": len(rollout.pieces),
        "largest": _largest(steps),
        "threshold": Z,
        "notes": _notes(rollout, source, states, steps),
        "notices": list(rollout.problems),
        "pack": pack(columns, "".join(rollout.pieces)),
    }


def states_of(rollout: Rollout) -> tuple[str, list[State]]:
    """Where the treads come from and the states with a known value, in order.

    Monte Carlo values come first, then the values recorded for segments, then the critic's: at the starts of the
    segments, or at every token where the method cuts none.
    """
    if found := _known(enumerate(rollout.column("mc_values") or []), rollout.column("mc_stderr")):
        return "mc", found
    segments = rollout.segments
    if values := rollout.segment_column("segment_value"):
        starts = [start for start, _ in segments]
        errors = rollout.segment_column("segment_stderr")
        if found := _known(
            zip(starts, values, strict=True), dict(zip(starts, errors, strict=True)) if errors else None
        ):
            return "segment", found
    critic = rollout.column("values")
    if critic is None:
        return "", []
    if len(segments) > 1:
        return "critic_cuts", _known([(start, critic[start]) for start, _ in segments], None)
    return "critic", _known(enumerate(critic), None)


def _known(values: Any, errors: Sequence[float | None] | Mapping[int, float | None] | None) -> list[State]:
    states = []
    for start, value in values:
        if value is not None and math.isfinite(value):
            error = errors[start] if errors else None
            states.append(State(start, value, error if error is not None and math.isfinite(error) else None))
    return states


def steps_of(rollout: Rollout, states: Sequence[State]) -> list[Step]:
    """The differences between consecutive states, the last one to the reward, which has no noise.

    z = (V' − V) / √(se² + se'²). Where every sample of a state had the same reward its standard error is 0, which
    says that N was small rather than that nothing was left to chance: the largest one of the completion stands in.
    Without any, z is not known.
    """
    stand_in = max((state.stderr for state in states if state.stderr), default=None)
    reward, steps = rollout.row.get("reward"), []
    for i, state in enumerate(states):
        after = states[i + 1] if i + 1 < len(states) else None
        target = after.value if after else reward
        end = after.start if after else len(rollout.pieces)
        change = None if target is None or not math.isfinite(target) else target - state.value
        errors = [None if s.stderr is None else s.stderr or stand_in for s in (state, after) if s]
        noise = None if None in errors else math.hypot(*errors)
        steps.append(Step(state.start, end, state, after, change, None if None in (change, noise) else change / noise))
    return steps


def falls(steps: Sequence[Step]) -> list[Step]:
    """Steps whose value fell, the deepest first."""
    return sorted((step for step in steps if step.change is not None and step.change < 0), key=lambda s: s.change)


def verdict(rollout: Rollout, steps: Sequence[Step]) -> list[str]:
    """The question answered in two sentences."""
    if not rollout.pieces:
        return ["The completion is empty."]
    if not steps:
        method = method_label(rollout.row.get("method"))
        return [f"No values are recorded: {method} estimated none for this completion.", *_error_words(rollout, None)]
    down = falls(steps)
    worst = next((step for step in down if step.judgement == "beyond"), down[0] if down else None)
    if worst is None:
        end = "." if steps[-1].change is not None else "; no reward is recorded."
        return [f"The value never fell{end}", *_error_words(rollout, None)]
    place = f"in {name_of(rollout, worst)}: {_from_to(rollout, worst)}"
    if worst.judgement == "unknown":
        agreed = worst.before.stderr is not None and (worst.after is None or worst.after.stderr is not None)
        why = "all samples of each state agreed" if agreed else "no standard errors are recorded"
        said = f"The largest fall is {place}. Whether it is beyond noise is not known: {why}."
    elif worst.judgement == "beyond":
        said = f"The largest fall beyond noise is {place}, z = {signed(worst.z)}."
    else:
        said = f"No fall is beyond noise. The largest is {place}, z = {signed(worst.z)}."
    return [said, *_error_words(rollout, worst)]


def name_of(rollout: Rollout, step: Step) -> str:
    """`segment 3 (tokens 12 to 20)`, or the tokens alone where the step is not one segment of the method."""
    tokens = f"token {step.start + 1}" if step.end == step.start + 1 else f"tokens {step.start + 1} to {step.end}"
    if len(rollout.segments) > 1 and (step.start, step.end) in rollout.segments:
        return f"segment {rollout.segments.index((step.start, step.end)) + 1} ({tokens})"
    return tokens


def _from_to(rollout: Rollout, step: Step) -> str:
    target = step.after.value if step.after else rollout.row.get("reward")
    return f"{_number(step.before.value)} → {_number(target)}{'' if step.after else ' (the reward)'}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}".replace("-", "−")


def _error_words(rollout: Rollout, step: Step | None) -> list[str]:
    error = error_of(rollout)
    if error is None:
        return ["No true error is known in it."] if has_truth(rollout) else []
    reason, place = reason_of(error), f"at token {error['start'] + 1}"
    if step is None or step.end - step.start == len(rollout.pieces):
        return [f"The first true error is {place}{reason}."]
    if step.start < error["end"] and error["start"] < step.end:
        return [f"The first true error lies there{reason}."]
    gap = step.start - error["end"] + 1 if error["start"] < step.start else error["start"] - step.end + 1
    side = "before it" if error["start"] < step.start else "after it"
    return [f"The first true error is not there: it is {place}, {gap} token{'s' * (gap > 1)} {side}{reason}."]


def _other_values(rollout: Rollout, states: Sequence[State]) -> list[State]:
    """The method's own values of segments, where they say something else than the Monte Carlo ones."""
    values = rollout.segment_column("segment_value")
    found = _known(zip([a for a, _ in rollout.segments], values, strict=True), None) if values else []
    sampled = {state.start: state.value for state in states}
    return found if any(abs(sampled.get(s.start, math.inf) - s.value) > 1e-6 for s in found) else []


def _largest(steps: Sequence[Step], count: int = 5) -> list[int]:
    """Numbers of the deepest falls, those beyond noise first."""
    down = falls(steps)
    order = sorted(down, key=lambda step: step.judgement != "beyond")
    places = {step.start: i for i, step in enumerate(steps)}
    return [places[step.start] for step in order[:count]]


def _notes(rollout: Rollout, source: str, states: Sequence[State], steps: Sequence[Step]) -> list[str]:
    """How to read the picture."""
    if not states:
        return []
    notes = [SOURCES[source]]
    judged = [step for step in steps if step.z is not None]
    if judged:
        notes.append(
            f"Band: ± {Z} standard errors. Beyond noise: the difference is at least {Z} times its own standard error, "
            "made of both states'; the reward has none."
        )
    if len(judged) >= 10:
        notes.append(f"Of {len(judged)} differences about {0.05 * len(judged):.0f} would pass that by chance alone.")
    if missing := len(steps) - len(judged):
        which = "No difference" if missing == len(steps) else f"{len(judged)} of {len(steps)} differences"
        notes.append(f"{which} can be judged against noise{'' if judged else ': noise is unknown'}.")
    agreed = sum(state.stderr == 0 for state in states)
    if agreed and judged:
        largest = max(state.stderr for state in states if state.stderr)
        notes.append(
            f"All samples of {agreed} of {len(states)} states agreed, which gives a standard error of 0; "
            f"judged with the largest of this completion, {_number(largest)}."
        )
    if states[0].start:
        notes.append(f"No value is recorded before token {states[0].start + 1}.")
    if rollout.row.get("reward") is None:
        notes.append("No reward is recorded: the last state has nothing to compare with.")
    return notes


def _fallback(rollout: Rollout, title: str) -> str:
    """A table of the steps."""
    source, states = states_of(rollout)
    steps = steps_of(rollout, states)
    words = {"beyond": "beyond noise", "within": "within noise", "unknown": "noise unknown"}
    lines = []
    for step in steps[:FALLBACK_STEPS]:
        text = tidy("".join(rollout.pieces[step.start : min(step.end, step.start + 60)]))[:160]
        target = step.after.value if step.after else rollout.row.get("reward")
        cells = (
            f"{step.start + 1}–{step.end}", text, _number(step.before.value),
            "–" if step.before.stderr is None else f"± {_number(Z * step.before.stderr)}" if step.before.stderr else
            "all samples alike", _number(target),
            "–" if step.change is None else signed(step.change), "–" if step.z is None else signed(step.z),
            words[step.judgement] if step.change is not None else "no reward",
        )  # fmt: skip
        lines.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    names = ("tokens", "text", "value before", f"{Z} standard errors", "value after", "change", "z", "judgement")
    head = "".join(f'<th style="text-align:left">{name}</th>' for name in names)
    table = f"<table><tr>{head}</tr>{''.join(lines)}</table>" if lines else ""
    more = f"<p>… {len(steps) - FALLBACK_STEPS:,} more.</p>" if len(steps) > FALLBACK_STEPS else ""
    notes = " ".join([*rollout.problems, *_notes(rollout, source, states, steps)])
    said = verdict(rollout, steps)
    drawn = f"<p>{staircase_picture(rollout, steps, said, Z)}</p>" if steps else ""
    return (
        f"<div>{still_head(title, place_of(rollout), said)}{asked(rollout)}{drawn}<p><small>{escape(notes)}</small></p>"
        f"{details('The steps as a table', table + more) if table else ''}{as_text(rollout)}</div>"
    )
