"""Rollouts, runs and readers of pages that the tests of several views share."""

from __future__ import annotations

import base64
import html.parser
import json
import math
import random
import zlib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

import segviz as sv
from segpo_core.record.store import Recorder, image_digest, png_bytes
from tests.fakes.fake_run import HOSTILE, completion, picture, problem, row


class Table(html.parser.HTMLParser):
    """The cells of a fallback's table, row by row."""

    def __init__(self, text: str):
        super().__init__()
        self.rows: list[list[str]] = []
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._inside = True

    def handle_endtag(self, tag):
        self._inside = self._inside and tag not in ("td", "th")

    def handle_data(self, data):
        if self._inside:
            self.rows[-1][-1] += data


def sampled(
    values: list[float | None], errors: list[float | None] | None, reward: float | None = 0.0, **columns
) -> dict:
    """A completion of one-letter tokens with Monte Carlo values before them."""
    pieces = list("abcdefghijklmnopqrstuvwxyz")[: len(values)]
    plain = {"values": None, "segment_value": None, "segment_stderr": None, "method": "vineppo"}
    return row(pieces=pieces, reward=reward) | plain | {"mc_values": values, "mc_stderr": errors} | columns


def credited(name: str, credit: list[float | None], cuts: list[int], **columns) -> sv.Rollout:
    """Credit of a method on tokens of one letter; `cuts` are where segments start."""
    pieces, ends = list("abcdefghij")[: len(credit)], [*cuts[1:], len(credit)]
    return sv.Rollout(
        row(pieces=pieces, method=name)
        | {"advantages": credit, "weights": None, "segment_start": cuts, "segment_end": ends, "segment_rule": None}
        | {"segment_advantage": [credit[a] for a in cuts], "segment_value": None, "segment_stderr": None}
        | columns
    )  # fmt: skip


def sibling(sample: int, words: str, reward: float | None, **columns) -> sv.Rollout:
    pieces = [f" {word}" for word in words.split()]
    n = len(pieces)
    plain = {"token_ids": None, "old_logprobs": [math.log(0.5)] * n, "entropy": [0.25] * n, "answer_right": None}
    return sv.Rollout(row(1, 0, sample, pieces=pieces, reward=reward, method="grpo") | plain | columns)


def hostile_views(run: sv.Run) -> dict[str, sv.View]:
    rollout = run.rollout(1, 90, 0)
    named = {HOSTILE[0]: rollout, HOSTILE[1]: sv.Rollout(rollout.row | {"advantages": [-1.0] * len(rollout.pieces)})}
    return {"staircase": sv.staircase(rollout), "compare": sv.compare(named), "group": sv.group(run, 1, 90)}


WORDS = "red blue green circle square triangle left right top bottom one two".split()


def asked(question: str) -> str:
    """A prompt with an image, as a row holds it."""
    return json.dumps([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}])


