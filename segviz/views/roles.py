"""The roles: what a completion owes to seeing and what to thinking, beside the image that it was asked about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from segpo_core.record.store import png_bytes
from segviz.parts.credit import error_of, has_truth, reason_of, signed, trained
from segviz.parts.heading import pictures
from segviz.parts.stills import TOKENS, as_text, asked, image, place_of, text_of
from segviz.parts.stills import head as still_head
from segviz.parts.tokens import LONG
from segviz.runs.rollout import Rollout
from segviz.show.encode import escape, floats, pack
from segviz.show.still import Piece, flow
from segviz.show.still import picture as drawn_as
from segviz.show.theme import level, method_label, symmetric_limit
from segviz.show.view import View
from segviz.views.ribbon import ribbon_data

QUESTION = "A seeing error or a thinking error?"
OF_RIGHT = "Which tokens come from looking?"  #: there is no error in a right one

ROLES = ("other", "perception", "reasoning", "answer")
PERCEPTION, REASONING = 1, 2
#: Which contrast speaks about the tokens of a role.
CONTRASTS = {PERCEPTION: "perception_contrast", REASONING: "reasoning_contrast"}

GRID = 64  #: more patches than this along an edge cannot be told apart


def roles(
    rollout: Rollout | Mapping[str, Any],
    corrupted: bytes | Image.Image | None = None,
    patches: np.ndarray | None = None,
    title: str | None = None,
) -> View:
    """The completion by role, with SRPO's weights and contrasts, beside the image and what was done to it.

    d_t, the contrast of a perception token, is its log-probability with the image minus that with the corrupted one;
    c_t, of a reasoning token, that with the perception block minus that without (SRPO, arXiv 2605.07274).

    Args:
        rollout: from `Run.rollout`, or a mapping with the columns of `ROLLOUT_SCHEMA`.
        corrupted: the corrupted image that d_t was measured against, a PIL image or the bytes of an image file.
        patches: by how many nats masking each patch of the (first) image lowers the log-probability of the tokens:
            float [rows, cols] for the tokens that were selected, or [T, rows, cols] for each. NaN: not measured.

    Raises:
        TypeError: `corrupted` is neither.
        ValueError: the shape of `patches` does not fit.
    """
    rollout = rollout if isinstance(rollout, Rollout) else Rollout(rollout)
    data = roles_data(rollout, corrupted, patches, title)
    return View("roles", data["title"], data, _fallback(rollout, data))


def roles_data(
    rollout: Rollout,
    corrupted: bytes | Image.Image | None = None,
    patches: np.ndarray | None = None,
    title: str | None = None,
) -> dict[str, Any]:
    """What the script needs to draw the roles. Arguments and errors as `roles`."""
    nothing_wrong = rollout.row.get("answer_right") and error_of(rollout) is None
    data = ribbon_data(rollout, title or (OF_RIGHT if nothing_wrong else QUESTION))
    shown = pictures(rollout)
    spoiled = None if corrupted is None else _spoiled(corrupted)
    patched = None if patches is None else _patches(np.asarray(patches, dtype=np.float64), rollout)
    summary = role_summary(rollout)
    # of a long rollout the ribbon leaves the contrasts out; here they are the point
    long = len(rollout.pieces) > LONG
    more = {
        name: floats(column, True)
        for name, source in (("pc", "perception_contrast"), ("rc", "reasoning_contrast"))
        if long and (column := rollout.column(source)) is not None
    }
    return data | {
        "kind": "roles",
        "pictures": shown,
        "corrupted": spoiled,
        "patches": patched,
        "roles": summary,
        "verdict": verdict(rollout, summary),
        "notices": [*data["notices"], *_notices(rollout, shown, spoiled, patched)],
        "more": pack(more) if more else None,
    }


def contrast(rollout: Rollout) -> list[float | None]:
    """The contrast of each token: d at perception tokens, c at reasoning tokens; None where it is not defined, which
    is everywhere else, or was not measured."""
    roles_, columns = rollout.column("role_ids"), {r: rollout.column(name) for r, name in CONTRASTS.items()}
    if roles_ is None:
        return [None] * len(rollout.pieces)
    return [column[t] if (column := columns.get(role)) else None for t, role in enumerate(roles_)]


def role_summary(rollout: Rollout) -> list[dict[str, Any]]:
    """Of each role that is there: number and share of tokens, mean weight, mean contrast in nats, and its share of the
    completion's absolute advantage. None: not recorded, not defined, or no advantage at all."""
    ids = rollout.column("role_ids")
    if ids is None:
        return []
    weights, credit, in_loss, nats = (
        rollout.column("weights"),
        rollout.column("advantages"),
        trained(rollout),
        contrast(rollout),
    )
    sizes = [abs(a) if credit and in_loss[t] and (a := credit[t]) is not None else 0.0 for t in range(len(ids))]
    rows = []
    for role, name in enumerate(ROLES):
        here = [t for t, r in enumerate(ids) if r == role]
        if here:
            rows.append(
                {
                    "role": name,
                    "tokens": len(here),
                    "share": len(here) / len(ids),
                    "weight": _mean([weights[t] for t in here] if weights else []),
                    "contrast": _mean([nats[t] for t in here]),
                    "credit": sum(sizes[t] for t in here) / total if (total := sum(sizes)) else None,
                }
            )
    return rows


