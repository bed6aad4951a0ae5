"""The sampler in this process. A prompt and its images are computed once; every continuation shares that prefix.

`prefill` computes prompts, `State.pick` branches them, `decode` continues every row to its own end. Rows that are alike
so far share one node, which is computed once: they part at the first token that they draw differently, and only then is
a row of the cache copied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from segpo_core.policy.inputs import Prompts, decode_inputs, prefill_inputs
from segpo_core.policy.logprobs import Head, backbone, continued, gather, without_adapter
from segpo_core.sampling.plain import step_of
from segpo_core.sampling.roomy import arrange, branch, select_rows, with_room
from segpo_core.sampling.sampler import Draw, Name, Sampler, noise
from segpo_core.sampling.truncation import Truncation
from segpo_core.types import pad_rows

#: Logits of past steps that are held until what they say of the drawn tokens is computed, all at once (4 MB).
MAX_WAITING = 2**20


@dataclass
class State:
    """n prefixes, ready to be continued, of which u differ: the nodes."""

    cache: DynamicCache  #: of the u nodes
    attention_mask: Tensor  #: long [u, S]
    position: Tensor  #: long [u], position of the next token
    logits: Tensor  #: float32 [u, V], of the next token
    node: np.ndarray  #: long [n], the node of each row
    whole: Tensor | None = None  #: float32 [u, V], logits before tokens were forbidden

    def pick(self, rows: Tensor) -> State:
        """The given rows (long [m]), repeats allowed. Consumes this state."""
        return replace(self, node=self.node[rows.cpu().numpy()])

    def apart(self) -> State:
        """The same, with a node for each row, in order."""
        own = np.arange(len(self.node))
        if len(own) != len(self.logits) or (own != self.node).any():
            rows, self.node = torch.from_numpy(self.node).to(self.logits.device), own
            select_rows(self.cache, rows)
            self.attention_mask, self.position = self.attention_mask[rows], self.position[rows]
            self.logits = self.logits[rows]
            self.whole = None if self.whole is None else self.whole[rows]
        return self

    def forbid(self, rows: Tensor, tokens: Tensor) -> None:
        """The next token of `rows[k]` is not `tokens[k]`, both long [K]."""
        self.apart()
        self.whole = self.logits.clone() if self.whole is None else self.whole
        self.logits[rows, tokens] = torch.finfo(torch.float32).min / 4


@dataclass
class Prefixes:
    """B completions after their prompts of at most L tokens, computed once; each prefix can be continued."""

    cache: DynamicCache  #: keys and values of L prompt slots (left-padded), then of T tokens
    attention_mask: Tensor  #: long [B, L + T]
    position: Tensor  #: long [B], position of the first token
    logits: Tensor  #: float32 [B, V], of the first token
    hidden: Tensor  #: [B, T, H], after each token
    head: Callable[[Tensor], Tensor]

    def at(self, rows: Tensor, lengths: Tensor) -> State:
        """The prefixes of `lengths` tokens (long [n], 0: the prompt) of the completions `rows` (long [n]).

        Keys and values are moved so that each prefix ends in the last slot: what follows is then next to it, as
        layers with a sliding window need it. Their positions are in the keys already.
        """
        prompt = self.attention_mask.shape[1] - self.hidden.shape[1]
        width = prompt + int(lengths.max())
        slot = torch.arange(width, device=rows.device) - (width - prompt - lengths)[:, None]
        real, slot = slot >= 0, slot.clamp(min=0)
        cache = DynamicCache()
        for number, layer in enumerate(self.cache.layers):
            # Two indices with a slice between them: [n, S] comes first, heads after it.
            keys, values = (x[rows[:, None], :, slot].transpose(1, 2) for x in (layer.keys, layer.values))
            cache.update(keys, values, number)
        after = self.head(self.hidden[rows, (lengths - 1).clamp(min=0)])
        return State(
            cache,
            torch.where(real, self.attention_mask[rows[:, None], slot], 0),
            self.position[rows] + lengths,
            torch.where(lengths[:, None] > 0, after, self.logits[rows]),
            np.arange(len(rows)),
        )


def choose(logits: Tensor, uniform: Tensor, temperature: float, node: Tensor | None = None) -> Tensor:
    """One token a row by inverting the distribution function: long [n].

    Args:
        logits: float32 [u, V].
        uniform: float64 [n], in [0, 1).
        temperature: 0 takes the most likely token.
        node: long [n], which of the u distributions each row draws from; default its own.
    """
    if node is None:
        node = torch.arange(len(logits), device=logits.device)
    if temperature == 0:
        return logits.argmax(dim=-1)[node]
    # In double precision: float32 sums over a large vocabulary would give rare tokens a wrong share. A token of
    # probability 0 never raises the sum, so it is never the first to pass the threshold.
    scaled = logits.double() if temperature == 1 else logits.double() / temperature
    cumulative = scaled.softmax(dim=-1).cumsum(dim=-1)[node]
    total = cumulative[:, -1]
    # The product may round up to the whole sum; the answer is then the last token that has any probability.
    sought = torch.minimum(uniform * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cumulative, sought[:, None], right=True)[:, 0]


def _said(waiting: list[tuple[Tensor, Tensor, Tensor]], temperature: float) -> tuple[Tensor, Tensor]:
    """`gather` for some steps at once, each (logits [u, V], token [n], node [n])."""
    logits, token, node = zip(*waiting, strict=True)
    before = np.cumsum([0, *(len(part) for part in logits[:-1])]).tolist()
    rows = torch.cat([part + start for part, start in zip(node, before, strict=True)])
    return gather(torch.cat(logits), torch.cat(token), temperature, rows)


def check_continuable(model: nn.Module) -> None:
    """Refuse models that cannot go on from the middle of a completion.

    Raises:
        ValueError: the model's memory of a prefix is a running state that holds no single tokens.
    """
    inner = without_adapter(model)
    kinds = {type(layer) for layer in DynamicCache(config=inner.config.get_text_config()).layers}
    if not kinds <= {DynamicLayer, DynamicSlidingWindowLayer}:
        raise ValueError(
            f"{type(inner).__name__} keeps no keys and values of single tokens in some layers, so it cannot go on from "
            "the middle of a completion: choose a method that samples no continuations, such as grpo, sapo or spo_tree"
        )


class InProcess(Sampler):
    """Draws completions from a model of this process, with transformers.

    Args:
        model: transformers model with a language-model head (not wrapped by accelerate).
        tokenizer: its tokenizer.
        eos: every id that ends a completion.
        suppressed: ids that are never drawn.
        temperature: of the sampling distribution; recorded log-probabilities and entropies include it.
        max_completion_length: tokens after which a completion is cut.
        truncation: what may be drawn; recorded log-probabilities and entropies are those of the whole distribution.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        eos: list[int],
        suppressed: list[int],
        temperature: float = 1.0,
        max_completion_length: int = 256,
        truncation: Truncation | None = None,
    ):
        self.truncation = truncation or Truncation()
        self.model, self.tokenizer = model, tokenizer
        self.head = Head(model, suppressed).to(model.device)
        self.eos = torch.tensor(eos, device=model.device)
        self.temperature, self.max_completion_length = temperature, max_completion_length
        self.device, self.config, self.own_scores = model.device, model.config, True
        #: Tokens that went through the model so far: prompts with their padding, and all that was decoded, row by row.
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
        hidden = continued(backbone(self.model), inputs, cache)[:, -1]
        return State(cache, batch["attention_mask"], position, self.head(hidden), np.arange(len(hidden)))

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
        until = np.full(n, limit) if limits is None else limits.cpu().numpy()
        temperature = self.temperature if temperature is None else temperature
        cutting = bool(self.truncation) and temperature > 0
        lengths, finished = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=bool)
        rows = np.arange(n)  # which output row each row of the state belongs to
        ends = np.isin(np.arange(state.logits.shape[1]), self.eos.cpu().numpy())
        state, found, computed, live = replace(state, cache=with_room(state.cache)), [], 0, rows >= 0
        waiting, said = [], []  # of several steps together: a small model's step is mostly the start of small kernels
        step = step_of(self.model, state.cache)
        for t in range(limit):
            at, node = (torch.from_numpy(x).to(device) for x in (rows, state.node))
            if cutting:
                left = self._left(state, temperature)
                token = choose(left, uniform[at, t], 1.0, node)
                drawn_with = (left.log_softmax(dim=-1)[node, token].float(),)
            else:
                token, drawn_with = choose(state.logits, uniform[at, t], temperature, node), ()
            found.append((at, token, *drawn_with))
            waiting.append((state.logits, token, node))
            if sum(part[0].numel() for part in waiting) > MAX_WAITING:
                said.append(_said(waiting, temperature or 1.0))
                waiting = []
            lengths[rows] = t + 1
            drawn = token.cpu().numpy()
            ended = ends[drawn]
            finished[rows[ended]] = True
            live = ~ended & ((t + 1 < until[rows]) | keep)
            if not live.any() or (t + 1 == limit and not keep):
                break
            rows = rows[live]
            source, drawn, nodes = branch(state.node[live], drawn[live], state.logits.shape[1])
            mask, position = state.attention_mask, state.position
            if len(source) != len(position) or (source != np.arange(len(source))).any():
                arrange(state.cache, source, device)
                origin = torch.from_numpy(source).to(device)
                mask, position = mask[origin], position[origin]
            mask = pad(mask, (0, 1), value=1)
            logits = self.head(step(torch.from_numpy(drawn).to(device), mask, position, state.cache))
            state = State(state.cache, mask, position + 1, logits, nodes)
            computed += len(rows)
        self.tokens_computed += computed
        # Every step's rows to their places, all at once: [n, T] of token, log-probability, entropy (and what is left).
        said += [_said(waiting, temperature or 1.0)] if waiting else []
        row, token, *drawn_with = (torch.cat(column) for column in zip(*found, strict=True))
        values = [token, *(torch.cat(column) for column in zip(*said, strict=True)), *drawn_with]
        number = torch.arange(len(found), device=device)
        column = number.repeat_interleave(torch.tensor([len(part[0]) for part in found], device=device))
        ids, logprobs, entropy, *left = (x.new_zeros(n, len(found)).index_put((row, column), x) for x in values)
        long, over = (torch.from_numpy(x).to(device) for x in (lengths, finished))
        on = state if keep and live.any() else None
        return Draw(ids, long, over, logprobs, entropy, computed, on, *left)

    def _left(self, state: State, temperature: float) -> Tensor:
        """float64 [u, V]: logits over the temperature, −inf where the truncation leaves a token out. What is forbidden
        counts there, so that the rest is drawn in its own proportions."""
        whole = state.logits if state.whole is None else state.whole
        left_out = self.truncation.left_out(whole.double() / temperature)
        return (state.logits.double() / temperature).masked_fill(left_out, -torch.inf)

    @torch.no_grad()
    def prefixes(self, prompts: Prompts, ids: Tensor, mask: Tensor, group: Tensor) -> Prefixes:
        """One pass over the prompts (images once a prompt), then one over the completions. Arguments as `Sampler`'s.

        Raises:
            ValueError: the model cannot be taken up in the middle; see `check_continuable`.
        """
        check_continuable(self.model)
        some, row = group.unique(return_inverse=True)
        state = self.prefill(prompts, some.tolist(), keep_all=True).pick(row).apart()
        attended = torch.cat([state.attention_mask, mask.to(state.attention_mask)], dim=1)
        inputs = decode_inputs(ids, attended, state.position)
        hidden = continued(backbone(self.model), inputs, state.cache)
        self.tokens_computed += ids.numel()
        return Prefixes(state.cache, attended, state.position, state.logits, hidden, self.head)

    def continue_from(
        self,
        prefix: State,
        names: Sequence[Name],
        limits: Sequence[int],
        temperature: float | None = None,
        keep: bool = False,
    ) -> Draw:
        streams = [torch.from_numpy(noise(limit, *name)) for name, limit in zip(names, limits, strict=True)]
        same = min(limits) == max(limits)
        return self.decode(prefix, pad_rows(streams), temperature, None if same else torch.tensor(limits), keep)

    def sync(self, write: Callable[[Path], None], version: int) -> None:
        """Nothing: the weights are the network's own."""
