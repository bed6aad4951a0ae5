// --- the tree -----------------------------------------------------------------------------------------------------
//
// Nodes are boxes: tokens run to the right, completions downwards. A box is as high as what hangs on it.

const TREE_ROOT = 92;   // of the prompt, which has no tokens of its own
const TREE_NODE = 74;   // least width of a node: its credit and its value fit
const TREE_EASY = 24;         // up to so many leaves everything is shown at once

async function drawTreePage(data, bus) {
  return h("div", { class: "page" }, await drawTree(data, bus));
}

async function drawTree(data, bus) {
  const root = h("div", { class: "tree-view" });
  const card = h("article", { class: "sheet tr-card", "aria-label": `${visible(data.title)} ${data.where}` },
    h("header", {},
      h("p", { class: "eyebrow" }, data.where, " · ", h("b", {}, visible(data.method))),
      h("h2", {}, visible(data.title)),
      h("p", { class: "verdict" }, data.verdict.map((line, i) => [i ? " " : null, h(i ? "span" : "strong", {}, visible(line))]))));
  root.append(card);
  if (data.empty) {
    card.append(h("p", { class: "notice" }, visible(data.empty)));
    return root;
  }
  const view = { data, bus, root, nodes: data.nodes, open: new Set(), folding: data.counts.leaves > TREE_EASY, current: 0, sample: null, drawn: new Map() };
  readTree(view);
  card.append(treeBadges(data), data.notices.map((note) => h("p", { class: "notice" }, visible(note))));
  view.box = h("div", { class: "tr-box", role: "tree", "aria-label": "Nodes, from the prompt to the end of each completion" });
  view.inspector = h("div", { class: "inspect", role: "group", "aria-label": "Numbers of the node" });
  view.told = h("p", { class: "notice tr-ask" }, "Click a node, or press Enter on it, to read its path: the completion, token by token.");
  view.path = h("section", { class: "tr-path", "aria-label": "Path of the chosen node", "aria-live": "polite" }, view.told);
  card.append(treeTools(view), h("div", { class: "rb-main" }, view.box, view.inspector));
  root.append(view.path);
  view.current = data.fork ? data.fork.node : 0;
  layTree(view, 900);
  onWidth(view.box, (width) => layTree(view, width));
  listenTree(view);
  return root;
}

/** Works out what hangs on what: children, leaves below, completions through, and where all below is worth the same. */
function readTree(view) {
  const { nodes, data } = view;
  view.kids = nodes.map(() => []);
  nodes.forEach((n, i) => { if (n.up >= 0) view.kids[n.up].push(i); });
  view.through = nodes.map(() => []);
  view.ends = nodes.map(() => []);
  for (const [sample, path] of Object.entries(data.paths)) {
    view.through[0].push(Number(sample));
    path.forEach(([i], at) => {
      view.through[i].push(Number(sample));
      if (at === path.length - 1) view.ends[i].push(Number(sample));
    });
  }
  view.leaves = nodes.map(() => 0);
  view.settled = nodes.map(() => true);
  for (let i = nodes.length - 1; i >= 0; i--) {
    const n = nodes[i], p = n.up;
    if (!view.kids[i].length) view.leaves[i] = 1;
    if (!known(n.value)) view.settled[i] = view.settled[i] && !view.kids[i].length;
    if (p < 0) continue;
    view.leaves[p] += view.leaves[i];
    if (!view.settled[i] || !known(n.value) || !known(nodes[p].value) || Math.abs(n.value - nodes[p].value) > 1e-6) view.settled[p] = false;
  }
}

function treeBadges({ counts, chain, nodes }) {
  const many = (n, word, plural = `${word}s`) => `${n.toLocaleString("en")} ${n === 1 ? word : plural}`;
  const edges = nodes.length - 1;
  return h("ul", { class: "badges" },
    h("li", {}, many(counts.completions, "completion"), counts.leaves !== counts.completions ? `, ${counts.leaves} different` : ""),
    h("li", {}, many(counts.nodes, chain ? "state" : "node")),
    h("li", {}, h("span", { class: "tr-key tr-zero", "aria-hidden": "true" }), `${counts.zero} of ${many(edges, "edge")} without advantage${chain ? "" : ": dropped from training"}`),
    h("li", {}, h("span", { class: "tr-key tr-untrained", "aria-hidden": "true" }), `${many(counts.untrained, "node")} not trained`),
    counts.unknown ? h("li", { class: "cut" }, `advantage of ${many(counts.unknown, "node")} not known`) : null);
}