def verdict(rollout: Rollout, summary: list[dict[str, Any]]) -> list[str]:
    """What the truth says, where the contrasts point, and how much of the credit the error itself got."""
    if not rollout.pieces:
        return ["The completion is empty."]
    error = error_of(rollout)
    if error:
        name = {"perception": "A seeing error", "reasoning": "A thinking error"}.get(error["kind"], "An error")
        lines = [f"{name}: the first true error is at token {error['start'] + 1}{reason_of(error)}."]
    elif has_truth(rollout):
        lines = ["No true error is known in it."]
    else:
        lines = ["What is wrong in it, if anything, is not recorded."]
    by_role = {row["role"]: row for row in summary}
    see, think = by_role.get("perception"), by_role.get("reasoning")
    weights = rollout.column("weights")
    if not summary:
        return [*lines, "No roles are recorded, so seeing and thinking cannot be told apart."]
    if not see and not think:
        uniform = "weights are uniform" if weights else "role weights would be uniform"
        return [*lines, f"The completion is malformed: without perception and reasoning blocks in order, {uniform}."]
    if all(row["contrast"] is None for row in summary):
        name = method_label(rollout.row.get("method"))
        return [
            *lines,
            f"No contrasts are recorded ({name}), so nothing says what it owes to seeing. SRPO measures them.",
        ]
    if not (see and think):
        return [
            *lines,
            f"Only {'perception' if see else 'reasoning'} tokens are there, so there is nothing to compare.",
        ]
    kind, (a, b) = ("weight", (see["weight"], think["weight"]))
    if a is None or b is None:
        kind, (a, b) = "contrast", (see["contrast"], think["contrast"])
    if a is None or b is None:
        return [*lines, f"Only the contrast of {'reasoning' if a is None else 'perception'} was measured."]
    toward = None if abs(a - b) < 0.01 * max(abs(a), abs(b)) else ("perception" if a > b else "reasoning")
    numbers = f"mean {kind} {a:.2f} for perception, {b:.2f} for reasoning"
    # what a block depends on is not what is wrong in it, so this is not held against the truth
    told = f"On average {toward} tokens depend more on" if toward else "Both blocks depend equally on"
    lines.append(f"{told} what they should rest on ({numbers}).")
    if error and weights and (own := _mean(weights[error["start"] : error["end"]])) is not None:
        lines.append(f"The error itself has weight {own:.2f}, where 1 is the average.")
    return lines


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None and np.isfinite(value)]
    return sum(known) / len(known) if known else None


def _spoiled(image: bytes | Image.Image) -> dict[str, Any]:
    if isinstance(image, Image.Image):
        image = png_bytes(image)
    if not isinstance(image, bytes):
        raise TypeError(f"corrupted is {type(image).__name__}: give a PIL image or the bytes of an image file")
    return pictures(Rollout({"images": ["corrupted"]}, {"corrupted": image}))["corrupted"]


def _patches(array: np.ndarray, rollout: Rollout) -> dict[str, Any]:
    """Maps for the page: `mean`, and with one map a token also `all`, in order of tokens, rows, columns."""
    total = len(rollout.pieces)
    if array.ndim not in (2, 3) or 0 in array.shape or (array.ndim == 3 and array.shape[0] != total):
        shape = " x ".join(map(str, array.shape))
        raise ValueError(f"patches is {shape}: give [rows, cols], or [T, rows, cols] with T = {total}, one a token")
    rows, cols = array.shape[-2:]
    if max(rows, cols) > GRID:
        raise ValueError(f"patches has {rows} x {cols} cells: at most {GRID} x {GRID} can be told apart in the image")
    array = np.where(np.isfinite(array), array, np.nan)
    about, columns, mean = "the selected tokens", {}, array
    if array.ndim == 3:
        seen = [t for t, role in enumerate(rollout.column("role_ids") or []) if role == PERCEPTION]
        about = f"the {len(seen)} perception tokens, mean" if seen else f"all {total} tokens, mean"
        chosen = array[seen] if seen else array
        known = ~np.isnan(chosen)
        count = known.sum(axis=0)
        mean = np.where(count > 0, np.where(known, chosen, 0).sum(axis=0) / np.maximum(count, 1), np.nan)
        columns["all"] = array.astype(np.float32 if array.size < 400_000 else np.float16).ravel()
    columns["mean"] = mean.astype(np.float32).ravel()
    told = None
    if not np.isnan(mean).all():
        top = int(np.nanargmax(mean))
        most = signed(float(mean.flat[top]))
        told = f"Masking row {top // cols + 1}, column {top % cols + 1} costs {about} most: {most} nats."
    return {"rows": rows, "cols": cols, "tokens": total if array.ndim == 3 else 0, "about": about, "told": told,
            "pack": pack(columns)}  # fmt: skip


