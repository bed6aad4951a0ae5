"""Reading with a deadline. A network file system that does not answer holds whoever reads it, and no signal frees them.

So what may hang is read in a thread of its own. Who asked waits so long and no longer; as long as that thread hangs,
nobody else is sent after it, and everything that lies elsewhere is read as ever.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

PATIENCE = 8.0  #: seconds; a busy disk answers far sooner

T = TypeVar("T")


class Missing(LookupError):
    """Something that was asked for is not there (any more); the message says so in words."""


class Hangs(Missing):
    """What was asked for does not answer."""


class Patience:
    """Reads for several threads. `stuck`: places whose reading did not end in time, and has not since."""

    def __init__(self) -> None:
        self._stuck: dict[Path, threading.Thread] = {}

    def stuck(self, place: Path) -> bool:
        thread = self._stuck.get(place)
        if thread is not None and not thread.is_alive():
            self._stuck.pop(place, None)
        return thread is not None and thread.is_alive()

    def ask(self, place: Path, work: Callable[[], T], seconds: float = PATIENCE) -> T:
        """What `work` returns or raises, if it ends in time.

        Args:
            place: what is read; two of the same place hang together.

        Raises:
            Hangs: it does not, or something that reads the same place has not ended yet.
        """
        if self.stuck(place):
            raise Hangs(_words(place))
        results: list[T] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                results.append(work())
            except BaseException as error:
                errors.append(error)

        thread = _beside(run, seconds)
        if errors:
            raise errors[0]
        if not results:
            self._stuck[place] = thread
            raise Hangs(_words(place))
        return results[0]

    def each(self, places: Sequence[Path], work: Callable[[Path], T], seconds: float = PATIENCE) -> dict[Path, T]:
        """`work` of each place that answers. It must raise nothing."""
        found: dict[Path, T] = {}
        rest = [place for place in places if not self.stuck(place)]
        while rest:
            done: list[T] = []

            def run(rest: list[Path] = rest, done: list[T] = done) -> None:
                for place in rest:
                    done.append(work(place))

            thread = _beside(run, seconds)
            number = len(done)
            found |= dict(zip(rest, done[:number], strict=False))
            for place in rest[number : number + 1]:  # where it hangs
                self._stuck[place] = thread
            rest = rest[number + 1 :]
        return found


def _beside(work: Callable[[], None], seconds: float) -> threading.Thread:
    thread = threading.Thread(target=work, name="reads", daemon=True)
    thread.start()
    thread.join(seconds)
    return thread


def _words(place: Path) -> str:
    name = str(place).encode("utf-8", "replace").decode()
    return f"{name} does not answer: the file system that it lies on seems to hang. It is tried again when it does."
