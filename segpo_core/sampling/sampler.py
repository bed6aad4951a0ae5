"""What every sampler can do. Methods, chains and trees ask nothing else of one, wherever its engine runs.

Three moves make all kinds of collection: `prefill` takes up prompts, `Prefix.pick` branches them, `continue_from` goes
on from every prefix to its own end. Groups are prefill, pick each G times, continue. What a prefix is, is the engine's
own affair: keys and values here (generate.py), tokens where a server does the work.

Each completion draws from a random stream of its own, named by (seed, step, prompt, sample, …), so that what is sampled
does not hang on how rows are batched or shared out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor

from segpo_core.policy.inputs import Prompts
from segpo_core.sampling.truncation import Truncation
from segpo_core.types import Rollouts, length_mask

#: The name of a random stream.
Name = tuple[int, ...]


class Prefix(Protocol):
    """n token prefixes, prompts or completions begun, ready to be continued."""

    def pick(self, rows: Tensor) -> Prefix:
        """The given rows (long [m]), repeats allowed. Consumes this one."""

    def forbid(self, rows: Tensor, tokens: Tensor) -> None:
        """No continuation of `rows[k]` begins with `tokens[k]`, both long [K]."""


class Prefixes(Protocol):
    """B completions after their prompts, each of which can be continued from any of its tokens."""

    def at(self, rows: Tensor, lengths: Tensor) -> Prefix:
        """The first `lengths` tokens (long [n], 0: the prompt) of the completions `rows` (long [n])."""


@dataclass
class Draw:
    """Continuations of n prefixes, right-padded to the longest."""

    ids: Tensor  #: long [n, T]
    lengths: Tensor  #: long [n]
    finished: Tensor  #: bool [n], ended with an EOS
    logprobs: Tensor  #: float32 [n, T], as the engine that drew them says
    entropy: Tensor  #: float32 [n, T]; NaN where the engine does not say
    tokens_computed: int  #: tokens decoded; what rows happen to have in common counts for each of them
    state: Prefix | None = None  #: asked for by `keep`: the rows that did not finish, in order; None where all did
    truncated: Tensor | None = None  #: float32 [n, T], log-probabilities in what a truncation left; None: without one


class Sampler(Protocol):
    """Draws completions. `groups` and `rollouts` are the same for every sampler; the other methods are its own."""

    tokenizer: Any
    temperature: float  #: of the sampling distribution; log-probabilities and entropies include it
    truncation: Truncation  #: what may be drawn of it; log-probabilities and entropies are those of all of it
    max_completion_length: int  #: tokens after which a completion is cut
    tokens_computed: int  #: that went through the model so far, as far as the engine says
    device: torch.device  #: where what is drawn lies
    config: Any  #: the model's configuration
    own_scores: bool  #: whether `Draw` says what the training network itself says of its tokens

    def prefill(self, prompts: Prompts, rows: list[int] | None = None) -> Prefix:
        """Take up prompts: those of `rows`, default all."""

    def prefixes(self, prompts: Prompts, ids: Tensor, mask: Tensor, group: Tensor) -> Prefixes:
        """Take up completions: `ids` long [B, T], `mask` bool [B, T], `group` long [B], row of the prompt.

        Raises:
            ValueError: the model cannot go on from the middle of a completion.
        """

    def continue_from(
        self,
        prefix: Prefix,
        names: Sequence[Name],
        limits: Sequence[int],
        temperature: float | None = None,
        keep: bool = False,
    ) -> Draw:
        """Go on from every prefix until an EOS, or for as many tokens as its limit says.

        Args:
            prefix: n prefixes; consumed.
            names: the random stream of each.
            limits: the most tokens of each, at least 1.
            temperature: default: the sampler's; 0 is greedy.
            keep: return the rows that did not finish as prefixes (where all limits are the same).
        """

    def sync(self, write: Callable[[Path], None], version: int) -> None:
        """Sample with the weights of `version` from now on. `write(folder)` puts them into a folder, as
        `save_pretrained` does; an engine that shares the network's weights never calls it."""

    def groups(
        self,
        prompts: Prompts,
        num_generations: int,
        stream: Name,
        first: int = 0,
        temperature: float | None = None,
    ) -> Rollouts:
        """`num_generations` completions of every prompt; rows of one prompt are neighbours.

        Args:
            prompts: P prompts.
            num_generations: G.
            stream: name of the random stream, such as (seed, step).
            first: number of the first prompt within the step, over all processes.
            temperature: see `continue_from`.
        """
        group = torch.arange(len(prompts), device=self.device).repeat_interleave(num_generations)
        names = [(*stream, first + p, g) for p in range(len(prompts)) for g in range(num_generations)]
        prefix = self.prefill(prompts).pick(group)
        return self.rollouts(
            self.continue_from(prefix, names, [self.max_completion_length] * len(names), temperature), group
        )

    def rollouts(self, draw: Draw, group: Tensor) -> Rollouts:
        """A draw as `Rollouts`, with texts."""
        lengths = draw.lengths.tolist()
        pieces = [token_pieces(self.tokenizer, ids[:n]) for ids, n in zip(draw.ids.tolist(), lengths, strict=True)]
        return Rollouts(
            completion_ids=draw.ids,
            mask=length_mask(draw.lengths, draw.ids.shape[1]),
            group=group,
            finished=draw.finished,
            sampled_logprobs=draw.logprobs,
            entropy=draw.entropy,
            engine_logprobs=draw.truncated,
            texts=["".join(row) for row in pieces],
            pieces=pieces,
        )


def noise(length: int, *name: int) -> np.ndarray:
    """float64 [length], uniform in [0, 1): the random stream called `name`, the same on every machine."""
    return np.random.default_rng(name).random(length)


def token_pieces(tokenizer: Any, ids: list[int]) -> list[str]:
    """The text of each token, such that the pieces joined are the text. Special tokens have none.

    A character whose bytes span several tokens belongs to the last of them.
    """
    try:
        stream = DecodeStream(skip_special_tokens=True)
        pieces = [stream.step(tokenizer.backend_tokenizer, i) or "" for i in ids]
    except Exception:  # tokenizers raises a bare Exception where byte tokens make no character
        return _pieces_of_bytes(tokenizer, ids)
    whole = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    joined = "".join(pieces)
    if len(whole) > len(joined) and whole.startswith(joined):  # the completion was cut within a character
        pieces[-1] += whole[len(joined) :]
    return pieces


def _pieces_of_bytes(tokenizer: Any, ids: list[int]) -> list[str]:
    """The same for tokenizers with byte fallback, whose decoder gives up a whole run of bytes for one that fits no
    character: here only the bytes that make none become U+FFFD, and belong to the next token that makes one.
    """

    def text(start: int, end: int) -> str:
        return tokenizer.decode(ids[start:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)

    pieces: list[str] = []
    start, said, waiting = 0, "", 0  # `said`: the text from `start` on to the last token that had a piece
    for end in range(1, len(ids) + 1):
        now = text(start, end)
        if now.endswith("\ufffd"):
            pieces.append("")
            waiting += 1
            continue
        if now.startswith(said):
            pieces.append(now[len(said) :])
        else:  # a whole character before the stray bytes became U+FFFD with them
            pieces.append("\ufffd" * waiting + text(end - 2, end)[len(text(end - 2, end - 1)) :])
        waiting, alone = 0, text(end - 1, end)
        # A token of its own right is context enough for what follows it (a leading space depends on that).
        start, said = (end - 1, alone) if alone and "\ufffd" not in alone else (start, now)
    if waiting:
        pieces[-1] = "\ufffd" * waiting
    return pieces
