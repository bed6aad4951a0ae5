"""Opening the metrics of a long run: one file a step, and put together as the trainer does it.

    python benchmarks/bench_long_run.py [STEPS ...]

Processor seconds of a fresh process, import excluded; 60 metrics a step.
"""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa

from segpo_core.record.files import step_name, table_bytes
from segpo_core.record.metrics import METRIC_SCHEMA, put_together
from segpo_core.record.store import Recorder

NAMES = [f"group/metric_{i:02d}" for i in range(60)]
LOOK = (
    "import sys, time, segviz as sv\nfrom segviz.runs.run import Run\nfrom segviz.app.metrics import MetricLog\n"
    "from pathlib import Path\nbegin = time.process_time()\nfound = sv.open(sys.argv[1]).metrics\n"
    "read = time.process_time() - begin\nlog = MetricLog(Path(sys.argv[1]), Path(sys.argv[1]))\n"
    "begin = time.process_time()\nlog.refresh()\nwhile log.unread: log.refresh()\nlog.series()\n"
    "print(len(found['group/metric_00'].steps), read, time.process_time() - begin)"
)


def steps_file(folder: Path, steps: range) -> None:
    columns = [
        [step for step in steps for _ in NAMES],
        [name for _ in steps for name in NAMES],
        [math.sin(step * (i + 1)) for step in steps for i in range(len(NAMES))],
    ]
    table = pa.table(columns, schema=METRIC_SCHEMA)
    (folder / f"{step_name(steps[-1])}.parquet").write_bytes(table_bytes(table))


def look(run: Path) -> str:
    said = subprocess.run([sys.executable, "-c", LOOK, str(run)], capture_output=True, text=True, check=True).stdout
    steps, view, app = said.split()
    files = len(list((run / "metrics").iterdir()))
    return f"{steps:>7} steps in {files:>6} files: sv.open(run).metrics {float(view):.2f} s, the app {float(app):.2f} s"


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        for number in [int(said) for said in sys.argv[1:]] or [20_000, 100_000]:
            run = Path(place) / str(number)
            Recorder(run).start({"method": "grpo", "max_steps": number})
            if number <= 20_000:
                for step in range(1, number + 1):
                    steps_file(run / "metrics", range(step, step + 1))
                print(look(run), flush=True)
                put_together(run)
            else:  # as it would be found, without the time to write a file for every step first
                for end in range(1000, number + 1, 1000):
                    steps_file(run / "metrics", range(end - 999, end + 1))
            print(look(run), flush=True)


if __name__ == "__main__":
    main()
