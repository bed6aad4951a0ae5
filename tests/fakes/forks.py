"""Commands in real processes that start at once: forked from one that has imported everything, in a moment and not in
three to ten processor seconds each.

From its imports on, such a process does what `python -m segpo_core.cli` does: signals, exit codes, kills and files are
its own. The command line itself, imports and interpreter with it, has tests that start it with `fork=False`.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

forked = multiprocessing.get_context("forkserver")
forked.set_forkserver_preload(
    ["segpo_core.cli", "segpo_core.training.loop", "segpo_core.training.progress", "segviz.app.main"]
)


def command(argv: list[str], cwd: str, variables: dict[str, str], said: str) -> None:
    """What a forked process does."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(variables)
    tempfile.tempdir = None  # the server's may be another
    sink = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(sink, descriptor)
    os.close(sink)
    import torch

    from segpo_core.cli import main

    torch.set_num_threads(1)
    sys.argv[:] = ["segpo", *argv]
    sys.exit(main())


def start(argv: list[str], said: Path, cwd: Path = ROOT, variables: Mapping[str, str] | None = None) -> BaseProcess:
    """`segpo ARGV` in a forked process. What it says goes into a file, behind what is there."""
    told = dict(os.environ if variables is None else variables)
    process = forked.Process(target=command, args=(argv, str(cwd), told, str(said)), daemon=True)
    process.start()
    return process


def ranks(argv: list[str], number: int, said: Path, **variables: str) -> list[BaseProcess]:
    """Several that train one run, as a launcher starts them: joined by gloo, on the CPU."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    shared = os.environ | {
        "WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
    } | variables  # fmt: skip
    return [start(argv, said, variables=shared | {"RANK": str(r), "LOCAL_RANK": str(r)}) for r in range(number)]


class Segpo:
    """`segpo ARGV`, with the members of `subprocess.Popen` that tests use."""

    def __init__(self, *argv: object, cwd: Path = ROOT, fork: bool = True, **variables: str) -> None:
        self._said = tempfile.NamedTemporaryFile(mode="r", encoding="utf-8", errors="replace")
        words, told = list(map(str, argv)), os.environ | variables
        if fork:
            self._process = start(words, Path(self._said.name), cwd, told)
        else:
            line = [sys.executable, "-m", "segpo_core.cli", *words]
            with open(self._said.name, "ab") as sink:
                self._process = subprocess.Popen(line, cwd=cwd, env=told, stdout=sink, stderr=subprocess.STDOUT)
        self.pid: int = self._process.pid

    @property
    def said(self) -> str:
        """What it has written by now, to stdout and stderr."""
        return Path(self._said.name).read_text(encoding="utf-8", errors="replace")

    def poll(self) -> int | None:
        """Its exit code, as `subprocess` has it; None while it is at work."""
        return self._process.poll() if isinstance(self._process, subprocess.Popen) else self._process.exitcode

    returncode = property(poll)

    def wait(self, timeout: float) -> int:
        """
        Raises:
            TimeoutError: it has not ended in that many seconds.
        """
        until = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > until:
                raise TimeoutError(f"segpo has not ended in {timeout} s: {self.said}")
            time.sleep(0.005)
        return code

    def communicate(self, timeout: float) -> tuple[str, None]:
        self.wait(timeout)
        return self.said, None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
