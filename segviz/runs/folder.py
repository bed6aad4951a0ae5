"""A folder of step files in a run directory: what is in it, looked at often and cheaply while a trainer writes."""

from __future__ import annotations

import os
import stat
import time
from bisect import bisect_left
from pathlib import Path
from typing import NamedTuple

from segpo_core.record.files import Span, shown

SETTLED = 2.0  #: seconds after which a folder's time stamp can be trusted to tell of the next change


class Stamp(NamedTuple):
    """What tells whether a file changed."""

    changed: int  #: ns
    size: int
    inode: int


class Folder:
    """Files come and go by rename, so the folder's own time tells of every change: only then is it listed again."""

    def __init__(self, path: Path, root: Path | None = None):
        self.path, self.root = path, root
        self.files: dict[str, Stamp] = {}  #: in order of their steps; what was put together into another is left out
        self.spans: dict[str, Span] = {}
        self.odd: list[str] = []  #: names of steps that are no plain files
        #: Names of links that lead out of `root`, where there is one; they are not read. The folder's own is "".
        self.links: list[str] = []
        self._stamp: tuple[int, int] | None = None
        self._single: dict[int, list[str]] = {}
        self._several: list[tuple[Span, str]] = []

    def look(self) -> bool:
        """Whether anything changed since the last look."""
        try:
            facts = os.stat(self.path)
            stamp = (facts.st_mtime_ns, facts.st_ino)
            if stamp == self._stamp:
                return False
            files, odd, links = self._list()
            # a file that comes within the clock's tick after this look would leave the same stamp
            self._stamp = stamp if time.time() - facts.st_mtime > SETTLED else None
        except (FileNotFoundError, NotADirectoryError):  # nothing recorded yet, or removed while looking
            files, odd, links, self._stamp = {}, [], [], None
        self.odd, self.links = odd, links
        if files == self.files:
            return False
        self.spans = shown(files)
        self.files = {name: files[name] for name in self.spans}
        self._single, self._several = {}, []
        for name, span in self.spans.items():
            if span.several:
                self._several.append((span, name))
            else:
                self._single.setdefault(span.first, []).append(name)
        return True

    def forget(self) -> None:
        """As if nothing had been there, until the next look."""
        self.files, self.spans, self.odd, self.links, self._stamp = {}, {}, [], [], None
        self._single, self._several = {}, []

    def at(self, *steps: int) -> list[str]:
        """Names of the files that may hold some steps."""
        wanted = sorted(set(steps))
        several = [name for span, name in self._several if _between(wanted, span.first, span.last)]
        return several + [name for step in wanted for name in self._single.get(step, ())]

    def _list(self) -> tuple[dict[str, Stamp], list[str], list[str]]:
        found, odd, links = {}, [], []
        if self.root and not self.path.resolve().is_relative_to(self.root):
            return {}, [], [""]
        with os.scandir(self.path) as entries:
            for entry in entries:
                if not entry.name.startswith("step-") or not entry.name.endswith(".parquet"):
                    continue
                if self.root and entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(self.root):
                    links.append(entry.name)
                    continue
                try:
                    facts = entry.stat()
                except OSError:  # removed since, or a link to nowhere
                    continue
                if stat.S_ISREG(facts.st_mode):  # a pipe would keep its reader waiting for ever
                    found[entry.name] = Stamp(facts.st_mtime_ns, facts.st_size, facts.st_ino)
                else:
                    odd.append(entry.name)
        return found, odd, links


def _between(steps: list[int], first: int, last: int) -> bool:
    """Whether one of some steps, which are in order, lies in a span."""
    place = bisect_left(steps, first)
    return place < len(steps) and steps[place] <= last
