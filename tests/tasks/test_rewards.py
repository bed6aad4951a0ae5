"""Rewards: what counts as equal, what is never raised, and messages that say whose fault it is."""

from __future__ import annotations

import math
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segpo_core.tasks.rewards import (
    _Checker,
    answer_reward,
    format_reward,
    load_reward,
    math_reward,
    normalise_answer,
    run_rewards,
)

GOOD = "<perception> a </perception><think> b </think><answer> 3 </answer>"


def one(func, completion, answer: str) -> float:
    (value,) = func(prompts=["?"], completions=[completion], answer=[answer], kind=["count"])
    return value


@pytest.mark.parametrize(
    ("text", "same"),
    [("3", " 3\n"), ("3", "3.0"), ("3", "+3"), ("3", "03"), ("1200.5", "1,200.50"), ("0.5", ".5"), ("0", "-0.0")]
    + [("-2", "-2."), ("-2.5", " -2.50 ")],
)
def test_spellings_of_a_number(text: str, same: str) -> None:
    assert normalise_answer(text) == normalise_answer(same) == text


@pytest.mark.parametrize("text", ["", ".", "-", "1,20", "3 4", "1e3", "3a", "Red"])
def test_what_is_no_number_stays(text: str) -> None:
    assert normalise_answer(text) == text


@given(st.text(max_size=30))
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalise_answer(normalise_answer(text)) == normalise_answer(text)


def test_answer_reward() -> None:
    assert one(answer_reward, GOOD, "3.0") == 1.0
    assert one(answer_reward, [{"role": "assistant", "content": GOOD}], "3") == 1.0
    assert one(answer_reward, [{"role": "assistant", "content": [{"type": "text", "text": GOOD}]}], "3") == 1.0
    assert one(answer_reward, "<answer> light \n blue </answer>", "light blue") == 1.0
    assert one(answer_reward, "<answer> 4 </answer><answer> 3 </answer>", "3") == 1.0
    for wrong in ("", "3", "<answer> 3", "<answer> 4 </answer>", "<answer></answer>", []):
        assert one(answer_reward, wrong, "3") == 0.0


def test_format_reward() -> None:
    twice = GOOD + "<answer> 3 </answer>"
    swapped = "<think> b </think><perception> a </perception><answer> 3 </answer>"
    texts = [GOOD, f"Well: {GOOD}", twice, swapped, "", GOOD.replace("</think>", "")]
    assert format_reward([None] * 6, texts) == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer> 3 </answer>", "3"),
        ("so it is \\boxed{3}", "3"),
        ("first \\boxed{4}, no: \\boxed{\\frac{1}{2}}", "0.5"),
        ("it makes 1,200 in all", "1200"),
        ("it makes -4.", "-4"),
        ("<answer> $3\\sqrt{2}$ </answer>", "3\\sqrt{2}"),
        ("<answer> \\sqrt{18} </answer>", "3\\sqrt{2}"),
        ("<answer> 1/2 </answer>", "0.5"),
        ("<answer> true </answer>", "true"),
    ],
)
def test_math_reward_right(text: str, answer: str) -> None:
    assert one(math_reward, text, answer) == 1.0


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("", "3"),
        ("no number", "3"),
        ("<answer></answer> 3", "3"),
        ("\\boxed{3", "4"),
        ("<answer> \\frac{1}{ </answer>", "\\frac{1}{2}"),
        ("<answer> }{$\\ \x00 </answer>", "\\frac{1}{2}"),
        ("<answer> \ud800 </answer>", "\\frac{1}{2}"),
        ("<answer> eurt </answer>", "true"),
        ("<answer> " + "(" * 5000 + " </answer>", "x^2"),
        ("<answer> 3 </answer>", ""),
    ],
)
def test_math_reward_wrong(text: str, answer: str) -> None:
    assert one(math_reward, text, answer) == 0.0


def test_math_reward_from_another_thread() -> None:
    values: list[float] = []
    thread = threading.Thread(target=lambda: values.append(one(math_reward, "\\boxed{\\frac{2}{4}}", "\\frac{1}{2}")))
    thread.start()
    thread.join()
    assert values == [1.0]


