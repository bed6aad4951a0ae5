"""Where the blame fell, and how often that is the first true error."""

import math

from segpo_core.record.blame import blame_of, blame_rate, tour


def row(advantages, start=2, end=3, **others):
    return {
        "advantages": advantages, "loss_mask": [True] * len(advantages), "answer_right": False,
        "error_kind": "reasoning", "error_start": start, "error_end": end,
        "segment_ids": list(range(len(advantages))),
    } | others  # fmt: skip


def test_found_at_the_resolution_at_which_credit_is_given() -> None:
    assert blame_of(row([0, 0, -1, 0])).hit == 1 and blame_of(row([0, -1, 0, 0])).hit == 0
    assert blame_of(row([0, -1, -1, 0])).hit == 0.5, "one of two that are blamed alike"
    assert blame_of(row([0, 0, -1, 0], 2, 2)).hit == 1, "an empty error is the token at its place"
    segment = blame_of(row([0, -1, -1, 0], segment_ids=[0, 1, 1, 2]))
    assert (segment.hit, segment.chance, segment.by_token) == (1, 1 / 3, False)
    assert blame_of(row([0.1, None, -0.1, -0.9], loss_mask=[True, True, True, False])).hit == 1
    for nowhere in ([-0.5] * 4, [1.0] * 4, [0.0, 0.3, 0.0, 0.0]):
        assert blame_of(row(nowhere)).hit is None, "the same for all, or nothing below zero, names no place"
    assert blame_of(row([0, 0, -1, 0], start=None)) is None and blame_of(row([0, -1], start=5)) is None


def test_the_rate_is_over_failures_in_which_a_place_is_named() -> None:
    found, missed, silent = row([0, 0, -1, 0]), row([0, -1, 0, 0]), row([-1] * 4)
    others = [found | {"answer_right": True}, found | {"answer_right": None}, found | {"error_start": None}]
    assert blame_rate([found, missed, silent, *others]) == (0.5, 0.25, 2, 3)
    rate, chance, named, known = blame_rate([silent, *others])
    assert math.isnan(rate) and math.isnan(chance) and (named, known) == (0, 1)


def test_a_tour_of_found_and_missed_errors() -> None:
    def at(step, advantages, **others):
        return row(advantages, **{"step": step, "group": 0, "sample": 0, "finished": True} | others)

    found = tour(
        [
            at(1, [0, 0, -0.5, 0]),
            at(2, [0, 0, -0.9, 0]),
            at(3, [0, 0, -1.0, 0], finished=False),  # cut off: only where nothing else is there
            at(4, [0, 0, -0.3, 0], error_kind="perception"),
            at(5, [0, -0.2, 0, 0], error_kind="perception"),
            at(6, [-1.0] * 4),  # says nothing
            at(7, [0, 0, -2.0, 0], answer_right=True),
        ]
    )
    assert list(found) == ["Seeing error found", "Reckoning error found", "Error missed"]
    assert [key[0] for key in found.values()] == [4, 2, 5]
    assert tour([at(1, [-1.0] * 4)]) == {}
