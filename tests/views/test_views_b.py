"""The tree of a group and the roles of a completion: what the builders say, parsed, and what they do with bad input."""

from __future__ import annotations

import json
import math
import random
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import segviz as sv
from segpo_core.record.store import Recorder, image_digest, png_bytes
from segviz.views.tree import EMBEDDED, _fallback, ordered, tree_data
from tests.fakes.fake_run import HOSTILE, completion, picture, problem, row, write_run
from tests.views import inert

WORDS = "red blue green circle square triangle left right top bottom one two".split()


def asked(question: str) -> str:
    """A prompt with an image, as a row holds it."""
    return json.dumps([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}])


def write_tree(path: Path, branch: tuple[int, ...] = (3, 2), method: str = "spo_tree", tokens: int = 6, seed: int = 0,
               text=None) -> Path:  # fmt: skip
    """A run with one step and one group: a full tree, its leaves' rewards 0 or 1, written by the real recorder.

    `text(node)` gives the pieces of a node; they must be `tokens` long.
    """
    rng = random.Random(seed)
    recorder = Recorder(path)
    recorder.start({"method": method, "algo": {"name": method}}, method=method)
    parents, firsts, levels = [-1], [0], [[0]]
    for width in branch:
        levels.append([])
        for parent in levels[-2]:
            for _ in range(width):
                levels[-1].append(len(parents))
                parents.append(parent)
                firsts.append(0)
    leaves, count = levels[-1], len(parents)
    depth = [d for d, level in enumerate(levels) for _ in level]
    values, samples, errors = [0.0] * count, [0] * count, [None] * count
    says = [(text or (lambda _: [f" {rng.choice(WORDS)}" for _ in range(tokens)]))(node) for node in range(count)]
    for level in reversed(levels):
        for node in level:
            below = [child for child in range(count) if parents[child] == node]
            if not below:
                values[node], samples[node] = float(rng.random() < 0.5), 1
                continue
            values[node] = sum(values[c] for c in below) / len(below)
            samples[node] = sum(samples[c] for c in below)
            spread = sum((values[c] - values[node]) ** 2 for c in below) / max(1, len(below) - 1)
            errors[node] = math.sqrt(spread / len(below)) if len(below) > 1 else None
    rows, image, seen = [], picture([(0, "red", "circle")]), set()
    for sample, leaf in enumerate(leaves):
        way = [leaf]
        while parents[way[0]] > 0:
            way.insert(0, parents[way[0]])
        for node in set(way) - seen:
            firsts[node] = sample
        seen.update(way)
        pieces = [piece for node in way for piece in says[node]]
        ids = [node for node in way for _ in range(tokens)]
        credit = [values[n] - values[parents[n]] for n in ids]
        cuts = [tokens * i for i in range(len(way) + 1)]
        rows.append(
            row(
                1,
                0,
                sample,
                pieces=pieces,
                reward=values[leaf],
                method=method,
                node_ids=ids,
                advantages=credit,
                segment_ids=[t // tokens for t in range(len(ids))],
                segment_start=cuts[:-1],
                segment_end=cuts[1:],
                segment_advantage=[credit[c] for c in cuts[:-1]],
                segment_value=[values[parents[n]] for n in way],
                segment_stderr=None,
                segment_rule=None,
                weights=None,
                values=None,
                returns=None,
                images=[image_digest(image)],
                prompt=asked("How many?"),
            )  # fmt: skip
        )
    recorder.rollouts(1, rows, {image_digest(image): image})
    table = []
    for n in range(count):
        gain = None if n == 0 else values[n] - values[parents[n]]
        table.append(
            {"step": 1, "group": 0, "method": method, "node": n, "parent": parents[n], "sample": firsts[n],
             "start": tokens * max(0, depth[n] - 1), "end": tokens * depth[n], "value": values[n], "stderr": errors[n],
             "samples": samples[n], "advantage": gain, "trained": bool(gain)}
        )  # fmt: skip
    recorder.nodes(1, table)
    assert not recorder.failures, "the synthetic rows do not fit the schema"
    return path


def nodes_of(path: Path) -> tuple[sv.Run, list[dict]]:
    run = sv.open(path)
    return run, run.nodes(1, 0)


class Lists(HTMLParser):
    """Texts of the list items of a static page, each with how deep its list is nested; and every tag."""

    def __init__(self, html: str):
        super().__init__()
        self.depth, self.items, self.tags, self.text = 0, [], [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.depth += tag == "ul"
        if tag == "li":
            self.items.append([self.depth, ""])

    def handle_endtag(self, tag):
        self.depth -= tag == "ul"

    def handle_data(self, data):
        self.text += data
        if self.items:
            self.items[-1][1] += data


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> sv.Run:
    return sv.open(write_tree(tmp_path_factory.mktemp("trees") / "tree", (3, 2)))


# --- the tree -----------------------------------------------------------------------------------------------------


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


def node(number, parent, value, stderr=None, samples=4, **columns):
    """A row of the node table."""
    base = {"step": 1, "group": 0, "method": "spo_tree", "node": number, "parent": parent, "sample": 0, "start": 0,
            "end": 0 if parent < 0 else 3 * number, "value": value, "stderr": stderr, "samples": samples,
            "advantage": None if parent < 0 else 0.5, "trained": True}  # fmt: skip
    return base | columns


def test_the_deciding_fork_counts_the_errors():
    # the fork at the prompt is the widest, but its errors are wider
    rows = [node(0, -1, 0.5, 0.2), node(1, 0, 0.0, 0.6), node(2, 0, 1.0, 0.9), node(3, 2, 0.3, 0.05)]
    rows += [node(4, 2, 0.9, 0.1), node(5, 3, 0.3), node(6, 4, 0.9), node(7, 1, 0.1)]
    data = tree_data(rows, [])
    assert data["fork"] is not None and data["nodes"][data["fork"]["node"]]["node"] == 2
    assert data["verdict"][0].startswith("The fork after node 2 decided: its 2 branches are worth from 0.30 ± 0.05")
    # known well, the prompt's fork decides
    sure = [row | ({"stderr": 0.01} if row["node"] in (1, 2) else {}) for row in rows]
    assert tree_data(sure, [])["verdict"][0].startswith("The first fork, after the prompt, decided")


def test_a_state_without_error_cannot_decide_but_a_reward_can():
    # one continuation a state: its value is a guess; a finished completion is worth exactly its reward
    rows = [node(0, -1, 0.5), node(1, 0, 0.0), node(2, 0, 1.0), node(3, 1, 1.0), node(4, 1, 0.9), node(5, 2, 1.0)]
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
    rows = [node(0, -1, 0.5, 0.0), node(1, 0, 0.5, 0.0), node(2, 0, 0.5, 0.0)]
    rows += [node(3 + i, 1 + i // 2, float(i % 2)) for i in range(4)]
    verdict = tree_data(rows, [])["verdict"]
    assert "after node 1 decided" in verdict[0] and verdict[-1] == "1 other fork settled as much."


@pytest.mark.parametrize(("leaves", "decides"), [(2, False), (3, False), (4, True)])
def test_branches_whose_few_samples_agree_are_not_known_exactly(leaves, decides):
    # all leaves below one branch earned 1, all below the other 0: with p = 1/2 that is chance 2 / C(2n, n)
    rows = [node(0, -1, 0.5, 0.5, 2 * leaves)]
    for branch in (0, 1):
        rows.append(node(1 + branch, 0, float(branch), 0.0, leaves))
        rows += [node(10 * (1 + branch) + i, 1 + branch, float(branch), samples=1) for i in range(leaves)]
    data = tree_data(rows, [])
    assert (data["fork"] is not None) == decides
    said = " ".join(data["verdict"]) + _fallback(data)
    assert "± 0.00" not in said and f"all {leaves} alike" in said


def test_of_deciding_forks_the_one_that_settled_most_is_named():
    # the last fork parts two completions for certain, the first one eight
    rows = [node(0, -1, 0.5, 0.3, 9), node(1, 0, 0.0, 0.0, 4), node(2, 0, 0.9, 0.1, 5)]
    rows += [node(10 + i, 1, 0.0, samples=1) for i in range(4)] + [node(20 + i, 2, 1.0, samples=1) for i in range(3)]
    rows += [node(30, 2, 0.5, 0.5, 2), node(31, 30, 0.0, samples=1), node(32, 30, 1.0, samples=1)]
    data = tree_data(rows, [])
    assert data["nodes"][data["fork"]["node"]]["node"] == 0
    assert "Of 4 forks that can be weighed, 2 differ beyond noise" in data["verdict"][1]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([node(0, -1, 0.5)], "Only the prompt is recorded"),
        ([node(0, -1, 0.5), node(1, 0, 1.0)], "Nothing forks here"),
        ([node(0, -1, None), node(1, 0, None), node(2, 0, None)], "No values are recorded"),
        ([node(0, -1, 0.5), node(1, 0, 0.5), node(2, 0, 0.5)], "every state is worth the same, 0.50"),
        ([node(0, -1, 0.5, 0.1), node(1, 0, 0.4, 0.3), node(2, 0, 0.6, 0.3), node(3, 1, 0.4), node(4, 2, 0.6)],
         "nowhere do the values of siblings differ beyond noise (1.96 standard errors)"),
        ([node(0, -1, 0.5, 0.1), node(1, 0, 1.0), node(2, 0, 1.0), node(3, 0, 0.5, None), node(4, 3, 0.5)],
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
        ([node(0, -1, 0.5), node(3, 7, 1.0)], "node 3 hangs on node 7, which is not there"),
        ([node(0, -1, 0.5), node(1, -1, 1.0)], "2 roots"),
        ([node(1, 2, 0.5), node(2, 1, 1.0)], "0 roots"),
        ([node(0, -1, 0.5), node(1, 2, 0.5), node(2, 1, 1.0)], "in a circle"),
        ([node(0, -1, 0.5), node(0, -1, 1.0)], "stands there twice"),
    ],
)
def test_a_node_table_that_is_no_tree_is_told_and_not_drawn(rows, said):
    data = tree_data(rows, [])
    assert said in data["empty"] and "step 1, group 0" in data["empty"] and not data["nodes"]


def test_values_that_were_not_measured_are_counted_and_stay_missing():
    rows = [node(0, -1, 0.5), node(1, 0, None, advantage=None), node(2, 0, float("nan")), node(3, 0, 1.0)]
    data = tree_data(rows, [])
    assert [n["value"] for n in data["nodes"]] == [0.5, None, None, 1.0]
    assert "2 of 4 nodes have no value" in data["notices"][0] and data["counts"]["unknown"] == 1
    assert data["counts"]["zero"] == 0
    json.dumps(data, allow_nan=False)


def test_the_rows_may_come_in_any_order():
    rows = [node(0, -1, 0.5), node(1, 0, 0.2), node(2, 0, 0.8), node(3, 1, 0.2), node(4, 2, 0.8)]
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
    rows = [node(0, -1, 0.5)] + [node(i, i - 1, 0.5, end=i, start=i - 1) for i in range(1, 3000)]
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


# --- the roles ----------------------------------------------------------------------------------------------------


def seen(kind: str = "perception", **columns) -> sv.Rollout:
    """A completion with roles, and weights and contrasts as SRPO records them: seeing weighs 1.5, thinking 0.5."""
    rng = random.Random(3)
    objects, question, colour, _ = problem(rng)
    text, truth = completion(rng, objects, colour, kind)
    base = row(1, 2, 3, text, reward=0.0, method="srpo", truth=truth)
    ids = base["role_ids"]
    image = picture(objects)
    base |= {
        "weights": [1.5 if r == 1 else 0.5 if r == 2 else 1.0 for r in ids],
        "perception_contrast": [2.0 if r == 1 else 0.0 for r in ids],
        "reasoning_contrast": [0.25 if r == 2 else 0.0 for r in ids],
        "advantages": [-1.5 if r == 1 else -0.5 if r == 2 else -1.0 for r in ids],
        "images": ["ab"], "prompt": asked(question),
    }  # fmt: skip
    return sv.Rollout(base | columns, {"ab": png_bytes(image)}, "x")


def table(view: sv.View) -> dict[str, dict]:
    return {row["role"]: row for row in view.data["roles"]}


def test_the_summary_of_each_role_is_what_its_tokens_say():
    rollout = seen()
    ids, roles = rollout.row["role_ids"], table(sv.roles(rollout))
    assert set(roles) == {"other", "perception", "reasoning", "answer"}
    for number, name in ((1, "perception"), (2, "reasoning")):
        assert roles[name]["tokens"] == ids.count(number)
        assert roles[name]["share"] == pytest.approx(ids.count(number) / len(ids))
    assert (roles["perception"]["weight"], roles["reasoning"]["weight"]) == (1.5, 0.5)
    assert (roles["perception"]["contrast"], roles["reasoning"]["contrast"]) == (2.0, 0.25)
    assert roles["other"]["contrast"] is None and roles["answer"]["contrast"] is None
    sizes = [abs(a) for a in rollout.row["advantages"]]
    share = sum(a for a, r in zip(sizes, ids, strict=True) if r == 1) / sum(sizes)
    assert roles["perception"]["credit"] == pytest.approx(share)
    assert sum(row["credit"] for row in roles.values()) == pytest.approx(1)


@pytest.mark.parametrize(("kind", "name"), [("perception", "A seeing error"), ("reasoning", "A thinking error")])
def test_the_verdict_says_what_is_true_and_what_depends_more(kind, name):
    verdict = sv.roles(seen(kind)).data["verdict"]
    assert verdict[0].startswith(f"{name}: the first true error is at token ")
    assert verdict[1] == (
        "On average perception tokens depend more on what they should rest on "
        "(mean weight 1.50 for perception, 0.50 for reasoning)."
    )
    assert (
        verdict[2] == f"The error itself has weight {1.5 if kind == 'perception' else 0.5:.2f}, where 1 is the average."
    )


def test_without_a_true_error_it_does_not_invent_one():
    assert sv.roles(seen("right")).data["verdict"][0] == "Neither: no true error is known in it."
    unknown = dict.fromkeys(("truth", "answer_right", "perception_right", "reasoning_right", "error_kind"))
    assert "is not recorded" in sv.roles(seen("right", **unknown)).data["verdict"][0]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"role_ids": None}, "No roles are recorded"),
        ({"perception_contrast": None, "reasoning_contrast": None}, "No contrasts are recorded (SRPO)"),
        ({"perception_contrast": None, "weights": None}, "Only the contrast of reasoning was measured"),
    ],
)
def test_what_was_not_recorded_is_said(columns, said):
    assert said in sv.roles(seen(**columns)).data["verdict"][1]


