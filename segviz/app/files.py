"""Which files of a directory are new, changed or gone, asked often and cheaply."""

from __future__ import annotations

from segviz.runs.folder import Folder


class Watch(Folder):
    """The step files of one directory, and what became of them since the last look."""

    def changes(self) -> tuple[list[str], list[str]]:
        """(names that are new or changed, names that are gone or changed). A directory that cannot be read is empty."""
        old = self.files
        try:
            self.look()
        except OSError:
            self.forget()
        fresh = [name for name, stamp in self.files.items() if old.get(name) != stamp]
        return fresh, [name for name, stamp in old.items() if self.files.get(name) != stamp]
