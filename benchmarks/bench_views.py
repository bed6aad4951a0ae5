"""How long the views take and how large they are: `python benchmarks/bench_views.py` (needs a Chromium).

One rollout of 32,768 tokens as a ribbon and one run of 100,000 metric points as a board, each as the offline page; a
run of thousands of rollouts in the explorer, and a look of the follower at a long run. Times are medians; something is
drawn when the browser has put out the frame that holds it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

import segviz as sv
from segpo_core.record.store import Recorder
from segviz.show.encode import script_json

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.fakes.fake_run import long_row, row  # noqa: E402

ARGUMENTS = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking".split()

#: Runs before the page's own scripts: notes when the first element that matches is in a frame that was put out.
_FIRST = """(selector) => {
  const look = () => document.querySelector(selector)
    ? requestAnimationFrame(() => setTimeout(() => { window.first = performance.now(); }))
    : requestAnimationFrame(look);
  look();
}"""
#: Does something and gives the milliseconds until the frame with its result was put out.
_TIMED = """async ([what, argument]) => {
  const begin = performance.now();
  if (what === 'click') document.querySelector(argument).click();
  else {
    const event = new KeyboardEvent('keydown', { key: argument, bubbles: true });
    document.querySelector('.t[tabindex]').dispatchEvent(event);
  }
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  return performance.now() - begin;
}"""


def median_of(repeats: int, measure: Callable[[], float]) -> float:
    return statistics.median(measure() for _ in range(repeats))


def seconds(work: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def opened(browser: Browser, path: Path, selector: str) -> tuple[Page, float]:
    """A page and the milliseconds from the start of its loading to its first `selector`."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.add_init_script(f"({_FIRST})({selector!r})")
    page.goto(f"file://{path}")
    page.wait_for_function("() => window.first !== undefined")
    return page, page.evaluate("window.first")


def first_drawn(browser: Browser, path: Path, selector: str) -> float:
    page, first = opened(browser, path, selector)
    page.close()
    return first


def ribbon(browser: Browser, folder: Path, tokens: int, repeats: int) -> list[tuple[str, str]]:
    rollout = sv.Rollout(long_row(tokens))
    view = sv.ribbon(rollout)
    path = view.save(folder / "ribbon.html")
    first = median_of(repeats, lambda: first_drawn(browser, path, ".t"))
    page, _ = opened(browser, path, ".t")
    layers, jumps = [], []
    for _ in range(repeats):
        for layer in ("entropy", "advantage"):
            layers.append(page.evaluate(_TIMED, ["click", f"button[data-layer={layer}]"]))
        page.locator(".t[tabindex]").focus()
        for key in ("End", "Home"):
            jumps.append(page.evaluate(_TIMED, ["key", key]))
    nodes = page.evaluate("document.getElementsByTagName('*').length")
    tokens_live = page.locator(".t").count()
    page.close()
    name = f"ribbon of {tokens:,} tokens"
    return [
        (f"{name}: data", f"{len(script_json(view.data)) / 1e3:.0f} KB"),
        (f"{name}: page", f"{path.stat().st_size / 1e3:.0f} KB"),
        (f"{name}: made in", f"{median_of(repeats, lambda: seconds(lambda: sv.ribbon(rollout).html())):.2f} s"),
        (f"{name}: first token drawn after", f"{first:.0f} ms"),
        (f"{name}: another layer drawn after", f"{statistics.median(layers):.0f} ms"),
        (f"{name}: End or Home drawn after", f"{statistics.median(jumps):.0f} ms"),
        (f"{name}: elements in the page", f"{nodes:,}, of them {tokens_live:,} tokens"),
    ]


