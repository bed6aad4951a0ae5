"""The boundary audit: two segmentations of one text, with the signals that made them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from segviz.parts.credit import error_of, key_of
from segviz.parts.heading import where
from segviz.parts.stills import TOKENS, as_text, head, text_of
from segviz.runs.rollout import Rollout
from segviz.show.encode import escape, floats, pack, tidy
from segviz.show.still import Piece, flow, picture, shade
from segviz.show.theme import method_label
from segviz.show.view import View

QUESTION = "Are the cuts at real decisions?"

#: Rules by name -> their settings. The numbers are those of the papers; METHODS' functions have the same.
RULES: dict[str, dict[str, Any]] = {
    "entropy": {"fraction": 0.3},
    "probability": {"threshold": 0.9, "interval": 5},
    "fixed": {"size": 30},
    "newline": {},
    "steps": {"pattern": r"Step \d+"},
}

LONG = 4096  #: tokens from which on signals are stored more coarsely


@dataclass(frozen=True)
class Cut:
    """One segmentation of T tokens."""

    starts: tuple[int, ...]  #: first token of each segment, 0 first
    label: str  #: whose it is
    rule: str  #: how it was made, in words
    signal: str = ""  #: "entropy" or "probability": what the rule looks at; "" for another
    threshold: float | None = None  #: the signal's value that divides tokens which cut from those which do not


def boundaries(
    rollout: Rollout | Mapping[str, Any],
    other: str | Mapping[str, Any] | Sequence[int] | None = None,
    title: str = QUESTION,
) -> View:
    """Two cuts of one completion above each other, aligned by token, each with the signal and threshold behind it.

    Args:
        rollout: from `Run.rollout`, or a mapping with the columns of `ROLLOUT_SCHEMA`.
        other: what the recorded cut is held against: segment ids (one a token); a mapping with `segment_ids` or
            `segment_start` (a row of another method's credit; `method` or `label` names it); or a rule computed from
            the recorded columns, by name ("entropy", "probability", "fixed", "newline", "steps") or with its settings,
            `{"rule": "entropy", "fraction": 0.15}`. Default: entropy, or probability where the recorded cut is by
            entropy.

    Raises:
        ValueError: ids that do not cut this completion into contiguous segments, an unknown rule or setting, or a
            rule whose column is not recorded.
    """
    rollout = rollout if isinstance(rollout, Rollout) else Rollout(rollout)
    cuts = recorded_cut(rollout), other_cut(rollout, other)
    data = _data(rollout, cuts, title)
    return View("boundaries", title, data, _fallback(rollout, cuts, data))


def signal_of(rollout: Rollout, name: str) -> list[float | None] | None:
    """Entropy (nats) or probability of each token under the policy that sampled it; None where not recorded."""
    if name == "entropy":
        return rollout.column("entropy")
    logprobs = rollout.column("sampled_logprobs") or rollout.column("old_logprobs")
    return None if logprobs is None else [None if x is None else math.exp(x) for x in logprobs]


def recorded_cut(rollout: Rollout) -> Cut:
    """The cut that the rollout was trained with; its signal is read from the recorded rule's words."""
    starts = tuple(start for start, _ in rollout.segments)
    rules = [rule for rule in rollout.segment_column("segment_rule") or [] if rule]
    rule = rules[0] if rules else "rule not recorded"
    method = method_label(rollout.row.get("method"))
    if "entropy" in rule and (entropy := rollout.column("entropy")):
        return Cut(starts, f"recorded, {method}", rule, "entropy", _lowest_end(entropy, starts))
    if match := re.search(r"probability below ([0-9.eE+-]+)", rule):
        return Cut(starts, f"recorded, {method}", rule, "probability", float(match[1]))
    return Cut(starts, f"recorded, {method}", rule)


def other_cut(rollout: Rollout, other: str | Mapping[str, Any] | Sequence[int] | None) -> Cut:
    """The cut that the recorded one is held against; see `boundaries`."""
    if other is None:
        names = ("probability", "entropy") if recorded_cut(rollout).signal == "entropy" else ("entropy", "probability")
        other = next((name for name in names if signal_of(rollout, name) is not None), "newline")
    if isinstance(other, str):
        return rule_cut(rollout, other)
    if isinstance(other, Mapping):
        if "rule" in other and "segment_ids" not in other:
            return rule_cut(rollout, other["rule"], **{k: v for k, v in other.items() if k != "rule"})
        label = other.get("label") or (method_label(other["method"]) if other.get("method") else "given")
        rules = [rule for rule in other.get("segment_rule") or [] if rule]
        starts = other.get("segment_start")
        if other.get("segment_ids") is not None:
            starts = _starts_of(other["segment_ids"], len(rollout.pieces))
        elif starts is None:
            raise ValueError(f"the other cut has neither segment_ids, segment_start nor rule; it has {sorted(other)}")
        return Cut(tuple(starts), str(label), rules[0] if rules else "")
    return Cut(_starts_of(other, len(rollout.pieces)), "given", "as given")


def _nth(number: int) -> str:
    """ "5th ", nothing for 1."""
    if number == 1:
        return ""
    ends = {1: "st", 2: "nd", 3: "rd"}
    return f"{number}{'th' if number % 100 in (11, 12, 13) else ends.get(number % 10, 'th')} "


def rule_cut(rollout: Rollout, rule: str, **settings: Any) -> Cut:
    """A cut of the recorded tokens by one of `RULES`, made by segpo_core.segments."""
    if rule not in RULES:
        raise ValueError(f"there is no rule {rule!r}; choose one of {', '.join(RULES)}")
    if unknown := set(settings) - set(RULES[rule]):
        raise ValueError(f"rule {rule!r} has no setting {', '.join(sorted(unknown))}; it has {list(RULES[rule])}")
    given = RULES[rule] | settings
    if not rollout.pieces:
        return Cut((), rule, "")
    import torch  # here, because looking at recorded rollouts needs no torch otherwise

    from segpo_core import segments

    mask = torch.ones(1, len(rollout.pieces), dtype=torch.bool)
    signal = rule if rule in ("entropy", "probability") else ""
    values = signal_of(rollout, signal) if signal else None
    if signal and values is None:
        raise ValueError(f"the rule {rule!r} needs the {signal} of each token, which is not recorded in this rollout")
    column = torch.tensor([[math.nan if v is None else v for v in values]]) if values else None
    if rule == "entropy":
        ids = segments.entropy_topk(column.nan_to_num(-math.inf), mask, **given)
        words = f"ends at one of the {given['fraction']:.0%} tokens of highest entropy"
    elif rule == "probability":
        ids = segments.cutpoints(column, mask, **given)
        words = f"before every {_nth(given['interval'])}token with a probability below {given['threshold']:g}"
    elif rule == "fixed":
        ids, words = segments.fixed_length(mask, given["size"]), f"every {given['size']} tokens"
    elif rule == "newline":
        ids, words = segments.newline([rollout.pieces], mask), "a line ends"
    else:
        ids, words = segments.step_markers([rollout.pieces], mask, given["pattern"]), "a step marker"
    starts = _starts_of(ids[0].tolist(), len(rollout.pieces))
    limit = _lowest_end(values, starts) if rule == "entropy" else given.get("threshold")
    return Cut(starts, f"rule: {rule}", words, signal, limit)


def verdict(rollout: Rollout, ours: Cut, theirs: Cut) -> list[str]:
    """How the two cuts agree, and how far each is from the first true error, in sentences."""
    if not rollout.pieces:
        return ["There is nothing to cut."]
    a, b = set(ours.starts) - {0}, set(theirs.starts) - {0}
    counts = f"{len(a) + 1} segment{'s' if a else ''} recorded, {len(b) + 1} in the other cut"
    both = f"{len(a & b)} cut{'' if len(a & b) == 1 else 's'} in common"
    if not a and not b:
        return [f"{counts}: neither cuts this completion."]
    said = [f"{counts}; {both}, {len(a - b)} only recorded, {len(b - a)} only in the other."]
    if error := error_of(rollout):
        places = [_gap(error["start"], cuts) for cuts in (a, b)]
        said.append(f"The first true error begins {places[0]} (recorded) and {places[1]} (other).")
    return said


def _starts_of(ids: Sequence[int], total: int) -> tuple[int, ...]:
    """First token of each segment.

    Raises:
        ValueError: not one id a token, or an id comes back after another.
    """
    if len(ids) != total:
        raise ValueError(f"the other cut has {len(ids)} segment ids for {total} tokens; one id a token is needed")
    starts = tuple(t for t in range(total) if t == 0 or ids[t] != ids[t - 1])
    if len({ids[t] for t in starts}) != len(starts):
        raise ValueError("segment ids must be contiguous: an id comes back after another segment")
    return starts


def _lowest_end(values: Sequence[float | None], starts: Sequence[int]) -> float | None:
    """The lowest signal among segment ends, without the last token, which always is one."""
    ends = [values[start - 1] for start in starts[1:]]
    return min((value for value in ends if value is not None), default=None)


def _gap(token: int, cuts: set[int]) -> str:
    """How far a token is behind the cut before it, in words."""
    if token + 1 in cuts and token not in cuts:
        return "in a token that ends a segment"
    before = [cut for cut in cuts if cut <= token]
    if not before:
        return "in the first segment"
    away = token - max(before)
    return "at a cut" if away == 0 else f"{away} token{'s' if away > 1 else ''} after a cut"


def _data(rollout: Rollout, cuts: tuple[Cut, Cut], title: str) -> dict[str, Any]:
    total = len(rollout.pieces)
    units = [len(tidy(piece).encode("utf-16-le")) // 2 for piece in rollout.pieces]
    columns = {"units": np.array(units, dtype=np.uint32)}
    for name, cut in zip("ab", cuts, strict=True):
        columns[f"{name}_start"] = np.isin(np.arange(total), cut.starts).astype(np.uint8)
    signals = [name for name in ("entropy", "probability") if signal_of(rollout, name) is not None]
    columns |= {name: floats(signal_of(rollout, name), total > LONG) for name in signals}
    # a rule that looks at no signal is shown with the one that the other lane does not show
    spare = [name for name in signals if name not in {cut.signal for cut in cuts}] or signals
    shown = []
    for cut in cuts:
        drawn = cut.signal if cut.signal in signals else (spare.pop(0) if len(spare) > 1 else (spare or [""])[0])
        shown.append(
            {
                "label": tidy(cut.label),
                "rule": tidy(cut.rule),
                "count": len(cut.starts),
                "signal": drawn,
                "threshold": cut.threshold if drawn == cut.signal else None,
            }
        )
    return {
        "kind": "boundaries",
        "key": key_of(rollout.row),
        "title": title,
        "where": where(rollout),
        "method": method_label(rollout.row.get("method")),
        "verdict": verdict(rollout, *cuts),
        "notices": rollout.problems,
        "error": error_of(rollout),
        "cuts": shown,
        "pack": pack(columns, "".join(rollout.pieces)),
    }


def _fallback(rollout: Rollout, cuts: tuple[Cut, Cut], data: Mapping[str, Any]) -> str:
    """The text with a mark over each token where a cut is, shaded by what the cut looks at."""
    ours, theirs = (set(cut.starts) for cut in cuts)
    looked = next((cut.signal for cut in cuts if cut.signal), "")
    signal = (signal_of(rollout, looked) if looked else None) or [None] * len(rollout.pieces)
    sizes = [0.0 if x is None else 1 - x if looked == "probability" else x for x in signal]
    largest, error = max(sizes, default=0.0), error_of(rollout)
    pieces = [
        Piece(
            piece,
            tag="◆" if t in ours and t in theirs else "▼" if t in ours else "▲" if t in theirs else "",
            error=bool(error) and error["start"] <= t < error["end"],
            fill=shade(sizes[t] / largest) if largest > 0 else "",
        )
        for t, piece in enumerate(rollout.pieces[:TOKENS])
    ]
    rows = "".join(
        f"<li>{mark} {escape(cut.label)}: {escape(cut.rule)}, {len(cut.starts)} segments</li>"
        for mark, cut in zip("▼▲", cuts, strict=True)
    )
    body, height = flow(pieces, top=4)
    told = f"The darker, the {'less probable' if looked == 'probability' else 'higher the entropy'}." if largest else ""
    left = len(rollout.pieces) - TOKENS
    more = f" {left:,} more tokens: open the page that .save(path) writes." if left > 0 else ""
    drawn = picture(body, height + 12, f"{' '.join(data['verdict'])} The text: {text_of(rollout)[:1500]}")
    return (
        f"<div>{head(data['title'], data['where'], data['verdict'])}<ul>{rows}<li>◆ both</li></ul><p>{drawn}</p>"
        f"<p><small>{escape(told + more)}</small></p>{as_text(rollout)}</div>"
    )
