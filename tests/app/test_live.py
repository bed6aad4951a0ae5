"""What the Live tab tells: metrics as they are written, curves, cards."""

import io
import json
import shutil
import time

import numpy as np
import pytest
from PIL import Image

import segviz as sv
from segpo_core.record.store import Recorder, forget_after, read_rollouts
from segviz.app.live import Live, card, gathered, strip
from segviz.app.metrics import POINTS, MetricLog, thin
from segviz.app.rollouts import Question, ask
from segviz.app.shelf import Shelf
from segviz.parts.scoreboard import scoreboard, sentence
from segviz.parts.story import story
from segviz.views.board import board_data
from tests.app.served import get
from tests.fakes.fake_run import row, write_run


def whole(live, *names):
    """The page once everything is read: what there is no time for in one request follows in the next."""
    deadline = time.monotonic() + 60
    while (page := json.loads(live.page(names)))["unread"] or page["counting"]:
        assert time.monotonic() < deadline
    return page


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


def test_live_shows_what_the_run_says(runs, index):
    live = Live(Shelf([runs]), index)
    page = whole(live, "first", "second", "gone")
    titles = [chart["title"] for chart in page["board"]["charts"]]
    assert "Reward" in titles and "Training completions" in titles and "Is it the seeing or the reasoning?" in titles
    assert [run["run"] for run in page["newest"]] == ["first", "second"] and page["newest"][0]["cards"]
    assert {card["step"] for card in page["newest"][0]["cards"]} == {21}
    assert page["gone"][0]["name"] == "gone" and "no run 'gone'" in page["gone"][0]["words"]
    assert live.page(["first", "second", "gone"]) == json.dumps(page, ensure_ascii=False, separators=(",", ":"))
    assert json.loads(live.page([]))["board"] is None
    labels = {group["label"]: group["runs"] for group in page["board"]["groups"]}
    assert labels == {"first · SAPO (segment-aligned)": 1, "second · GRPO": 1}


def test_two_runs_of_one_method_are_told_apart(tmp_path, index):
    for seed in (1, 2):
        write_run(tmp_path / f"seed{seed}", "grpo", seed=seed, steps=3, rollouts=False)
    board = json.loads(Live(Shelf([tmp_path]), index).page(["seed1", "seed2"]))["board"]
    names = {line["label"] for line in board["charts"][0]["lines"]}
    assert names == {"seed1 · GRPO", "seed2 · GRPO"}


def test_metrics_that_belong_together_share_a_chart(tmp_path):
    path = write_run(tmp_path / "run", steps=3, rollouts=False)
    Recorder(path).metrics(4, {"time/sample": 1.5, "time/update": 0.5, "train/reasoning": 0.25, "step_kl": 0.01})
    board = gathered(board_data([sv.open(path)]))
    charts = {chart["title"]: chart for chart in board["charts"]}
    assert {(ln["label"], ln["y"][-1]) for ln in charts["Where a step's time goes"]["lines"]} == {
        ("sample", 1.5), ("update", 0.5)
    }  # fmt: skip
    assert {ln["label"] for ln in charts["Is it the seeing or the reasoning?"]["lines"]} == {"perception", "reasoning"}
    # one series has one colour on the page, and two have two in a chart
    shown = [(ln["label"], ln["style"]) for name in ("Training completions", "Is it the seeing or the reasoning?")
             for ln in charts[name]["lines"]]  # fmt: skip
    assert len({label for label, _ in shown}) == len(set(shown)) == len({style for _, style in shown}) == 4
    assert charts["KL of the step's update"]["lines"][0]["y"] == [0.01]
    assert not {"time/sample", "step_kl", "train/reasoning"} & {chart["title"] for chart in board["other"]}


def test_live_tells_a_story_and_counts_found_errors_as_the_report_does(runs, index):
    live = Live(Shelf([runs]), index)
    page = whole(live, "first")
    assert page["stories"][0]["headline"] == json.loads(json.dumps(story(sv.open(runs / "first"))["headline"]))
    assert page["found"]["lines"] == scoreboard(sv.open(runs / "first"))["lines"]
    assert page["found"]["said"] == sentence(page["found"])
    page = whole(live, "first", "second")
    assert [line["label"] for line in page["found"]["methods"]] == ["first", "second"] and not page["found"]["lines"]
    both = json.loads(live.methods(["first", "second"]))
    assert both["found"]["methods"] == page["found"]["methods"]
    assert [run["methods"] for run in both["runs"]] == [[], []], "no other credit was computed"


