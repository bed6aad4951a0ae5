"""The ribbon: a completion's tokens, coloured by their credit, cut where the method cut them."""

from __future__ import annotations

import base64
import io
import math
import re
from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from segviz.rollout import TOKEN_NUMBERS, Rollout
from segviz.theme import level, method_label, rgba, symmetric_limit
from segviz.view import View, escape, floats, pack, tidy

QUESTION = "Which segment broke this solution?"

LONG = 4096  #: tokens from which on columns are stored more coarsely and some are left out
FALLBACK_TOKENS = 4000  #: tokens that the static fallback shows
LARGEST_IMAGE = 600_000  #: bytes above which an image is shown smaller than it is

#: Name in the page -> column of the rollout.
_FLOATS = {
    "adv": "advantages", "val": "values", "ent": "entropy", "logp": "old_logprobs", "ratio": "ratio",
    "weight": "weights", "ret": "returns", "ref": "ref_logprobs", "pc": "perception_contrast",
    "rc": "reasoning_contrast",
}  # fmt: skip
_LEFT_OUT_WHEN_LONG = ("ref_logprobs", "perception_contrast", "reasoning_contrast", "token_ids")


def ribbon(rollout: Rollout | Mapping[str, Any], title: str = QUESTION) -> View:
    """The completion with its credit: segments, advantages, values, the first true error, every number on hover.

    Args:
        rollout: from `Run.rollout`, or a mapping with the columns of `ROLLOUT_SCHEMA` (missing ones are shown as
            not recorded).
    """
    rollout = rollout if isinstance(rollout, Rollout) else Rollout(rollout)
    data = ribbon_data(rollout, title) | {"pictures": pictures(rollout)}
    return View("ribbon", title, data, _fallback(rollout, title))


def ribbon_data(rollout: Rollout, title: str = QUESTION) -> dict[str, Any]:
    """What the script needs to draw a ribbon, without the images' bytes."""
    row, total = rollout.row, len(rollout.pieces)
    limit = symmetric_limit(rollout.column("advantages") or [], trained(rollout))
    return {
        "kind": "ribbon",
        "key": key_of(row),
        "title": title,
        "where": where(rollout),
        "method": method_label(row.get("method")),
        "verdict": verdict(rollout),
        "facts": facts(rollout),
        "prompt": prompt_of(rollout),
        "error": error_of(rollout),
        "blamed": blamed(rollout),
        "limit": limit,
        "rules": sorted({rule or "" for rule in rollout.segment_column("segment_rule") or []}),
        "tokens": total,
        "notices": _notices(rollout),
        "pack": pack(_columns(rollout), "".join(rollout.pieces)),
    }


def key_of(row: Mapping[str, Any]) -> str:
    """`step/group/sample`: what links the views of one rollout."""
    return "/".join("" if row.get(name) is None else str(row[name]) for name in ("step", "group", "sample"))


def where(rollout: Rollout) -> str:
    """Which rollout this is, for a heading."""
    row = rollout.row
    parts = [f"{name} {row[name]}" for name in ("step", "group", "sample") if row.get(name) is not None]
    return " · ".join([*parts, *[str(name) for name in (row.get("example_id"),) if name]])


def segment_credit(rollout: Rollout) -> list[float | None]:
    """Advantage of each segment: as recorded, else the mean over its tokens, also where weights make them differ.
    None where nothing of it was trained."""
    recorded = rollout.segment_column("segment_advantage")
    tokens, in_loss = rollout.column("advantages"), trained(rollout)
    credit: list[float | None] = []
    for m, (start, end) in enumerate(rollout.segments):
        known = [tokens[t] for t in range(start, end) if in_loss[t] and tokens[t] is not None] if tokens else []
        alike = not known or min(known) == max(known)
        if recorded and recorded[m] is not None and (known or not tokens) and alike:
            credit.append(recorded[m])
        else:
            credit.append(sum(known) / len(known) if known else None)
    return credit


def blamed(rollout: Rollout) -> int | None:
    """The segment with the most negative credit, None where there is none below zero."""
    credit = [(value, m) for m, value in enumerate(segment_credit(rollout)) if value is not None and value < 0]
    return min(credit)[1] if credit else None