function treeTools(view) {
  const { data } = view, steps = [10, 7, 4, 2];
  view.toggle = h("button", { type: "button", "aria-pressed": String(view.folding), onclick: () => {
    view.folding = !view.folding;
    view.open.clear();
    view.toggle.setAttribute("aria-pressed", String(view.folding));
    layTree(view, view.width, true);
  } }, "Collapse what is equal");
  return h("div", { class: "tools" }, h("div", { class: "layers" }, view.toggle),
    h("div", { class: "legend" },
      h("span", {}, "advantage"),
      h("span", { class: "scale", "aria-label": `scale of the advantage from ${signed(-data.limit)} to ${signed(data.limit)}` },
        h("span", { class: "end" }, signed(-data.limit)), [...steps.map((x) => `n${x}`), "z", ...steps.toReversed().map((x) => `p${x}`)].map((l) => h("i", { "data-l": l })),
        h("span", { class: "end" }, signed(data.limit))),
      h("span", { class: "key" }, "bar below: lost value, bar above: won value"),
      h("span", {}, h("span", { class: "tr-key tr-zero" }), "advantage 0"), h("span", {}, h("span", { class: "tr-key tr-untrained" }), "not trained"),
      h("span", {}, "n ", data.chain ? "continuations behind a value" : "leaves below")));
}

/** What is shown of the tree: { i, count, folded, first, rows } a box. Hidden nodes point to the box that stands for them. */
function arrangeTree(view) {
  const { nodes, kids, settled, open, folding } = view, boxes = [];
  view.stand = nodes.map((_, i) => i);
  view.group = new Map();
  const hidden = nodes.map(() => false), taken = new Map(), boxOf = new Map();
  let row = 0;
  nodes.forEach((n, i) => {
    if (n.up >= 0 && hidden[n.up]) { hidden[i] = true; view.stand[i] = view.stand[n.up]; return; }
    const up = boxOf.get(n.up);
    if (up?.folded) { hidden[i] = true; view.stand[i] = n.up; return; }
    if (folding && settled[i] && n.up >= 0) {
      const like = `${n.up}|${n.value}|${n.adv}|${n.trained}`, first = taken.get(like);
      if (first === undefined) taken.set(like, i);
      else {
        view.group.set(i, first);
        if (!open.has(`m${first}`)) { hidden[i] = true; view.stand[i] = first; boxOf.get(first).count++; return; }
      }
    }
    const folded = folding && settled[i] && kids[i].length > 0 && i > 0 && !open.has(i);
    const box = { i, count: 1, folded, first: row, rows: 0, left: 0, right: 0 };
    boxes.push(box);
    boxOf.set(i, box);
    if (folded || !kids[i].length) { box.rows = 1; row++; }
  });
  for (const box of boxes.toReversed()) {
    const up = boxOf.get(nodes[box.i].up);
    if (!up) continue;
    up.rows += box.rows;
    up.first = Math.min(up.first, box.first);
  }
  view.rows = row;
  view.boxes = boxes;
  view.boxOf = boxOf;
}

/** Places along the tokens: as wide as there is room, no node narrower than TREE_NODE. */
function spreadTree(view, width) {
  const { boxes, boxOf, nodes } = view, order = boxes.filter((b) => b.i > 0).sort((a, b) => nodes[a.i].end - nodes[b.i].end);
  const place = (scale) => {
    const x = new Map([[0, TREE_ROOT]]);
    let last = TREE_ROOT;
    for (const { i } of order) {
      const n = nodes[i], begin = nodes[n.up].end, left = x.get(begin) ?? last;
      x.set(n.end, Math.max(x.get(n.end) ?? 0, last, left + Math.max(TREE_NODE, (n.end - begin) * scale)));
      last = x.get(n.end);
    }
    return { x, last };
  };
  let low = 0, high = width;
  for (let turn = 0; turn < 24; turn++) {
    const scale = (low + high) / 2;
    if (place(scale).last > width) high = scale; else low = scale;
  }
  const { x } = place(low);
  for (const box of boxes) {
    const up = boxOf.get(nodes[box.i].up);
    box.left = up ? up.right : 0;
    box.right = up ? Math.max(x.get(nodes[box.i].end), box.left + TREE_NODE) : TREE_ROOT;
  }
  return x;
}

