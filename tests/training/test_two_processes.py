"""Two processes that share a batch do what one process does with all of it. With real processes, joined by gloo."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import DistributedType
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch.testing import assert_close

from segpo_core.algos import GRPO
from segpo_core.cli import main
from segpo_core.config import from_dict
from segpo_core.record import store
from segpo_core.training import checkpoint, loop
from tests.fakes import families
from tests.fakes.forks import ROOT, ranks
from tests.training.test_loop import config_for

CONFIGS = ROOT / "configs" / "accelerate"

#: Flags of each method. Steps that look at the whole batch are among them.
METHODS = {
    "sapo": "--whiten --critic-learning-rate 1e-3 --eval-steps 2 --eval-size 1 --num-generations-eval 2".split(),
    "grpo": "--scale-rewards batch --loss-type seq-mean-token-mean --eval-steps 2 --eval-size 3".split(),
    "spo_tree": "--branch 2 2 --segment-tokens 3".split(),
}


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return families.llava(tmp_path_factory.mktemp("llava"))


def run(model: Path, out: Path, processes: int, *more: str, launcher: bool = False, **variables: str) -> None:
    """`segpo train`; a single process is this one, which has loaded everything."""
    command = [
        "train", "--model-name-or-path", str(model), "--output-dir", str(out),
        "--num-generations", "4", "--max-completion-length", "8", "--learning-rate", "1e-3", "--eval-steps", "0",
        "--reward-funcs", "tests.fakes.toy:lucky_text", "--cpu", *more,
    ]  # fmt: skip
    if processes == 1:
        assert main(command) == 0
        return
    if launcher:
        errors = launched(command, processes)
    else:
        said = out.with_name(f"{out.name}.said")
        said.unlink(missing_ok=True)
        started = ranks(command, processes, said, **variables)
        for process in started:
            process.join(200)
        codes = [process.exitcode for process in started]
        for process in started:
            process.kill()
        errors = said.read_text()
        assert codes == [0] * processes, errors
    assert errors.count("recorded in") == 1, "one process speaks"


def launched(command: list[str], processes: int) -> str:
    """The same by accelerate's launcher. Returns what was said."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / "cpu2.yaml"), "-m"]
    process = subprocess.Popen(
        [*launcher, "segpo_core.cli", *command], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        _, errors = process.communicate(timeout=200)
    except subprocess.TimeoutExpired:
        process.terminate()  # the launcher passes it on, and after a while kills
        _, errors = process.communicate(timeout=60)
        pytest.fail(f"{processes} processes did not end: {errors}")
    assert process.returncode == 0, errors
    return errors


def metrics(run: Path) -> dict[tuple[int, str], float]:
    rows = store.read_metrics(run).to_pylist()
    own = ("time/", "tokens_computed")  # the cost is a matter of batches
    return {(r["step"], r["name"]): r["value"] for r in rows if not r["name"].startswith(own)}


#: Kinds of files with tensors in a checkpoint.
KINDS = ("model", "adapter_model", "critic")


def tensors(path: Path, kind: str) -> dict[str, torch.Tensor]:
    """What a checkpoint holds of a kind, in however many files."""
    return {k: v for file in path.glob(f"{kind}*.safetensors") for k, v in load_file(file).items()}


def moments(path: Path) -> dict[tuple[int, str], torch.Tensor]:
    parts = [torch.load(file, weights_only=True)["state"] for file in path.glob("optimizer*.pt")]
    return {(n, k): v for part in parts for n, entry in part.items() for k, v in entry.items()}


def same(one: Path, two: Path) -> None:
    """The same rollouts, numbers and weights."""
    names = ["step", "group", "sample", "token_ids", "example_id", "reward", "segment_ids", "loss_mask", "advantages"]
    a, b = (
        store.read_rollouts(run, columns=names).sort_by([(n, "ascending") for n in names[:3]]).to_pydict()
        for run in (one, two)
    )
    assert {len(v) for v in a.values()} == {len(v) for v in b.values()} and set(b["step"]) == {1, 2}
    for name in names[:-1]:
        assert a[name] == b[name], name
    assert len(list((two / "rollouts").glob("*.rank1.parquet"))) == 2
    for x, y in zip(a["advantages"], b["advantages"], strict=True):
        assert x == pytest.approx(y, abs=1e-5)
    held_out = [
        store.read_eval(run, columns=names[:-3]).sort_by([(n, "ascending") for n in names[:3]]) for run in (one, two)
    ]
    assert held_out[0].equals(held_out[1])
    mine, theirs = metrics(two), metrics(one)
    assert mine.keys() == theirs.keys() and theirs[1, "grad_norm"] > 0
    for key, value in theirs.items():
        assert mine[key] == pytest.approx(value, abs=1e-5, rel=1e-4, nan_ok=True), key
    last = [checkpoint.latest(run / "checkpoints") for run in (one, two)]
    for kind in KINDS:
        a, b = (tensors(path, kind) for path in last)
        assert a.keys() == b.keys()
        for name, value in a.items():
            if not name.endswith("k_proj.bias"):  # moves no softmax: its gradient is rounding, which Adam blows up
                assert_close(b[name], value, atol=2e-5, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_two_processes_are_one(llava, tmp_path, method):
    for processes in (1, 2):
        size = ["--method", method, "--per-device-train-batch-size", str(8 // processes), "--max-steps", "2"]
        run(llava, tmp_path / str(processes), processes, *METHODS[method], *size, launcher=method == "sapo")
    same(tmp_path / "1", tmp_path / "2")
    parts = {len(list((tmp_path / "2" / "eval").glob(f"*.rank{rank}.parquet"))) for rank in (0, 1)}
    assert parts == {"sapo": {0, 2}, "grpo": {2}, "spo_tree": {0}}[method], "steps 0 and 2, of those who had a problem"


@pytest.mark.slow
def test_two_processes_go_on_from_a_checkpoint(llava, tmp_path):
    size = ["--method", "sapo", "--critic-learning-rate", "1e-3", "--per-device-train-batch-size", "4"]
    run(llava, tmp_path / "two", 2, *size, "--max-steps", "1")
    run(llava, tmp_path / "two", 2, *size, "--max-steps", "2", "--resume")
    run(llava, tmp_path / "one", 1, *size[:-1], "8", "--max-steps", "2")
    same(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sapo --critic-learning-rate 1e-3", "grpo --use-peft"])
def test_split_gradients_and_moments_change_nothing(llava, tmp_path, method):
    """FSDP2, over checkpoints, with two micro-batches an update: what one process does with all of it. Two processes
    write a checkpoint in parts, one goes on from it and writes it whole, and two go on from that."""
    size = ["--method", *method.split(), "--gradient-accumulation-steps", "2"]
    parts = ["--per-device-train-batch-size", "2"]
    run(llava, tmp_path / "two", 2, *size, *parts, "--max-steps", "1", ACCELERATE_USE_FSDP="true")
    saved = checkpoint.latest(tmp_path / "two" / "checkpoints")
    before = [tensors(saved, kind) for kind in KINDS] + [moments(saved)]
    files = {path.name for path in saved.iterdir()}
    if "--use-peft" not in method:  # an adapter is small, and one process writes it
        assert {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json",
                "optimizer-00001-of-00002.pt", "optimizer-00002-of-00002.pt"} <= files  # fmt: skip
        sizes = [sum(v.numel() for v in load_file(f).values()) for f in sorted(saved.glob("model-*"))]
        assert max(sizes) < 0.8 * sum(sizes), "each process holds its part only"
    config = from_dict(store.read_manifest(tmp_path / "two")["config"] | {"resume": True})
    alone = loop.Trainer(config)
    assert alone.step == 1 and alone.save()
    alone.hold.release()
    after = [tensors(saved, kind) for kind in KINDS] + [moments(saved)]
    assert {path.name for path in saved.iterdir()} & {"model.safetensors", "adapter_model.safetensors"}
    for mine, theirs in zip(before, after, strict=True):
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)
    run(llava, tmp_path / "two", 2, *size, *parts, "--max-steps", "2", "--resume", ACCELERATE_USE_FSDP="true")
    run(llava, tmp_path / "one", 1, *size, "--per-device-train-batch-size", "4", "--max-steps", "2")
    same(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", ["false", "true"])
def test_bfloat16_learns_in_two_processes(llava, tmp_path, fsdp):
    """Over a checkpoint, at a rate below the resolution of bfloat16: float32 weights behind it, and they move."""
    size = ["--method", "sapo", "--dtype", "bfloat16", "--per-device-train-batch-size", "2"]
    size += ["--gradient-accumulation-steps", "2", "--learning-rate", "1e-6"]
    run(llava, tmp_path / "run", 2, *size, "--max-steps", "1", ACCELERATE_USE_FSDP=fsdp)
    run(llava, tmp_path / "run", 2, *size, "--max-steps", "2", "--resume", ACCELERATE_USE_FSDP=fsdp)
    first, last = (tensors(p, "model") for p in checkpoint.listed(tmp_path / "run" / "checkpoints"))
    assert {value.dtype for value in last.values()} == {torch.float32}
    moved = torch.cat([(last[name] != first[name]).flatten() for name in first])
    assert float(moved.float().mean()) > 0.5
    assert metrics(tmp_path / "run")[2, "sampling_logp_difference"] < 0.1


@pytest.mark.parametrize(
    ("name", "kind"),
    [("cpu2", DistributedType.MULTI_GPU), ("ddp", DistributedType.MULTI_GPU), ("fsdp2", DistributedType.FSDP)],
)
def test_launch_configs_are_what_accelerate_reads(name, kind):
    path = CONFIGS / f"{name}.yaml"
    config = load_config_from_file(str(path))
    assert config.distributed_type == kind and config.num_processes > 1
    assert config.use_cpu == (name == "cpu2")
    assert f"accelerate launch --config_file configs/accelerate/{name}.yaml" in path.read_text()


def test_ways_to_run_that_the_update_does_not_know_are_refused(llava, tmp_path, monkeypatch):
    monkeypatch.setattr(loop.Accelerator, "distributed_type", DistributedType.DEEPSPEED)
    with pytest.raises(ValueError, match=r"needs them whole.*fsdp2\.yaml"):
        loop.Trainer(config_for(llava, tmp_path / "run", GRPO()))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [("ACCELERATE_MIXED_PRECISION", "bf16", "mixed precision 'bf16'.*--dtype bfloat16"),
     ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "4 accumulated passes.*--gradient-accumulation-steps"),
     ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "sets ACCELERATE_DYNAMO_BACKEND=INDUCTOR, which is not followed"),
     ("FSDP_OFFLOAD_PARAMS", "true", "sets FSDP_OFFLOAD_PARAMS=true, which is not followed here.*LoRA")],
)  # fmt: skip
def test_what_a_launcher_sets_is_not_followed_by_half(llava, tmp_path, monkeypatch, variable, value, words):
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv(variable, value)
    try:
        with pytest.raises(ValueError, match=words):
            loop.Trainer(config_for(llava, tmp_path / "run", GRPO()))
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert not (tmp_path / "run").exists()
