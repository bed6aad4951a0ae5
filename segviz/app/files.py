"""Which files of a directory are new, changed or gone, asked often and cheaply."""

from __future__ import annotations

import os
import time
from pathlib import Path
from stat import S_ISREG

from segpo_core.record.files import shown

SETTLED = 2.0  #: seconds after which a directory's time stamp can be trusted to tell of the next change

Stamp = tuple[int, int, int]  #: time of change in ns, size, inode


class Watch:
    """The step files of one directory. Files come by rename, so the directory's own time tells of every change."""

    def __init__(self, folder: Path, root: Path):
        self.folder, self.root = folder, root
        self.files: dict[str, Stamp] = {}  #: in order of their steps; what was put together into another is left out
        self.links: list[str] = []  #: names of links that lead out of `root`; they are not read
        self._stamp: tuple[int, int] | None = None

    def look(self) -> tuple[list[str], list[str]]:
        """(names that are new or changed, names that are gone or changed) since the last look."""
        try:
            if not self.folder.resolve().is_relative_to(self.root):  # a link; its name in the folder is ""
                old, self.files, self.links = self.files, {}, [""]
                return [], list(old)
            stat = self.folder.stat()
            stamp = (stat.st_mtime_ns, stat.st_ino)
            if stamp == self._stamp:
                return [], []
            found, links = {}, []
            with os.scandir(self.folder) as entries:
                for entry in entries:
                    if not entry.name.startswith("step-") or not entry.name.endswith(".parquet"):
                        continue
                    if entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(self.root):
                        links.append(entry.name)
                        continue
                    try:
                        info = entry.stat()
                    except FileNotFoundError:
                        continue
                    if not S_ISREG(info.st_mode):  # reading a pipe would wait for ever, and with it every run
                        continue
                    found[entry.name] = (info.st_mtime_ns, info.st_size, info.st_ino)
        except OSError:
            stamp, stat, found, links = None, None, {}, []
        found = {name: found[name] for name in shown(found)}
        old, self.files, self.links = self.files, found, links
        # a file that comes within the clock's tick after this look would leave the same stamp
        settled = stat is not None and time.time() - stat.st_mtime > SETTLED
        self._stamp = stamp if settled else None
        fresh = [name for name, stamp in found.items() if old.get(name) != stamp]
        return fresh, [name for name, stamp in old.items() if found.get(name) != stamp]
