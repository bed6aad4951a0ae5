"""Price questions: what they ask, what decides the answer, and which mistakes a careless demonstration makes."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segpo_core.tasks.shapes import (
    ATTRIBUTES,
    FORGOTTEN,
    LOOKALIKES,
    PRICES,
    Careless,
    Object,
    Question,
    ShapesTask,
    demonstrate,
    inspect_text,
    scene_of,
    write,
)

TASK = ShapesTask()
indices = st.integers(0, 10**9)
SURE = Careless(lookalike=(0, 0, 0), misprice=(0, 0), believe_hint=0)
SCENE = [
    Object("top", "large", "red", "circle"),
    Object("left", "small", "blue", "square"),
    Object("center", "medium", "red", "square"),
    Object("bottom", "small", "green", "triangle"),
]


def example(question: Question, objects: list[Object] = SCENE) -> dict:
    scene = {"objects": [vars(o) for o in objects], "question": vars(question)}
    return {"scene": scene, "answer": question.answer(objects)}


def first_error(problem: dict, text: str) -> tuple[str, str]:
    error = inspect_text(problem, text)["first_error"]
    return error["kind"], text[error["start"] : error["end"]]


def test_the_price_list() -> None:
    assert len(PRICES) == 36 == len(FORGOTTEN) and sum(FORGOTTEN.values()) == 18
    for right, wrong in PRICES.values():
        assert right != wrong and 1 <= right <= 9 and 1 <= wrong <= 9
    assert set(Counter(right for right, _ in PRICES.values())) == set(range(1, 10))


def test_the_answer_is_the_last_digit_of_the_sum() -> None:
    question = Question("price", "size", "large", "medium", hint="4")
    prices = [PRICES["large", "red", "circle"][0], PRICES["medium", "red", "square"][0]]
    assert question.values(SCENE) == [prices[0], 0, prices[1], 0]
    assert question.answer(SCENE) == str(sum(prices) % 10)
    assert question.text() == "Last digit of what the large shapes and medium shapes cost? Perhaps 4."
    steps = write(question, SCENE).split("<think> ")[1].split(" =")[0].split(", ")
    assert steps[0] == f"top large red circle {prices[0]} {prices[0]}" and steps[1] == f"left small 0 {prices[0]}"


@given(indices)
def test_two_or_three_shapes_are_asked_for(index: int) -> None:
    objects, question = scene_of(TASK.train(index))
    assert sum(map(question.costs, objects)) in (2, 3)


@given(indices)
def test_whatever_is_seen_wrongly_of_what_costs_changes_the_reckoning(index: int) -> None:
    """Looking pays: each attribute of each shape that is asked for goes into its price, or takes it out of the sum."""
    objects, question = scene_of(TASK.train(index))
    rng, before = random.Random(index), question.values(objects)
    i = rng.choice([i for i, obj in enumerate(objects) if question.costs(obj)])
    name = rng.choice(tuple(ATTRIBUTES))
    for value in ATTRIBUTES[name]:
        seen = Object(**{**vars(objects[i]), name: value})
        after = question.values([*objects[:i], seen, *objects[i + 1 :]])
        assert after[i] == (PRICES[seen.size, seen.colour, seen.shape][0] if question.costs(seen) else 0)
        assert [*after[:i], *after[i + 1 :]] == [*before[:i], *before[i + 1 :]]


def test_copying_the_hint_pays_as_often_as_it_is_told() -> None:
    problems = [TASK.train(i) for i in range(1000)]
    assert 0.2 < sum(p["scene"]["question"]["hint"] == p["answer"] for p in problems) / 1000 < 0.3
    assert all(not scene_of(ShapesTask(hint_right=0).train(i))[1].hint for i in range(20))
    always = ShapesTask(hint_right=1)
    assert all(scene_of(always.train(i))[1].hint == always.train(i)["answer"] for i in range(20))


@given(indices)
def test_a_sure_demonstration_is_right(index: int) -> None:
    problem = TASK.train(index)
    shown = demonstrate(problem, random.Random(index), SURE)
    assert not shown.wrong_rule and shown.misperceived is None
    assert inspect_text(problem, shown.text)["first_error"] is None


@given(indices)
def test_a_wrong_price_is_found(index: int) -> None:
    problem = TASK.train(index)
    objects, question = scene_of(problem)
    shown = demonstrate(problem, random.Random(index), Careless(lookalike=(0, 0, 0), misprice=(1, 1), believe_hint=0))
    first = next(obj for obj in objects if question.costs(obj))
    assert shown.wrong_rule
    wrong = str(PRICES[first.size, first.colour, first.shape][1])
    assert first_error(problem, shown.text) == ("reasoning", wrong)


def test_a_lookalike_is_found() -> None:
    for number, (words, taken) in enumerate(LOOKALIKES):
        words = {"size": "small", "colour": "red", "shape": "circle"} | words
        objects = [Object("top", **words), Object("left", "large", "blue", "circle")]
        problem = example(Question("price", "colour", words["colour"], "blue"), objects)
        share = tuple(float(i == number) for i in range(len(LOOKALIKES)))
        shown = demonstrate(problem, random.Random(0), Careless(lookalike=share, misprice=(0, 0)))
        ((name, word),) = taken.items()
        assert shown.misperceived == (0, name) and first_error(problem, shown.text) == ("perception", word)


def test_a_believed_hint_is_an_error_where_it_is_written() -> None:
    right = example(Question("price", "size", "large", "medium"))
    digit = str((int(right["answer"]) + 1) % 10)
    problem = example(Question("price", "size", "large", "medium", hint=digit))
    shown = demonstrate(problem, random.Random(0), Careless((), 0, (0, 0, 0), (0, 0), believe_hint=1))
    assert first_error(problem, shown.text) == ("reasoning", digit)


@pytest.mark.parametrize("wrong", [{"hint_right": 1.5}, {"min_objects": 1, "max_objects": 1}])
def test_settings(wrong: dict) -> None:
    with pytest.raises(ValueError, match=[*wrong][-1]):
        ShapesTask(**wrong)
