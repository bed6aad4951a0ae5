"""What a person sees while a run goes on: a live line of numbers on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

#: Metric, label and format of the numbers shown.
SHOWN = (
    ("reward", "reward", "{:.2f}"),
    ("train/answer", "answer", "{:.0%}"),
    ("train/perception", "perception", "{:.0%}"),
    ("kl", "KL", "{:.4f}"),
    ("step_kl", "step KL", "{:.4f}"),
    ("entropy", "entropy", "{:.3f}"),
    ("time/tokens_per_second", "tokens/s", "{:,.0f}"),
)
HELD_OUT = (("eval/answer", "answer"), ("eval/perception", "perception"), ("eval/grounded", "grounded"))


class Display:
    """Pass `update` to the trainer as `on_step`; use as a context manager."""

    def __init__(self, total: int, title: str, console: Console | None = None, every: float = 5.0):
        self.console = console or Console(file=sys.stderr)
        self.total, self.title, self.every, self.last = total, title, every, 0.0
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task(title, total=total, numbers="")

    def __enter__(self) -> Display:
        self.bar.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.stop()

    def update(self, step: int, metrics: dict[str, float], *_: Any) -> None:
        """Show a step's metrics; evaluations stay on the screen."""
        numbers = "  ".join(f"{label} {form.format(metrics[name])}" for name, label, form in SHOWN if name in metrics)
        self.bar.update(self.task, completed=step, numbers=numbers)
        held_out = "  ".join(f"{label} {metrics[name]:.0%}" for name, label in HELD_OUT if name in metrics)
        if held_out:
            self.console.print(f"step {step:>4}  held-out problems right: {held_out}", highlight=False, soft_wrap=True)
        elif not self.console.is_terminal and time.monotonic() - self.last > self.every:
            self.console.print(f"step {step:>4}/{self.total}  {numbers}", highlight=False, soft_wrap=True)
            self.last = time.monotonic()