function layTree(view, width, keep = false) {
  view.width = width;
  arrangeTree(view);
  const x = spreadTree(view, width - 4), { rows, box } = view;
  const high = rows <= 8 ? 54 : rows <= 16 ? 40 : 24, top = 24;
  const plane = h("div", { class: "tr-plane" }), axis = h("div", { class: "tr-axis", "aria-hidden": "true" }, h("span", {}, "prompt"));
  plane.style.height = `${top + rows * high + 2}px`;
  plane.style.width = `${Math.max(...view.boxes.map((b) => b.right))}px`;
  let last = 30;
  for (const [token, at] of [...x].sort((a, b) => a[1] - b[1])) {
    if (at - last < 62 || !token) continue;
    const mark = h("span", {}, `token ${token}`);
    mark.style.right = `calc(100% - ${at}px)`;
    axis.append(mark);
    last = at;
  }
  view.els = new Map();
  plane.append(axis, ...view.boxes.map((b) => {
    const el = treeBox(view, b, b.rows * high - 3);
    el.style.left = `${b.left}px`;
    el.style.width = `${b.right - b.left - 3}px`;
    el.style.top = `${top + b.first * high}px`;
    el.style.height = `${b.rows * high - 3}px`;
    view.els.set(b.i, el);
    return el;
  }));
  const held = box.contains(box.getRootNode().activeElement), [up, left] = [box.scrollTop, box.scrollLeft];
  box.replaceChildren(plane);
  box.scrollTo(left, up);
  view.current = view.stand[view.current];
  markTree(view);
  inspectNode(view, view.current);
  if (keep || held) reachNode(view, view.current, held);
}

function treeBox(view, { i, count, folded }, height) {
  const { nodes, data, kids } = view, n = nodes[i], fork = data.fork?.node === i;
  const zero = n.up >= 0 && n.adv === 0, gone = n.up >= 0 && !n.trained;
  const shadeOf = n.up < 0 ? "z" : known(n.adv) ? shade({ diverging: true }, data.limit, n.adv) : "u";
  const words = h("div", { class: "tr-words", "aria-hidden": "true" },
    fork ? h("span", { class: "tr-fork" }, "◆ fork") : null,
    n.up >= 0 ? h("b", { "data-sign": n.adv > 0 ? "plus" : n.adv < 0 ? "minus" : "zero" }, known(n.adv) ? signed(n.adv) : "adv. –") : null,
    h("span", { class: "tr-value" }, "V ", known(n.value) ? num(n.value, 2) : "not known"),
    known(n.stderr) ? h("span", { class: "tr-value" }, n.stderr > 0 ? `± ${num(n.stderr, 2)}` : "all alike") : null,
    kids[i].length ? h("span", {}, "n ", known(n.samples) ? n.samples : "–") : null,
    count > 1 ? h("span", { class: "tr-many" }, `× ${count}`) : null,
    folded ? h("span", { class: "tr-many" }, `▸ ${view.leaves[i]} leaves`) : null,
    height > 46 && n.text ? h("span", { class: "tr-text", dir: "auto" }, visible(ownText(view, i)).replaceAll("\n", "↵")) : null);
  words.style.maxHeight = `${Math.max(16, 16 * Math.floor((height - 4) / 16))}px`;
  return h("div", {
    class: `tr-node${zero ? " tr-zero" : ""}${gone ? " tr-untrained" : ""}${fork ? " tr-decides" : ""}${height < 30 ? " tr-low" : ""}`,
    role: "treeitem", tabindex: i === view.current ? 0 : -1, "data-i": i, "data-l": zero ? null : shadeOf,
    "aria-level": n.depth + 1, "aria-selected": "false",
    "aria-expanded": !kids[i].length ? null : folded ? "false" : "true", "aria-label": nodeWords(view, i, count),
  }, words);
}

/** What a node says, from the word on in which it differs from its siblings: the beginning is often the same. */
function ownText({ nodes, kids }, i) {
  const text = nodes[i].text, others = (kids[nodes[i].up] ?? []).filter((j) => j !== i && nodes[j].text && nodes[j].text !== text);
  if (!others.length) return text.slice(0, 200);
  let same = Math.min(...others.map((j) => {
    let at = 0;
    while (at < text.length && text[at] === nodes[j].text[at]) at++;
    return at;
  }));
  same = text.lastIndexOf(" ", same) + 1;
  return (same > 12 ? "… " : "") + text.slice(same > 12 ? same : 0).slice(0, 200);
}

