"""Rewards: what counts as equal, what is never raised, and messages that say whose fault it is."""

from __future__ import annotations

import asyncio
import math
import pickle
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segpo_core.tasks.answers import normalise_answer
from segpo_core.tasks.rewards import (
    _Checker,
    answer_reward,
    format_reward,
    load_reward,
    math_reward,
    no_answer_read,
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


@pytest.mark.parametrize(
    ("answer", "right", "wrong"),
    [
        # without a tag: the last expression, whole
        ("1/9", ["So the probability is 1/9.", "Thus it is $\\frac{1}{9}$."], ["it is 9", "it is 1", "it is 9/1"]),
        ("9", ["The area is 9 cm^2.", "3^2 = 9", "So $x = 9$."], ["it is 1/9.", "it is \\sqrt{9}.", "so 9x.", "2^9"]),
        ("2", ["The answer is 2."], ["The answer is 7/2.", "The area is 9 cm^2.", "x = \\frac{7}{2}", "It is 2x."]),
        ("51", [], ["So x = $\\sqrt{51}$.", "x = 3y + 51", "so $3y+51$"]),
        ("\\sqrt{51}", ["Thus the answer is $\\sqrt{51}$.", "it is √51"], ["it is 51"]),
        ("5", ["The answer is x = 5", "**Answer:** 5", "Answer:\n5", "\\fbox{5} is \\boxed{5}"],
         ["The answer is not 5.", "The answer is between 3 and 5.", "The answer is −5.", "The answer is 5 or 6."]),
        ("-5", ["The answer is −5.", "<answer>−5</answer>", "It is −5."], ["The answer is 5."]),
        ("(1,2)", ["The answer is (1, 2).", "So it is (1, 2)."], ["The answer is 2.", "The answer is (2, 1)."]),
        # units, mixed numbers, words for numbers
        ("9",
         ["<answer>9 cm^2</answer>", "<answer>9 cm²</answer>", "<answer>9\\text{ cm}^2</answer>", "\\boxed{nine}"],
         ["<answer>9 million</answer>", "<answer>9 m or 10 m</answer>", "<answer>nine x</answer>"]),
        ("9 m", ["<answer>9</answer>", "<answer>9.0 m</answer>"], ["<answer>9 cm</answer>", "<answer>m</answer>"]),
        ("3.5", ["<answer>3 1/2</answer>", "<answer>3\\frac{1}{2}</answer>", "it is 3 1/2."], ["<answer>1/2</answer>"]),
        ("21", ["<answer>twenty-one</answer>"], ["<answer>twenty</answer>"]),
        ("10x9", ["<answer>10×9</answer>", "<answer>10 \\times 9</answer>", "<answer>10 by 9</answer>", "It is 10x9."],
         ["<answer>9x10</answer>", "<answer>1x90</answer>", "<answer>90</answer>", "<answer>90x</answer>"]),
        ("1,200", ["<answer>1{,}200</answer>", "<answer>\\$1200</answer>", "It is $1,200."], ["<answer>200</answer>"]),
        (["14", "fourteen", "XIV"], ["<answer>XIV</answer>", "<answer>14</answer>"], ["<answer>X</answer>"]),
    ],
)  # fmt: skip
def test_what_math_reward_calls_the_answer(answer, right: list[str], wrong: list[str]) -> None:
    assert [text for text in right if one(math_reward, text, answer) != 1] == []
    assert [text for text in wrong if one(math_reward, text, answer) != 0] == []


@pytest.mark.parametrize(
    "answer", ["1/2", "3", "\\frac{1}{2}", "7.5", "\\sqrt{3}", "x+1", "12", "3 cm", "45^\\circ", "10x9", "2\\pi"]
)
def test_one_over_the_answer_is_not_the_answer(answer: str) -> None:
    assert one(math_reward, f"The answer is {answer}.", answer) == 1.0
    assert one(math_reward, f"The answer is 1/({answer}).", answer) == 0.0
    assert answer == "1/2" or one(math_reward, f"The answer is 1/{answer}.", answer) == 0.0  # 1/1/2 is 1/2


@pytest.mark.parametrize(
    ("answer", "right", "wrong"),
    [
        ("yes", ["Yes", "yes.", "**yes**", "\\boxed{yes}", "\\text{Yes}"], ["no", "yes and no", "not yes", ""]),
        ("B", ["B", "(B)", "b)", "B. a cube", "B: 5", "\\text{B}", "Option B"], ["A", "A. B", "Bob", "a B", "A or B"]),
        ("B. a cube", ["B", "(B) a cube"], ["B. a ball", "a", "cube"]),
        ("8", ["8.0", "8 sides", "eight"], ["18", "8 1/2", "1/8", "8x", "7 or 8"]),
        ("light blue", ["Light  blue."], ["blue", "light"]),
        (["14", "fourteen"], ["14", "Fourteen"], ["4"]),
    ],
)
def test_answer_reward_is_lenient_in_form_only(answer, right: list[str], wrong: list[str]) -> None:
    for texts, value in ((right, 1.0), (wrong, 0.0)):
        assert [t for t in texts if one(answer_reward, f"<answer>{t}</answer>", answer) != value] == []
        assert [t for t in texts if t and one(answer_reward, f"Well: the answer is {t}", answer) != value] == []


def test_no_answer_read() -> None:
    assert no_answer_read([answer_reward], ["yes", "no idea"]) and not no_answer_read([answer_reward], ["a", GOOD])
    assert no_answer_read([math_reward], ["yes"]) and not no_answer_read([math_reward], ["it makes 4"])
    assert not no_answer_read([format_reward], ["yes"]) and not no_answer_read([answer_reward], [])


def test_math_reward_from_another_thread() -> None:
    values: list[float] = []
    thread = threading.Thread(target=lambda: values.append(one(math_reward, "\\boxed{\\frac{2}{4}}", "\\frac{1}{2}")))
    thread.start()
    thread.join()
    assert values == [1.0]


def test_an_expression_without_end_is_wrong_and_the_next_one_is_judged() -> None:
    checker = _Checker(seconds=20.0)
    assert checker.same("2/4", "\\frac{1}{2}")
    checker.seconds, start = 0.5, time.monotonic()
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

    def few_columns(completions):
        return [0.0] * len(completions)

    assert run([few_columns], kind=["sum"] * 3)[0] == [0.0] * 3, "a function gets what it names"

    def other_columns(completions, colour):
        return [0.0] * len(completions)

    with pytest.raises(ValueError, match=r"other_columns failed.*colour.*\*\*columns"):
        run([other_columns], kind=["sum"] * 3)

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
        (f"{file}:length", "has no length; it has: brevity"),
        (f"{file}:math", "is module and cannot be called"),
        (f"{tmp_path}/none.py:f", "cannot load .*none.py: FileNotFoundError"),
        (f"{tmp_path}/broken.py:f", "cannot load .*broken.py: SyntaxError"),
        (f"{tmp_path}/none.py:f", "FileNotFoundError"),
        ("no_such_module:f", "cannot load no_such_module: ModuleNotFoundError"),
    ):
        with pytest.raises(ValueError, match=message):
            load_reward(spec)


