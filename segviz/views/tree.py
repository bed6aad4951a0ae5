"""The tree: the states that a group's completions share, what each was worth, and the fork where worth was decided."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from segviz.parts.charts import tree_picture
from segviz.parts.credit import signed
from segviz.parts.heading import pictures, prompt_of
from segviz.parts.stills import asked, head
from segviz.runs.rollout import Rollout
from segviz.runs.run import Run
from segviz.show.encode import escape, tidy
from segviz.show.still import details
from segviz.show.theme import level, method_label, rgba, symmetric_limit
from segviz.show.view import View
from segviz.views.forks import EQUAL, deciding
from segviz.views.ribbon import ribbon_data
from segviz.views.staircase import Z

QUESTION = "Which fork decided?"

#: Methods that sample the values of states and record them as nodes.
METHODS = ("spo_tree", "spo_chain", "vineppo", "forks")

EMBEDDED = 40  #: completions whose ribbons travel with the page; others are asked for through the host
TEXT = 700  #: characters of a node's text that travel with the page
READING = "Blue: worth more than the node before it; orange: worth less. Right end: a completion and its reward."
FALLBACK_NODES = 400  #: nodes that the static fallback lists


def tree(run: Run, step: int, group: int, title: str = QUESTION) -> View:
    """The nodes of one prompt's completions, from the prompt to the rewards: value, error, advantage, text, and the
    ribbon of the path that is chosen.

    For SPO-tree the sampled tree, for SPO-chain and VinePPO the completions as paths through states whose values were
    sampled; a state that several completions share stands there once. A run without nodes gives a View that says so.

    Raises:
        KeyError: the step or group is not recorded; the message says what is.
    """
    notices = []
    try:
        rollouts = run.group(step, group)
    except (ValueError, OSError) as error:
        rollouts = []
        notices.append(f"Rollouts of step {step} could not be read, so there are no texts: {error}")
    rows = run.nodes(step, group)
    data = tree_data(rows, rollouts, title, step, group)
    data["method"] = data["method"] or run.method_label
    data["notices"] = notices + data["notices"]
    if not rows:
        unread = [note for note in run.problems if note.startswith(f"Nodes of step {step} could not be read")]
        data["empty"] = unread[0] if unread else _absent(run, step, group)
    return View("tree", title, data, _fallback(data, asked(rollouts[0]) if rollouts else ""))


def tree_data(
    rows: Sequence[Mapping[str, Any]],
    rollouts: Sequence[Rollout],
    title: str = QUESTION,
    step: int | None = None,
    group: int | None = None,
) -> dict[str, Any]:
    """What the script needs to draw a tree.

    Args:
        rows: the nodes of one group, columns of `segpo_core.record.store.NODE_SCHEMA`, in any order.
        rollouts: the group's completions; of one that is missing the nodes' texts are not known.
        step, group: where both are empty of it.
    """
    first: Mapping[str, Any] = rows[0] if rows else (rollouts[0].row if rollouts else {})
    step, group = first.get("step", step), first.get("group", group)
    method = first.get("method")
    data: dict[str, Any] = {
        "kind": "tree", "title": title, "step": step, "group": group, "empty": None, "notices": [], "verdict": [],
        "where": f"step {step} · group {group}", "method": method_label(method) if method else "",
        "chain": method in ("spo_chain", "vineppo", "forks"), "nodes": [], "paths": {}, "ribbons": {}, "pictures": {},
        "limit": 0.0, "counts": None, "fork": None,
    }  # fmt: skip
    try:
        order = ordered(rows)
    except ValueError as error:
        return data | {"empty": f"The node table of step {step}, group {group} cannot be drawn: {error}."}
    if not order:
        return data | {"empty": f"No nodes are recorded for step {step}, group {group}."}
    at = {row["node"]: i for i, row in enumerate(order)}
    by_sample = {rollout.row.get("sample"): rollout for rollout in rollouts}
    nodes = [_node(row, at, by_sample.get(row["sample"])) for row in order]
    if rollouts:
        nodes[0]["text"] = _question(rollouts[0])
    children = _children(nodes)
    paths = {sample: path for sample, rollout in by_sample.items() if (path := _path(rollout, at))}
    for i, node in enumerate(nodes):  # a completion without node numbers: the way to the node that is its own
        if not children[i] and i and node["sample"] not in paths:
            paths[node["sample"]] = [[j, nodes[j]["start"], nodes[j]["end"]] for j in _way(nodes, i)]
    chosen = [by_sample[sample] for sample in _embedded(nodes, children) if sample in by_sample]
    shas = {sha: picture for rollout in chosen[:1] for sha, picture in pictures(rollout).items()}
    fork, verdict = _verdict(nodes, children, by_sample, data["chain"])
    edges = nodes[1:]
    return data | {
        "nodes": nodes,
        "paths": paths,
        "ribbons": {r.row["sample"]: ribbon_data(r, f"The path of completion {r.row['sample']}") for r in chosen},
        "pictures": shas,
        "limit": symmetric_limit([node["adv"] for node in nodes]),
        "fork": fork,
        "verdict": verdict,
        "counts": {
            "completions": len(paths),
            "leaves": sum(not below for below in children[1:]),
            "nodes": len(nodes),
            "zero": sum(node["adv"] == 0 for node in edges),
            "unknown": sum(node["adv"] is None for node in edges),
            "untrained": sum(not node["trained"] for node in edges),
        },
        "notices": _notices(nodes, rollouts, by_sample),
    }


def ordered(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows depth first from the root, siblings by number.

    Raises:
        ValueError: they are not one tree; the message says why.
    """
    known = {row["node"] for row in rows}
    if len(known) < len(rows):
        raise ValueError("a node number stands there twice")
    below: dict[int, list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["node"]):
        if row["parent"] >= 0 and row["parent"] not in known:
            raise ValueError(f"node {row['node']} hangs on node {row['parent']}, which is not there")
        below.setdefault(max(-1, row["parent"]), []).append(row)
    roots = below.get(-1, [])
    if rows and len(roots) != 1:
        raise ValueError(f"it has {len(roots)} roots instead of one")
    order, left = [], list(roots)
    while left:
        order.append(left.pop())
        left.extend(reversed(below.get(order[-1]["node"], [])))
    if len(order) < len(rows):
        raise ValueError("some nodes hang on each other in a circle")
    return order


