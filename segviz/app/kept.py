"""The last few results of something that is asked for again and again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Any


class Kept:
    """Results by what was asked; the least recently asked for goes first."""

    def __init__(self, most: int):
        self._found: OrderedDict[Hashable, tuple[Any, Any]] = OrderedDict()
        self._most, self._lock = most, Lock()

    def get(self, key: Hashable, make: Callable[[], Any], state: Any = None) -> Any:
        """The result of `key`, made anew where there is none yet, or `state`, what it is made from, is another now:
        of each question the latest result is kept, however often a run that is being trained changes it."""
        with self._lock:
            if key in self._found and self._found[key][0] == state:
                self._found.move_to_end(key)
                return self._found[key][1]
        made = make()
        with self._lock:
            self._found[key] = state, made
            self._found.move_to_end(key)
            while len(self._found) > self._most:
                self._found.popitem(last=False)
        return made
