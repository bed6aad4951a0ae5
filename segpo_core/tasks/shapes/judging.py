"""The truth about a completion: what was seen wrongly, which step does not follow, where the first error is."""

from __future__ import annotations

import re
from collections.abc import Mapping

from segpo_core.tasks.answers import answer_block, normalise_answer
from segpo_core.tasks.rewards import completion_text
from segpo_core.tasks.shapes.demonstrations import scene_of
from segpo_core.tasks.shapes.questions import Question
from segpo_core.tasks.shapes.scenes import CELLS, COLOURS, SHAPES, SIZES, Object

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
        if total_written != question.add(total, value):
            why = f"{total} and {value} make {question.add(total, value)}, not {total_written}"
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


def answer_reward(prompts, completions, answer, **columns) -> list[float | None]:
    """1.0 where the `<answer>` block is the answer, else 0.0: in this language there is one way to write it."""
    given = [answer_block(completion_text(c)) for c in completions]
    return [
        float(g is not None and normalise_answer(g) == normalise_answer(a)) for g, a in zip(given, answer, strict=True)
    ]