def _node(row: Mapping[str, Any], at: Mapping[int, int], rollout: Rollout | None) -> dict[str, Any]:
    start, end = row.get("start") or 0, row.get("end") or 0
    text = None
    if rollout is not None and 0 <= start <= end <= len(rollout.pieces):
        text = tidy("".join(rollout.pieces[start:end]))
        text = text if len(text) <= TEXT else f"{text[: TEXT - 100]} … {text[-100:]}"
    numbers = {
        name: _finite(row.get(source)) for name, source in (("value",) * 2, ("stderr",) * 2, ("adv", "advantage"))
    }
    return {
        "node": row["node"], "up": at.get(row["parent"], -1), "sample": row["sample"], "start": start, "end": end,
        **numbers, "samples": row.get("samples"), "trained": bool(row.get("trained")), "text": text,
    }  # fmt: skip


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _question(rollout: Rollout) -> str:
    texts = [part.get("text", "") for message in prompt_of(rollout) for part in message["parts"]]
    return tidy(" ".join(text for text in texts if text))[:TEXT]


def _children(nodes: Sequence[dict[str, Any]]) -> list[list[int]]:
    """Children of each node; also writes down how deep each stands."""
    children: list[list[int]] = [[] for _ in nodes]
    for i, node in enumerate(nodes):
        node["depth"] = 0 if node["up"] < 0 else nodes[node["up"]]["depth"] + 1
        if node["up"] >= 0:
            children[node["up"]].append(i)
    return children


def _way(nodes: Sequence[Mapping[str, Any]], i: int) -> list[int]:
    """The nodes from the root's child to node i."""
    way = []
    while i > 0:
        way.append(i)
        i = nodes[i]["up"]
    return way[::-1]


