// --- the boundary audit: two cuts of one text, aligned by token --------------------------------------------------------

const BD_BLOCK = 256;  // tokens drawn together: those far from the window cost nothing
const BD_CLIP = 240;   // longest piece shown whole, in characters

// A signal as a height from 0 to 1, such that a rule cuts at what is tall.
const SIGNALS = {
  entropy: { label: "entropy", unit: "nats", x: (v) => v },
  probability: { label: "1 − probability", unit: "", x: (v) => 1 - v, scale: 1 },
};

async function drawBoundaries(data, bus) {
  const k = await unpack(data.pack), n = k.units.length;
  const view = { data, k, n, bus, current: 0, offset: new Uint32Array(n + 1), ids: [new Uint32Array(n), new Uint32Array(n)] };
  for (let t = 0; t < n; t++) {
    view.offset[t + 1] = view.offset[t] + k.units[t];
    [k.a_start, k.b_start].forEach((starts, c) => { view.ids[c][t] = t ? view.ids[c][t - 1] + starts[t] : 0; });
  }
  view.lanes = data.cuts.map((cut) => {
    const signal = SIGNALS[cut.signal], column = k[cut.signal];
    if (!signal || !column) return null;
    let scale = signal.scale ?? 0;
    if (!signal.scale) for (const v of column) if (Number.isFinite(v)) scale = Math.max(scale, v);
    return { signal, column, scale: scale || 1, limit: known(cut.threshold) ? signal.x(cut.threshold) : null };
  });
  const root = h("article", { class: "bounds", "aria-label": `${data.title} ${data.where}` },
    h("header", {}, h("p", { class: "eyebrow" }, visible(data.where), " · ", h("b", {}, visible(data.method))),
      h("h2", {}, data.title),
      h("p", { class: "verdict" }, data.verdict.map((line, i) => [i ? " " : null, h(i ? "span" : "strong", {}, visible(line))]))),
    data.notices.map((note) => h("p", { class: "notice" }, visible(note))));
  if (!n) return h("div", { class: "page" }, root);
  view.differ = [];
  for (let t = 1; t < n; t++) if (k.a_start[t] !== k.b_start[t]) view.differ.push(t);
  view.read = h("p", { class: "bd-read", "aria-live": "polite" });
  view.stream = h("div", { class: "bd-stream", dir: "ltr", role: "group",
    "aria-label": "Completion, token by token; arrow keys move, d goes to the next difference" });
  view.lanes.forEach((lane, c) => {
    view.stream.classList.toggle(c ? "nob" : "noa", !lane);
    if (!lane || lane.limit === null) return;
    view.stream.classList.add(c ? "blim" : "alim");
    view.stream.style.setProperty(c ? "--bl" : "--al", clamp(lane.limit / lane.scale, 0, 1).toFixed(3));
  });
  root.append(h("div", { class: "bd-lanes" }, data.cuts.map((cut, c) => laneWords(view, cut, c)), errorWords(data.error)),
    h("div", { class: "bd-tools" }, differenceButton(view, -1, "◀ previous difference"), differenceButton(view, 1, "next difference ▶"),
      h("span", { class: "quiet" }, view.differ.length ? `${view.differ.length.toLocaleString("en")} places where only one of them cuts` : "Both cut at the same places.")),
    view.stream, view.read);
  cutBoundaryBlocks(view);
  pointBoundary(view, data.error?.start ?? view.differ[0] ?? 0);
  listenBoundaries(view);
  bus.onSelect((chosen) => {
    if (chosen.from !== view && chosen.key === data.key && known(chosen.token)) pointBoundary(view, clamp(chosen.token, 0, n - 1));
  });
  return h("div", { class: "page" }, root);
}

/** Blocks of a long completion are their plain text until they come near the window. */
function cutBoundaryBlocks(view) {
  const { n, k, offset, stream } = view;
  view.blocks = [];
  for (let from = 0; from < n; from += BD_BLOCK) {
    const to = Math.min(n, from + BD_BLOCK), el = h("div", { class: n > BD_BLOCK ? "bd-block far" : "bd-block", "data-b": view.blocks.length });
    view.blocks.push({ el, from, to, live: false });
    stream.append(el);
  }
  if (view.blocks.length === 1) return wakeBoundary(view, 0);
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) {
      observer.unobserve(entry.target);
      wakeBoundary(view, Number(entry.target.dataset.b));
    }
  }, { rootMargin: "900px 0px" });
  for (const { el, from, to } of view.blocks) {
    el.textContent = visible(k.text.slice(offset[from], offset[to]));
    observer.observe(el);
  }
}

function wakeBoundary(view, b) {
  const block = view.blocks[b], parts = [];
  if (block.live) return;
  block.live = true;
  for (let t = block.from; t < block.to; t++) {
    parts.push(boundaryToken(view, t));
    if (pieceAt(view, t).includes("\n")) parts.push(h("br"));
  }
  block.el.replaceChildren(...parts);
}

const pieceAt = (view, t) => view.k.text.slice(view.offset[t], view.offset[t + 1]);

