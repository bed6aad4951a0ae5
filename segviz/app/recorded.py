"""What would have happened: a checkpoint writes on from a recorded rollout, or reads it with a spoiled picture.

The checkpoint is that of the rollout's step, or the nearest before. Results are kept beside the run, not in it, in
`<run>.asked/`. The work runs in the studio's thread, one request at a time.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from segpo_core.policy.corruptions import KINDS
from segpo_core.record.files import read_plain, write_atomic
from segviz.app.patience import Hangs
from segviz.app.shelf import Missing, Place, Shelf, ShelfRun, inside
from segviz.app.studio import Busy, Job, Source, Stopped, Studio, checkpoints, interruptible
from segviz.app.uploads import body
from segviz.parts.heading import pictures
from segviz.runs.rollout import Rollout
from segviz.show.encode import plain_json, tidy
from segviz.show.view import View
from segviz.views.counterfactual import counterfactual_data, whose
from segviz.views.roles import roles_data

if TYPE_CHECKING:
    from segpo_core.afterwards.trained import Policy

#: What can be asked -> its words.
ASKS = {
    "on": "sampled on from after segment {}",
    "without": "sampled on without segment {}",
    "both": "sampled on from before and after segment {}",
    "spoil": "read with the picture spoiled: {}",
}
CORRUPTIONS = tuple(kind for kind in KINDS if kind != "other")  #: another problem's picture is not at hand here
MOST = 32  #: continuations of one side
GRID = (3, 3)  #: patches of a picture
KEPT = 100  #: results that are kept of a run
LARGEST = 8 * 2**20  #: bytes of one
SNIPPET = 80  #: characters of a segment in a list
LARGEST_REQUEST = 16 * 2**10  #: bytes


@dataclass(frozen=True)
class Result:
    """A page of what was found, and where it is kept."""

    page: View
    name: str
    problem: str = ""

    def told(self) -> dict[str, Any]:
        return {"name": self.name, "problem": self.problem}

    def view(self, n: int) -> View:
        return self.page


class Recorded:
    """What the routes do."""

    def __init__(self, shelf: Shelf, studio: Studio):
        self.shelf, self.studio = shelf, studio

    def choices(self, name: str, step: int, group: int, sample: int) -> dict[str, Any]:
        """{segments: their texts, checkpoint: which one is asked, null without any, corruptions, most, results: those
        that are kept, the newest first}. Raises Missing, SchemaError, KeyError."""

        def found(run: ShelfRun) -> dict[str, Any]:
            rollout = run.rollout(step, group, sample)
            pieces, source = rollout.pieces, source_of(run.place, step)
            return {
                "segments": [tidy("".join(pieces[a:b]))[:SNIPPET] for a, b in rollout.segments],
                "checkpoint": None if source is None else source.step,
                "corruptions": CORRUPTIONS if rollout.row.get("images") else [],
                "most": MOST,
                "results": kept(run.place, step, group, sample),
            }

        return self.shelf.reading(name, found)

    def ask(self, raw: Mapping[str, Any]) -> Job:
        """run, step, group, sample, ask (a name of `ASKS`), segment (from 0), number, corruption.

        Raises:
            ValueError: something that there is not; Missing: no such run or checkpoint; Busy: too many wait.
        """
        what, name = raw.get("ask"), raw.get("run")
        if what not in ASKS or not isinstance(name, str):
            raise ValueError(f"ask must be one of {', '.join(ASKS)}, of a run.")
        step, group, sample = (_number(raw, key, 2**31 - 1) for key in ("step", "group", "sample"))
        run, rollout, source = self.shelf.reading(
            name, lambda run: (run, run.rollout(step, group, sample), source_of(run.place, step))
        )
        if source is None:
            raise Missing(f"{tidy(name)} has no checkpoint to ask; train with save_steps > 0 to keep some.")
        if what == "spoil":
            kind = raw.get("corruption")
            if kind not in CORRUPTIONS or not rollout.row.get("images"):
                raise ValueError(f"corruption must be one of {', '.join(CORRUPTIONS)}, of a rollout with a picture.")
            work = self._spoil(rollout, source, str(kind))
            words = ASKS[what].format(kind)
        else:
            segment, number = _number(raw, "segment", len(rollout.segments) - 1), _number(raw, "number", MOST, 8, 1)
            if what == "on" and rollout.segments[segment][1] == len(rollout.pieces):
                raise ValueError("The completion ends with this segment: there is nothing to write on from after it.")
            work = self._resample(rollout, source, str(what), segment, number)
            words = ASKS[what].format(segment + 1)

        def done(job: Job) -> Result:
            page = work(job)
            if job.stopped():  # what was found is not what was asked for
                raise Stopped
            return keep(self.shelf, run.place, rollout, page, words)

        return self.studio.submit(done)

    def _resample(
        self, rollout: Rollout, source: Source, what: str, segment: int, number: int
    ) -> Callable[[Job], View]:
        def work(job: Job) -> View:
            from segpo_core.afterwards.probe import resample
            from segpo_core.afterwards.trained import recorded_example

            policy = self._policy(source, job, rollout)
            ids, (start, end) = rollout.row["token_ids"], rollout.segments[segment]
            example = recorded_example(rollout.row, rollout.images)
            drawn: dict[str, Any] = {"before": None, "after": None}
            for side, at in (("before", start), ("after", end)):
                if {"on": "after", "without": "before"}.get(what, side) == side and at < len(ids):
                    job.say(f"Writing on from {side} segment {segment + 1}", policy.sampler.max_completion_length - at)
                    with interruptible(policy, job):
                        drawn[side] = resample(policy, example, ids, at, number, secrets.randbelow(2**31))
            who = f"{whose(policy, rollout.row['step'])} Judged by the answers alone."
            data = counterfactual_data(
                **drawn, rollout=rollout, segment=segment, policy=who, with_after=what != "without"
            )
            return View("counterfactual", data["title"], data)

        return work

    def _spoil(self, rollout: Rollout, source: Source, kind: str) -> Callable[[Job], View]:
        def work(job: Job) -> View:
            from segpo_core.afterwards.probe import corrupt_contrast, patch_contrasts
            from segpo_core.afterwards.trained import recorded_example

            policy = self._policy(source, job, rollout)
            ids, example = rollout.row["token_ids"], recorded_example(rollout.row, rollout.images)
            job.say("Reading the completion with the spoiled picture", 2)
            with interruptible(policy, job):
                spoiled, drops = corrupt_contrast(policy, example, ids, kind, seed=secrets.randbelow(2**31))
                job.say("Masking one part of the picture after the other", 2)
                patches = patch_contrasts(policy, example, ids, GRID)
            row = dict(rollout.row) | {"perception_contrast": drops.tolist()}
            seen = Rollout(row, rollout.images, rollout.run_name)
            data = roles_data(seen, spoiled, patches, "Which tokens come from looking?")
            note = f"{whose(policy, rollout.row['step']).replace('Continuations by', 'Read by')}"
            return View("roles", data["title"], data | {"notices": [note, *data["notices"]]})

        return work

    def _policy(self, source: Source, job: Job, rollout: Rollout) -> Policy:
        """The checkpoint, at the temperature of its run: the playground may have asked it at another one."""
        ids = rollout.row.get("token_ids")
        if not ids or len(ids) != len(rollout.pieces):
            raise ValueError("The rollout has no token ids of its own to go on from.")
        policy = self.studio.policy(source, job)
        config = self.shelf.reading(str(source.run), lambda run: run.config)
        temperature = config.get("temperature", 1.0)
        policy.sampler.temperature = float(temperature) if isinstance(temperature, (int, float)) else 1.0
        policy.network.temperature = policy.sampler.temperature or 1.0
        policy.check(ids, rollout.text)
        return policy


def source_of(place: Place, step: int) -> Source | None:
    """The checkpoint to ask about a rollout of a step: the newest that was written before it was sampled, else the
    oldest; None without any. One is written after its step's update, and step `s` samples with what `s - 1` left."""
    there = [at for at, _ in checkpoints(place)]
    before = [at for at in there if at < step]
    return Source(place.name, before[-1] if before else there[0]) if there else None


