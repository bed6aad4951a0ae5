"""The engine that a run samples with: in this process, or a vLLM server beside it, found or started, checked, kept
up to date, and ended."""

from __future__ import annotations

import atexit
import json
import logging
import os
import secrets
import shlex
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from shutil import rmtree
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from segpo_core.config import TrainConfig
from segpo_core.policy.agreement import TEXT
from segpo_core.policy.inputs import Prompts
from segpo_core.policy.load import (
    eos_token_ids,
    find_model,
    get_tokenizer,
    load_model,
    suppressed_token_ids,
)
from segpo_core.sampling.generate import InProcess
from segpo_core.sampling.sampler import Sampler
from segpo_core.sampling.server import EngineError, Refused, Server
from segpo_core.sampling.truncation import Truncation
from segpo_core.sampling.vllm import VLLM
from segpo_core.training.together import all_or_none, everyone
from segpo_core.training.update import Learner

log = logging.getLogger(__name__)

#: What the server must be told to do what is asked of it here.
FLAGS = ("--logprobs-mode", "processed_logprobs", "--enable-scale-out", "--enable-prompt-tokens-details")
SETTINGS = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
#: Mean difference in nats between the engine's log-probabilities and ours: worth a word, and another model.
WORTH_A_WORD, ANOTHER_MODEL = 0.05, 0.5


class Engine:
    """What a run samples with.

    Args:
        config, learner, processor: the run's.
        directory: of the run; weights for a server pass through a folder in it, and a server that is started here logs
            there.
        rank, world: of this process.
        given: the model was handed over as an object, so that no folder holds it.

    Raises:
        EngineError: no server answers, or it cannot do what the run needs. Nothing was sampled.
        ValueError: the run's model or settings and a server do not go together.
    """

    def __init__(
        self, config: TrainConfig, learner: Learner, processor: Any, directory: Path, rank: int, world: int, given: bool
    ):
        self.config, self.learner, self.rank = config, learner, rank
        self.process: subprocess.Popen | None = None
        self.version: int | None = None
        model = learner.network.model
        common = (eos_token_ids(model, processor), suppressed_token_ids(model, processor), config.temperature,
                  config.max_completion_length)  # fmt: skip
        self.sampler: Sampler
        if config.sampler == "process":
            self.sampler = InProcess(model, get_tokenizer(processor), *common, config.truncation)
            return
        self.folder = directory / "engine.tmp"  # a name that tells of nothing to keep, if the run is killed
        self.log = directory / "engine.log"
        self.tied = not config.use_peft and _tied(model)
        if config.vllm_python and given and config.use_peft:  # every process says so, or one waits for the others
            raise ValueError("a vLLM server starts from a folder: give model_name_or_path in place of a model object")
        if self.tied and model.config.get_text_config() is not model.config:
            raise ValueError(
                "a vision-language model with tied embeddings is not read again whole by a vLLM server: train an "
                "adapter (--use-peft)"
            )
        urls = config.vllm_servers
        try:
            if config.vllm_python:
                port = everyone([free_port()])[0]
                urls = [f"http://127.0.0.1:{port}"]
                # parts of them may lie in other processes, so all take part
                whole = None if config.use_peft else learner.weights(gathered=True)
                all_or_none(lambda: self._start(processor, port, given, whole) if rank == 0 else None)
            servers = [Server(url, config.vllm_server_timeout) for url in urls]
            mine, tag = rank % len(servers), everyone([f"segpo-{secrets.token_hex(4)}"])[0]
            all_or_none(lambda: self._check(servers[mine]))
            self.sampler = VLLM(
                servers, mine, get_tokenizer(processor), model.config, *common, learner.accelerator.device,
                self.folder if rank == 0 else None, tag, config.use_peft, config.truncation,
            )  # fmt: skip
        except BaseException:
            self.close()
            raise

    # --- its weights ----------------------------------------------------------------------------------------------

    def sync(self, version: int) -> None:
        """Sample with the weights as they are after `version` steps. Every process must call it.

        Raises:
            EngineError: a server could not be told.
        """
        if self.sampler.own_scores or version == self.version:
            return
        weights = self.learner.weights(gathered=True)  # parts of them may lie in other processes
        all_or_none(lambda: self.sampler.sync(lambda folder: self._write(folder, weights), version))
        self.version = version

    def _write(self, folder: Path, weights: dict[str, Tensor]) -> None:
        """The policy's weights as a model's folder, or as an adapter's."""
        policy = {name.removeprefix("model."): w for name, w in weights.items() if name.startswith("model.")}
        model = self.learner.network.model
        model.save_pretrained(folder, state_dict=policy, max_shard_size="1000GB" if self.tied else "50GB")
        if self.tied:
            untie(folder, model)

    @torch.no_grad()
    def compare(self, processor: Any) -> float:
        """Mean difference in nats between the engine's log-probabilities and ours, of a short text it goes on with.

        Raises:
            EngineError: it is that of another model.
        """
        if self.sampler.own_scores:
            return 0.0
        config, model = self.config, self.learner.network.model
        prompts = Prompts.build([{"prompt": TEXT, "images": []}] * 4, processor, model.config)

        def gap() -> float:
            self.sampler.truncation = Truncation()  # what it leaves out is no gap
            rollouts = self.sampler.groups(prompts, 1, (config.seed, 0))
            self.sampler.truncation = config.truncation
            self.learner.score_engine(rollouts, prompts, 0)
            assert rollouts.engine_logprobs is not None
            return float((rollouts.sampled_logprobs - rollouts.engine_logprobs)[rollouts.mask].abs().mean())

        found = all_or_none(gap)
        if not found <= ANOTHER_MODEL:
            raise EngineError(
                f"the vLLM server's log-probabilities and ours differ by {found:.2f} nats a token: it serves another "
                f"model than {config.model_name_or_path}, or was started without {' '.join(FLAGS[:2])}"
            )
        if found > WORTH_A_WORD:
            log.warning("the vLLM server's log-probabilities and ours differ by %.2f nats a token", found)
        return found

    # --- the server -----------------------------------------------------------------------------------------------

    def _check(self, server: Server) -> None:
        """What the server can do is asked before any work starts."""
        cards = server.get("/v1/models")["data"]
        room = next((card.get("max_model_len") for card in cards if card.get("parent") is None), None)
        if room is not None and room <= self.config.max_completion_length:
            raise EngineError(
                f"the vLLM server at {server.url} has room for {room} tokens, and max_completion_length alone is "
                f"{self.config.max_completion_length}: raise its --max-model-len"
            )
        try:
            server.post("/inference/v1/generate", {})
        except Refused as error:
            if " 403 " in str(error) or " 404 " in str(error):
                raise Refused(f"{error} (docs/engines.md has the whole command)") from None
        try:
            said = server.get("/server_info?config_format=json")["vllm_config"]["model_config"]["logprobs_mode"]
        except (Refused, KeyError, TypeError):
            said = None
        if said is None and not self.config.use_peft:
            raise EngineError(
                f"the vLLM server at {server.url} takes no weights: start it with VLLM_SERVER_DEV_MODE=1, or train an "
                "adapter (--use-peft)"
            )
        if said not in (None, "processed_logprobs"):
            raise EngineError(
                f"the vLLM server at {server.url} gives log-probabilities without the temperature ({said}): start it "
                f"with {' '.join(FLAGS[:2])}"
            )
        if self.tied and self.process is None and not self.config.vllm_python:
            raise ValueError(
                f"{self.config.model_name_or_path} ties its head to its embeddings, which a vLLM server does not read "
                "again: train an adapter (--use-peft), or let the run start the server (--vllm-python)"
            )

    def _start(self, processor: Any, port: int, given: bool, whole: dict[str, Tensor] | None) -> None:
        """Start a server of our own and wait until it answers. `whole`: the weights, where all are trained."""
        config = self.config
        source = find_model(config.model_name_or_path)
        ready = (Path(source) / "config.json").exists() or not Path(source).exists()
        if given or not ready or self.tied:
            base = self.folder / "base"
            if whole is None:
                load_model(source, config.dtype).save_pretrained(base)
            else:
                self._write(base, whole)
            processor.save_pretrained(base)
            source = str(base.resolve())
        words = command(config, source, port)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("w") as sink:  # a session of its own: Ctrl-C is for the training
            try:
                self.process = subprocess.Popen(
                    words, stdout=sink, stderr=sink, start_new_session=True, env=SETTINGS | dict(os.environ)
                )
            except OSError as error:
                raise EngineError(
                    f"vllm_python {words[0]!r} cannot be run ({error.strerror}): name the Python of an environment "
                    "that has vLLM, such as ~/vllm/bin/python"
                ) from error
        atexit.register(self.close)  # of a run that is made and never run
        server, until = Server(f"http://127.0.0.1:{port}", 10), time.monotonic() + config.vllm_server_timeout
        while not server.answers():
            if self.process.poll() is not None or time.monotonic() > until:
                ended = self.process.poll() is not None
                why = "ended" if ended else f"does not answer after {config.vllm_server_timeout:g} s"
                raise EngineError(f"the vLLM server that was started ({shlex.join(words)}) {why}: {self._last_words()}")
            time.sleep(0.5)

    def _last_words(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        told = next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "it said nothing")
        return f"{told[-500:]} ({self.log} has all of it)"

    def close(self) -> None:
        """End what was started, and forget what was on its way."""
        if self.config.sampler == "process":
            return
        sampler = getattr(self, "sampler", None)
        if sampler is not None and self.process is None:
            with suppress(EngineError):
                sampler.close()
        if self.process is not None:
            self.process.terminate()  # the server ends its workers
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None
            atexit.unregister(self.close)
        if self.rank == 0:
            rmtree(self.folder, ignore_errors=True)