def test_a_malformed_completion_has_uniform_weights_and_says_so():
    count = len(seen().pieces)
    view = sv.roles(seen(role_ids=[0] * count, weights=[1.0] * count))
    assert "malformed" in view.data["verdict"][1] and "weights are uniform" in view.data["verdict"][1]
    assert set(table(view)) == {"other"}


def test_a_contrast_that_was_not_measured_is_not_zero():
    rollout = seen()
    ids = rollout.row["role_ids"]
    blank = seen(perception_contrast=[None if r == 1 else 0.0 for r in ids], weights=None)
    view = sv.roles(blank)
    assert table(view)["perception"]["contrast"] is None
    assert any(f"At {ids.count(1)} perception tokens the contrast was not measured" in n for n in view.data["notices"])


def test_an_empty_completion_is_told():
    view = sv.roles(seen(text="", pieces=[]))
    assert view.data["verdict"] == ["The completion is empty."] and view.data["roles"] == []


def notices(view: sv.View) -> str:
    return " ".join(view.data["notices"])


def test_images_that_are_not_there_are_told_each_for_what_it_is():
    rollout = seen()
    assert "has no image" in notices(sv.roles(sv.Rollout(rollout.row | {"images": []}, {})))
    assert "is missing: ab" in notices(sv.roles(sv.Rollout(rollout.row, {})))
    assert "cannot be read: ab" in notices(sv.roles(sv.Rollout(rollout.row, {"ab": b"not an image"})))
    text_only = sv.Rollout(rollout.row | {"images": None, "prompt": json.dumps("1 + 1?")}, {})
    assert "nothing was seen" in notices(sv.roles(text_only)) and sv.roles(text_only).data["pictures"] == {}


