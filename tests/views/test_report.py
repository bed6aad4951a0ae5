"""The report of a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import segviz as sv
from segpo_core.record.store import Recorder
from segviz.show.theme import LEVELS, css, method_label
from segviz.views.report import pick, report_view
from tests.fakes.fake_run import row, write_run
from tests.views.made import Page


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
