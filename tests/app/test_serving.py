"""The server: what it answers, whom, and what it refuses."""

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
from base64 import b64encode
from pathlib import Path
from urllib.parse import quote

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from segpo_core.cli import main
from tests.app.served import get, serving, told
from tests.fakes.fake_run import HOSTILE, write_run

ROOT = Path(__file__).resolve().parents[2]


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
    with serving(runs, fork=False) as (address, process):
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
