"""Where the blame fell, and how often that is the first true error."""

import math

from segpo_core.record.blame import blame_on_error, blame_rate, most_blamed, tour


def row(advantages, start=2, end=3, **others):
    return {
        "advantages": advantages, "loss_mask": [True] * len(advantages), "answer_right": False,
        "error_kind": "reasoning", "error_start": start, "error_end": end,
    } | others  # fmt: skip


def test_the_most_blamed_token() -> None:
    assert most_blamed(row([0.1, -0.2, -0.7, 0.0])) == [2]
    assert most_blamed(row([-0.5] * 4)) == [0, 1, 2, 3], "one advantage for all: no token is blamed more than another"
    assert most_blamed(row([0.0, 0.3, 0.0, 0.0])) == []
    assert most_blamed(row([0.1, None, -0.1, -0.9], loss_mask=[True, True, True, False])) == [2]


def test_chance_for_uniform_credit_and_one_for_right_credit() -> None:
    assert blame_on_error(row([0, 0, -1, 0])) == 1 and blame_on_error(row([0, -1, 0, 0])) == 0
    assert blame_on_error(row([-1] * 4)) == 0.25
    assert blame_on_error(row([0, -1, -1, 0])) == 0.5
    assert blame_on_error(row([0, 0, -1, 0], 2, 2)) == 1, "an empty error is the token at its place"
    assert blame_on_error(row([1] * 4)) == 0


def test_only_failures_with_a_known_error_count() -> None:
    failed = row([0, 0, -1, 0])
    others = [failed | {"answer_right": True}, failed | {"error_kind": "format"}, failed | {"error_kind": None}]
    others.append(failed | {"answer_right": None})
    assert blame_rate([failed, row([-1] * 4), *others]) == (0.625, 2)
    rate, number = blame_rate(others)
    assert math.isnan(rate) and number == 0


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
