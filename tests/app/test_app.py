"""The app without a browser: what it reads, what it answers, and what it refuses."""

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from base64 import b64encode
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, urlencode

import numpy as np
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

import segviz as sv
from segpo_core.cli import main
from segpo_core.record.store import Recorder, forget_after, step_name
from segviz.app.index import Index
from segviz.app.live import Live, gathered, strip
from segviz.app.metrics import POINTS, MetricLog, thin
from segviz.app.rollouts import Question, ask, snippet
from segviz.app.shelf import Missing, Shelf
from segviz.app.start import Settings, Starter
from segviz.runs.columns import question
from segviz.views.board import board_data
from tests.fakes.fake_run import HOSTILE, hostile_row, row, write_run

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def serving(*arguments, **environment):
    """The real app in a process of its own: (its address as host:port, the process)."""
    command = [sys.executable, "-m", "segpo_core.cli", "app", *map(str, arguments), "--port", "0"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=os.environ | environment)
    try:
        said = ""
        while not (found := re.search(r"app at http://([^/]+)/", said)):
            line = process.stderr.readline()
            assert line, f"the app ended: {said}"
            said += line
        threading.Thread(target=process.stderr.read, daemon=True).start()  # a full pipe would stop it
        yield found[1], process
    finally:
        process.terminate()
        process.wait(20)


def get(address, path, **headers):
    """(status, headers, body) of a request whose path is sent as it is, nothing made tidy."""
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        connection.putrequest("GET", path, skip_host="Host" in headers)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def told(address, path, **parameters):
    status, _, body = get(address, f"/segpo/api/{path}?{urlencode(parameters, doseq=True)}")
    return status, json.loads(body)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "first", extra=[hostile_row()])
    write_run(folder / "second", "grpo", seed=3)
    return folder


@pytest.fixture(scope="module")
def address(runs):
    with serving(runs) as (address, _):
        yield address


@pytest.fixture
def index():
    index = Index()
    yield index
    index.close()


def read_all(shelf, index, **question):
    """The answer once everything is in the index."""
    deadline = time.monotonic() + 60
    while True:
        answer = ask(shelf, index, Question(**question))
        if answer["read"] == answer["files"]:
            return answer
        assert time.monotonic() < deadline
        time.sleep(0.05)


def key(row):
    return row["step"], row["group"], row["sample"]


# what is on the shelf


def test_runs_are_told_with_their_state(tmp_path):
    write_run(tmp_path / "done", steps=4, rollouts=False)
    (tmp_path / "half" / "metrics").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "newer").mkdir()
    (tmp_path / "newer" / "run.json").write_text('{"schema_version": 99}')
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "run.json").write_text('{"schema_ver')
    Recorder(tmp_path / "fresh").start({"method": "grpo", "max_steps": 9})
    found = {run["name"]: run for run in Shelf([tmp_path]).described()}
    assert set(found) == {"done", "half", "newer", "torn", "fresh"}
    assert (found["done"]["state"], found["done"]["step"]) == ("finished", 4)
    assert found["done"]["label"] == "SAPO (segment-aligned)"
    assert found["fresh"]["state"] == "running" and "no step yet" in found["fresh"]["words"]
    assert {found[name]["state"] for name in ("half", "newer", "torn")} == {"unreadable"}
    assert "copied" in found["half"]["words"] and "schema version 99" in found["newer"]["words"]


def test_a_directory_may_be_a_run_and_names_stay_apart(tmp_path):
    for folder in ("a", "b"):
        write_run(tmp_path / folder / "same", steps=2, rollouts=False)
    assert list(Shelf([tmp_path / "a", tmp_path / "b"]).places()) == ["same", "b~same"]
    assert list(Shelf([tmp_path / "a" / "same"]).places()) == ["same"]
    assert Shelf([tmp_path / "nowhere"]).described() == []


