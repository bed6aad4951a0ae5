"""What the staircase, the credit diff and the group make, parsed: no browser."""

from __future__ import annotations

import html.parser
import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import segviz as sv
from segpo_core.record.store import CREDIT_SCHEMA, step_name
from segviz.parts.credit import segment_credit, token_credit
from segviz.views.compare import compare_data, disagreement
from segviz.views.groups import AFTER, BEFORE, group_data, shared_tokens
from segviz.views.staircase import Z, staircase_data, states_of, steps_of
from tests.fakes.fake_run import HOSTILE, hostile_row, long_row, row, write_run
from tests.views import inert
from tests.views.test_segviz import Page, unpack


class Table(html.parser.HTMLParser):
    """The cells of a fallback's table, row by row."""

    def __init__(self, text: str):
        super().__init__()
        self.rows: list[list[str]] = []
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._inside = True

    def handle_endtag(self, tag):
        self._inside = self._inside and tag not in ("td", "th")

    def handle_data(self, data):
        if self._inside:
            self.rows[-1][-1] += data


def sampled(
    values: list[float | None], errors: list[float | None] | None, reward: float | None = 0.0, **columns
) -> dict:
    """A completion of one-letter tokens with Monte Carlo values before them."""
    pieces = list("abcdefghijklmnopqrstuvwxyz")[: len(values)]
    plain = {"values": None, "segment_value": None, "segment_stderr": None, "method": "vineppo"}
    return row(pieces=pieces, reward=reward) | plain | {"mc_values": values, "mc_stderr": errors} | columns


def judged(item: dict) -> list[tuple]:
    rollout = sv.Rollout(item)
    return [(step.start, step.end, step.judgement) for step in steps_of(rollout, states_of(rollout)[1])]


def credited(name: str, credit: list[float | None], cuts: list[int], **columns) -> sv.Rollout:
    """Credit of a method on tokens of one letter; `cuts` are where segments start."""
    pieces, ends = list("abcdefghij")[: len(credit)], [*cuts[1:], len(credit)]
    return sv.Rollout(
        row(pieces=pieces, method=name)
        | {"advantages": credit, "weights": None, "segment_start": cuts, "segment_end": ends, "segment_rule": None}
        | {"segment_advantage": [credit[a] for a in cuts], "segment_value": None, "segment_stderr": None}
        | columns
    )  # fmt: skip


@pytest.fixture
def run(tmp_path) -> sv.Run:
    return sv.open(write_run(tmp_path / "demo", steps=4, extra=[hostile_row()]))


# --- the staircase --------------------------------------------------------------------------------------------------


def test_a_fall_is_beyond_noise_from_1_96_standard_errors_of_the_difference():
    values = [0.8, None, 0.8 - 0.195, None, 0.2, None]
    item = sampled(values, [0.06, None, 0.08, None, 0.1, None], reward=0.2)  # √(0.06² + 0.08²) = 0.1
    assert judged(item) == [(0, 2, "within"), (2, 4, "beyond"), (4, 6, "within")]
    item["mc_values"][2] = 0.8 - 0.197
    assert judged(item)[0] == (0, 2, "beyond")
    columns = unpack(staircase_data(sv.Rollout(item))["pack"])
    assert columns["st_start"].tolist() == [0, 2, 4] and columns["st_j"].tolist() == [2, 2, 1]
    assert columns["st_z"][0] == pytest.approx(-1.97, abs=1e-4)
    np.testing.assert_array_equal(columns["st_value"], np.float32([0.8, 0.603, 0.2]))


def test_the_verdict_names_the_fall_and_whether_the_first_error_lies_there():
    errors = [0.05, None, 0.05, None, 0.05, None]
    item = sampled([0.9, None, 0.85, None, 0.3, None], errors, truth={"answer_right": False})
    item |= {"segment_start": [0, 2, 4], "segment_end": [2, 4, 6]}
    assert staircase_data(sv.Rollout(item))["verdict"] == [
        "The largest fall beyond noise is in segment 2 (tokens 3 to 4): 0.85 → 0.3, z = −7.78.",
        "No true error is known in it.",
    ]
    there = item | {"error_start": 3, "error_end": 4, "error_kind": "reasoning"}
    assert staircase_data(sv.Rollout(there))["verdict"][1] == "The first true error lies there (reasoning)."
    early = item | {"error_start": 0, "error_end": 1, "error_kind": "perception"}
    assert staircase_data(sv.Rollout(early))["verdict"][1] == (
        "The first true error is not there: it is at token 1, 2 tokens before it (perception)."
    )
    late = item | {"error_start": 5, "error_end": 6, "error_kind": "reasoning"}
    assert "token 6, 2 tokens after it" in staircase_data(sv.Rollout(late))["verdict"][1]
    del item["truth"], item["answer_right"]
    assert len(staircase_data(sv.Rollout(item))["verdict"]) == 1  # nobody said whether there is an error


