"""Verifiable rewards, with TRL's call signature: `f(prompts, completions, **columns) -> list[float | None]`."""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import math
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

from segpo_core.loading import load_object, names_code, spec_of
from segpo_core.tasks.answers import is_number, last_expression, same_form, stated_answer, tidy, without_dress

Reward = Callable[..., list[float | None]]

_TAG = re.compile(r"</?(?:perception|think|answer)>")
_TAGS = ["<perception>", "</perception>", "<think>", "</think>", "<answer>", "</answer>"]
_WORDS = re.compile(r"[^\W\d_]{2,}(?:\s+[^\W\d_]+)*")


def completion_text(completion: str | Sequence[Mapping]) -> str:
    """The text of a completion in TRL's form: a string, or messages whose last one is the answer."""
    if isinstance(completion, str):
        return completion
    content = completion[-1]["content"] if completion else ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def answer_reward(prompts, completions, answer, **columns) -> list[float | None]:
    """1.0 where the stated answer (see answers.py) is the `answer` column but for its form, else 0.0.

    Of several references (a list in the `answer` column) any counts. Nothing is calculated: 1/2 is not 0.5.
    """
    given = [stated_answer(completion_text(c)) for c in completions]
    return [float(g is not None and _any(_same_words, g, a)) for g, a in zip(given, answer, strict=True)]


def format_reward(prompts, completions, **columns) -> list[float | None]:
    """1.0 where the structure tags are there once each and in order, else 0.0."""
    return [float(_TAG.findall(completion_text(c)) == _TAGS) for c in completions]


def math_reward(prompts, completions, answer, **columns) -> list[float | None]:
    """1.0 where the answer has the value of the `answer` column ("0.5" and "\\frac{1}{2}" have), else 0.0.

    The answer is the stated one (see answers.py), else the last expression, whole. Of several references any counts.
    What cannot be read is wrong; words must be equal. May be called from any thread.
    """
    given = [_math_answer(completion_text(c)) for c in completions]
    return [float(g is not None and _any(_same_value, g, a)) for g, a in zip(given, answer, strict=True)]


def no_answer_read(functions: Sequence[Reward], texts: Sequence[str]) -> bool:
    """Whether a reward that judges answers finds none to judge in any of the texts."""
    readers = {answer_reward: stated_answer, math_reward: _math_answer}
    read = [readers[f] for f in functions if f in readers]
    return bool(read and texts) and not any(reader(text) for reader in read for text in texts)


def _any(same: Callable[[str, str], bool], given: str, answer: object) -> bool:
    answers = answer if isinstance(answer, list | tuple) else [answer]
    return any(same(given, str(one)) for one in answers)


def _math_answer(text: str) -> str | None:
    stated = stated_answer(text)
    # An opened box that is never closed holds an answer that was not finished.
    return last_expression(text) if stated is None and "\\boxed{" not in text else stated


def _same_words(given: str, answer: str) -> bool:
    return same_form(tidy(given), tidy(answer)) is True


def _same_value(given: str, answer: str) -> bool:
    a, b = tidy(given), tidy(answer)
    if len(a) > 400:
        return False
    same = same_form(a, b)
    if same is not None:
        return same
    a, b = without_dress(a, b)
    # As LaTeX, "true" would be the product t r u e, which equals "eurt".
    if _WORDS.fullmatch(b) or (_WORDS.fullmatch(a) and is_number(b)):
        return False
    return _checker.same(a, b)


class _Checker:
    """math-verify in a process of its own: 9^{9^{9^9}} keeps sympy busy for ever, no signal or thread can stop it."""

    _SOURCE = """if True:
        import json, logging, sys
        from math_verify import parse, verify
        logging.disable()
        print("ready", flush=True)
        for line in sys.stdin:
            try:
                given, answer = (parse(f"${text}$", parsing_timeout=None) for text in json.loads(line))
                print(int(verify(answer, given, timeout_seconds=None)), flush=True)
            except Exception:
                print(0, flush=True)
    """

    def __init__(self, seconds: float = 5.0):
        self.seconds, self.lock, self.process = seconds, threading.Lock(), None

    def same(self, given: str, answer: str) -> bool:
        """Whether two expressions have the same value; False when that takes too long."""
        with self.lock:
            if self.process is None or self.process.poll() is not None:
                # -P: modules beside the script that is running must not hide the library's
                command, pipe = [sys.executable, "-P", "-c", self._SOURCE], subprocess.PIPE
                self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, encoding="utf-8")
                if self.process.stdout.readline() != "ready\n":
                    raise ImportError("math_reward needs math-verify: pip install 'math-verify[antlr4-13-2]'")
            timer = threading.Timer(self.seconds, self.process.kill)
            timer.start()
            try:
                self.process.stdin.write(json.dumps([given, answer]) + "\n")
                self.process.stdin.flush()
                reply = self.process.stdout.readline()
            except OSError:  # killed while it was written to
                reply = ""
            finally:
                timer.cancel()
            if not reply:
                self.process.kill()
                self.process.wait()  # else it would still look alive to the next call
            return reply == "1\n"


