"""What is asked about a scene, and what the right reckoning over it is."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from segpo_core.tasks.shapes.scenes import ATTRIBUTES, CELLS, COLOURS, SHAPES, SIZES, Object

PICTURE_KINDS = ("count", "sum", "difference", "relation", "comparison")  # the picture alone answers them
KINDS = ("price", *PICTURE_KINDS)
DIRECTIONS = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}  # (row, column) step


def _price_list() -> dict[tuple[str, str, str], tuple[int, int]]:
    """Two different digits from 1 to 9 for each of the 36 kinds of shape, in no order that a model could guess."""
    prices = {}
    for i, shape in enumerate(product(SIZES, COLOURS, SHAPES)):
        price = 7 * i + 3 * (i // 4)
        prices[shape] = 1 + price % 9, 1 + (price + 1 + 5 * i % 8) % 9
    return prices


#: What a (size, colour, shape) costs, and what it is wrongly said to cost. No picture and no question shows it.
PRICES = _price_list()
COUNTED = (2, 3)  # shapes that a price question asks for


@dataclass(frozen=True)
class Question:
    """What is asked. `attribute`/`first`/`second` select objects ("colour", "red", "blue"); `colour`/`shape` name the
    reference object of a relation question, `direction` says where to look from it; `hint` is what a price question
    says the answer may be."""

    kind: str
    attribute: str = ""
    first: str = ""
    second: str = ""
    direction: str = ""
    colour: str = ""
    shape: str = ""
    hint: str = ""

    def text(self) -> str:
        first, second = (_plural(self.attribute, value) for value in (self.first, self.second))
        if self.kind == "count":
            return f"How many {first} are there?"
        if self.kind == "sum":
            return f"Add up the sizes of the {first}: small 1, medium 2, large 3."
        if self.kind == "difference":
            return f"Number of {first} minus number of {second}?"
        if self.kind == "relation":
            return f"How many shapes are {self.direction} the {self.colour} {self.shape}?"
        if self.kind == "price":
            which = f"{first} and {second}" if self.second else first
            hint = f" Perhaps {self.hint}." if self.hint else ""
            return f"Last digit of what the {which} cost?{hint}"
        return f"More common: {self.first}, {self.second} or same?"

    def reference(self, objects: Sequence[Object]) -> int | None:
        """Index of the first object that a relation question names, None when nothing is described so."""
        for i, obj in enumerate(objects):
            if (obj.colour, obj.shape) == (self.colour, self.shape):
                return i
        return None

    def costs(self, obj: Object) -> bool:
        """Whether a price question asks for the object."""
        return getattr(obj, self.attribute) in (self.first, self.second)

    def noted(self, obj: Object) -> list[str]:
        """The words about an object that its step repeats before it reckons: what is asked for, what is added up."""
        if self.kind == "price":
            others = [name for name in ATTRIBUTES if name != self.attribute and self.costs(obj)]
            return [getattr(obj, name) for name in (self.attribute, *others)]
        names = [self.attribute] if self.attribute else []
        return [getattr(obj, name) for name in names + ["size"] * (self.kind == "sum" and self.attribute != "size")]

    def values(self, objects: Sequence[Object], wrong_rule: bool = False) -> list[int]:
        """What each object adds to the running result; `wrong_rule` is the careless reading of the question.

        A relation question whose reference is not among `objects` gives 0 everywhere: nothing stands left of nothing.
        """
        if self.kind == "price":
            return [PRICES[obj.size, obj.colour, obj.shape][wrong_rule] if self.costs(obj) else 0 for obj in objects]
        if self.kind == "relation":
            ref = self.reference(objects)
            if ref is None:
                return [0] * len(objects)
            steps = [_beyond(obj.cell, objects[ref].cell, self.direction) for obj in objects]
            steps[ref] = int(wrong_rule)  # careless: the reference counts itself
            return steps
        out = []
        for obj in objects:
            value = getattr(obj, self.attribute)
            if value == self.first:
                weighs = self.kind == "sum" and not wrong_rule  # careless sum: counts
                out.append(1 + SIZES.index(obj.size) if weighs else 1)
            elif value == self.second:
                out.append(1 if self.kind == "difference" and wrong_rule else -1)  # careless difference: adds
            else:
                out.append(0)
        return out

    def start(self, wrong_rule: bool = False) -> int:
        """The running result before the first object; the careless count starts at one."""
        return int(self.kind == "count" and wrong_rule)

    def add(self, total: int, value: int) -> int:
        """The running result after one more value; of a price only the last digit is kept."""
        return (total + value) % 10 if self.kind == "price" else total + value

    def result(self, total: int, wrong_rule: bool = False) -> str:
        """The last running result as an answer; the careless comparison names the rarer one."""
        if self.kind != "comparison":
            return str(total)
        total = -total if wrong_rule else total
        return self.first if total > 0 else self.second if total < 0 else "same"

    def answer(self, objects: Sequence[Object]) -> str:
        total = 0
        for value in self.values(objects):
            total = self.add(total, value)
        return self.result(total)


def _plural(attribute: str, value: str) -> str:
    return f"{value}s" if attribute == "shape" else f"{value} shapes"


def _beyond(cell: str, reference: str, direction: str) -> int:
    row, column = divmod(CELLS.index(cell), 3)
    ref_row, ref_column = divmod(CELLS.index(reference), 3)
    down, across = DIRECTIONS[direction]
    return int((row - ref_row) * down + (column - ref_column) * across > 0)


def ask(kind: str, objects: Sequence[Object], rng: random.Random, hint_right: float = 0.0) -> Question | None:
    """A question of that kind about the scene; None when the scene has nothing that it could be about.

    Args:
        hint_right: share of price questions whose hint is right; 0: none has a hint.
    """
    if kind == "relation":
        return _ask_relation(objects, rng)
    attribute = rng.choice(tuple(ATTRIBUTES))
    if kind == "price":
        return _ask_price(attribute, objects, rng, hint_right)
    values = ATTRIBUTES[attribute]
    first = getattr(rng.choice(objects), attribute) if rng.random() < 0.9 else rng.choice(values)
    if kind in ("count", "sum"):
        return Question(kind, attribute, first)
    pair = [first, rng.choice([v for v in values if v != first])]
    rng.shuffle(pair)
    return Question(kind, attribute, *pair)


def _ask_relation(objects: Sequence[Object], rng: random.Random) -> Question | None:
    names = [(obj.colour, obj.shape) for obj in objects]
    unique = [name for name in names if names.count(name) == 1]
    if not unique:
        return None
    for _ in range(2):  # mostly something that is there: else "0" would be the answer to two in five
        colour, shape = rng.choice(unique)
        question = Question("relation", direction=rng.choice(tuple(DIRECTIONS)), colour=colour, shape=shape)
        if question.answer(objects) != "0":
            break
    return question


def _ask_price(attribute: str, objects: Sequence[Object], rng: random.Random, hint_right: float) -> Question | None:
    chosen = sorted(rng.sample(ATTRIBUTES[attribute], rng.choice((1, 2))), key=ATTRIBUTES[attribute].index)
    first, second = [*chosen, ""][:2]
    question = Question("price", attribute, first, second)
    if sum(map(question.costs, objects)) not in COUNTED:
        return None
    if not hint_right:
        return question
    answer = question.answer(objects)
    others = [str(digit) for digit in range(10) if str(digit) != answer]
    hint = answer if rng.random() < hint_right else rng.choice(others)
    return Question("price", attribute, first, second, hint=hint)