@pytest.mark.parametrize(
    ("values", "errors", "reward", "said"),
    [
        ([0.5, 0.45], [0.2, 0.2], 0.4, "No fall is beyond noise. The largest is in segment 1 (token 1): 0.5 → 0.45"),
        ([0.2, 0.5], [0.1, 0.1], 1.0, "The value never fell."),
        ([0.2, 0.5], [0.1, 0.1], None, "The value never fell; no reward is recorded."),
        ([0.9, 0.1], None, 0.0, "The largest fall is in segment 1 (token 1): 0.9 → 0.1. Whether it is beyond noise "
                                "is not known: no standard errors are recorded."),
        ([1.0, 0.0], [0.0, 0.0], 0.0, "The largest fall is in segment 1 (token 1): 1 → 0. Whether it is beyond noise "
                                      "is not known: all samples of each state agreed."),
        ([0.5, 0.4], [0.1, 0.1], 0.0, "The largest fall beyond noise is in segment 2 (token 2): 0.4 → 0 (the"),
    ],
)  # fmt: skip
def test_the_verdict_says_what_is_known_of_noise(values, errors, reward, said):
    item = sampled(values, errors, reward, segment_start=[0, 1], segment_end=[1, 2])
    assert staircase_data(sv.Rollout(item))["verdict"][0].startswith(said)


def test_a_standard_error_of_zero_is_not_certainty():
    # all nine samples of the first state were right: the largest error of the completion stands in for its 0
    item = sampled([1.0, 0.7, 0.7], [0.0, 0.15, 0.1], reward=0.7)
    assert judged(item)[0][2] == "within"
    step = steps_of(sv.Rollout(item), states_of(sv.Rollout(item))[1])[0]
    assert step.z == pytest.approx(-0.3 / math.hypot(0.15, 0.15))
    assert any("1 of 3 states agreed" in note and "0.15" in note for note in staircase_data(sv.Rollout(item))["notes"])


def test_monte_carlo_values_come_before_segment_values_before_the_critic():
    base = row(pieces=["a", "b", "c", "d"]) | {
        "values": [0.1, 0.2, 0.3, 0.4], "segment_start": [0, 2], "segment_end": [2, 4],
        "segment_value": [0.5, 0.6], "segment_stderr": [0.1, None], "mc_values": [None, 0.7, None, 0.8],
        "mc_stderr": [None, 0.2, None, None],
    }  # fmt: skip

    def told(**changed):
        source, states = states_of(sv.Rollout(base | changed))
        return source, [tuple(state) for state in states]

    assert told() == ("mc", [(1, 0.7, 0.2), (3, 0.8, None)])
    assert told(mc_values=None) == ("segment", [(0, 0.5, 0.1), (2, 0.6, None)])
    assert told(mc_values=None, segment_value=None) == ("critic_cuts", [(0, 0.1, None), (2, 0.3, None)])
    alone = {"mc_values": None, "segment_value": None, "segment_start": None, "segment_ids": None}
    assert told(**alone) == ("critic", [(t, v, None) for t, v in enumerate(base["values"])])
    assert told(**alone, values=None) == ("", [])
    data = staircase_data(sv.Rollout(base))
    columns = unpack(data["pack"])
    np.testing.assert_array_equal(columns["val"], np.float32(base["values"]))
    assert columns["own_start"].tolist() == [0, 2] and columns["own_value"].tolist() == pytest.approx([0.5, 0.6])
    assert "No value is recorded before token 2." in data["notes"]


def test_without_values_the_staircase_says_so():
    view = sv.staircase(row(text="<think> 1 </think>", method="grpo"))
    assert view.data["verdict"][0] == "No values are recorded: GRPO estimated none for this completion."
    assert view.data["largest"] == [] and not Table(view._repr_html_()).rows


@pytest.mark.parametrize(
    "changed",
    [
        {"pieces": [], "text": "", "segment_start": [], "segment_end": []},
        {"pieces": ["one"], "text": "one", "mc_values": [0.5], "mc_stderr": [0.1]},
        {"pieces": None, "text": "a text"},
        {"mc_values": [0.5]},
        {"mc_values": [float("nan")] * 5, "values": [float("inf")] * 5, "segment_value": None},
        {"mc_values": [None] * 5, "reward": None},
    ],
)
def test_odd_rollouts_make_a_staircase(changed):
    view = sv.staircase(row(text="<think> 1 2 </think>") | changed)
    assert json.loads(Page(view.html()).scripts[0])["kind"] == "staircase"
    assert view.data["verdict"] and "<div" in view._repr_html_()