def test_a_file_that_changed_is_counted_anew(tmp_path, index):
    path = write_run(tmp_path / "runs" / "one", steps=2)
    live = Live(Shelf([tmp_path / "runs"]), index)
    assert whole(live, "one")["found"]["lines"][0]["wrong"] > 0
    Recorder(path).rollouts(1, [row(1, 0, 0, "a b c")], {})
    time.sleep(0.25)
    found = whole(live, "one")["found"]
    assert not found["lines"] and found["trust"], "no error is known any more"


def test_of_a_run_that_grows_only_the_latest_answers_are_kept(tmp_path, index, monkeypatch):
    monkeypatch.setattr("segviz.app.found.MOST", 12)
    for module in ("index", "metrics"):
        monkeypatch.setattr(f"segviz.app.{module}.LEAST", 0)
    path = write_run(tmp_path / "run", steps=1)
    shelf, (first,) = Shelf([tmp_path]), read_rollouts(path, [1]).to_pylist()[:1]
    live, kept, pages = Live(shelf, index), set(), set()
    for step in range(2, 22):
        Recorder(path).rollouts(step, [first | {"step": step, "sample": n} for n in range(4)], {})
        Recorder(path).metrics(step, {"reward": step / 50})
        pages.add(json.dumps(whole(live, "run")))
        ask(shelf, index, Question())
        if step > 12:  # three files hold the completions that are counted
            caches = live._pages, live._cards, live.found._trust, index.answers
            kept.add((*(len(cache._found) for cache in caches), len(live.found._files[path][1])))
    assert len(pages) == 20, "each step has a page of its own"
    assert len(kept) == 1 and kept.pop()[-1] == 3


def test_a_card_says_what_was_said_what_is_right_and_where_it_went_wrong():
    wrong = row(
        pieces=["<think>", " 3", " apples", "</think>", "<answer>", " 4", "</answer>"], answer="3", answer_right=False,
        advantages=[0.0, 0.0, 0.0, 0.0, 0.0, -1.0, 0.0], error_start=5, error_end=6, error_kind="answer",
        prompt=json.dumps([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many?"}]}]),
        segment_start=[0, 5, 6], segment_end=[5, 6, 7], segment_ids=[0, 0, 0, 0, 0, 1, 2], images=["ab" * 32],
        truth={"first_error": {"start": 32, "end": 34, "kind": "answer", "why": "it wrote 3"}},
        segment_advantage=[0.0, -1.0, 0.0],
    )  # fmt: skip
    made = card(wrong)
    assert (made["question"], made["said"], made["reference"], made["picture"]) == ("How many?", "4", "3", "ab" * 32)
    assert made["wrong"] == {
        "before": "<think> 3 apples</think><answer>", "word": " 4", "after": "</answer>", "kind": "answer",
        "why": "it wrote 3", "blamed": "there",
    }  # fmt: skip
    elsewhere = card(wrong | {"segment_advantage": [-1.0, 0.0, 0.0], "advantages": [-1.0] * 5 + [0.0, 0.0]})
    assert elsewhere["wrong"]["blamed"] == "<think> 3 apples</think><answer>"[:30]
    untold = card(wrong | {"error_start": None, "error_end": None})
    assert untold["wrong"]["kind"] is None and untold["wrong"]["word"] == " 4", (
        "then it is where the blame is strongest"
    )
    assert card(row(pieces=["a"], advantages=[0.0], segment_advantage=[0.0]))["wrong"] is None


def test_pictures_and_reports_are_served(runs, address):
    (sha,) = {sha for sha in sv.open(runs / "first").rollout(1, 0, 0).row["images"]}
    status, headers, body = get(address, f"/segpo/picture/first/{sha}")
    assert (status, headers["content-type"]) == (200, "image/png")
    assert Image.open(io.BytesIO(body)).size == (48, 48)
    for path in (f"/segpo/picture/gone/{sha}", "/segpo/picture/first/" + "0" * 64, "/segpo/picture/first/run.json",
                 "/segpo/picture/first/..%2Frun.json"):  # fmt: skip
        assert get(address, path)[0] == 404
    status, headers, body = get(address, "/view/first/report")
    assert status == 200 and b"Does this credit find the error?" in body
    assert "sandbox" in headers["content-security-policy"]
    assert get(address, "/view/gone/report")[0] == 404


def test_a_card_shows_credit_that_was_not_assigned_as_such():
    assert strip([0, 2], [2, 4], [1.0, None]) == [10, 10, -99, -99]
    assert strip([0, 1, 2], [1, 2, 3], [-1.0, 0.0, 0.5]) == [-10, 0, 5]
    assert strip(None, None, None) == [] == strip([0], [2, 3], [1.0])
    assert len(strip([0], [1000], [0.5])) == 64
