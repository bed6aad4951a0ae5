"""Update forensics: which tokens and segments one step learned from, and what the update did to them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from segpo_core.record.blame import spans
from segviz.parts.charts import segments_picture
from segviz.parts.credit import signed
from segviz.parts.stills import head as still_head
from segviz.runs.columns import Row, rollout_columns
from segviz.runs.run import Run
from segviz.show.encode import escape, floats, pack, tidy
from segviz.show.statistics import equal_count_bins, wilson
from segviz.show.still import details
from segviz.show.theme import method_label
from segviz.show.view import View

QUESTION = "What did this step learn from?"

TOP = 20  #: segments in the table, whatever it is sorted by
#: What the table of segments can be sorted by -> what is large there.
SORTS = {
    "moved": "movement: the sum of |Δ log-probability| over the segment's trained tokens",
    "share": "share of the step's |advantage|",
    "advantage": "size of the advantage",
    "ratio": "distance of the ratio from 1",
    "clipped": "share of tokens beyond the clip range",
}
BINS = 41  #: of the histogram of ratios, an odd number: one lies around 1
DOTS = 3000  #: of more segments the scatter shows an even selection
STILL = 1e-4  #: nats; a token that was as good as certain cannot move further than rounding
SIDES = (("positive", 1), ("negative", -1))  #: of credit
SNIPPET = 240  #: characters of a segment's text that the page carries, and half as many on each side of it

COLUMNS = (
    "pieces text advantages loss_mask old_logprobs sampled_logprobs new_logprobs ratio clipped segment_ids "
    "segment_start segment_end"
).split()

#: How token losses become one number -> the share each token has in it, in words.
_NORMALISERS = {
    "token-mean": "each trained token counts the same (token-mean)",
    "seq-mean-token-mean": "each completion counts the same, its trained tokens share it (seq-mean-token-mean)",
    "seq-mean-token-sum": "each trained token counts the same (seq-mean-token-sum)",
    "seq-mean-token-sum-norm": "each trained token counts the same (seq-mean-token-sum-norm)",
}


@dataclass(frozen=True)
class Update:
    """The N trained tokens of a step, and the M segments that hold them. NaN: not recorded."""

    advantage: np.ndarray  #: [N] as it entered the loss, token weights included
    weight: np.ndarray  #: [N] |advantage| over the normaliser, as a share of the step's total
    ratio: np.ndarray  #: [N] importance ratio after the step's updates, at the method's level
    clipped: np.ndarray  #: [N] 1 where that ratio lies beyond the clip range on the side that clips
    change: np.ndarray  #: [N] new minus old log-probability
    segment: np.ndarray  #: int [N]
    places: list[tuple[int, int, int, int]]  #: [M] (number of the rollout, of the segment, start, end)

    def per_segment(self, column: np.ndarray) -> np.ndarray:
        """Mean over the trained tokens of each segment, [M]; NaN where it is not recorded."""
        with np.errstate(invalid="ignore"):
            return self.total(column) / np.bincount(self.segment, minlength=len(self.places))

    def total(self, column: np.ndarray) -> np.ndarray:
        """Sum over the trained tokens of each segment, [M]."""
        return np.bincount(self.segment, column, len(self.places))

    def furthest(self) -> np.ndarray:
        """The ratio of each segment that is furthest from 1, as a log, [M]; NaN where none is recorded."""
        with np.errstate(divide="ignore", invalid="ignore"):
            log = np.log(np.where(self.ratio > 0, self.ratio, np.nan))
        order = np.argsort(np.nan_to_num(np.abs(log), nan=-1.0), kind="stable")
        found = np.full(len(self.places), np.nan)
        found[self.segment[order]] = log[order]  # the last one that is written stays
        return found


def forensics(run: Run, step: int, title: str = QUESTION) -> View:
    """What one step learned from: ratios and the clip range, how log-probabilities moved, and the segments
    by movement, share of |advantage|, advantage, ratio or clipping.

    Raises:
        ValueError: the step's rollouts are not recorded; the message says which are.
    """
    data = forensics_data(rollout_columns(run, COLUMNS, step), run.config, title)
    data |= {"run": run.name, "method": run.method_label}
    return View("forensics", title, data, _fallback(data))


def forensics_data(rows: Sequence[Row], config: Mapping[str, Any], title: str = QUESTION) -> dict[str, Any]:
    """What the script needs to draw one step.

    Args:
        rows: of one step, from `rollout_columns` with `COLUMNS`.
        config: settings of the run, for the clip range, the level of the ratio and the loss's normaliser.
    """
    loss_type = str(config.get("loss_type") or "")
    update = trained_tokens(rows, loss_type)
    segment_share = update.total(update.weight)
    order = np.argsort(-segment_share, kind="stable")
    advantage, change = update.per_segment(update.advantage), update.per_segment(update.change)
    shown = np.linspace(0, len(order) - 1, min(DOTS, len(order))).astype(int)
    top = telling(rows, update)
    points = {"x": floats(advantage[shown], False), "y": floats(change[shown], False)}
    return {
        "kind": "forensics",
        "title": title,
        "step": rows[0]["step"],
        "run": "",
        "method": ", ".join(sorted({method_label(row["method"]) for row in rows})),
        "tokens": len(update.advantage),
        "rollouts": len(rows),
        "segments": len(update.places),
        "level": str(config.get("importance_sampling_level") or "token"),
        "normaliser": _NORMALISERS.get(
            loss_type, "how the loss divides is not recorded: each trained token counts the same here"
        ),
        "verdict": [*_verdict(rows, update, segment_share[order]), *most_moved(top)],
        "notices": _notices(update),
        "clip": clip_range(config),
        "histogram": histogram(update, clip_range(config)),
        "clipped": clipped_shares(update, str(config.get("importance_sampling_level") or "token")),
        "moved": moved_shares(update),
        "trend": _trend(update),
        "points": pack(points) if np.isfinite(change[shown]).any() else None,
        "dots": len(shown),
        "top": top,
        "shown": TOP,
        "sorts": {name: words for name, words in SORTS.items() if any(entry[name] for entry in top)},
        "sort": "moved" if any(entry["moved"] for entry in top) else "share",
        "half": int(np.searchsorted(np.cumsum(segment_share[order]), 0.5) + 1) if segment_share.sum() > 0 else None,
    }


def trained_tokens(rows: Sequence[Row], loss_type: str = "") -> Update:
    """The tokens that entered the loss with some credit, and their share of it.

    A token's share is |A_t| over Σ |A_t|, each completion's part divided by its trained tokens where the loss is a mean
    over completions. This is the size of the pull on the policy before clipping; a recorded advantage already contains
    the token's weight.
    """
    parts: dict[str, list[np.ndarray]] = {
        name: [] for name in ("advantage", "weight", "ratio", "clipped", "change", "segment")
    }
    places: list[tuple[int, int, int, int]] = []
    for number, row in enumerate(rows):
        credit = row["advantages"]
        if credit is None or not len(credit):
            continue
        total = len(credit)
        trained = np.isfinite(credit) & (_column(row["loss_mask"], total, 1.0) == 1)
        if not trained.any():
            continue
        old = row["old_logprobs"] if row["old_logprobs"] is not None else row["sampled_logprobs"]
        segment = np.full(total, -1)
        for m, (start, end) in enumerate(spans(row, total)):
            if trained[start:end].any():
                segment[start:end] = len(places)
                places.append((number, m, int(start), int(end)))
        size = np.abs(credit[trained])
        parts["advantage"].append(credit[trained])
        parts["weight"].append(size / trained.sum() if loss_type == "seq-mean-token-mean" else size)
        parts["ratio"].append(_column(row["ratio"], total)[trained])
        parts["clipped"].append(_column(row["clipped"], total)[trained])
        parts["change"].append((_column(row["new_logprobs"], total) - _column(old, total))[trained])
        parts["segment"].append(segment[trained])
    arrays = {name: np.concatenate(part) if part else np.zeros(0) for name, part in parts.items()}
    whole = arrays["weight"].sum()
    return Update(
        **arrays
        | {
            "weight": arrays["weight"] / whole if whole > 0 else arrays["weight"],
            "segment": arrays["segment"].astype(int),
        },
        places=places,
    )


def clip_range(config: Mapping[str, Any]) -> list[float] | None:
    """[1 − epsilon, 1 + epsilon_high]; None where the run does not say."""
    low, high = config.get("epsilon"), config.get("epsilon_high")
    if low is None:
        return None
    return [1 - float(low), 1 + float(low if high is None else high)]


def histogram(update: Update, clip: Sequence[float] | None) -> dict[str, Any] | None:
    """Tokens by log ratio: `edges` [BINS + 1] (of the ratio), and counts by sign of the advantage, those clipped apart.

    The outermost bins hold what lies beyond. None where no ratio is recorded.
    """
    known = np.isfinite(update.ratio) & (update.ratio > 0) & (update.advantage != 0)
    if not known.any():
        return None
    log, sign, clipped = np.log(update.ratio[known]), np.sign(update.advantage[known]), update.clipped[known] == 1
    reach = float(np.quantile(np.abs(log), 0.999))
    # the clip range belongs into the picture unless the ratios are far too small to come near it
    bounds = max((abs(math.log(x)) for x in clip if x > 0), default=0.0) if clip else 0.0
    reach = max(reach, 1.15 * bounds if bounds < 8 * reach else 0.0, 1e-6)
    edges = np.linspace(-reach, reach, BINS + 1)
    index = np.clip(np.searchsorted(edges, log, side="right") - 1, 0, BINS - 1)
    count = {
        name: np.bincount(index[(sign == side) & (clipped == flag)], minlength=BINS).tolist()
        for name, side, flag in (
            ("up", 1, False),
            ("up_clipped", 1, True),
            ("down", -1, False),
            ("down_clipped", -1, True),
        )
    }
    return {"edges": np.exp(edges).tolist(), **count}


def clipped_shares(update: Update, level: str = "token") -> list[dict[str, Any]]:
    """For positive and for negative credit: share of trained tokens beyond the clip range, with Wilson's interval.

    Tokens that share one ratio, by `level` those of a segment or of a completion, count once in the interval.
    """
    owner = np.array([place[0] for place in update.places], dtype=int)
    one = {"segment": update.segment, "sequence": owner[update.segment]}.get(level, np.arange(len(update.segment)))
    return [
        {"credit": name, **_share(update.clipped[part] == 1, len(np.unique(one[part])))}
        for name, side in SIDES
        for part in (np.isfinite(update.clipped) & (np.sign(update.advantage) == side),)
    ]


def moved_shares(update: Update) -> list[dict[str, Any]]:
    """For positive and for negative credit: how many tokens became likelier (`up`), less likely (`down`), or moved less
    than `STILL` (`still`); and the share of those that moved which went the way the credit points."""
    found = []
    for name, side in SIDES:
        change = update.change[np.isfinite(update.change) & (np.sign(update.advantage) == side)]
        moved = change[np.abs(change) >= STILL]
        counts = {"up": int((moved > 0).sum()), "still": len(change) - len(moved), "down": int((moved < 0).sum())}
        found.append({"credit": name, **counts, **_share(moved * side > 0)})
    return found


def _share(hits: np.ndarray, independent: int | None = None) -> dict[str, Any]:
    """`independent`: how many of them say something of their own; None: all."""
    share = float(hits.mean()) if len(hits) else None
    independent = len(hits) if independent is None else independent
    low, high = wilson((share or 0.0) * independent, independent)
    return {"tokens": len(hits), "hits": int(hits.sum()), "share": share, "low": float(low), "high": float(high)}


def _trend(update: Update) -> list[list[float]]:
    """[mean advantage, mean change of log-probability] of tokens in equal-count bins of the advantage."""
    known = np.isfinite(update.change)
    index = equal_count_bins(update.advantage[known], 12)
    count = np.bincount(index)
    return np.stack(
        [np.bincount(index, update.advantage[known]) / count, np.bincount(index, update.change[known]) / count], axis=1
    ).tolist()


def telling(rows: Sequence[Row], update: Update) -> list[dict[str, Any]]:
    """The segments with which each of `SORTS` begins, by movement (by share where none is recorded).

    Siblings that say the same up to and including a segment, with the same advantage there, are one entry: `samples`
    names them, share and movement are theirs together.
    """
    if not update.places:
        return []
    known = np.isfinite(update.change)
    measures = {
        "moved": update.total(np.where(known, np.abs(update.change), 0.0)),
        "share": update.total(update.weight),
        "advantage": update.per_segment(update.advantage),
        "ratio": np.exp(update.furthest()),
        "clipped": update.per_segment(update.clipped),
        "change": update.per_segment(update.change),
    }
    first = _alike(rows, update, measures["advantage"])
    members = np.bincount(first, minlength=len(first))
    size = {
        "moved": np.bincount(first, measures["moved"], len(first)),
        "share": np.bincount(first, measures["share"], len(first)),
        "advantage": np.abs(measures["advantage"]),
        "ratio": np.abs(update.furthest()),
        "clipped": measures["clipped"],
    }
    wanted: set[int] = set()
    for name in SORTS:
        order = np.argsort(-np.nan_to_num(np.where(members > 0, size[name], -1.0), nan=-1.0), kind="stable")
        wanted.update(int(m) for m in order[:TOP] if members[m])
    key = "moved" if size["moved"].any() else "share"
    ranked = sorted(wanted, key=lambda m: (-size[key][m], -size["share"][m], m))
    tokens = np.bincount(update.segment, minlength=len(update.places))
    return [
        {
            **_text(rows, update.places[m]),
            "samples": [rows[update.places[other][0]]["sample"] for other in np.flatnonzero(first == m)],
            "tokens": int(tokens[m]),
            **{name: _number(size[name][m]) for name in ("share", "moved")},
            **{name: _number(measures[name][m]) for name in ("advantage", "ratio", "change", "clipped")},
        }
        for m in ranked
    ]


def _alike(rows: Sequence[Row], update: Update, advantage: np.ndarray) -> np.ndarray:
    """int [M]: for each segment the first one of its group with the same text up to its end and the same advantage."""
    pieces = [row["pieces"] if row["pieces"] is not None else [row["text"] or ""] for row in rows]
    seen: dict[tuple, int] = {}
    first = np.arange(len(update.places))
    for m, (number, _, start, end) in enumerate(update.places):
        row = rows[number]
        text = "".join(piece or "" for piece in pieces[number][:end])
        key = (row["step"], row["group"], start, end, text, round(float(advantage[m]), 6))
        first[m] = seen.setdefault(key, m)
    return first


def most_moved(top: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the update moved most, in words; nothing where movements are not recorded."""
    if not top or not top[0]["moved"]:
        return []
    one = top[0]
    many = f" and {len(one['samples']) - 1} more like it" if len(one["samples"]) > 1 else ""
    words = one["text"].strip().replace("\n", "↵")[:40] or "(empty)"
    credit = "no known advantage" if one["advantage"] is None else f"advantage {signed(one['advantage'])}"
    return [
        f"The update moved ‘{words}’ most (segment {one['segment'] + 1} of group {one['group']}, sample "
        f"{one['sample']}{many}): {one['moved']:.2f} nats, {credit}."
    ]


