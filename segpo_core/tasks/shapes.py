"""The embedded task: small scenes of coloured shapes and questions that need two steps, seeing and then reckoning.

A scene holds a few objects on a 3 x 3 grid. Its image is a pure function of the scene, and so is the answer, so the
truth about a completion is known down to the character: which object was seen wrongly, which step does not follow.

A completion describes every object, then walks over the objects *as described* and carries a running result
("cell attribute value result, ... = result"), then answers:

    <perception> top large red circle, left small blue square </perception>
    <think> top red 1 1, left blue 0 1 = 1 </think><answer> 1 </answer>
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from PIL import Image, ImageDraw

from segpo_core.tasks.rewards import answer_reward, normalise_answer

CELLS = ("topleft", "top", "topright", "left", "center", "right", "bottomleft", "bottom", "bottomright")
SIZES = ("small", "medium", "large")
COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("circle", "square", "triangle")
ATTRIBUTES: dict[str, tuple[str, ...]] = {"size": SIZES, "colour": COLOURS, "shape": SHAPES}
KINDS = ("count", "sum", "difference", "relation", "comparison")
DIRECTIONS = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}  # (row, column) step

_RGB = {"red": (214, 48, 49), "green": (39, 160, 72), "blue": (45, 93, 214), "yellow": (240, 190, 20)}
_RADIUS = {"small": 3.0, "medium": 5.0, "large": 7.0}  # in a cell of 16 pixels
_BACKGROUND = (244, 244, 240)
_EVAL_SHARE = 10  # one scene in ten belongs to the eval split


@dataclass(frozen=True)
class Object:
    """One shape of a scene; the field order is the order in which it is written."""

    cell: str
    size: str
    colour: str
    shape: str

    def text(self) -> str:
        return f"{self.cell} {self.size} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Question:
    """What is asked. `attribute`/`first`/`second` select objects ("colour", "red", "blue"); `colour`/`shape` name the
    reference object of a relation question, `direction` says where to look from it."""

    kind: str
    attribute: str = ""
    first: str = ""
    second: str = ""
    direction: str = ""
    colour: str = ""
    shape: str = ""

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
        return f"More common: {self.first}, {self.second} or same?"

    def reference(self, objects: list[Object]) -> int | None:
        """Index of the first object that a relation question names, None when nothing is described so."""
        for i, obj in enumerate(objects):
            if (obj.colour, obj.shape) == (self.colour, self.shape):
                return i
        return None

    def noted(self, obj: Object) -> list[str]:
        """The words about an object that its step repeats before it reckons: what is asked for, what is added up."""
        names = [self.attribute] if self.attribute else []
        return [getattr(obj, name) for name in names + ["size"] * (self.kind == "sum" and self.attribute != "size")]

    def values(self, objects: list[Object], wrong_rule: bool = False) -> list[int]:
        """What each object adds to the running result; `wrong_rule` is the careless reading of the question.

        A relation question whose reference is not among `objects` gives 0 everywhere: nothing stands left of nothing.
        """
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

    def result(self, total: int, wrong_rule: bool = False) -> str:
        """The last running result as an answer; the careless comparison names the rarer one."""
        if self.kind != "comparison":
            return str(total)
        total = -total if wrong_rule else total
        return self.first if total > 0 else self.second if total < 0 else "same"

    def answer(self, objects: list[Object]) -> str:
        return self.result(sum(self.values(objects)))


def _plural(attribute: str, value: str) -> str:
    return f"{value}s" if attribute == "shape" else f"{value} shapes"


def _beyond(cell: str, reference: str, direction: str) -> int:
    row, column = divmod(CELLS.index(cell), 3)
    ref_row, ref_column = divmod(CELLS.index(reference), 3)
    down, across = DIRECTIONS[direction]
    return int((row - ref_row) * down + (column - ref_column) * across > 0)


def render(objects: list[Object], image_size: int = 48) -> Image.Image:
    """The scene as an RGB image of `image_size` x `image_size` pixels; the same scene gives the same pixels."""
    image = Image.new("RGB", (image_size, image_size), _BACKGROUND)
    draw = ImageDraw.Draw(image)
    cell = image_size / 3
    for obj in objects:
        row, column = divmod(CELLS.index(obj.cell), 3)
        # -0.5: pixel centres; a cell of 16 pixels has its middle between the 8th and the 9th
        x, y, r = (column + 0.5) * cell - 0.5, (row + 0.5) * cell - 0.5, _RADIUS[obj.size] * cell / 16
        if obj.shape == "circle":
            draw.ellipse((x - r, y - r, x + r, y + r), fill=_RGB[obj.colour])
        elif obj.shape == "square":
            draw.rectangle((x - r + 0.5, y - r + 0.5, x + r - 0.5, y + r - 0.5), fill=_RGB[obj.colour])
        else:
            draw.polygon(((x, y - r), (x - r, y + r), (x + r, y + r)), fill=_RGB[obj.colour])
    return image


# ------------------------------------------------------------------------------------------------ demonstrations


@dataclass(frozen=True)
class Careless:
    """How often a demonstration goes wrong. The two mistakes are drawn independently."""

    wrong_rule: Mapping[str, float] = field(
        default_factory=lambda: {"count": 0.5, "sum": 0.5, "difference": 0.45, "relation": 0.35, "comparison": 0.5}
    )
    """Share of demonstrations, by question kind, that answer by the kind's wrong rule."""
    misperceive: float = 0.25
    """Share of demonstrations that describe one attribute of one object wrongly."""