# --- results, beside the run -----------------------------------------------------------------------------------------


def folder(place: Place) -> Path:
    """Where the results of a run are kept."""
    return place.path.with_name(f"{place.path.name}.asked")


def keep(shelf: Shelf, place: Place, rollout: Rollout, page: View, words: str) -> Result:
    """Keep a page beside the run; where that cannot be written, it is shown all the same."""
    data = dict(page.data) | ({"pictures": pictures(rollout)} if page.kind == "roles" else {})
    page = View(page.kind, page.title, data)
    ids = (rollout.row["step"], rollout.row["group"], rollout.row["sample"])
    name = "{:06d}-{}-{}-{:x}".format(*ids, time.time_ns())
    told = plain_json({"words": words, "at": time.time(), "kind": page.kind, "title": page.title, "data": data})

    def write() -> None:
        results = folder(place)
        if not inside(results, place.path.parent):
            raise OSError(f"{results.name} is a link that leads elsewhere")
        if len(told) > LARGEST:
            raise OSError("it is too large")
        results.mkdir(exist_ok=True)
        write_atomic(results / f"{name}.json", told.encode("utf-8", "replace"))
        for old in sorted(results.glob("*.json"), key=lambda path: path.stat().st_mtime)[:-KEPT]:
            old.unlink(missing_ok=True)

    try:
        shelf.within(place, write)
    except (OSError, Hangs) as error:
        return Result(page, "", tidy(f"The result is not kept: {error}"))
    return Result(page, name)


