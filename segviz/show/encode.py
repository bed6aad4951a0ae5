"""What goes into a page: escaped text, JSON that may stand in a script, columns as bytes, files whole or not at all."""

from __future__ import annotations

import base64
import html
import json
import math
import os
import re
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np


def write_whole(path: Path, data: bytes) -> Path:
    """Write a file whole or not at all.

    Raises:
        OSError: the place cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def escape(text: Any) -> str:
    """Text for HTML. A lone surrogate cannot be written to a file and becomes U+FFFD."""
    return html.escape(tidy(str(text)))


def tidy(text: str) -> str:
    """The text with U+FFFD for each lone surrogate."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def script_json(data: Any) -> str:
    """JSON that may stand inside a script element: no `<`, `>` or `&`, nothing that is not a number."""
    text = plain_json(data)
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def plain_json(data: Any) -> str:
    """Compact JSON without what JSON has no word for: null for NaN and infinities, U+FFFD for lone surrogates."""
    how = {"ensure_ascii": False, "separators": (",", ":"), "allow_nan": False}
    try:
        return tidy(json.dumps(data, **how))
    except (ValueError, TypeError):  # a number that JSON has no word for, or a mapping of another kind: rare
        return tidy(json.dumps(_finite(data), **how))


def pack(columns: Mapping[str, np.ndarray], text: str = "") -> dict[str, Any]:
    """Columns and a text as compact as a page can carry them: deflated bytes in base64.

    The bytes of one column are grouped by significance (all high bytes, then all low bytes), which deflate likes.

    Args:
        columns: name -> one-dimensional array of uint8, uint16, uint32, float16 or float32.
        text: stored before the columns, in UTF-8.
    """
    letters = {"uint8": "u1", "uint16": "u2", "uint32": "u4", "float16": "f2", "float32": "f4"}
    parts, shapes = [tidy(text).encode()], []
    for name, column in columns.items():
        shapes.append([name, letters[column.dtype.name], len(column)])
        raw = np.ascontiguousarray(column.astype(column.dtype.newbyteorder("<"))).view(np.uint8)
        parts.append(raw.reshape(len(column), column.itemsize).T.tobytes())
    packed = zlib.compress(b"".join(parts), 9)
    return {"text": len(parts[0]), "columns": shapes, "data": base64.b64encode(packed).decode()}


def floats(values: Iterable[float | None], long: bool) -> np.ndarray:
    """A column of numbers for `pack`, NaN where there is none.

    A long column keeps 8 significant bits (a relative error below 0.5 %): beside thousands of tokens nobody reads
    more, and it halves the page.
    """
    column = np.array([math.nan if value is None else value for value in values], dtype=np.float32)
    if not long:
        return column
    with np.errstate(over="ignore"):
        bits = column.astype(np.float16).view(np.uint16)
    special = (bits & 0x7C00) == 0x7C00  # infinite or NaN: rounding could turn one into the other
    return np.where(special, bits, (bits + np.uint16(4)) & np.uint16(0xFFF8)).astype(np.uint16).view(np.float16)


def _finite(data: Any) -> Any:
    """The same data with None for every number that JSON has no word for."""
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {str(key): _finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(value) for value in data]
    return data