def test_nothing_outside_is_read_through_links(tmp_path, index):
    secret = write_run(tmp_path / "secret", steps=2)
    mine = write_run(tmp_path / "runs" / "mine", steps=6)
    (tmp_path / "runs" / "link").symlink_to(secret)
    (tmp_path / "runs" / "..hidden").mkdir()
    shelf = Shelf([tmp_path / "runs"])
    assert list(shelf.places()) == ["mine"]
    # a single file, then a whole folder, then the manifest
    stolen = mine / "rollouts" / "step-000099.rank0.parquet"
    stolen.symlink_to(next((secret / "rollouts").iterdir()))
    answer = read_all(shelf, index, run="mine")
    assert 99 not in {row["step"] for row in answer["rows"]} and "leads outside" in answer["problems"][0]
    with pytest.raises(Missing, match="leads out"):
        shelf.open("mine").rollout(99, 0, 0)
    image = next((secret / "images").iterdir())
    (mine / "images" / f"{'ab' * 32}.png").symlink_to(image)
    assert shelf.open("mine").image("ab" * 32) is None
    assert shelf.open("mine").image(next((mine / "images").glob("[!a]*")).stem) is not None
    shutil.rmtree(mine / "credit", ignore_errors=True)
    (mine / "credit").symlink_to(secret)
    with pytest.raises(Missing, match="credit is a link"):
        shelf.open("mine")
    (mine / "credit").unlink()
    os.rename(mine / "rollouts", mine / "own")
    (mine / "rollouts").symlink_to(secret / "rollouts")
    time.sleep(0.3)  # the index looks no more often
    answer = read_all(shelf, index, run="mine")
    assert not answer["rows"] and "leads outside" in answer["problems"][0]
    (mine / "run.json").unlink()
    (mine / "run.json").symlink_to(secret / "run.json")
    assert shelf.described()[0]["state"] == "unreadable"


# metrics


def test_metrics_are_read_once_and_follow_the_run(tmp_path):
    path = write_run(tmp_path / "run", steps=8, rollouts=False)
    log = MetricLog(path, tmp_path)
    log.refresh()
    whole = sv.open(path).metrics
    assert {name: (series.steps, series.values) for name, series in log.series().items()} == {
        name: (series.steps, pytest.approx(series.values)) for name, series in whole.items()
    }
    Recorder(path).metrics(9, {"reward": 0.125})
    time.sleep(0.25)
    log.refresh()
    assert log.series()["reward"].values[-1] == 0.125 and log.series()["reward"].steps[-1] == 9
    forget_after(path, 4)  # resumed from step 4
    time.sleep(0.25)
    log.refresh()
    assert log.series()["reward"].steps == [1, 2, 3, 4]
    (path / "metrics" / "step-000005.parquet").write_bytes(b"PAR1half")
    time.sleep(0.25)
    log.refresh()
    assert "being copied" in log.problems["step-000005.parquet"] and log.series()["reward"].steps[-1] == 4
    shutil.rmtree(path)
    time.sleep(0.25)
    log.refresh()
    assert log.series() == {}


@pytest.mark.parametrize("count", [1, POINTS, POINTS + 1, 5000, 5001])
def test_long_curves_are_thinned_around_the_truth(count):
    steps = np.arange(1, count + 1)
    values = np.sin(steps / 300) + 2
    series = thin(steps[::-1], values[::-1])
    assert len(series.steps) <= POINTS + 2 and series.steps == sorted(series.steps)
    assert (series.steps[-1], series.values[-1]) == (count, values[-1])
    assert np.allclose(series.values, np.sin(np.array(series.steps) / 300) + 2, atol=0.06)
    more = thin(np.arange(1, count + 2), np.sin(np.arange(1, count + 2) / 300) + 2)
    if count == 5000:  # points far back stay where they were while the run goes on
        assert more.steps[:300] == series.steps[:300] and more.values[:300] == series.values[:300]


# the table


