"""Lines about whole training steps of the embedded policy: of each method against GRPO's, of GRPO against TRL's, with
recording against without."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench_speed import Line

from segpo_core.config import from_dict
from segpo_core.policy.load import load_model, load_processor
from segpo_core.tasks import load_task
from segpo_core.training.loop import Trainer

MODEL = Path(__file__).parents[2] / "data" / "tiny-vlm"
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
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer
    except ImportError as missing:
        print(f"TRL is not measured: {missing}", file=sys.stderr)
        return

    size = small_steps(small)
    number, batch = (1, 16) if small else (3, 64)
    task = load_task("shapes")
    examples = [task.train(i) for i in range(batch // 8 * number)]
    data = Dataset.from_list([{k: example[k] for k in ("prompt", "images")} for example in examples])

    def reward(prompts: list, completions: list, **columns: Any) -> list[float]:
        texts = [c[0]["content"] if isinstance(c, list) else c for c in completions]
        return [float("<answer>" in text) * (len(text) % 2) for text in texts]

    processor = load_processor(MODEL)
    processor.tokenizer.padding_side = "left"
    config = GRPOConfig(
        output_dir=str(folder / "trl"), num_generations=8, per_device_train_batch_size=batch,
        gradient_accumulation_steps=1, max_completion_length=size.get("max_completion_length", 96), beta=0.0,
        learning_rate=RATE, lr_scheduler_type="constant", max_steps=number, bf16=False, use_cpu=True, report_to="none",
        save_strategy="no", logging_steps=1000, disable_tqdm=True, shuffle_dataset=False, loss_type="dapo",
        gradient_checkpointing=False, temperature=1.0, top_k=0, top_p=1.0,
    )  # fmt: skip
    theirs = GRPOTrainer(
        model=load_model(MODEL), reward_funcs=reward, args=config, train_dataset=data, processing_class=processor
    )
    ours = trainer(folder, "ours-trl", "grpo", **size)
    ours.problems.functions = [reward]
    step = stepping(ours)

    def some_steps() -> None:
        for _ in range(number):
            step()

    yield Line(
        f"{number} GRPO steps, embedded policy",
        "TRL's GRPOTrainer",
        "≥ 3",
        some_steps,
        lambda: theirs.train() and None,
    )