_checker = _Checker()


class Text(str):
    """A completion of a prompt that is a text, as TRL hands it over: a text. What was written for conversations reads
    `completion[-1]["content"]`, and finds it here too."""

    def __getitem__(self, key: Any) -> str:
        return _Message(self, self[key:][:1] if key == 0 else self[-1:]) if key in (0, -1) else super().__getitem__(key)


class _Message(str):
    """The first or last character of a text, and a message that holds all of it."""

    whole: str

    def __new__(cls, whole: str, character: str) -> _Message:
        made = super().__new__(cls, character)
        made.whole = str(whole)
        return made

    def __getitem__(self, key: Any) -> str:
        return {"content": self.whole, "role": "assistant"}[key] if isinstance(key, str) else super().__getitem__(key)


def outside_training() -> dict[str, Any]:
    """What TRL's trainer hands to every reward function beside the columns, where no trainer is at work."""

    def nothing(*_: Any) -> None:
        return None

    state = SimpleNamespace(global_step=0, max_steps=0, epoch=0.0)
    return {"trainer_state": state, "log_extra": nothing, "log_metric": nothing}


def wants(func: Reward, name: str) -> bool:
    """Whether a reward function cannot do without the argument `name`."""
    wanted = _parameters(func).get(name)
    return wanted is not None and wanted.default is inspect.Parameter.empty and wanted.kind not in _VARIADIC


def check_columns(funcs: Sequence[Reward], columns: Collection[str]) -> None:
    """Raise ValueError where a reward function asks for a column that the problems do not have."""
    there = {*columns, "prompts", "completions", "completion_ids", *outside_training()}
    for func in funcs:
        if missing := [name for name in _parameters(func) if wants(func, name) and name not in there]:
            raise ValueError(
                f"reward function {_name(func)} asks for {', '.join(missing)}, which the problems do not have; their "
                f"columns are {', '.join(sorted(columns))}: rename one, or give the argument a default"
            )


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _parameters(func: Reward) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(func).parameters)
    except (TypeError, ValueError):  # of some that are written in C
        return {"columns": inspect.Parameter("columns", inspect.Parameter.VAR_KEYWORD)}


def run_rewards(
    funcs: Sequence[Reward],
    weights: Sequence[float] | None,
    prompts: Sequence,
    completions: Sequence,
    columns: Mapping[str, Sequence],
    given: Mapping[str, Any] | None = None,
) -> tuple[list[float | None], dict[str, list[float | None]]]:
    """Run reward functions over B completions.

    Args:
        columns: name -> B values. A function without `**columns` gets those that it names.
        given: what goes to every function as it is; default: `outside_training`.

    Returns: the weighted sums (None where no function applies) and each function's values by its name, B each.
    Raises: ValueError that names the function, the completion and the remedy, for a function that raises, returns
        another number of values, or something else than finite numbers and None.
    """
    given = outside_training() if given is None else given
    weights = [1.0] * len(funcs) if weights is None else list(weights)
    if len(weights) != len(funcs):
        raise ValueError(f"{len(weights)} reward weights for {len(funcs)} reward functions; give one weight each")
    parts: dict[str, list[float | None]] = {}
    total: list[float | None] = [None] * len(completions)
    returned = _results(funcs, prompts, completions, columns, given)
    for func, weight, values in zip(funcs, weights, returned, strict=True):
        name = base = _name(func)
        while name in parts:
            name = f"{base}_{len(parts) + 1}"
        parts[name] = _numbers(values, func, name, prompts, completions, columns)
        for i, value in enumerate(parts[name]):
            if value is not None:
                total[i] = (total[i] or 0.0) + weight * value
    return total, parts