def test_the_table_answers_as_the_run_itself(runs, index):
    shelf = Shelf([runs])
    run = sv.open(runs / "first")
    everything = [dict(row) for row in run.rollouts]

    def says(row, words):
        asked = run.rollout(row["step"], row["group"], row["sample"])
        return words in (question(asked.row["prompt"]) + asked.text).lower()

    tests = {
        (("text", "how many"),): lambda r: says(r, "how many"),  # a word of the question
        (("answer", "right"),): lambda r: r["answer_right"] is True,
        (("perception", "wrong"), ("answer", "right")): lambda r: r["perception_right"] is False and r["answer_right"],
        (("error", "reasoning"),): lambda r: r["error_kind"] == "reasoning",
        (("error", "none"),): lambda r: r["error_kind"] is None,
        (("step_from", 5), ("step_to", 9)): lambda r: 5 <= r["step"] <= 9,
        (("reward_from", 0.5),): lambda r: r["reward"] >= 0.5,
        (("tokens_to", 45),): lambda r: r["tokens"] <= 45,
        (("spread_from", 1.0),): lambda r: r["lowest"] is not None and r["highest"] - r["lowest"] >= 1,
        (("method", "sapo"), ("finished", "no")): lambda r: False,
    }
    for filters, test in tests.items():
        answer = read_all(shelf, index, run="first", limit=200, **dict(filters))
        wanted = sorted(key(r) for r in everything if test(r))
        assert sorted(map(key, answer["rows"])) == wanted and answer["total"] == len(wanted), filters
        assert answer["every"] == len(everything)
    for name, column in (("tokens", "tokens"), ("reward", "reward"), ("lowest", "lowest")):
        values = [r[column] for r in read_all(shelf, index, run="first", sort=f"-{name}", limit=200)["rows"]]
        known = [v for v in values if v is not None]
        assert known == sorted(known, reverse=True) and values[: len(known)] == known, "what is not known comes last"


def test_pages_cover_every_rollout_once(runs, index):
    shelf = Shelf([runs])
    total = read_all(shelf, index, limit=0)["total"]
    seen = []
    for offset in range(0, total, 7):
        seen += [(r["run"], *key(r)) for r in read_all(shelf, index, offset=offset, limit=7, sort="reward")["rows"]]
    assert len(seen) == total == len(set(seen)) and {name for name, *_ in seen} == {"first", "second"}


def test_texts_are_found_in_any_case_and_shown_where_they_stand(runs, index):
    shelf = Shelf([runs])
    word = "IS HACKED"
    assert read_all(shelf, index, text=word)["total"] == 0
    answer = read_all(shelf, index, text="ONERROR=WINDOW")
    (found,) = answer["rows"]
    assert found["group"] == 90 and found["match"] == "onerror=window"
    assert found["before"].endswith("<img src=x ") and found["text"].startswith(".hacked=1>")
    assert snippet("short", "") == ("", "", "short") and snippet("abc", "zz")[2] == "abc"
    assert snippet("x" * 500 + "needle" + "y" * 500, "needle")[0].startswith("…x")


def test_the_index_follows_what_training_does(tmp_path, index):
    path = write_run(tmp_path / "run", steps=24)
    shelf = Shelf([tmp_path])
    steps = sv.open(path).steps
    assert read_all(shelf, index, limit=0)["total"] == 12 * len(steps)
    recorder = Recorder(path)
    recorder.rollouts(25, [row(25, 0, 0, "<think> 1 </think>")], {})
    time.sleep(0.25)
    assert read_all(shelf, index, limit=1)["rows"][0]["step"] == 25
    forget_after(path, 9)
    recorder.rollouts(9, [row(9, 0, 0, "<think> anew </think>")], {})
    time.sleep(0.25)
    answer = read_all(shelf, index, limit=200)
    assert sorted({r["step"] for r in answer["rows"]}) == [1, 5, 9] and answer["total"] == 25
    (path / "rollouts" / f"{step_name(13)}.rank0.parquet").write_bytes(b"PAR1 and then nothing")
    time.sleep(0.25)
    answer = read_all(shelf, index, limit=0)
    assert answer["total"] == 25 and "step-000013" in answer["problems"][0]
    shutil.rmtree(path)
    with pytest.raises(Missing, match="no run 'run' here"):
        ask(shelf, index, Question(run="run"))
    assert ask(shelf, index, Question())["every"] == 0


