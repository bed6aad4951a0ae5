"""The tree: nodes, forks, paths."""

from __future__ import annotations

import json

import pytest

import segviz as sv
from segviz.views.tree import EMBEDDED, _fallback, ordered, tree_data
from tests.fakes.fake_run import HOSTILE, write_run
from tests.views import inert
from tests.views.made import Lists, knot, write_tree


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> sv.Run:
    return sv.open(write_tree(tmp_path_factory.mktemp("trees") / "tree", (3, 2)))


def test_every_node_keeps_its_numbers_its_text_and_its_place(run):
    data, rows = sv.tree(run, 1, 0).data, {row["node"]: row for row in run.nodes(1, 0)}
    assert len(data["nodes"]) == len(rows) == 1 + 3 + 6
    for node in data["nodes"]:
        row = rows[node["node"]]
        assert (node["value"], node["stderr"], node["adv"], node["samples"]) == (
            row["value"], row["stderr"], row["advantage"], row["samples"])  # fmt: skip
        assert row["parent"] == (data["nodes"][node["up"]]["node"] if node["up"] >= 0 else -1)
        if node["up"] >= 0:
            pieces = run.rollout(1, 0, row["sample"]).pieces
            assert node["text"] == "".join(pieces[row["start"] : row["end"]]) and node["text"]
    assert data["nodes"][0]["text"] == "How many?"


def test_a_completion_s_path_is_its_tokens_node_numbers(run):
    data = sv.tree(run, 1, 0).data
    for sample, path in data["paths"].items():
        ids = run.rollout(1, 0, sample).row["node_ids"]
        assert [data["nodes"][i]["node"] for i, start, end in path for _ in range(start, end)] == ids


def test_edges_without_advantage_and_untrained_nodes_are_counted(run):
    rows, counts = run.nodes(1, 0)[1:], sv.tree(run, 1, 0).data["counts"]
    zero = sum(row["advantage"] == 0 for row in rows)
    assert 0 < zero < len(rows)
    assert (counts["zero"], counts["untrained"]) == (zero, sum(not row["trained"] for row in rows))
    assert (counts["leaves"], counts["completions"], counts["nodes"]) == (6, 6, 10)


def test_the_deciding_fork_counts_the_errors():
    # the fork at the prompt is the widest, but its errors are wider
    rows = [knot(0, -1, 0.5, 0.2), knot(1, 0, 0.0, 0.6), knot(2, 0, 1.0, 0.9), knot(3, 2, 0.3, 0.05)]
    rows += [knot(4, 2, 0.9, 0.1), knot(5, 3, 0.3), knot(6, 4, 0.9), knot(7, 1, 0.1)]
    data = tree_data(rows, [])
    assert data["fork"] is not None and data["nodes"][data["fork"]["node"]]["node"] == 2
    assert data["verdict"][0].startswith("The fork after node 2 decided: its 2 branches are worth from 0.30 ± 0.05")
    # known well, the prompt's fork decides
    sure = [row | ({"stderr": 0.01} if row["node"] in (1, 2) else {}) for row in rows]
    assert tree_data(sure, [])["verdict"][0].startswith("The first fork, after the prompt, decided")


def test_a_state_without_error_cannot_decide_but_a_reward_can():
    # one continuation a state: its value is a guess; a finished completion is worth exactly its reward
    rows = [
        knot(0, -1, 0.5),
        knot(1, 0, 0.0),
        knot(2, 0, 1.0),
        knot(3, 1, 1.0),
        knot(4, 1, 0.9),
        knot(5, 2, 1.0),
    ]
    fork = tree_data(rows, [])["fork"]
    assert fork["node"] == 1 and [rows[i]["value"] for i in (fork["low"], fork["high"])]


def test_the_words_in_which_the_branches_part_are_told(tmp_path):
    says = {1: [" a", " b"], 2: [" a", " c"], 3: [" x", " y"]}
    run = sv.open(write_tree(tmp_path / "words", (3,), tokens=2, seed=1, text=lambda n: says.get(n, ["", ""])))
    data = sv.tree(run, 1, 0).data
    low, high = (data["nodes"][data["fork"][name]]["node"] for name in ("low", "high"))
    a, b = (" ".join(word.strip() for word in says[n]) for n in (low, high))
    if a[0] == b[0]:
        a, b = a[2:], b[2:]
    assert data["verdict"][1] == f"Where node {low} says “{a}”, node {high} says “{b}”."


