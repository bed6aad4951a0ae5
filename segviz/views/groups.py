"""A group: the completions of one prompt, each shown where it parts from a sibling that earned another reward."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from segviz.parts.charts import group_picture
from segviz.parts.credit import error_of, signed, trained
from segviz.parts.heading import pictures, prompt_of
from segviz.parts.stills import asked
from segviz.parts.stills import head as still_head
from segviz.runs.rollout import Rollout
from segviz.runs.run import Run
from segviz.show.encode import escape, tidy
from segviz.show.still import details
from segviz.show.theme import method_label
from segviz.show.view import View

QUESTION = "Why did its sibling win?"
ALIKE = "Where do these completions part?"  #: none won where all earned the same
ALONE = "What earned this reward?"  #: a completion without siblings

BEFORE, AFTER = 6, 48  #: tokens shown before and after the fork
PIECE = 60  #: characters shown of one token
SHARED = 200  #: characters shown of what all completions begin with
READING = (
    "Blue, bar above: praised. Orange, bar below: blamed. ◆: where it parts from its rival. Wavy: first true error."
)


def group(run: Run, step: int, group: int, title: str | None = None) -> View:
    """The completions of one prompt, by reward and by where they fork; every row asks to open its rollout.

    Raises:
        KeyError: the group is not recorded; the message says what is.
    """
    rollouts = run.group(step, group)
    data = group_data(rollouts, title)
    return View("group", data["title"], data | {"pictures": pictures(rollouts[0])}, _fallback(data, rollouts[0]))


def group_data(rollouts: Sequence[Rollout], title: str | None = None) -> dict[str, Any]:
    """What the script needs to draw a group, without the images' bytes.

    Completions with the same tokens, reward and credit are one row. A row's rival is the completion with another
    reward that shares the longest beginning with it: their first difference is the row's fork. Where all rewards are
    equal the rival is any other completion.

    Raises:
        ValueError: no rollout was given.
    """
    if not rollouts:
        raise ValueError("a group needs at least one completion: sv.group(run, step, group)")
    first = rollouts[0].row
    rewards = [_reward(rollout) for rollout in rollouts]
    known = [reward for reward in rewards if reward is not None]
    tokens = _tokens(rollouts)
    shared = shared_tokens(tokens)
    everywhere = int(shared.min()) if len(rollouts) > 1 else 0
    rows = [_row(i, members, rollouts, rewards, shared) for i, members in _alike(rollouts, tokens, rewards)]
    # best first, among equals in the order in which they part from their rivals
    rows.sort(key=lambda r: (math.inf if r["reward"] is None else -r["reward"], r["fork"]["at"] if r["fork"] else 0))
    return {
        "kind": "group",
        "title": title or (QUESTION if len(set(known)) > 1 else ALIKE if len(rollouts) > 1 else ALONE),
        "key": f"{first.get('step')}/{first.get('group')}",
        "step": first.get("step"),
        "group": first.get("group"),
        "where": " · ".join([f"step {first.get('step')}", f"group {first.get('group')}", str(first.get("example_id"))]),
        "method": method_label(first.get("method")),
        "prompt": prompt_of(rollouts[0]),
        "reference": None if first.get("answer") is None else tidy(str(first["answer"]))[:200],
        "verdict": verdict(rollouts, rows, rewards, shared),
        "signal": len(set(known)) > 1,
        "completions": len(rollouts),
        "longest": max(len(rollout.pieces) for rollout in rollouts),
        "shared": _shared(rollouts[0], everywhere),
        "rows": rows,
        "window": _window(rows),
        "notices": _notices(rollouts),
    }


def shared_tokens(tokens: Sequence[Sequence[int]]) -> np.ndarray:
    """int [G, G]: how many tokens each two completions begin with in common; of one with itself, its length."""
    lengths = np.array([len(t) for t in tokens])
    padded = np.full((len(tokens), int(lengths.max(initial=0)) + 1), -1)
    for i, row in enumerate(tokens):
        padded[i, : len(row)] = row
    shared = np.diag(lengths)
    for i in range(len(tokens) - 1):
        differs = padded[i + 1 :] != padded[i]
        same = np.where(differs.any(axis=1), differs.argmax(axis=1), lengths[i])
        shared[i, i + 1 :] = shared[i + 1 :, i] = same
    return shared


def verdict(
    rollouts: Sequence[Rollout], rows: Sequence[Mapping[str, Any]], rewards: Sequence[float | None], shared: np.ndarray
) -> list[str]:
    """The question answered: how many won, and the closest pair with different rewards."""
    total, known = len(rollouts), [reward for reward in rewards if reward is not None]
    if total == 1:
        reward = "no recorded reward" if rewards[0] is None else f"reward {_number(rewards[0])}"
        return [f"The group has one completion, with {reward}: there is no sibling to compare it with."]
    if not known:
        return [f"No reward is recorded for any of the {total} completions."]
    if len(set(known)) == 1:
        which = f"All {total} completions" if len(known) == total else f"All {len(known)} completions with a reward"
        return [
            f"{which} have reward {_number(known[0])}.",
            "Without a difference the group gives no signal to methods that compare its completions: GRPO, GSPO, RLOO "
            "and SRPO give all of them advantage zero.",
        ]
    best = max(known)
    said = [f"{known.count(best)} of {total} completions earned the highest reward, {_number(best)}."]
    pairs = [
        (shared[i, j], rewards[i] - rewards[j], -i, -j)
        for i in range(total)
        for j in range(total)
        if rewards[i] is not None and rewards[j] is not None and rewards[i] > rewards[j]
    ]
    at, _, i, j = max(pairs)
    at, i, j = int(at), -i, -j
    winner, loser = (f"sample {rollouts[n].row.get('sample')}" for n in (i, j))
    if rollouts[i].pieces == rollouts[j].pieces:
        return [*said, f"{winner.capitalize()} and {loser} are the same text with different rewards."]
    said.append(
        f"The closest pair: {winner} (reward {_number(rewards[i])}) and {loser} (reward {_number(rewards[j])}) share "
        f"{at} token{'s' * (at != 1)}, then {winner} says {_quoted(rollouts[i], at)} where {loser} says "
        f"{_quoted(rollouts[j], at)}."
    )
    if error := error_of(rollouts[j]):
        said.append(f"The first true error of {loser} is {_error_place(error, at)}.")
    return said


def _quoted(rollout: Rollout, at: int) -> str:
    piece, p = _piece(rollout, at).replace("\n", "↵"), _probability(rollout, at)
    return f"‘{piece}’" + ("" if p is None else f" (probability {_number(p)})")


def _error_place(error: Mapping[str, Any], fork: int) -> str:
    """Where the first true error lies, seen from the fork."""
    if error["start"] <= fork < error["end"]:
        return "right there"
    off = error["start"] - fork if error["start"] > fork else fork - error["end"] + 1
    tokens = f"{off} token{'s' * (off > 1)}"
    return f"{tokens} later" if error["start"] > fork else f"{tokens} earlier, in what both say"


def _row(
    i: int, members: Sequence[int], rollouts: Sequence[Rollout], rewards: Sequence[float | None], shared: np.ndarray
) -> dict[str, Any]:
    """One row: what was earned, where it parts from its rival, and what it says around there."""
    rollout, total = rollouts[i], len(rollouts[i].pieces)
    others = [j for j in range(len(rollouts)) if j not in members]
    rivals = [j for j in others if None not in (rewards[i], rewards[j]) and rewards[j] != rewards[i]] or others
    fork, at = None, 0
    if rivals:
        j = max(rivals, key=lambda j: (shared[i, j], abs((rewards[j] or 0) - (rewards[i] or 0)), -j))
        at = int(shared[i, j])
        fork = {
            "at": at,
            "piece": _piece(rollout, at),
            "probability": _probability(rollout, at),
            "entropy": _at(rollout, "entropy", at),
            "rival": rollouts[j].row.get("sample"),
            "rival_reward": rewards[j],
            "rival_piece": _piece(rollouts[j], at),
            "rival_probability": _probability(rollouts[j], at),
            "same": bool(rollout.pieces == rollouts[j].pieces),
        }
    credit = rollout.column("advantages") or []
    known = [x for x, ok in zip(credit, trained(rollout), strict=False) if ok and x is not None]
    error = error_of(rollout)
    if error:
        error |= {"place": _error_place(error, at) if fork else "", "piece": _piece(rollout, error["start"])}
    first, last = max(0, at - BEFORE), min(total, at + 1 + AFTER)
    return {
        "samples": [rollouts[m].row.get("sample") for m in members],
        "reward": rewards[i],
        "right": rollout.row.get("answer_right"),
        "low": min(known, default=None),
        "high": max(known, default=None),
        "tokens": total,
        "finished": rollout.row.get("finished"),
        "fork": fork,
        "first": first,
        "pieces": [_cut(piece) for piece in rollout.pieces[first:last]],
        "after": total - last,
        "error": error,
    }


def _alike(
    rollouts: Sequence[Rollout], tokens: Sequence[Sequence[int]], rewards: Sequence[float | None]
) -> list[tuple[int, list[int]]]:
    """(first, all) numbers of completions that are alike: tokens, reward and credit."""
    found: dict[tuple, list[int]] = {}
    for i, rollout in enumerate(rollouts):
        credit = rollout.column("advantages")
        found.setdefault((tuple(tokens[i]), rewards[i], None if credit is None else tuple(credit)), []).append(i)
    return [(members[0], members) for members in found.values()]


def _tokens(rollouts: Sequence[Rollout]) -> list[list[int]]:
    """Numbers that are equal for equal tokens: token ids where all have them, else the texts of the tokens."""
    ids = [rollout.column("token_ids") for rollout in rollouts]
    if all(column is not None or not rollout.pieces for column, rollout in zip(ids, rollouts, strict=True)):
        return [[-2 if x is None else x for x in column or []] for column in ids]
    numbers: dict[str, int] = {}
    return [[numbers.setdefault(piece, len(numbers)) for piece in rollout.pieces] for rollout in rollouts]


def _reward(rollout: Rollout) -> float | None:
    reward = rollout.row.get("reward")
    return reward if reward is not None and math.isfinite(reward) else None


def _at(rollout: Rollout, name: str, t: int) -> float | None:
    column = rollout.column(name)
    return column[t] if column and t < len(column) else None


def _probability(rollout: Rollout, t: int) -> float | None:
    """With which the policy drew token t; None after the end or where it was not recorded."""
    for name in ("old_logprobs", "sampled_logprobs"):
        if (logprob := _at(rollout, name, t)) is not None:
            return math.exp(min(0.0, logprob))
    return None


def _piece(rollout: Rollout, t: int) -> str:
    if t >= len(rollout.pieces):
        return "(the end)"
    return _cut(rollout.pieces[t]) or "(empty)"


def _cut(piece: str) -> str:
    piece = tidy(piece)
    return piece if len(piece) <= PIECE else f"{piece[:PIECE]}… (+{len(piece) - PIECE:,} characters)"


def _shared(rollout: Rollout, tokens: int) -> dict[str, Any]:
    """What all completions begin with; of a long one, its end."""
    text = tidy("".join(rollout.pieces[:tokens]))
    return {"tokens": tokens, "text": text[-SHARED:], "cut": max(0, len(text) - SHARED)}


def _number(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")


def _window(rows: Sequence[Mapping[str, Any]]) -> str:
    """What of the completions the rows show."""
    cut = sum(row["after"] > 0 for row in rows)
    rest = f"; … and a number stand for the rest ({cut} of {len(rows)} rows are cut)" if cut else ""
    return f"Shown: up to {BEFORE} tokens before the fork and {AFTER} after it{rest}."


def _notices(rollouts: Sequence[Rollout]) -> list[str]:
    """What a reader should know before trusting the picture."""
    problems = Counter(text for rollout in rollouts for text in rollout.problems)
    notes = [f"{text} ({count} of {len(rollouts)} completions)" for text, count in problems.items()]
    missing = sum(_reward(rollout) is None for rollout in rollouts)
    if missing:
        notes.append(f"{missing} of {len(rollouts)} completions have no recorded reward; they come last.")
    return notes


def _fallback(data: Mapping[str, Any], first: Rollout) -> str:
    """The completions as a picture and as a table."""
    names = ("samples", "reward", "advantage", "forks from", "at token", "instead of", "what it says from there",
             "first true error")  # fmt: skip
    lines = []
    for row in data["rows"]:
        fork, error = row["fork"], row["error"]
        start = fork["at"] - row["first"] if fork else 0
        cells = (
            ", ".join(map(str, row["samples"])),
            "–" if row["reward"] is None else _number(row["reward"]),
            advantage_words(row),
            f"sample {fork['rival']}" if fork else "–",
            str(fork["at"] + 1) if fork else "–",
            fork["rival_piece"] if fork else "–",
            "".join(row["pieces"][start:]) + ("…" if row["after"] else ""),
            "–" if error is None else f"{error['kind']}, token {error['start'] + 1} {error['why']}",
        )
        lines.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th>{name}</th>" for name in names)
    table = f"<table><tr>{head}</tr>{''.join(lines)}</table>"
    notes = " ".join([READING, data["window"], *data["notices"]])
    place = f"{data['where']} · {data['method']}"
    return (
        f"<div>{still_head(data['title'], place, data['verdict'])}{asked(first)}"
        f"<p>{group_picture(data, advantage_words)}</p><p><small>{escape(notes)}</small></p>"
        f"{details('The same as a table', table)}</div>"
    )


def advantage_words(row: Mapping[str, Any]) -> str:
    """The advantage of a completion, or its lowest and highest where they differ."""
    if row["low"] is None:
        return "none"
    low, high = signed(row["low"]), signed(row["high"])
    return low if low == high else f"{low} to {high}"
