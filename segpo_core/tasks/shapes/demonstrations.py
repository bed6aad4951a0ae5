"""Written answers: right ones, and careless ones with mistakes in seeing and in reckoning."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from segpo_core.tasks.shapes.questions import PRICES, Question
from segpo_core.tasks.shapes.scenes import ATTRIBUTES, Object

#: Objects that are easily mistaken: two words that describe one, and the attribute and word it is taken for.
LOOKALIKES = (
    ({"colour": "green", "shape": "triangle"}, {"colour": "blue"}),
    ({"size": "medium", "shape": "square"}, {"size": "large"}),
    ({"colour": "yellow", "shape": "circle"}, {"colour": "red"}),
)
#: Every second price is half forgotten: whose, by (size, colour, shape).
FORGOTTEN = dict(zip(PRICES, [False, True] * (len(PRICES) // 2), strict=True))


@dataclass(frozen=True)
class Careless:
    """How often a demonstration goes wrong. The mistakes are drawn independently."""

    wrong_rule: Mapping[str, float] = field(
        default_factory=lambda: {"count": 0.5, "sum": 0.5, "difference": 0.45, "relation": 0.35, "comparison": 0.5}
    )
    """Share of demonstrations, by question kind, that answer by the kind's wrong rule."""
    misperceive: float = 0.25
    """Share of those that describe one attribute of one object wrongly, whichever; price questions have look-alikes."""
    lookalike: tuple[float, ...] = (0.6, 0.3, 0.3)
    """Price questions: how often an object of each of `LOOKALIKES` is taken for the other."""
    misprice: tuple[float, float] = (0.15, 0.6)
    """Price questions: how often a price is wrong, one that is known and one that is half forgotten."""
    believe_hint: float = 0.08
    """Price questions: share of demonstrations that conclude with the question's hint, whatever was reckoned."""


@dataclass(frozen=True)
class Demonstration:
    """A written answer and the mistakes put into it: `wrong_rule` may be harmless (it may give the same)."""

    text: str
    wrong_rule: bool = False  # a price is wrong, where prices are asked for
    misperceived: tuple[int, str] | None = None  # (object, attribute), the first one


def write(
    question: Question,
    objects: Sequence[Object],
    wrong_rule: bool = False,
    values: Sequence[int] | None = None,
    conclusion: str | None = None,
) -> str:
    """The completion that describes `objects` and reckons over them; with other values, another conclusion, if told."""
    total, steps = question.start(wrong_rule), []
    values = question.values(objects, wrong_rule) if values is None else values
    for obj, value in zip(objects, values, strict=True):
        total = question.add(total, value)
        steps.append(" ".join([obj.cell, *question.noted(obj), str(value), str(total)]))
    result = conclusion or question.result(total, wrong_rule)
    seen = ", ".join(obj.text() for obj in objects)
    return f"<perception> {seen} </perception><think> {', '.join(steps)} = {result} </think><answer> {result} </answer>"


def demonstrate(example: Mapping, rng: random.Random, careless: Careless | None = None) -> Demonstration:
    """A demonstration for `example`; correct when `careless` is None."""
    objects, question = scene_of(example)
    if careless is None:
        return Demonstration(write(question, objects))
    if question.kind == "price":
        return _demonstrate_price(question, objects, rng, careless)
    misperceived = None
    if rng.random() < careless.misperceive:
        i, attribute = rng.randrange(len(objects)), rng.choice(tuple(ATTRIBUTES))
        wrong = rng.choice([v for v in ATTRIBUTES[attribute] if v != getattr(objects[i], attribute)])
        objects[i] = replace(objects[i], **{attribute: wrong})
        misperceived = (i, attribute)
    wrong_rule = rng.random() < careless.wrong_rule.get(question.kind, 0.0)
    return Demonstration(write(question, objects, wrong_rule), wrong_rule, misperceived)


def _demonstrate_price(
    question: Question, objects: list[Object], rng: random.Random, careless: Careless
) -> Demonstration:
    misperceived = None
    for i, obj in enumerate(objects):
        for (words, taken), share in zip(LOOKALIKES, careless.lookalike, strict=True):
            if words.items() <= vars(obj).items() and rng.random() < share:
                objects[i] = replace(obj, **taken)
                misperceived = misperceived or (i, *taken)
    right, wrong = question.values(objects), question.values(objects, wrong_rule=True)
    share = [careless.misprice[FORGOTTEN[obj.size, obj.colour, obj.shape]] for obj in objects]
    values = [w if rng.random() < p else r for r, w, p in zip(right, wrong, share, strict=True)]
    believed = bool(question.hint) and rng.random() < careless.believe_hint
    text = write(question, objects, values=values, conclusion=question.hint if believed else None)
    return Demonstration(text, values != right, misperceived)


def demonstration(example: Mapping, rng: random.Random, careless: Careless | None = None) -> str:
    """The text of `demonstrate`."""
    return demonstrate(example, rng, careless).text


def scene_of(example: Mapping) -> tuple[list[Object], Question]:
    """Objects (reading order) and question of an example of this task."""
    return [Object(**obj) for obj in example["scene"]["objects"]], Question(**example["scene"]["question"])