def _numbers(
    values: Any, func: Reward, name: str, prompts: Sequence, completions: Sequence, columns: Mapping
) -> list[float | None]:
    """What a function returned as rewards, of `_results`."""
    try:
        if isinstance(values, BaseException):
            raise values
        values = list(values)
    except Exception as error:
        where = _first_failing(func, prompts, completions, columns)
        raise ValueError(
            f"reward function {name} failed at {where}: {type(error).__name__}: {error}; make it accept "
            "(prompts, completions, **columns) and return 0.0 for completions that it cannot read, or None"
        ) from error
    if len(values) != len(completions):
        raise ValueError(
            f"reward function {name} returned {len(values)} values for completions 0 to {len(completions) - 1} "
            f"({len(completions)}); return one each, None where it does not apply"
        )
    out: list[float | None] = []
    for i, value in enumerate(values):
        try:
            number = None if value is None else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if number is not None and not math.isfinite(number):
            raise ValueError(
                f"reward function {name} returned {value!r} for completion {i}; "
                "return a finite number, or None where it does not apply"
            )
        out.append(number)
    return out


def _results(
    funcs: Sequence[Reward], prompts: Sequence, completions: Sequence, columns: Mapping, given: Mapping
) -> list[Any]:
    """What each function returns, or the exception that it raised; those that are awaited run side by side."""

    def begun(func: Reward) -> Any:
        arguments = {"prompts": list(prompts), "completions": list(completions), **columns, **given}
        named = _parameters(func)
        if not any(item.kind is inspect.Parameter.VAR_KEYWORD for item in named.values()):
            arguments = {name: value for name, value in arguments.items() if name in named}
        try:
            return func(**arguments)
        except Exception as error:
            return error

    found = [begun(func) for func in funcs]
    waiting = [i for i, value in enumerate(found) if inspect.isawaitable(value)]

    async def awaited() -> list[Any]:
        return await asyncio.gather(*(found[i] for i in waiting), return_exceptions=True)

    if waiting:  # in a thread of its own: a notebook's thread has a loop running, in which no other can run
        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(asyncio.run, awaited()).result()
        for i, value in zip(waiting, done, strict=True):
            found[i] = value
    return found


def _first_failing(func: Reward, prompts: Sequence, completions: Sequence, columns: Mapping) -> str:
    for i in range(len(completions)):
        try:
            one = {k: [v[i]] for k, v in columns.items()}
            (value,) = _results([func], [prompts[i]], [completions[i]], one, outside_training())
            if isinstance(value, BaseException):
                raise value
        except Exception:
            return f"completion {i}"
    return f"completions 0 to {len(completions) - 1} together"


BUILT_IN: dict[str, Reward] = {f.__name__: f for f in (answer_reward, math_reward, format_reward)}


def load_reward(spec: str | Reward) -> Reward:
    """A reward function by built-in name, as "module:name" or as "file.py:name"; what can be called stays as it is. A
    class is made an instance, without arguments.

    Raises: ValueError that says what is missing.
    """
    func: Any = spec
    if isinstance(spec, str):
        if spec.startswith("<"):  # as `spoken` writes it
            raise ValueError(f"the reward function {spec} was a Python object that no file holds: hand it over again")
        if not names_code(spec):
            if spec in BUILT_IN:
                return BUILT_IN[spec]
            model = "; a reward model is asked by a function that you write" if "/" in spec else ""
            raise ValueError(
                f"unknown reward function {spec!r}; known: {', '.join(BUILT_IN)}, "
                f"or give module:function or file.py:function{model}"
            )
        func = load_object(spec, "reward function")
    if inspect.isclass(func):
        try:
            func = func()
        except TypeError as error:
            raise ValueError(
                f"reward function {_name(func)}: the class cannot be made without arguments ({error}); give them "
                "defaults, or name a function that makes it"
            ) from error
    if hasattr(func, "forward") and hasattr(func, "parameters"):
        raise ValueError(f"{_name(func)} is a model: write a function that asks it, f(prompts, completions, **columns)")
    if not callable(func):
        raise ValueError(f"reward function {spec!r} is {type(func).__name__} and cannot be called")
    return func


def spoken(func: Reward) -> str:
    """What run.json calls a reward function: the name that `load_reward` finds again, or <its name> where none does."""
    if getattr(func, "__name__", None) in BUILT_IN and BUILT_IN[func.__name__] is func:
        return func.__name__
    # An instance is found by its class if that is all there is to it.
    bare = not inspect.isroutine(func) and not getattr(func, "__dict__", True)
    return spec_of(func) or (spec_of(type(func)) if bare else None) or f"<{_name(func)}>"


def _name(func: Any) -> str:
    """The name under which a function's values are recorded: its own, that of what a partial wraps, or its class's."""
    while isinstance(func, functools.partial):
        func = func.func
    return getattr(func, "__name__", type(func).__name__)
