"""Questions to a trained policy about one prompt or one rollout: what else would it have written, what does it look at?

    policy = Policy.load("runs/demo", step=30)
    example = recorded_example(rollout.row, rollout.images)
    resample(policy, example, rollout.row["token_ids"], at=12, number=16)     # go on from the middle
    patch_contrasts(policy, example, rollout.row["token_ids"])                # which part of the image carries a token

Nothing here trains, and nothing is written. T tokens of a completion.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from segpo_core.afterwards.trained import Policy, recorded_example
from segpo_core.policy.contrasts import logprobs
from segpo_core.policy.corruptions import corrupt
from segpo_core.policy.inputs import Prompts
from segpo_core.sampling.chains import continuations
from segpo_core.sampling.sampler import Draw, noise, token_pieces
from segpo_core.types import Rollouts, length_mask, pad_rows

__all__ = [
    "Policy", "Sample", "Scored", "corrupt_contrast", "patch_contrasts", "recorded_example", "resample", "sample",
    "score_completions",
]  # fmt: skip

#: Part of the name of the random streams of this file, so that they are no training step's.
PROBE_STREAM = 2**31 + 2

#: Tokens drawn between two looks at `cancel`.
CHUNK = 16

#: New tokens of one completion: ids, log-probabilities, entropies, whether it ended.
Drawn = tuple[list[int], list[float], list[float], bool]


@dataclass(frozen=True)
class Sample:
    """One continuation. `token_ids`, `pieces`, `logprobs` and `entropy` are those of the new tokens only."""

    token_ids: list[int]
    pieces: list[str]
    logprobs: list[float]
    entropy: list[float]
    text: str  #: the whole completion, what was kept of it and what is new
    finished: bool  #: False: cut at the longest completion, or cancelled
    reward: float | None  #: None: no verdict


@dataclass(frozen=True)
class Scored:
    """What the policy says about the tokens of one completion; float32 [T]."""

    logprobs: np.ndarray
    entropy: np.ndarray
    values: np.ndarray | None  #: the critic's, before each token; None without one


@torch.no_grad()
def resample(
    policy: Policy,
    example: Mapping[str, Any],
    completion_ids: Sequence[int],
    at: int,
    number: int,
    seed: int = 0,
) -> list[Sample]:
    """`number` fresh continuations of the first `at` tokens of a completion (0: of the prompt).

    Prompt and images are computed once, and so are the kept tokens.

    Raises:
        ValueError: `at` is outside the completion, the completion has ended by an end-of-sequence token before it, or
            the policy's longest completion leaves no room after it.
    """
    kept, limit = list(completion_ids[:at]), policy.sampler.max_completion_length
    if not 0 <= at <= len(completion_ids):
        raise ValueError(f"cannot go on from token {at}: the completion has {len(completion_ids)} tokens")
    if kept and kept[-1] in policy.sampler.eos.tolist():
        raise ValueError(f"the completion ended with token {at}: there is nothing to go on from")
    if at >= limit:
        raise ValueError(
            f"no room after token {at}: this policy's completions have at most {limit} tokens; raise "
            "policy.sampler.max_completion_length"
        )
    if number < 1:
        raise ValueError(f"number={number}: draw at least one continuation")
    policy.check(kept)
    prompts = Prompts.build([example], policy.processor, policy.model.config)
    # a state without tokens still needs a column to stand in
    rollouts = _rollouts(policy, [kept or [0]], [0])
    where = torch.zeros(1, dtype=torch.long, device=policy.device), torch.tensor([at], device=policy.device)
    new: list[Drawn] = []
    for _, draw in continuations(policy.sampler, prompts, rollouts, *where, number, (seed, PROBE_STREAM)):
        new += _drawn(draw)
    return _samples(policy, example, kept, new)


@torch.no_grad()
def sample(
    policy: Policy,
    example: Mapping[str, Any],
    number: int = 1,
    seed: int = 0,
    cancel: Callable[[], bool] | None = None,
    progress: Callable[[int, int], Any] | None = None,
) -> list[Sample]:
    """Fresh completions of any prompt: `example` has "prompt" and, for a model that sees, "images" (PIL).

    Args:
        cancel: asked every few tokens; once it is true, what was drawn so far is returned, unfinished and without
            reward.
        progress: called with (tokens drawn, most tokens that may be drawn).
    """
    if number < 1:
        raise ValueError(f"number={number}: draw at least one completion")
    sampler, limit = policy.sampler, policy.sampler.max_completion_length
    prompts = Prompts.build([example], policy.processor, policy.model.config)
    uniform = torch.from_numpy(np.stack([noise(limit, seed, PROBE_STREAM, 0, n) for n in range(number)]))
    new: list[Drawn] = [([], [], [], False) for _ in range(number)]
    live, stopped, state = list(range(number)), False, None
    for begin in range(0, limit, CHUNK):
        stopped = cancel is not None and bool(cancel())
        if stopped or not live:
            break
        if state is None:
            state = sampler.prefill(prompts).pick(torch.zeros(number, dtype=torch.long, device=policy.device))
        end = min(begin + CHUNK, limit)
        draw = sampler.decode(state, uniform[live, begin:end], keep=end < limit)
        for n, (ids, logp, entropy, done) in zip(live, _drawn(draw), strict=True):
            new[n] = new[n][0] + ids, new[n][1] + logp, new[n][2] + entropy, done
        live, state = [n for n in live if not new[n][3]], draw.state
        if progress is not None:
            progress(end if live else limit, limit)
    return _samples(policy, example, [], new, judge_cut=not stopped)


def score_completions(
    policy: Policy, examples: Sequence[Mapping[str, Any]], completion_ids: Sequence[Sequence[int]], batch_size: int = 8
) -> list[Scored]:
    """Log-probabilities, entropies and (with a critic) values of given completions: one pass over each.

    Args:
        examples: the prompt of each completion. The same object given several times is processed once.
        completion_ids: one list of ids a completion; an empty one gets empty arrays.
        batch_size: completions in one forward pass; those of like length share one.
    """
    different = {id(example): example for example in examples}
    place = {name: number for number, name in enumerate(different)}
    prompts = Prompts.build(list(different.values()), policy.processor, policy.model.config)
    out: list[Scored | None] = [None] * len(completion_ids)
    empty = np.zeros(0, dtype=np.float32)
    order = sorted(range(len(completion_ids)), key=lambda b: len(completion_ids[b]))
    for b in [b for b in order if not len(completion_ids[b])]:
        out[b] = Scored(empty, empty, empty if policy.has_critic else None)
    order = [b for b in order if len(completion_ids[b])]
    for begin in range(0, len(order), batch_size):
        part = order[begin : begin + batch_size]
        for b in part:
            policy.check(completion_ids[b])
        group = [place[id(examples[b])] for b in part]
        rollouts = _rollouts(policy, [completion_ids[b] for b in part], group)
        with torch.no_grad():
            inputs = prompts.batch(group, policy.device)
            scores = policy.network(inputs, rollouts.completion_ids, rollouts.mask)
        for row, b in enumerate(part):
            cells = [None if x is None else x[row, : len(completion_ids[b])].float().cpu().numpy() for x in scores]
            out[b] = Scored(*cells)
    return out


def patch_contrasts(
    policy: Policy,
    example: Mapping[str, Any],
    completion_ids: Sequence[int],
    grid: tuple[int, int] = (3, 3),
    image: int = 0,
    batch_size: int = 16,
) -> np.ndarray:
    """What each token owes to each part of the image: float32 [T, rows, columns].

    An entry is log π(token | image) − log π(token | image with that patch in the image's mean colour): above zero, the
    patch made the token likelier.

    Args:
        grid: rows and columns of patches.
        image: which of the example's images is masked.

    Raises:
        ValueError: no such image, a finer grid than the image has pixels, or an empty completion.
    """
    whole, (rows, columns) = _image(example, image), grid
    if not (1 <= rows <= whole.height and 1 <= columns <= whole.width):
        raise ValueError(f"grid={grid} does not fit an image of {whole.height} x {whole.width} pixels")
    blank = corrupt(whole, "blank", np.random.default_rng(0))
    down = np.linspace(0, whole.height, rows + 1).round().astype(int).tolist()
    across = np.linspace(0, whole.width, columns + 1).round().astype(int).tolist()
    masked = []
    for row in range(rows):
        for column in range(columns):
            box = across[column], down[row], across[column + 1], down[row + 1]
            changed = whole.copy()
            changed.paste(blank.crop(box), box)
            masked.append(changed)
    return _drops(policy, example, completion_ids, image, masked, batch_size).T.reshape(-1, rows, columns)


def corrupt_contrast(
    policy: Policy,
    example: Mapping[str, Any],
    completion_ids: Sequence[int],
    corruption: str = "blank",
    image: int = 0,
    seed: int = 0,
    other: Image.Image | None = None,
) -> tuple[Image.Image, np.ndarray]:
    """Which tokens move when an image is spoiled: (the spoiled image, float32 [T]).

    An entry is log π(token | image) − log π(token | spoiled image), SRPO's d_t, here of every token.

    Args:
        corruption: one of `corruptions.KINDS`.
        image: which of the example's images is spoiled.
        other: another prompt's image, for "other".

    Raises:
        ValueError: no such image, an unknown corruption, "other" without `other`, or an empty completion.
    """
    spoiled = corrupt(_image(example, image), corruption, np.random.default_rng((seed, PROBE_STREAM)), other)
    return spoiled, _drops(policy, example, completion_ids, image, [spoiled], batch_size=2)[0]


# --- inside ---------------------------------------------------------------------------------------


def _image(example: Mapping[str, Any], number: int) -> Image.Image:
    images = list(example.get("images") or [])
    if not images:
        raise ValueError("the example has no image: what a completion owes to seeing cannot be asked of text alone")
    if not 0 <= number < len(images):
        raise ValueError(f"there is no image {number}: the example has {len(images)}, counted from 0")
    return images[number].convert("RGB")


def _drops(
    policy: Policy,
    example: Mapping[str, Any],
    completion_ids: Sequence[int],
    image: int,
    changed: list[Image.Image],
    batch_size: int,
) -> np.ndarray:
    """float32 [N, T]: by how much each token's log-probability falls with each of N other versions of an image."""
    if not len(completion_ids):
        raise ValueError("the completion has no tokens")
    policy.check(completion_ids)
    images = [picture.convert("RGB") for picture in example["images"]]
    versions = [[*images[:image], version, *images[image + 1 :]] for version in [images[image], *changed]]
    prompts = Prompts.build(
        [{**example, "images": pictures} for pictures in versions], policy.processor, policy.model.config
    )
    rollouts = _rollouts(policy, [completion_ids] * len(versions), list(range(len(versions))))
    scores = logprobs(policy.network, prompts, rollouts, rollouts.mask, batch_size=batch_size)
    return (scores[:1] - scores[1:]).float().cpu().numpy()


def _rollouts(policy: Policy, completions: Sequence[Sequence[int]], group: Sequence[int]) -> Rollouts:
    """Given completions in the shape that sampling and scoring read; nothing is measured on them."""
    lengths = torch.tensor([len(ids) for ids in completions])
    ids = pad_rows([torch.tensor(list(ids), dtype=torch.long) for ids in completions]).to(policy.device)
    unknown: Tensor = torch.zeros(ids.shape, device=policy.device)
    return Rollouts(
        completion_ids=ids,
        mask=length_mask(lengths.to(policy.device), ids.shape[1]),
        group=torch.tensor(group, device=policy.device),
        finished=torch.zeros(len(lengths), dtype=torch.bool, device=policy.device),
        sampled_logprobs=unknown,
        entropy=unknown,
    )


def _drawn(draw: Draw) -> list[Drawn]:
    """The rows of a draw without their padding."""
    columns = (draw.ids, draw.logprobs, draw.entropy, draw.lengths, draw.finished)
    return [
        (ids[:n], logp[:n], entropy[:n], done)
        for ids, logp, entropy, n, done in zip(*(column.tolist() for column in columns), strict=True)
    ]


def _samples(
    policy: Policy, example: Mapping[str, Any], kept: list[int], new: list[Drawn], judge_cut: bool = True
) -> list[Sample]:
    """Drawn tokens (ids, log-probabilities, entropies, finished) as samples, with pieces and rewards."""
    pieces = [token_pieces(policy.sampler.tokenizer, kept + ids) for ids, *_ in new]
    texts = ["".join(row) for row in pieces]
    judged = [n for n, (*_, done) in enumerate(new) if done or judge_cut]
    rewards = dict(zip(judged, policy.rewards(example, [texts[n] for n in judged]), strict=True))
    return [
        Sample(ids, pieces[n][len(kept) :], logp, entropy, texts[n], done, rewards.get(n))
        for n, (ids, logp, entropy, done) in enumerate(new)
    ]
