"""Segmenters: each against a slow loop, and at its corners."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segpo_core import segments as S
from tests.fakes import reference as slow
from tests.fakes.reference import mask_of, padded, real

numbers = st.integers(0, 6).map(lambda n: n / 4)  # few different ones: many ties
rows_of_numbers = st.lists(st.lists(numbers, max_size=12), min_size=1, max_size=4)


def check(ids: torch.Tensor, rows: list[list], expected: list[list[int]]) -> None:
    assert ids.dtype == torch.long and ids.shape == mask_of(rows).shape
    assert real(ids, rows) == expected
    assert (ids[~mask_of(rows)] == -1).all()


@given(
    rows_of_numbers, st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.7, 1.0]), st.sampled_from([torch.float32, torch.float64])
)
def test_entropy_topk(rows, fraction, dtype):
    ids = S.entropy_topk(padded(rows, float("nan"), dtype), mask_of(rows), fraction)
    check(ids, rows, [slow.top_entropy_ids(row, fraction) for row in rows])


@pytest.mark.parametrize("fraction", [0.07, 0.1, 0.29, 0.3, 0.35, 0.55, 0.57, 0.7])
def test_entropy_topk_counts_in_whole_percent(fraction):
    """0.7 · 10 and its like are not quite whole numbers in floating point; the ceiling must not notice."""
    for length in (1, 7, 10, 20, 30, 100, 300):
        rising = torch.arange(length)[None].float()  # the last token is among the highest
        ids = S.entropy_topk(rising, torch.ones(1, length, dtype=torch.bool), fraction)
        exact = -(-round(fraction * 100) * length // 100)
        assert S.count(ids).item() == exact


def test_entropy_topk_takes_the_earlier_of_two_equals():
    flat = torch.zeros(1, 10)
    ids = S.entropy_topk(flat, torch.ones(1, 10, dtype=torch.bool), 0.3)
    assert ids.tolist() == [[0, 1, 2, 3, 3, 3, 3, 3, 3, 3]]


@given(rows_of_numbers, st.integers(1, 5))
def test_cutpoints(rows, interval):
    ids = S.cutpoints(padded(rows, float("nan")), mask_of(rows), 0.9, interval)
    check(ids, rows, [slow.cutpoint_ids(row, 0.9, interval) for row in rows])


def test_cutpoints_keep_what_comes_before_the_first():
    probs = torch.tensor([[0.95, 0.99, 0.2, 0.95, 0.5, 0.3], [0.1, 0.95, 0.2, 0.3, 0.95, 0.95]])
    ids = S.cutpoints(probs, torch.ones_like(probs, dtype=torch.bool), 0.9, 2)
    assert ids.tolist() == [[0, 0, 1, 1, 1, 2], [0, 0, 0, 1, 1, 1]]


@given(rows_of_numbers, st.integers(1, 5))
def test_fixed_length_token_and_sequence(rows, size):
    mask = mask_of(rows)
    check(S.fixed_length(mask, size), rows, [[t // size for t in range(len(row))] for row in rows])
    check(S.token_level(mask), rows, [list(range(len(row))) for row in rows])
    check(S.sequence_level(mask), rows, [[0] * len(row) for row in rows])


@given(st.lists(st.lists(st.integers(0, 3), max_size=10), min_size=1, max_size=4))
def test_roles_change_segments(rows):
    changes = [[t for t in range(1, len(row)) if row[t] != row[t - 1]] for row in rows]
    expected = [slow.ids_from_starts(cuts, len(row)) for cuts, row in zip(changes, rows, strict=True)]
    check(S.roles(padded(rows, -1, torch.long), mask_of(rows)), rows, expected)


@given(st.lists(st.lists(st.booleans(), max_size=10), min_size=1, max_size=4), st.integers(0, 3))
def test_looking_at_a_segmentation(rows, extra):
    """starts, ends, count, sums and means, with a padding that holds NaN."""
    expected = [slow.ids_from_starts([t for t, cut in enumerate(row) if cut], len(row)) for row in rows]
    ids = padded(expected, -1, torch.long, extra)
    values = [[float(7 * t % 5) for t in range(len(row))] for row in rows]
    x = padded(values, float("nan"), extra=extra)

    spans = [slow.spans(row) for row in expected]
    first = [[t in {z[0] for z in zs} for t in range(len(row))] for zs, row in zip(spans, rows, strict=True)]
    last = [[t in {z[-1] for z in zs} for t in range(len(row))] for zs, row in zip(spans, rows, strict=True)]
    assert torch.equal(S.starts(ids), padded(first, False, torch.bool, extra))
    assert torch.equal(S.ends(ids), padded(last, False, torch.bool, extra))
    assert S.count(ids).tolist() == list(map(len, spans))

    sums = [[sum(v[t] for t in z) for z in zs] for v, zs in zip(values, spans, strict=True)]
    means = [[sum(v[t] for t in z) / len(z) for z in zs] for v, zs in zip(values, spans, strict=True)]
    most = max(map(len, sums))
    for slots in (None, most, most + 2):
        width = ids.shape[1] if slots is None else slots
        assert torch.equal(S.per_segment_sum(x, ids, slots), padded(sums, extra=width - most))
        torch.testing.assert_close(S.per_segment_mean(x, ids, slots), padded(means, extra=width - most))
        picked = [[v[z[0]] for z in zs] for v, zs in zip(values, spans, strict=True)]
        assert torch.equal(S.per_segment_pick(x, ids, S.starts(ids), slots), padded(picked, extra=width - most))
    at_tokens = [[s[m] for m in row] for s, row in zip(sums, expected, strict=True)]
    assert torch.equal(S.segment_sum(x, ids), padded(at_tokens, extra=extra))
    torch.testing.assert_close(
        S.segment_mean(x, ids),
        padded([[s[m] for m in row] for s, row in zip(means, expected, strict=True)], extra=extra),
    )


def test_segment_mean_gives_a_clean_gradient():
    ids = torch.tensor([[0, 0, 1, -1]])
    x = torch.tensor([[1.0, 2.0, 3.0, float("nan")]], requires_grad=True)
    (S.segment_mean(x, ids) * torch.tensor([[1.0, 2.0, 4.0, 8.0]])).sum().backward()
    assert x.grad.tolist() == [[1.5, 1.5, 4.0, 0.0]]


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (2, 1)])
def test_nothing_and_next_to_nothing(shape):
    mask = torch.zeros(shape, dtype=torch.bool)
    x = torch.zeros(shape)
    for ids in (
        S.entropy_topk(x, mask),
        S.cutpoints(x, mask),
        S.fixed_length(mask, 3),
        S.token_level(mask),
        S.sequence_level(mask),
        S.newline([[]] * shape[0], mask),
        S.role_ids([[]] * shape[0], mask)[0],
    ):
        assert ids.shape == shape and (ids == -1).all()
        assert S.count(ids).tolist() == [0] * shape[0]
        assert S.segment_mean(x, ids).shape == shape


# --- text -----------------------------------------------------------------------------------------


def ids_of(segmenter, *pieces: str, **options) -> list[int]:
    return segmenter([list(pieces)], torch.ones(1, len(pieces), dtype=torch.bool), **options)[0].tolist()


@pytest.mark.parametrize(
    "pieces, expected",
    [
        (["a", "\n", "b"], [0, 0, 1]),
        (["a", "b\n", "c", "d"], [0, 0, 1, 1]),
        (["a", "\n", "\n", "b"], [0, 0, 0, 1]),  # a blank line belongs to the line before it
        (["a", "\n\n", "b", ".\n"], [0, 0, 1, 1]),
        (["a", "\n", "  ", "\n", "b"], [0, 0, 0, 0, 1]),
        (["a", "\n", "  ", "b"], [0, 0, 1, 1]),  # indentation belongs to its line
        (["\n", "a", "\n", "b"], [0, 0, 0, 1]),  # at the beginning: to the line after
        (["a", "\n", "\n", ""], [0, 0, 0, 0]),  # no empty segment at the end
        (["a", "\nb", "c"], [0, 0, 1]),  # the token with the newline ends the segment, whatever else it holds
        (["\n", "\n"], [0, 0]),
    ],
)
def test_newline(pieces, expected):
    assert ids_of(S.newline, *pieces) == expected


@given(st.lists(st.sampled_from(["a", "b ", "\n", ".\n", " ", "", "\n\n"]), max_size=20))
def test_newline_segments_are_lines_with_text(pieces):
    ids = ids_of(S.newline, *pieces)
    texts = ["".join(pieces[t] for t in z) for z in slow.spans(ids)]
    assert "".join(texts) == "".join(pieces)
    for z, text in zip(slow.spans(ids)[:-1], texts[:-1], strict=True):
        assert text.strip() and "\n" in pieces[z[-1]]
    if len(texts) > 1:
        assert texts[-1].strip()


@pytest.mark.parametrize(
    "pieces, expected",
    [
        (["Step 1", ": x", "Step 2", ": y"], [0, 0, 1, 1]),
        (["Hm. ", "St", "ep", " ", "1", "2", " x"], [0, 1, 1, 1, 1, 1, 1]),  # a marker of five tokens
        (["a", "b\nStep", " 1", "c"], [0, 1, 1, 1]),  # begins inside a token
        (["", "a", "", "Step 1"], [0, 0, 0, 1]),  # not the empty piece before it
        (["Step ", "one"], [0, 0]),
        (["x Step 1 Step 2", "y"], [0, 0]),
    ],
)
def test_step_markers(pieces, expected):
    assert ids_of(S.step_markers, *pieces) == expected


def test_step_markers_with_another_pattern():
    assert ids_of(S.step_markers, "a", "## b", "c", "## d", pattern="## ") == [0, 1, 1, 2]
    assert ids_of(S.step_markers, "a", "b", pattern="x*") == [0, 0]  # empty matches are no markers


GOOD = [
    "<perception>",
    "red",
    " square",
    "</perception>",
    "\n",
    "<think>",
    "so",
    "</think>",
    "<answer>",
    "3",
    "</answer>",
]


def roles_of(*pieces: str, **options) -> tuple[list[int], bool]:
    table, well_formed = S.role_ids([list(pieces)], torch.ones(1, len(pieces), dtype=torch.bool), **options)
    return table[0].tolist(), well_formed.item()


def test_role_ids():
    assert roles_of(*GOOD) == ([0, 1, 1, 0, 0, 0, 2, 0, 0, 3, 0], True)
    assert roles_of("Hm ", *GOOD, "<eos>") == ([0, 0, 1, 1, 0, 0, 0, 2, 0, 0, 3, 0, 0], True)


def test_role_ids_with_tags_across_tokens():
    """A token with a tag's end and text belongs to the block; nothing but tag is 0; half a character follows."""
    pieces = [
        "<perc",
        "eption",
        ">red",
        "",
        " x.</",
        "perception",
        "><think>",
        "",
        "t</think><answer>",
        "4",
        "</answer>",
        "",
    ]
    assert roles_of(*pieces) == ([0, 0, 1, 1, 1, 0, 0, 2, 2, 3, 0, 0], True)


