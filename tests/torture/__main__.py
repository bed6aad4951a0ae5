"""`make torture`: the long form. Prints what went wrong, and puts the figures into benchmarks/RESULTS.md."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from playwright.sync_api import sync_playwright

from segpo_core.algos import GRPO
from segpo_core.training.loop import Trainer
from tests.browser.conftest import ARGUMENTS
from tests.fakes import families
from tests.fakes.fake_run import write_run
from tests.fakes.toy import ToyTask
from tests.torture import attempts, disks, kills, pages
from tests.torture.test_files import tried
from tests.training.test_loop import config_for

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "RESULTS.md"

#: What is made wrong -> how often.
NUMBERS = {
    "run directories, in every view": 750, "run directories, `segpo credit`": 250, "YAML settings": 700,
    "verl dumps": 500, "TRL dumps": 400, "data sets": 788,
}  # fmt: skip
TEXTS = 1000  #: hostile ones, in every view and the app
KILLS = {1: 25, 2: 12}  #: processes of a training -> kills of each kind of it


def kinds(place: Path) -> dict[str, Callable]:
    shown = write_run(place / "shown", steps=6, groups=2, samples=2)
    config = config_for(families.llama(place / "model"), place / "trained", GRPO(), max_steps=2)
    trained = Trainer(config, task=ToyTask(images=False)).run()
    settings = place / "settings.yaml"
    settings.write_text(json.dumps({"method": "sapo", "max_steps": 10, "learning_rate": 1e-4}))
    every = (
        lambda path, seed: attempts.run_views(shown, path, seed),
        lambda path, seed: attempts.run_credit(trained, path, seed),
        lambda path, seed: attempts.settings(settings, path, seed),
        lambda path, seed: attempts.dump("verl", path, seed),
        lambda path, seed: attempts.dump("trl", path, seed),
        attempts.data_set,
    )
    return dict(zip(NUMBERS, every, strict=True))


#: A part's table comes a row at a time, so that what was done stands there although the rest was interrupted: the row,
#: and how much of it was wrong.
Rows = Iterator[tuple[str, int]]


def files(place: Path, seed: int, share: float) -> Rows:
    yield f"From seed {seed}.\n\n| made wrong, by seed | tried | neither worked nor said in words |\n|---|---|---|", 0
    for name, attempt in kinds(place).items():
        number = max(1, round(NUMBERS[name] * share))
        found = tried(attempt, number, place / "it", seed)
        for one, why in found.items():
            print(f"{name}, seed {one}: {why}", flush=True)
        yield f"| {name} | {number} | {len(found)} |", len(found)


def killed(place: Path, seed: int, share: float, processes: int = 1) -> Rows:
    yield (
        (
            "| killed at random moments, then resumed to the end | processes | kills | starts | reads meanwhile | "
            "not bit-identical, or a torn file |\n|---|---|---|---|---|---|"
        ),
        0,
    )
    models = {False: families.llama(place / "llama"), True: families.llava(place / "llava")}
    for name, (_, pictures) in kills.KINDS.items():
        with tempfile.TemporaryDirectory(dir=place) as folder:
            wanted = max(1, round(KILLS[processes] * share))
            told = kills.killed(name, models[pictures], Path(folder), wanted, processes, seed)
        if told.wrong:
            print(f"{name}, {processes} processes: {told.wrong}", flush=True)
        wrong = int(bool(told.wrong))
        yield f"| {name} | {processes} | {told.kills} | {told.starts} | {told.reads:,} | {wrong} |", wrong


def broken(place: Path, seed: int, share: float) -> Rows:
    yield "| the disk, under a run that is at work | learnt in the end |\n|---|---|", 0
    whole = disks.undisturbed(families.llama(place / "model"), place)
    for name in disks.CASES:
        with tempfile.TemporaryDirectory(dir=place) as folder:
            outcome = disks.tried(name, whole, Path(folder))
        if outcome.get("wrong"):
            print(f"{name}: {outcome['wrong']}", flush=True)
        result = "not tried: no mounts here" if "cannot" in outcome else "wrong" if outcome["wrong"] else "the same"
        yield f"| {name} | {result} |", int(result == "wrong")


def looked_at(place: Path, seed: int, share: float) -> Rows:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        told = pages.shown(browser, place, max(1, round(TEXTS * share)), seed)
        browser.close()
    for one in (*told.asked, *told.broken):
        print(one, flush=True)
    yield from pages.rows_of(told)


PARTS: dict[str, Callable[[Path, int, float], Rows]] = {
    "disks": broken,
    "kills": killed,
    "kills2": partial(killed, processes=2),
    "files": files,
    "pages": looked_at,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the first file")
    parser.add_argument("--share", type=float, default=1.0, help="of the usual numbers")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    args = parser.parse_args()
    wrong = 0
    for part in args.parts:
        rows = []
        with tempfile.TemporaryDirectory() as folder:
            for row, number in PARTS[part](Path(folder), args.seed, args.share):
                print(row, flush=True)
                rows.append(row)
                wrong += number
                written(part, rows)
    return min(wrong, 1)


def written(part: str, rows: list[str]) -> None:
    """Put the rows that there are so far into RESULTS."""
    begin, end = f"<!-- torture: {part} -->", f"<!-- /torture: {part} -->"
    before, _, rest = RESULTS.read_text(encoding="utf-8").partition(begin)
    after = rest.partition(end)[2]
    RESULTS.write_text("\n".join([f"{before}{begin}", *rows, f"{end}{after}"]), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