@pytest.mark.parametrize(
    "raw, words",
    [
        ({"answr": "right"}, "there is no filter 'answr'"),
        ({"answer": "yes"}, "must be one of right, wrong, unknown"),
        ({"sort": "text; DROP TABLE rollouts"}, "sort is"),
        ({"step_from": "a"}, "step_from must be a number"),
        ({"reward_to": "nan"}, "must be a finite number"),
        ({"limit": "100000"}, "between 0 and 200"),
        ({"offset": "-1"}, "0 or more"),
    ],
)
def test_questions_the_table_does_not_know_are_told(raw, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        Question.parse(raw)


# live


def test_live_shows_what_the_run_says(runs, index):
    live = Live(Shelf([runs]), index)
    page = json.loads(live.page(["first", "second", "gone"]))
    titles = [chart["title"] for chart in page["board"]["charts"]]
    assert "Reward" in titles and "Training completions" in titles and "Is it the seeing or the reasoning?" in titles
    assert [run["run"] for run in page["newest"]] == ["first", "second"] and page["newest"][0]["cards"]
    assert {card["step"] for card in page["newest"][0]["cards"]} == {21}
    assert page["gone"][0]["name"] == "gone" and "no run 'gone'" in page["gone"][0]["words"]
    assert live.page(["first", "second", "gone"]) == json.dumps(page, ensure_ascii=False, separators=(",", ":"))
    assert json.loads(live.page([]))["board"] is None


def test_metrics_that_belong_together_share_a_chart(tmp_path):
    path = write_run(tmp_path / "run", steps=3, rollouts=False)
    Recorder(path).metrics(4, {"time/sample": 1.5, "time/update": 0.5, "train/reasoning": 0.25, "step_kl": 0.01})
    board = gathered(board_data([sv.open(path)]))
    charts = {chart["title"]: chart for chart in board["charts"]}
    assert {(ln["label"], ln["y"][-1]) for ln in charts["Where a step's time goes"]["lines"]} == {
        ("sample", 1.5), ("update", 0.5)
    }  # fmt: skip
    assert {ln["label"] for ln in charts["Is it the seeing or the reasoning?"]["lines"]} == {"perception", "reasoning"}
    assert charts["KL of the step's update"]["lines"][0]["y"] == [0.01]
    assert not {"time/sample", "step_kl", "train/reasoning"} & {chart["title"] for chart in board["other"]}


def test_a_card_shows_credit_that_was_not_assigned_as_such():
    assert strip([0, 2], [2, 4], [1.0, None]) == [10, 10, -99, -99]
    assert strip([0, 1, 2], [1, 2, 3], [-1.0, 0.0, 0.5]) == [-10, 0, 5]
    assert strip(None, None, None) == [] == strip([0], [2, 3], [1.0])
    assert len(strip([0], [1000], [0.5])) == 64


# the server


def test_clients_in_python_ask_the_table(address, runs):
    client = Client(f"http://{address}/", verbose=False)
    answer = client.predict(
        {"run": "first", "error": "perception", "sort": "-tokens", "limit": 3}, api_name="/rollouts"
    )
    assert len(answer["rows"]) == 3 and {row["error_kind"] for row in answer["rows"]} == {"perception"}
    assert answer["rows"][0]["tokens"] >= answer["rows"][2]["tokens"]
    with pytest.raises(AppError, match="there is no filter 'eror'"):
        client.predict({"eror": "x"}, api_name="/rollouts")
    with pytest.raises(AppError, match="no run 'nope'"):
        client.predict({"run": "nope"}, api_name="/rollouts")
    assert b"gradio" in get(address, "/")[2].lower()


def test_pages_of_rollouts_come_with_their_own_policy(address):
    status, headers, body = get(address, "/view/first/rollout/1/90/0")
    page = body.decode()
    assert status == 200 and "sandbox allow-scripts" in headers["Content-Security-Policy"]
    assert "default-src 'none'" in page and "allow-same-origin" not in headers["Content-Security-Policy"]
    assert HOSTILE[0] not in page.partition('id="segviz-data"')[2].partition("</script>")[0]
    status, headers, body = get(address, "/view/first/rollout/1/0/1?download=1")
    assert headers["Content-Disposition"] == 'attachment; filename="first-rollout-1-0-1.html"'
    assert b"first \xc2\xb7 step 1" in body
    assert b'data-segviz-theme="dark"' in get(address, "/view/first/rollout/1/0/1?theme=dark")[2]
    assert b"onload" not in get(address, "/view/first/rollout/1/0/1?theme=dark%22onload=1")[2][:200]
    status, _, body = get(address, "/view/first/methods/1/0/1")
    assert status == 200 and b"SAPO (segment-aligned)" in body


@pytest.mark.parametrize(
    "path, words",
    [
        ("/view/nope/rollout/1/0/0", "no run"),
        ("/view/first/rollout/2/0/0", "step 2 has no recorded rollouts"),
        ("/view/first/rollout/1/77/0", "no group 77"),
        ("/view/first/rollout/x/0/0", "no such page"),
        ("/view/first/dance/1/0/0", "no such page"),
        ("/view/%3Cimg%20src=x%20onerror=alert(1)%3E/rollout/1/0/0", "&lt;img"),
    ],
)
def test_what_is_not_there_is_said_in_words(address, path, words):
    status, headers, body = get(address, path)
    assert (
        status == 404
        and words in body.decode()
        and b"<img" not in body
        and "sandbox" in headers["Content-Security-Policy"]
    )


def test_no_file_outside_the_runs_is_served(address, runs):
    outside = runs.parent / "secret.txt"
    outside.write_text("the secret")
    (runs / "first" / "images" / "leak.png").symlink_to(outside)
    up = "..%2f" * 8
    places = [str(outside), "../secret.txt", "/etc/passwd", str(runs / "first" / "run.json"), "etc/passwd%00.png"]
    paths = ["/" + "../" * 9 + "etc/passwd", "//etc/passwd", f"/{up}etc/passwd", "/%2e%2e/%2e%2e/%2e%2e/etc/passwd"]
    paths += [f"{front}{quote(place, safe='/%')}" for place in places for front in (
        "/file=", "/gradio_api/file=", "/gradio_api/file/", "/gradio_api/stream/", "/static/", "/assets/", "/theme/",
        "/custom_component/", "/segpo/", "/view/", "/view/first/", "/gradio_api/proxy=file://",
    )]  # fmt: skip
    paths += [f"/view/{run}/rollout/1/0/0" for run in (
        "..", "%2e%2e", "..%2f..", "%2e%2e%2ffirst", "first%2f..%2f..", "first%00", "%00",
        quote(str(runs / "first"), safe=""), "..%5c..", "first%2fimages", "%252e%252e",
    )]  # fmt: skip
    paths += ["/view/first/rollout/1/0/..%2f..%2f", "/view/first/rollout/1/0/0%00", "/segpo/../../pyproject.toml",
              "/segpo/..%2f..%2fmain.js", "/segpo/api/../../first/run.json"]  # fmt: skip
    for path in paths:
        status, _, body = get(address, path)
        assert status >= 400, path
        assert b"the secret" not in body and b"root:" not in body and b"schema_version" not in body, path
    for name in ("..", "../secret", str(outside), "first/../..", "first\0", "/etc"):
        for route in ("rollouts", "prompts", "prompt"):
            status, answer = told(address, route, run=name)
            assert status == 404 and "There is no run" in answer["error"], (route, name)
        assert told(address, "live", run=name)[1]["gone"]


def test_only_this_machine_by_its_own_name_may_ask(address):
    port = address.partition(":")[2]
    assert get(address, "/segpo/api/runs", Host=f"localhost:{port}")[0] == 200
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", ""):
        assert get(address, "/segpo/api/runs", Host=host)[0] == 403
    assert get(address, "/segpo/api/runs", Origin=f"http://{address}")[0] == 200
    for origin in ("http://evil.example", "null", f"http://{address}.evil.example", "file://", f"https://{address}"):
        assert get(address, "/segpo/api/runs", Origin=origin)[0] == 403
        assert get(address, "/gradio_api/info", Origin=origin)[0] == 403
    headers = get(address, "/")[1]
    assert "default-src 'self'" in headers["Content-Security-Policy"] and headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("ended_by", [signal.SIGTERM, signal.SIGINT])
def test_an_app_that_ends_leaves_nothing_behind(runs, tmp_path, monkeypatch, ended_by):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    before = sorted(path.relative_to(runs) for path in runs.rglob("*"))
    with serving(runs) as (address, process):
        assert told(address, "rollouts")[1]["every"] > 0
        assert list(tmp_path.glob("segpo-app-*"))
        process.send_signal(ended_by)
        assert process.wait(20) == 0
    assert not list(tmp_path.glob("segpo-app-*"))
    assert sorted(path.relative_to(runs) for path in runs.rglob("*")) == before, "runs are only read"


def test_what_is_unchanged_is_not_sent_again(address):
    _, headers, body = get(address, "/segpo/api/live?run=first")
    assert body
    status, _, again = get(address, "/segpo/api/live?run=first", If_None_Match=headers["ETag"])
    assert (status, again) == (304, b"")


def test_questions_with_a_mistake_are_answered_in_words(address):
    status, answer = told(address, "rollouts", sort="length")
    assert status == 400 and answer["error"].startswith("sort is 'length': it must be one of step, reward, tokens")


@pytest.mark.parametrize("way", ["flag", "file", "environment"])
def test_a_shared_app_needs_its_password_for_everything(runs, tmp_path, way):
    (tmp_path / "who").write_text("ada:correct horse\n")
    flags = {"flag": ["--auth", "ada:correct horse"], "file": ["--auth", f"@{tmp_path / 'who'}"]}.get(way, [])
    with serving(runs, *flags, SEGPO_AUTH="ada:correct horse" if way == "environment" else "") as (address, process):
        good = "Basic " + b64encode(b"ada:correct horse").decode()
        for path in (
            "/",
            "/segpo/api/runs",
            "/segpo/app.js",
            "/view/first/rollout/1/0/0",
            "/gradio_api/info",
            "/config",
        ):
            status, headers, body = get(address, path)
            assert status == 401 and headers["WWW-Authenticate"].startswith("Basic") and b"first" not in body, path
            assert get(address, path, Authorization=good)[0] == 200, path
        for bad in ("Basic " + b64encode(b"ada:wrong").decode(), "Basic %%%", "Basic", "Bearer x", good[:-2]):
            assert get(address, "/segpo/api/runs", Authorization=bad)[0] == 401, bad
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--share"], "needs a password: set SEGPO_AUTH=USER:PASSWORD, or add --auth @FILE"),
        (["--share", "--auth", "@nowhere"], "--auth @nowhere cannot be read"),
        (["--share", "--auth", "ada"], "must be USER:PASSWORD"),
        (["--share", "--auth", "ada:short"], "at least 8 characters"),
        (["--port", "70000"], "0 to 65535"),
    ],
)
def test_what_would_be_unsafe_is_refused(flags, words, tmp_path, capsys):
    assert main(["app", str(tmp_path), *flags]) == 1
    assert words in " ".join(capsys.readouterr().err.split())


