"""How cost grows: processor seconds by completion length, group, tree, segments, rollouts, steps of a run, vocabulary.

    python benchmarks/bench_growth.py [--lines NAME ...] [--small] [--write]

Of each line the work is multiplied several times. A line's slope is that of its last piece on logarithmic axes: 1 grows
as the work does, 2 as its square, less than 1 is still above a fixed cost. `--small` does the two smallest of each, to
see that it runs; `--write` puts table and plot into the repository. `make bench` runs it.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")

import torch  # noqa: E402
from bench_long_run import ROOT, of_steps, patterns, write_run  # noqa: E402
from speed.one_layer import one_layer  # noqa: E402

import segviz as sv  # noqa: E402
from segpo_core import advantages  # noqa: E402
from segpo_core.prefix_tree import prefix_tree, prefix_values  # noqa: E402
from segpo_core.record.store import Recorder, read_rollouts  # noqa: E402

RESULTS = ROOT / "benchmarks" / "RESULTS.md"
PLOT = ROOT / "benchmarks" / "growth.svg"
BEGIN, END = "<!-- growth -->", "<!-- /growth -->"
TOKENS = 64

Prepared = Callable[[], object]


def update(tokens: int, vocabulary: int) -> Prepared:
    """Forward and backward of one completion, one layer of width 64."""
    network, prompt, ids, mask = one_layer(tokens, vocabulary)

    def call() -> None:
        network(prompt, ids, mask).logprobs.sum().backward()
        network.zero_grad()

    return call


def group(size: int, place: Path) -> Prepared:
    """Credit of one group: relative to the group, leave one out, and the values of every prefix."""
    rewards, number = torch.rand(size), torch.zeros(size, dtype=torch.long)
    ids, mask = torch.randint(3, (size, TOKENS)), torch.ones(size, TOKENS, dtype=torch.bool)

    def call() -> None:
        advantages.group_relative(rewards, number)
        advantages.leave_one_out(rewards, number)
        prefix_values(ids, mask, rewards, number)

    return call


def tree(leaves: int, place: Path) -> Prepared:
    """The prefix tree of completions that part again and again."""
    ids, mask = torch.randint(2, (leaves, TOKENS)), torch.ones(leaves, TOKENS, dtype=torch.bool)
    number, logprobs = torch.zeros(leaves, dtype=torch.long), torch.full((leaves, TOKENS), -0.7)
    return lambda: prefix_tree(ids, mask, number, logprobs, torch.rand(leaves))


def segments(number: int, place: Path) -> Prepared:
    """GAE over segments of 8 completions of 8,192 tokens."""
    ids = (torch.arange(8192) * number // 8192).expand(8, -1).contiguous()
    rewards, values = torch.rand(8, 8192), torch.rand(8, 8192)
    return lambda: advantages.segment_gae(rewards, values, ids, 1.0, 0.95)


def recorded(rollouts: int, place: Path) -> Prepared:
    """Recording a step of rollouts of about 60 tokens, and reading it again."""
    recorder = Recorder(place / f"recorded-{rollouts}")
    rows = of_steps(patterns(), range(rollouts // 8)).to_pylist()
    rows = [row | {"step": 1, "group": i // 4} for i, row in enumerate(rows)]

    def call() -> None:
        recorder.rollouts(1, rows, {})
        read_rollouts(recorder.directory, [1])

    return call


def run(steps: int, place: Path) -> Prepared:
    """Opening a run: its steps, metrics and rollouts without their tokens."""
    path = write_run(place / f"run-{steps}", steps, apart=False)

    def call() -> None:
        opened = sv.open(path)
        assert len(opened.metrics) and len(opened.rollouts) == 8 * len(opened.steps)

    return call


#: Name -> what is done, the unit of x, sizes, how to prepare a size.
LINES: dict[str, tuple[str, str, list[int], Callable[[int, Path], Prepared]]] = {
    "length": ("update of a completion", "tokens", [128, 512, 2048, 8192], lambda n, place: update(n, 400)),
    "group": ("credit of a group", "completions", [8, 32, 128, 512], group),
    "tree": ("prefix tree", "leaves", [16, 64, 256, 1024], tree),
    "segments": ("segment GAE, 65,536 tokens", "segments a row", [4, 32, 256, 2048], segments),
    "rollouts": ("recording a step", "rollouts", [16, 64, 256, 1024], recorded),
    "steps": ("opening a run", "steps", [1000, 3000, 9000], run),
    "vocabulary": ("update of 256 tokens", "tokens known", [2000, 8000, 32_000, 128_000],
                   lambda n, place: update(256, n)),
}  # fmt: skip


def seconds(call: Prepared, repeats: int) -> float:
    """The least of some calls after one that is not counted."""
    found = []
    for _ in range(repeats + 1):
        begin = time.process_time()
        call()
        found.append(time.process_time() - begin)
    return max(1e-6, min(found[1:]))


def slope(xs: list[int], ys: list[float]) -> float:
    return math.log(ys[-1] / ys[-2]) / math.log(xs[-1] / xs[-2])


def plot(found: dict[str, tuple[list[int], list[float]]]) -> str:
    """A panel a line, both axes logarithmic; dashed: as the work grows."""
    wide, high, columns = 230, 170, 4
    parts = []
    for place, (name, (xs, ys)) in enumerate(found.items()):
        title, unit = LINES[name][:2]
        left, top = place % columns * wide + 60, place // columns * high + 26
        w, h = wide - 76, high - 58
        low, reach = math.log(min(ys)), max(math.log(max(ys) / min(ys)), math.log(xs[-1] / xs[0]))

        def at(x: float, y: float, xs=xs, left=left, top=top, w=w, h=h, low=low, reach=reach) -> str:  # noqa: B006
            across = math.log(x / xs[0]) / math.log(xs[-1] / xs[0])
            return f"{left + w * across:.1f} {top + h - h * (math.log(y) - low) / reach:.1f}"

        line = "L".join(at(x, y) for x, y in zip(xs, ys, strict=True))
        straight = f"{at(xs[0], min(ys))}L{at(xs[-1], min(ys) * xs[-1] / xs[0])}"
        parts.append(f'<text x="{left - 48}" y="{top - 10}" font-weight="bold">{title}</text>')
        parts.append(f'<path d="M{left} {top}v{h}h{w}" fill="none" stroke="#e3e0da"/>')
        parts.append(f'<path d="M{straight}" fill="none" stroke="#686b73" stroke-dasharray="4 3"/>')
        parts.append(f'<path d="M{line}" fill="none" stroke="#1d4ed8" stroke-width="2"/>')
        for x, y in zip(xs, ys, strict=True):
            dot = at(x, y).split()
            parts.append(f'<circle cx="{dot[0]}" cy="{dot[1]}" r="2.5" fill="#1d4ed8"/>')
        for x in (xs[0], xs[-1]):
            anchor = "end" if x == xs[-1] else "start"
            across = at(x, min(ys)).split()[0]
            parts.append(f'<text x="{across}" y="{top + h + 14}" fill="#686b73" text-anchor="{anchor}">{x:,}</text>')
        parts.append(f'<text x="{left + w / 2}" y="{top + h + 26}" fill="#686b73" text-anchor="middle">{unit}</text>')
        for x, y in ((xs[0], ys[0]), (xs[-1], ys[-1])):
            down = float(at(x, y).split()[1]) + (4 if x == xs[0] or abs(math.log(y / ys[0])) > 0.4 else -8)
            parts.append(f'<text x="{left - 4}" y="{down:.1f}" fill="#686b73" text-anchor="end">{y:.2g} s</text>')
    width, height = wide * min(columns, len(found)), high * -(-len(found) // columns) + 12
    said = "processor seconds by size of the work, both axes logarithmic; dashed: as the work grows"
    parts.append(f'<text x="12" y="{height - 6}" fill="#686b73">{said}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="11" role="img"><title>{said}</title>\n'
        f'<rect width="100%" height="100%" fill="#fbfaf8"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def main(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    found: dict[str, tuple[list[int], list[float]]] = {}
    out = ["| what | of | seconds | slope at the end |", "|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as place:
        for name in args.lines or LINES:
            title, unit, sizes, prepare = LINES[name]
            sizes = [size // 8 for size in sizes[:2]] if args.small and name == "steps" else sizes
            sizes = sizes[:2] if args.small else sizes
            ys = [seconds(prepare(size, Path(place)), 1 if args.small else 3) for size in sizes]
            found[name] = sizes, ys
            each = ", ".join(f"{x:,}: {y:.2g}" for x, y in zip(sizes, ys, strict=True))
            out.append(f"| {title} | {unit} | {each} | {slope(sizes, ys):.2f} |")
            print(out[-1], file=sys.stderr, flush=True)
    drawn = plot(found)
    print("\n".join(out))
    if args.write:
        PLOT.write_text(drawn, encoding="utf-8")
        before, rest = RESULTS.read_text(encoding="utf-8").split(BEGIN)
        RESULTS.write_text(before + "\n".join([BEGIN, *out, END]) + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", nargs="*", default=[], choices=[*LINES, []], help=" ".join(LINES))
    parser.add_argument("--small", action="store_true", help="the two smallest of each")
    parser.add_argument("--write", action="store_true", help="put table and plot into the repository")
    main(parser.parse_args())
