"""A second run beside the first: another method on the same problems, in a process of its own.

Both processes sample the same number of completions of the same prompts a step, from streams of the same names; only
the credit differs. Neither waits for the other.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from segpo_core.config import TrainConfig, from_dict
from segpo_core.record.blame import BLAMED, blame_rate
from segpo_core.record.store import read_metrics, read_rollouts, rollout_steps

#: What is said about a run: label and metric, of the held-out problems.
HELD_OUT = (("answer right", "eval/answer"), ("perception right", "eval/perception"), ("both right", "eval/grounded"))


def run_settings(config: TrainConfig) -> dict[str, Any]:
    """The settings of a run that no method owns."""
    return {f.name: getattr(config, f.name) for f in fields(config) if f.name not in ("method", "algo", "output_dir")}


class Companion:
    """A run of `method` with the run settings of `config`, recorded in `directory`.

    Args:
        methods: settings of single methods, as in a configuration file's `methods`.
        threads: processor threads of its process.
    """

    def __init__(self, config: TrainConfig, method: str, directory: Path, methods: dict[str, Any], threads: int):
        self.directory, self.folder = directory, tempfile.TemporaryDirectory()
        other = from_dict(run_settings(config) | {"methods": methods, "output_dir": str(directory)}, method=method)
        file, self.log = Path(self.folder.name) / "config.yaml", Path(self.folder.name) / "log"
        file.write_text(yaml.safe_dump(_plain(other.to_dict())), encoding="utf-8")
        command = [sys.executable, "-m", "segpo_core.cli", "train", "--config", str(file)]
        with self.log.open("w") as log:  # a session of its own: Ctrl-C is for the first run, which passes it on
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True,
                env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            )  # fmt: skip

    def end(self) -> None:
        """Ask it to end after the step at hand: its first, if it is still loading, when the signal would kill it."""
        while self.process.poll() is None and not rollout_steps(self.directory):
            time.sleep(0.1)
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)

    def wait(self) -> str | None:
        """Wait for its end. Returns what it said last if it failed, None if all is well."""
        failed = self.process.wait() != 0
        said = self.log.read_text(encoding="utf-8", errors="replace")[-2000:] if failed else None
        self.folder.cleanup()
        return said

    def stop(self) -> None:
        """End it now, whatever it does."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.folder.cleanup()


def outcome(directory: Path) -> dict[str, tuple[str, str]]:
    """What came of a recorded run: label -> (before, after), as texts; "" for what was not measured."""
    series: dict[str, list[tuple[int, float]]] = {}
    for row in read_metrics(directory).to_pylist():
        series.setdefault(row["name"], []).append((row["step"], row["value"]))
    told = {}
    for label, name in HELD_OUT:
        values = [f"{value:.2f}" for _, value in sorted(series.get(name, []))]
        told[label] = (values[0], values[-1]) if values else ("", "")
    computed = sum(value for _, value in series.get("tokens_computed", []))
    told["tokens computed for sampling and values"] = ("", f"{computed:,.0f}" if computed else "")
    seconds = sum(value for _, value in series.get("time/step", []))
    told["seconds of training"] = ("", f"{seconds:.0f}" if seconds else "")
    rate, chance, named, known = blame_rate(read_rollouts(directory, columns=list(BLAMED)).to_pylist())
    said = f"{rate:.2f} of {named:,} (chance {chance:.2f})" if named else "names no place" if known else ""
    told["most blamed place holds the first true error"] = ("", said)
    return told


def _plain(value: Any) -> Any:
    """Tuples as lists, for YAML."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