def error_of(rollout: Rollout) -> dict[str, Any] | None:
    """The first true error in tokens, {start, end, kind, why}; None where there is none or it is not known."""
    start, end, total = rollout.row.get("error_start"), rollout.row.get("error_end"), len(rollout.pieces)
    if start is None or not 0 <= start < total:
        return None
    truth = rollout.json("truth")
    told = truth.get("first_error") if isinstance(truth, dict) else None
    why = str(told.get("why") or "") if isinstance(told, dict) else ""
    end = min(total, max(start + 1, end or 0))
    return {"start": start, "end": end, "kind": rollout.row.get("error_kind") or "error", "why": tidy(why)}


def verdict(rollout: Rollout) -> list[str]:
    """The question answered in a sentence or two."""
    if not rollout.pieces:
        return ["The completion is empty."]
    credit, error = segment_credit(rollout), error_of(rollout)
    known = [value for value in credit if value is not None]
    worst = blamed(rollout)
    if not known and given(rollout):
        first = "None of its tokens entered the loss: this rollout taught the policy nothing."
    elif not known:
        first = "No credit is recorded for this rollout."
    elif not any(known):
        first = "Every advantage is zero: this rollout taught the policy nothing."
    elif len(credit) == 1:
        first = f"The whole completion got one advantage, {signed(known[0])}: this method names no segment."
    elif len(known) == len(credit) and max(known) - min(known) < 1e-6:
        first = f"Every segment got the same advantage, {signed(known[0])}: this method names none."
    elif worst is None:
        best = max((value, m) for m, value in enumerate(credit) if value is not None)
        first = f"No segment was blamed. Segment {best[1] + 1} earned most: {signed(best[0])}."
    else:
        first = f"Segment {worst + 1} was blamed most: {signed(credit[worst])}."
    if error is None:
        return [first, "No true error is known in it."] if has_truth(rollout) else [first]
    at, reason = segment_at(rollout, error["start"]), reason_of(error)
    if len(credit) == 1:
        return [first, f"The first true error is at token {error['start'] + 1}{reason}."]
    if worst is None:
        return [first, f"The first true error is in segment {at + 1}{reason}."]
    start, end = rollout.segments[worst]
    if start < error["end"] and error["start"] < end:
        return [first, f"The first true error is there too{reason}."]
    away = abs(at - worst)
    far = f"{away} segment{'s' if away > 1 else ''} {'earlier' if at < worst else 'later'}"
    return [first, f"The first true error is in segment {at + 1}, {far}{reason}."]


def given(rollout: Rollout) -> bool:
    """Whether any credit is recorded, also of tokens that did not enter the loss."""
    return rollout.column("advantages") is not None or rollout.segment_column("segment_advantage") is not None


def has_truth(rollout: Rollout) -> bool:
    """Whether the task said anything about what is right in it: without, no known error does not mean none."""
    return rollout.row.get("truth") is not None or rollout.row.get("answer_right") is not None


def reason_of(error: Mapping[str, Any]) -> str:
    """Kind and reason of the first true error, in brackets with a space before."""
    return f" ({error['kind']}: {error['why']})" if error["why"] else f" ({error['kind']})"


def segment_at(rollout: Rollout, token: int) -> int:
    """Number of the segment that holds a token."""
    return bisect_right([start for start, _ in rollout.segments], token) - 1


def signed(value: float) -> str:
    """A number with its sign, a real minus and two or, when small, enough decimals."""
    digits = 2 if abs(value) >= 0.01 or value == 0 else min(6, 1 - math.floor(math.log10(abs(value))))
    return f"{value:+.{digits}f}".replace("-", "−")


def pictures(rollout: Rollout) -> dict[str, dict[str, Any]]:
    """sha256 -> {src, w, h}; `src` is None where the image is missing or cannot be read."""
    return {str(sha): _picture(rollout.images.get(sha)) for sha in rollout.row.get("images") or []}


