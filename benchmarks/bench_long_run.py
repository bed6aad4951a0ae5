"""Looking at a long run: its metrics, its rollouts without their tokens, one rollout, a report, the app.

    python benchmarks/bench_long_run.py [--steps 20000 100000] [--apart] [--write]

Processor seconds of a fresh process, the median of three, import excluded; 60 metrics and 8 short rollouts a step,
every step recorded. The files are as the trainer leaves them, written by its own functions, without the time to write a
file for every step first; `--apart` adds runs with a file for every step, `--write` puts the table into RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the synthetic rollouts of the tests

from segpo_core.record import metrics, together  # noqa: E402
from segpo_core.record.files import step_name, table_bytes  # noqa: E402
from segpo_core.record.store import METRIC_SCHEMA, ROLLOUT_SCHEMA, Recorder  # noqa: E402
from tests.fakes.fake_run import completion, problem, row  # noqa: E402

RESULTS = Path(__file__).with_name("RESULTS.md")
BEGIN, END = "<!-- long -->", "<!-- /long -->"
NAMES = ["reward", "train/answer", "train/perception", *(f"group/metric_{i:02d}" for i in range(57))]
TIMES = 3  #: processes a look
PATTERNS = 50  #: different steps, repeated

#: What is done in a fresh process: title -> code. `path` is the run, `step` one of its steps.
LOOKS = {
    "`sv.open(run).metrics`": "found = sv.open(path).metrics; said = len(found['reward'].steps)",
    "`sv.open(run).rollouts`": "said = len(sv.open(path).rollouts)",
    "… and `.where(error_kind=…)`": "said = len(sv.open(path).rollouts.where(error_kind='perception'))",
    "`sv.open(run).rollout(…)` of one step": "said = len(sv.open(path).rollout(step, 0, 1).pieces)",
    "`sv.report(run)`": "said = sv.report(sv.open(path), path / 'r.html').stat().st_size",
    "the app: curves": (
        "log = MetricLog(path, path); log.refresh()\nwhile log.unread: log.refresh()\nsaid = len(log.series())"
    ),
    "the app: all rollouts known": (
        "shelf = Shelf([path])\nwhile (a := ask(shelf, index, Question()))['read'] < a['files']: time.sleep(0.5)\n"
        "said = a['every']"
    ),
}
CODE = """
import json, os, sys, time, psutil
from pathlib import Path
import segviz as sv
from segviz.app.metrics import MetricLog
from segviz.app.index import Index
from segviz.app.rollouts import Question, ask
from segviz.app.shelf import Shelf
from segviz.views.report import report_view
from segviz.runs.run import Run
path, step = Path(sys.argv[1]), int(sys.argv[2])
index, scans, scandir = Index(), [], os.scandir
def counted(place=None):
    scans.append(place)
    return scandir(place)