function nodeWords(view, i, count) {
  const { nodes, data, kids } = view, n = nodes[i], say = (x) => signed(x).replace("−", "minus ").replace("+", "plus ");
  return visible([n.up < 0 ? "The prompt" : `Node ${n.node}`, count > 1 ? `${count} equal siblings` : null,
    known(n.value) ? `value ${num(n.value, 3)}${!known(n.stderr) ? "" : n.stderr > 0 ? ` plus or minus ${num(n.stderr, 2)}` : ", all alike"}` : "value not known",
    n.up < 0 ? null : known(n.adv) ? (n.adv === 0 ? "no advantage" : `advantage ${say(n.adv)}`) : "advantage not known",
    known(n.samples) ? `${n.samples} ${data.chain ? (n.samples === 1 ? "reward" : "continuations") : n.samples === 1 ? "leaf" : "leaves"}` : null,
    n.up >= 0 && !n.trained ? "not trained" : null, data.fork?.node === i ? "the deciding fork" : null,
    kids[i].length ? `${kids[i].length} ${kids[i].length === 1 ? "branch" : "branches"}` : null,
    n.text ? n.text.slice(0, 80) : null].filter(Boolean).join(", "));
}

/** Shows every number of a node, and all of its text that is there. */
function inspectNode(view, i) {
  const { nodes, data, kids } = view, n = nodes[i], samples = view.through[i];
  const line = (name, x) => [h("dt", {}, name), h("dd", {}, x)];
  const worths = kids[i].map((j) => nodes[j].value).filter(known);
  const box = view.boxOf.get(view.stand[i]);
  view.shown = i;
  view.inspector.replaceChildren(
    h("section", {},
      h("h3", {}, n.up < 0 ? "The prompt " : `Node ${n.node} `, h("span", {}, `of ${nodes.length.toLocaleString("en")}`)),
      h("p", { class: "piece tr-piece", dir: "auto" }, n.text === null ? "(text not recorded)" : visible(n.text).replaceAll("\n", "↵\n") || "(empty)"),
      h("dl", {},
        line("value", known(n.value) ? num(n.value, 4) : "not known"),
        line("standard error", n.stderr === 0 ? "not known" : known(n.stderr) ? num(n.stderr, 3) : n.samples === 1 ? "a single reward" : "not known"),
        n.up < 0 ? [] : line("advantage", known(n.adv) ? signed4(n.adv) : "not known"),
        line(data.chain ? "continuations" : "leaves below", known(n.samples) ? num(n.samples, 6) : "not known"),
        n.up < 0 ? [] : line("tokens", n.end - n.start === 1 ? `${n.end}` : `${n.start + 1} to ${n.end}`),
        n.up < 0 ? [] : line("trained", n.trained ? "yes" : "no"))),
    h("section", {},
      h("h3", {}, kids[i].length ? `${kids[i].length} ${kids[i].length === 1 ? "branch" : "branches"}` : "End of a completion"),
      h("dl", {},
        worths.length > 1 ? line("worth from", `${num(Math.min(...worths), 3)} to ${num(Math.max(...worths), 3)}`) : [],
        line(samples.length === 1 ? "completion" : "completions", samples.length ? samples.slice(0, 6).join(", ") + (samples.length > 6 ? `, … (${samples.length})` : "") : "not recorded")),
      n.stderr === 0 ? h("p", { class: "rule" }, `All ${known(n.samples) ? n.samples : ""} ${data.chain ? "continuations" : "leaves"} agree. That gives a standard error of 0, but ${known(n.samples) ? "so few" : "few"} cannot say how rare another reward is.`) : null,
      box?.count > 1 ? h("p", { class: "rule" }, `Stands for ${box.count} siblings with the same value and advantage.`) : null,
      data.fork?.node === i ? h("p", { class: "rule" }, h("b", {}, "◆ the deciding fork")) : null),
    h("p", { class: "keys" }, h("kbd", {}, "←"), h("kbd", {}, "→"), " parent, child  ", h("kbd", {}, "↑"), h("kbd", {}, "↓"), " sibling\n",
      h("kbd", {}, "Enter"), " read the path  ", h("kbd", {}, "F"), " fork\n", h("kbd", {}, "Space"), " fold or unfold"));
}

/** Makes node i the one that Tab reaches. */
function reachNode(view, i, focus = true) {
  view.current = view.stand[i];
  for (const [j, el] of view.els) el.tabIndex = j === view.current ? 0 : -1;
  const el = view.els.get(view.current);
  if (focus) el.focus({ preventScroll: true });
  bringIntoBox(view.box, el);
  inspectNode(view, view.current);
}

/** Scrolls the box, never the page. */
function bringIntoBox(box, el) {
  const [top, left, high, wide] = [el.offsetTop, el.offsetLeft, el.offsetHeight, el.offsetWidth];
  if (top < box.scrollTop + 24) box.scrollTop = top - 26;
  else if (top + Math.min(high, 60) > box.scrollTop + box.clientHeight) box.scrollTop = top + Math.min(high, 60) - box.clientHeight;
  if (left < box.scrollLeft) box.scrollLeft = left;
  else if (left + wide > box.scrollLeft + box.clientWidth) box.scrollLeft = Math.min(left, left + wide - box.clientWidth);
}

