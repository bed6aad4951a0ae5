"""The credit diff: one completion under several methods."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import segviz as sv
from segpo_core.record.store import CREDIT_SCHEMA, step_name
from segviz.parts.credit import segment_credit, token_credit
from segviz.views.compare import compare_data, disagreement
from tests.fakes.fake_run import hostile_row, row, write_run
from tests.views.made import Page, Table, credited, unpack


@pytest.fixture
def run(tmp_path) -> sv.Run:
    return sv.open(write_run(tmp_path / "demo", steps=4, extra=[hostile_row()]))


def test_patterns_and_blame_of_each_method():
    shown = {
        "grpo": credited("grpo", [-0.8] * 4, [0]),
        "sapo": credited("sapo", [0.1, 0.1, -0.6, -0.6], [0, 2]),
        "ppo": credited("ppo", [-1.0, -1.0, -0.99, -1.0], [0, 1, 2, 3]),
        "spo_chain": credited("spo_chain", [None, None, -0.3, -0.3], [0, 2], loss_mask=[False, False, True, True]),
        "rloo": credited("rloo", [0.0] * 4, [0]),
        "mine": credited("mine", [None] * 4, [0], segment_advantage=None),
    }
    data = sv.compare(shown).data
    methods = {method["name"]: method for method in data["methods"]}
    assert {name: m["pattern"] for name, m in methods.items()} == {
        "grpo": "uniform", "sapo": "cuts", "ppo": "almost", "spo_chain": "cuts", "rloo": "zero", "mine": "none",
    }  # fmt: skip
    assert methods["sapo"]["limit"] == 0.6 and methods["grpo"]["blamed"] is None
    blamed = methods["sapo"]["blamed"]
    assert (blamed["start"], blamed["end"], blamed["text"], blamed["by_token"]) == (2, 4, "cd", False)
    assert blamed["credit"] == pytest.approx(-0.6)
    assert [m["pattern"] for m in data["methods"]] == ["cuts", "cuts", "almost", "uniform", "zero", "none"]
    columns, place = unpack(data["pack"]), data["methods"].index(methods["spo_chain"])
    assert np.isnan(columns[f"a{place}"][:2]).all() and columns[f"c{place}"].tolist() == [2, 2]
    said = " ".join(data["verdict"])
    assert "GRPO gives every token the same credit and names no place." in said
    assert "RLOO teaches nothing here" in said and "No credit of mine is recorded" in said


def test_whether_the_blame_hits_the_first_true_error():
    error = {"error_start": 2, "error_end": 3, "error_kind": "reasoning", "answer_right": False}
    data = compare_data(
        {
            "vineppo": credited("vineppo", [0.2, 0.2, -0.6, -0.6], [0, 2], **error),
            "sapo": credited("sapo", [-0.5, -0.5, 0.1, 0.1], [0, 2], **error),
            "grpo": credited("grpo", [-1.0] * 4, [0], **error),
        }
    )
    assert [m["hit"] for m in data["methods"]] == [1, 0, None]
    assert [m["chance"] for m in data["methods"]] == [0.5, 0.5, 1]
    assert data["verdict"][:2] == [
        "VinePPO blames the segment that holds the first true error.",
        "SAPO (segment-aligned) blames another place.",
    ]
    assert "The first true error is at token 3 (reasoning)." in data["verdict"]


def test_credit_of_tokens_outside_the_loss_is_not_called_missing():
    left_out = credited("spo_tree", [-0.5, 0.0, 0.0], [0, 1], loss_mask=[False] * 3)
    view = sv.compare({"spo_tree": left_out, "none": credited("grpo", [None] * 3, [0])})
    assert [method["pattern"] for method in view.data["methods"]] == ["untrained", "none"]
    assert view.data["verdict"][:1] == ["SPO-tree leaves it out: none of its tokens enters the loss."]
    assert "No credit of none" in view.data["verdict"][1] and "no token in the loss" in view.fallback


def test_disagreement_is_the_weaker_side_on_each_methods_own_scale():
    a, b, c = np.array([2.0, -2.0, 1.0, np.nan]), np.array([-0.1, -0.2, 0.2, 0.1]), np.array([0.0, 0.5, 0.5, -1.0])
    np.testing.assert_allclose(disagreement([a, b], [2.0, 0.2]), [0.5, 0, 0, 0])
    np.testing.assert_allclose(disagreement([a, b, c], [2.0, 0.2, 1.0]), [0.5, 0.5, 0, 0.5])
    assert disagreement([a], [2.0]) is None
    only = compare_data({"sapo": credited("sapo", [0.1, -0.6], [0, 1]), "grpo": credited("grpo", [-0.8] * 2, [0])})
    assert "apart" not in unpack(only["pack"])  # uniform credit has no say about places


def test_weights_count_and_untrained_tokens_do_not():
    item = credited("srpo", [-0.5, -1.5, -1.0, -9.0], [0, 2], loss_mask=[True, True, True, False])
    assert segment_credit(item) == [-1.0, -1.0]
    np.testing.assert_array_equal(token_credit(item), [-0.5, -1.5, -1.0, np.nan])
    assert compare_data({"srpo": item})["methods"][0]["limit"] == 1.5


def test_one_rollout_is_compared_with_credit_computed_elsewhere():
    base = credited("sapo", [0.1, 0.1, -0.6, -0.6], [0, 2], segment_value=[0.5, 0.6], values=[0.1] * 4)
    new = {"advantages": [-0.3] * 4, "segment_start": [0], "segment_end": [4], "segment_advantage": [-0.3]}
    data = sv.compare(base, credits={"rloo": new, "vineppo": credited("vineppo", [0.2] * 4, [0])}).data
    assert [m["name"] for m in data["methods"]] == ["sapo", "rloo", "vineppo"]
    assert data["methods"][1] | {"low": -0.3, "segments": 1} == data["methods"][1]
    other = base.judged({"method": "rloo"} | new)
    assert other.row["values"] == [0.1] * 4 and "segment_value" not in other.row and "ratio" not in other.row


def test_what_cannot_be_compared_is_said():
    base = credited("sapo", [0.1, -0.6], [0, 1])
    data = sv.compare({"sapo": base, "grpo": credited("grpo", [0.5] * 3, [0])}).data
    assert len(data["methods"]) == 1
    assert data["notices"] == ["GRPO was computed for other tokens (3 there, 2 here) and is left out."]
    short = sv.compare(base, credits={"rloo": {"advantages": [0.1]}}).data
    assert short["methods"][1]["pattern"] == "none" and "advantages has 1 entries" in short["notices"][0]
    with pytest.raises(ValueError, match="at least one rollout"):
        sv.compare([])
    with pytest.raises(ValueError, match="two rollouts have the method 'sapo'"):
        sv.compare([base, base])


@pytest.mark.parametrize("changed", [{"pieces": [], "text": ""}, {"pieces": None}, {"advantages": None}])
def test_odd_rollouts_make_a_diff(changed):
    view = sv.compare(row(text="<think> 1 </think>") | changed)
    assert json.loads(Page(view.html()).scripts[0])["kind"] == "compare" and view.data["verdict"]


def write_credit(run: sv.Run, method: str, step: int, value: float) -> None:
    rows = [
        {
            "step": step, "group": r["group"], "sample": r["sample"], "method": method,
            "advantages": [value] * r["tokens"], "segment_start": [0], "segment_end": [r["tokens"]],
            "segment_advantage": [value], "loss_mask": [True] * r["tokens"],
        }
        for r in run.rollouts_at(step)
    ]  # fmt: skip
    folder = run.path / "credit" / method
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=CREDIT_SCHEMA), folder / f"{step_name(step)}.parquet")


def test_a_run_gives_the_credit_of_every_method_it_has(run):
    assert list(run.credits(1, 0, 1)) == ["sapo"]
    write_credit(run, "grpo", 1, -0.5)
    write_credit(run, "sapo", 1, 9.0)  # what training recorded stays
    found = run.credits(1, 0, 1)
    assert list(found) == ["sapo", "grpo"] and found["grpo"].pieces == found["sapo"].pieces
    assert set(found["grpo"].row["advantages"]) == {-0.5} and found["sapo"].row["advantages"][0] != 9.0
    assert found["grpo"].row["method"] == "grpo" and found["grpo"].row.get("segment_value") is None
    assert found["grpo"].images == found["sapo"].images
    (run.path / "credit" / "grpo" / f"{step_name(1)}.parquet").write_bytes(b"PAR1 torn")
    assert list(run.credits(1, 0, 1)) == ["sapo"] and "Credit of grpo at step 1" in run.problems[0]
    with pytest.raises(KeyError, match="recorded steps: 1"):
        run.credits(3, 0, 1)
    with pytest.raises(KeyError, match=r"has samples \[0, 1, 2, 3\]; there is no sample 9"):
        run.credits(1, 0, 9)


def test_the_fallback_of_a_diff_is_a_table_of_methods():
    error = {"error_start": 1, "error_end": 2, "error_kind": "reasoning"}
    shown = {"sapo": credited("sapo", [0.25, -0.6], [0, 1], **error), "grpo": credited("grpo", [0.5] * 2, [0], **error)}
    header, first, second = Table(sv.compare(shown)._repr_html_()).rows
    assert header[0] == "method" and header[-1] == "holds the first true error"
    assert first == ["SAPO (segment-aligned)", "−0.60 to +0.25", "2", "tokens 2 to 2: b", "−0.60", "yes"]
    assert second == ["GRPO", "+0.50 on every token", "1", "no place", "–", "–"]