def test_the_corrupted_image_is_shown_or_its_absence_told():
    image = Image.new("RGB", (48, 48), "#888")
    for given in (image, png_bytes(image)):
        view = sv.roles(seen(), corrupted=given)
        assert view.data["corrupted"]["src"].startswith("data:image/png;base64,") and "does not store" not in notices(
            view
        )
    assert sv.roles(seen()).data["corrupted"] is None and "which a run does not store" in notices(sv.roles(seen()))
    assert "does not store" not in notices(sv.roles(seen(perception_contrast=None)))
    assert "The corrupted image cannot be read" in notices(sv.roles(seen(), corrupted=b"no"))
    with pytest.raises(TypeError, match="corrupted is str: give a PIL image"):
        sv.roles(seen(), corrupted="image.png")


def test_the_strongest_patch_is_named_and_a_map_a_token_is_averaged_over_perception():
    rollout = seen()
    maps = np.zeros((len(rollout.pieces), 2, 3))
    maps[:, 0, 0] = 9.0
    for t, role in enumerate(rollout.row["role_ids"]):
        if role == 1:
            maps[t] = [[0, 0, 0], [0, 0.5, -1]]
    maps[2, 1, 1] = np.nan  # not measured at one of them: the mean is that of the others
    patches = sv.roles(rollout, patches=maps).data["patches"]
    assert patches["told"].startswith("Masking row 2, column 2 costs the ") and "+0.50 nats" in patches["told"]
    assert (patches["rows"], patches["cols"], patches["tokens"]) == (2, 3, len(rollout.pieces))
    assert patches["about"] == f"the {rollout.row['role_ids'].count(1)} perception tokens, mean"
    whole = sv.roles(rollout, patches=maps[0]).data["patches"]
    assert whole["tokens"] == 0 and [column[0] for column in whole["pack"]["columns"]] == ["mean"]


