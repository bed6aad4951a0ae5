"""The sampler. A prompt and its images are computed once; every continuation shares that prefix.

Three moves make all kinds of collection: `prefill` computes prompts, `State.pick` branches them (a cache row is copied,
never computed again), `decode` continues every row to its own end. Groups are prefill → pick each G times → decode.

Each completion draws from a random stream of its own, named by (seed, step, prompt, sample). So what is sampled does
not depend on how rows are batched, on when others end, or on how many processes share the work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor, nn
from transformers import DynamicCache

from segpo_core.policy.inputs import Prompts, decode_inputs, prefill_inputs
from segpo_core.policy.logprobs import Head, backbone, gather, without_adapter
from segpo_core.types import Rollouts, length_mask

#: Rows that ended are dropped from the batch once they are this share of it: dropping copies the cache.
COMPACT_SHARE = 0.1


@dataclass
class State:
    """n prefixes, ready to be continued."""

    cache: DynamicCache
    attention_mask: Tensor  #: long [n, S]
    position: Tensor  #: long [n], position of the next token
    logits: Tensor  #: float32 [n, V], of the next token

    def pick(self, rows: Tensor) -> State:
        """The given rows (long [m]), repeats allowed. Consumes this state: its cache is changed in place."""
        self.cache.batch_select_indices(rows)
        return State(self.cache, self.attention_mask[rows], self.position[rows], self.logits[rows])


@dataclass
class Draw:
    """Continuations of n prefixes, right-padded to the longest."""

    ids: Tensor  #: long [n, T]
    lengths: Tensor  #: long [n]
    finished: Tensor  #: bool [n], ended with an EOS
    logprobs: Tensor  #: float32 [n, T]
    entropy: Tensor  #: float32 [n, T]
    tokens_computed: int  #: tokens that went through the model, those of rows that had already ended included
    state: State | None = None  #: asked for by `keep`: the rows that did not finish, in order; None where all did


def noise(length: int, *name: int) -> np.ndarray:
    """float64 [length], uniform in [0, 1): the random stream called `name`, the same on every machine."""
    return np.random.default_rng(name).random(length)


def choose(logits: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """One token a row by inverting the distribution function: long [n].

    Args:
        logits: float32 [n, V].
        uniform: float64 [n], in [0, 1).
        temperature: 0 takes the most likely token.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    # In double precision: float32 sums over a large vocabulary would give rare tokens a wrong share. A token of
    # probability 0 never raises the sum, so it is never the first to pass the threshold.
    cumulative = (logits.double() / temperature).softmax(dim=-1).cumsum(dim=-1)
    token = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True)[:, 0]
    # The product may round up to the whole sum; the answer is then the last token that has any probability.
    return token.clamp(max=(cumulative < cumulative[:, -1:]).sum(dim=-1))


