"""A run as it is found on disk."""

from __future__ import annotations

import subprocess
import sys

import pyarrow.parquet as pq
import pytest

import segviz as sv
from segpo_core.record.store import Recorder
from segviz.views.report import pick
from segviz.views.ribbon import ribbon_data
from tests.fakes.fake_run import row, write_run


def test_importing_segviz_needs_neither_torch_nor_the_trainer():
    trainer = "('torch', 'transformers', 'segpo_core.training.loop')"
    code = f"import sys, segviz; print([m for m in {trainer} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_run_tells_its_rollouts_and_metrics(run):
    assert run.method_label == "SAPO (segment-aligned)"
    assert run.steps == [1, 5, 9, 13, 17, 21]
    table = run.rollouts.where(step=1, error_kind="perception", answer_right=False)
    assert len(table) and all(r["tokens"] > 5 and r["lowest"] < 0 and r["grounded"] is False for r in table)
    assert len(run.rollouts.where(step={1, 5}, reward=lambda r: r > 0)) == len(
        [r for r in run.rollouts if r["step"] in (1, 5) and r["reward"] > 0]
    )
    rollout = run.rollout(1, 0, 1)
    assert "".join(rollout.pieces) == rollout.text and not rollout.problems
    assert rollout.segments[0][0] == 0 and rollout.segments[-1][1] == len(rollout.pieces)
    assert [*rollout.images.values()][0].startswith(b"\x89PNG")
    answers = run.metrics["eval/answer"]
    assert answers.steps == sorted(answers.steps) and len(answers.steps) == len(answers.values) == 9


def test_what_is_not_a_run_is_said_clearly(tmp_path):
    with pytest.raises(sv.SchemaError, match="no such folder"):
        sv.open(tmp_path / "nowhere")
    with pytest.raises(sv.SchemaError, match="no run.json"):
        sv.open(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(sv.SchemaError, match="cannot be read"):
        sv.open(tmp_path)
    (tmp_path / "run.json").write_text('{"schema_version": 999}')
    with pytest.raises(sv.SchemaError, match="999"):
        sv.open(tmp_path)


def test_a_rollout_or_column_that_is_not_there_is_named(run):
    with pytest.raises(KeyError, match="recorded steps: 1, 5"):
        run.rollout(2, 0, 0)
    with pytest.raises(KeyError, match="no group 77"):
        run.rollout(1, 77, 0)
    with pytest.raises(KeyError, match="no column colour"):
        run.rollouts.where(colour="red")
    with pytest.raises(ValueError, match="at least one run"):
        sv.board([])


def test_an_empty_run_makes_a_report(tmp_path):
    Recorder(tmp_path / "empty").start({"method": "grpo"})
    run = sv.open(tmp_path / "empty")
    assert len(run.rollouts) == 0 and run.metrics == {} and pick(run) == []
    assert sv.report(run).read_text().startswith("<!doctype html>")
    assert sv.board(run).data["empty"]


def test_a_run_that_is_being_written_is_seen_as_far_as_it_is(tmp_path):
    run = sv.open(write_run(tmp_path / "live", steps=4))
    seen, metrics = len(run.rollouts), len(run.metrics["reward"].steps)
    recorder = Recorder(run.path)
    recorder.rollouts(30, [row(30, text="<think> 1 </think>")], {})
    recorder.metrics(30, {"reward": 1.0})
    (run.path / "rollouts" / ".step-000031.rank0.parquet.99.tmp").write_bytes(b"half")
    assert len(run.rollouts) == seen + 1 and len(run.metrics["reward"].steps) == metrics + 1
    recorder.rollouts(30, [row(30, text="<think> 2 </think>")] * 2, {})  # a resumed run writes the step again
    assert len(run.rollouts) == seen + 2


def test_a_broken_file_is_reported_and_the_rest_is_shown(tmp_path):
    run = sv.open(write_run(tmp_path / "torn", steps=8))
    (run.path / "rollouts" / "step-000005.rank0.parquet").write_bytes(b"PAR1 torn")
    assert {r["step"] for r in run.rollouts} == {1}
    assert "step 5" in run.problems[0]
    assert run.problems[0] in sv.report(run).read_text()


def test_an_older_file_without_a_column_is_read_as_not_recorded(tmp_path):
    run = sv.open(write_run(tmp_path / "old", steps=1))
    path = run.path / "rollouts" / "step-000001.rank0.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["values", "segment_stderr", "ratio", "error_kind"]), path)
    data = ribbon_data(run.rollout(1, 0, 1))
    names = {name for name, *_ in data["pack"]["columns"]}
    assert "val" not in names and "ratio" not in names and "seg_val" in names and data["error"]["kind"] == "error"


def test_a_missing_image_is_shown_as_missing(tmp_path):
    run = sv.open(write_run(tmp_path / "blind", steps=1))
    for path in (run.path / "images").iterdir():
        path.unlink()
    (picture,) = sv.ribbon(run.rollout(1, 0, 0)).data["pictures"].values()
    assert picture == {"src": None, "note": "missing"}
    assert run.image("../../run") is None


def test_an_image_that_is_no_image_is_not_put_into_the_page(tmp_path):
    run = sv.open(write_run(tmp_path / "fooled", steps=1))
    for path in (run.path / "images").iterdir():
        path.write_bytes(b"<svg onload=alert(1)>")
    (picture,) = sv.ribbon(run.rollout(1, 0, 0)).data["pictures"].values()
    assert picture == {"src": None, "note": "cannot be read"}