@pytest.mark.parametrize("shape", [(4,), (3, 2, 2), (0, 3), (65, 2)])
def test_patches_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match="x".join(map(str, shape)) if len(shape) < 2 else f"{shape[0]} x {shape[1]}"):
        sv.roles(seen(), patches=np.zeros(shape))


def test_patches_that_were_not_measured_anywhere_name_no_strongest():
    assert sv.roles(seen(), patches=np.full((2, 2), np.nan)).data["patches"]["told"] is None


def test_the_contrasts_of_a_long_completion_come_along():
    pieces = [" w"] * 5000
    rollout = sv.Rollout(row(pieces=pieces, perception_contrast=[1.0] * 5000, role_ids=[1] * 5000))
    more = sv.roles(rollout).data["more"]
    assert more["columns"] == [["pc", "f2", 5000]]
    assert sv.roles(seen()).data["more"] is None


def test_the_static_page_has_the_table_the_text_and_nothing_that_runs():
    view = sv.roles(seen(), patches=np.ones((2, 2)))
    parsed = Lists(view.fallback)
    for text in ("mean contrast, nats", "1.50", "2.00", "<perception>", "A seeing error", "Masking row 1, column 1"):
        assert text in parsed.text
    count = len(HOSTILE)
    hostile = sv.Rollout(row(pieces=list(HOSTILE), role_ids=[1] * count, example_id=HOSTILE[1], method=HOSTILE[1]))
    assert "<img src=x" in inert.check(sv.roles(hostile).fallback)


def test_a_view_is_drawn_without_the_trainer():
    import subprocess
    import sys

    code = "import sys, segviz as sv; sv.tree, sv.roles; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