@dataclass(frozen=True)
class Demonstration:
    """A written answer and the mistakes put into it: `wrong_rule` may be harmless (it may give the same)."""

    text: str
    wrong_rule: bool = False
    misperceived: tuple[int, str] | None = None  # (object, attribute)


def write(question: Question, objects: list[Object], wrong_rule: bool = False) -> str:
    """The completion that describes `objects` and reckons over them."""
    total, steps = question.start(wrong_rule), []
    for obj, value in zip(objects, question.values(objects, wrong_rule), strict=True):
        total += value
        steps.append(" ".join([obj.cell, *question.noted(obj), str(value), str(total)]))
    result = question.result(total, wrong_rule)
    seen = ", ".join(obj.text() for obj in objects)
    return f"<perception> {seen} </perception><think> {', '.join(steps)} = {result} </think><answer> {result} </answer>"


def demonstrate(example: Mapping, rng: random.Random, careless: Careless | None = None) -> Demonstration:
    """A demonstration for `example`; correct when `careless` is None."""
    objects, question = scene_of(example)
    if careless is None:
        return Demonstration(write(question, objects))
    misperceived = None
    if rng.random() < careless.misperceive:
        i, attribute = rng.randrange(len(objects)), rng.choice(tuple(ATTRIBUTES))
        wrong = rng.choice([v for v in ATTRIBUTES[attribute] if v != getattr(objects[i], attribute)])
        objects[i] = Object(**{**vars(objects[i]), attribute: wrong})
        misperceived = (i, attribute)
    wrong_rule = rng.random() < careless.wrong_rule.get(question.kind, 0.0)
    return Demonstration(write(question, objects, wrong_rule), wrong_rule, misperceived)


def demonstration(example: Mapping, rng: random.Random, careless: Careless | None = None) -> str:
    """The text of `demonstrate`."""
    return demonstrate(example, rng, careless).text


def scene_of(example: Mapping) -> tuple[list[Object], Question]:
    """Objects (reading order) and question of an example of this task."""
    return [Object(**obj) for obj in example["scene"]["objects"]], Question(**example["scene"]["question"])


# ---------------------------------------------------------------------------------------------------- inspection

_BLOCKS = ("perception", "think", "answer")
_TAGS = tuple(f"<{slash}{name}>" for name in _BLOCKS for slash in ("", "/"))
_TAG_PATTERN = re.compile("|".join(map(re.escape, _TAGS)))
_STEP = re.compile(r"\s*(\w+)((?:\s+[a-z]+)*)\s+(-?\d+)\s+(-?\d+)\s*")