def write_tree(path: Path, branch: tuple[int, ...] = (3, 2), method: str = "spo_tree", tokens: int = 6, seed: int = 0,
               text=None) -> Path:  # fmt: skip
    """A run with one step and one group: a full tree, its leaves' rewards 0 or 1, written by the real recorder.

    `text(node)` gives the pieces of a node; they must be `tokens` long.
    """
    rng = random.Random(seed)
    recorder = Recorder(path)
    recorder.start({"method": method, "algo": {"name": method}}, method=method)
    parents, firsts, levels = [-1], [0], [[0]]
    for width in branch:
        levels.append([])
        for parent in levels[-2]:
            for _ in range(width):
                levels[-1].append(len(parents))
                parents.append(parent)
                firsts.append(0)
    leaves, count = levels[-1], len(parents)
    depth = [d for d, level in enumerate(levels) for _ in level]
    values, samples, errors = [0.0] * count, [0] * count, [None] * count
    says = [(text or (lambda _: [f" {rng.choice(WORDS)}" for _ in range(tokens)]))(node) for node in range(count)]
    for level in reversed(levels):
        for node in level:
            below = [child for child in range(count) if parents[child] == node]
            if not below:
                values[node], samples[node] = float(rng.random() < 0.5), 1
                continue
            values[node] = sum(values[c] for c in below) / len(below)
            samples[node] = sum(samples[c] for c in below)
            spread = sum((values[c] - values[node]) ** 2 for c in below) / max(1, len(below) - 1)
            errors[node] = math.sqrt(spread / len(below)) if len(below) > 1 else None
    rows, image, seen = [], picture([(0, "red", "circle")]), set()
    for sample, leaf in enumerate(leaves):
        way = [leaf]
        while parents[way[0]] > 0:
            way.insert(0, parents[way[0]])
        for node in set(way) - seen:
            firsts[node] = sample
        seen.update(way)
        pieces = [piece for node in way for piece in says[node]]
        ids = [node for node in way for _ in range(tokens)]
        credit = [values[n] - values[parents[n]] for n in ids]
        cuts = [tokens * i for i in range(len(way) + 1)]
        rows.append(
            row(
                1,
                0,
                sample,
                pieces=pieces,
                reward=values[leaf],
                method=method,
                node_ids=ids,
                advantages=credit,
                segment_ids=[t // tokens for t in range(len(ids))],
                segment_start=cuts[:-1],
                segment_end=cuts[1:],
                segment_advantage=[credit[c] for c in cuts[:-1]],
                segment_value=[values[parents[n]] for n in way],
                segment_stderr=None,
                segment_rule=None,
                weights=None,
                values=None,
                returns=None,
                images=[image_digest(image)],
                prompt=asked("How many?"),
            )  # fmt: skip
        )
    recorder.rollouts(1, rows, {image_digest(image): image})
    table = []
    for n in range(count):
        gain = None if n == 0 else values[n] - values[parents[n]]
        table.append(
            {"step": 1, "group": 0, "method": method, "node": n, "parent": parents[n], "sample": firsts[n],
             "start": tokens * max(0, depth[n] - 1), "end": tokens * depth[n], "value": values[n], "stderr": errors[n],
             "samples": samples[n], "advantage": gain, "trained": bool(gain)}
        )  # fmt: skip
    recorder.nodes(1, table)
    assert not recorder.failures, "the synthetic rows do not fit the schema"
    return path


class Lists(HTMLParser):
    """Texts of the list items of a static page, each with how deep its list is nested; and every tag."""

    def __init__(self, html: str):
        super().__init__()
        self.depth, self.items, self.tags, self.text = 0, [], [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.depth += tag == "ul"
        if tag == "li":
            self.items.append([self.depth, ""])

    def handle_endtag(self, tag):
        self.depth -= tag == "ul"

    def handle_data(self, data):
        self.text += data
        if self.items:
            self.items[-1][1] += data


def knot(number, parent, value, stderr=None, samples=4, **columns):
    """A row of the node table."""
    base = {"step": 1, "group": 0, "method": "spo_tree", "node": number, "parent": parent, "sample": 0, "start": 0,
            "end": 0 if parent < 0 else 3 * number, "value": value, "stderr": stderr, "samples": samples,
            "advantage": None if parent < 0 else 0.5, "trained": True}  # fmt: skip
    return base | columns


def seen(kind: str = "perception", **columns) -> sv.Rollout:
    """A completion with roles, and weights and contrasts as SRPO records them: seeing weighs 1.5, thinking 0.5."""
    rng = random.Random(3)
    objects, question, colour, _ = problem(rng)
    text, truth = completion(rng, objects, colour, kind)
    base = row(1, 2, 3, text, reward=0.0, method="srpo", truth=truth)
    ids = base["role_ids"]
    image = picture(objects)
    base |= {
        "weights": [1.5 if r == 1 else 0.5 if r == 2 else 1.0 for r in ids],
        "perception_contrast": [2.0 if r == 1 else 0.0 for r in ids],
        "reasoning_contrast": [0.25 if r == 2 else 0.0 for r in ids],
        "advantages": [-1.5 if r == 1 else -0.5 if r == 2 else -1.0 for r in ids],
        "images": ["ab"], "prompt": asked(question),
    }  # fmt: skip
    return sv.Rollout(base | columns, {"ab": png_bytes(image)}, "x")


def table(view: sv.View) -> dict[str, dict]:
    return {row["role"]: row for row in view.data["roles"]}


def simple(values=None, mc=None, advantages=(0.2, -0.4), reward=1.0, **columns) -> dict:
    """A completion of four tokens in two segments."""
    return {
        "step": 1, "group": 0, "sample": 0, "method": "sapo", "reward": reward, "pieces": list("abcd"),
        "values": values, "mc_values": mc, "segment_start": [0, 2], "segment_end": [2, 4],
        "segment_advantage": list(advantages),
        "advantages": [advantages[0]] * 2 + [advantages[1]] * 2, "loss_mask": [True] * 4, **columns,
    }  # fmt: skip


DTYPES = {"u1": np.uint8, "u2": np.uint16, "u4": np.uint32, "f2": np.float16, "f4": np.float32}


def unpack(packed: dict) -> dict:
    """What the script makes of `view.pack`."""
    raw = zlib.decompress(base64.b64decode(packed["data"]))
    at = packed["text"]
    found = {"text": raw[:at].decode()}
    for name, letters, count in packed["columns"]:
        width = int(letters[1])
        planes = np.frombuffer(raw[at : at + count * width], np.uint8).reshape(width, count)
        found[name] = np.ascontiguousarray(planes.T).view(DTYPES[letters]).ravel()
        at += count * width
    assert at == len(raw)
    return found


class Page(html.parser.HTMLParser):
    """Every element of a page, and the text inside its scripts."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.scripts: list[str] = []
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self._inside = True
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._inside = self._inside and tag != "script"

    def handle_data(self, data):
        if self._inside:
            self.scripts[-1] += data