def _text(rows: Sequence[Row], place: tuple[int, int, int, int]) -> dict[str, Any]:
    """Which segment it is, and what it says."""
    number, segment, start, end = place
    row = rows[number]
    pieces = row["pieces"] if row["pieces"] is not None else [row["text"] or ""]
    before, words, after = (
        "".join(p or "" for p in part) for part in (pieces[:start], pieces[start:end], pieces[end:])
    )
    return {
        **{name: row[name] for name in ("step", "group", "sample")},
        "segment": segment,
        "start": start,
        "before": tidy(before[-SNIPPET // 2 :]),
        "text": tidy(words[:SNIPPET]),
        "more": max(0, len(words) - SNIPPET),
        "after": tidy(after[: SNIPPET // 2]) if len(words) <= SNIPPET else "",
    }


def _verdict(rows: Sequence[Row], update: Update, shares: np.ndarray) -> list[str]:
    if not len(update.advantage):
        return ["Nothing: no token of this step entered the loss with credit."]
    if not shares.sum():
        return ["Nothing: every advantage of this step is zero."]
    half = int(np.searchsorted(np.cumsum(shares), 0.5) + 1)
    number, segment, *_ = update.places[int(np.argmax(np.bincount(update.segment, update.weight, len(update.places))))]
    first = rows[number]
    said = [
        f"Half of the step's |advantage| lies in {half:,} of {len(shares):,} segments.",
        f"The heaviest is segment {segment + 1} of group {first['group']}, sample {first['sample']}: {shares[0]:.1%}.",
    ]
    words = {"positive": "with positive credit became likelier", "negative": "with negative credit less likely"}
    moved = [f"{s['share']:.0%} of those {words[s['credit']]}" for s in moved_shares(update) if s["share"] is not None]
    return [*said, f"Of the tokens that moved, {', '.join(moved)}."] if moved else said


def _notices(update: Update) -> list[str]:
    notes = []
    if not len(update.advantage):
        return notes
    if not np.isfinite(update.ratio).any():
        notes.append("No importance ratios are recorded.")
    if not np.isfinite(update.change).any():
        notes.append("Log-probabilities after the update are not recorded: nothing can be said about what it changed.")
    if zero := int((update.advantage == 0).sum()):
        notes.append(f"{zero:,} trained tokens have credit 0 and pulled at nothing.")
    return notes


def _column(column: np.ndarray | None, total: int, missing: float = math.nan) -> np.ndarray:
    """The column, or `missing` everywhere where it was not recorded or does not fit the tokens."""
    return column if column is not None and len(column) == total else np.full(total, missing)


def _number(x: float) -> float | None:
    return float(x) if math.isfinite(x) else None


def _fallback(data: Mapping[str, Any]) -> str:
    """The first segments as a table."""

    def say(x: float | None, form: str) -> str:
        return "not recorded" if x is None else format(x, form)

    top = data["top"][:TOP]
    rows = "".join(
        f"<tr><td>{rank}</td><td>{escape(_who(e))}</td>"
        f'<td style="white-space:pre-wrap;text-align:left">{escape(e["text"])}{"…" if e["more"] else ""}</td>'
        f"<td>{say(e['moved'], '.3f')}</td><td>{e['share']:.1%}</td>"
        f"<td>{'–' if e['advantage'] is None else signed(e['advantage'])}</td>"
        f"<td>{say(e['ratio'], '.3f')}</td><td>{say(e['change'], '+.3f')}</td></tr>"
        for rank, e in enumerate(top, 1)
    )
    names = (
        "",
        "group · sample · segment",
        "text",
        "moved, nats",
        "share",
        "advantage",
        "ratio",
        "change of log-prob.",
    )
    head = "".join(f"<th>{name}</th>" for name in names)
    notes = "".join(f"<p>{escape(note)}</p>" for note in data["notices"])
    limit = max((abs(e["advantage"]) for e in top if e["advantage"] is not None), default=0.0)
    said = " ".join(data["verdict"])
    heaviest = "; ".join(f"{e['share']:.1%} of the weight: {e['text'][:60]}" for e in top[:5])
    drawn = f"<p>{segments_picture(top, limit, f'{said} {heaviest}')}</p>" if top else ""
    title = f"The first segments by {SORTS[data['sort']]}, as a table"
    table = details(title, f"<table><tr>{head}</tr>{rows}</table>") if rows else ""
    place = f"{data['run']} · {data['method']} · step {data['step']}"
    return f"<div>{still_head(data['title'], place, data['verdict'])}{notes}{drawn}{table}</div>"


def _who(entry: Mapping[str, Any]) -> str:
    more = f" (+{len(entry['samples']) - 1})" if len(entry["samples"]) > 1 else ""
    return f"{entry['group']} · {entry['sample']}{more} · {entry['segment'] + 1}"
