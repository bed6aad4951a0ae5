"""Each figure of speed against what people would use instead: `make bench`, or `python benchmarks/bench_speed.py`.

A line of the table is two ways to do the same work, done in turn, so that whatever else the machine does hits both
alike. The ratio is the median over pairs, with the interval in which 95 % of resampled medians lie. Processor seconds
are the steady figure on a shared machine, wall time stands beside. `--small` does everything once, in a minute, to see
that it still runs; `--lines` picks some; `--write` puts the table between the markers of RESULTS.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")

RESULTS = Path(__file__).with_name("RESULTS.md")
BEGIN, END = "<!-- speed -->", "<!-- /speed -->"


@dataclass
class Line:
    """Two ways to do the same work. Each does it once a call; what is returned is only kept for lines of memory."""

    what: str
    peer: str
    goal: str
    ours: Callable[[], float | None]
    theirs: Callable[[], float | None]
    more: bool = (
        False  #: the ratio is ours / theirs, what ours takes more, and not theirs / ours, how much faster it is
    )
    repeats: int = 7
    unit: str = "s"  #: "MB": the calls return memory, and only that is compared


def measured(call: Callable[[], float | None], unit: str) -> tuple[float, float]:
    """(processor seconds, wall seconds) of a call, or what it returns, twice."""
    cpu, wall = processor_seconds(), time.perf_counter()
    value = call()
    if unit != "s":
        return float(value or 0), float(value or 0)
    return processor_seconds() - cpu, time.perf_counter() - wall


def processor_seconds() -> float:
    """Of this process and of its children that have ended."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def interval(ratios: list[float], draws: int = 2000) -> tuple[float, float]:
    """The bootstrap interval of the median, 95 %."""
    rng = random.Random(0)
    medians = sorted(median(rng.choices(ratios, k=len(ratios))) for _ in range(draws))
    return medians[int(0.025 * draws)], medians[int(0.975 * draws)]


def row(line: Line, small: bool, repeats: int | None) -> str:
    """Measure a line: a row of the table."""
    if not small and line.unit == "s":  # what is done once is done before
        line.ours(), line.theirs()
    pairs = []
    for i in range(1 if small else repeats or line.repeats):
        calls = [line.ours, line.theirs]
        found = [measured(call, line.unit) for call in (calls if i % 2 else calls[::-1])]
        pairs.append(found if i % 2 else found[::-1])

    def ratios(which: int) -> list[float]:
        quotients = [theirs[which] / ours[which] for ours, theirs in pairs]
        return [1 / q for q in quotients] if line.more else quotients

    cpu, wall = ratios(0), ratios(1)
    low, high = interval(cpu)
    ours, theirs = (median(pair[side][0] for pair in pairs) for side in (0, 1))
    wall_ratio = f"{median(wall):.2f}" if line.unit == "s" else "–"
    amounts = f"{ours:.3g} / {theirs:.3g} {line.unit}"
    ratio = f"{median(cpu):.2f} ({low:.2f} to {high:.2f})"
    return f"| {line.what} | {line.peer} | {amounts} | {ratio} | {wall_ratio} | {line.goal} |"


def hardware() -> str:
    import torch
    import transformers

    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        found = re.search(r"model name\s*: (.*)", info.read_text())
        cpu = found[1] if found else cpu
    threads = torch.get_num_threads()
    return f"{cpu}, {threads} thread, torch {torch.__version__}, transformers {transformers.__version__}"


def start_times(small: bool) -> Iterator[Line]:
    def call(*code: str) -> Callable[[], None]:
        def run() -> None:
            subprocess.run([sys.executable, *code], check=True, capture_output=True)

        return run

    bare = call("-c", "pass")
    yield Line("`import segviz`", "python itself", "< 0.5 s", call("-c", "import segviz"), bare, more=True)
    yield Line("`segpo --help`", "python itself", "< 0.5 s", call("-m", "segpo_core.cli", "--help"), bare, more=True)


def table(names: list[str], small: bool, repeats: int | None) -> str:
    """Every chosen line, measured."""
    import torch
    from speed import memory, sampling, steps

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    groups = {  # memory first, in a heap that nothing has used: behind the others its peaks come out twice as high
        "memory": memory.lines, "update": memory.updates, "steps": steps.lines, "trl": steps.against_trl,
        "sampling": sampling.lines, "start": lambda folder, small: start_times(small),
    }  # fmt: skip
    unknown = sorted(set(names) - set(groups))
    if unknown:
        raise SystemExit(f"no lines are called {unknown[0]!r}; there are: {', '.join(groups)}")
    out = [
        "| what | against | ours / theirs | ratio, processor (95 %) | ratio, wall | goal |",
        "|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for name in names or groups:
            for line in groups[name](Path(folder), small):  # its models are let go before the next group's
                out.append(row(line, small, repeats))
                print(out[-1], file=sys.stderr, flush=True)
    return "\n".join(out)


def write(text: str) -> None:
    """Put the table between the markers."""
    page = RESULTS.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    RESULTS.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def main(args: argparse.Namespace) -> None:
    text = table(args.lines, args.small, args.repeats)
    page = f"{hardware()}; load {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores when it ended.\n\n{text}"
    print(page)
    if args.write:
        write(page)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", nargs="*", default=[], help="memory update steps trl sampling start")
    parser.add_argument("--repeats", type=int, help="pairs a line; default: what each line needs")
    parser.add_argument("--small", action="store_true", help="everything once and small; the times mean nothing")
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    main(parser.parse_args())
