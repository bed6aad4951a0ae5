"""What the builders of segviz make, parsed: no browser."""

from __future__ import annotations

import base64
import dataclasses
import html.parser
import json
import re
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import segviz as sv
from segpo_core.record.store import Recorder
from segviz.parts.credit import segment_credit
from segviz.runs.run import Series
from segviz.show.encode import escape, floats, script_json
from segviz.show.theme import LEVELS, css, level, method_label, symmetric_limit
from segviz.show.view import View
from segviz.views.report import pick, report_view
from segviz.views.ribbon import ribbon_data
from tests.fakes.fake_run import HOSTILE, hostile_row, long_row, row, write_run

DTYPES = {"u1": np.uint8, "u2": np.uint16, "u4": np.uint32, "f2": np.float16, "f4": np.float32}


def unpack(packed: dict) -> dict:
    """What the script makes of `view.pack`."""
    raw = zlib.decompress(base64.b64decode(packed["data"]))
    at = packed["text"]
    found = {"text": raw[:at].decode()}
    for name, letters, count in packed["columns"]:
        width = int(letters[1])
        planes = np.frombuffer(raw[at : at + count * width], np.uint8).reshape(width, count)
        found[name] = np.ascontiguousarray(planes.T).view(DTYPES[letters]).ravel()
        at += count * width
    assert at == len(raw)
    return found