Error = dict  # {"start", "end", "kind", "why"}


def _error(start: int, end: int, kind: str, why: str) -> Error:
    return {"start": start, "end": end, "kind": kind, "why": why}


def _pieces(text: str, start: int, end: int, separator: str) -> list[tuple[int, int]]:
    """Spans of the pieces of text[start:end] between separators, without surrounding blanks; [] for a blank stretch."""
    if not text[start:end].strip():
        return []
    spans, at = [], start
    for piece in text[start:end].split(separator):
        lead = len(piece) - len(piece.lstrip())
        spans.append((at + lead, max(at + lead, at + len(piece.rstrip()))))
        at += len(piece) + len(separator)
    return spans


def _structure(text: str) -> tuple[dict[str, tuple[int, int]], Error | None]:
    """Content spans of the blocks that can be read, and the first fault of structure.

    The tags must come once each, in order, with nothing but blanks outside the blocks. Blocks up to the fault are read.
    """
    blocks: dict[str, tuple[int, int]] = {}
    at, opened = 0, 0
    tags = list(_TAG_PATTERN.finditer(text))
    for i, expected in enumerate(_TAGS):
        tag = tags[i] if i < len(tags) else None
        outside = i % 2 == 0
        gap_end = tag.start() if tag else len(text)
        gap = text[at:gap_end]
        if outside and gap.strip():
            start = at + len(gap) - len(gap.lstrip())
            return blocks, _error(start, at + len(gap.rstrip()), "format", f"text where {expected} should be")
        if tag is None:
            return blocks, _error(max(len(text) - 1, 0), len(text), "format", f"{expected} is missing")
        if tag.group() != expected:
            return blocks, _error(tag.start(), tag.end(), "format", f"{tag.group()} where {expected} should be")
        if outside:
            opened = tag.end()
        else:
            blocks[_BLOCKS[i // 2]] = (opened, tag.start())
        at = tag.end()
    rest = text[at:]
    if rest.strip():
        start = at + len(rest) - len(rest.lstrip())
        return blocks, _error(start, at + len(rest.rstrip()), "format", "text after </answer>")
    return blocks, None


def _inspect_perception(
    text: str, span: tuple[int, int], scene: list[Object]
) -> tuple[list[Object | None], Error | None]:
    """The objects as written (None: unreadable) and the first that is not so in the scene. Any order will do."""
    truth = {obj.cell: obj for obj in scene}
    written: list[Object | None] = []
    first: Error | None = None
    for start, end in _pieces(text, *span, ","):
        words = list(re.finditer(r"\S+", text[start:end]))
        values = [w.group() for w in words]
        readable = len(values) == 4 and all(
            v in known for v, known in zip(values, (CELLS, SIZES, COLOURS, SHAPES), strict=True)
        )
        written.append(Object(*values) if readable else None)
        if first is not None:
            continue
        if not readable:
            first = _error(start, end, "perception", "not an object: cell, size, colour, shape are expected")
            continue
        real = truth.pop(values[0], None)
        if real is None:
            seen = any(obj is not None and obj.cell == values[0] for obj in written[:-1])
            why = f"{values[0]} is described twice" if seen else f"nothing is at {values[0]}"
            first = _error(start + words[0].start(), start + words[0].end(), "perception", why)
            continue
        for name, word in zip(("size", "colour", "shape"), words[1:], strict=True):
            if word.group() != getattr(real, name):
                why = f"the {name} at {real.cell} is {getattr(real, name)}, not {word.group()}"
                first = _error(start + word.start(), start + word.end(), "perception", why)
                break
    if first is None and truth:
        missing = next(iter(truth.values()))
        close = span[1] + len("</perception>")
        first = _error(span[1], close, "perception", f"the {missing.shape} at {missing.cell} is not described")
    return written, first


def _inspect_reasoning(
    text: str, span: tuple[int, int], question: Question, objects: list[Object | None]
) -> tuple[str | None, Error | None]:
    """The written result (None: unreadable) and the first step that does not follow from what is written before it."""
    equals = text.find("=", *span)
    if equals < 0:
        return None, _error(span[1], span[1] + len("</think>"), "reasoning", "no '= result' at the end")
    start, end = next(iter(_pieces(text, equals + 1, span[1], "\0")), (equals, equals + 1))
    result = text[start:end]
    known = [i for i, obj in enumerate(objects) if obj is not None]
    values = dict(zip(known, question.values([objects[i] for i in known]), strict=True))  # type: ignore[misc]
    total = question.start()
    for i, (a, b) in enumerate(_pieces(text, span[0], equals, ",")):
        step = _STEP.fullmatch(text, a, b)
        if step is None:
            return result, _error(a, max(b, a + 1), "reasoning", "not a step: cell, attributes, value, running result")
        if i >= len(objects):
            return result, _error(a, b, "reasoning", f"step {i + 1} for only {len(objects)} described objects")
        value, total_written = int(step[3]), int(step[4])
        obj = objects[i]
        if obj is not None:
            said, words = [obj.cell, *question.noted(obj)], [step[1], *step[2].split()]
            if words != said:
                why = f"object {i + 1} was described as {' '.join(said)}, not {' '.join(words)}"
                return result, _error(step.start(1), step.end(2), "reasoning", why)
            if value != values[i]:
                return result, _error(*step.span(3), "reasoning", f"object {i + 1} counts {values[i]}, not {value}")
        if total_written != total + value:
            why = f"{total} and {value} make {total + value}, not {total_written}"
            return result, _error(*step.span(4), "reasoning", why)
        total = total_written
    steps = len(_pieces(text, span[0], equals, ","))
    if steps < len(objects):
        why = f"stops after {steps} of {len(objects)} described objects"
        return result, _error(equals, equals + 1, "reasoning", why)
    if normalise_answer(result) != question.result(total):
        why = f"{total} means {question.result(total)}, not {result or 'nothing'}"
        return result, _error(start, end, "reasoning", why)
    return result, None


def inspect_text(example: Mapping, text: str) -> dict:
    """Ground truth about a completion of this task, in the form of the Task protocol.

    The first error is the earliest character span that is wrong *given what is written before it*:
    - perception: a word that is not so in the scene; the closing tag when an object is left out;
    - reasoning: a value, running result or conclusion that does not follow from the written perception and the result
      so far;
    - answer: an answer that is not the written conclusion;
    - format: the first tag or text out of place; the last character when the completion was cut off.
    """
    scene, question = scene_of(example)
    blocks, fault = _structure(text)
    perception = reasoning = answer = None
    written: list[Object | None] = []
    result = None
    if "perception" in blocks:
        written, perception = _inspect_perception(text, blocks["perception"], scene)
    if "think" in blocks:
        result, reasoning = _inspect_reasoning(text, blocks["think"], question, written)
    given = None
    if "answer" in blocks:
        start, end = blocks["answer"]
        given = normalise_answer(text[start:end])
        if result is None or given != normalise_answer(result):
            start, end = next(iter(_pieces(text, start, end, "\0")), (end, end + len("</answer>")))
            why = f"the reasoning ends with {result or 'nothing'}, not {given or 'nothing'}"
            answer = _error(start, end, "answer", why)
    errors = [e for e in (perception, reasoning, answer, fault) if e is not None]
    return {
        "answer_right": given is not None and given == normalise_answer(example["answer"]),
        "perception_right": "perception" in blocks and perception is None,
        "reasoning_right": "think" in blocks and reasoning is None,
        "format_right": fault is None,
        "first_error": min(errors, key=lambda e: e["start"]) if errors else None,
    }


# ------------------------------------------------------------------------------------------------------ the task


@dataclass(frozen=True)
class ShapesTask:
    """Unlimited scenes with questions; `train(i)` and `eval(i)` depend on the settings and on i only.

    The splits are disjoint by construction: a hash of the *scene* alone (not of the seed or the question) says to which
    split it belongs, and scenes are redrawn until they fall into the wanted one. So no eval image is ever trained on,
    whatever the seeds and settings of the two.

    Raises: ValueError for settings that no scene can meet.
    """

    seed: int = 0
    """Another seed gives other problems from the same split."""
    min_objects: int = 3
    """Fewest objects in a scene."""
    max_objects: int = 6
    """Most objects in a scene (at most 9)."""
    kinds: tuple[str, ...] = KINDS
    """Question kinds, drawn evenly."""
    image_size: int = 48
    """Height and width of the image in pixels."""
    name: str = "shapes"

    train_size = None
    eval_size = None

    def __post_init__(self) -> None:
        if not 1 <= self.min_objects <= self.max_objects <= len(CELLS):
            raise ValueError(
                f"min_objects={self.min_objects}, max_objects={self.max_objects}: need 1 <= min <= max <= {len(CELLS)}"
            )
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds:
            raise ValueError(f"kinds={list(self.kinds)}: choose one or more of {', '.join(KINDS)}")
        if self.image_size < 24:
            raise ValueError(f"image_size={self.image_size}: below 24 pixels the shapes cannot be told apart")

    @property
    def reward_funcs(self) -> list[Callable]:
        return [answer_reward]

    def train(self, index: int) -> dict:
        """Training problem `index` (0, 1, 2, ... without end)."""
        return self._example("train", index)

    def eval(self, index: int) -> dict:
        """Held-out problem `index` (0, 1, 2, ... without end)."""
        return self._example("eval", index)

    def inspect(self, example: Mapping, text: str) -> dict:
        """See `inspect_text`."""
        return inspect_text(example, text)

    def _example(self, split: str, index: int) -> dict:
        rng = random.Random(f"{self.seed}/{split}/{index}")
        kind = rng.choice(self.kinds)
        while True:
            objects = self._scene(rng)
            if split_of(objects) != split:
                continue
            question = _ask(kind, objects, rng)
            if question is not None:
                break
        return {
            "prompt": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question.text()}]},
            ],
            "images": [render(objects, self.image_size)],
            "answer": question.answer(objects),
            "id": f"{self.name}/{split}/{index}",
            "kind": kind,
            "scene": {"objects": [vars(obj).copy() for obj in objects], "question": vars(question).copy()},
        }

    def _scene(self, rng: random.Random) -> list[Object]:
        cells = sorted(rng.sample(range(len(CELLS)), rng.randint(self.min_objects, self.max_objects)))
        return [Object(CELLS[c], rng.choice(SIZES), rng.choice(COLOURS), rng.choice(SHAPES)) for c in cells]