/** Marks the chosen node and the path that it lies on. */
function markTree(view) {
  const on = new Set((view.data.paths[view.sample] ?? []).map(([i]) => view.stand[i]));
  if (on.size) on.add(0);
  const chosen = view.chosen === undefined ? -1 : view.stand[view.chosen];
  for (const [i, el] of view.els) {
    el.classList.toggle("tr-onpath", on.has(i));
    el.classList.toggle("tr-on", i === chosen);
    el.setAttribute("aria-selected", String(i === chosen));
  }
}

function listenTree(view) {
  const { box, bus, data, nodes } = view;
  const at = (event) => { const el = event.target.closest?.(".tr-node"); return el ? Number(el.dataset.i) : null; };
  box.addEventListener("pointerover", (event) => { const i = at(event); if (i !== null) inspectNode(view, i); });
  box.addEventListener("pointerleave", () => inspectNode(view, view.current));
  box.addEventListener("focusin", (event) => { const i = at(event); if (i !== null && i !== view.current) reachNode(view, i, false); });
  box.addEventListener("click", (event) => {
    const i = at(event);
    if (i === null) return;
    reachNode(view, i);
    openPath(view, i);
  });
  box.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { key } = event, i = view.current, n = nodes[i];
    const level = view.boxes.filter((b) => nodes[b.i].depth === n.depth).map((b) => b.i), place = level.indexOf(i);
    const target = key === "ArrowLeft" ? n.up : key === "ArrowRight" ? view.kids[i].find((j) => view.stand[j] === j)
      : key === "ArrowUp" ? level[place - 1] : key === "ArrowDown" ? level[place + 1]
      : key === "Home" ? 0 : key === "End" ? view.boxes.at(-1).i
      : (key === "f" || key === "F") && data.fork ? view.stand[data.fork.node] : null;
    if (key === "Enter") openPath(view, i);
    else if (key === " ") foldNode(view, i);
    else if (target === null) return;
    else if (target >= 0) reachNode(view, target);
    event.preventDefault();
  });
  bus.onSelect((chosen) => {
    if (chosen.from === view) return;
    const [step, group, sample] = String(chosen.key ?? "").split("/");
    const path = data.paths[sample];
    if (step !== String(data.step) || group !== String(data.group) || !path || !known(chosen.token)) return;
    const place = path.find(([, start, end]) => start <= chosen.token && chosen.token < end);
    if (!place) return;
    view.sample = Number(sample);
    view.chosen = place[0];
    markTree(view);
    reachNode(view, place[0], false);
  });
}

/** Opens what a box stands for, or closes what was opened there. */
function foldNode(view, i) {
  if (!view.folding) return;
  const box = view.boxOf.get(i), first = view.group.get(i) ?? i;
  if (box.count > 1) view.open.add(`m${i}`);
  else if (box.folded) view.open.add(i);
  else if (!view.open.delete(i) && !view.open.delete(`m${first}`)) return;
  layTree(view, view.width, true);
}

/** Shows the completion that node i is part of below the tree, with the node's tokens chosen, and tells the other views. */
async function openPath(view, i) {
  const { data, bus, nodes } = view, through = view.through[i], embedded = (sample) => Boolean(data.ribbons[sample]);
  const sample = through.includes(view.sample) ? view.sample
    : embedded(nodes[i].sample) ? nodes[i].sample : through.find(embedded) ?? nodes[i].sample;
  const place = (data.paths[sample] ?? []).findIndex(([j]) => j === i), key = { step: data.step, group: data.group, sample };
  view.sample = sample;
  view.chosen = i;
  markTree(view);
  if (embedded(sample)) {
    if (!view.drawn.has(sample)) view.drawn.set(sample, drawRibbon(data.ribbons[sample], data.pictures, bus));
    const ribbon = await view.drawn.get(sample);
    if (view.sample !== sample) return;
    if (ribbon.parentNode !== view.path) view.path.replaceChildren(ribbon);
  } else if (bus.opens) {
    view.told.textContent = `Completion ${sample} was asked for.`;
    view.path.replaceChildren(view.told);
    bus.open(key);
  } else {
    view.told.textContent = `Completion ${sample} is not part of this page. In Python: sv.ribbon(run.rollout(${data.step}, ${data.group}, ${sample}))`;
    view.path.replaceChildren(view.told);
  }
  bus.select({ key: keyOf(key), token: place < 0 ? 0 : data.paths[sample][place][1], segment: Math.max(0, place), node: nodes[i].node, from: view });
}

DRAW.tree = drawTreePage;
