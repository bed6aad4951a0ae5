"""A file system that does not answer: opening a file there never returns, and no signal frees who tries.

The hang is real where the system lets us make one: whoever opens a marked file waits for a permission that never comes
(fanotify, as virus scanners use it; needs root). What needs no root is tried with a reader that waits.
"""

import ctypes
import json
import os
import signal
import threading
import time
from contextlib import contextmanager

import pytest

from segviz.app import index as index_module
from segviz.app.patience import Hangs, Patience
from segviz.app.shelf import Shelf
from tests.app.served import get, read_all, serving, told
from tests.fakes.fake_run import write_run

CONTENT, ADD, OPEN_PERM, HERE = 4, 1, 0x10000, -100


@contextmanager
def hanging(*paths):
    """Whoever opens one of the files waits, until the end of the block."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fanotify_mark.argtypes = [ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p]
    group = libc.fanotify_init(CONTENT, os.O_RDONLY)
    if group < 0:
        pytest.skip(f"this system lets us make no file that hangs: {os.strerror(ctypes.get_errno())}")
    try:
        for path in paths:
            if libc.fanotify_mark(group, ADD, OPEN_PERM, HERE, os.fsencode(path)):
                pytest.skip(f"this system lets us make no file that hangs: {os.strerror(ctypes.get_errno())}")
        yield
    finally:
        os.close(group)


@pytest.mark.slow
def test_one_run_that_hangs_stops_no_other(tmp_path):
    runs = {name: write_run(tmp_path / name, steps=2) for name in ("good", "table", "curves", "manifest")}
    files = (
        runs["table"] / "rollouts" / "step-000001.rank0.parquet", runs["curves"] / "metrics" / "step-000001.parquet",
        runs["manifest"] / "run.json",
    )  # fmt: skip
    with hanging(*files), serving(tmp_path) as (address, process):
        for _ in range(2):
            shown = {run["name"]: run for run in json.loads(get(address, "/segpo/api/runs")[2])["runs"]}
            assert "does not answer" in shown["manifest"]["words"] and shown["good"]["state"] == "finished"
            for name in runs:
                status, answer = told(address, "rollouts", run=name)
                assert status == 200 and ("does not answer" in str(answer["problems"])) == (name == "table"), name
                page = told(address, "live", run=name)[1]
                assert (page["gone"] == []) == (name == "good"), (name, page["gone"])
            assert len(told(address, "rollouts", run="good")[1]["rows"]) > 0
            assert get(address, "/view/good/rollout/1/0/0")[0] == 200
            status, _, body = get(address, "/view/manifest/rollout/1/0/0")
            assert status == 404 and b"does not answer" in body
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_a_reader_that_waits_holds_nobody_else(tmp_path, monkeypatch, index):
    """And when the file comes at last, it is read."""
    for name in ("a", "b"):
        write_run(tmp_path / name, steps=2)
    shelf, comes, read = Shelf([tmp_path]), threading.Event(), index_module.read_table

    def slow(path, schema):
        if "/a/" in str(path):
            comes.wait()
        return read(path, schema)

    monkeypatch.setattr(index_module, "read_table", slow)
    ask = Patience.ask
    monkeypatch.setattr(
        Patience, "ask", lambda self, place, work: ask(self, place, work, 0.2 if place.name == "a" else 60)
    )
    try:
        assert "does not answer" in index.refresh(shelf.place("a")).problems[""]
        assert read_all(shelf, index, run="b")["rows"]
    finally:
        comes.set()
        monkeypatch.undo()
    deadline = time.monotonic() + 60
    while index.patience.stuck(tmp_path / "a"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert read_all(shelf, index, run="a")["rows"]


def test_what_hangs_is_asked_once(tmp_path):
    patience, comes = Patience(), threading.Event()
    try:
        for _ in range(3):
            with pytest.raises(Hangs, match="does not answer"):
                patience.ask(tmp_path, comes.wait, 0.05)
        assert [t.name for t in threading.enumerate()].count("reads") == 1
        seen = patience.each([tmp_path, tmp_path / "b"], lambda path: path.name, 60)
        assert seen == {tmp_path / "b": "b"}
    finally:
        comes.set()
    for thread in threading.enumerate():
        if thread.name == "reads":
            thread.join(30)
    assert patience.ask(tmp_path, lambda: 7, 60) == 7
    with pytest.raises(KeyError):
        patience.ask(tmp_path, lambda: {}["no"], 60)
    first = threading.Event()
    assert patience.each([tmp_path / "x", tmp_path / "y"], lambda p: p.name == "x" and first.wait(30), 0.2) == {
        tmp_path / "y": False
    }
    first.set()
