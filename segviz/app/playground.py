"""The tab Playground: draw a scene or bring a picture, ask a checkpoint, and see what its tokens hang on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from itertools import combinations, product
from typing import Any

import gradio as gr
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from PIL import Image
from starlette.concurrency import run_in_threadpool

from segpo_core.policy.corruptions import KINDS as CORRUPTIONS
from segpo_core.record.store import image_digest, png_bytes
from segpo_core.tasks.arithmetic import ArithmeticTask
from segpo_core.tasks.shapes import (
    ATTRIBUTES,
    CELLS,
    COLOURS,
    DIRECTIONS,
    KINDS,
    SHAPES,
    SIZES,
    Object,
    Question,
    ShapesTask,
    render,
)
from segviz.app.asked import Asked, Wish, ask, contrast, resample
from segviz.app.kept import Kept
from segviz.app.shelf import Missing, Shelf
from segviz.app.studio import Busy, Job, Source, Studio, checkpoint, sources
from segviz.app.uploads import EDGE, LARGEST_FILE, body, decode
from segviz.show.encode import plain_json, tidy
from segviz.show.view import View

MOST = 16  #: completions of one request
HOTTEST = 2.0  #: temperature
LONGEST_QUESTION = 1000  #: characters
LARGEST_REQUEST = 64 * 2**10  #: bytes of any other request
SCENE = 48  #: pixels of a drawn scene, where the run's own task does not say another size


def _questions() -> dict[str, Question]:
    """Every question that the task can ask, by its text."""
    found = [
        Question("price", attribute, *pair, hint=str(hint))
        for attribute, values in ATTRIBUTES.items()
        for pair in [*product(values), *combinations(values, 2)]
        for hint in range(10)
    ]
    for attribute, values in ATTRIBUTES.items():
        found += [Question(kind, attribute, first) for kind in ("count", "sum") for first in values]
        found += [
            Question(kind, attribute, first, second)
            for kind in ("difference", "comparison") for first in values for second in values if first != second
        ]  # fmt: skip
    found += [
        Question("relation", direction=way, colour=colour, shape=shape)
        for way in DIRECTIONS for colour in COLOURS for shape in SHAPES
    ]  # fmt: skip
    return {question.text(): question for question in sorted(found, key=lambda one: KINDS.index(one.kind))}


QUESTIONS = _questions()


def scene(raw: Any) -> list[Object]:
    """The objects of a drawn scene, in reading order.

    Raises:
        ValueError: none, too many, two in one cell, or words that the task does not have.
    """
    if not isinstance(raw, list) or not raw:
        raise ValueError("The scene is empty; place at least one shape, or upload a picture.")
    known = {"cell": CELLS, "size": SIZES, "colour": COLOURS, "shape": SHAPES}
    if len(raw) > len(CELLS) or not all(isinstance(one, dict) and set(one) == set(known) for one in raw):
        raise ValueError("A scene is a list of at most nine objects, each with cell, size, colour and shape.")
    for name, values in known.items():
        if bad := [one[name] for one in raw if one[name] not in values]:
            raise ValueError(f"{name} is {str(bad[0])[:40]!r}: it must be one of {', '.join(values)}.")
    objects = sorted((Object(**one) for one in raw), key=lambda one: CELLS.index(one.cell))
    if len({one.cell for one in objects}) < len(objects):
        raise ValueError("Two shapes stand in one cell; a cell holds one.")
    return objects


class Playground:
    """What the routes do; requests go to the studio."""

    def __init__(self, shelf: Shelf, studio: Studio):
        self.shelf, self.studio = shelf, studio
        self._pictures = Kept(8)

    def choices(self) -> dict[str, Any]:
        """What there is to choose from, and the limits."""
        kinds: dict[str, list[str]] = {kind: [] for kind in KINDS}
        for text, question in QUESTIONS.items():
            if question.hint in (
                "",
                "7",
            ):  # which one says nothing; ten times as many questions would only be in the way
                kinds[question.kind].append(text)
        return {
            "sources": sources(self.shelf), "questions": list(kinds.items()), "cells": CELLS, "sizes": SIZES,
            "colours": COLOURS, "shapes": SHAPES, "corruptions": CORRUPTIONS, "most": MOST, "hottest": HOTTEST,
            "longest": LONGEST_QUESTION, "bytes": LARGEST_FILE,
        }  # fmt: skip

    def keep(self, data: bytes) -> dict[str, Any]:
        """Take a picture in. Raises as `decode`."""
        image = decode(data)
        name = image_digest(image)
        self._pictures.get(name, lambda: image)
        return {"picture": name, "width": image.width, "height": image.height}

    def picture(self, name: Any) -> Image.Image:
        """A picture that was taken in. Raises Missing where it is not kept (any more)."""

        def gone() -> Image.Image:
            raise Missing("The picture is not kept any more; upload it again.")

        return self._pictures.get(str(name), gone)

    def wish(self, raw: Mapping[str, Any]) -> Wish:
        """What a request asks for: run and step (null: the embedded policy), question, scene or picture, temperature,
        number.

        Raises:
            ValueError: something is missing or over its limit; Missing: a picture that is not kept.
        """
        question = raw.get("question")
        if not isinstance(question, str) or not question.strip():
            raise ValueError("The question is empty; choose one of the task's or write your own.")
        question = tidy(question.strip())
        if len(question) > LONGEST_QUESTION:
            raise ValueError(f"The question has {len(question)} characters; at most {LONGEST_QUESTION} are allowed.")
        run, step = raw.get("run"), raw.get("step")
        if not (run is None and step is None) and not (isinstance(run, str) and type(step) is int):
            raise ValueError("The model must be a run and the step of a checkpoint, or neither.")
        objects, source = None, Source(run, step)
        picture: Image.Image | None = None
        if self._text(source):
            pass  # a language model, which is asked without a picture
        elif raw.get("picture"):
            picture = self.picture(raw["picture"])
        else:
            objects = scene(raw.get("scene"))
            picture = render(objects, self._size(run))
        number, temperature = _number(raw, "number", 1, MOST, 4), raw.get("temperature", 1.0)
        if type(temperature) not in (int, float) or not 0 <= temperature <= HOTTEST:
            raise ValueError(f"The temperature must be a number from 0 to {HOTTEST:g}.")
        known = QUESTIONS.get(question) if objects else None
        return Wish(source, picture, question, float(temperature), number, objects, known)

    def ask(self, raw: Mapping[str, Any]) -> Job:
        return self.studio.submit(ask(self.studio, self.wish(raw)))

    def resample(self, raw: Mapping[str, Any]) -> Job:
        """job, completion, segment (from 0), where (before, after, both), number."""
        n, segment = (_number(raw, name, 0, 10**6) for name in ("completion", "segment"))
        where, number = str(raw.get("where")), _number(raw, "number", 1, MOST, 8)
        return self.studio.submit(resample(self.studio, self.asked(raw), n, segment, where, number))

    def corrupt(self, raw: Mapping[str, Any]) -> Job:
        """job, completion, corruption."""
        kind = raw.get("corruption")
        if kind not in CORRUPTIONS:
            raise ValueError(f"corruption must be one of {', '.join(CORRUPTIONS)}.")
        return self.studio.submit(contrast(self.studio, self.asked(raw), _number(raw, "completion", 0, 10**6), kind))

    def asked(self, raw: Mapping[str, Any]) -> Asked:
        """The completions that a request is about. Raises Missing, ValueError."""
        result = self.studio.job(str(raw.get("job"))).result
        if not isinstance(result, Asked):
            raise ValueError("These are no completions; ask first.")
        return result

    def told(self, job: Job) -> dict[str, Any]:
        """How a request stands, and what it found."""
        before = self.studio.before(job)
        words = job.words
        if job.state == "waiting":
            words = f"Busy: {before} request{'s' if before > 1 else ''} before you." if before else "Begins at once."
        elif job.state == "running" and job.cancelled.is_set():
            words = "Cancelling…"
        told = {"job": job.name, "state": job.state, "words": words, "done": job.done, "total": job.total}
        return told | {"result": job.result.told() if job.result else None}

    def view(self, name: str, n: int) -> View:
        """The page of a result; of completions, that of number `n`.

        Raises:
            Missing: there is nothing to see; ValueError: no such completion.
        """
        result = self.studio.job(name).result
        if result is None:
            raise Missing("There is nothing to see yet.")
        return result.view(n)

    def _text(self, source: Source) -> bool:
        """Whether a language model is asked."""
        try:
            return checkpoint(self.shelf, source).text
        except (LookupError, ValueError, OSError):  # it is said when the model is loaded
            return False

    def problem(self, number: int, run: str | None) -> dict[str, Any]:
        """A held-out problem: of the sums where a run trained on them, else of the scenes."""
        if not 0 <= number < 2**31:
            raise ValueError("number must be 0 or more.")
        config = self._config(run)
        if config.get("dataset") == "arithmetic":
            given = config.get("dataset_args") or {}
            try:
                task = ArithmeticTask(**{name: given[name] for name in ("smallest", "largest") if name in given})
                return {"scene": None, "question": task.eval(number)["prompt"]}
            except (TypeError, ValueError) as error:
                raise ValueError(f"The sums of this run cannot be drawn: {error}") from error
        example = ShapesTask().eval(number)
        return {"scene": example["scene"]["objects"], "question": Question(**example["scene"]["question"]).text()}

    def _config(self, run: str | None) -> Mapping[str, Any]:
        try:
            return self.shelf.reading(run, lambda found: found.config) if run is not None else {}
        except (LookupError, ValueError, OSError):  # it is said when the model is loaded
            return {}

    def _size(self, run: str | None) -> int:
        """Pixels of a scene as the run's own task draws it."""
        config = self._config(run)
        size = (config.get("dataset_args") or {}).get("image_size") if config.get("dataset") == "shapes" else None
        return size if isinstance(size, int) and 24 <= size <= EDGE else SCENE


