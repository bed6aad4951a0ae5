"""What stands above a rollout in every view: where it is from, how it ended, its prompt and its pictures."""

from __future__ import annotations

import base64
import io
import re
from typing import Any

from PIL import Image

from segpo_core.tasks.answers import last_expression, stated_answer
from segviz.parts.credit import (
    Blame,
    blamed,
    error_of,
    given,
    has_truth,
    reason_of,
    segment_at,
    segment_credit,
    signed,
)
from segviz.runs.rollout import Rollout
from segviz.show.encode import tidy

_BLOCK = re.compile(r"</?\w+>")
LARGEST_IMAGE = 600_000  #: bytes above which an image is shown smaller than it is


def where(rollout: Rollout) -> str:
    """Which rollout this is, for a heading."""
    row = rollout.row
    parts = [f"{name} {row[name]}" for name in ("step", "group", "sample") if row.get(name) is not None]
    return " · ".join([*parts, *[str(name) for name in (row.get("example_id"),) if name]])


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
    elif len(credit) == 1 and not worst.by_token:
        first = f"The whole completion got one advantage, {signed(known[0])}: this method names no segment."
    elif not worst.by_token and len(known) == len(credit) and max(known) - min(known) < 1e-6:
        first = f"Every segment got the same advantage, {signed(known[0])}: this method names none."
    elif worst.start is None:
        best = max((value, m) for m, value in enumerate(credit) if value is not None)
        first = f"No segment was blamed. Segment {best[1] + 1} earned most: {signed(best[0])}."
    else:
        first = f"{place_of(rollout, worst)} was blamed most: {signed(worst.credit)}."
        if worst.tied > 1:
            first = f"{first[:-1]}, as were {worst.tied - 1} more."
    if error is None:
        return [first, "No true error is known in it."] if has_truth(rollout) else [first]
    at, reason = segment_at(rollout, error["start"]), reason_of(error)
    if len(credit) == 1 and not worst.by_token:
        return [first, f"The first true error is at token {error['start'] + 1}{reason}."]
    if worst.start is None:
        return [first, f"The first true error is in segment {at + 1}{reason}."]
    if worst.hit == 1:
        return [first, f"The first true error is there too{reason}."]
    if worst.hit:
        return [first, f"The first true error is in one of them{reason}."]
    if worst.by_token:
        away = error["start"] - worst.start
        far = f"{abs(away)} token{'s' if abs(away) > 1 else ''} {'later' if away > 0 else 'earlier'}"
        return [first, f"The first true error is at token {error['start'] + 1}, {far}{reason}."]
    away = abs(at - segment_at(rollout, worst.start))
    far = f"{away} segment{'s' if away > 1 else ''} {'earlier' if error['start'] < worst.start else 'later'}"
    return [first, f"The first true error is in segment {at + 1}, {far}{reason}."]


def place_of(rollout: Rollout, worst: Blame) -> str:
    """The most blamed place in words."""
    if not worst.by_token:
        return f"Segment {segment_at(rollout, worst.start) + 1}"
    text = tidy(rollout.pieces[worst.start]).strip()[:30]
    return f"Token {worst.start + 1}{f', “{text}”,' if text else ''}"


def facts(rollout: Rollout) -> dict[str, Any]:
    """Reward, answer and what is known to be right, for the badges."""
    row = rollout.row
    parts = rollout.json("reward_parts")
    said = said_of(rollout)
    right = {name: row.get(f"{name}_right") for name in ("answer", "perception", "reasoning")}
    return {
        "reward": row.get("reward"),
        "parts": parts if isinstance(parts, dict) else {},
        "reference": _short(row.get("answer")),
        "said": _short(said.strip()) if said else None,
        "finished": row.get("finished"),
        "right": right,
    }


def said_of(rollout: Rollout) -> str | None:
    """What the text gives as its answer: what the task found (`said` in the truth), else what it states, else, in a
    text without blocks that has a reference to be held against, its last number or expression."""
    truth = rollout.json("truth")
    if isinstance(truth, dict) and "said" in truth:
        return truth["said"]
    stated = stated_answer(rollout.text)
    if stated is not None or rollout.row.get("answer") is None or _BLOCK.search(rollout.text):
        return stated
    return last_expression(rollout.text)


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


def _short(text: Any, size: int = 200) -> str | None:
    if text is None:
        return None
    text = tidy(str(text))
    return text if len(text) <= size else text[:size] + "…"


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