def _notices(
    rollout: Rollout, shown: Mapping[str, Mapping[str, Any]], spoiled: Mapping[str, Any] | None, patched: Any
) -> list[str]:
    notes = []
    if not shown:
        notes.append(
            "The prompt has no image: nothing was seen, and perception tokens could not be checked against it."
        )
    for sha, picture in shown.items():
        if picture["src"] is None:
            trouble = "is missing" if picture["note"] == "missing" else "cannot be read"
            notes.append(f"An image of the prompt {trouble}: {sha[:12]}….")
    if spoiled and spoiled["src"] is None:
        notes.append("The corrupted image cannot be read.")
    if spoiled is None and shown and any(x is not None for x in rollout.column("perception_contrast") or []):
        notes.append(
            "The contrast of perception tokens was measured against a corrupted image, which a run does not store. "
            "To see it here, pass it: sv.roles(rollout, corrupted=image); run.json names its kind under corruption."
        )
    ids, seen = rollout.column("role_ids") or [], rollout.column("perception_contrast")
    if seen and (blank := sum(r == PERCEPTION and seen[t] is None for t, r in enumerate(ids))):
        notes.append(f"At {blank} perception tokens the contrast was not measured, which is not zero.")
    if len(shown) > 1:
        notes.append(f"The prompt has {len(shown)} images; patches and the corrupted image are about the first.")
    if patched and not shown:
        notes.append("Patches are shown without their image.")
    return notes


def _fallback(rollout: Rollout, data: Mapping[str, Any]) -> str:
    def number(value: float | None, share: bool = False) -> str:
        return "–" if value is None else f"{100 * value:.0f} %" if share else f"{value:.2f}"

    cells = (
        (row["role"], str(row["tokens"]), number(row["share"], True), number(row["weight"]), number(row["contrast"]),
         number(row["credit"], True))
        for row in data["roles"]
    )  # fmt: skip
    rows = "".join(f"<tr>{''.join(f'<td>{text}</td>' for text in row)}</tr>" for row in cells)
    head = "".join(
        f"<th>{name}</th>" for name in ("role", "tokens", "share", "mean weight", "mean contrast, nats", "share of |A|")
    )
    weights, error = rollout.column("weights"), error_of(rollout)
    limit = symmetric_limit([None if w is None else w - 1 for w in weights]) if weights else 0.0
    pieces, last = [], None
    for t, role in enumerate((rollout.column("role_ids") or [None] * len(rollout.pieces))[:TOKENS]):
        size = level(weights[t] - 1, limit) if weights and weights[t] is not None else 0
        tag = ROLES[role] if role in (1, 2, 3) and role != last else ""
        pieces.append(Piece(rollout.pieces[t], size, tag, bool(error) and error["start"] <= t < error["end"]))
        last = role
    body, height = flow(pieces, top=4)
    alt = f"{' '.join(data['verdict'])} The completion: {text_of(rollout)[:1500]}"
    drawn = f"<p>{drawn_as(body, height + 12, alt)}</p>" if pieces else ""
    reading = "Blue, bar above: a weight over 1. Orange, bar below: under 1." if limit else "No weights are recorded."
    shown = "".join(image(one["src"], name) for name, one in _beside(data) if one.get("src"))
    lines = [reading, *data["notices"]]
    lines += [data["patches"]["told"]] if data["patches"] and data["patches"]["told"] else []
    table = f"<table><tr>{head}</tr>{rows}</table>"
    return (
        f"<div>{still_head(data['title'], place_of(rollout), data['verdict'])}{asked(rollout)}"
        f"{f'<p>{shown}</p>' if shown else ''}{drawn}{table}"
        f"{''.join(f'<p><small>{escape(line)}</small></p>' for line in lines)}{as_text(rollout)}</div>"
    )


def _beside(data: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """What stands beside the prompt's image."""
    return [("The image as it was spoiled", data["corrupted"])] if data["corrupted"] else []