def test_an_expression_without_end_is_wrong_and_the_next_one_is_judged() -> None:
    checker = _Checker(seconds=0.5)
    assert checker.same("2/4", "\\frac{1}{2}")
    start = time.monotonic()
    assert not checker.same("9^{9^{9^{9}}}", "\\frac{1}{2}")
    assert time.monotonic() - start < 5
    checker.seconds = 20.0  # a new process starts
    assert checker.same("0.5", "\\frac{1}{2}")
    checker.process.kill()
    checker.process.wait()
    assert checker.same("0.5", "\\frac{1}{2}")
    checker.process.kill()


def lengths(prompts, completions, **columns):
    return [len(c) for c in completions]


def only_counts(prompts, completions, kind, **columns):
    return [1 if k == "count" else None for k in kind]


def run(funcs, weights=None, completions=("a", "bb", "ccc"), **columns):
    return run_rewards(funcs, weights, ["?"] * len(completions), list(completions), columns)


def test_weighted_sum_ignores_what_does_not_apply() -> None:
    total, parts = run([lengths, only_counts], [0.5, 2.0], kind=["count", "sum", "count"])
    assert parts == {"lengths": [1.0, 2.0, 3.0], "only_counts": [1.0, None, 1.0]}
    assert total == [2.5, 1.0, 3.5]
    assert run([only_counts], kind=["sum"] * 3)[0] == [None, None, None]
    assert run([lengths, lengths])[1].keys() == {"lengths", "lengths_2"}
    assert run([]) == ([None] * 3, {})
    numbers = run([lambda prompts, completions: np.array([True, False, True])])[1]
    assert numbers == {"<lambda>": [1.0, 0.0, 1.0]}
    with pytest.raises(ValueError, match="1 reward weights for 2 reward functions"):
        run([lengths, lengths], [1.0])


def test_a_function_that_fails_is_named() -> None:
    def fragile(prompts, completions, **columns):
        return [1 / (len(c) - 2) for c in completions]

    with pytest.raises(ValueError, match="fragile failed at completion 1: ZeroDivisionError.*return 0.0") as caught:
        run([lengths, fragile])
    assert isinstance(caught.value.__cause__, ZeroDivisionError)

    def no_columns(prompts, completions):
        return [0.0] * len(completions)

    with pytest.raises(ValueError, match=r"no_columns failed.*\*\*columns"):
        run([no_columns], kind=["sum"] * 3)

    def together(prompts, completions, **columns):
        return [0.0] if len(completions) == 1 else 1 / 0

    with pytest.raises(ValueError, match="together failed at completions 0 to 2 together"):
        run([together])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, "much", [1.0]])
def test_a_value_that_is_no_number_is_named(bad: object) -> None:
    def odd(prompts, completions, **columns):
        return [0.0, bad, 1.0]

    with pytest.raises(ValueError, match=r"odd returned .* for completion 1; return a finite number, or None"):
        run([odd])


@pytest.mark.parametrize("values", [[1.0], [1.0] * 4, []])
def test_a_wrong_number_of_values_is_named(values: list) -> None:
    def short(prompts, completions, **columns):
        return values

    with pytest.raises(ValueError, match=rf"short returned {len(values)} values for completions 0 to 2 \(3\)"):
        run([short])


def test_load_reward(tmp_path, monkeypatch) -> None:
    assert load_reward("math_reward") is math_reward and load_reward(lengths) is lengths
    assert load_reward("segpo_core.tasks.rewards:format_reward") is format_reward
    (tmp_path / "mine.py").write_text("import math\ndef brevity(prompts, completions, **c): return [0.5]\n")
    file = str(tmp_path / "mine.py")
    assert load_reward(f"{file}:brevity")([None], ["x"]) == [0.5]
    (tmp_path / "broken.py").write_text("def f(:\n")
    for spec, message in (
        ("nonsense", "unknown reward function 'nonsense'; known: answer_reward, math_reward, format_reward"),
        (f"{file}:length", "has no function length; it has: brevity"),
        (f"{file}:math", "has no function math"),
        (f"{tmp_path}/none.py:f", "cannot load .*none.py: FileNotFoundError"),
        (f"{tmp_path}/broken.py:f", "cannot load .*broken.py: SyntaxError"),
        ("no_such_module:f", "cannot load no_such_module: ModuleNotFoundError"),
    ):
        with pytest.raises(ValueError, match=message):
            load_reward(spec)