def board(browser: Browser, folder: Path, points: int, repeats: int) -> list[tuple[str, str]]:
    names = ["eval/answer", "eval/perception", "eval/grounded", "reward", "kl", "entropy", "completion_length"]
    names += [f"other/{i:02d}" for i in range(33)]
    rng, recorder = random.Random(0), Recorder(folder / "long")
    recorder.start({"method": "grpo", "max_steps": points // len(names)})
    os_fsync, os.fsync = os.fsync, lambda _: None  # 2,500 files need not outlive a power cut here
    for step in range(1, points // len(names) + 1):
        recorder.metrics(step, {name: rng.random() for name in names})
    os.fsync = os_fsync
    run = sv.open(folder / "long")
    read = median_of(repeats, lambda: seconds(lambda: sv.open(folder / "long").metrics))
    assert sum(len(series.values) for series in run.metrics.values()) == points
    path = sv.board(run).save(folder / "board.html")
    made = median_of(repeats, lambda: seconds(lambda: sv.board(run).html()))
    first = median_of(repeats, lambda: first_drawn(browser, path, ".curve[d]"))
    page, _ = opened(browser, path, ".curve[d]")
    nodes = page.evaluate("document.getElementsByTagName('*').length")
    page.close()
    return [
        (f"board of {points:,} points: read from {points // len(names):,} files in", f"{read:.2f} s"),
        (f"board of {points:,} points: made in", f"{made:.2f} s"),
        (f"board of {points:,} points: page", f"{path.stat().st_size / 1e3:.0f} KB"),
        (f"board of {points:,} points: first chart drawn after", f"{first:.0f} ms"),
        (f"board of {points:,} points: elements in the page", f"{nodes:,}"),
    ]  # fmt: skip


def widgets(folder: Path, steps: int, repeats: int) -> list[tuple[str, str]]:
    recorder = Recorder(folder / "wide")
    recorder.start({"method": "sapo"})
    text = "<perception> red circle; blue square </perception><think> one, two </think><answer> 2 </answer>"
    for step in range(1, steps + 1):
        rows = [row(step, g, s, text, reward=float((step + s) % 2)) for g in range(8) for s in range(8)]
        recorder.rollouts(step, rows, {})
    run = sv.open(folder / "wide")
    begin = time.perf_counter()
    explorer = sv.explore(run)
    made, total = time.perf_counter() - begin, len(explorer.rows)
    texts = iter(["square", "circle"] * repeats)
    filtered = median_of(
        repeats, lambda: seconds(lambda: explorer.narrow(reward=(1, 1)) or explorer.narrow(reward=None))
    )
    searched = median_of(repeats, lambda: seconds(lambda: explorer.narrow(text=next(texts))))
    stepped = median_of(repeats, lambda: seconds(lambda: explorer.step(1)))
    return [
        (f"explorer of {total:,} rollouts in {steps} steps: there after", f"{made:.2f} s"),
        (f"explorer of {total:,} rollouts: a condition set and taken back", f"{filtered:.2f} s"),
        (f"explorer of {total:,} rollouts: a search in all texts", f"{searched:.2f} s"),
        (f"explorer of {total:,} rollouts: the next row", f"{1e3 * stepped:.0f} ms"),
    ]


async def looks(folder: Path, repeats: int) -> list[tuple[str, str]]:
    begin = time.perf_counter()
    follower = sv.follow(folder / "long", every=3600)
    first = time.perf_counter() - begin
    nothing = median_of(repeats, lambda: seconds(follower.look))
    recorder, last = Recorder(folder / "long"), follower.run.last

    def one_more() -> float:
        nonlocal last
        last += 1
        recorder.metrics(last, {"reward": 0.5})
        return seconds(follower.look)

    found = median_of(repeats, one_more)
    follower.close()
    return [
        ("follower, the same run: first look", f"{first:.2f} s"),
        ("follower: a look that finds nothing new", f"{1e3 * nothing:.0f} ms"),
        ("follower: a look that finds a new step", f"{1e3 * found:.0f} ms"),
    ]


def main(args: argparse.Namespace) -> None:
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        raise SystemExit("no Chromium: install one, or set CHROMIUM=/path/to/it")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
            lines = ribbon(browser, folder, args.tokens, args.repeats)
            lines += board(browser, folder, args.points, args.repeats)
            browser.close()
        lines += widgets(folder, args.steps, args.repeats)
        lines += asyncio.run(looks(folder, args.repeats))
    print(f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}, medians of {args.repeats}")
    print("\n| what | measured |\n|---|---|")
    for what, measured in lines:
        print(f"| {what} | {measured} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=300, help="of the explored run; 64 rollouts each")
    parser.add_argument("--repeats", type=int, default=7)
    main(parser.parse_args())
