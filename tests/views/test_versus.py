"""Two completions beside each other."""

from __future__ import annotations

import json

import pytest

import segviz as sv
from segviz.views.versus import MOST, aligned
from tests.fakes.fake_run import HOSTILE
from tests.views import inert
from tests.views.made import simple


def one(words: str, **more) -> dict:
    pieces = words.split(" ")
    many = len(pieces)
    row = simple(pieces=pieces, text="".join(pieces)) | {"advantages": [0.5] * many, "loss_mask": [True] * many}
    return row | {"segment_start": [0], "segment_end": [many], "segment_advantage": [0.5]} | more


def test_blocks_cover_both_and_say_what_is_the_same():
    a, b = "p q r s t".split(), "p x r t u v".split()
    blocks = aligned(a, b)
    for same, start, end, other, other_end in blocks:
        assert (a[start:end] == b[other:other_end]) == bool(same)
    assert [block[0] for block in blocks] == [1, 0, 1, 0, 1, 0]
    for i, whole in ((1, a), (3, b)):
        assert [t for block in blocks for t in range(block[i], block[i + 1])] == list(range(len(whole)))


def test_of_long_texts_beginning_and_end_are_the_same():
    a = [str(i) for i in range(MOST + 50)]
    b = [*a[:1000], "x", *a[1001:]]
    assert aligned(a, b) == [[1, 0, 1000, 0, 1000], [0, 1000, 1001, 1000, 1001], [1, 1001, MOST + 50, 1001, MOST + 50]]
    assert aligned(a, a) == [[1, 0, len(a), 0, len(a)]] and aligned(a, []) == [[0, 0, len(a), 0, 0]]


def test_the_verdict_names_where_they_part_and_what_each_earned():
    data = sv.versus(one("a b c", reward=1.0), one("a x c", reward=0.0), names=("new", "old")).data
    assert data["verdict"] == [
        "They part after 1 tokens: new says ‘b’ where old says ‘x’.", "One place differs. new: reward 1; old: reward 0."
    ]  # fmt: skip
    same = sv.versus(one("a b"), one("a b")).data
    assert "word for word" in same["verdict"][0] and [side["name"] for side in same["sides"]] == ["A", "B"]
    assert [side["credit"] for side in same["sides"]] == [[0.5, 0.5]] * 2
    json.dumps(data, allow_nan=False)


@pytest.mark.parametrize("changed", [{"advantages": None}, {"reward": None}, {"pieces": [], "text": ""}])
def test_what_is_not_recorded_is_not_needed(changed):
    view = sv.versus(one("a b c") | changed, one("a c"))
    json.dumps(view.data, allow_nan=False)
    assert view.html() and view.fallback


def test_prompts_are_the_same_by_their_words():
    asked = [json.dumps([{"role": "user", "content": words}]) for words in ("how many?", "which?")]
    same = [sv.versus(one("a", prompt=asked[0]), one("b", prompt=other)).data["same_prompt"] for other in asked]
    assert same == [True, False]


def test_hostile_texts_stay_text():
    view = sv.versus(one(" ".join(HOSTILE)), one("a b"), names=(HOSTILE[0], HOSTILE[1]))
    inert.check(view.fallback)
    assert "<script" not in view.html().split('id="segviz-data">')[1].split("</script>")[0]
