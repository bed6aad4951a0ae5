"""One prompt over training: what a run says to the same held-out problems at each evaluation."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from segviz.parts.credit import error_of
from segviz.parts.heading import pictures, said_of
from segviz.parts.stills import asked
from segviz.runs.columns import question
from segviz.runs.rollout import Rollout
from segviz.runs.run import Run
from segviz.show.encode import escape, tidy
from segviz.show.view import View

TITLE = "What does it say to the same problem, before and after?"
MOST = 40  #: evaluations that are shown of a long run, evenly, the first and the last among them
PROBLEMS = 64  #: problems that are shown
_WORD = re.compile(r"\s*\S+|\s+")


def over_training(run: Run) -> View:
    """The greedy answers to a few held-out problems, evaluation by evaluation; what changed since the one before is
    marked, and the first true error where it is known.

    Raises:
        ValueError: the run recorded none (`log_eval_completions`), or its files cannot be read.
    """
    data, first = over_training_data(run)
    if data is None:
        raise ValueError(
            f"{run.path} has no recorded evaluations: a run records them with log_eval_completions (16 unless it says "
            "otherwise) and eval_steps above 0; runs of older versions have none"
        )
    return View("over_training", TITLE, data, _fallback(data, first))


def over_training_data(run: Run) -> tuple[dict[str, Any] | None, dict[int, Rollout]]:
    """(what the script needs to draw it, None without a recorded evaluation; each problem's first completion).

    Raises:
        ValueError, OSError: a file cannot be read.
    """
    steps = run.eval_steps
    chosen = sorted({steps[i * (len(steps) - 1) // max(1, MOST - 1)] for i in range(MOST)}) if steps else []
    told = run.evaluations(chosen if len(steps) > MOST else steps)
    problems: dict[int, list[Rollout]] = {}
    for rollout in told:
        problems.setdefault(rollout.row["group"], []).append(rollout)
    shown = dict(sorted(problems.items())[:PROBLEMS])
    if not shown:
        return None, {}
    images: dict[str, Any] = {}
    for rollouts in shown.values():
        images |= pictures(rollouts[0])
    data = {
        "kind": "over_training",
        "title": TITLE,
        "run": tidy(run.name),
        "verdict": verdict(list(shown.values())),
        "problems": [_problem(number, rollouts) for number, rollouts in shown.items()],
        "pictures": images,
    }
    return data, {number: rollouts[0] for number, rollouts in shown.items()}


def verdict(problems: Sequence[Sequence[Rollout]]) -> str:
    """Before and after in a sentence."""
    steps = sorted({rollout.row["step"] for rollouts in problems for rollout in rollouts})
    if len(steps) == 1:
        return f"One evaluation so far, at step {steps[0]}: the next one tells what has changed."
    ends = [(_right(rollouts[0]), _right(rollouts[-1])) for rollouts in problems]
    known = [(a, b) for a, b in ends if a is not None and b is not None]
    if not known:
        return f"{len(problems)} held-out problems, from step {steps[0]} to {steps[-1]}."
    before, after = sum(a for a, _ in known), sum(b for _, b in known)
    won, lost = sum(b and not a for a, b in known), sum(a and not b for a, b in known)
    return (
        f"Of these {len(known)} held-out problems {before} were right at step {steps[0]} and {after} are at step "
        f"{steps[-1]}: {won} were won and {lost} lost. They are examples; how sure the change is, the evaluation says."
    )


def _problem(number: int, rollouts: Sequence[Rollout]) -> dict[str, Any]:
    first = rollouts[0].row
    says: list[dict[str, Any]] = []
    for rollout in rollouts:
        if says and says[-1]["text"] == rollout.text:
            says[-1]["to"] = rollout.row["step"]
            continue
        says.append(_says(rollout, says[-1]["text"] if says else None))
    for one in says:
        del one["text"]
    return {
        "number": number,
        "example": tidy(str(first.get("example_id") or "")) or f"problem {number}",
        "question": tidy(question(first.get("prompt")).strip())[:600],
        "images": [str(sha) for sha in first.get("images") or []],
        "reference": None if first.get("answer") is None else tidy(str(first["answer"]))[:100],
        "marks": [{"step": rollout.row["step"], "right": _right(rollout)} for rollout in rollouts],
        "says": says,
    }


def _says(rollout: Rollout, before: str | None) -> dict[str, Any]:
    """What is said from one evaluation on: parts [text, changed, wrong] in order, and its verdicts."""
    row, said, error = rollout.row, said_of(rollout), error_of(rollout)
    text = rollout.text
    changed = _changed(before, text) if before is not None else [(text, False)]
    low = high = -1
    if error and "".join(rollout.pieces) == text:
        low = len("".join(rollout.pieces[: error["start"]]))
        high = low + len("".join(rollout.pieces[error["start"] : error["end"]]))
    parts, at = [], 0
    for piece, new in changed:
        cuts = sorted({0, len(piece), *(x - at for x in (low, high) if 0 < x - at < len(piece))})
        parts += [
            [tidy(piece[a:b]), new, low <= at + a and at + b <= high] for a, b in zip(cuts, cuts[1:], strict=False)
        ]
        at += len(piece)
    return {
        "from": row["step"],
        "to": row["step"],
        "text": text,
        "parts": parts,
        "right": _right(rollout),
        "seen": row.get("perception_right"),
        "said": None if said is None else tidy(said.strip())[:60],
        "reward": row.get("reward"),
        "finished": row.get("finished"),
        "why": f"{error['kind']}: {error['why']}"[:200] if error and error["why"] else error["kind"] if error else None,
    }


def _changed(before: str, after: str) -> list[tuple[str, bool]]:
    """The words of `after` as runs, (text, whether `before` lacks it there)."""
    old, new = _WORD.findall(before), _WORD.findall(after)
    found = []
    for kind, _, _, a, b in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if b > a:
            found.append(("".join(new[a:b]), kind != "equal"))
    return found


def _right(rollout: Rollout) -> bool | None:
    """As the task says, else whether the reward is full; None where neither is known."""
    right, reward = rollout.row.get("answer_right"), rollout.row.get("reward")
    return right if right is not None or reward is None else reward >= 1


def _fallback(data: Mapping[str, Any], first: Mapping[int, Rollout]) -> str:
    """Each problem with its first and its last answer."""
    marks = {True: "✓ ", False: "✗ ", None: ""}
    blocks = []
    for problem in data["problems"]:
        ends = problem["says"] if len(problem["says"]) < 2 else [problem["says"][0], problem["says"][-1]]
        rows = "".join(
            f"<tr><td>{_when(one)}</td>"
            f"<td>{marks[one['right']]}{escape(''.join(part[0] for part in one['parts']))}</td></tr>"
            for one in ends
        )
        blocks.append(f"{asked(first[problem['number']])}<table><tr><th>step</th><th>says</th></tr>{rows}</table>")
    return f"<h3>{escape(data['title'])}</h3><p>{escape(data['verdict'])}</p>{''.join(blocks[:4])}" + (
        f"<p>{len(blocks) - 4} more problems in the live view.</p>" if len(blocks) > 4 else ""
    )


def _when(one: Mapping[str, Any]) -> str:
    return f"{one['from']}" if one["from"] == one["to"] else f"{one['from']} to {one['to']}"