def reachable(config: TrainConfig) -> None:
    """Ask whether the servers that a run names are there, before anything is loaded.

    Raises:
        EngineError: one is not.
    """
    if config.sampler == "process" or config.vllm_python:
        return
    for url in config.vllm_servers:
        if not Server(url, config.vllm_server_timeout).answers():
            environment = " ".join(f"{name}={value}" for name, value in SETTINGS.items())
            raise EngineError(
                f"no vLLM server answers at {url}: start one with `{environment} {shlex.join(command(config))}`, name "
                "another with --vllm-server-url, or let the run start it with --vllm-python (docs/engines.md)"
            )


def command(config: TrainConfig, model: str | None = None, port: int | None = None) -> list[str]:
    """The command line of a server for this run."""
    words = [config.vllm_python or "python", "-m", "vllm.entrypoints.openai.api_server", *FLAGS]
    words += ["--model", model or config.model_name_or_path, "--dtype", config.dtype, "--host", "127.0.0.1"]
    words += [] if port is None else ["--port", str(port)]
    words += ["--enable-lora", "--max-lora-rank", str(max(8, config.lora_r))] if config.use_peft else []
    return words + shlex.split(config.vllm_server_args)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _tied(model: nn.Module) -> bool:
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    return head is not None and head.weight is table.weight


def untie(folder: Path, model: nn.Module) -> None:
    """Give a saved language model a head of its own: vLLM reads weights again by name, and a tied head has none."""
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    name = next(n for n, p in model.named_parameters() if p is model.get_input_embeddings().weight)
    tensors["lm_head.weight"] = tensors[name].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}, indent=2))