@given(st.integers(0, 2**30))
def test_role_ids_do_not_depend_on_the_tokens(seed):
    """Cut the text anywhere: a token with one character of a block has its role, as if each character were a token."""
    text = "".join(GOOD)
    by_character, _ = roles_of(*text)
    cuts = sorted({i for i in range(1, len(text)) if (seed >> (i % 30)) & 1})
    bounds = [0, *cuts, len(text)]
    table, well_formed = roles_of(*(text[a:b] for a, b in zip(bounds, bounds[1:], strict=False)))
    assert well_formed
    for role, a, b in zip(table, bounds, bounds[1:], strict=False):
        inside = [r for r in by_character[a:b] if r]
        assert role == (inside[0] if inside else 0)


@pytest.mark.parametrize(
    "text",
    [
        "no tags at all",
        "<perception>a</perception><think>b</think><answer>c",  # cut off
        "<perception>a</perception><answer>c</answer>",  # missing
        "<think>b</think><perception>a</perception><answer>c</answer>",  # out of order
        "<perception>a<think>b</think></perception><answer>c</answer>",  # nested
        "<perception>a</perception><think>b</think><answer>c</answer><answer>d</answer>",  # repeated
        "<perception>a</perception><think>b</think></answer>c<answer>",  # closed before it is opened
        "",
    ],
)
def test_malformed_structure_has_no_roles(text):
    assert roles_of(*text) == ([0] * len(text), False)


def test_other_tags():
    assert roles_of("<see>", "x", "</see>", "y", tags=("see",)) == ([0, 1, 0, 0], True)
    assert roles_of("[[", "x", "]]", "y", tags=[("[[", "]]")]) == ([0, 1, 0, 0], True)


def test_text_stops_at_the_mask():
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    assert S.newline([["a", "\n", "b", "\n"], ["a", "b"]], mask).tolist() == [[0, 0, 1, -1], [0, -1, -1, -1]]


def test_errors_say_what_is_wrong():
    mask = torch.ones(1, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="completion 0 has 3 real tokens but only 2 token pieces"):
        S.newline([["a", "b"]], mask)
    with pytest.raises(ValueError, match="2 completions for a mask of 1 rows"):
        S.role_ids([[], []], mask)
    with pytest.raises(ValueError, match="size=0"):
        S.fixed_length(mask, 0)
    with pytest.raises(ValueError, match="interval=0"):
        S.cutpoints(mask.float(), mask, interval=0)
    with pytest.raises(ValueError, match="30"):
        S.entropy_topk(mask.float(), mask, 30)
