"""Credit diff: one completion, judged by every method, its tokens in the same columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from segviz.parts.credit import Blame, blamed, error_of, given, has_truth, key_of, reason_of, signed, token_credit
from segviz.parts.heading import facts, where
from segviz.parts.stills import as_text, asked, methods_picture
from segviz.parts.stills import head as still_head
from segviz.parts.tokens import LONG, text_columns
from segviz.runs.rollout import Rollout
from segviz.show.encode import escape, floats, pack, tidy
from segviz.show.still import details
from segviz.show.theme import method_label, symmetric_limit
from segviz.show.view import View

QUESTION = "What would each method blame?"

ALMOST = 0.05  #: credit that varies by less than this share of its largest size is called almost uniform
DISAGREES = 0.25  #: from this size on, of 1, a disagreement is counted in words

SCALES = "Each row has its own scale. Blue, bar above: praise; orange, bar below: blame. Wavy: the first true error."

Credits = Mapping[str, Rollout | Mapping[str, Any]]


def compare(
    rollout: Rollout | Mapping[str, Any] | Sequence[Rollout],
    title: str = QUESTION,
    *,
    credits: Credits | None = None,
) -> View:
    """One completion under several methods, one row a method.

    Args:
        rollout: a rollout (it is one of the methods), or several of the same completion: a mapping method -> rollout,
            as `Run.credits` gives it, or a sequence.
        credits: further methods: name -> rollout, or a row with columns of `CREDIT_SCHEMA` for the same tokens.

    Raises:
        ValueError: there is nothing to compare, or two rollouts of one method without names.
    """
    if not isinstance(title, str):
        raise TypeError("the second argument is the title; pass further methods as credits={name: …}")
    rollouts = named(rollout, credits)
    data = compare_data(rollouts, title)
    return View("compare", title, data, _fallback(rollouts, data))


def named(rollout: Any, credits: Credits | None = None) -> dict[str, Rollout]:
    """Method -> rollout, from everything that `compare` takes."""
    if isinstance(rollout, Mapping) and rollout and all(isinstance(v, (Rollout, Mapping)) for v in rollout.values()):
        found = {str(name): item if isinstance(item, Rollout) else Rollout(item) for name, item in rollout.items()}
    elif isinstance(rollout, (Rollout, Mapping)) and rollout:
        base = rollout if isinstance(rollout, Rollout) else Rollout(rollout)
        found = {str(base.row.get("method") or ""): base}
    else:
        found = {}
        for item in rollout:
            name = str(item.row.get("method") or "")
            if name in found:
                raise ValueError(f"two rollouts have the method {name!r}: give a mapping of name -> rollout instead")
            found[name] = item
    if not found:
        raise ValueError("compare needs at least one rollout: sv.compare(run.credits(step, group, sample))")
    base = next(iter(found.values()))
    for name, item in (credits or {}).items():
        found[name] = item if isinstance(item, Rollout) else base.judged({"method": name} | dict(item))
    return found


def compare_data(rollouts: Mapping[str, Rollout], title: str = QUESTION) -> dict[str, Any]:
    """What the script needs to draw the diff. The first rollout's text is the one shown."""
    base = next(iter(rollouts.values()))
    notices, shown = list(base.problems), {}
    for name, rollout in rollouts.items():
        if rollout.pieces != base.pieces:
            notices.append(
                f"{method_label(name)} was computed for other tokens ({len(rollout.pieces)} there, "
                f"{len(base.pieces)} here) and is left out."
            )
            continue
        notices += [f"{method_label(name)}: {text}" for text in rollout.problems if text not in base.problems]
        shown[name] = rollout
    error = error_of(base)
    credit = {name: token_credit(rollout) for name, rollout in shown.items()}
    methods = [_method(name, rollout, credit[name]) for name, rollout in shown.items()]
    # those that say where come first, each as the record has them
    methods.sort(key=lambda method: ("cuts", "almost", "uniform", "zero", "untrained", "none").index(method["pattern"]))
    cutting = [m for m in methods if m["pattern"] in ("cuts", "almost")]
    apart = disagreement([credit[m["name"]] for m in cutting], [m["limit"] for m in cutting])
    long = len(base.pieces) > LONG
    columns = text_columns(base)
    for i, method in enumerate(methods):
        columns[f"a{i}"] = floats([None if np.isnan(x) else float(x) for x in credit[method["name"]]], long)
        columns[f"c{i}"] = np.array([end - start for start, end in shown[method["name"]].segments], dtype=np.uint32)
    if apart is not None:
        columns["apart"] = floats(apart.tolist(), long)
    return {
        "kind": "compare",
        "key": key_of(base.row),
        "title": title,
        "where": where(base),
        "method": "",
        "verdict": verdict(base, methods, apart),
        "facts": facts(base),
        "error": error,
        "tokens": len(base.pieces),
        "methods": methods,
        "notices": notices,
        "pack": pack(columns, "".join(base.pieces)),
    }


