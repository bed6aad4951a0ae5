"""Around the training loop: where a step's time goes, and whether someone asked for the end.

SIGTERM is what a scheduler sends before it takes the machine (Slurm waits KillWait, 30 s, or what `--signal=TERM@300`
says; Kubernetes waits terminationGracePeriodSeconds, 30 s); SIGHUP comes when the terminal goes.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import torch


class Clock:
    """Seconds spent between laps."""

    def __init__(self) -> None:
        self.begin = self.last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.laps[name], self.last = now - self.last, now

    @property
    def total(self) -> float:
        return time.perf_counter() - self.begin


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupt:
    """Within the block, the first Ctrl-C, SIGTERM or SIGHUP sets `asked` to its number; a second one ends at once.

    Does nothing outside the main thread, which alone receives signals, and nothing about a signal that whoever started
    the process has it ignore (nohup).
    """

    def __init__(self) -> None:
        self.asked = 0

    def __enter__(self) -> Interrupt:
        self.before, self.terminals = {}, [fd for fd in (1, 2) if _is_terminal(fd)]
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                if signal.getsignal(signum) is not signal.SIG_IGN:
                    self.before[signum] = signal.signal(signum, self._heard)
        return self

    def __exit__(self, *error: object) -> None:
        for signum, handler in self.before.items():
            signal.signal(signum, handler)

    def _heard(self, signum: int, frame: Any) -> None:
        if signum == signal.SIGHUP:  # what is written to a terminal that is gone is an error, which would end the step
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for fd in self.terminals:
                os.dup2(nowhere, fd)
        if self.asked and signum == signal.SIGINT:
            raise KeyboardInterrupt
        if self.asked:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        self.asked = signum


def _is_terminal(fd: int) -> bool:
    try:
        return os.isatty(fd)
    except OSError:
        return False
