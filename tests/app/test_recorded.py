"""Counterfactuals of recorded rollouts in the app: what is asked of which checkpoint, what is refused, what is kept."""

import http.client
import json
import time

import pytest

import segviz as sv
from segviz.app.recorded import Recorded, folder, kept, kept_page, source_of
from segviz.app.shelf import Missing, Shelf
from segviz.app.studio import Source, Studio
from tests.app.served import get, serving, told
from tests.app.test_playground import trained
from tests.fakes.fake_run import write_run

ROLLOUT = {"run": "mine", "step": 1, "group": 0, "sample": 0}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = trained(tmp_path_factory.mktemp("asked") / "runs")
    write_run(folder / "bare", steps=1)
    return folder


@pytest.fixture(scope="module")
def address(runs):
    with serving(runs) as (address, _):
        yield address


def post(address, body):
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        connection.request("POST", "/segpo/api/asked", body if isinstance(body, bytes) else json.dumps(body))
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def done(address, **asked):
    """The end of a request."""
    status, job = post(address, ROLLOUT | asked)
    assert status == 200, job
    deadline = time.monotonic() + 240
    while job["state"] in ("waiting", "running"):
        assert time.monotonic() < deadline, job
        time.sleep(0.2)
        job = told(address, "play/job", job=job["job"])[1]
    return job


def before(path):
    return {file: file.stat().st_mtime_ns for file in path.rglob("*")}


def test_a_checkpoint_writes_on_and_the_result_is_kept_beside_the_run(address, runs):
    untouched = before(runs / "mine")
    choices = told(address, "asked", **ROLLOUT)[1]
    rollout = sv.open(runs / "mine").rollout(1, 0, 0)
    assert len(choices["segments"]) == len(rollout.segments) and choices["checkpoint"] == 1
    assert choices["results"] == [] and "other" not in choices["corruptions"]
    words = {}
    for ask, more in (("both", {}), ("on", {}), ("without", {}), ("spoil", {"corruption": "blank"})):
        job = done(address, ask=ask, segment=0, number=2, **more)
        assert job["state"] == "done" and not job["result"]["problem"], job
        words[job["result"]["name"]] = ask
        status, headers, page = get(address, f"/play/{job['job']}/0?theme=dark")
        assert status == 200 and "sandbox" in headers["Content-Security-Policy"]
        again = get(address, f"/asked/mine/{job['result']['name']}?theme=dark")[2]
        assert len(again) == len(page) and b'data-segviz-theme="dark"' in again
    results = told(address, "asked", **ROLLOUT)[1]["results"]
    assert [words[one["name"]] for one in results] == ["spoil", "without", "on", "both"]
    assert results[0]["words"] == "read with the picture spoiled: blank"
    assert results[3]["words"] == "sampled on from before and after segment 1"
    assert before(runs / "mine") == untouched and list(Shelf([runs]).places()) == ["bare", "mine"]
    shelf = Shelf([runs])
    sides = {
        words[name]: [side["name"] for side in kept_page(shelf, "mine", name).data.get("sides", [])] for name in words
    }
    assert sides == {"both": ["before", "after"], "on": ["after"], "without": ["before"], "spoil": []}


@pytest.mark.parametrize(
    ("asked", "status", "words"),
    [
        ({"ask": "dance"}, 400, "ask must be one of"),
        ({"ask": "on", "segment": 999}, 400, "segment must be a whole number"),
        ({"ask": "on", "segment": 0, "number": 33}, 400, "number must be a whole number from 1 to 32"),
        ({"ask": "on", "segment": True}, 400, "segment"),
        ({"ask": "spoil", "corruption": "other"}, 400, "corruption must be one of"),
        ({"ask": "on", "segment": 0, "run": "gone"}, 404, "no run"),
        ({"ask": "on", "segment": 0, "group": 99}, 404, "no group 99"),
        ({"ask": "on", "segment": 0, "run": "bare"}, 404, "no checkpoint to ask"),
    ],
)
def test_what_cannot_be_asked_is_said(address, asked, status, words):
    code, answer = post(address, ROLLOUT | asked)
    assert code == status and words in answer["error"]


def test_bodies_are_bounded_and_names_are_not_paths(address):
    assert post(address, b"{" * 20_000)[0] in (400, 413)
    assert post(address, b"[1]")[0] == 400
    for name in ("..%2F..%2Fetc", "000001-0-0-zz", "000001-0-0-abc"):
        assert get(address, f"/asked/mine/{name}")[0] == 404


def test_the_checkpoint_is_the_newest_before_the_step(tmp_path):
    path = write_run(tmp_path / "run", steps=1)
    for step in (10, 20):
        (path / "checkpoints" / f"step-{step:06d}").mkdir(parents=True)
        (path / "checkpoints" / f"step-{step:06d}" / "trainer.json").write_text("{}")
    place = Shelf([tmp_path]).place("run")
    asked = {step: source_of(place, step) for step in (5, 10, 11, 20, 21)}
    # step 20 samples with what step 19 left: the checkpoint of step 20 comes after it
    assert {step: source.step for step, source in asked.items()} == {5: 10, 10: 10, 11: 10, 20: 10, 21: 20}
    assert source_of(place, 21) == Source("run", 20)


def test_results_that_lie_elsewhere_or_are_torn_are_not_shown(tmp_path):
    write_run(tmp_path / "runs" / "run", steps=1)
    (tmp_path / "secret").mkdir()
    name = "000001-0-0-abc"
    (tmp_path / "secret" / f"{name}.json").write_text(
        '{"kind": "roles", "title": "t", "data": {}, "words": "w", "at": 1}'
    )
    shelf = Shelf([tmp_path / "runs"])
    place = shelf.place("run")
    folder(place).symlink_to(tmp_path / "secret")
    assert kept(place, 1, 0, 0) == []
    with pytest.raises(Missing, match="no such result"):
        kept_page(shelf, "run", name)
    folder(place).unlink()
    folder(place).mkdir()
    for torn in ("{", "[]", '{"kind": "script", "title": "t", "data": {}}'):
        (folder(place) / f"{name}.json").write_text(torn)
        with pytest.raises(Missing, match="cannot be read"):
            kept_page(shelf, "run", name)


def test_a_request_that_is_cancelled_keeps_nothing(runs):
    studio = Studio(Shelf([runs]))
    try:
        job = Recorded(studio.shelf, studio).ask(ROLLOUT | {"ask": "both", "segment": 0, "number": 1})
        studio.cancel(job.name)
        deadline = time.monotonic() + 120
        while job.state in ("waiting", "running"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert job.state == "stopped" and job.result is None
    finally:
        studio.close()
