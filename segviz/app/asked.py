"""What the playground asks a model, and the views of what it answers. The work runs in the studio's thread."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

import segviz as sv
from segpo_core.record.store import png_bytes
from segpo_core.tasks.arithmetic import ArithmeticTask
from segpo_core.tasks.shapes import Object, Question, ShapesTask, inspect_text
from segviz.app.studio import Job, Source, Stopped, Studio, interruptible
from segviz.parts.credit import error_of, reason_of, segment_at
from segviz.parts.heading import pictures
from segviz.show.encode import tidy
from segviz.show.view import View
from segviz.views.counterfactual import counterfactual_data
from segviz.views.ribbon import ribbon_data
from segviz.views.roles import roles_data

if TYPE_CHECKING:
    from segpo_core.afterwards.trained import Policy

GRID = (3, 3)  #: patches of a picture; of a drawn scene, its cells
SNIPPET = 120  #: characters of a completion or a segment that a list shows
NO_CREDIT = "Nothing was trained here, so there is no credit."


@dataclass(frozen=True)
class Wish:
    """What is asked of which model."""

    source: Source
    picture: Image.Image | None  #: None: a language model is asked
    text: str
    temperature: float
    number: int
    objects: list[Object] | None = None  #: the scene, where it was drawn
    question: Question | None = None  #: where the task knows it

    @cached_property
    def example(self) -> dict[str, Any]:
        """As a task gives it, with the answer where it is known."""
        if self.picture is None:
            words = [{"role": "user", "content": self.text}]
            return ArithmeticTask().asked(self.text) or {"prompt": words, "images": [], "id": "playground"}
        prompt = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": self.text}]}]
        found = {"prompt": prompt, "images": [self.picture], "id": "playground"}
        if self.objects is None or self.question is None:
            return found
        scene = {"objects": [vars(one).copy() for one in self.objects], "question": vars(self.question).copy()}
        return found | {"answer": self.question.answer(self.objects), "kind": self.question.kind, "scene": scene}

    @property
    def draws(self) -> int:
        """How many completions are worth drawing: at temperature 0 all are the same."""
        return self.number if self.temperature > 0 else 1


@dataclass(frozen=True)
class Asked:
    """Completions of a wish, as rollouts that nothing was trained on."""

    wish: Wish
    rollouts: list[sv.Rollout]
    has_critic: bool
    cut: str  #: what of the distribution was drawn from, in words; "": all

    def told(self) -> dict[str, Any]:
        """For the list: source, answer (null: not known), temperature and what cuts its tail, critic, completions with
        their segments."""
        return {
            "source": str(self.wish.source),
            "answer": self.wish.example.get("answer"),
            "picture": self.wish.picture is not None,
            "temperature": self.wish.temperature,
            "cut": self.cut,
            "critic": self.has_critic,
            "completions": [_told(rollout) for rollout in self.rollouts],
        }

    def rollout(self, n: int) -> sv.Rollout:
        """Raise ValueError where there is no completion `n`."""
        if not 0 <= n < len(self.rollouts):
            raise ValueError(f"There is no completion {n + 1}: {len(self.rollouts)} were drawn.")
        return self.rollouts[n]

    def view(self, n: int) -> View:
        """One completion: tokens, segments, entropy, values where there is a critic."""
        rollout = self.rollout(n)
        data = ribbon_data(rollout, "What did it write, and how sure was it?") | {"pictures": pictures(rollout)}
        data |= {"verdict": verdict(rollout)}
        return View("ribbon", data["title"], _dressed(data, self.wish, n, NO_CREDIT))


@dataclass(frozen=True)
class Page:
    """What was found out about one completion."""

    page: View
    tokens: list[tuple[str, float]] | None = None  #: of a spoiled picture: piece, nats that it loses

    def told(self) -> dict[str, Any]:
        return {"tokens": [[tidy(piece), drop] for piece, drop in self.tokens]} if self.tokens else {}

    def view(self, n: int) -> View:
        return self.page


def ask(studio: Studio, wish: Wish) -> Callable[[Job], Asked]:
    """Draw completions; cancelled, those tokens that were drawn so far."""

    def work(job: Job) -> Asked:
        policy = _policy(studio, wish, job)
        from segpo_core.afterwards import probe

        limit = policy.sampler.max_completion_length
        job.say(f"Writing, at most {limit} tokens each", limit)
        seed = secrets.randbelow(2**31)
        drawn = probe.sample(policy, wish.example, wish.draws, seed, job.stopped, job.progress)
        drawn = [one for one in drawn if one.token_ids]
        if not drawn:
            raise Stopped
        values = [None] * len(drawn)
        if policy.has_critic and not job.stopped():
            job.say("Asking the critic")
            ids = [one.token_ids for one in drawn]
            scored = probe.score_completions(policy, [wish.example] * len(drawn), ids)
            values = [one.values.tolist() for one in scored]
        rows = [_row(wish, n, one, told) for n, (one, told) in enumerate(zip(drawn, values, strict=True))]
        images = {} if wish.picture is None else {_sha(wish.picture): png_bytes(wish.picture)}
        cut = sv.annotate([sv.Rollout(row, images) for row in rows], policy.model, policy.processor)
        return Asked(wish, [_valued(rollout) for rollout in cut], policy.has_critic, str(policy.sampler.truncation))

    return work


def resample(studio: Studio, asked: Asked, n: int, segment: int, where: str, number: int) -> Callable[[Job], Page]:
    """Write on from before a segment, from after it, or both.

    Raises:
        ValueError: no such completion, segment or side.
    """
    rollout, wish = asked.rollout(n), asked.wish
    if not 0 <= segment < len(rollout.segments):
        raise ValueError(f"There is no segment {segment + 1}: this completion has {len(rollout.segments)}.")
    if where not in ("before", "after", "both"):
        raise ValueError(f"where is {where!r}: choose before, after or both.")
    start, end = rollout.segments[segment]
    ids = rollout.row["token_ids"]
    if where == "after" and end == len(ids):
        raise ValueError("The completion ends with this segment: nothing is left to write after it. Choose before it.")

    def work(job: Job) -> Page:
        policy = _policy(studio, wish, job)
        from segpo_core.afterwards import probe

        sides = {side: at for side, at in (("before", start), ("after", end)) if where in (side, "both")}
        drawn = dict.fromkeys(("before", "after"))
        seed, draws = secrets.randbelow(2**31), number if wish.temperature > 0 else 1
        for side, at in sides.items():
            if at < len(ids):
                job.say(f"Writing on from {side} segment {segment + 1}", policy.sampler.max_completion_length - at)
                with interruptible(policy, job):
                    drawn[side] = probe.resample(policy, wish.example, ids, at, draws, seed)
        cut = f" with {policy.sampler.truncation}" if policy.sampler.truncation else ""
        who = f"Continuations by the policy that wrote it ({policy.name}), at temperature {wish.temperature:g}{cut}."
        data = counterfactual_data(drawn["before"], drawn["after"], rollout, segment, who, with_after=where != "before")
        if "answer" not in wish.example:
            data["verdict"] = ["Nothing says which continuation is right: read them below."]
        return Page(View("counterfactual", data["title"], _dressed(data, wish, n)))

    return work


def contrast(studio: Studio, asked: Asked, n: int, corruption: str) -> Callable[[Job], Page]:
    """Which tokens move when the picture is spoiled, and which part of the picture carries them.

    Raises:
        ValueError: no such completion, or none about a picture.
    """
    rollout, wish = asked.rollout(n), asked.wish
    if wish.picture is None:
        raise ValueError("A language model was asked: there is no picture to spoil.")
    ids = rollout.row["token_ids"]

    def work(job: Job) -> Page:
        policy = _policy(studio, wish, job)
        import torch

        from segpo_core.afterwards import probe
        from segpo_core.segments import role_ids

        job.say("Reading the completion with the spoiled picture", 2)
        with interruptible(policy, job):
            other = another(wish) if corruption == "other" else None
            seed = secrets.randbelow(2**31)
            spoiled, drops = probe.corrupt_contrast(policy, wish.example, ids, corruption, seed=seed, other=other)
            job.say("Masking one part of the picture after the other", 2)
            patches = probe.patch_contrasts(policy, wish.example, ids, GRID)
        pieces = rollout.pieces
        roles, _ = role_ids([pieces], torch.ones(1, len(pieces), dtype=torch.bool))
        row = dict(rollout.row) | {"role_ids": roles[0].tolist(), "perception_contrast": drops.tolist()}
        seen = sv.Rollout(row, rollout.images)
        data = roles_data(seen, spoiled, patches, "Which tokens come from looking?")
        view = View("roles", data["title"], _dressed(data, wish, n, NO_CREDIT))
        return Page(view, list(zip(pieces, np.round(drops, 4).tolist(), strict=True)))

    return work


def another(wish: Wish) -> Image.Image:
    """The picture of another problem of the task."""
    task = ShapesTask(image_size=48)
    return next(
        example["images"][0]
        for example in map(task.eval, range(100))
        if wish.objects is None or example["scene"]["objects"] != [vars(one) for one in wish.objects]
    )


def verdict(rollout: sv.Rollout) -> list[str]:
    """Whether it is right, and where it first goes wrong; of an untold truth, that it is one."""
    right, error = rollout.row.get("answer_right"), error_of(rollout)
    if right is None:
        return ["Nothing says what is right here: the picture or the question is not one of the task's."]
    first = "The answer is right." if right else f"The answer is wrong: it should be {rollout.row['answer']}."
    if error is None:
        return [first, "So is everything before it." if right else "No error is known in it."]
    lead = "Still, the first true error" if right else "The first true error"
    return [first, f"{lead} is in segment {segment_at(rollout, error['start']) + 1}{reason_of(error)}."]


# --- inside ---------------------------------------------------------------------------------------------------------


def _policy(studio: Studio, wish: Wish, job: Job) -> Policy:
    """The model of a wish, at its temperature. What scores is the distribution that is sampled from; at 0, which has
    none, that of temperature 1."""
    policy = studio.policy(wish.source, job)
    policy.sampler.temperature = wish.temperature
    policy.network.temperature = wish.temperature or 1.0
    return policy


def _row(wish: Wish, n: int, one: Any, values: list[float] | None) -> dict[str, Any]:
    """Columns of `ROLLOUT_SCHEMA`, as far as they are known; `one` is a `segpo_core.afterwards.probe.Sample`."""
    from segpo_core.record.rows import token_span

    example, prompt = wish.example, wish.example["prompt"]
    row = {
        "sample": n, "prompt": json.dumps([{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt),
        "images": [] if wish.picture is None else [_sha(wish.picture)],
        "answer": example.get("answer"), "text": one.text, "token_ids": one.token_ids, "pieces": one.pieces,
        "sampled_logprobs": one.logprobs, "entropy": one.entropy, "values": values, "finished": one.finished,
        "reward": one.reward,
    }  # fmt: skip
    if "answer" not in example or one.reward is None:  # a text that was cut short by a person is not judged
        return row
    truth = inspect_text(example, one.text) if wish.picture is not None else ArithmeticTask().inspect(example, one.text)
    row |= {name: truth.get(name) for name in ("answer_right", "perception_right", "reasoning_right")}
    row["truth"] = json.dumps(truth)
    if error := truth["first_error"]:
        start, end = token_span(one.pieces, error["start"], error["end"])
        row |= {"error_start": start, "error_end": end, "error_kind": error["kind"]}
    return row


def _valued(rollout: sv.Rollout) -> sv.Rollout:
    """With the critic's value at the start of each segment."""
    values = rollout.row.get("values")
    if values is None:
        return rollout
    starts = [values[start] for start, _ in rollout.segments]
    return sv.Rollout(dict(rollout.row) | {"segment_value": starts}, rollout.images)