def test_of_forks_that_differ_as_much_the_first_is_named_and_the_others_are_counted():
    rows = [knot(0, -1, 0.5, 0.0), knot(1, 0, 0.5, 0.0), knot(2, 0, 0.5, 0.0)]
    rows += [knot(3 + i, 1 + i // 2, float(i % 2)) for i in range(4)]
    verdict = tree_data(rows, [])["verdict"]
    assert "after node 1 decided" in verdict[0] and verdict[-1] == "1 other fork settled as much."


@pytest.mark.parametrize(("leaves", "decides"), [(2, False), (3, False), (4, True)])
def test_branches_whose_few_samples_agree_are_not_known_exactly(leaves, decides):
    # all leaves below one branch earned 1, all below the other 0: with p = 1/2 that is chance 2 / C(2n, n)
    rows = [knot(0, -1, 0.5, 0.5, 2 * leaves)]
    for branch in (0, 1):
        rows.append(knot(1 + branch, 0, float(branch), 0.0, leaves))
        rows += [knot(10 * (1 + branch) + i, 1 + branch, float(branch), samples=1) for i in range(leaves)]
    data = tree_data(rows, [])
    assert (data["fork"] is not None) == decides
    said = " ".join(data["verdict"]) + _fallback(data)
    assert "± 0.00" not in said and f"all {leaves} alike" in said


def test_of_deciding_forks_the_one_that_settled_most_is_named():
    # the last fork parts two completions for certain, the first one eight
    rows = [knot(0, -1, 0.5, 0.3, 9), knot(1, 0, 0.0, 0.0, 4), knot(2, 0, 0.9, 0.1, 5)]
    rows += [knot(10 + i, 1, 0.0, samples=1) for i in range(4)] + [knot(20 + i, 2, 1.0, samples=1) for i in range(3)]
    rows += [knot(30, 2, 0.5, 0.5, 2), knot(31, 30, 0.0, samples=1), knot(32, 30, 1.0, samples=1)]
    data = tree_data(rows, [])
    assert data["nodes"][data["fork"]["node"]]["node"] == 0
    assert "Of 4 forks that can be weighed, 2 differ beyond noise" in data["verdict"][1]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([knot(0, -1, 0.5)], "Only the prompt is recorded"),
        ([knot(0, -1, 0.5), knot(1, 0, 1.0)], "Nothing forks here"),
        ([knot(0, -1, None), knot(1, 0, None), knot(2, 0, None)], "No values are recorded"),
        ([knot(0, -1, 0.5), knot(1, 0, 0.5), knot(2, 0, 0.5)], "every state is worth the same, 0.50"),
        ([knot(0, -1, 0.5, 0.1), knot(1, 0, 0.4, 0.3), knot(2, 0, 0.6, 0.3), knot(3, 1, 0.4), knot(4, 2, 0.6)],
         "nowhere do the values of siblings differ beyond noise (1.96 standard errors)"),
        ([knot(0, -1, 0.5, 0.1), knot(1, 0, 1.0), knot(2, 0, 1.0), knot(3, 0, 0.5, None), knot(4, 3, 0.5)],
         "nowhere do the values of siblings differ"),
    ],
)  # fmt: skip
def test_where_no_fork_decides_it_says_why(rows, said):
    data = tree_data(rows, [])
    assert said in data["verdict"][0] and data["fork"] is None and data["empty"] is None
    assert len(data["nodes"]) == len(rows)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([knot(0, -1, 0.5), knot(3, 7, 1.0)], "node 3 hangs on node 7, which is not there"),
        ([knot(0, -1, 0.5), knot(1, -1, 1.0)], "2 roots"),
        ([knot(1, 2, 0.5), knot(2, 1, 1.0)], "0 roots"),
        ([knot(0, -1, 0.5), knot(1, 2, 0.5), knot(2, 1, 1.0)], "in a circle"),
        ([knot(0, -1, 0.5), knot(0, -1, 1.0)], "stands there twice"),
    ],
)
def test_a_node_table_that_is_no_tree_is_told_and_not_drawn(rows, said):
    data = tree_data(rows, [])
    assert said in data["empty"] and "step 1, group 0" in data["empty"] and not data["nodes"]


def test_values_that_were_not_measured_are_counted_and_stay_missing():
    rows = [knot(0, -1, 0.5), knot(1, 0, None, advantage=None), knot(2, 0, float("nan")), knot(3, 0, 1.0)]
    data = tree_data(rows, [])
    assert [n["value"] for n in data["nodes"]] == [0.5, None, None, 1.0]
    assert "2 of 4 nodes have no value" in data["notices"][0] and data["counts"]["unknown"] == 1
    assert data["counts"]["zero"] == 0
    json.dumps(data, allow_nan=False)


