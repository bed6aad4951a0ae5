"""A file system that does not answer: opening a file there never returns, and no signal frees who tries.

The hang is real where the system lets us make one: whoever opens a marked file waits for a permission that never comes
(fanotify, as virus scanners use it; needs root), or nothing that is asked of a folder is answered (a file system of
FUSE without anybody behind it, mounted where no other process sees it). What needs no root is tried with a reader that
waits.
"""

import ctypes
import json
import os
import signal
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from segviz.app import index as index_module
from segviz.app.patience import Hangs, Patience
from segviz.app.shelf import Shelf
from tests.app.served import get, read_all, serving, told
from tests.fakes.fake_run import write_run
from tests.fakes.forks import forked
from tests.torture.disks import apart, called

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


#: Every route that reads something of a run, as a page asks it. RUN, SHA: a run's name, a picture's.
ROUTES = (
    "/segpo/api/live?run=RUN", "/segpo/api/found?run=RUN", "/segpo/api/rollouts?run=RUN", "/segpo/api/failures?run=RUN",
    "/segpo/api/table.csv?run=RUN", "/segpo/api/steps?run=RUN", "/segpo/api/prompts?run=RUN",
    "/segpo/api/prompt?run=RUN&example=x", "/segpo/picture/RUN/SHA", "/view/rightness?run=RUN", "/view/RUN/report",
    "/view/RUN/over_training", "/versus?a=RUN/1/0/0&b=good/1/0/0", "/view/RUN/rollout/1/0/0",
    "/view/RUN/methods/1/0/0", "/view/RUN/boundaries/1/0/0", "/inspect/RUN/forensics/1", "/inspect/RUN/audit",
    "/inspect/RUN/lift", "/segpo/api/asked?run=RUN&step=1&group=0&sample=0", "/asked/RUN/000001-0-0-a",
    "/segpo/api/play/choices", "/segpo/api/play/problem?run=RUN", "/segpo/api/runs", "/",
)  # fmt: skip
HUNG = ("", "rollouts", "metrics", "images", "credit", "nodes", "eval", "checkpoints")  #: what of a run; "": all


def routes_on_hanging_folders(folder: str) -> None:
    """The app opens good runs; then folders of them hang; whatever is asked is answered."""
    place, told = Path(folder), {}
    try:
        runs = {f"{part or 'all'}-hangs": part for part in HUNG} | {"good": None}
        for name in runs:
            for part in HUNG:
                (write_run(place / "runs" / name, steps=2) if not part else place / "runs" / name / part).mkdir(
                    exist_ok=True
                )
        sha = next((place / "runs" / "good" / "images").iterdir()).stem
        try:
            apart()
            devices = [os.open("/dev/fuse", os.O_RDWR) for part in HUNG]
        except OSError as error:
            told["cannot"] = str(error)
            return

        def ask(name: str, route: str) -> tuple[str, str, int, bytes]:
            status, _, body = get(address, route.replace("RUN", name).replace("SHA", sha))
            return name, route, status, body

        with serving(place / "runs", fork=False) as (address, process), ThreadPoolExecutor(8) as pool:
            before = {route: ask("good", route)[2] for route in ROUTES}
            for name in runs:
                assert ask(name, "/segpo/api/live?run=RUN")[2] == 200
            for (name, part), device in zip(runs.items(), devices, strict=False):
                options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
                called("mount", b"none", os.fsencode(place / "runs" / name / part), b"fuse", 0, options)
            for _ in range(2):
                hung = list(pool.map(lambda one: ask(*one), [(n, r) for r in ROUTES for n in runs if n != "good"]))
                for name, route, status, body in hung:
                    fine = status == before[route] or b"does not answer" in body or "/picture/" in route
                    assert fine and status != 500, (name, route, status, body[:300])
            for route in ROUTES:
                assert ask("good", route)[2] == before[route], route
            words = {run["name"]: run["words"] for run in json.loads(ask("good", "/segpo/api/runs")[3])["runs"]}
            assert "does not answer" in words["all-hangs"] and "does not" not in words["good"], words
            told["refused"] = sum(b"does not answer" in body for *_, body in hung)
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
    except BaseException:
        told["wrong"] = traceback.format_exc()
    finally:
        (place / "told.json").write_text(json.dumps(told))
        os._exit(0)  # closes the devices: whoever still waits is let go


@pytest.mark.slow
def test_no_route_waits_for_a_folder_that_hangs(tmp_path):
    """Eight runs of which something hangs after the app has opened them, every route asked of each, twice."""
    process = forked.Process(target=routes_on_hanging_folders, args=(str(tmp_path),))
    process.start()
    process.join()
    told = json.loads((tmp_path / "told.json").read_text())
    if "cannot" in told:
        pytest.skip(f"this system lets us make no folder that hangs: {told['cannot']}")
    assert "wrong" not in told, told["wrong"]
    assert told["refused"] >= 60  # half of the routes read what hangs


def test_who_works_is_not_taken_for_hanging(tmp_path):
    """Far longer than the patience: a long report."""
    patience = Patience()

    def report() -> int:
        until = time.thread_time() + 1.5
        while time.thread_time() < until:
            sum(range(1000))
        return 7

    assert patience.ask(tmp_path, report, 0.3) == 7 and not patience.stuck(tmp_path)