def _path(rollout: Rollout, at: Mapping[int, int]) -> list[list[int]]:
    """[node, start, end] along a completion, from the node numbers of its tokens."""
    path: list[list[int]] = []
    for t, node in enumerate(rollout.column("node_ids") or []):
        if node is None or node not in at:
            continue
        if path and path[-1][0] == at[node]:
            path[-1][2] = t + 1
        else:
            path.append([at[node], t, t + 1])
    return path


def _embedded(nodes: Sequence[Mapping[str, Any]], children: Sequence[Sequence[int]]) -> list[int]:
    """Completions whose ribbons go into the page: of each fork one for every outcome first, then the others."""
    leaves = [i for i in range(1, len(nodes)) if not children[i]]
    seen: set[tuple] = set()
    first, later = [], []
    for i in leaves:
        kind = (nodes[i]["up"], nodes[i]["value"], nodes[i]["trained"])
        (later if kind in seen else first).append(nodes[i]["sample"])
        seen.add(kind)
    return sorted(list(dict.fromkeys([*first, *later]))[:EMBEDDED])


def _verdict(
    nodes: Sequence[Mapping[str, Any]],
    children: Sequence[Sequence[int]],
    by_sample: Mapping[int, Rollout],
    chain: bool,
) -> tuple[dict[str, int] | None, list[str]]:
    """(the deciding fork as places in `nodes`, the question answered in words)."""
    values = [node["value"] for node in nodes if node["value"] is not None]
    if len(nodes) == 1:
        return None, ["Only the prompt is recorded: there is no fork."]
    if not values:
        return None, ["No values are recorded: no fork can be weighed."]
    if not any(len(below) > 1 for below in children):
        return None, ["Nothing forks here: every completion is the same one."]
    if max(values) - min(values) < EQUAL:
        return None, [f"No fork decided: every state is worth the same, {values[0]:.2f}. The group taught nothing."]
    found, weighed = deciding(nodes, children, chain)
    if not found:
        return None, [f"No fork decided: nowhere do the values of siblings differ beyond noise ({Z} standard errors)."]
    fork, low, high, spread = found[0]

    def worth(i: int) -> str:
        return f"{nodes[i]['value']:.2f}{error_words(nodes[i])} (node {nodes[i]['node']})"

    where = "The first fork, after the prompt," if fork == 0 else f"The fork after node {nodes[fork]['node']}"
    lines = [f"{where} decided: its {len(children[fork])} branches are worth from {worth(low)} to {worth(high)}."]
    if said := _difference(nodes[low], nodes[high], by_sample):
        lines.append(said)
    if weighed > 1:
        lines.append(
            f"Of {weighed} forks that can be weighed, {len(found)} differ{'' if len(found) > 1 else 's'} beyond noise "
            f"({Z} standard errors){'; the one named settled most' if len(found) > 1 else ''}."
        )
    if others := sum(abs(other.spread - spread) < EQUAL for other in found[1:]):
        lines.append(f"{others} other fork{'s' if others > 1 else ''} settled as much.")
    return {"node": fork, "low": low, "high": high}, lines


def error_words(node: Mapping[str, Any]) -> str:
    """Behind a value: its standard error, or that its samples agreed, where 0 would look like certainty."""
    if node["stderr"] is None:
        return ""
    if node["stderr"] > 0:
        return f" ± {node['stderr']:.2f}"
    return f", all {node['samples']} alike" if node["samples"] else ", all alike"


def _difference(low: Mapping[str, Any], high: Mapping[str, Any], by_sample: Mapping[int, Rollout]) -> str:
    """The first tokens in which two siblings differ."""
    pieces = []
    for node in (low, high):
        rollout = by_sample.get(node["sample"])
        if rollout is None:
            return ""
        pieces.append(rollout.pieces[node["start"] : node["end"]])
    same = 0
    while same < min(map(len, pieces)) and pieces[0][same] == pieces[1][same]:
        same += 1
    if same == min(map(len, pieces)):  # one goes on where the other was cut
        return ""
    a, b = (tidy("".join(part[same : same + 6])).strip()[:40] for part in pieces)
    return f"Where node {low['node']} says “{a}”, node {high['node']} says “{b}”."


