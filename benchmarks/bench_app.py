"""The app under load: `python benchmarks/bench_app.py [million] [load] [long]` (default: all three, about ten minutes).

* million: one million recorded rollouts in 15,625 files. Seconds to the first page of the table in a fresh app, to the
  whole index, of questions once it is there, and the app's memory.
* load: twenty clients that ask what twenty open browsers ask, beside a real training. Errors, seconds an answer takes,
  how far behind the files the curves are, and the training's tokens per second with and without the clients, in turns.
* long: a run of thousands of steps written as fast as the disk allows while a client polls: the app's memory over time.

Everything is measured on the real server in a process of its own, over HTTP.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from segpo_core.record.store import METRIC_SCHEMA, Recorder, read_rollouts, step_name

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the synthetic rollouts of the tests

from tests.fakes.fake_run import write_run  # noqa: E402

GROUPS, SAMPLES = 8, 8


class Asker:
    """A client that asks for JSON and keeps what a browser keeps."""

    def __init__(self, address: str):
        self.address, self.tags, self.kept = address, {}, {}

    def ask(self, path: str, **parameters) -> dict:
        url = f"/segpo/api/{path}?{urlencode(parameters)}"
        connection = http.client.HTTPConnection(self.address, timeout=60)
        try:
            connection.request("GET", url, headers={"If-None-Match": self.tags[url]} if url in self.tags else {})
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
        if answer.status == 304:
            return self.kept[url]
        if answer.status != 200:
            raise RuntimeError(f"{url}: {answer.status} {body[:200]!r}")
        self.tags[url], self.kept[url] = answer.headers["ETag"], json.loads(body)
        return self.kept[url]


@contextmanager
def app(runs: Path) -> Iterator[tuple[str, psutil.Process]]:
    """The app as a process: (host:port, the process)."""
    command = [sys.executable, "-m", "segpo_core.cli", "app", str(runs), "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        said = ""
        while not (found := re.search(r"app at http://([^/]+)/", said)):
            said += process.stderr.readline()
        threading.Thread(target=process.stderr.read, daemon=True).start()
        Asker(found[1]).ask("runs")
        try:
            yield found[1], psutil.Process(process.pid)
        finally:
            process.terminate()


def megabytes(process: psutil.Process) -> int:
    return round(process.memory_info().rss / 1e6)


def processor(process: psutil.Process) -> float:
    """Seconds of processor time so far."""
    used = process.cpu_times()
    return used.user + used.system


def million(folder: Path, rollouts: int) -> None:
    steps = rollouts // (GROUPS * SAMPLES)
    whole = read_rollouts(write_run(folder / "seed", steps=61, groups=GROUPS, samples=SAMPLES))
    size = GROUPS * SAMPLES
    tables = [whole.slice(i, size).combine_chunks() for i in range(0, len(whole), size)]
    path = folder / "runs" / "big"
    Recorder(path).start({"method": "sapo", "max_steps": steps})
    for step in range(1, steps + 1):
        table = tables[step % len(tables)].set_column(0, "step", pa.array([step] * size, pa.int32()))
        pq.write_table(table, path / "rollouts" / f"{step_name(step)}.rank0.parquet", compression="zstd")
    print(f"{steps * size:,} rollouts in {steps:,} files")
    with app(folder / "runs") as (address, process):
        asker, start = Asker(address), time.perf_counter()
        first = asker.ask("rollouts", run="big")
        print(f"first page after {time.perf_counter() - start:.2f} s ({first['total']:,} rollouts known)")
        slowest = 0.0
        while first["read"] < first["files"]:
            time.sleep(0.5)
            asked = time.perf_counter()
            first = asker.ask("rollouts", run="big")
            slowest = max(slowest, time.perf_counter() - asked)
        print(f"all known after {time.perf_counter() - start:.0f} s; slowest page meanwhile {slowest:.2f} s")
        for name, question in {
            "newest": {},
            "highest reward": {"sort": "-reward"},
            "widest credit": {"sort": "-spread"},
            "perception errors": {"error": "perception"},
            "right though ungrounded, by tokens": {"answer": "right", "perception": "wrong", "sort": "tokens"},
            "text": {"text": "green circle"},
            "text that is not there": {"text": "zebra"},
            "last page": {"offset": steps * size - 50},
        }.items():
            times = []
            for turn in range(3):
                asked = time.perf_counter()
                total = Asker(address).ask("rollouts", run="big", limit=50 + turn, **question)["total"]
                times.append(time.perf_counter() - asked)
            print(f"  {name}: {statistics.median(times):.2f} s, {total:,} rollouts")
        print(f"memory of the app: {megabytes(process)} MB")


def load(folder: Path, clients: int, seconds: float) -> None:
    runs, path = folder / "live", folder / "live" / "mine"
    train = [sys.executable, "-m", "segpo_core.cli", "train", "--config", str(ROOT / "configs" / "demo.yaml"),
             "--output-dir", str(path), "--max-steps", "100000", "--eval-steps", "0", "--save-steps", "0"]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with app(runs) as (address, process), subprocess.Popen(train, cwd=ROOT, env=environment, **quiet) as training:
        try:
            while not (path / "metrics" / f"{step_name(3)}.parquet").exists():
                if training.poll() is not None:
                    raise RuntimeError("the training ended by itself")
                time.sleep(0.2)
            speeds: dict[str, list[float]] = {"without": [], "with": []}
            errors, times, lags, busy = [], [], [], 0.0
            for turn in range(4):
                kind = ("without", "with")[turn % 2]
                start, before = time.time(), processor(process)
                if kind == "with":
                    crowd(address, path, clients, seconds, errors, times, lags)
                    busy += processor(process) - before
                else:
                    time.sleep(seconds)
                speeds[kind] += between(path, start, time.time())
            print(f"{clients} clients, 2 x {seconds:g} s: {len(times):,} answers, {len(errors)} errors {errors[:2]}")
            cuts = statistics.quantiles(times, n=100)
            middle, most, nearly = (1e3 * cuts[i] for i in (49, 94, 98))
            print(f"answers: median {middle:.0f} ms, 95 % within {most:.0f} ms, 99 % within {nearly:.0f} ms")
            behind = f"median {statistics.median(lags):.2f} s, most {max(lags):.2f} s"
            print(f"curves behind the file, asked for every second: {behind}")
            with_, without = (statistics.mean(speeds[kind]) for kind in ("with", "without"))
            change = 100 * (with_ / without - 1)
            print(f"training: {without:,.0f} tokens/s without clients, {with_:,.0f} with them ({change:+.0f} %)")
            print(f"the app kept {busy / (2 * seconds):.2f} of a core busy; memory {megabytes(process)} MB")
        finally:
            training.send_signal(signal.SIGINT)
            training.wait(60)


def crowd(address: str, path: Path, clients: int, seconds: float, errors: list, times: list, lags: list) -> None:
    """What `clients` open browsers ask, for a while. Fills the lists."""
    end = time.monotonic() + seconds

    def browse(number: int) -> None:
        asker, seen, turn = Asker(address), 0, number
        while time.monotonic() < end:
            questions = [("runs", {}), ("live", {"run": "mine"})]
            questions += [("rollouts", {"run": "mine", "limit": 0 if turn % 5 else 50})] * (number % 2)
            for name, parameters in questions:
                asked = time.perf_counter()
                try:
                    answer = asker.ask(name, **parameters)
                except Exception as error:  # a benchmark counts whatever goes wrong
                    errors.append(repr(error))
                    continue
                times.append(time.perf_counter() - asked)
                if name == "live":
                    step = max(line["x"][-1] for chart in answer["board"]["charts"] for line in chart["lines"])
                    if seen and step > seen:
                        lags.append(time.time() - (path / "metrics" / f"{step_name(step)}.parquet").stat().st_mtime)
                    seen = step
            turn += 1
            time.sleep(1)

    threads = [threading.Thread(target=browse, args=(i,)) for i in range(clients)]
    for thread in threads:
        thread.start()
        time.sleep(0.04)  # people do not open their browsers in step
    for thread in threads:
        thread.join()


def between(path: Path, start: float, end: float) -> list[float]:
    """Tokens per second of the steps that ended between two moments."""
    found = []
    for file in (path / "metrics").glob("step-*.parquet"):
        if start < file.stat().st_mtime < end:
            table = pq.read_table(file, schema=METRIC_SCHEMA).to_pylist()
            found += [row["value"] for row in table if row["name"] == "time/tokens_per_second"]
    return found


def long(folder: Path, steps: int) -> None:
    path = folder / "long" / "run"
    seed = write_run(folder / "pattern", steps=5, groups=GROUPS, samples=SAMPLES)
    table = read_rollouts(seed, [5]).combine_chunks()
    recorder = Recorder(path)
    recorder.start({"method": "sapo", "max_steps": steps})
    with app(folder / "long") as (address, process):
        asker, memory = Asker(address), []
        last = time.monotonic()
        for step in range(1, steps + 1):
            recorder.metrics(step, {f"metric/{i}": step * 0.001 * i for i in range(40)} | {"reward": 0.5})
            numbered = table.set_column(0, "step", pa.array([step] * len(table), pa.int32()))
            pq.write_table(numbered, path / "rollouts" / f"{step_name(step)}.rank0.parquet", compression="zstd")
            if time.monotonic() - last > 0.5:
                asker.ask("live", run="run")
                asker.ask("rollouts", run="run", limit=50)
                last = time.monotonic()
            if step % (steps // 8) == 0:
                memory.append(megabytes(process))
        time.sleep(1)
        while asker.ask("live", run="run")["unread"]:
            time.sleep(0.5)
        print(f"{steps:,} steps with 41 metrics and {len(table)} rollouts each, written in a row")
        print(f"memory of the app at every eighth of them: {memory} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=["million", "load", "long", []], default=["million", "load", "long"])
    parser.add_argument("--rollouts", type=int, default=1_000_000)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=45, help="of each of the four phases under load")
    parser.add_argument("--steps", type=int, default=4000, help="of the long run")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="segpo-bench-") as folder:
        if "million" in args.what:
            million(Path(folder), args.rollouts)
        if "load" in args.what:
            load(Path(folder), args.clients, args.seconds)
        if "long" in args.what:
            long(Path(folder), args.steps)


if __name__ == "__main__":
    main()
