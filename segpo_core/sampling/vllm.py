"""Sampling with a vLLM server beside the training: token ids in, token ids out, over /inference/v1/generate.

A prefix is its tokens; the server's prefix cache computes what prefixes share once. Each continuation is one request
with a seed of its own, made from its stream's name. What the server says of its tokens' probabilities is kept apart
from what the network that learns says (see `Rollouts.engine_logprobs`).
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedConfig

from segpo_core.policy.inputs import Prompts
from segpo_core.sampling.sampler import Draw, Name, Sampler
from segpo_core.sampling.server import EngineError, Refused, Server
from segpo_core.sampling.truncation import Truncation
from segpo_core.types import pad_rows

#: Requests that are under way at once; the server queues what it has no room for.
REQUESTS = 128
#: Added to the logit of a token that may not be drawn: its probability is 0 in float32.
NEVER = -1e9


@dataclass
class Tokens:
    """n prefixes as tokens."""

    prompts: Prompts
    group: list[int]  #: row of the prompt
    begun: list[list[int]]  #: tokens of the completion so far
    forbidden: list[list[int]]  #: tokens that the continuation may not begin with

    def pick(self, rows: Tensor) -> Tokens:
        index = rows.tolist()
        columns = (self.group, self.begun, self.forbidden)
        group, begun, forbidden = ([column[i] for i in index] for column in columns)
        return Tokens(self.prompts, group, begun, forbidden)

    def forbid(self, rows: Tensor, tokens: Tensor) -> None:
        for row, token in zip(rows.tolist(), tokens.tolist(), strict=True):
            self.forbidden[row] = [*self.forbidden[row], token]


@dataclass
class Completions:
    """Completions whose beginnings can be continued."""

    prompts: Prompts
    group: list[int]
    ids: list[list[int]]

    def at(self, rows: Tensor, lengths: Tensor) -> Tokens:
        where = list(zip(rows.tolist(), lengths.tolist(), strict=True))
        begun = [self.ids[b][:t] for b, t in where]
        return Tokens(self.prompts, [self.group[b] for b, _ in where], begun, [[] for _ in where])


@dataclass
class Prompt:
    """A prompt as it goes to the server."""

    ids: list[int]  #: as the network reads it
    sent: list[int]  #: the same with one image token an image
    images: list[dict[str, str]]


@dataclass(frozen=True)
class Wanted:
    """One continuation, before it is drawn."""

    prompt: Prompt
    begun: list[int]  #: tokens of the completion so far
    forbidden: list[int]  #: tokens that it may not begin with
    name: Name  #: its random stream
    limit: int
    temperature: float


@dataclass
class Reply:
    """One continuation."""

    ids: list[int]
    logprobs: list[float]
    computed: int


class VLLM(Sampler):
    """Draws completions from a vLLM server.

    Args:
        servers: all that are told of new weights.
        mine: which of them this process samples with.
        tokenizer, config: of the model.
        eos: every id that ends a completion.
        suppressed: ids that are never drawn.
        temperature, max_completion_length: as `Sampler`'s.
        device: where rollouts lie.
        folder: where weights are put for the servers to read, if this process is the one that tells them; else None.
        tag: name of the run among the adapters of a server.
        adapter: weights are those of a LoRA adapter.
        truncation: what may be drawn; what the server says of probabilities is then that of what is left.
    """

    own_scores = False

    def __init__(
        self,
        servers: Sequence[Server],
        mine: int,
        tokenizer: Any,
        config: PreTrainedConfig,
        eos: list[int],
        suppressed: list[int],
        temperature: float,
        max_completion_length: int,
        device: torch.device,
        folder: Path | None,
        tag: str,
        adapter: bool,
        truncation: Truncation | None = None,
    ):
        self.truncation = truncation or Truncation()
        self.servers, self.server = list(servers), servers[mine]
        self.tokenizer, self.config, self.device = tokenizer, config, device
        self.eos, self.suppressed = sorted(eos), list(suppressed)
        self.temperature, self.max_completion_length = temperature, max_completion_length
        self.folder, self.tag, self.adapter = folder, tag, adapter
        self.tokens_computed = 0
        self.model = self.base = base_model(self.server)
        self.version: int | None = None

    def prefill(self, prompts: Prompts, rows: list[int] | None = None) -> Tokens:
        chosen = list(range(len(prompts))) if rows is None else rows
        return Tokens(prompts, chosen, [[] for _ in chosen], [[] for _ in chosen])

    def prefixes(self, prompts: Prompts, ids: Tensor, mask: Tensor, group: Tensor) -> Completions:
        lengths = mask.sum(dim=1).tolist()
        return Completions(prompts, group.tolist(), [row[:n] for row, n in zip(ids.tolist(), lengths, strict=True)])

    def continue_from(
        self,
        prefix: Tokens,
        names: Sequence[Name],
        limits: Sequence[int],
        temperature: float | None = None,
        keep: bool = False,
    ) -> Draw:
        temperature = self.temperature if temperature is None else temperature
        inputs = {g: self._inputs(prefix.prompts, g) for g in sorted(set(prefix.group))}

        def one(i: int) -> Reply:
            prompt, begun, forbidden = inputs[prefix.group[i]], prefix.begun[i], prefix.forbidden[i]
            return self._continued(Wanted(prompt, begun, forbidden, names[i], limits[i], temperature))

        with ThreadPoolExecutor(max_workers=min(REQUESTS, len(names))) as pool:
            replies = list(pool.map(one, range(len(names))))
        ids = [torch.tensor(reply.ids, device=self.device) for reply in replies]
        logprobs = pad_rows([torch.tensor(reply.logprobs, device=self.device) for reply in replies])
        lengths = torch.tensor([len(reply.ids) for reply in replies], device=self.device)
        finished = [reply.ids[-1] in self.eos for reply in replies]
        computed = sum(reply.computed for reply in replies)
        self.tokens_computed += computed
        state = None
        if keep and not all(finished):
            on = [i for i, ended in enumerate(finished) if not ended]
            begun = [[*prefix.begun[i], *replies[i].ids] for i in on]
            state = Tokens(prefix.prompts, [prefix.group[i] for i in on], begun, [[] for _ in on])
        ended = torch.tensor(finished, device=self.device)
        return Draw(pad_rows(ids), lengths, ended, logprobs, torch.full_like(logprobs, math.nan), computed, state)

    def sync(self, write: Callable[[Path], None], version: int) -> None:
        """Weights go by way of a folder that the servers can read: an adapter is loaded under a new name, so that
        nothing cached by the old one is used; whole weights are read again in place, and the cache is emptied."""
        if version == self.version:
            return
        name = f"{self.tag}-{version}"
        if self.folder is not None:
            target = self.folder / name
            rmtree(target, ignore_errors=True)
            write(target)
            for server in self.servers:
                self._load(server, name, target.resolve())
            # A server that runs share loads an adapter again when another run's has taken its place.
            rmtree(self.folder / f"{self.tag}-{self.version}" if self.adapter else target, ignore_errors=True)
        self.model, self.version = (name if self.adapter else self.base), version

    def _load(self, server: Server, name: str, target: Path) -> None:
        if not self.adapter:
            server.post("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(target)}})
            server.post("/reset_prefix_cache", {})
            return
        try:
            server.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(target)})
        except Refused as error:
            if "already been loaded" not in str(error):  # an answer may be lost on its way
                raise
        if self.version is not None:
            self._unload(server)

    def _unload(self, server: Server) -> None:
        try:
            server.post("/v1/unload_lora_adapter", {"lora_name": f"{self.tag}-{self.version}"})
        except Refused:
            pass  # it was gone already

    def close(self) -> None:
        """Take the run's adapter off the servers that still answer."""
        if self.adapter and self.folder is not None and self.version is not None:
            for server in self.servers:
                if server.answers():
                    self._unload(server)

    # --- one continuation ---------------------------------------------------------------------------------------

    def _continued(self, wanted: Wanted) -> Reply:
        """What forbids a first token forbids it later too, so a first token under a ban is a request of its own."""
        name, limit = wanted.name, wanted.limit
        if not wanted.forbidden:
            return self._generate(replace(wanted, name=(*name, 0)))
        if self.truncation:  # the server would forbid first, and then cut what is left
            raise ValueError(
                f"a vLLM server cannot leave out tokens of what {self.truncation} leaves: sample in process, or set "
                "top_p to 1, top_k to 0 and min_p to none"
            )
        first = self._generate(replace(wanted, name=(*name, 1), limit=1))
        if limit == 1 or first.ids[-1] in self.eos:
            return first
        begun = [*wanted.begun, *first.ids]
        rest = self._generate(replace(wanted, begun=begun, forbidden=[], name=(*name, 0), limit=limit - 1))
        return Reply(first.ids + rest.ids, first.logprobs + rest.logprobs, first.computed + rest.computed)

    def _generate(self, wanted: Wanted) -> Reply:
        """One request."""
        prompt, begun, limit = wanted.prompt, wanted.begun, wanted.limit
        seed = int(np.random.SeedSequence(wanted.name).generate_state(1, np.uint64)[0] >> np.uint64(2))
        sampling = {
            "max_tokens": limit, "temperature": wanted.temperature, "seed": seed, "logprobs": 0, "detokenize": False,
            # ours say what ends a completion, and the server's own are not asked
            "ignore_eos": True, "stop_token_ids": self.eos,
            "logit_bias": {str(token): NEVER for token in [*self.suppressed, *wanted.forbidden]},
        }  # fmt: skip
        if self.truncation and wanted.temperature > 0:
            cut = self.truncation
            sampling |= {"top_p": cut.top_p, "top_k": cut.top_k, "min_p": cut.min_p or 0.0}
        body: dict[str, Any] = {"model": self.model, "token_ids": prompt.sent + begun, "sampling_params": sampling}
        if prompt.images:
            body |= {"content_parts": prompt.images, "return_token_ids": True}
        said = self.server.post("/inference/v1/generate", body)
        reply = self._read(said, limit)
        if prompt.images and said.get("prompt_token_ids") != prompt.ids + begun:
            raise EngineError(
                f"the vLLM server at {self.server.url} reads a prompt with images as other tokens than the network "
                "does: its image processor has other settings; leave sampler at 'process'"
            )
        return reply

    def _read(self, said: Any, limit: int) -> Reply:
        """An answer, if it is one."""
        try:
            (choice,) = said["choices"]
            ids, content = choice["token_ids"], choice["logprobs"]["content"]
            logprobs = [float(token["logprob"]) for token in content]
            usage = said["usage"]
            cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
            computed = int(usage["prompt_tokens"]) - int(cached) + int(usage["completion_tokens"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise EngineError(f"the vLLM server at {self.server.url} answers no tokens: {str(said)[:300]}") from error
        whole = 0 < len(ids) <= limit and len(logprobs) == len(ids)
        if not whole or (len(ids) < limit and ids[-1] not in self.eos) or set(ids[:-1]) & set(self.eos):
            raise EngineError(
                f"the vLLM server at {self.server.url} broke off a completion ({choice.get('finish_reason')!r} after "
                f"{len(ids)} of {limit} tokens)"
            )
        return Reply([int(i) for i in ids], logprobs, computed)

    # --- prompts ------------------------------------------------------------------------------------------------

    def _inputs(self, prompts: Prompts, row: int) -> Prompt:
        """A prompt's tokens as the server takes them, and its images."""
        ids = prompts.rows[row]["input_ids"][0].tolist()
        images = prompts.images[row] if prompts.images else ()
        if not images:
            return Prompt(ids, ids, [])
        sent = folded(ids, self.image_token, len(images))
        return Prompt(ids, sent, [image_part(image) for image in images])

    @property
    def image_token(self) -> int:
        for name in ("image_token_id", "image_token_index"):
            token = getattr(self.config, name, None)
            if isinstance(token, int):
                return token
        raise ValueError(
            f"{type(self.config).__name__} names no image token, so its prompts cannot be handed to a vLLM server: "
            "leave sampler at 'process'"
        )


def folded(ids: list[int], image_token: int, images: int) -> list[int]:
    """A prompt with one image token an image, which is what vLLM expands again. A run of image tokens is one image, or,
    where images stand side by side, as many as its length says if all have the same.

    Raises:
        ValueError: neither fits.
    """
    runs = [(token, sum(1 for _ in run)) for token, run in groupby(ids)]
    lengths = [number for token, number in runs if token == image_token]
    if len(lengths) == images:
        return [token for token, number in runs for _ in range(1 if token == image_token else number)]
    each = sum(lengths) // images
    if each == 0 or any(number % each for number in lengths) or sum(lengths) != each * images:
        raise ValueError(
            f"a prompt holds {len(lengths)} runs of image tokens for {images} images: such a model's prompts cannot be "
            "handed to a vLLM server; leave sampler at 'process'"
        )
    return [token for token, number in runs for _ in range(number // each if token == image_token else number)]


def image_part(image: Any) -> dict[str, str]:
    """An image as vLLM takes it, PNG within the request."""
    sink = io.BytesIO()
    image.save(sink, format="PNG")
    return {"type": "image_url", "url": f"data:image/png;base64,{base64.b64encode(sink.getvalue()).decode()}"}


def base_model(server: Server) -> str:
    """The name under which the server knows its model.

    Raises:
        EngineError: it serves none.
    """
    for card in server.get("/v1/models")["data"]:
        if card.get("parent") is None:
            return str(card["id"])
    raise EngineError(f"the vLLM server at {server.url} serves no model")