function laneWords(view, cut, c) {
  const lane = view.lanes[c], end = lane && `${num(lane.scale, 3)} ${lane.signal.unit}`.trim();
  const bars = !lane ? "No signal is recorded to draw."
    : `Bars: ${lane.signal.label}, up to ${end}. ` + (lane.limit !== null ? `Line: ${num(lane.limit, 3)} ${lane.signal.unit}`.trim() + ", what reaches it can cut."
      : "This rule does not look at it.");
  return h("p", { class: `bd-lane ${c ? "b" : "a"}` }, h("i", { "aria-hidden": "true" }, c ? "▲" : "▼"),
    h("b", {}, visible(cut.label)), ` ${c ? "below" : "above"} the text: ${cut.count.toLocaleString("en")} segment${cut.count === 1 ? "" : "s"}`,
    cut.rule ? `, ${visible(cut.rule)}` : "", ". ", h("span", { class: "quiet" }, bars));
}

const errorWords = (error) => error && h("p", { class: "bd-lane" }, h("span", { class: "flag" }, h("b", {}, "✗ first error"), ` ${visible(error.kind)}`,
  error.why ? `: ${visible(error.why.slice(0, 200))}` : ""), " underlined in the text.");

function differenceButton(view, way, label) {
  return h("button", { type: "button", disabled: !view.differ.length, onclick: () => toDifference(view, way) }, label);
}

function toDifference(view, way) {
  const { differ, current } = view;
  const next = way > 0 ? differ.find((t) => t > current) ?? differ[0] : differ.findLast((t) => t < current) ?? differ.at(-1);
  if (next !== undefined) chooseBoundary(view, next);
}

function boundaryToken(view, t) {
  const { k, data } = view, piece = pieceAt(view, t);
  let text = visible(piece.slice(0, BD_CLIP)).replaceAll("\n", "↵");
  if (piece.length > BD_CLIP) text += `… +${(piece.length - BD_CLIP).toLocaleString("en")} characters`;
  const names = ["bd-t", `a${view.ids[0][t] % 2}`, `b${view.ids[1][t] % 2}`];
  if (t && k.a_start[t]) names.push("acut");
  if (t && k.b_start[t]) names.push("bcut");
  const e = data.error;
  if (e && e.start <= t && t < e.end) names.push("err");
  if (piece === "") text = "◦";
  const el = h("span", { class: names.join(" "), "data-t": t }, text);
  view.lanes.forEach((lane, c) => {
    const v = lane ? lane.signal.x(lane.column[t]) : NaN;
    el.style.setProperty(c ? "--b" : "--a", Number.isFinite(v) ? clamp(v / lane.scale, 0, 1).toFixed(3) : "0");
    if (lane && !Number.isFinite(v)) el.classList.add(c ? "bgap" : "agap");
  });
  return el;
}

function listenBoundaries(view) {
  view.stream.addEventListener("click", (event) => {
    const el = event.target.closest(".bd-t");
    if (el) chooseBoundary(view, Number(el.dataset.t));
  });
  view.stream.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "d" || event.key === "D") {
      event.preventDefault();
      return toDifference(view, event.shiftKey ? -1 : 1);
    }
    const to = { ArrowRight: view.current + 1, ArrowLeft: view.current - 1, Home: 0, End: view.n - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    chooseBoundary(view, clamp(to, 0, view.n - 1));
  });
}

/** Makes token t the current one, gives it the keyboard and tells the other views. */
function chooseBoundary(view, t) {
  const el = pointBoundary(view, t);
  el.focus({ preventScroll: true });
  el.scrollIntoView({ block: "nearest" });
  view.bus.select({ key: view.data.key, token: t, from: view });
}

/** Makes token t the current one: Tab reaches it, and its numbers are told. */
function pointBoundary(view, t) {
  const { k, data } = view, say = (n) => n.toLocaleString("en");
  view.current = t;
  wakeBoundary(view, Math.floor(t / BD_BLOCK));
  const old = view.stream.querySelector(".bd-t[tabindex]");
  for (const name of ["tabindex", "role", "aria-label"]) old?.removeAttribute(name);
  const el = view.stream.querySelector(`.bd-t[data-t="${t}"]`), words = visible(pieceAt(view, t)).replaceAll("\n", "↵").slice(0, 60);
  const cuts = t === 0 ? "first token" : k.a_start[t] && k.b_start[t] ? "both cut before it" : k.a_start[t] ? "only the recorded one cuts before it"
    : k.b_start[t] ? "only the other cuts before it" : "no cut before it";
  const told = [`token ${say(t + 1)} of ${say(view.n)}`, cuts,
    ...["entropy", "probability"].map((name) => (k[name] ? `${name} ${known(k[name][t]) ? num(k[name][t]) + (name === "entropy" ? " nats" : "") : "not measured"}` : null)),
    `segment ${say(view.ids[0][t] + 1)} of ${say(data.cuts[0].count)} recorded, ${say(view.ids[1][t] + 1)} of ${say(data.cuts[1].count)} in the other`].filter(Boolean);
  el.setAttribute("tabindex", "0");
  el.setAttribute("role", "button");
  el.setAttribute("aria-label", `${words}, ${told.join(", ")}`);
  view.read.replaceChildren(h("b", { dir: "auto" }, h("bdi", {}, words || "(empty)")), ` ${told.join(" · ")}`);
  return el;
}

DRAW.boundaries = drawBoundaries;