def _told(rollout: sv.Rollout) -> dict[str, Any]:
    row, pieces = rollout.row, rollout.pieces
    known = ("reward", "answer_right", "perception_right", "reasoning_right", "error_kind", "finished")
    entropy, error = row["entropy"], error_of(rollout)
    return {
        **{name: row.get(name) for name in known},
        "error_segment": segment_at(rollout, error["start"]) if error else None,
        "tokens": len(pieces),
        "entropy": sum(entropy) / len(entropy),
        "text": _clip(rollout.text),
        "segments": [
            {
                "start": start, "end": end, "text": _clip("".join(pieces[start:end])),
                "entropy": sum(entropy[start:end]) / (end - start),
                "value": row["values"][start] if row.get("values") is not None else None,
            }
            for start, end in rollout.segments
        ],
    }  # fmt: skip


def _dressed(data: dict[str, Any], wish: Wish, n: int, credit: str = "") -> dict[str, Any]:
    """A view's data with the model's name where a method's would stand, and without notes about what training lacks."""
    notices = [note for note in data["notices"] if not note.startswith("No advantages")]
    names = {"where": f"completion {n + 1}", "method": str(wish.source)}
    return data | names | {"notices": [*([credit] if credit else []), *notices]}


def _sha(picture: Image.Image) -> str:
    return hashlib.sha256(png_bytes(picture)).hexdigest()


def _clip(text: str) -> str:
    return tidy(text if len(text) <= SNIPPET else text[:SNIPPET] + "…")