def test_the_fallback_of_a_staircase_is_a_table_of_its_steps():
    item = sampled([0.9, None, 0.2], [0.05, None, 0.1])
    header, first, last = Table(sv.staircase(item)._repr_html_()).rows
    assert header[:3] == ["tokens", "text", "value before"]
    assert first == ["1–2", "ab", "0.9", f"± {Z * 0.05:.3g}", "0.2", "−0.70", "−6.26", "beyond noise"]
    assert last[0] == "3–3" and last[4] == "0" and last[-1] == "beyond noise"


# --- the credit diff ------------------------------------------------------------------------------------------------


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


# --- the group ------------------------------------------------------------------------------------------------------


def sibling(sample: int, words: str, reward: float | None, **columns) -> sv.Rollout:
    pieces = [f" {word}" for word in words.split()]
    n = len(pieces)
    plain = {"token_ids": None, "old_logprobs": [math.log(0.5)] * n, "entropy": [0.25] * n, "answer_right": None}
    return sv.Rollout(row(1, 0, sample, pieces=pieces, reward=reward, method="grpo") | plain | columns)


def test_each_row_forks_from_its_closest_sibling_with_another_reward():
    data = group_data([sibling(0, "a b c d", 0.0), sibling(1, "a b x d", 1.0), sibling(2, "a q c", 0.0)])
    assert [r["samples"] for r in data["rows"]] == [[1], [2], [0]]
    won, far, near = data["rows"]
    assert (won["fork"]["at"], won["fork"]["piece"], won["fork"]["rival"], won["fork"]["rival_piece"]) == (
        2, " x", 0, " c",
    )  # fmt: skip
    assert (far["fork"]["at"], near["fork"]["at"]) == (1, 2)
    assert won["fork"]["probability"] == pytest.approx(0.5) and won["fork"]["entropy"] == 0.25
    assert data["shared"] == {"tokens": 1, "text": " a", "cut": 0} and data["signal"]
    assert data["verdict"] == [
        "1 of 3 completions earned the highest reward, 1.",
        "The closest pair: sample 1 (reward 1) and sample 0 (reward 0) share 2 tokens, then sample 1 says ‘ x’ "
        "(probability 0.5) where sample 0 says ‘ c’ (probability 0.5).",
    ]


@pytest.mark.parametrize(("start", "end", "place"), [(2, 3, "right there"), (3, 4, "1 token later"),
                                                    (0, 1, "2 tokens earlier, in what both say")])  # fmt: skip
def test_the_first_true_error_is_placed_by_the_fork(start, end, place):
    wrong = sibling(0, "a b c d", 0.0, error_start=start, error_end=end, error_kind="reasoning")
    data = group_data([wrong, sibling(1, "a b x d", 1.0)])
    assert data["verdict"][-1] == f"The first true error of sample 0 is {place}."
    assert data["rows"][1]["error"]["place"] == place and data["rows"][0]["error"] is None


def test_equal_rewards_give_no_signal_and_that_is_said():
    data = group_data([sibling(i, words, 0.0) for i, words in enumerate(("a b", "a c", "a b"))])
    assert not data["signal"] and data["verdict"][0] == "All 3 completions have reward 0."
    assert "gives no signal" in data["verdict"][1]
    assert {r["fork"]["rival"] for r in data["rows"]} == {0, 1} and all(r["fork"]["at"] == 1 for r in data["rows"])


def test_completions_that_are_alike_are_one_row():
    rollouts = [sibling(i, words, r) for i, (words, r) in enumerate([("a b", 1.0), ("a c", 0.0), ("a b", 1.0)])]
    credit = {"advantages": [0.7, 0.7]}
    rollouts = [sv.Rollout(r.row | (credit if r.row["reward"] else {"advantages": [-1.0, -1.0]})) for r in rollouts]
    data = group_data(rollouts)
    assert [r["samples"] for r in data["rows"]] == [[0, 2], [1]] and data["completions"] == 3
    assert (data["rows"][0]["low"], data["rows"][0]["high"]) == (0.7, 0.7)
    again = group_data([rollouts[0], rollouts[1], sv.Rollout(rollouts[2].row | {"advantages": [0.7, 0.9]})])
    assert [r["samples"] for r in again["rows"]] == [[0], [2], [1]]  # same words, other credit


def test_shared_beginnings_by_brute_force():
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 2, size=int(n)).tolist() for n in rng.integers(0, 9, size=12)]
    got = shared_tokens(rows)
    for i, a in enumerate(rows):
        for j, b in enumerate(rows):
            want = next((t for t in range(min(len(a), len(b))) if a[t] != b[t]), min(len(a), len(b)))
            assert got[i, j] == want


