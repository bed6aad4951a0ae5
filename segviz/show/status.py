"""A line that says how things stand, for the places where a view would be."""

from __future__ import annotations

from collections.abc import Sequence

from segviz.show.encode import escape
from segviz.show.view import View


def status(state: str, mark: str, word: str, words: str, notes: Sequence[str] = ()) -> View:
    """A mark and a word for the state, a sentence, further notes below.

    Args:
        state: what the style sheet and a screen reader go by; a change of it is read aloud.
    """
    data = {"kind": "status", "state": state, "mark": mark, "word": word, "words": words, "notes": list(notes)}
    lines = "".join(f"<p>{escape(line)}</p>" for line in notes)
    return View("status", word or words, data, f"<p><b>{escape(word)}</b> {escape(words)}</p>{lines}")