def test_the_rows_may_come_in_any_order():
    rows = [knot(0, -1, 0.5), knot(1, 0, 0.2), knot(2, 0, 0.8), knot(3, 1, 0.2), knot(4, 2, 0.8)]
    assert [row["node"] for row in ordered(rows[::-1])] == [0, 1, 3, 2, 4]


def test_a_run_of_a_method_without_nodes_names_those_that_have_them_and_the_command(tmp_path):
    sapo = sv.open(write_run(tmp_path / "sapo", steps=1))
    view = sv.tree(sapo, 1, 0)
    for text in (view.data["empty"], Lists(view.fallback).text):
        assert "SAPO (segment-aligned) records no nodes" in text
        assert "SPO-tree, SPO-chain, VinePPO and Fork values" in text and "segpo train --method spo_tree" in text


def test_an_older_run_of_a_tree_method_without_the_table_says_so(tmp_path):
    path = write_run(tmp_path / "old", method="vineppo", steps=1)
    said = sv.tree(sv.open(path), 1, 0).data["empty"]
    assert "before nodes were recorded" in said and "segpo train --method vineppo" in said


def test_an_unreadable_table_is_called_unreadable(tmp_path):
    path = write_tree(tmp_path / "broken")
    (file,) = (path / "nodes").glob("*.parquet")
    file.write_bytes(b"not parquet at all")
    assert "Nodes of step 1 could not be read" in sv.tree(sv.open(path), 1, 0).data["empty"]


def test_unreadable_rollouts_leave_the_nodes_without_their_texts(tmp_path):
    path = write_tree(tmp_path / "torn")
    (file,) = (path / "rollouts").glob("*.parquet")
    file.write_bytes(b"PAR1 torn")
    data = sv.tree(sv.open(path), 1, 0).data
    assert len(data["nodes"]) == 10 and all(node["text"] is None for node in data["nodes"])
    assert "Rollouts of step 1 could not be read" in data["notices"][0] and not data["ribbons"]


def test_a_group_that_is_not_recorded_is_an_error_that_names_those_that_are(run):
    with pytest.raises(KeyError, match=r"step 1 has no group 5; its groups: \[0\]"):
        sv.tree(run, 1, 5)
    with pytest.raises(KeyError, match="recorded steps: 1"):
        sv.tree(run, 9, 0)


def test_some_completions_of_a_large_tree_travel_with_it_each_outcome_first(tmp_path):
    run = sv.open(write_tree(tmp_path / "large", (4, 4, 4), tokens=2))
    data = sv.tree(run, 1, 0).data
    assert len(data["ribbons"]) == EMBEDDED < data["counts"]["leaves"] == 64
    leaves = {node["sample"]: (node["up"], node["value"]) for node in data["nodes"] if node["end"] == 6}
    assert {leaves[sample] for sample in data["ribbons"]} == set(leaves.values())


def test_chains_share_their_states_once_and_are_called_states(tmp_path):
    run = sv.open(write_tree(tmp_path / "chain", (3, 2), method="spo_chain"))
    data = sv.tree(run, 1, 0).data
    assert data["chain"] and data["method"] == "SPO-chain"
    shared = [sample for sample, path in data["paths"].items() if path[0] == data["paths"][0][0]]
    assert shared == [0, 1]


def test_a_chain_of_thousands_of_states_is_flat_and_no_recursion(run):
    rows = [knot(0, -1, 0.5)] + [knot(i, i - 1, 0.5, end=i, start=i - 1) for i in range(1, 3000)]
    data = tree_data(rows, [])
    assert len(data["paths"][0]) == 2999
    view = sv.View("tree", "x", data, "")
    assert len(view.html()) > 10_000


def test_the_static_list_nests_as_the_tree_forks(run):
    parsed = Lists(sv.tree(run, 1, 0).fallback)
    items = [(depth, text) for depth, text in parsed.items if text.startswith("node ")]
    assert [text.split(":")[0] for _, text in items] == [f"node {n['node']}" for n in sv.tree(run, 1, 0).data["nodes"]]
    assert [depth for depth, _ in items] == [1, 2, 3, 3, 2, 3, 3, 2, 3, 3]
    first = run.nodes(1, 0)[1]
    assert f"V {first['value']:.2f} ± {first['stderr']:.2f}" in items[1][1] and "n 2" in items[1][1]
    assert "script" not in parsed.tags


def test_hostile_texts_stay_text_in_the_static_list(tmp_path):
    run = sv.open(write_tree(tmp_path / "hostile", (2, 2), tokens=len(HOSTILE), text=lambda _: list(HOSTILE)))
    fallback = sv.tree(run, 1, 0).fallback
    inert.check(fallback)
    assert "<img src=x onerror" in Lists(fallback).text