@pytest.mark.parametrize(
    ("rollouts", "said"),
    [
        ([sibling(0, "a b", 1.0)], "The group has one completion, with reward 1: there is no sibling"),
        ([sibling(0, "a", None), sibling(1, "b", None)], "No reward is recorded for any of the 2 completions."),
        ([sibling(0, "a", None), sibling(1, "b", 1.0), sibling(2, "c", 1.0)], "All 2 completions with a reward have"),
        ([sibling(0, "", 0.0), sibling(1, "b", 1.0)], "1 of 2 completions earned the highest reward, 1."),
        ([sibling(0, "a b", 0.0), sibling(1, "a b", 1.0)], "1 of 2 completions earned the highest reward, 1."),
        ([sibling(0, "a b", 0.0, pieces=None, text="a b"), sibling(1, "a c", 1.0)], "1 of 2 completions earned"),
    ],
)
def test_odd_groups_are_shown_for_what_they_are(rollouts, said):
    data = group_data(rollouts)
    assert data["verdict"][0].startswith(said)
    json.dumps(data)


def test_ends_empty_texts_and_missing_pieces_at_the_fork():
    data = group_data([sibling(0, "", 0.0), sibling(1, "b", 1.0)])
    assert [r["fork"]["piece"] for r in data["rows"]] == [" b", "(the end)"] and data["rows"][1]["tokens"] == 0
    same = group_data([sibling(0, "a b", 0.0), sibling(1, "a b", 1.0)])
    assert same["rows"][0]["fork"]["same"] and "same text with different rewards" in same["verdict"][1]
    lost = group_data([sibling(0, "a b", 0.0, pieces=None, text=" a b"), sibling(1, "a c", 1.0)])
    assert any("pieces were not recorded" in note and "(1 of 2" in note for note in lost["notices"])
    with pytest.raises(ValueError, match="at least one completion"):
        group_data([])


def test_64_completions_of_2000_tokens_are_cut_around_their_forks():
    base = long_row(2000)
    rollouts = []
    for i in range(64):
        pieces = [*base["pieces"][: 900 + i], f" own{i}", *base["pieces"][901 + i :]]
        rollouts.append(sv.Rollout(base | {"sample": i, "pieces": pieces, "token_ids": None, "reward": float(i % 2)}))
    data = group_data(rollouts)
    assert len(data["rows"]) == 64 and data["shared"]["tokens"] == 900 and data["shared"]["cut"] > 0
    for r in data["rows"]:
        assert r["first"] == r["fork"]["at"] - BEFORE and len(r["pieces"]) == BEFORE + 1 + AFTER
        assert r["after"] == 2000 - r["fork"]["at"] - 1 - AFTER
    assert "64 of 64 rows are cut" in data["window"]
    assert len(json.dumps(data)) < 600_000


def test_a_group_of_a_run_and_groups_that_are_not_there(run):
    view = sv.group(run, 1, 0)
    assert view.kind == "group" and view.data["key"] == "1/0" and view.data["completions"] == 4
    assert {s for r in view.data["rows"] for s in r["samples"]} == {0, 1, 2, 3} and view.data["pictures"]
    header, *rows = Table(view._repr_html_()).rows
    assert header[0] == "samples" and len(rows) == len(view.data["rows"])
    assert [float(r[1]) for r in rows] == sorted((float(r[1]) for r in rows), reverse=True)
    with pytest.raises(KeyError, match=r"no group 7; its groups: \[0, 1, 2, 90\]"):
        sv.group(run, 1, 7)
    with pytest.raises(KeyError, match="recorded steps: 1"):
        sv.group(run, 2, 0)


# --- hostile texts --------------------------------------------------------------------------------------------------


def hostile_views(run: sv.Run) -> dict[str, sv.View]:
    rollout = run.rollout(1, 90, 0)
    named = {HOSTILE[0]: rollout, HOSTILE[1]: sv.Rollout(rollout.row | {"advantages": [-1.0] * len(rollout.pieces)})}
    return {"staircase": sv.staircase(rollout), "compare": sv.compare(named), "group": sv.group(run, 1, 90)}


def test_hostile_texts_stay_data(run):
    for kind, view in hostile_views(run).items():
        page = Page(view.html())
        assert [tag for tag, _ in page.tags if tag in ("script", "img", "b")] == ["script", "script"], kind
        assert json.loads(page.scripts[0])["kind"] == kind
        inert.check(view._repr_html_())


def test_lone_surrogates_reach_no_file(tmp_path):
    item = row(pieces=["a\ud800", "\udfffb"], answer="\ud83d", example_id="\udc00")
    for view in (sv.staircase(item), sv.compare(item), sv.View("group", "?", group_data([sv.Rollout(item)]))):
        view.save(tmp_path / "page.html").read_text(encoding="utf-8")
        view._repr_html_().encode()