def test_reward_files_are_modules_like_others(tmp_path, monkeypatch) -> None:
    files = {
        "uses_dataclass": "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\n"
        "class W:\n    a: float = 1.0\ndef reward(prompts, completions, **c): return [W().a for _ in completions]\n",
        "uses_neighbour": "from its_neighbour import one\n"
        "def reward(prompts, completions, **c): return [one() for _ in completions]\n",
        "its_neighbour": "def one(): return 1.0\ndef reward(prompts, completions, **c): return [1.0]\n",
        "uses_async": "import asyncio\nasync def reward(prompts, completions, **c):\n    await asyncio.sleep(0)\n"
        "    return [1.0 for _ in completions]\n",
        "json": "def reward(prompts, completions, **c): return [1.0]\n",  # named as a library
    }
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = dict(sys.modules)
    try:
        for name in files:
            func = load_reward(f"{tmp_path}/{name}.py:reward")
            assert run_rewards([func], None, ["?"], ["x"], {})[0] == [1.0]
            assert pickle.loads(pickle.dumps(func)) is func
        assert sys.modules["json"] is known["json"]
        (tmp_path / "uses_dataclass.py").write_text("def reward(prompts, completions, **c): return [2.0]\n")
        assert load_reward(f"{tmp_path}/uses_dataclass.py:reward")([None], ["x"]) == [2.0]  # as it is now
    finally:
        for name in set(sys.modules) - set(known):
            del sys.modules[name]


def test_a_module_of_the_current_folder(tmp_path, monkeypatch) -> None:
    (tmp_path / "in_this_folder.py").write_text("def reward(prompts, completions, **c): return [1.0]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    assert load_reward("in_this_folder:reward")([None], ["x"]) == [1.0]
    monkeypatch.delitem(sys.modules, "in_this_folder")


def test_async_functions_run_side_by_side() -> None:
    arrived = []

    async def meets(prompts, completions, **columns):
        arrived.append(1)
        async with asyncio.timeout(30):  # of two that ran one after the other, the first would wait in vain
            while len(arrived) < 2:
                await asyncio.sleep(0.01)
        return [1.0] * len(completions)

    total, parts = run_rewards([meets, meets], None, ["p"], ["c"], {})
    assert total == [2.0] and list(parts) == ["meets", "meets_2"]


def test_an_async_function_within_a_running_loop() -> None:
    async def slow(prompts, completions, **columns):
        await asyncio.sleep(0)
        return [2.0 for _ in completions]

    async def notebook():
        return run([slow])[0]

    assert asyncio.run(notebook()) == [2.0, 2.0, 2.0]

    async def fails(prompts, completions, **columns):
        raise KeyError("x")

    with pytest.raises(ValueError, match="fails failed at completion 0: KeyError"):
        run([fails])