def routes(
    app: FastAPI,
    play: Playground,
    told: Callable[[Callable[[], Response]], Response],
    framed: Callable[[Callable[[], View], str], Response],
) -> None:
    """The playground's part of the server.

    Args:
        told: the answer of a function, or its error in words.
        framed: the page of a view, for a frame in light or dark.
    """

    def answer(make: Callable[[], Any]) -> Response:
        try:
            return told(lambda: Response(plain_json(make()), media_type="application/json"))
        except Busy as error:
            return JSONResponse({"error": str(error)}, 429)

    async def posted(request: Request, do: Callable[[Mapping[str, Any]], Job]) -> Response:
        try:
            raw = json.loads(await body(request, LARGEST_REQUEST, "request"))
            if not isinstance(raw, dict):
                raise ValueError("The request must be a JSON object.")
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
            return JSONResponse({"error": "The request is not JSON."}, 400)
        except ValueError as error:
            return JSONResponse({"error": str(error)}, 400)
        return await run_in_threadpool(answer, lambda: play.told(do(raw)))

    @app.get("/segpo/api/play")
    def choices() -> Response:
        return answer(play.choices)

    @app.get("/segpo/api/play/problem")
    def problem(number: int = 0, run: str | None = None) -> Response:
        return answer(lambda: play.problem(number, run))

    @app.get("/segpo/api/play/scene.png")
    def drawn(request: Request) -> Response:
        raw = [
            dict(zip(("size", "colour", "shape"), said.split("-"), strict=False)) | {"cell": cell}
            for cell, said in request.query_params.items()
        ]
        return told(lambda: _png(render(scene(raw) if raw else [], SCENE)))

    @app.get("/segpo/api/play/picture")
    def picture(name: str = "") -> Response:
        return told(lambda: _png(play.picture(name)))

    @app.post("/segpo/api/play/picture")
    async def upload(request: Request) -> Response:
        try:
            data = await body(request, LARGEST_FILE, "file")
        except ValueError as error:
            return JSONResponse({"error": str(error)}, 413)
        return await run_in_threadpool(answer, lambda: play.keep(data))

    @app.post("/segpo/api/play/ask")
    async def begin(request: Request) -> Response:
        return await posted(request, play.ask)

    @app.post("/segpo/api/play/resample")
    async def again(request: Request) -> Response:
        return await posted(request, play.resample)

    @app.post("/segpo/api/play/corrupt")
    async def spoil(request: Request) -> Response:
        return await posted(request, play.corrupt)

    @app.get("/segpo/api/play/job")
    def state(job: str = "") -> Response:
        return answer(lambda: play.told(play.studio.job(job)))

    @app.post("/segpo/api/play/cancel")
    def cancel(job: str = "") -> Response:
        return answer(lambda: play.told(play.studio.cancel(job)))

    @app.get("/play/{job}/{n}")
    def view(job: str, n: str, theme: str = "") -> Response:
        number = int(n) if n.isascii() and n.isdecimal() and len(n) < 9 else -1
        return framed(lambda: play.view(job, number), theme)


def tab() -> None:
    """The tab; it draws itself (see static/playground.js)."""
    gr.HTML("<segpo-playground></segpo-playground>", elem_classes="bare")


def _png(image: Image.Image) -> Response:
    return Response(png_bytes(image), media_type="image/png", headers={"Cache-Control": "private, max-age=600"})


def _number(raw: Mapping[str, Any], name: str, low: int, high: int, default: int | None = None) -> int:
    value = raw.get(name, default)
    if type(value) is float and math.isfinite(value) and value == int(value):
        value = int(value)
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}.")
    return value
