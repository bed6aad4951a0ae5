"""A small synthetic run directory, written through the real recorder: no model, no torch."""

from __future__ import annotations

import json
import math
import random
import re
from pathlib import Path

from PIL import Image, ImageDraw

from segpo_core.record.store import CREDIT_SCHEMA, Recorder, image_digest

#: Texts that must stay text wherever they are shown.
HOSTILE = (
    "</script><script>window.hacked=1</script>",
    "<img src=x onerror=window.hacked=1>",
    "${window.hacked=1}{{window.hacked=1}}",
    "\u202eright to left\u2066 שלום \u2069 مرحبا",
    "👩\u200d👩\u200d👧\u200d👦🏳️\u200d🌈",
    "<!--<script>",
    "\u2028\u2029\x00\x07\t\r\n",
    "x" * 10_000,
    "]]>&lt;b&gt;&amp;",
    "javascript:alert(1)",
)

COLOURS = {"red": "#d33", "green": "#3a3", "blue": "#36c", "yellow": "#dc3"}
SHAPES = ("circle", "square", "triangle")


def split(text: str) -> list[str]:
    """Token texts: tags, words with their leading space, single other characters. Joined they are the text."""
    return re.findall(r"</?\w+>| ?\w+|\s|[^\w\s]", text)


def picture(objects: list[tuple[int, str, str]]) -> Image.Image:
    """48 x 48: objects (cell, colour, shape) on a 3 x 3 grid."""
    image = Image.new("RGB", (48, 48), "#f4f4f2")
    draw = ImageDraw.Draw(image)
    for cell, colour, shape in objects:
        x, y = 16 * (cell % 3) + 3, 16 * (cell // 3) + 3
        box = (x, y, x + 9, y + 9)
        if shape == "circle":
            draw.ellipse(box, fill=COLOURS[colour])
        elif shape == "square":
            draw.rectangle(box, fill=COLOURS[colour])
        else:
            draw.polygon([(x, y + 9), (x + 9, y + 9), (x + 5, y)], fill=COLOURS[colour])
    return image


def problem(rng: random.Random) -> tuple[list, str, str, int]:
    """(objects, question, colour asked for, answer)."""
    objects = [
        (cell, rng.choice(list(COLOURS)), rng.choice(SHAPES))
        for cell in sorted(rng.sample(range(9), rng.randint(3, 5)))
    ]
    colour = rng.choice([c for _, c, _ in objects])
    return objects, f"How many {colour} shapes are there?", colour, sum(c == colour for _, c, _ in objects)


def completion(rng: random.Random, objects: list, colour: str, kind: str) -> tuple[str, dict]:
    """A completion and the truth about it. `kind`: right, ungrounded, perception or reasoning."""
    seen = [(shade, shape) for _, shade, shape in objects]
    text, error = "<perception>", None
    wrong = rng.randrange(len(seen)) if kind in ("ungrounded", "perception") else -1
    count, parts, steps = 0, [], []
    for i, (shade, shape) in enumerate(seen):
        if i == wrong:
            others = [c for c in COLOURS if c != shade and (kind == "perception" or colour not in (c, shade))]
            told = shade if not others else rng.choice(others)
            flip = kind == "perception"
            if flip:
                told = colour if shade != colour else rng.choice([c for c in COLOURS if c != colour])
            start = len(text) + len("; ".join(parts) + "; " if parts else "") + 1
            error = {
                "start": start, "end": start + len(told), "kind": "perception",
                "why": f"object {i + 1} is {shade}, not {told}",
            }  # fmt: skip
            seen[i] = (told, shape)
        parts.append(f"{seen[i][0]} {shape}")
    text += " " + "; ".join(parts) + " </perception>\n<think>"
    slip = rng.randrange(len(seen)) if kind == "reasoning" else -1
    for i, (shade, _) in enumerate(seen):
        count += shade == colour
        if i == slip:
            count += 1
            start = len(text) + len("".join(steps)) + len(f" {shade}")
            error = {"start": start, "end": start + len(f" {count}"), "kind": "reasoning",
                     "why": f"the count after {shade} is {count - 1}, not {count}"}  # fmt: skip
        steps.append(f" {shade} {count},")
    text += "".join(steps) + f" so the count is {count}. </think>\n<answer> {count} </answer>"
    truth = {
        "answer_right": count == sum(c == colour for _, c, _ in objects),
        "perception_right": wrong < 0,
        "reasoning_right": slip < 0,
        "format_right": True,
        "first_error": error,
    }
    return text, truth


def credit_row(rng: random.Random, pieces: list[str], reward: float, error: tuple | None, method: str) -> dict:
    """Token and segment columns that look like the method's."""
    total = len(pieces)
    entropy = [round(abs(rng.gauss(0, 0.05)) + (rng.random() < 0.22) * rng.uniform(0.3, 1.4), 4) for _ in pieces]
    logprobs = [-min(12.0, e * rng.uniform(0.1, 1.6) + 0.003) for e in entropy]
    if method == "sapo":
        top = sorted(range(total), key=lambda t: -entropy[t])[: math.ceil(0.15 * total)]
        ends = sorted({t + 1 for t in top} | {total})
    else:
        ends = [total]
    starts = [0, *ends[:-1]]
    hit = error[0] if error else total + 1
    state = [0.58 + 0.3 * reward * s / total + rng.gauss(0, 0.03) for s in starts]
    if error:
        state = [v if s <= hit else 0.2 + rng.gauss(0, 0.04) for v, s in zip(state, starts, strict=True)]
    credit = [b - a for a, b in zip(state, [*state[1:], reward], strict=True)]
    if method == "grpo":
        credit = [1.1 if reward else -0.85]
    ids = [m for m, (a, b) in enumerate(zip(starts, ends, strict=True)) for _ in range(a, b)]
    ratio = [math.exp(rng.gauss(0, 0.07)) for _ in ends]
    clipped = [ratio[m] > 1.12 for m in ids]
    roles, role = [], 0
    for piece in pieces:
        if piece.startswith("<") and not piece.startswith("</"):
            role = {"<perception>": 1, "<think>": 2, "<answer>": 3}.get(piece, 0)
        roles.append(role)
        if piece.startswith("</"):
            role = 0
    critic = method == "sapo"
    return {
        "token_ids": [rng.randrange(600) for _ in pieces],
        "sampled_logprobs": logprobs,
        "old_logprobs": logprobs,
        "ref_logprobs": [v + rng.gauss(0, 0.03) for v in logprobs],
        "new_logprobs": [v + rng.gauss(0, 0.05) for v in logprobs],
        "entropy": entropy,
        "values": [state[m] + rng.gauss(0, 0.02) for m in ids] if critic else None,
        "returns": [reward] * total if critic else None,
        "advantages": [credit[m] for m in ids],
        "weights": [1.0] * total,
        "role_ids": roles,
        "loss_mask": [True] * total,
        "segment_ids": ids,
        "ratio": [ratio[m] for m in ids],
        "clipped": clipped,
        "segment_start": starts,
        "segment_end": ends,
        "segment_advantage": credit,
        "segment_value": state if critic else None,
        "segment_stderr": [rng.uniform(0.03, 0.09) for _ in ends] if critic else None,
        "segment_rule": ["ends at one of the 15% tokens of highest entropy" if critic else "the whole completion"]
        * len(ends),
    }


def row(step: int = 1, group: int = 0, sample: int = 0, text: str = "", pieces: list[str] | None = None,
        reward: float | None = 0.0, method: str = "sapo", truth: dict | None = None, seed: int = 0,
        **columns) -> dict:  # fmt: skip
    """A row of the run directory; `columns` replace what is made up here."""
    rng = random.Random(f"{seed}/{step}/{group}/{sample}")
    pieces = split(text) if pieces is None else pieces
    error = (truth or {}).get("first_error")
    span = None
    if error:
        offsets = [0]
        for piece in pieces:
            offsets.append(offsets[-1] + len(piece))
        span = (
            max(t for t in range(len(pieces)) if offsets[t] <= error["start"]),
            max(t for t in range(len(pieces)) if offsets[t] < error["end"]) + 1,
        )
    base = {
        "step": step, "group": group, "sample": sample, "method": method,
        "example_id": f"shapes/train/{step * 100 + group}", "prompt": json.dumps("?"), "images": [],
        "columns": "{}", "answer": None, "text": "".join(pieces), "finished": True, "reward": reward,
        "reward_parts": json.dumps({"accuracy": reward}), "truth": json.dumps(truth) if truth else None,
        "error_start": span and span[0], "error_end": span and span[1], "error_kind": error and error["kind"],
        "pieces": pieces,
    }  # fmt: skip
    for name in ("answer_right", "perception_right", "reasoning_right"):
        base[name] = truth.get(name) if truth else None
    if pieces:
        base |= credit_row(rng, pieces, reward or 0.0, span, method)
    return base | columns


def hostile_row(step: int = 1, group: int = 90, sample: int = 0) -> dict:
    """A completion, prompt, answer and every other text made of `HOSTILE`."""
    pieces = [part for text in HOSTILE for part in (text, " ")]
    return row(
        step, group, sample, pieces=pieces, reward=0.0,
        truth={"answer_right": True, "perception_right": False, "reasoning_right": True,
               "first_error": {"start": 1, "end": 3, "kind": "perception", "why": HOSTILE[0] + HOSTILE[3]}},
        prompt=json.dumps([{"role": HOSTILE[1], "content": [{"type": "image"}, {"type": "text", "text": HOSTILE[0]}]}]),
        images=["0" * 64], answer=HOSTILE[0], example_id=HOSTILE[1], error_kind="perception",
        reward_parts=json.dumps({HOSTILE[1]: 1.0}), segment_rule=None,
    )  # fmt: skip


def long_row(tokens: int, step: int = 1, group: int = 91) -> dict:
    """A rollout of many tokens, its words as varied as a text's."""
    rng = random.Random(7)
    words = ["".join(rng.choice("etaoinshrdlucmwfgypbvk") for _ in range(rng.randint(2, 9))) for _ in range(4000)]
    common = [1 / (i + 3) for i in range(len(words))]
    pieces = [" " + word for word in rng.choices(words, common, k=tokens)]
    for t in range(40, tokens, 61):
        pieces[t] = "\n"
    truth = {"answer_right": False, "perception_right": True, "reasoning_right": False}
    return row(step, group, pieces=pieces, reward=0.0, truth=truth, error_start=tokens // 2, error_end=tokens // 2 + 9,
               error_kind="reasoning")  # fmt: skip


def evaluation(step: int, p: float, method: str) -> tuple[list[dict], dict]:
    """What is said to four held-out problems when a share `p` of training is done: ever more of them right."""
    rows, images = [], {}
    for group in range(4):
        rng = random.Random(f"held out {group}")
        objects, question, colour, answer = problem(rng)
        image = picture(objects)
        digest = image_digest(image)
        images[digest] = image
        prompt = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
        text, truth = completion(
            rng, objects, colour, "right" if group < 4 * p else ("perception", "reasoning")[group % 2]
        )
        told = row(step, group, 0, text, reward=float(truth["answer_right"]), method=method, truth=truth,
                   prompt=json.dumps(prompt), images=[digest], answer=str(answer),
                   example_id=f"shapes/eval/{group}")  # fmt: skip
        rows.append(told | dict.fromkeys(CREDIT_SCHEMA.names[4:]))
    return rows, images


def write_run(path: Path, method: str = "sapo", steps: int = 24, seed: int = 0, groups: int = 3, samples: int = 4,
              rollouts: bool = True, extra: list[dict] | None = None) -> Path:  # fmt: skip
    """A run whose answers get better while it slowly stops looking. Rollouts are recorded every fourth step."""
    rng = random.Random(seed)
    recorder = Recorder(path)
    recorder.start(
        {"method": method, "algo": {"name": method}, "model_name_or_path": "data/tiny-vlm", "dataset": "shapes",
         "num_generations": samples, "learning_rate": 1e-4, "max_steps": steps, "seed": seed, "output_dir": str(path)}
    )  # fmt: skip
    for step in range(steps + 1):
        p, noise = step / steps, rng.gauss(0, 0.02)
        answer = 0.5 + 0.28 * (1 - math.exp(-4 * p)) - 0.08 * p**3 + noise
        sees = 0.97 - (0.6 if method == "grpo" else 0.2) / (1 + math.exp(-12 * (p - 0.6))) + rng.gauss(0, 0.01)
        both = max(0, answer * sees - 0.04)
        numbers = {}
        if step % max(1, steps // 8) == 0:
            numbers |= {"eval/answer": answer, "eval/perception": sees, "eval/grounded": both}
            numbers |= {"eval_sampled/answer": answer - 0.06, "eval_sampled/perception": sees - 0.05,
                        "eval_sampled/grounded": both - 0.08}  # fmt: skip
        if step:
            numbers |= {
                "reward": answer - 0.05 + rng.gauss(0, 0.05), "train/answer": answer - 0.05 + rng.gauss(0, 0.05),
                "train/perception": min(1, sees + rng.gauss(0, 0.02)), "train/grounded": both + rng.gauss(0, 0.04),
                "kl": 0.02 * p + abs(rng.gauss(0, 0.002)), "entropy": 0.3 * math.exp(-2 * p) + abs(rng.gauss(0, 0.01)),
                "completion_length": 62 - 8 * p + rng.gauss(0, 1), "clip_ratio/region": abs(rng.gauss(0.02, 0.01)),
                "time/tokens_per_second": 2400 + rng.gauss(0, 90), "grad_norm": abs(rng.gauss(1, 0.2)),
            }  # fmt: skip
            if method == "sapo":
                numbers |= {"value_loss": 0.12 * math.exp(-2 * p), "explained_variance": 0.7 * p + rng.gauss(0, 0.03)}
        recorder.metrics(step, numbers)
        if rollouts and "eval/answer" in numbers:
            recorder.evaluation(step, *evaluation(step, p, method))
        if not rollouts or step == 0 or (step - 1) % 4:
            continue
        rows, images = [], {}
        for group in range(groups):
            objects, question, colour, answer = problem(rng)
            image = picture(objects)
            digest = image_digest(image)
            images[digest] = image
            prompt = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
            for sample in range(samples):
                kind = ("right", "perception", "reasoning", "ungrounded")[(sample + group) % 4]
                text, truth = completion(rng, objects, colour, kind)
                rows.append(row(
                    step, group, sample, text, reward=float(truth["answer_right"]), method=method, truth=truth,
                    seed=seed, prompt=json.dumps(prompt), images=[digest], answer=str(answer),
                ))  # fmt: skip
        if extra and step == 1:
            rows += extra
        recorder.rollouts(step, rows, images)
    assert not recorder.failures, "the synthetic rows do not fit the schema"
    return path