def send(address, path, size, chunked):
    """Status of a POST of `size` bytes; what the server does not read any more is not sent."""
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        connection.putrequest("POST", path)
        connection.putheader("Content-Type", "application/json")
        connection.putheader(*(("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(size))))
        connection.endheaders()
        try:
            for _ in range(0, size, 65536):
                connection.send((b"10000\r\n" if chunked else b"") + b"1" * 65536 + (b"\r\n" if chunked else b""))
            connection.send(b"0\r\n\r\n" if chunked else b"")
        except OSError:  # it has closed the door
            pass
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.parametrize("chunked", [False, True])
def test_no_route_takes_a_body_of_any_size(address, chunked):
    for path in (
        "/gradio_api/queue/join", "/gradio_api/call/start", "/gradio_api/api/start", "/gradio_api/run/predict",
        "/gradio_api/call/v2/start", "/gradio_api/reset", "/gradio_api/cancel", "/queue/join", "/call/start",
        "/segpo/api/play/ask", "/segpo/api/trainer/stop", "/segpo/api/runs",
    ):  # fmt: skip
        assert send(address, path, 2**22, chunked) in (400, 404, 405, 413), path
    assert send(address, "/segpo/api/play/picture", 2**25, chunked) == 413


def test_routes_that_no_tab_uses_are_closed(address):
    for front in ("", "/gradio_api"):
        assert send(address, f"{front}/upload", 100, False) == 404
        for path in (
            "upload_progress?upload_id=1",
            "proxy=http://127.0.0.1:1/",
            "monitoring",
            "profiling/traces",
            "login",
        ):
            assert get(address, f"{front}/{path}")[0] == 404, path


def test_one_bad_run_stops_nothing(tmp_path):
    """Pipes where files belong, a folder whose name is no text: told, and the other run is there as ever."""
    good = write_run(tmp_path / "good", steps=2)
    for name, file in (
        ("a", "rollouts/step-000001.rank0.parquet"), ("b", "metrics/step-000001.parquet"), ("c", "run.json"),
        ("e", f"images/{next((good / 'images').iterdir()).name}"),
    ):  # fmt: skip
        shutil.copytree(good, tmp_path / name)
        (tmp_path / name / file).unlink()
        os.mkfifo(tmp_path / name / file)
    shutil.copytree(good, tmp_path / "d\udcff")
    with serving(tmp_path) as (address, process):
        runs = {run["name"]: run for run in json.loads(get(address, "/segpo/api/runs")[2])["runs"]}
        assert set(runs) == {"good", "a", "b", "c", "d\ufffd", "e"} and runs["c"]["state"] == "unreadable"
        for name in runs:
            status, answer = told(address, "rollouts", run=name)
            assert status == 200 and (answer["rows"] or name == "a"), name
            assert get(address, f"/segpo/api/live?run={quote(name)}")[0] == 200
            assert get(address, f"/view/{quote(name)}/rollout/1/0/0")[0] == (404 if name in "ac" else 200), name
        status, answer = told(address, "rollouts", run="nope")
        assert status == 404 and "d\ufffd" in answer["error"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_a_port_that_is_taken_is_said(address, tmp_path, capsys):
    assert main(["app", str(tmp_path), "--port", address.partition(":")[2]]) == 1
    assert "not free" in capsys.readouterr().err


def test_the_app_needs_no_torch_and_tells_nobody():
    code = (
        "import sys, os, segviz.app.main as m, gradio; "
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules; "
        "print(os.environ['GRADIO_ANALYTICS_ENABLED'], gradio.analytics.analytics_enabled())"
    )
    env = {name: value for name, value in os.environ.items() if name != "GRADIO_ANALYTICS_ENABLED"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["False", "False"], done.stderr


# start a run


@pytest.mark.parametrize(
    "change, words",
    [
        ({"name": "../up"}, "The name must begin"),
        ({"name": ""}, "The name must begin"),
        ({"name": "a/b"}, "The name must begin"),
        ({"name": "-rf"}, "The name must begin"),
        ({"name": "x" * 65}, "The name must begin"),
        ({"name": "a\n"}, "The name must begin"),
        ({"method": "sap; rm"}, "The method must be one of"),
        ({"max_steps": 0}, "max steps must be a whole number from 1"),
        ({"completions": 63}, "must be a multiple"),
        ({"learning_rate": 0.0}, "between 0 and 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(change, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        Settings(**{"name": "fine"} | change)


def test_a_run_is_started_only_where_nothing_is(tmp_path):
    starter = Starter(tmp_path)
    try:
        (tmp_path / "sapo-1").mkdir()
        (tmp_path / "grpo-1").symlink_to(tmp_path / "nowhere")
        assert starter.free_name() == "sapo-2" and starter.free_name("grpo") == "grpo-2"
        for name in ("sapo-1", "grpo-1"):
            with pytest.raises(ValueError, match="a folder"):
                starter.start(Settings(name))
        with pytest.raises(ValueError, match="Nothing is training"):
            starter.stop()
        assert starter.status()["state"] == "idle"
    finally:
        starter.close()