def split_of(objects: list[Object]) -> str:
    """ "train" or "eval", by a hash of the scene."""
    digest = hashlib.sha256("|".join(obj.text() for obj in objects).encode()).digest()
    return "eval" if int.from_bytes(digest[:8], "big") % _EVAL_SHARE == 0 else "train"


def _ask(kind: str, objects: list[Object], rng: random.Random) -> Question | None:
    """A question about the scene; None when the scene has no object that a relation question could name uniquely."""
    if kind == "relation":
        names = [(obj.colour, obj.shape) for obj in objects]
        unique = [name for name in names if names.count(name) == 1]
        if not unique:
            return None
        question = Question(kind)
        for _ in range(2):  # mostly something that is there: else "0" would be the answer to two in five
            colour, shape = rng.choice(unique)
            question = Question(kind, direction=rng.choice(tuple(DIRECTIONS)), colour=colour, shape=shape)
            if question.answer(objects) != "0":
                break
        return question
    attribute = rng.choice(tuple(ATTRIBUTES))
    values = ATTRIBUTES[attribute]
    first = getattr(rng.choice(objects), attribute) if rng.random() < 0.9 else rng.choice(values)
    if kind in ("count", "sum"):
        return Question(kind, attribute, first)
    pair = [first, rng.choice([v for v in values if v != first])]
    rng.shuffle(pair)
    return Question(kind, attribute, *pair)
