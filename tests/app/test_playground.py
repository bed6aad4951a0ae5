"""The playground without a browser: a real policy behind the real server, and what it refuses."""

import http.client
import io
import json
import shutil
import struct
import threading
import time
import zlib

import pytest
from PIL import Image

from segpo_core.algos import SAPO
from segpo_core.config import TrainConfig
from segpo_core.record.store import png_bytes
from segpo_core.tasks.shapes import KINDS, ShapesTask, render, scene_of
from segpo_core.training.loop import train
from segviz.app import studio as studio_module
from segviz.app.asked import Wish, ask, contrast, resample
from segviz.app.playground import QUESTIONS, Playground, scene
from segviz.app.shelf import Missing, Shelf
from segviz.app.studio import LINE, Busy, Job, Source, Stopped, Studio, enough, sources
from segviz.app.uploads import EDGE, LARGEST_FILE, decode
from tests.app.served import get, serving

PROBLEM = ShapesTask().eval(3)
SCENE = PROBLEM["scene"]["objects"]
QUESTION = PROBLEM["prompt"][0]["content"][1]["text"]
WISH = {"run": None, "step": None, "scene": SCENE, "question": QUESTION, "temperature": 1.0, "number": 3}


def trained(folder):
    """A run of one real step, with its critic; returns the folder."""
    train(
        TrainConfig(
            method="sapo", algo=SAPO(), model_name_or_path="data/tiny-vlm", dataset="shapes", num_generations=4,
            output_dir=str(folder / "mine"), per_device_train_batch_size=4, max_completion_length=64, max_steps=1,
            eval_steps=0, save_steps=1, cpu=True,
        )
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("play") / "runs")


@pytest.fixture(scope="module")
def address(runs):
    with serving(runs) as (address, _):
        yield address


@pytest.fixture
def studio(runs):
    studio = Studio(Shelf([runs]))
    yield studio
    studio.close()


