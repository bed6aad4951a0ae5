"""The reader's notes and labels on rollouts, in one file of theirs: never in a run's directory.

    $SEGPO_NOTES, or $XDG_DATA_HOME/segpo/notes.jsonl, or ~/.local/share/segpo/notes.jsonl

A line a change, the last one of a rollout holds. A run is known by its folder's name and the time it was started, so
notes follow a run that is moved, and a new run in an old place begins without any.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segviz.show.encode import tidy

LONGEST = 4000  #: characters of a note
LABELS, LABEL = 12, 40  #: labels of a rollout, characters of one

Key = tuple[int, int, int]  #: step, group, sample


class Changed(Exception):
    """Somebody changed the note since it was read; the message says to what."""


@dataclass(frozen=True)
class Note:
    """What a reader says of one rollout. `at` tells one version from another; "" of none."""

    text: str = ""
    labels: tuple[str, ...] = ()
    at: str = ""

    def told(self) -> dict[str, Any]:
        return {"note": self.text, "labels": list(self.labels), "at": self.at}


NONE = Note()


def place() -> Path:
    """Where the notes are kept."""
    said = os.environ.get("SEGPO_NOTES")
    if said:
        return Path(said).expanduser()
    return Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser() / "segpo" / "notes.jsonl"


class Notes:
    """The file, read again whenever it changed; safe to use from several threads, windows and apps."""

    def __init__(self, path: Path | None = None):
        self.path = path or place()
        self._lock = threading.Lock()
        self._stamp: tuple[int, int] | None = None
        self._known: dict[str, dict[Key, Note]] = {}

    @property
    def version(self) -> tuple[int, int] | None:
        """Changes with every change of the file."""
        self._read()
        return self._stamp

    def of(self, run: str) -> Mapping[Key, Note]:
        """Notes of a run, by `Shelf.identity`; those that were emptied are not there."""
        self._read()
        return self._known.get(run, {})

    def write(self, run: str, key: Key, text: str, labels: Sequence[str], seen: str) -> Note:
        """Keep a note. `seen`: `at` of the version that the writer had before them.

        Raises:
            Changed: that is not the version that is kept.
            ValueError: it is too long; OSError: the file cannot be written.
        """
        text, cut = tidy(text.strip()), tuple(dict.fromkeys(" ".join(tidy(one).split()) for one in labels))
        cut = tuple(one for one in cut if one)
        if len(text) > LONGEST:
            raise ValueError(f"The note has {len(text):,} characters; at most {LONGEST:,} are kept.")
        if len(cut) > LABELS or any(len(one) > LABEL or "," in one for one in cut):
            raise ValueError(f"At most {LABELS} labels of {LABEL} characters each, without commas.")
        with self._alone():
            self._read()
            old = self._known.get(run, {}).get(key, NONE)
            if old.at != seen:
                words = ", ".join(old.labels) or "no labels"
                raise Changed(f"It was changed in another window meanwhile, to: {words}; {old.text or 'no note'}")
            note = Note(text, cut, f"{time.time_ns():x}")
            line = {"run": run, **dict(zip(("step", "group", "sample"), key, strict=True)), **note.told()}
            with self.path.open("ab") as sink:
                sink.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
                sink.flush()
                os.fsync(sink.fileno())
            self._read()
        return note if text or cut else NONE

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else, in this process or another one, writes meanwhile."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock, self.path.with_name(f"{self.path.name}.lock").open("ab") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            yield

    def _read(self) -> None:
        try:
            facts = self.path.stat()
        except OSError:
            self._stamp, self._known = None, {}
            return
        stamp = (facts.st_mtime_ns, facts.st_size)
        if stamp == self._stamp:
            return
        known: dict[str, dict[Key, Note]] = {}
        for line in self.path.read_bytes().splitlines():
            try:
                row = json.loads(line)
                key = (int(row["step"]), int(row["group"]), int(row["sample"]))
                note = Note(str(row["note"]), tuple(map(str, row["labels"])), str(row["at"]))
                run = str(row["run"])
            except (ValueError, KeyError, TypeError):  # torn, or written by hand: the others are as they are
                continue
            known.setdefault(run, {})[key] = note
        for notes in known.values():
            for key in [key for key, note in notes.items() if not (note.text or note.labels)]:
                del notes[key]
        self._stamp, self._known = stamp, known