os.scandir = counted
begin = time.process_time()
{code}
print(json.dumps([time.process_time() - begin, said, len(scans), psutil.Process().memory_info().rss / 1e6]))
os._exit(0)
"""


def patterns() -> list[pa.Table]:
    """The rollouts of some steps: 2 prompts x 4 completions."""
    tables = []
    for step in range(PATTERNS):
        rows = []
        for group in range(2):
            rng = random.Random(f"{step}/{group}")
            objects, _, colour, _ = problem(rng)
            for sample in range(4):
                kind = rng.choice(["right", "ungrounded", "perception", "reasoning"])
                text, truth = completion(rng, objects, colour, kind)
                reward = float(truth["answer_right"])
                short = row(step, group, sample, text, reward=reward, truth=truth, seed=step)
                rows.append(short)
        tables.append(pa.Table.from_pylist(rows, schema=ROLLOUT_SCHEMA))
    return tables


def of_steps(tables: list[pa.Table], steps: range) -> pa.Table:
    whole = pa.concat_tables([tables[step % PATTERNS] for step in steps])
    numbers = np.repeat(np.array(steps, np.int32), len(tables[0]))
    return whole.set_column(0, ROLLOUT_SCHEMA.field("step"), pa.array(numbers))


def metrics_of(steps: range) -> bytes:
    number = np.array(steps)
    columns = [
        pa.array(np.repeat(number, len(NAMES)), pa.int32()),
        pa.array(NAMES * len(steps)),
        pa.array(np.sin(np.outer(number, np.arange(len(NAMES)) + 1)).ravel()),
    ]
    return table_bytes(pa.table(columns, schema=METRIC_SCHEMA))


def write_run(path: Path, steps: int, apart: bool) -> Path:
    """A run as its trainer leaves it after `steps` steps; `apart`: as it was before files were put together."""
    Recorder(path).start({"method": "sapo", "max_steps": steps})
    tables = patterns()
    for size, folder in ((metrics.TOGETHER, "metrics"), (together.TOGETHER, "rollouts")):
        full = 0 if apart else (steps - 1) // size * size  # the worst moment: as many single files as there can be
        for end in range(size, full + 1, size):
            several = range(end - size + 1, end + 1)
            if folder == "metrics":
                (path / folder / f"{step_name(end)}.parquet").write_bytes(metrics_of(several))
            else:
                name = f"step-{several[0]:06d}-{end:06d}.rank0.parquet"
                parts = (of_steps(tables, several[i : i + 50]) for i in range(0, size, 50))
                (path / folder / name).write_bytes(together.file_of(parts))
        for step in range(full + 1, steps + 1):
            if folder == "metrics":
                (path / folder / f"{step_name(step)}.parquet").write_bytes(metrics_of(range(step, step + 1)))
            else:
                table = of_steps(tables, range(step, step + 1))
                (path / folder / f"{step_name(step)}.rank0.parquet").write_bytes(table_bytes(table))
    return path


def look(code: str, run: Path, step: int) -> tuple[float, int, int, float]:
    """(processor seconds, what was found, folders listed, MB of the process at its end)."""
    command = [sys.executable, "-c", CODE.format(code=code), str(run), str(step)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout)


def measured(folder: Path, steps: int, apart: bool, looks: list[str]) -> dict[str, str]:
    run = write_run(folder / f"{steps}{'-apart' * apart}", steps, apart)
    found = {"files": f"{sum(len(list((run / kind).iterdir())) for kind in ('metrics', 'rollouts')):,}"}
    print(f"{steps:,} steps in {found['files']} files", flush=True)
    for title in looks:
        step = steps * 73_412 // 100_000
        seconds, said, scans, memory = sorted(look(LOOKS[title], run, step) for _ in range(TIMES))[TIMES // 2]
        print(f"  {title}: {seconds:.2f} s ({said:,}; {scans} folders listed; {memory:.0f} MB)", flush=True)
        found[title] = f"{seconds:.2f} s" + (f", {scans} scans" if "report" in title else "")
    return found


def main(args: argparse.Namespace) -> None:
    runs = [(steps, apart) for steps in args.steps for apart in ([True, False] if args.apart else [False])]
    with tempfile.TemporaryDirectory() as place:
        columns = [measured(Path(place), *run, looks=list(LOOKS)) for run in runs]
    heads = [f"{steps:,} steps{', a file each' * apart}" for steps, apart in runs]
    lines = [f"| | {' | '.join(heads)} |", "|---" * (len(runs) + 1) + "|"]
    lines += [f"| {what} | {' | '.join(column[what] for column in columns)} |" for what in ["files", *LOOKS]]
    print("\n".join(lines))
    if args.write:
        before, rest = RESULTS.read_text(encoding="utf-8").split(BEGIN)
        RESULTS.write_text(before + "\n".join([BEGIN, *lines, END]) + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="*", default=[20_000, 100_000])
    parser.add_argument("--apart", action="store_true", help="also runs with a file for every step")
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    main(parser.parse_args())
