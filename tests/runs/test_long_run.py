"""A run of many steps, put together by its trainer: views and app show what they showed before, and look once."""

import os
import shutil

import pyarrow.parquet as pq
import pytest

import segviz as sv
from segpo_core.record import metrics, store, together
from segpo_core.record.files import SchemaError
from segviz.app.index import Index
from segviz.app.rollouts import Question, ask
from segviz.app.shelf import Shelf
from segviz.parts.scoreboard import scoreboard
from segviz.runs import columns
from segviz.views import board
from segviz.views.report import of_marks, report_view
from tests.fakes.fake_run import write_run

STEPS = 42  # recorded are 1, 5, … 41: eleven


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same run twice: a file a step, and put together by fours."""
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "run", steps=STEPS)
    shutil.copytree(folder / "run", folder / "together" / "run")
    with pytest.MonkeyPatch.context() as few:
        few.setattr(together, "TOGETHER", 4)
        together.put_together(folder / "together" / "run" / "rollouts", 0)
        together.remove_covered(folder / "together" / "run" / "rollouts", 0)
    return folder / "run", folder / "together" / "run"


def test_views_show_the_same(runs):
    one, other = (sv.open(path) for path in runs)
    assert len(os.listdir(other.path / "rollouts")) == 2 + 3
    assert one.steps == other.steps == list(range(1, STEPS, 4))
    assert list(one.rollouts) == list(other.rollouts)
    assert [one.rollouts_at(step).rows for step in one.steps] == [other.rollouts_at(step).rows for step in one.steps]
    assert one.rollouts_at(2).rows == other.rollouts_at(2).rows == []
    assert one.rollout(13, 1, 2).row == other.rollout(13, 1, 2).row
    assert [item.row for item in one.group(17, 0)] == [item.row for item in other.group(17, 0)]
    assert scoreboard(one) == scoreboard(other)
    with pytest.raises(KeyError, match="step 2 has no recorded rollouts"):
        other.rollout(2, 0, 0)
    first, second = (report_view(run).data for run in (one, other))
    assert first == second


def test_a_table_narrows_columns_as_it_narrows_rows(runs):
    table = sv.open(runs[1]).rollouts
    rows = list(sv.open(runs[0]).rollouts)
    for wanted in ({"step": 9}, {"error_kind": "perception"}, {"step": {1, 5}, "grounded": None}, {"sample": "0"},
                   {"reward": lambda value: value > 0.5, "group": (0, 2)}):  # fmt: skip
        narrow = table.where(**wanted)
        again = type(table)(rows).where(**wanted)
        assert list(narrow) == list(again) == narrow.rows and len(narrow) == len(again)
    assert table.where(lambda row: row["tokens"] > 30, step=5).rows == [
        row for row in rows if row["step"] == 5 and row["tokens"] > 30
    ]
    assert table[-1] == rows[-1] and table[0] == rows[0] and repr(table) == repr(type(table)(rows))
    with pytest.raises(KeyError, match="no column colour"):
        table.where(colour="red")
    with pytest.raises(IndexError):
        table[len(rows)]


def test_a_report_lists_no_folder_twice_and_reads_no_file_as_often_as_it_has_steps(runs, monkeypatch):
    run = sv.open(runs[1])
    for kind in ("rollouts", "metrics"):  # as it is once the last file is some seconds old
        os.utime(run.path / kind, (1, 1))
    scans, opened = [], []
    scandir, parquet = os.scandir, pq.ParquetFile.__init__
    monkeypatch.setattr(os, "scandir", lambda path: (scans.append(str(path)), scandir(path))[1])
    monkeypatch.setattr(pq.ParquetFile, "__init__", lambda *a, **k: (opened.append(1), parquet(*a, **k))[1])
    report_view(run)
    assert sorted(path for path in scans if path.endswith(("metrics", "rollouts"))) == [
        str(run.path / "metrics"), str(run.path / "rollouts")
    ]  # fmt: skip
    fresh = sv.open(runs[1])
    before = len(opened)
    assert len(fresh.rollouts) == len(fresh.rollouts)
    assert len(opened) == before + len(os.listdir(run.path / "rollouts"))  # once each


def test_the_latest_rollouts_are_whole_steps_and_a_torn_file_is_left_out(runs, tmp_path, monkeypatch):
    size = len(sv.open(runs[0]).rollouts_at(1))
    for most, kept in ((1, 1), (size, 1), (size + 1, 2), (7 * size - 1, 7), (99 * size, 11)):
        monkeypatch.setattr(columns, "MOST", most)
        for path in runs:
            rows = columns.rollout_columns(sv.open(path), ["reward"])
            assert [row["step"] for row in rows] == [s for s in range(1, STEPS, 4)[-kept:] for _ in range(size)]
    shutil.copytree(runs[1], tmp_path / "run")
    (tmp_path / "run" / "rollouts" / "step-000037.rank0.parquet").write_bytes(b"torn")
    run = sv.open(tmp_path / "run")
    rows = columns.rollout_columns(run, ["reward"])
    assert len(rows) == 10 * size and "could not be read: step 37" in columns.whence(rows, run)
    with pytest.raises(SchemaError, match="step-000037"):
        columns.rollout_columns(run, ["reward"], [33, 37])


def test_a_report_lists_telling_rollouts_of_unusual_steps_of_many(runs, monkeypatch):
    monkeypatch.setattr(board, "STEPS", 2)  # as of a run of thousands
    run, odd = sv.open(runs[1]), {"charts": [{"lines": [{"odd": [{"step": 22}]}]}]}
    assert {item["step"] for item in board.telling([run])} == {1, 41}
    assert {item["step"] for item in of_marks(run, odd, {9})} == {9, 21}


def test_metrics_that_grow_are_those_of_a_fresh_look(tmp_path, monkeypatch):
    for module in (store, metrics):
        monkeypatch.setattr(module, "TOGETHER", 4)
    recorder = store.Recorder(tmp_path)
    recorder.start({})
    run = sv.open(tmp_path)
    for end, back in ((10, 6), (13, 13)):
        for step in range(len(run.metrics.get("a", [[]])[0]) + 1, end + 1):
            recorder.metrics(step, {"a": step / 7} | ({"b": 1.0} if step > 5 else {}))
            assert run.metrics == sv.open(tmp_path).metrics and run.metrics["a"].steps == list(range(1, step + 1))
        store.forget_after(tmp_path, back)  # a resumed run
        assert run.metrics["a"].steps == list(range(1, back + 1)) and run.metrics["b"].steps[0] == 6


def test_the_index_of_the_app_keeps_every_row_while_files_are_put_together(tmp_path, monkeypatch):
    monkeypatch.setattr(together, "TOGETHER", 4)
    monkeypatch.setattr(together, "SETTLED", 0)
    monkeypatch.setattr("segviz.app.index.LEAST", 0)
    write_run(tmp_path / "run", steps=STEPS)
    shelf, index = Shelf([tmp_path]), Index()
    try:
        everything = ask(shelf, index, Question(limit=200, sort="step"))
        read = index._read
        monkeypatch.setattr(index, "_read", lambda *args: None)
        for change in (together.put_together, together.remove_covered):
            change(tmp_path / "run" / "rollouts", 0)
            asked = ask(shelf, index, Question(limit=200, sort="step"))
            assert asked["rows"] == everything["rows"]  # not read yet: those of the files before
        monkeypatch.setattr(index, "_read", read)
        while asked["read"] < asked["files"]:  # in the background
            asked = ask(shelf, index, Question(limit=200, sort="step"))
            assert asked["rows"] == everything["rows"]
        assert asked["files"] == 5
        store.forget_after(tmp_path / "run", 20)
        asked = {"read": 0, "files": 1}
        while asked["read"] < asked["files"]:
            asked = ask(shelf, index, Question(limit=200, sort="step"))
        assert asked["rows"] == [row for row in everything["rows"] if row["step"] <= 20]
    finally:
        index.close()
