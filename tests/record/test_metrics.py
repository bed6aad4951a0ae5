"""Metrics of a long run, put together every so many steps while others read."""

import os
import threading

import pytest

import segviz as sv
from segpo_core.record import metrics, store
from segviz.app.metrics import MetricLog


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(metrics, "TOGETHER", 10)
    monkeypatch.setattr(store, "TOGETHER", 10)


def record(path, steps, first=0):
    recorder = store.Recorder(path)
    if not first:
        recorder.start({"method": "grpo", "max_steps": steps})
    for step in range(first, steps + 1):
        recorder.metrics(
            step, {"loss": step / 7, "reward": -float(step)} | ({"eval/answer": 0.5} if step % 5 == 0 else {})
        )
    assert recorder.failures == 0
    return recorder


def told(path):
    return [(r["step"], r["name"], r["value"]) for r in store.read_metrics(path).to_pylist()]


def test_no_number_changes_and_files_are_few(tmp_path, monkeypatch):
    record(tmp_path / "run", 34)
    assert sorted(os.listdir(tmp_path / "run" / "metrics")) == [
        f"step-{step:06d}.parquet" for step in (0, 10, 20, 30, 31, 32, 33, 34)
    ]
    monkeypatch.setattr(store, "TOGETHER", 10**9)  # never
    record(tmp_path / "plain", 34)
    assert len(os.listdir(tmp_path / "plain" / "metrics")) == 35
    assert told(tmp_path / "run") == told(tmp_path / "plain")
    assert store.metric_steps(tmp_path / "run") == list(range(35))
    assert sv.open(tmp_path / "run").metrics == sv.open(tmp_path / "plain").metrics


@pytest.mark.parametrize("step", [10, 17, 20, 33])
def test_a_resumed_run_keeps_what_was_before(tmp_path, step):
    record(tmp_path / "run", 34)
    whole = told(tmp_path / "run")
    store.forget_after(tmp_path / "run", step)
    assert told(tmp_path / "run") == [row for row in whole if row[0] <= step]
    record(tmp_path / "run", 34, step + 1)
    assert told(tmp_path / "run") == whole


def test_killed_between_the_rename_and_the_removal(tmp_path, monkeypatch):
    """Every step is there twice: it counts once, and the next start tidies up."""
    monkeypatch.setattr(metrics, "_remove", lambda paths: None)
    record(tmp_path / "run", 20)
    monkeypatch.undo()
    assert len(os.listdir(tmp_path / "run" / "metrics")) == 21
    assert [row[0] for row in told(tmp_path / "run") if row[1] == "loss"] == list(range(21))
    assert sv.open(tmp_path / "run").metrics["loss"].steps == list(range(21))
    log = MetricLog(tmp_path / "run", tmp_path)
    log.refresh()
    while log.unread:
        log.refresh()
    assert log.series()["loss"].steps == list(range(21))
    monkeypatch.setattr(metrics, "TOGETHER", 10)
    store.Recorder(tmp_path / "run")
    assert len(os.listdir(tmp_path / "run" / "metrics")) == 3
    assert [row[0] for row in told(tmp_path / "run") if row[1] == "loss"] == list(range(21))


def test_readers_find_every_step_at_any_time(tmp_path):
    recorder = record(tmp_path / "run", 5)
    done, wrong = threading.Event(), []

    def look():
        run, log = sv.open(tmp_path / "run"), MetricLog(tmp_path / "run", tmp_path)
        while not done.is_set():
            log.refresh()
            for steps in (
                [step for step, name, _ in told(tmp_path / "run") if name == "loss"],
                run.metrics["loss"].steps,
                log.series()["loss"].steps if not log.unread else [0],
            ):
                if steps != list(range(len(steps))):
                    wrong.append(steps)

    thread = threading.Thread(target=look)
    thread.start()
    for step in range(6, 121):
        recorder.metrics(step, {"loss": step / 7})
    done.set()
    thread.join()
    assert not wrong
    assert store.metric_steps(tmp_path / "run") == list(range(121))