class Page(html.parser.HTMLParser):
    """Every element of a page, and the text inside its scripts."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.scripts: list[str] = []
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self._inside = True
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._inside = self._inside and tag != "script"

    def handle_data(self, data):
        if self._inside:
            self.scripts[-1] += data


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> sv.Run:
    return sv.open(write_run(tmp_path_factory.mktemp("runs") / "demo", extra=[hostile_row()]))


def test_importing_segviz_needs_neither_torch_nor_the_trainer():
    trainer = "('torch', 'transformers', 'segpo_core.training.loop')"
    code = f"import sys, segviz; print([m for m in {trainer} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- a run as it is found on disk -----------------------------------------------------------------------------------


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


# --- the ribbon -----------------------------------------------------------------------------------------------------


def test_the_page_carries_every_number_exactly(run):
    rollout = run.rollout(1, 0, 1)
    data = ribbon_data(rollout)
    columns = unpack(data["pack"])
    assert columns["text"] == rollout.text
    ends = np.cumsum(columns["units"])
    assert [rollout.text[b - n : b] for b, n in zip(ends, columns["units"], strict=True)] == rollout.pieces
    assert [
        (int(b - n), int(b)) for b, n in zip(np.cumsum(columns["seg"]), columns["seg"], strict=True)
    ] == rollout.segments
    for name, source in (("adv", "advantages"), ("ent", "entropy"), ("val", "values"), ("ratio", "ratio")):
        assert columns[name].dtype == np.float32
        np.testing.assert_array_equal(columns[name], np.float32(rollout.row[source]))
    np.testing.assert_array_equal(columns["seg_adv"], np.float32(rollout.row["segment_advantage"]))
    assert data["limit"] == max(abs(v) for v in rollout.row["advantages"])


def test_untrained_tokens_do_not_stretch_the_scale_and_are_not_zero():
    base = row(text="<think> a b c </think>")
    n = len(base["pieces"])
    view = sv.ribbon(
        base | {"advantages": [0.1, None, -9.0] + [0.2] * (n - 3), "loss_mask": [True, True, False] + [True] * (n - 3)}
    )
    columns = unpack(view.data["pack"])
    assert view.data["limit"] == 0.2
    assert np.isnan(columns["adv"][1]) and columns["loss"].tolist()[:3] == [1, 1, 0]


def test_scale_and_levels():
    assert symmetric_limit([None, float("nan"), float("inf"), -0.5, 3.0], [True] * 4 + [False]) == 0.5
    assert symmetric_limit([]) == 0
    assert [level(v, 1.0) for v in (0, 1, -1, 2, 0.001, -0.001, float("nan"))] == [0, LEVELS, -LEVELS, LEVELS, 1, -1, 0]
    assert level(0.3, 0.0) == 0


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"segment_advantage": [0.1, -0.5], "advantages": [0.1, -0.5]}, "Segment 2 was blamed most: −0.50."),
        (
            {"segment_advantage": [0.1, 0.3], "advantages": [0.1, 0.3]},
            "No segment was blamed. Segment 2 earned most: +0.30.",
        ),
        ({"segment_advantage": [0.0, 0.0], "advantages": [0.0, 0.0]}, "Every advantage is zero"),
        ({"segment_advantage": None, "advantages": None}, "No credit is recorded"),
        ({"segment_advantage": [None, -0.2], "advantages": [None, -0.2]}, "Segment 2 was blamed most"),
        ({"segment_advantage": [float("nan")] * 2, "advantages": [float("nan"), -0.2]}, "Segment 2 was blamed most"),
        ({"segment_advantage": [float("nan")] * 2, "advantages": [float("nan")] * 2}, "No credit is recorded"),
        (
            {"segment_advantage": [0.1, -0.9], "advantages": [0.1, -0.9], "loss_mask": [False] * 2},
            "None of its tokens entered the loss",
        ),
        ({"segment_advantage": [-0.9, -0.2], "advantages": [-0.9, -0.2], "loss_mask": [False, True]}, "Segment 2 was"),
    ],
)
def test_the_verdict_answers_the_question(columns, sentence):
    base = row(pieces=["a", "b"]) | {"segment_start": [0, 1], "segment_end": [1, 2], "segment_ids": [0, 1]}
    view = sv.ribbon(base | columns)
    assert view.data["verdict"][0].startswith(sentence) and sentence in view.fallback


def test_a_right_solution_is_not_asked_what_broke_it():
    told = {right: sv.ribbon(row(pieces=["a"]) | {"answer_right": right}).title for right in (True, False, None)}
    assert told[True] == "Which segment carried this solution?"
    assert told[False] == told[None] == "Which segment broke this solution?"
    assert sv.ribbon(row(pieces=["a"]) | {"answer_right": True}, "Mine").data["title"] == "Mine"


def test_the_verdict_tells_how_far_the_blame_is_from_the_error():
    base = row(
        pieces=["a", "b", "c"], truth={"first_error": {"start": 0, "end": 1, "kind": "perception", "why": "it is red"}}
    )
    base |= {
        "segment_start": [0, 1, 2],
        "segment_end": [1, 2, 3],
        "segment_advantage": [0, 0, -1],
        "advantages": [0, 0, -1],
    }
    said = sv.ribbon(base).data["verdict"][1]
    assert said == "The first true error is in segment 1, 2 segments earlier (perception: it is red)."
    base |= {"segment_advantage": [-1, 0, 0], "advantages": [-1, 0, 0]}
    assert sv.ribbon(base).data["verdict"][1] == "The first true error is there too (perception: it is red)."
    whole = base | {
        "segment_start": [0],
        "segment_end": [3],
        "segment_advantage": [-1],
        "advantages": [-1] * 3,
        "segment_value": None,
    }
    assert sv.ribbon(whole).data["verdict"][0].endswith("this method names no segment.")


@pytest.mark.parametrize(
    "changed",
    [
        {"pieces": [], "text": ""},
        {"pieces": ["one"], "text": "one"},
        {"pieces": [""], "text": "", "finished": False},
        {"values": None, "segment_value": None, "segment_stderr": None},
        {"advantages": None, "segment_advantage": None, "loss_mask": None},
        {"segment_start": None, "segment_end": None, "segment_ids": None},
        {"pieces": None},
        {"advantages": [1.0]},
        {"prompt": "no json {", "truth": "{", "reward_parts": "[1]", "reward": None, "finished": None},
        {"prompt": json.dumps([{"role": "user", "content": None}, "loose", {"content": ["x", {"type": "image"}]}])},
    ],
)
def test_odd_rollouts_make_a_page(changed):
    view = sv.ribbon(row(text="<think> 1 2 </think>") | changed)
    assert json.loads(Page(view.html()).scripts[0])["kind"] == "ribbon"
    assert "<div" in view._repr_html_()


def test_a_bare_mapping_is_enough():
    view = sv.ribbon({"text": "hello"})
    assert view.data["tokens"] == 1 and len(view.data["notices"]) == 3


def test_a_column_of_the_wrong_length_is_left_out_and_said(run):
    data = ribbon_data(dataclasses.replace(run.rollout(1, 0, 1), row=run.rollout(1, 0, 1).row | {"entropy": [0.1]}))
    assert "ent" not in {name for name, *_ in data["pack"]["columns"]}
    assert any(note.startswith("entropy has 1 entries") for note in data["notices"])


def test_segment_credit_without_recorded_segments_is_the_mean_of_trained_tokens():
    base = row(pieces=["a", "b", "c"]) | {
        "segment_advantage": None, "segment_start": None, "segment_end": None, "segment_ids": [0, 0, 1],
        "advantages": [1.0, 3.0, None], "loss_mask": [True, True, True],
    }  # fmt: skip
    assert segment_credit(sv.Rollout(base)) == [2.0, None]


def test_a_rollout_of_32768_tokens_stays_small():
    view = sv.ribbon(long_row(32_768))
    assert len(script_json(view.data)) <= 400_000
    columns = unpack(view.data["pack"])
    assert columns["adv"].dtype == np.float16 and len(columns["adv"]) == 32_768
    want = np.array(long_row(32_768)["entropy"], np.float32)
    some = want > 1e-3
    assert np.max(np.abs(columns["ent"][some] - want[some]) / want[some]) < 0.005
    assert len(view._repr_html_()) < 600_000 and "more tokens" in view._repr_html_()


def test_coarse_floats_keep_what_is_special():
    got = floats([None, float("inf"), float("-inf"), 1e9, 0.0, -1.0, 65504.0], True).astype(float)
    assert (
        np.isnan(got[0])
        and got[1] == np.inf
        and got[2] == -np.inf
        and got[3] == np.inf
        and got[4] == 0
        and got[5] == -1
    )


# --- hostile texts --------------------------------------------------------------------------------------------------


def test_hostile_texts_stay_data():
    view = sv.ribbon(hostile_row())
    page = Page(view.html())
    assert [tag for tag, _ in page.tags if tag in ("script", "img", "b")] == ["script", "script"]
    assert json.loads(page.scripts[0])["facts"]["reference"] == HOSTILE[0]
    assert unpack(view.data["pack"])["text"] == hostile_row()["text"]
    assert not re.search(r"</?script|<!--", page.scripts[0])
    from tests.views import inert

    assert "<img" in inert.check(view._repr_html_())


def test_lone_surrogates_reach_no_file(tmp_path):
    view = sv.ribbon(row(pieces=["a\ud800", "\udfffb"], answer="\ud83d", example_id="\udc00"), title="\ud800?")
    view.save(tmp_path / "page.html").read_text(encoding="utf-8")
    assert unpack(view.data["pack"])["units"].tolist() == [2, 2]
    view._repr_html_().encode()


def test_escaping():
    assert escape("<a b='c'>\ud800&") == "&lt;a b=&#x27;c&#x27;&gt;\ufffd&amp;"
    text = script_json({"x": ["</script>&\u2028", float("nan"), float("inf"), 1.5], 3: None})
    assert not re.search("[<>&\u2028]", text)
    assert json.loads(text) == {"x": ["</script>&\u2028", None, None, 1.5], "3": None}


def test_the_page_may_run_only_its_own_script_and_fetch_nothing(run):
    page = sv.ribbon(run.rollout(1, 0, 1)).html()
    policy = next(a["content"] for tag, a in Page(page).tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "unsafe" not in policy
    assert "img-src data:" in policy
    assert not [a for _, a in Page(page).tags if {"src", "href"} & set(a)]
    assert not re.search(r"url\(|@import|\bfetch\(|XMLHttpRequest|innerHTML", page)


def test_a_view_is_frozen_and_saves_whole_or_not_at_all(run, tmp_path):
    view = sv.ribbon(run.rollout(1, 0, 1))
    with pytest.raises(dataclasses.FrozenInstanceError):
        view.title = "other"
    assert view.save(tmp_path / "a.html").read_text(encoding="utf-8") == view.html()
    with pytest.raises(OSError):
        view.save(tmp_path / "missing" / "a.html")
    assert [path.name for path in tmp_path.iterdir()] == ["a.html"]
    assert View("board", "<b>", {})._repr_html_() == "<p>&lt;b&gt;</p>"


# --- the board ------------------------------------------------------------------------------------------------------


def test_answer_perception_and_grounded_are_always_in_one_chart(run):
    charts = {chart["title"]: chart for chart in sv.board(run).data["charts"]}
    for title in ("Held-out problems, greedy", "Held-out problems, sampled", "Training completions"):
        assert [line["label"] for line in charts[title]["lines"]] == ["answer", "perception", "grounded"]
        assert len({line["style"] for line in charts[title]["lines"]}) == 3
    assert {"KL to the reference", "Clipped share", "Value loss", "Tokens per second"} <= set(charts)
    assert [chart["title"] for chart in sv.board(run).data["other"]] == ["grad_norm"]


def test_the_contracts_other_names_for_sampled_accuracy_are_understood(tmp_path):
    recorder = Recorder(tmp_path / "r")
    recorder.start({})
    recorder.metrics(0, {"eval/answer_sampled": 0.5, "reward": float("nan")})
    data = sv.board(sv.open(tmp_path / "r")).data
    assert [chart["title"] for chart in data["charts"]] == ["Held-out problems, sampled"]


def test_seeds_become_one_line_with_a_band_and_methods_stay_apart(tmp_path):
    runs = [
        sv.open(write_run(tmp_path / f"{method}{seed}", method, seed=seed, steps=8, rollouts=False))
        for method in ("sapo", "grpo")
        for seed in (1, 2)
    ]
    data = sv.board(runs).data
    assert data["groups"] == [{"label": "SAPO (segment-aligned)", "runs": 2}, {"label": "GRPO", "runs": 2}]
    chart = data["charts"][0]
    assert chart["panels"] and len(chart["lines"]) == 6
    line = chart["lines"][0]
    values = [run.metrics["eval/answer"].values[0] for run in runs[:2]]
    assert line["y"][0] == pytest.approx(sum(values) / 2, rel=1e-4)
    assert (line["low"][0], line["high"][0]) == pytest.approx((min(values), max(values)), rel=1e-4)


def test_a_long_curve_is_thinned(tmp_path, monkeypatch):
    run = sv.open(write_run(tmp_path / "r", steps=1, rollouts=False))
    monkeypatch.setattr(type(run), "metrics", {"kl": Series(list(range(5000)), [float(i) for i in range(5000)])})
    (chart,) = sv.board(run).data["charts"]
    assert len(chart["lines"][0]["x"]) <= 600 and chart["lines"][0]["y"][0] == pytest.approx(4)


# --- the report -----------------------------------------------------------------------------------------------------


def test_the_report_picks_telling_rollouts(run):
    picked = dict(pick(run))
    assert {step for step, _ in picked} == {1, 13, 21}
    for (step, kind), key in picked.items():
        found = next(r for r in run.rollouts_at(step) if (r["step"], r["group"], r["sample"]) == key)
        if kind == "Right but ungrounded":
            assert found["answer_right"] and not found["perception_right"]
        if kind == "Right and grounded":
            assert found["grounded"]
        if kind.endswith("error"):
            assert found["error_kind"] == kind.split()[0].lower() and not found["answer_right"]
        if kind == "Most blamed":
            assert found["lowest"] == min(r["lowest"] for r in run.rollouts_at(step))


def test_the_report_begins_with_an_error_found_and_one_missed(run):
    data = report_view(run).data
    kinds = [stop["kind"] for stop in data["tour"]]
    assert kinds and set(kinds) <= {"Seeing error found", "Reckoning error found", "Error missed"}
    for stop in data["tour"]:
        key = tuple(map(int, data["ribbons"][stop["ribbon"]]["key"].split("/")))
        assert run.rollout(*key).row["answer_right"] is False and "first error is “" in stop["why"]
        assert ("there the blame is strongest" in stop["why"]) == ("found" in stop["kind"])
    assert report_view(run, [(1, 0, 0)]).data["tour"] == [], "who asks for one rollout gets that one"


def test_without_ground_truth_the_report_goes_by_reward(tmp_path):
    recorder = Recorder(tmp_path / "r")
    recorder.start({"method": "rloo"})
    recorder.rollouts(3, [row(3, 0, i, text="a b c", reward=float(i), method="rloo") for i in range(3)], {})
    run = sv.open(tmp_path / "r")
    picked = {kind: key for (_, kind), key in pick(run)}
    assert picked["Highest reward"] == (3, 0, 2) and picked["Lowest reward"] == (3, 0, 0)


def test_the_report_is_one_file_with_the_runs_facts(run, tmp_path):
    out = sv.report(run, tmp_path / "report.html")
    page = Page(out.read_text(encoding="utf-8"))
    data = json.loads(page.scripts[0])
    facts = dict(data["facts"])
    assert (
        facts["method"] == "SAPO (segment-aligned)"
        and facts["model"] == "data/tiny-vlm"
        and facts["steps"] == "24 of 24"
    )
    assert "torch" in facts["versions"]
    assert [tile["label"] for tile in data["headline"]] == ["answer", "perception", "grounded"]
    assert data["headline"][0]["start"] == pytest.approx(run.metrics["eval/answer"].values[0])
    assert data["headline"][0]["problems"] is None and data["headline"][0]["interval"] is None
    shown = {data["ribbons"][e["ribbon"]]["key"] for e in [*data["gallery"], *data["tour"]]}
    listed = {"{step}/{group}/{sample}".format(**item) for item in data["board"]["rollouts"]}
    assert sorted(ribbon["key"] for ribbon in data["ribbons"]) == sorted(shown | listed)
    assert sv.report(run) == run.path / "report.html"
    (run.path / "report.html").unlink()


def test_the_headline_says_how_sure_it_is(tmp_path):
    path = write_run(tmp_path / "sized", steps=2)
    manifest = json.loads((path / "run.json").read_text())
    manifest["config"] = {**(manifest.get("config") or {}), "eval_size": 200}
    (path / "run.json").write_text(json.dumps(manifest))
    Recorder(path).metrics(2, {"eval/perception": 1.0, "eval/answer": 0.73})
    by_label = {tile["label"]: tile for tile in report_view(sv.open(path)).data["headline"]}
    assert by_label["answer"]["problems"] == 200
    assert by_label["answer"]["interval"] == pytest.approx([0.665, 0.787], abs=1e-3)
    assert by_label["perception"]["interval"] == pytest.approx([0.981, 1.0], abs=1e-3)  # all right is not certainty


def test_rollouts_can_be_chosen_by_name(run, tmp_path):
    data = report_view(run, [(1, 90, 0), (5, 0, 0)]).data
    assert [entry["step"] for entry in data["gallery"]] == [1, 5] and len(data["ribbons"]) == 2
    with pytest.raises(KeyError, match="no group 5"):
        sv.report(run, tmp_path / "x.html", rollouts=[(1, 5, 0)])
    assert not (tmp_path / "x.html").exists()


def test_a_report_of_a_copied_run_needs_nothing_else(run, tmp_path):
    copy = Path(shutil.copytree(run.path, tmp_path / "copy"))
    page = sv.report(sv.open(copy)).read_text(encoding="utf-8")
    shutil.rmtree(copy)
    assert page.count("data:image/png;base64,") >= 3


def test_sapo_is_never_just_called_sapo():
    assert method_label("sapo") == method_label("SAPO") == "SAPO (segment-aligned)"
    assert (
        method_label("spo-chain") == "SPO-chain"
        and method_label("mine") == "mine"
        and "not recorded" in method_label("")
    )


def test_text_and_ground_keep_their_contrast():
    """4.5 : 1 for text in both schemes, on paper, on cards, and on the strongest shade."""
    from segviz.show.theme import NEGATIVE, PALETTE, POSITIVE, alpha

    def rgb(colour):
        return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))

    def light(colour):
        parts = [c / 255 for c in colour]
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    def contrast(a, b):
        high, low = sorted((light(a), light(b)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    for scheme in (0, 1):
        for ground in ("paper", "card", "sunk"):
            for text in ("ink", "soft", "faint", "pos", "neg", "error", "good"):
                assert contrast(rgb(PALETTE[text][scheme]), rgb(PALETTE[ground][scheme])) >= 4.5, (text, ground, scheme)
        for shade in (POSITIVE, NEGATIVE):
            card = rgb(PALETTE["card"][scheme])
            mixed = tuple(a * alpha(LEVELS) + b * (1 - alpha(LEVELS)) for a, b in zip(shade, card, strict=True))
            assert contrast(rgb(PALETTE["ink"][scheme]), mixed) >= 4.5
    assert "[data-l=n10]" in css() and "prefers-color-scheme:dark" in css()
