"""Reading with a deadline. A network file system that does not answer holds whoever reads it, and no signal frees them.

So what may hang is read in a thread of its own. Who asked waits as long as that thread is at work, and a few seconds
more; as long as it hangs, nobody else is sent after it, and everything that lies elsewhere is read as ever. At work is
who uses the processor: a report of a long run takes longer than any disk, and is no sign of one that hangs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

PATIENCE = 8.0  #: seconds without any work; a busy disk answers far sooner
WORK = 0.02  #: share of the time on the processor from which a thread is at work
Where = Path | tuple[Path, ...]  #: what is read: a run, or several together

T = TypeVar("T")


class Missing(LookupError):
    """Something that was asked for is not there (any more); the message says so in words."""


class Hangs(Missing):
    """What was asked for does not answer."""


class Patience:
    """Reads for several threads. `stuck`: places whose reading did not end in time, and has not since."""

    def __init__(self) -> None:
        self._stuck: dict[Where, threading.Thread] = {}

    def stuck(self, place: Where) -> bool:
        thread = self._stuck.get(place)
        if thread is not None and not thread.is_alive():
            self._stuck.pop(place, None)
        return thread is not None and thread.is_alive()

    def ask(self, place: Where, work: Callable[[], T], seconds: float = PATIENCE) -> T:
        """What `work` returns or raises, if it does not hang. It must hold no lock that others need.

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
    """The thread that does it: when it has ended, or has not worked for so many seconds."""
    clocks: list[int] = []

    def run() -> None:
        if hasattr(time, "pthread_getcpuclockid"):  # not on macOS, where slow is taken for hanging
            clocks.append(time.pthread_getcpuclockid(threading.get_ident()))
        work()

    thread = threading.Thread(target=run, name="reads", daemon=True)
    thread.start()
    slice_, worked, last = seconds / 8, 0.0, time.monotonic()
    while time.monotonic() - last < seconds:
        thread.join(slice_)
        if not thread.is_alive():
            break
        if (now := _worked(clocks)) - worked >= WORK * slice_:
            worked, last = now, time.monotonic()
    return thread


def _worked(clocks: Sequence[int]) -> float:
    """Seconds of the processor that a thread has used."""
    try:
        return time.clock_gettime(clocks[0]) if clocks else 0.0
    except OSError:  # it has just ended
        return 0.0


def _words(place: Where) -> str:
    places = place if isinstance(place, tuple) else (place,)
    name = ", ".join(map(str, places)).encode("utf-8", "replace").decode()
    return f"{name} does not answer: the file system that it lies on seems to hang. It is tried again when it does."