def kept(place: Place, step: int, group: int, sample: int) -> list[dict[str, Any]]:
    """[{name, words, at}] of what is kept about a rollout, the newest first."""
    found = []
    for path in folder(place).glob(f"{step:06d}-{group}-{sample}-*.json"):
        try:
            told = _read(place, path.stem)
            found.append({"name": path.stem, "words": tidy(str(told["words"]))[:200], "at": float(told["at"])})
        except (Missing, KeyError, TypeError, ValueError):
            continue
    return sorted(found, key=lambda one: -one["at"])


def kept_page(shelf: Shelf, name: str, result: str) -> View:
    """A page that is kept. Raises Missing."""
    place = shelf.place(name)
    told = shelf.within(place, lambda: _read(place, result))
    kind, title, data = told.get("kind"), told.get("title"), told.get("data")
    if kind not in ("counterfactual", "roles") or not isinstance(title, str) or not isinstance(data, dict):
        raise Missing("This result cannot be read.")
    return View(kind, title, data | {"kind": kind})


def _read(place: Place, name: str) -> dict[str, Any]:
    path = folder(place) / f"{name}.json"
    if not re.fullmatch(r"\d{6,}-\d+-\d+-[0-9a-f]+", name) or not inside(path, place.path.parent):
        raise Missing("There is no such result.")
    try:
        if path.stat().st_size > LARGEST:
            raise Missing("This result is too large to be one of ours.")
        told = json.loads(read_plain(path))
    except (OSError, ValueError, RecursionError) as error:
        raise Missing(f"This result cannot be read: {tidy(str(error))}") from error
    if not isinstance(told, dict):
        raise Missing("This result cannot be read.")
    return told


# --- routes ----------------------------------------------------------------------------------------------------------


def routes(
    app: FastAPI,
    recorded: Recorded,
    job_told: Callable[[Job], dict[str, Any]],
    told: Callable[[Callable[[], Response]], Response],
    framed: Callable[[Callable[[], View], str], Response],
) -> None:
    """The routes of questions about recorded rollouts; a request's state and page are the playground's."""

    def answer(make: Callable[[], Any]) -> Response:
        try:
            return told(lambda: Response(plain_json(make()), media_type="application/json"))
        except Busy as error:
            return JSONResponse({"error": str(error)}, 429)
        except KeyError as error:
            return JSONResponse({"error": tidy(str(error.args[0]))}, 404)

    @app.get("/segpo/api/asked")
    def choices(run: str = "", step: int = 0, group: int = 0, sample: int = 0) -> Response:
        return answer(lambda: recorded.choices(run, step, group, sample))

    @app.post("/segpo/api/asked")
    async def begin(request: Request) -> Response:
        try:
            raw = json.loads(await body(request, LARGEST_REQUEST, "request"))
            if not isinstance(raw, dict):
                raise ValueError("The request must be a JSON object.")
        except (ValueError, RecursionError) as error:
            return JSONResponse({"error": tidy(str(error))}, 400)
        return await run_in_threadpool(answer, lambda: job_told(recorded.ask(raw)))

    @app.get("/asked/{run}/{name}")
    def view(run: str, name: str, theme: str = "") -> Response:
        return framed(lambda: kept_page(recorded.shelf, run, name), theme)


def _number(raw: Mapping[str, Any], name: str, high: int, default: int | None = None, low: int = 0) -> int:
    value = raw.get(name, default)
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}.")
    return value