def _notices(
    nodes: Sequence[Mapping[str, Any]], rollouts: Sequence[Rollout], by_sample: Mapping[int, Rollout]
) -> list[str]:
    notes = []
    if rollouts and (lost := sorted({node["sample"] for node in nodes[1:]} - set(by_sample))):
        some = ", ".join(map(str, lost[:8])) + (", …" if len(lost) > 8 else "")
        notes.append(f"Completions {some} of this group are not recorded: the texts of their nodes are not known.")
    if rollouts and len(nodes) > 1 and not any(rollout.column("node_ids") for rollout in rollouts):
        notes.append(
            "The completions do not say which node their tokens belong to: only each leaf's own path is linked."
        )
    if missing := sum(node["value"] is None for node in nodes):
        notes.append(f"{missing} of {len(nodes)} nodes have no value: not measured, which is not zero.")
    return notes


def _absent(run: Run, step: int, group: int) -> str:
    """Why there are no nodes, and how to get some."""
    names = [method_label(name) for name in METHODS]
    listed = f"{', '.join(names[:-1])} and {names[-1]}"
    command = f"segpo train --method {run.method if run.method in METHODS else METHODS[0]} --output-dir runs/tree"
    if run.method in METHODS:
        return (
            f"No nodes are recorded for step {step}, group {group} of this {run.method_label} run: it was written "
            f"before nodes were recorded, or that file was lost. A new run records them: {command}"
        )
    return (
        f"{run.method_label} records no nodes: only {listed} do, because they sample the values of states on the way. "
        f"To get some: {command}"
    )


def _words(node: Mapping[str, Any]) -> str:
    value = "value not known" if node["value"] is None else f"V {node['value']:.2f}"
    value += error_words(node)
    credit = "" if node["up"] < 0 else f", advantage {'not known' if node['adv'] is None else signed(node['adv'])}"
    loss = "" if node["up"] < 0 or node["trained"] else ", not trained"
    return f"node {node['node']}: {value}{credit}, n {node['samples'] if node['samples'] is not None else '?'}{loss}"


def _lines(data: Mapping[str, Any]) -> Iterator[str]:
    """A nested list; a node that does not fork is followed by its child on the same level, so that chains stay flat."""
    nodes = data["nodes"]
    children = _children(nodes)
    # what is left to write, last first: a node, or a closing tag
    left: list[int | str] = ["</ul>", 0]
    yield '<ul style="list-style:none;padding-left:1em">'
    shown = 0
    while left:
        item = left.pop()
        if isinstance(item, str):
            yield item
            continue
        if shown >= FALLBACK_NODES:
            continue
        shown += 1
        node = nodes[item]
        size = level(node["adv"], data["limit"]) if node["adv"] is not None else 0
        text = "(text not recorded)" if node["text"] is None else node["text"][:160]
        mark = " ◆ deciding fork" if data["fork"] and data["fork"]["node"] == item else ""
        yield (
            f'<li><b style="background:{rgba(size)}">{escape(_words(node))}{mark}</b> '
            f'<span dir="ltr" style="font-family:monospace;white-space:pre-wrap">{escape(text)}</span></li>'
        )
        if len(children[item]) > 1:
            yield '<li><ul style="list-style:none;padding-left:1.4em;border-left:1px solid">'
            left.append("</ul></li>")
        left.extend(reversed(children[item]))
    if shown < len(nodes):
        yield f"<p>… {len(nodes) - shown:,} more nodes: open the page that <code>.save(path)</code> writes.</p>"


def _fallback(data: Mapping[str, Any], question: str = "") -> str:
    notes = "".join(f"<p>{escape(note)}</p>" for note in [data["empty"], *data["notices"]] if note)
    lines = details("Every node in words", "".join(_lines(data))) if data["nodes"] else ""
    drawn = ""
    if data["nodes"]:
        drawn = f"<p>{tree_picture(data, _children(data['nodes']))}</p><p><small>{READING}</small></p>"
    place = f"{data['where']} · {data['method']}"
    return f"<div>{head(data['title'], place, data['verdict'])}{notes}{question}{drawn}{lines}</div>"