def _picture(data: bytes | None) -> dict[str, Any]:
    if data is None:
        return {"src": None, "note": "missing"}
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except (OSError, ValueError, SyntaxError):
        return {"src": None, "note": "cannot be read"}
    width, height, mime, note = image.width, image.height, "png", ""
    if len(data) > LARGEST_IMAGE:
        image.thumbnail((1024, 1024))
        sink = io.BytesIO()
        image.convert("RGB").save(sink, format="JPEG", quality=88)
        data, mime, note = sink.getvalue(), "jpeg", "shown smaller"
    else:
        # written anew: only pixels go into the page, whatever else the file held
        sink = io.BytesIO()
        image.convert("RGB").save(sink, format="PNG", optimize=True)
        data = sink.getvalue()
    src = f"data:image/{mime};base64,{base64.b64encode(data).decode()}"
    return {"src": src, "w": width, "h": height, "note": note}


def trained(rollout: Rollout) -> list[bool]:
    """True at tokens that entered the loss with some credit, zero included."""
    mask, credit = rollout.column("loss_mask"), rollout.column("advantages")
    return [
        (mask is None or bool(mask[t])) and (credit is None or credit[t] is not None)
        for t in range(len(rollout.pieces))
    ]


def text_columns(rollout: Rollout) -> dict[str, np.ndarray]:
    """What cuts the page's text into tokens and segments: lengths in UTF-16 units, and in tokens."""
    units = [len(tidy(piece).encode("utf-16-le")) // 2 for piece in rollout.pieces]
    return {
        "units": np.array(units, dtype=np.uint16 if max(units, default=0) < 2**16 else np.uint32),
        # lengths rather than places: small numbers that repeat deflate to almost nothing
        "seg": np.array([end - start for start, end in rollout.segments], dtype=np.uint32),
    }


def _columns(rollout: Rollout) -> dict[str, np.ndarray]:
    """Columns for the page. One that was not recorded is absent."""
    total = len(rollout.pieces)
    long = total > LONG
    columns = text_columns(rollout) | {"seg_adv": floats(segment_credit(rollout), long)}
    for name, source in (("seg_val", "segment_value"), ("seg_err", "segment_stderr")):
        if (column := rollout.segment_column(source)) is not None:
            columns[name] = floats(column, long)
    if rules := rollout.segment_column("segment_rule"):
        order = sorted({rule or "" for rule in rules})
        columns["seg_rule"] = np.array([order.index(rule or "") for rule in rules], dtype=np.uint16)
    for name, source in _FLOATS.items():
        column = rollout.column(source)
        if column is None and name == "logp":
            column = rollout.column("sampled_logprobs")
        if column is not None and not (long and source in _LEFT_OUT_WHEN_LONG):
            columns[name] = floats(column, long)
    for name, source in (("loss", "loss_mask"), ("clip", "clipped")):
        if (column := rollout.column(source)) is not None:
            columns[name] = np.array([2 if flag is None else int(flag) for flag in column], dtype=np.uint8)
    if (column := rollout.column("role_ids")) is not None:
        columns["role"] = np.array([255 if r is None or r < 0 else r for r in column], dtype=np.uint8)
    if (column := rollout.column("token_ids")) is not None and not long:
        ids = np.array([0 if item is None else item for item in column], dtype=np.uint32)
        columns["id"] = ids if ids.max(initial=0) >= 2**16 else ids.astype(np.uint16)
    return columns


def facts(rollout: Rollout) -> dict[str, Any]:
    """Reward, answer and what is known to be right, for the badges."""
    row = rollout.row
    parts = rollout.json("reward_parts")
    said = re.findall(r"<answer>(.*?)</answer>", rollout.text, re.S)
    right = {name: row.get(f"{name}_right") for name in ("answer", "perception", "reasoning")}
    return {
        "reward": row.get("reward"),
        "parts": parts if isinstance(parts, dict) else {},
        "reference": _short(row.get("answer")),
        "said": _short(said[-1].strip()) if said else None,
        "finished": row.get("finished"),
        "right": right,
    }


def prompt_of(rollout: Rollout) -> list[dict[str, Any]]:
    """Messages as [{role, parts}], a part is {text} or {image: sha256}."""
    messages, shas = rollout.json("prompt"), list(rollout.row.get("images") or [])
    if messages is None:
        messages = rollout.row.get("prompt") or ""
    if not isinstance(messages, list):
        messages = [{"role": "", "content": messages if isinstance(messages, str) else str(messages)}]
    left, shown = iter(shas), []
    for message in messages:
        if not isinstance(message, dict):
            message = {"role": "", "content": str(message)}
        content = message.get("content")
        parts = []
        for part in content if isinstance(content, list) else [{"text": "" if content is None else str(content)}]:
            if isinstance(part, dict) and part.get("type") == "image":
                sha = next(left, None)
                parts.append({"image": str(sha)} if sha else {"text": "(image not recorded)"})
            elif isinstance(part, dict):
                parts.append({"text": str(part.get("text", ""))})
            else:
                parts.append({"text": str(part)})
        shown.append({"role": str(message.get("role") or ""), "parts": parts})
    if rest := [{"image": str(sha)} for sha in left]:
        shown.insert(0, {"role": "", "parts": rest})
    return shown


def _notices(rollout: Rollout) -> list[str]:
    """What a reader should know before trusting the picture."""
    notes = list(rollout.problems)
    if not rollout.pieces:
        return notes
    if rollout.column("advantages") is None:
        notes.append("No advantages are recorded: nothing is coloured.")
    elif not any(trained(rollout)):
        notes.append("No token of this rollout entered the loss.")
    if not rollout.row.get("segment_start") and not rollout.row.get("segment_ids"):
        notes.append("No segments are recorded: the completion is shown as a single one.")
    if len(rollout.pieces) > LONG:
        left = [name for name in _LEFT_OUT_WHEN_LONG if rollout.row.get(name) is not None]
        tail = f"; without {', '.join(left)}" if left else ""
        notes.append(f"Long rollout: numbers are rounded to 8 significant bits in this page{tail}.")
    if bad := [n for n in TOKEN_NUMBERS if any(v is not None and math.isinf(v) for v in rollout.column(n) or [])]:
        notes.append(f"There are infinite numbers in {', '.join(bad)}.")
    return notes


def _short(text: Any, size: int = 200) -> str | None:
    if text is None:
        return None
    text = tidy(str(text))
    return text if len(text) <= size else text[:size] + "…"


def _fallback(rollout: Rollout, title: str) -> str:
    """Plain coloured spans, for a notebook viewer that runs no scripts."""
    credit, in_loss = rollout.column("advantages"), trained(rollout)
    limit = symmetric_limit(credit or [], in_loss)
    error = error_of(rollout)
    parts, shown = [], 0
    marks = segment_credit(rollout)
    for m, (start, end) in enumerate(rollout.segments):
        if start >= FALLBACK_TOKENS:
            break
        told = "" if marks[m] is None else f" {signed(marks[m])}"
        parts.append(f'<sup style="border-left:2px solid;padding-left:2px;font-size:.7em">{m + 1}{told}</sup>')
        for t in range(start, min(end, FALLBACK_TOKENS)):
            size = level(credit[t], limit) if credit and in_loss[t] and credit[t] is not None else 0
            style = f"background:{rgba(size)};border-{'top' if size > 0 else 'bottom'}:{1 + abs(size) // 4}px solid"
            style = style if size else ("" if in_loss[t] else "opacity:.6;border-bottom:1px dotted")
            if error and error["start"] <= t < error["end"]:
                style += ";text-decoration:underline wavy #b00d4c"
            piece = rollout.pieces[t]
            piece = piece if len(piece) <= 400 else f"{piece[:400]}… ({len(piece):,} characters)"
            parts.append(f'<span style="{style}">{escape(piece)}</span>')
            shown += 1
    left = len(rollout.pieces) - shown
    more = f"<p>… {left:,} more tokens: open the page that <code>.save(path)</code> writes.</p>" if left else ""
    scale = f"Blue, bar above: up to +{limit:.3g}. Orange, bar below: down to −{limit:.3g}." if limit else ""
    return (
        f"<div><h3>{escape(title)}</h3><p>{escape(where(rollout))} · {escape(method_label(rollout.row.get('method')))}"
        f"</p><p>{escape(' '.join(verdict(rollout)))}</p>"
        f'<div dir="ltr" style="white-space:pre-wrap;overflow-wrap:anywhere;font-family:monospace;line-height:2.1">'
        f"{''.join(parts)}</div>{more}<p><small>{escape(scale)}</small></p></div>"
    )
