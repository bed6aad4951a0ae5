"""Where the reward's variance is decided, for settings of the task: in seeing, in reckoning, in the answer itself.

    python benchmarks/credit/variance.py        # writes benchmarks/credit/variance.json; page.py makes the table of it

True values go from the prompt's to the reward in steps A*, none of which knows the next. So the variance of the reward
of a prompt is the sum of E[A*²] over the tokens, and each block of the text has its share of that. The values' sampling
error adds a little to every A*²; N is large enough for it not to matter.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from segpo_core.afterwards.bench_credit import truth
from segpo_core.afterwards.trained import Policy
from segpo_core.segments import ANSWER, PERCEPTION, REASONING
from segpo_core.tasks.shapes import ShapesTask

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
START, LATER = ROOT / "data" / "tiny-vlm", ROOT / "data" / "credit-truth"
#: name -> (policy, settings of the task)
SETTINGS = {
    "the default: 4 or 5 objects, a hint that is right in 25 %": (START, {}),
    "2 or 3 objects": (START, {"min_objects": 2, "max_objects": 3}),
    "6 or 7 objects": (START, {"min_objects": 6, "max_objects": 7}),
    "no hint": (START, {"hint_right": 0.0}),
    "a hint that is right in 75 %": (START, {"hint_right": 0.75}),
    "the default, after 50 steps of GRPO": (LATER / "step-000050", {}),
    "the default, after 200 steps of GRPO": (LATER / "step-000200", {}),
}
PROBLEMS, SIZE, NUMBER, LEAST_OPEN = 24, 8, 32, 0.01


def shares(model: Path, settings: dict[str, object]) -> dict[str, float]:
    """Share of Σ A*² in each block, how often the answer is right, and the tokens of a completion."""
    task = ShapesTask(**settings)
    policy = Policy.load(model, reward_funcs=task.reward_funcs)
    policy.model.float()
    policy.sampler.max_completion_length = 128
    examples = [task.eval(i) for i in range(PROBLEMS)]
    it = truth.sample(truth.Truth("", policy, examples, None, None, None, task), SIZE, NUMBER, LEAST_OPEN)
    squares, role = it.advantages.double() ** 2, it.rollouts.role_ids
    blocks = {"seeing": PERCEPTION, "reckoning": REASONING, "answer": ANSWER}
    found = {name: float(squares[role == which].sum() / squares.sum()) for name, which in blocks.items()}
    found["elsewhere"] = 1 - sum(found.values())
    return found | {
        "right": float(it.rollouts.rewards.mean()),
        "decided": float(squares.sum() / len(squares)),
        "tokens": float(it.rollouts.lengths.float().mean()),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    made = {"problems": PROBLEMS, "completions": PROBLEMS * SIZE, "number": NUMBER, "least_open": LEAST_OPEN}
    made["settings"] = {}
    for name, (model, settings) in SETTINGS.items():
        made["settings"][name] = shares(model, settings)
        print(name, {k: round(v, 3) for k, v in made["settings"][name].items()}, flush=True)
    (HERE / "variance.json").write_text(json.dumps(made, indent=1) + "\n")