class Sampler:
    """Draws completions from a model.

    Args:
        model: transformers model with a language-model head (not wrapped by accelerate).
        tokenizer: its tokenizer.
        eos: every id that ends a completion.
        suppressed: ids that are never drawn.
        temperature: of the sampling distribution; recorded log-probabilities and entropies include it.
        max_completion_length: tokens after which a completion is cut.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        eos: list[int],
        suppressed: list[int],
        temperature: float = 1.0,
        max_completion_length: int = 256,
    ):
        self.model, self.tokenizer = model, tokenizer
        self.head = Head(model, suppressed).to(model.device)
        self.eos = torch.tensor(eos, device=model.device)
        self.temperature, self.max_completion_length = temperature, max_completion_length
        #: Tokens that went through the model so far: prompts with their padding, and all that was decoded.
        self.tokens_computed = 0

    @torch.no_grad()
    def prefill(self, prompts: Prompts, rows: list[int] | None = None, keep_all: bool = False) -> State:
        """Compute prompts, and their images, once each.

        Args:
            prompts: P prompts.
            rows: which of them; default all.
            keep_all: keep keys and values that have left the window of sliding layers, so that the state can be
                taken up again at an earlier token.
        """
        batch = prompts.batch(range(len(prompts)) if rows is None else rows, self.model.device)
        inputs, position = prefill_inputs(self.model, batch)
        config = None if keep_all else without_adapter(self.model).config.get_text_config()
        cache = DynamicCache(config=config)
        self.tokens_computed += batch["input_ids"].numel()
        hidden = backbone(self.model)(**inputs, past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
        return State(cache, batch["attention_mask"], position, self.head(hidden))

    @torch.no_grad()
    def decode(
        self,
        state: State,
        uniform: Tensor,
        temperature: float | None = None,
        limits: Tensor | None = None,
        keep: bool = False,
    ) -> Draw:
        """Continue every row until an EOS or until its random numbers are used up.

        Args:
            state: n prefixes; consumed.
            uniform: float64 [n, T], a random number for each token that may be drawn.
            temperature: default: the sampler's; 0 is greedy (log-probabilities are then those at temperature 1).
            limits: long [n], from 1 to T, the most tokens of each row; default T for all.
            keep: return the state after the last token of the rows that did not finish (without `limits` only).
        """
        n, limit = uniform.shape
        device = state.logits.device
        uniform = uniform.to(device)
        limits = torch.full((n,), limit, device=device) if limits is None else limits.to(device)
        temperature = self.temperature if temperature is None else temperature
        ids = torch.zeros((n, limit), dtype=torch.long, device=device)
        logprobs, entropy = (torch.zeros((n, limit), device=device) for _ in range(2))
        lengths = torch.zeros(n, dtype=torch.long, device=device)
        finished = torch.zeros(n, dtype=torch.bool, device=device)
        rows = torch.arange(n, device=device)  # which output row each row of the state belongs to
        live = torch.ones(n, dtype=torch.bool, device=device)
        computed = 0
        network = backbone(self.model)
        for t in range(limit):
            token = choose(state.logits, uniform[rows, t], temperature)
            logprob, spread = gather(state.logits, token, temperature or 1.0)
            at = rows[live]
            ids[at, t], logprobs[at, t], entropy[at, t] = token[live], logprob[live], spread[live]
            lengths[at] = t + 1
            ended = torch.isin(token, self.eos)
            finished[rows[live & ended]] = True
            live = live & ~ended & ((t + 1 < limits[rows]) | keep)
            alive, last = int(live.sum()), t + 1 == limit
            if alive == 0 or (last and not keep):
                break
            if alive <= (1 - COMPACT_SHARE) * len(rows) or (last and alive < len(rows)):
                kept = live.nonzero()[:, 0]
                state, rows, token, live = state.pick(kept), rows[kept], token[kept], live[kept]
            mask = torch.cat([state.attention_mask, state.attention_mask.new_ones(len(rows), 1)], dim=1)
            inputs = decode_inputs(token[:, None], mask, state.position)
            hidden = network(**inputs, past_key_values=state.cache, use_cache=True).last_hidden_state[:, -1]
            computed += len(rows)
            state = State(state.cache, mask, state.position + 1, self.head(hidden))
        width = int(lengths.max())
        self.tokens_computed += computed
        kept = state if keep and alive else None
        return Draw(ids[:, :width], lengths, finished, logprobs[:, :width], entropy[:, :width], computed, kept)

    def groups(
        self,
        prompts: Prompts,
        num_generations: int,
        stream: tuple[int, ...],
        first: int = 0,
        temperature: float | None = None,
    ) -> Rollouts:
        """`num_generations` completions of every prompt; rows of one prompt are neighbours.

        Args:
            prompts: P prompts.
            num_generations: G.
            stream: name of the random stream, such as (seed, step).
            first: number of the first prompt within the step, over all processes.
            temperature: see `decode`.
        """
        device = self.model.device
        group = torch.arange(len(prompts), device=device).repeat_interleave(num_generations)
        streams = [
            noise(self.max_completion_length, *stream, first + p, g)
            for p in range(len(prompts))
            for g in range(num_generations)
        ]
        state = self.prefill(prompts)
        draw = self.decode(state.pick(group), torch.from_numpy(np.stack(streams)), temperature)
        return self.rollouts(draw, group)

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
            texts=["".join(row) for row in pieces],
            pieces=pieces,
        )


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
