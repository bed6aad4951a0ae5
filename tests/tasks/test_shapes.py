"""The shapes task: exact answers, disjoint splits, and a judge that finds exactly the mistake that was made."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segpo_core.tasks import load_task
from segpo_core.tasks.shapes import (
    ATTRIBUTES,
    CELLS,
    PICTURE_KINDS,
    Careless,
    Object,
    Question,
    ShapesTask,
    demonstrate,
    demonstration,
    inspect_text,
    render,
    scene_of,
    split_of,
    write,
)

TASK = ShapesTask(kinds=PICTURE_KINDS, min_objects=3, max_objects=6)
ALWAYS = dict.fromkeys(PICTURE_KINDS, 1.0)
indices = st.integers(0, 10**9)
FLAGS = ("answer_right", "perception_right", "reasoning_right", "format_right")

SCENE = [
    Object("top", "large", "red", "circle"),
    Object("left", "small", "blue", "square"),
    Object("center", "medium", "red", "square"),
    Object("bottomright", "small", "red", "triangle"),
]


def example(question: Question, objects: list[Object] = SCENE) -> dict:
    scene = {"objects": [vars(o) for o in objects], "question": vars(question)}
    return {"scene": scene, "answer": question.answer(objects)}


COUNT = example(Question("count", "colour", "red"))
RIGHT = write(*reversed(scene_of(COUNT)))


def with_step(i: int, value: str, total: str) -> str:
    """RIGHT with another value and running result in step i; what a step says before them stays."""
    head, think = RIGHT.split("<think> ")
    steps, rest = think.split(" =", 1)
    words = [step.split() for step in steps.split(", ")]
    words[i][-2:] = [value, total]
    return f"{head}<think> {', '.join(' '.join(w) for w in words)} ={rest}"


def blamed(problem: dict, text: str) -> tuple[str, str]:
    """Kind and text of the first error."""
    error = inspect_text(problem, text)["first_error"]
    return error["kind"], text[error["start"] : error["end"]]


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (Question("count", "colour", "red"), "3"),
        (Question("count", "shape", "square"), "2"),
        (Question("sum", "colour", "red"), "6"),
        (Question("sum", "size", "small"), "2"),
        (Question("difference", "colour", "red", "blue"), "2"),
        (Question("difference", "colour", "blue", "red"), "-2"),
        (Question("relation", direction="right of", colour="blue", shape="square"), "3"),
        (Question("relation", direction="left of", colour="blue", shape="square"), "0"),
        (Question("relation", direction="above", colour="blue", shape="square"), "1"),
        (Question("relation", direction="below", colour="red", shape="circle"), "3"),
        (Question("comparison", "colour", "blue", "red"), "red"),
        (Question("comparison", "shape", "circle", "triangle"), "same"),
    ],
)
def test_answers(question: Question, answer: str) -> None:
    assert question.answer(SCENE) == answer


def test_every_kind_comes_and_an_example_is_complete() -> None:
    problems = [TASK.train(i) for i in range(100)]
    assert {p["kind"] for p in problems} == set(PICTURE_KINDS)
    assert {len(p["scene"]["objects"]) for p in problems} == {3, 4, 5, 6}
    for i, problem in enumerate(problems):
        assert problem["id"] == f"shapes/train/{i}"
        assert [part["type"] for part in problem["prompt"][0]["content"]] == ["image", "text"]
        assert problem["images"][0].size == (48, 48) and problem["images"][0].mode == "RGB"
        objects, question = scene_of(json.loads(json.dumps({"scene": problem["scene"]})))
        assert problem["answer"] == question.answer(objects)
        assert problem["prompt"][0]["content"][1]["text"] == question.text()
    (reward,) = TASK.reward_funcs
    texts = [demonstration(p, random.Random(0)) for p in problems[:3]]
    assert reward(prompts=[None] * 3, completions=texts, answer=[p["answer"] for p in problems[:3]]) == [1.0] * 3


@given(indices)
def test_a_problem_depends_on_its_index_only(index: int) -> None:
    one, two = TASK.train(index), replace(TASK).train(index)
    assert one["images"][0].tobytes() == two["images"][0].tobytes()
    assert {k: v for k, v in one.items() if k != "images"} == {k: v for k, v in two.items() if k != "images"}
    assert one["scene"] != TASK.train(index + 1)["scene"] and one["scene"] != TASK.eval(index)["scene"]


@given(indices, indices, st.integers(0, 100))
def test_no_scene_is_in_both_splits(i: int, j: int, seed: int) -> None:
    task = ShapesTask(seed=seed)
    train, held_out = scene_of(task.train(i))[0], scene_of(task.eval(j))[0]
    # The split is a function of the scene, whatever the seed and the settings; so no scene can be in both.
    assert split_of(train) == "train" and split_of(held_out) == "eval"


def test_settings() -> None:
    task = load_task("shapes", min_objects=2, max_objects=2, kinds=("sum",), image_size=96)
    problem = task.eval(5)
    assert len(problem["scene"]["objects"]) == 2 and problem["kind"] == "sum" and problem["images"][0].size == (96, 96)
    for wrong in ({"max_objects": 10}, {"min_objects": 0}, {"kinds": ("volume",)}, {"kinds": ()}, {"image_size": 8}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ShapesTask(**wrong)
    with pytest.raises(ValueError, match="no setting colour.*min_objects"):
        load_task("shapes", colour="red")
    with pytest.raises(ValueError, match="unknown task 'shape'; known: shapes"):
        load_task("shape")


def test_every_object_looks_different_and_stays_in_its_cell() -> None:
    empty = render([]).tobytes()
    seen = set()
    for size in ATTRIBUTES["size"]:
        for colour in ATTRIBUTES["colour"]:
            for shape in ATTRIBUTES["shape"]:
                image = render([Object("center", size, colour, shape)])
                seen.add(image.tobytes())
                image.paste(render([]).crop((16, 16, 32, 32)), (16, 16))
                assert image.tobytes() == empty
    assert len(seen) == 36


@given(indices)
def test_a_correct_demonstration_is_all_right(index: int) -> None:
    problem = TASK.train(index)
    verdict = TASK.inspect(problem, demonstration(problem, random.Random(index)))
    assert all(verdict[flag] for flag in FLAGS) and verdict["first_error"] is None


@given(indices)
def test_a_misperception_is_found_and_nothing_else(index: int) -> None:
    problem = TASK.train(index)
    objects, _ = scene_of(problem)
    shown = demonstrate(problem, random.Random(index), Careless(wrong_rule={}, misperceive=1.0))
    i, attribute = shown.misperceived
    verdict = inspect_text(problem, shown.text)
    error = verdict["first_error"]
    assert error["kind"] == "perception"
    # the wrong word, in the i-th object, in the attribute's place
    before = shown.text[: error["start"]]
    assert before.count(",") == i
    assert len(before.split(",")[-1].replace("<perception>", "").split()) == 1 + list(ATTRIBUTES).index(attribute)
    word = shown.text[error["start"] : error["end"]]
    assert word in ATTRIBUTES[attribute] and word != getattr(objects[i], attribute)
    assert (verdict["perception_right"], verdict["reasoning_right"], verdict["format_right"]) == (False, True, True)


@given(indices)
def test_a_wrong_rule_is_found_where_it_first_differs(index: int) -> None:
    problem = TASK.train(index)
    objects, question = scene_of(problem)
    right = write(question, objects)
    shown = demonstrate(problem, random.Random(index), Careless(wrong_rule=ALWAYS, misperceive=0.0))
    assert shown.wrong_rule and shown.misperceived is None
    verdict = inspect_text(problem, shown.text)
    assert verdict["perception_right"] and verdict["format_right"]
    if shown.text == right:  # the rule happened to be harmless
        assert verdict["first_error"] is None and verdict["answer_right"]
        return
    error = verdict["first_error"]
    fork = next(i for i, (a, b) in enumerate(zip(shown.text, right, strict=False)) if a != b)
    assert error["kind"] == "reasoning" and not verdict["reasoning_right"]
    assert error["start"] <= fork < error["end"]


def test_both_mistakes_and_how_often() -> None:
    rng, careless = random.Random(0), Careless()
    shown = [demonstrate(TASK.train(i), rng, careless) for i in range(1000)]
    assert 0.2 < sum(d.misperceived is not None for d in shown) / 1000 < 0.3
    assert 0.35 < sum(d.wrong_rule for d in shown) / 1000 < 0.6
    both = [(i, d) for i, d in enumerate(shown) if d.misperceived and d.wrong_rule]
    assert both and all(inspect_text(TASK.train(i), d.text)["first_error"]["kind"] == "perception" for i, d in both)


OBJECTS = "top large red circle, left small blue square, center medium red square, bottomright small red triangle"


@pytest.mark.parametrize(
    ("old", "new", "kind", "span"),
    [
        ("large red", "large blue", "perception", "blue"),
        ("top large", "topleft large", "perception", "topleft"),
        ("left small", "top small", "perception", "top"),
        (", bottomright small red triangle", "", "perception", "</perception>"),
        ("left small blue square", "left blue square", "perception", "left blue square"),
        ("left small blue square", "", "perception", ""),
        ("1 3 =", "1 3, 0 3 =", "reasoning", "0 3"),
        ("= 3", "= 4", "reasoning", "4"),
        ("= 3", "= ", "reasoning", "="),
        ("= 3", "", "reasoning", "</think>"),
        ("<answer> 3", "<answer> 2", "answer", "2"),
        ("<answer> 3", "<answer>", "answer", "</answer>"),
        ("</think>", "</think> so", "format", "so"),
        ("</think>", "</perception>", "format", "</perception>"),
        ("<answer> 3 </answer>", "<answer> 3", "format", "3"),
        ("<answer> 3 </answer>", "", "format", ">"),
        ("</answer>", "</answer> done.", "format", "done."),
        ("<perception>", "Well, <perception>", "format", "Well,"),
    ],
)
def test_first_error(old: str, new: str, kind: str, span: str) -> None:
    assert OBJECTS in RIGHT and RIGHT.count(old) == 1
    assert blamed(COUNT, RIGHT.replace(old, new)) == (kind, span)


def test_first_error_in_a_step() -> None:
    assert with_step(0, "1", "1") == RIGHT and with_step(3, "1", "3") == RIGHT
    assert blamed(COUNT, with_step(1, "1", "2")) == ("reasoning", "1")
    assert blamed(COUNT, with_step(2, "1", "3")) == ("reasoning", "3")
    kind, span = blamed(COUNT, with_step(1, "0", "x"))
    assert kind == "reasoning" and span.endswith("0 x") and "," not in span
    steps, rest = RIGHT.rsplit(" = ", 1)
    assert blamed(COUNT, f"{steps.rsplit(', ', 1)[0]} = {rest}") == ("reasoning", "=")


def test_reasoning_is_judged_by_what_was_written() -> None:
    # A blue circle was seen as red and counted so: the reasoning is right on a wrong perception.
    seen = [Object("top", "large", "blue", "circle"), *SCENE[1:]]
    verdict = inspect_text(COUNT, write(scene_of(COUNT)[1], seen))
    assert [verdict[flag] for flag in FLAGS] == [False, False, True, True]
    # A wrong running result is one error; the steps after it follow from it.
    text = write(scene_of(COUNT)[1], SCENE, wrong_rule=True)
    assert blamed(COUNT, text) == ("reasoning", "2") and not inspect_text(COUNT, text)["answer_right"]


def test_harmless_variation_is_right() -> None:
    other_order = write(scene_of(COUNT)[1], SCENE[::-1])
    for text in (other_order, RIGHT.replace(" </", "</"), RIGHT.replace("><", ">\n<"), f"\n{RIGHT}\n"):
        verdict = inspect_text(COUNT, text)
        assert all(verdict[flag] for flag in FLAGS) and verdict["first_error"] is None


def test_a_relation_without_its_reference_gives_nothing() -> None:
    problem = example(Question("relation", direction="above", colour="blue", shape="square"))
    seen = [o if o.colour == "red" else Object(o.cell, o.size, "green", o.shape) for o in SCENE]
    text = write(scene_of(problem)[1], seen)
    assert text.count("0 0") == 4 and "= 0 </think>" in text
    assert blamed(problem, text) == ("perception", "green") and inspect_text(problem, text)["reasoning_right"]


@given(st.text() | st.lists(st.sampled_from([*RIGHT.split(), "\x00", "\ud800", "=", ",", "<think>"])).map(" ".join))
def test_any_text_gets_a_verdict_within_bounds(text: str) -> None:
    verdict = inspect_text(COUNT, text)
    error = verdict["first_error"]
    assert error is None or (0 <= error["start"] <= error["end"] <= len(text) and error["why"])
    assert (error is None) == all(verdict[flag] for flag in FLAGS)


@given(st.integers(0, len(RIGHT) - 1))
def test_a_cut_completion_is_never_right(end: int) -> None:
    verdict = inspect_text(COUNT, RIGHT[:end])
    assert not verdict["format_right"] and not verdict["answer_right"] and verdict["first_error"]["kind"] == "format"


def test_cells_are_in_reading_order() -> None:
    assert CELLS.index("topright") == 2 and CELLS.index("bottomleft") == 6