def post(address, path, body):
    """(status, answer) of what is sent; `body` is bytes, or anything that JSON knows."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        connection.request("POST", f"/segpo/api/play/{path}", data)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def state(address, job):
    status, _, body = get(address, f"/segpo/api/play/job?job={job}")
    assert status == 200
    return json.loads(body)


def ended(address, path, wish):
    """What came of a request."""
    status, job = post(address, path, wish)
    assert status == 200, job
    deadline = time.monotonic() + 120
    while job["state"] in ("waiting", "running"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
        job = state(address, job["job"])
    return job


def page_data(address, job, n=0):
    status, headers, body = get(address, f"/play/{job}/{n}")
    assert status == 200 and "sandbox allow-scripts" in headers["Content-Security-Policy"]
    return json.loads(body.decode().partition('id="segviz-data">')[2].partition("</script>")[0])


# asking


def test_a_drawn_problem_is_answered_and_judged(address):
    asked = ended(address, "ask", WISH)
    assert asked["state"] == "done" and asked["result"]["answer"] == PROBLEM["answer"]
    completions = asked["result"]["completions"]
    assert len(completions) == 3
    for n, one in enumerate(completions):
        assert one["tokens"] == one["segments"][-1]["end"] and one["segments"][0]["start"] == 0
        assert one["reward"] == float(one["answer_right"]) and one["segments"][0]["value"] is None
        data = page_data(address, asked["job"], n)
        assert data["kind"] == "ribbon" and data["tokens"] == one["tokens"] and data["where"] == f"completion {n + 1}"
        columns = {name for name, *_ in data["pack"]["columns"]}
        assert {"ent", "logp", "id", "seg"} <= columns and not {"adv", "val"} & columns
        assert list(data["pictures"].values())[0]["w"] == 48


def test_a_runs_checkpoint_brings_its_critic_and_its_limit(address):
    asked = ended(address, "ask", WISH | {"run": "mine", "step": 1})
    assert asked["result"]["source"] == "mine, step 1" and asked["result"]["critic"]
    assert all(one["tokens"] <= 64 for one in asked["result"]["completions"])
    assert all(s["value"] is not None for one in asked["result"]["completions"] for s in one["segments"])
    columns = {name for name, *_ in page_data(address, asked["job"])["pack"]["columns"]}
    assert {"val", "seg_val"} <= columns


def test_at_temperature_0_one_is_drawn_and_is_the_same_again(address):
    texts = [ended(address, "ask", WISH | {"temperature": 0})["result"]["completions"] for _ in range(2)]
    assert len(texts[0]) == 1 and texts[0] == texts[1]


def test_a_question_of_ones_own_has_no_verdict(address):
    asked = ended(address, "ask", WISH | {"question": "Which colour do you like?", "number": 1})
    assert asked["result"]["answer"] is None
    assert [one["reward"] for one in asked["result"]["completions"]] == [None]
    assert page_data(address, asked["job"])["verdict"][0].startswith("Nothing says what is right")


def test_a_picture_is_uploaded_and_asked_about(address):
    sink = io.BytesIO()
    Image.new("RGBA", (300, 200), (255, 0, 0, 128)).save(sink, format="PNG")
    status, kept = post(address, "picture", sink.getvalue())
    assert status == 200 and (kept["width"], kept["height"]) == (300, 200)
    shown = get(address, f"/segpo/api/play/picture?name={kept['picture']}")[2]
    assert Image.open(io.BytesIO(shown)).getpixel((5, 5)) == (255, 127, 127)
    wish = {key: WISH[key] for key in ("run", "step", "question", "temperature")} | {"number": 2, **kept}
    asked = ended(address, "ask", wish)
    assert asked["state"] == "done" and len(asked["result"]["completions"]) == 2
    assert asked["result"]["answer"] is None
    assert list(page_data(address, asked["job"])["pictures"].values())[0]["w"] == 300


def test_writing_on_from_a_segment(address):
    asked = ended(address, "ask", WISH)
    job, segments = asked["job"], asked["result"]["completions"][0]["segments"]
    both = ended(address, "resample", {"job": job, "completion": 0, "segment": 2, "where": "both", "number": 5})
    data = page_data(address, both["job"])
    assert data["kind"] == "counterfactual" and data["segment"]["number"] == 3
    assert [(s["name"], s["at"], len(s["samples"])) for s in data["sides"]] == [
        ("before", segments[2]["start"], 5), ("after", segments[2]["end"], 5)
    ]  # fmt: skip
    assert all(sample["reward"] in (0.0, 1.0) for side in data["sides"] for sample in side["samples"])
    one = ended(address, "resample", {"job": job, "completion": 0, "segment": 0, "where": "before", "number": 2})
    assert [side["at"] for side in page_data(address, one["job"])["sides"]] == [0]
    last = {"job": job, "completion": 0, "segment": len(segments) - 1, "where": "after"}
    status, answer = post(address, "resample", last)
    assert status == 400 and "ends with this segment" in answer["error"]


def test_a_spoiled_picture_moves_the_tokens_that_come_from_looking(address):
    asked = ended(address, "ask", WISH | {"temperature": 0})
    for kind in ("blank", "other"):
        spoiled = ended(address, "corrupt", {"job": asked["job"], "completion": 0, "corruption": kind})
        tokens = spoiled["result"]["tokens"]
        assert len(tokens) == asked["result"]["completions"][0]["tokens"]
        moved = {piece.strip() for piece, drop in sorted(tokens, key=lambda one: -one[1])[:8]}
        assert moved & {word for one in SCENE for word in one.values()}, "a word about the scene hangs on the picture"
        data = page_data(address, spoiled["job"])
        assert data["kind"] == "roles" and data["corrupted"]["src"] and data["patches"]["rows"] == 3
        assert data["patches"]["tokens"] == len(tokens)


# ending early


def test_cancelled_it_ends_early_and_shows_what_there_is(address):
    # nearly random tokens: most never end by themselves
    status, job = post(address, "ask", WISH | {"temperature": 2.0, "number": 16})
    assert status == 200
    while not (job["done"] >= 16 or job["state"] not in ("waiting", "running")):
        job = state(address, job["job"])
    status, _ = post(address, f"cancel?job={job['job']}", b"")
    assert status == 200
    while job["state"] in ("waiting", "running"):
        job = state(address, job["job"])
    assert job["state"] == "stopped" and job["words"] == "Cancelled."
    cut = [one for one in job["result"]["completions"] if not one["finished"]]
    assert cut and all(one["tokens"] < 256 and one["reward"] is None for one in cut)


class CancelledAfter(Job):
    """Cancelled by itself after so many pieces of work."""

    left = 1

    def progress(self, done, total):
        super().progress(done, total)
        self.cancelled.set()

    def check(self, *_):
        if self.left == 0:
            self.cancelled.set()
        self.left -= 1
        super().check()


def wish(**changes):
    objects, question = scene_of(PROBLEM)
    settings = dict(temperature=1.0, number=2, objects=objects, question=question)
    return Wish(Source(), render(objects), QUESTION, **(settings | changes))


def test_every_work_ends_at_the_models_next_pass(studio):
    asked = ask(studio, wish())(Job(None))
    job = CancelledAfter(None)
    cut = ask(studio, wish(number=3))(job)
    assert [one["tokens"] for one in cut.told()["completions"]] == [16, 16, 16]
    assert cut.view(0).data["facts"]["reward"] is None
    for work in (
        resample(studio, asked, 0, 1, "both", 4),
        contrast(studio, asked, 0, "blur"),
    ):
        job = CancelledAfter(None)
        with pytest.raises(Stopped):
            work(job)
        assert job.left == -1, "no pass after the one that was refused"
    assert resample(studio, asked, 0, 1, "before", 2)(Job(None)).page.data["sides"], "no trace of the hook is left"


def test_time_is_limited(studio, monkeypatch):
    monkeypatch.setattr(studio_module, "SECONDS", 0.0)
    job = studio.submit(ask(studio, wish()))
    while job.state in ("waiting", "running"):
        time.sleep(0.02)
    assert job.state == "stopped" and job.words == "Stopped after 0 seconds."


def test_the_line_is_short_and_tells_who_is_before(studio):
    play, go, began = Playground(studio.shelf, studio), threading.Event(), threading.Event()
    first = studio.submit(lambda job: (began.set(), go.wait(20)) and None)
    assert began.wait(20)
    waiting = [studio.submit(lambda job: None) for _ in range(LINE)]
    assert [studio.before(job) for job in waiting] == list(range(1, LINE + 1))
    assert play.told(waiting[1])["words"] == "Busy: 2 requests before you."
    with pytest.raises(Busy, match=f"Busy: {LINE + 1} requests are before you"):
        play.ask(WISH)
    studio.cancel(waiting[0].name)
    assert waiting[0].state == "stopped" and studio.before(waiting[1]) == 1
    go.set()
    while waiting[-1].state != "done":
        time.sleep(0.02)
    assert first.state == "done"


def test_only_the_newest_results_are_kept(studio):
    jobs = []
    for _ in range(studio_module.KEPT + 3):
        jobs.append(studio.submit(lambda job: None))
        while jobs[-1].state != "done":
            time.sleep(0.005)
    with pytest.raises(Missing, match="not kept any more"):
        studio.job(jobs[0].name)
    assert studio.job(jobs[-1].name) is jobs[-1]


def test_a_worker_outlives_what_a_model_does(studio):
    for trouble in (RuntimeError("out of memory"), KeyError("gone"), MemoryError()):

        def work(job, trouble=trouble):
            raise trouble

        job = studio.submit(work)
        while job.state in ("waiting", "running"):
            time.sleep(0.01)
        assert job.state == "failed"
    assert job.words.startswith("MemoryError")


# which models


def test_whole_checkpoints_are_offered_and_links_are_not_followed(runs, tmp_path):
    place = tmp_path / "runs" / "mine"
    shutil.copytree(runs / "mine", place)
    (place / "checkpoints" / "step-000009").mkdir()
    shelf = Shelf([tmp_path / "runs"])
    assert [(one["run"], one["step"]) for one in sources(shelf)] == [("mine", 1), (None, None)]
    weights = place / "checkpoints" / "step-000001" / "model.safetensors"
    shutil.move(weights, tmp_path / "secret")
    weights.symlink_to(tmp_path / "secret")
    with pytest.raises(Missing, match="link that leads out"):
        ask(Studio(shelf), wish_of("mine", 1))(Job(None))
    shutil.rmtree(place / "checkpoints")
    (place / "checkpoints").symlink_to(runs / "mine" / "checkpoints")
    assert [one["run"] for one in sources(shelf)] == [None]


def wish_of(run, step):
    return Wish(Source(run, step), render(scene_of(PROBLEM)[0]), QUESTION, 1.0, 1)


def test_a_torn_checkpoint_and_a_base_elsewhere_are_said(runs, tmp_path):
    place = tmp_path / "runs" / "mine"
    shutil.copytree(runs / "mine", place)
    studio = Studio(Shelf([tmp_path / "runs"]))
    weights = place / "checkpoints" / "step-000001" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ValueError, match="mine, step 1 cannot be loaded"):
        ask(studio, wish_of("mine", 1))(Job(None))
    manifest = json.loads((place / "run.json").read_text())
    manifest["config"] |= {"use_peft": True, "model_name_or_path": str(tmp_path)}
    (place / "run.json").write_text(json.dumps(manifest))
    with pytest.raises(Missing, match="lies outside the directories"):
        ask(studio, wish_of("mine", 1))(Job(None))


def test_no_code_of_a_run_is_run(runs, tmp_path):
    place = tmp_path / "runs" / "mine"
    shutil.copytree(runs / "mine", place)
    (tmp_path / "trap.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\ndef reward(**_): return []\n")
    manifest = json.loads((place / "run.json").read_text())
    manifest["config"]["reward_funcs"] = [f"{tmp_path / 'trap.py'}:reward"]
    (place / "run.json").write_text(json.dumps(manifest))
    asked = ask(Studio(Shelf([tmp_path / "runs"])), wish_of("mine", 1))(Job(None))
    assert asked.told()["completions"] and not (tmp_path / "sprung").exists()


def test_a_model_that_does_not_fit_is_refused(tmp_path):
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.truncate(2**42)  # a hole: takes no place
    with pytest.raises(ValueError, match="GB of memory"):
        enough(tmp_path)


# what is refused


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"question": "  "}, "question is empty"),
        ({"question": "x" * 1001}, "at most 1000"),
        ({"question": 7}, "question is empty"),
        ({"scene": []}, "scene is empty"),
        ({"scene": None}, "scene is empty"),
        ({"scene": [{"cell": "top"}]}, "cell, size, colour and shape"),
        ({"scene": [SCENE[0], SCENE[0]]}, "Two shapes stand in one cell"),
        ({"scene": [SCENE[0] | {"colour": "<img src=x>"}]}, "must be one of red"),
        ({"scene": [SCENE[0] | {"colour": ["red"]}]}, "must be one of red"),
        ({"picture": "0" * 64}, "upload it again"),
        ({"number": 17}, "from 1 to 16"),
        ({"number": 0}, "from 1 to 16"),
        ({"number": True}, "from 1 to 16"),
        ({"temperature": 2.1}, "from 0 to 2"),
        ({"temperature": "hot"}, "from 0 to 2"),
        ({"run": "mine"}, "run and the step"),
        ({"run": ["mine"], "step": 1}, "run and the step"),
    ],
)
def test_what_cannot_be_asked_is_said(address, changes, words):
    status, answer = post(address, "ask", WISH | changes)
    assert status in (400, 404) and words in answer["error"]


@pytest.mark.parametrize(
    "run, step, words",
    [("nope", 1, "no run 'nope'"), ("mine", 7, "no checkpoint of step 7"), ("../mine", 1, "no run"),
     ("/etc", 1, "no run"), ("mine\0", 1, "no run"), ("mine/checkpoints/..", 1, "no run")],
)  # fmt: skip
def test_a_checkpoint_that_is_not_there_is_said(address, run, step, words):
    job = ended(address, "ask", WISH | {"run": run, "step": step})
    assert job["state"] == "failed" and words in job["words"] and job["result"] is None
    assert get(address, f"/play/{job['job']}/0")[0] == 404


def test_requests_about_nothing_are_said(address):
    asked = ended(address, "ask", WISH | {"number": 1})
    for path, body, words in (
        ("resample", {"job": "x", "completion": 0, "segment": 0, "where": "both"}, "not kept any more"),
        ("resample", {"job": asked["job"], "completion": 5, "segment": 0, "where": "both"}, "no completion 6"),
        ("resample", {"job": asked["job"], "completion": 0, "segment": 999, "where": "both"}, "no segment 1000"),
        ("resample", {"job": asked["job"], "completion": 0, "segment": 0, "where": "up"}, "before, after or both"),
        ("corrupt", {"job": asked["job"], "completion": 0, "corruption": "melt"}, "must be one of blank"),
        ("ask", b"{", "not JSON"),
        ("ask", b"\xff\xfe", "not JSON"),
        ("ask", b"[" * 50_000, "not JSON"),
        ("ask", [1], "JSON object"),
        ("ask", WISH | {"question": "x" * 70_000}, "larger than 64 KB"),
    ):
        status, answer = post(address, path, body)
        assert status in (400, 404) and words in answer["error"], path
    for path in ("/play/nothing/0", f"/play/{asked['job']}/9", f"/play/{asked['job']}/x", "/play/..%2f/0"):
        assert get(address, path)[0] == 404
    connection = http.client.HTTPConnection(address, timeout=60)
    connection.request("POST", "/segpo/api/play/ask", json.dumps(WISH), {"Origin": "http://evil.example"})
    assert connection.getresponse().status == 403
    connection.close()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_picture_bombs_are_refused_before_they_are_decoded(address):
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )
    sink = io.BytesIO()
    Image.new("L", (5000, 4000)).save(sink, format="PNG")
    for data, words in (
        (bomb, "choose"),
        (sink.getvalue(), "5,000 x 4,000 pixels"),
        (b"GIF89a" + bytes(100), "no picture that can be read"),
        (b"<svg onload=alert(1)>", "no picture that can be read"),
        (b"", "file is empty"),
        (png_bytes(render(scene_of(PROBLEM)[0]))[:200], "torn or broken"),
    ):
        status, answer = post(address, "picture", data)
        assert status == 400 and words in answer["error"]
    status, answer = post(address, "picture", bytes(LARGEST_FILE + 1))
    assert status == 413 and "larger than 8 MB" in answer["error"]
    assert ended(address, "ask", WISH | {"number": 1})["state"] == "done"


def test_of_a_picture_only_its_pixels_are_kept():
    sink = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "where I live"  # lies on its side
    Image.new("RGB", (40, 20), "blue").save(sink, format="JPEG", exif=exif, comment=b"secret")
    image = decode(sink.getvalue())
    assert image.size == (20, 40) and not image.info and b"secret" not in png_bytes(image)
    sink = io.BytesIO()
    Image.new("P", (3000, 100)).save(sink, format="PNG")
    assert max(decode(sink.getvalue()).size) == EDGE


def test_hostile_words_stay_words(address):
    question = "<image></script><script>window.hacked=1</script>${7*7}{{7*7}}\u202e\ud800"
    job = ended(address, "ask", WISH | {"question": question, "number": 1})
    # this one even speaks for a second picture, which is refused; in the words of the question all is well
    assert job["state"] == "failed" and "image" in job["words"]
    job = ended(address, "ask", WISH | {"question": question.replace("<image>", ""), "number": 1})
    assert job["state"] == "done"
    page = get(address, f"/play/{job['job']}/0")[2].decode()
    assert "<script>window.hacked" not in page


# what there is to choose from


def test_every_question_of_the_task_is_recognised():
    for index in range(200):
        example = ShapesTask().eval(index)
        text, (objects, question) = example["prompt"][0]["content"][1]["text"], scene_of(example)
        assert QUESTIONS[text] == question and QUESTIONS[text].answer(objects) == example["answer"]
    assert {question.kind for question in QUESTIONS.values()} == set(KINDS)


def test_choices_and_pictures_of_scenes(address):
    status, _, body = get(address, "/segpo/api/play")
    told = json.loads(body)
    assert status == 200 and [one["run"] for one in told["sources"]] == ["mine", None]
    offered = [text for _, texts in told["questions"] for text in texts]
    assert {text.partition(" Perhaps")[0] for text in offered} == {text.partition(" Perhaps")[0] for text in QUESTIONS}
    assert len(offered) == len(set(offered)) < len(QUESTIONS) and set(offered) <= set(QUESTIONS)
    code = "&".join(f"{one['cell']}={one['size']}-{one['colour']}-{one['shape']}" for one in SCENE)
    status, _, body = get(address, f"/segpo/api/play/scene.png?{code}")
    assert status == 200 and Image.open(io.BytesIO(body)).tobytes() == render(scene(SCENE)).tobytes()
    assert Image.open(io.BytesIO(get(address, "/segpo/api/play/scene.png")[2])).size == (48, 48)
    assert get(address, "/segpo/api/play/scene.png?top=huge-red-circle")[0] == 400
    problem = json.loads(get(address, "/segpo/api/play/problem?number=3")[2])
    assert problem == {"scene": SCENE, "question": QUESTION}


def test_torch_comes_with_the_first_question_only(runs):
    import subprocess
    import sys

    code = (
        "import sys; from segviz.app.server import Desk; from segviz.app.playground import Playground\n"
        f"with Desk([{str(runs)!r}]) as desk:\n"
        "    Playground(desk.shelf, desk.studio).choices(); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
