"""The counterfactual: what happens when the policy writes on from before a segment, and from after it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segviz.parts.charts import shares_picture
from segviz.parts.credit import key_of, segment_credit
from segviz.parts.heading import where as where_of
from segviz.parts.stills import head
from segviz.runs.dump import Dump
from segviz.runs.rollout import Rollout
from segviz.runs.run import Run
from segviz.show.encode import escape, tidy
from segviz.show.statistics import wilson
from segviz.show.still import details
from segviz.show.theme import method_label
from segviz.show.view import View

QUESTION = "Is this segment causal?"

CONTEXT = 240  #: characters of the rollout shown before and after the segment
LONGEST = 6000  #: characters of a segment or a continuation that are shown
FALLBACK_SAMPLES = 8  #: continuations of each side that the static fallback shows
SIDES = ("before", "after")


def counterfactual(
    run_or_policy: Any,
    rollout: Rollout | Mapping[str, Any],
    segment: int,
    number: int = 16,
    where: str = "both",
    *,
    seed: int = 0,
    success: float = 1.0,
    trust_code: bool = False,
) -> View:
    """Write on from before and from after a segment, and compare how often that succeeds.

    Before: the policy writes the segment anew, and what follows. After: the segment stays and what follows is new. So
    the difference is what this very segment does to the chance of success; that of the last segment is known without
    sampling, as the completion ends with it.

    Args:
        run_or_policy: a `Run` or a run directory (its newest checkpoint at or before the rollout's step is asked, see
            `segpo_core.afterwards.probe.Policy.load`), or a `segpo_core.afterwards.probe.Policy`.
        rollout: from `Run.rollout` or `annotate`.
        segment: its index, from 0: what the ribbon calls segment 3 is 2.
        number: continuations of each side.
        where: "both", or "before" or "after" alone, which measures without comparing.
        seed: of the continuations; the same seed gives the same ones.
        success: a continuation succeeds with at least this reward.
        trust_code: load the files and modules that the run names for its rewards, which runs what is in them.

    Raises:
        FileNotFoundError: no run there, or no checkpoint in it.
        ValueError: a rollout without token ids, an image that is missing, a policy that is not the one that wrote the
            rollout or knows no rewards, an unknown `where`.
        IndexError: there is no such segment.
    """
    rollout = rollout if isinstance(rollout, Rollout) else Rollout(rollout)
    if where not in ("both", *SIDES):
        raise ValueError(f"where={where!r}: choose both, before or after")
    ids, (start, end) = _tokens(rollout), _span(rollout, segment)
    from segpo_core.afterwards.probe import Policy, recorded_example, resample  # torch: only where a policy is asked

    step = rollout.row.get("step")
    if isinstance(run_or_policy, Dump):
        raise ValueError(
            f"{run_or_policy!r} keeps no checkpoints: give the policy that wrote it, with what judges its texts: "
            "Policy.load(model directory, reward_funcs=[…])"
        )
    if isinstance(run_or_policy, (Run, str, Path)):
        policy = Policy.load(run_or_policy, step, trust_code=trust_code)
    else:
        policy = run_or_policy
    if not policy.reward_funcs:
        raise ValueError(
            f"nothing says which continuation succeeds: {policy.no_rewards}; give a policy with reward functions: "
            "Policy.load(path, reward_funcs=[…])"
        )
    policy.check(ids, rollout.text)
    example = recorded_example(rollout.row, rollout.images)
    drawn: dict[str, Sequence[Any] | None] = dict.fromkeys(SIDES)
    for side, at in zip(SIDES, (start, end), strict=True):
        if where in ("both", side) and at < len(ids):
            drawn[side] = resample(policy, example, ids, at, number, seed)
    data = counterfactual_data(
        drawn["before"], drawn["after"], rollout, segment, whose(policy, step), success, with_after=where != "before"
    )
    return View("counterfactual", QUESTION, data, _fallback(data))


def counterfactual_data(
    before: Sequence[Any] | None,
    after: Sequence[Any] | None,
    rollout: Rollout,
    segment: int,
    policy: str = "",
    success: float = 1.0,
    with_after: bool = True,
) -> dict[str, Any]:
    """What the script needs to draw a counterfactual.

    Args:
        before, after: continuations from the first token of the segment and from the one after its last, as
            `segpo_core.afterwards.probe.Sample` (`token_ids`, `pieces`, `finished`, `reward`); None: not drawn.
        rollout: with token ids; segment: index from 0.
        policy: who wrote the continuations, in words.
        success: as `counterfactual`.
        with_after: where the segment is the last, its outcome is the rollout's own; False leaves that out.

    Raises:
        ValueError: the rollout has no token ids; IndexError: there is no such segment.
    """
    ids, (start, end) = _tokens(rollout), _span(rollout, segment)
    own = rollout.row.get("reward")
    sides = []
    if before is not None:
        sides.append(_side("before", start, before, ids, success))
    if after is not None:
        sides.append(_side("after", end, after, ids, success))
    elif end == len(ids) and with_after:
        sides.append(_recorded(end, own, success))
    difference = _difference(*sides) if len(sides) == 2 else None
    again = _again(sides, end)
    causal = None
    if difference is not None:
        # where each continuation from before wrote the segment again, both sides are draws of the same thing
        causal = again[0] < again[1] and not difference["low"] <= 0 <= difference["high"]
    pieces = rollout.pieces
    return {
        "kind": "counterfactual",
        "key": key_of(rollout.row),
        "title": QUESTION,
        "where": where_of(rollout),
        "method": method_label(rollout.row.get("method")),
        "policy": tidy(policy),
        "success": success,
        "own": {"reward": own, "success": _succeeds(own, success)},
        "segment": {
            "number": segment + 1,
            "of": len(rollout.segments),
            "start": start,
            "end": end,
            "credit": segment_credit(rollout)[segment],
            "text": _clip("".join(pieces[start:end]), LONGEST),
            "before": _tail("".join(pieces[:start]), CONTEXT),
            "after": _clip("".join(pieces[end:]), CONTEXT),
        },
        "sides": sides,
        "difference": difference,
        "causal": causal,
        "verdict": _verdict(sides, difference, causal, again),
        "notices": _notices(sides, own, success, again),
    }


def newcombe(before: tuple[float, float, float], after: tuple[float, float, float]) -> tuple[float, float, float]:
    """Difference of two independent shares, after − before, with its 95 % interval (Newcombe 1998, method 10).

    Each is (share, low, high) with Wilson's interval; a share that is known exactly has low = high = share.
    """
    (p, p_low, p_high), (q, q_low, q_high) = before, after
    difference = q - p
    return (
        difference,
        difference - math.hypot(q - q_low, p_high - p),
        difference + math.hypot(q_high - q, p - p_low),
    )


def _tokens(rollout: Rollout) -> list[int]:
    ids = rollout.row.get("token_ids")
    if not ids:
        raise ValueError(
            f"the rollout {where_of(rollout) or rollout!r} has no token ids to go on from: annotate it first, "
            "sv.annotate([rollout], model, processor)[0]"
        )
    if len(ids) != len(rollout.pieces):
        raise ValueError(f"the rollout has {len(ids)} token ids but {len(rollout.pieces)} token pieces")
    return list(ids)


def _span(rollout: Rollout, segment: int) -> tuple[int, int]:
    if not 0 <= segment < len(rollout.segments):
        raise IndexError(
            f"there is no segment {segment}: this rollout has {len(rollout.segments)}, counted from 0 (what the ribbon "
            "calls segment 3 is 2)"
        )
    return rollout.segments[segment]


def whose(policy: Any, step: int | None) -> str:
    """Who wrote the continuations, and how far that policy is from the one that wrote the rollout."""
    who = f"Continuations by {policy.name}"
    if policy.step is None or step is None:
        return f"{who}, which need not be the policy that wrote the rollout."
    away = policy.step - (step - 1)  # a checkpoint was written after its step's updates
    if away == 0:
        return f"{who}: the very policy that wrote the rollout."
    far = f"{abs(away)} training step{'s' if abs(away) > 1 else ''}"
    kept = " and the oldest that is kept" if away > 1 else ""
    return f"{who}: {far} {'before' if away < 0 else 'after'} the policy that wrote the rollout (step {step}){kept}."


def _side(name: str, at: int, samples: Sequence[Any], ids: Sequence[int], success: float) -> dict[str, Any]:
    told = [_sample(sample, at, ids, success) for sample in samples]
    judged = [sample for sample in told if sample["success"] is not None]
    n, wins = len(judged), sum(sample["success"] for sample in judged)
    low, high = (float(x) for x in wilson(wins, n)) if n else (None, None)
    return {
        "name": name,
        "at": at,
        "recorded": False,
        "n": n,
        "successes": wins,
        "unknown": len(told) - n,
        "rate": wins / n if n else None,
        "low": low,
        "high": high,
        "mean": sum(sample["reward"] for sample in judged) / n if n else None,
        # successes first, as they are shown
        "samples": sorted(told, key=lambda sample: (sample["success"] is None, not sample["success"])),
    }


def _recorded(at: int, reward: float | None, success: float) -> dict[str, Any]:
    """The side after the last segment: the completion ends there, so its outcome is known."""
    won = _succeeds(reward, success)
    rate = None if won is None else float(won)
    return {
        "name": "after", "at": at, "recorded": True, "n": 0 if won is None else 1, "successes": int(won or 0),
        "unknown": int(won is None), "rate": rate, "low": rate, "high": rate, "mean": reward, "samples": [],
    }  # fmt: skip


def _sample(sample: Any, at: int, ids: Sequence[int], success: float) -> dict[str, Any]:
    """One continuation: what it shares with the rollout, the first token that differs, the rest."""
    new = list(sample.token_ids)
    recorded = ids[at:]
    same = next(
        (i for i, (a, b) in enumerate(zip(new, recorded, strict=False)) if a != b), min(len(new), len(recorded))
    )
    pieces = list(sample.pieces)
    differs = same < len(new) or same < len(recorded)
    return {
        "same": _tail("".join(pieces[:same]), CONTEXT),
        "first": pieces[same] if same < len(new) else "",
        "rest": _clip("".join(pieces[same + 1 :]), LONGEST),
        "token": at + same if differs else None,
        "tokens": len(new),
        "finished": bool(sample.finished),
        "reward": _finite(sample.reward),
        "success": _succeeds(sample.reward, success),
    }


def _difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, float] | None:
    if before["rate"] is None or after["rate"] is None:
        return None
    value, low, high = newcombe(*((side["rate"], side["low"], side["high"]) for side in (before, after)))
    return {"value": value, "low": low, "high": high}


def _again(sides: Sequence[Mapping[str, Any]], end: int) -> tuple[int, int]:
    """How many of the continuations from before wrote the whole segment, up to token `end`, as recorded: (n, of)."""
    samples = next((side["samples"] for side in sides if side["name"] == "before"), [])
    return sum(sample["token"] is None or sample["token"] >= end for sample in samples), len(samples)


def _verdict(
    sides: Sequence[Mapping[str, Any]],
    difference: Mapping[str, float] | None,
    causal: bool | None,
    again: tuple[int, int],
) -> list[str]:
    """The question answered in words."""
    told = [_outcome(side) for side in sides]
    if not sides:
        return ["No continuations were drawn."]
    if difference is None:
        missing = "" if len(sides) < 2 else " One side has no verdict, so there is nothing to compare."
        return ["Measured, not compared.", f"{' '.join(told)}{missing}"]
    low, high = (_points(difference[name]) for name in ("low", "high"))
    change = f"Difference {_points(difference['value'])} points (95 % interval {low} to {high})"
    if causal:
        way = "lowers" if difference["value"] < 0 else "raises"
        size = _points(abs(difference["value"])).lstrip("+")
        return [f"Causal beyond noise: it {way} the chance of success by {size} points.", *told, f"{change}."]
    why = "it could be chance. More continuations narrow the interval."
    if again[0] == again[1]:
        why = "chance, since every continuation from before wrote this very segment again: the policy knows no other."
    return ["Not causal beyond noise.", *told, f"{change}: {why}"]


def _outcome(side: Mapping[str, Any]) -> str:
    if side["rate"] is None:
        return f"{side['name'].capitalize()} it no outcome has a verdict."
    if side["recorded"]:
        return f"After it the completion ends, {'in success' if side['successes'] else 'without success'}."
    verb = "succeeds" if side["successes"] == 1 else "succeed"
    return f"{side['name'].capitalize()} it {side['successes']} of {side['n']} continuations {verb}."


def _notices(
    sides: Sequence[Mapping[str, Any]], own: float | None, success: float, again: tuple[int, int]
) -> list[str]:
    notes = []
    rewards = [sample["reward"] for side in sides for sample in side["samples"] if sample["reward"] is not None]
    graded = any(reward not in (0, 1) for reward in rewards)
    if graded:
        notes.append(f"Rewards are graded: a continuation succeeds with a reward of at least {success:g}.")
    if graded and max(rewards) < success and (own is None or own < success):
        notes.append(
            f"No reward reaches {success:g}; they lie between {min(rewards):.3g} and {max(rewards):.3g}. Choose "
            "success=… between them to see a difference."
        )
    for side in sides:
        if side["unknown"]:
            total = side["unknown"] + side["n"]
            notes.append(f"{side['unknown']} of {total} outcomes {side['name']} the segment have no verdict: left out.")
    if 0 < again[0] < again[1]:
        notes.append(f"{again[0]} of {again[1]} continuations from before wrote this very segment again.")
    return notes


def _succeeds(reward: float | None, success: float) -> bool | None:
    reward = _finite(reward)
    return None if reward is None else reward >= success - 1e-6  # weighted sums of ones fall short by rounding


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _points(share: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    points = math.floor(100 * share + 0.5)  # as the script rounds
    return f"{points:+d}".replace("-", "−") if points else "0"


def _clip(text: str, size: int) -> str:
    return tidy(text if len(text) <= size else f"{text[:size]}…")


def _tail(text: str, size: int) -> str:
    return tidy(text if len(text) <= size else f"…{text[-size:]}")


def _fallback(data: Mapping[str, Any]) -> str:
    """Tables, for a notebook viewer that runs no scripts."""
    rows, drawn = [("from", "success", "share", "95 % interval")], [("from", "", "reward", "differs at token", "text")]
    for side in data["sides"]:
        share = "no verdict" if side["rate"] is None else f"{100 * side['rate']:.0f} %"
        interval = "as recorded" if side["recorded"] else "–"
        if side["rate"] is not None and not side["recorded"]:
            interval = f"{100 * side['low']:.0f} to {100 * side['high']:.0f} %"
        rows.append((side["name"], f"{side['successes']} of {side['n']}", share, interval))
        for sample in side["samples"][:FALLBACK_SAMPLES]:
            mark = {True: "✓", False: "✗", None: "?"}[sample["success"]]
            reward = "–" if sample["reward"] is None else f"{sample['reward']:.3g}"
            token = "the same" if sample["token"] is None else str(sample["token"] + 1)
            drawn.append((side["name"], mark, reward, token, (sample["first"] + sample["rest"])[:200]))
    segment = data["segment"]
    said = " ".join(data["verdict"])
    bars = [(f"{side['name']}: {side['successes']} of {side['n']}", side["rate"],
             None if side["recorded"] else side["low"], None if side["recorded"] else side["high"])
            for side in data["sides"]]  # fmt: skip
    place = f"{data['where']} · {data['method']} · segment {segment['number']} of {segment['of']}"
    return (
        f"<div>{head(data['title'], place, data['verdict'])}<pre>{escape(segment['text'])}</pre>"
        f"<p>{shares_picture(bars, said)}</p>{details('Numbers and continuations', _table(rows) + _table(drawn))}"
        f"<p><small>{escape(data['policy'])} {escape(' '.join(data['notices']))}</small></p></div>"
    )


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text, the first one the heads."""
    cells = [
        "".join(f'<{tag} dir="ltr" style="text-align:left;white-space:pre-wrap">{escape(cell)}</{tag}>' for cell in row)
        for tag, row in zip(["th", *["td"] * len(rows)], rows, strict=False)
    ]
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"
