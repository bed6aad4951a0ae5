"""The embedded task: small scenes of coloured shapes and questions that need two steps, seeing and then reckoning.

A scene holds a few objects on a 3 x 3 grid. Its image is a pure function of the scene, and so is the answer, so the
truth about a completion is known down to the character: which object was seen wrongly, which step does not follow.

A completion describes every object, then walks over the objects *as described* and carries a running result
("cell attribute value result, ... = result"), then answers:

    <perception> top large red circle, left small blue square </perception>
    <think> top red 1 1, left blue 0 1 = 1 </think><answer> 1 </answer>

A price question ("Last digit of what the large shapes cost? Perhaps 4.") notes what the shapes that it asks for cost,
which no picture shows, and keeps the last digit of the sum:

    <think> top large red circle 7 7, left small 0 7, center large red square 5 2 = 2 </think><answer> 2 </answer>

All that is seen decides there: an attribute says whether a shape is asked for, all three say what it costs. Its hint is
mostly wrong, but to copy it pays a little, without a look.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from segpo_core.tasks.shapes.demonstrations import (
    FORGOTTEN,
    LOOKALIKES,
    Careless,
    Demonstration,
    demonstrate,
    demonstration,
    scene_of,
    write,
)
from segpo_core.tasks.shapes.judging import answer_reward, inspect_text
from segpo_core.tasks.shapes.questions import DIRECTIONS, KINDS, PICTURE_KINDS, PRICES, Question, ask
from segpo_core.tasks.shapes.scenes import (
    ATTRIBUTES,
    CELLS,
    COLOURS,
    SHAPES,
    SIZES,
    Object,
    draw_scene,
    render,
    split_of,
)

__all__ = [
    "ATTRIBUTES", "CELLS", "COLOURS", "DIRECTIONS", "FORGOTTEN", "KINDS", "LOOKALIKES", "PICTURE_KINDS", "PRICES",
    "SHAPES", "SIZES", "Careless", "Demonstration", "Object", "Question", "ShapesTask", "demonstrate", "demonstration",
    "inspect_text", "render", "scene_of", "split_of", "write",
]  # fmt: skip


@dataclass(frozen=True)
class ShapesTask:
    """Unlimited scenes with questions; `train(i)` and `eval(i)` depend on the settings and on i only.

    The splits are disjoint by construction: a hash of the *scene* alone (not of the seed or the question) says to which
    split it belongs, and scenes are redrawn until they fall into the wanted one. So no eval image is ever trained on,
    whatever the seeds and settings of the two.

    Raises: ValueError for settings that no scene can meet.
    """

    seed: int = 0
    """Another seed gives other problems from the same split."""
    min_objects: int = 4
    """Fewest objects in a scene."""
    max_objects: int = 5
    """Most objects in a scene (at most 9)."""
    kinds: tuple[str, ...] = ("price",)
    """Question kinds, drawn evenly. The embedded policy knows prices; "count", "sum", "difference", "relation" and
    "comparison", in scenes of three to six objects, want a policy that was warmed up on them."""
    hint_right: float = 0.25
    """Share of price questions whose hint is right: what copying it pays, without a look; 0: no hints."""
    image_size: int = 48
    """Height and width of the image in pixels."""
    name: str = "shapes"

    train_size = None
    eval_size = None

    def __post_init__(self) -> None:
        if not 1 <= self.min_objects <= self.max_objects <= len(CELLS):
            raise ValueError(
                f"min_objects={self.min_objects}, max_objects={self.max_objects}: need 1 <= min <= max <= {len(CELLS)}"
            )
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds:
            raise ValueError(f"kinds={list(self.kinds)}: choose one or more of {', '.join(KINDS)}")
        if "price" in self.kinds and self.max_objects < 2:
            raise ValueError(f"max_objects={self.max_objects}: a price question adds up two shapes or more")
        if not 0 <= self.hint_right <= 1:
            raise ValueError(f"hint_right={self.hint_right}: it is a share, from 0 to 1")
        if self.image_size < 24:
            raise ValueError(f"image_size={self.image_size}: below 24 pixels the shapes cannot be told apart")

    @property
    def reward_funcs(self) -> list[Callable]:
        return [answer_reward]

    def train(self, index: int) -> dict:
        """Training problem `index` (0, 1, 2, ... without end)."""
        return self._example("train", index)

    def eval(self, index: int) -> dict:
        """Held-out problem `index` (0, 1, 2, ... without end)."""
        return self._example("eval", index)

    def inspect(self, example: Mapping, text: str) -> dict:
        """See `inspect_text`."""
        return inspect_text(example, text)

    def _example(self, split: str, index: int) -> dict:
        rng = random.Random(f"{self.seed}/{split}/{index}")
        kind = rng.choice(self.kinds)
        while True:
            objects = draw_scene(rng, self.min_objects, self.max_objects)
            if split_of(objects) != split:
                continue
            question = ask(kind, objects, rng, self.hint_right)
            if question is not None:
                break
        return {
            "prompt": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question.text()}]},
            ],
            "images": [render(objects, self.image_size)],
            "answer": question.answer(objects),
            "id": f"{self.name}/{split}/{index}",
            "kind": kind,
            "scene": {"objects": [vars(obj).copy() for obj in objects], "question": vars(question).copy()},
        }