def disagreement(credit: Sequence[np.ndarray], limits: Sequence[float]) -> np.ndarray | None:
    """How much methods disagree about the sign of each token's credit, 0 … 1; None for fewer than two methods.

    Each method's credit is divided by its own limit. Where some are above and some below zero the size is that of the
    weaker side, min(largest positive, largest negative): 1 only if both sides could not say it more strongly.
    """
    if len(credit) < 2:
        return None
    scaled = np.nan_to_num([c / limit for c, limit in zip(credit, limits, strict=True)], posinf=1, neginf=-1)
    return np.minimum(np.clip(scaled.max(axis=0), 0, 1), np.clip(-scaled.min(axis=0), 0, 1))


def _method(name: str, rollout: Rollout, credit: np.ndarray) -> dict[str, Any]:
    """A row of the diff. `pattern`: cuts, almost (uniform), uniform, zero, untrained (no token in the
    loss) or none (not recorded)."""
    limit = symmetric_limit(credit.tolist())
    known = credit[np.isfinite(credit)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (None, None)
    segments, found = rollout.segments, blamed(rollout)
    # a cut-out segment is a choice too
    everywhere = all(np.isfinite(credit[start:end]).any() for start, end in segments)
    if not len(known):
        pattern = "untrained" if given(rollout) else "none"
    elif limit == 0:
        pattern = "zero"
    elif (len(segments) == 1 and not found.by_token) or (high == low and everywhere):
        pattern = "uniform"
    else:
        pattern = "almost" if high - low < ALMOST * limit and everywhere else "cuts"
    place = _place(rollout, found) if pattern in ("cuts", "almost") and found.start is not None else None
    return {
        "name": name, "label": method_label(name), "pattern": pattern, "limit": limit, "low": low, "high": high,
        "segments": len(segments), "blamed": place, "hit": found.hit if place else None, "chance": found.chance,
    }  # fmt: skip


def _place(rollout: Rollout, found: Blame) -> dict[str, Any]:
    assert found.start is not None and found.end is not None
    text = tidy("".join(rollout.pieces[found.start : min(found.end, found.start + 40)]))[:120]
    return {
        "start": found.start, "end": found.end, "credit": found.credit, "text": text,
        "by_token": found.by_token, "tied": found.tied,
    }  # fmt: skip


def verdict(base: Rollout, methods: Sequence[Mapping[str, Any]], apart: np.ndarray | None) -> list[str]:
    """The question answered in a few sentences."""
    if not base.pieces:
        return ["The completion is empty."]

    def names(test: Any) -> list[str]:
        return [m["label"] for m in methods if test(m)]

    said, error = [], error_of(base)
    blaming = names(lambda m: m["blamed"])
    if error:
        kinds = (
            (lambda m: m["hit"] == 1 and not m["blamed"]["by_token"], "the segment that holds the first true error"),
            (lambda m: m["hit"] == 1 and m["blamed"]["by_token"], "the first true error itself"),
            (lambda m: m["hit"] is not None and 0 < m["hit"] < 1, "several places alike, one of them the error's"),
            (lambda m: m["hit"] == 0, "another place"),
        )
        for test, words in kinds:
            if who := names(test):
                said.append(f"{_list(who)} {'blame' if len(who) > 1 else 'blames'} {words}.")
    elif blaming:
        places = len({(m["blamed"]["start"], m["blamed"]["end"]) for m in methods if m["blamed"]})
        where_ = "the same place" if places == 1 else f"{places} different places"
        said.append(f"{_list(blaming)} {f'blame {where_}' if len(blaming) > 1 else 'blames one place'}.")
    if who := names(lambda m: m["pattern"] in ("cuts", "almost") and not m["blamed"]):
        said.append(f"{_list(who)} {'find' if len(who) > 1 else 'finds'} nothing to blame: no credit is below zero.")
    if who := names(lambda m: m["pattern"] == "uniform"):
        give = (
            "give every token the same credit and name"
            if len(who) > 1
            else "gives every token the same credit and names"
        )
        said.append(f"{_list(who)} {give} no place.")
    if who := names(lambda m: m["pattern"] == "zero"):
        said.append(f"{_list(who)} {'teach' if len(who) > 1 else 'teaches'} nothing here: every credit is zero.")
    if who := names(lambda m: m["pattern"] == "untrained"):
        said.append(f"{_list(who)} {'leave' if len(who) > 1 else 'leaves'} it out: none of its tokens enters the loss.")
    if who := names(lambda m: m["pattern"] == "none"):
        said.append(f"No credit of {_list(who)} is recorded for this completion.")
    if error:
        said.append(f"The first true error is at token {error['start'] + 1}{reason_of(error)}.")
    elif has_truth(base):
        said.append("No true error is known in it.")
    if apart is not None and (count := int((apart >= DISAGREES).sum())):
        said.append(f"The methods that cut segments clearly disagree about the sign at {count} of {len(apart)} tokens.")
    return said


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _fallback(rollouts: Mapping[str, Rollout], data: Mapping[str, Any]) -> str:
    """The text in the credit of every method, a row each, and a table."""
    base = next(iter(rollouts.values()))
    rows = []
    for method in data["methods"]:
        blamed, hit = method["blamed"], method["hit"]
        cells = (
            method["label"],
            pattern_words(method),
            str(method["segments"]),
            f"tokens {blamed['start'] + 1} to {blamed['end']}: {blamed['text']}" if blamed else "no place",
            signed(blamed["credit"]) if blamed else "–",
            "–" if hit is None else "yes" if hit == 1 else "one of several" if hit else "no",
        )
        rows.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    names = ("method", "credit", "segments", "most blamed", "its credit", "holds the first true error")
    head = "".join(f'<th style="text-align:left">{name}</th>' for name in names)
    table = f"<table><tr>{head}</tr>{''.join(rows)}</table>"
    drawn = methods_picture({m["name"]: rollouts[m["name"]] for m in data["methods"]}, data["verdict"])
    notes = " ".join([SCALES, *data["notices"]]) if drawn else " ".join(data["notices"])
    return (
        f"<div>{still_head(data['title'], data['where'], data['verdict'])}{asked(base)}<p>{drawn}</p>"
        f"<p><small>{escape(notes)}</small></p>{details('The same as a table', table)}{as_text(base)}</div>"
    )


def pattern_words(method: Mapping[str, Any]) -> str:
    """How a method spread its credit."""
    if method["pattern"] == "none":
        return "not recorded"
    if method["pattern"] == "untrained":
        return "no token in the loss"
    if method["pattern"] == "zero":
        return "zero everywhere"
    if method["pattern"] == "uniform":
        return f"{signed(method['low'])} on every token"
    if method["low"] == method["high"]:
        return f"{signed(method['low'])} where there is any"
    return f"{signed(method['low'])} to {signed(method['high'])}" + (
        ", almost the same everywhere" if method["pattern"] == "almost" else ""
    )
