// Draws ribbons, boards and reports. One ES module, no dependencies; everything it shows comes from `data`.
//
//   render({ el, data })    in a page       render({ model, el })    in a notebook widget (data = model.get("data"))
//
// Text from models is hostile: it reaches the page through text nodes and attributes set by name, never as markup.

export async function render({ model, el, data }) {
  data = data ?? model.get("data");
  el.classList.add("segviz");
  const draw = { ribbon: drawRibbonPage, board: drawBoardPage, report: drawReport }[data.kind];
  el.replaceChildren(await draw(data));
}
export default { render };

// --- small tools ------------------------------------------------------------------------------------------------

const SVG = "http://www.w3.org/2000/svg";

function build(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) if (child !== null && child !== undefined && child !== false) node.append(child);
  return node;
}
const h = (tag, attributes, ...children) => build(document.createElement(tag), attributes, children);
const s = (tag, attributes, ...children) => build(document.createElementNS(SVG, tag), attributes, children);

const known = (x) => x !== null && x !== undefined && !Number.isNaN(x);
const clamp = (x, low, high) => Math.min(high, Math.max(low, x));

/** A number as people read it: a real minus, enough digits and no more. */
function num(x, digits = 3) {
  if (!known(x)) return "–";
  if (!Number.isFinite(x)) return x > 0 ? "∞" : "−∞";
  if (x === 0) return "0";
  const size = Math.abs(x);
  const text = size >= 1e5 || size < 1e-4 ? x.toExponential(1)
    : size >= 1000 ? Math.round(x).toLocaleString("en")
    : String(Number(x.toPrecision(digits)));
  return text.replace("-", "−");
}
/** Short and signed, for the labels over segments. */
function signed(x) {
  if (!known(x)) return "–";
  const size = Math.abs(x);
  const text = size === 0 ? "0" : size >= 100 ? size.toFixed(0) : size >= 0.01 ? size.toFixed(2) : num(size, 1);
  return (x > 0 ? "+" : x < 0 ? "−" : "") + text;
}

/** Characters that would be invisible, or would turn the line around, as something one can see. */
function visible(text) {
  return text.replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g,
    (c) => `⟨${c.charCodeAt(0).toString(16).toUpperCase().padStart(c < "\u0100" ? 2 : 4, "0")}⟩`).replaceAll("\t", "⇥\t");
}

function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, rest = bits & 1023;
  if (exponent === 0) return sign * rest * 2 ** -24;
  if (exponent === 31) return rest ? NaN : sign * Infinity;
  return sign * (1 + rest / 1024) * 2 ** (exponent - 15);
}

/** The columns that view.pack() made: { text, name: array }. */
async function unpack({ text, columns, data }) {
  const packed = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  const found = { text: new TextDecoder().decode(bytes.subarray(0, text)) };
  let at = text;
  for (const [name, type, n] of columns) {
    const width = Number(type[1]), raw = new Uint8Array(n * width);
    for (let plane = 0; plane < width; plane++) for (let i = 0; i < n; i++) raw[i * width + plane] = bytes[at++];
    const Type = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, f2: Uint16Array, f4: Float32Array }[type];
    const column = new Type(raw.buffer);
    found[name] = type === "f2" ? Float32Array.from(column, half) : column;
  }
  return found;
}

/** Calls draw(width) now and whenever the element's width changes. */
function onWidth(el, draw) {
  let last = 0;
  new ResizeObserver(([entry]) => {
    const width = Math.floor(entry.contentRect.width);
    if (width > 0 && width !== last) draw((last = width));
  }).observe(el);
}

// --- the tokens of a rollout ------------------------------------------------------------------------------------

const ROLES = ["other", "perception", "reasoning", "answer"];
const LEVELS = 10;

class Tokens {
  constructor(data, columns) {
    Object.assign(this, columns);
    this.data = data;
    this.n = columns.units.length;
    this.m = columns.seg.length;
    this.offset = new Uint32Array(this.n + 1);
    for (let t = 0; t < this.n; t++) this.offset[t + 1] = this.offset[t] + columns.units[t];
    this.start = new Uint32Array(this.m + 1);
    for (let m = 0; m < this.m; m++) this.start[m + 1] = this.start[m] + columns.seg[m];
    this.segment = new Uint32Array(this.n);
    for (let m = 0; m < this.m; m++) this.segment.fill(m, this.start[m], this.start[m + 1]);
  }
  piece(t) { return this.text.slice(this.offset[t], this.offset[t + 1]); }
  words(from, to) { return this.text.slice(this.offset[from], this.offset[to]); }
  trained(t) { return (!this.loss || this.loss[t] === 1) && (!this.adv || !Number.isNaN(this.adv[t])); }
  inError(t) { const e = this.data.error; return Boolean(e) && e.start <= t && t < e.end; }
  /** Value of the state before token t: the critic's, else the one known for the start of its segment. */
  value(t) { return this.val ? this.val[t] : this.seg_val ? this.seg_val[this.segment[t]] : NaN; }
  /** Largest size of f over all tokens where it is known. */
  largest(f) {
    let best = 0;
    for (let t = 0; t < this.n; t++) { const x = Math.abs(f(t)); if (x > best && Number.isFinite(x)) best = x; }
    return best;
  }
}

// What a token can be coloured by. `x` gives the number that is coloured: diverging around 0, or from 0 up.
const LAYERS = [
  { id: "advantage", label: "Advantage", needs: "adv", diverging: true, x: (k, t) => (k.trained(t) ? k.adv[t] : NaN),
    scale: (k) => k.data.limit, ends: (m) => [signed(-m), "0", signed(m)],
    hint: "credit of each token; the scale is symmetric around 0 and made from trained tokens only" },
  { id: "value", label: "Value", needs: "val seg_val", x: (k, t) => k.value(t),
    ends: (m) => ["0", num(m, 2)], hint: "expected reward of the state before the token" },
  { id: "entropy", label: "Entropy", needs: "ent", x: (k, t) => k.ent[t], ends: (m) => ["0", `${num(m, 2)} nats`],
    hint: "of the distribution that the token was drawn from" },
  { id: "probability", label: "Probability", needs: "logp", x: (k, t) => 1 - Math.exp(k.logp[t]), scale: () => 1,
    ends: () => ["certain", "unlikely"], hint: "of the token when it was drawn; the darker the less likely" },
  { id: "ratio", label: "Ratio", needs: "ratio", diverging: true, x: (k, t) => Math.log(k.ratio[t]),
    ends: (m) => [`×${num(Math.exp(-m), 2)}`, "×1", `×${num(Math.exp(m), 2)}`],
    hint: "importance ratio after the step's updates, around 1; boxed tokens are clipped" },
  { id: "weight", label: "Weight", needs: "weight", diverging: true, x: (k, t) => k.weight[t] - 1,
    ends: (m) => [num(1 - m, 2), "1", num(1 + m, 2)], hint: "share of the advantage that the token gets, around 1" },
  { id: "role", label: "Role", needs: "role", hint: "what the token does in a structured completion" },
  { id: "loss", label: "Loss mask", needs: "loss", x: (k, t) => (k.trained(t) ? 0.3 : NaN), scale: () => 1,
    hint: "tokens that entered the loss with credit" },
];

/** The name of a shade: p3 above zero, n3 below, s3 on a scale from 0 up, "u" where there is no number. */
function shade(layer, scale, x) {
  if (!known(x)) return "u";
  if (scale <= 0 || Math.abs(x) < 1e-9) return "z";
  const size = clamp(Math.round((LEVELS * Math.abs(x)) / scale), 1, LEVELS);
  return (layer.diverging ? (x > 0 ? "p" : "n") : "s") + size;
}

// --- the ribbon -------------------------------------------------------------------------------------------------

const WHOLE = 1500;  // up to so many tokens a rollout is one flowing text
const BLOCK = 256;   // a longer one is cut into blocks of about so many, drawn only near the window
const CLIP = 240;    // longest piece shown whole, in characters

async function drawRibbonPage(data) {
  return h("div", { class: "page" }, await drawRibbon(data, data.pictures, { layer: "advantage" }));
}

/** `state.layer` is kept by the caller, so that a gallery stays on the chosen layer. */
async function drawRibbon(data, pictures, state) {
  const k = new Tokens(data, await unpack(data.pack));
  const view = { data, k, state, current: 0, blocks: [] };
  const root = h("article", { class: "ribbon", "aria-label": `${data.title} ${data.where}` });
  view.root = root;
  root.append(
    h("header", { class: "rb-head" },
      h("p", { class: "eyebrow" }, visible(data.where), " · ", h("b", {}, visible(data.method))),
      h("h2", {}, data.title),
      h("p", { class: "verdict" }, data.verdict.map((line, i) => [i ? " " : null, h(i ? "span" : "strong", {}, visible(line))])),
      badges(data)),
    ask(data, pictures));
  for (const note of data.notices) root.append(h("p", { class: "notice" }, note));
  if (!k.n) return root;

  view.stream = h("div", { class: "stream", dir: "ltr", role: "region", "aria-label": "Completion, token by token" });
  view.inspector = h("aside", { class: "inspect", "aria-label": "Numbers of the token" });
  view.legend = h("div", { class: "legend" });
  view.stairs = h("div", { class: "stairs" });
  root.append(toolbar(view), h("div", { class: "rb-main" },
    h("div", { class: "rb-flow" }, view.stream, view.stairs), view.inspector));

  cutBlocks(view);
  setLayer(view, usable(k, LAYERS.find((l) => l.id === state.layer)) ? state.layer : LAYERS.find((l) => usable(k, l))?.id);
  listen(view);
  drawStairs(view);
  view.current = data.blamed !== null ? k.start[data.blamed] : data.error ? data.error.start : 0;
  wake(view, view.blocks.find((b) => view.current < b.to));
  reach(view, view.current);
  inspect(view, view.current);
  return root;
}

const usable = (k, layer) => Boolean(layer) && layer.needs.split(" ").some((name) => k[name]);

function badges({ facts, tokens }) {
  const mark = (ok, label) => ok === null || ok === undefined ? null
    : h("li", { class: ok ? "ok" : "bad" }, h("span", { "aria-hidden": "true" }, ok ? "✓ " : "✗ "), `${label} ${ok ? "right" : "wrong"}`);
  const parts = Object.entries(facts.parts);
  const list = h("ul", { class: "badges" },
    h("li", { class: "plain" }, "reward ", h("b", {}, num(facts.reward)),
      parts.length > 1 ? ` = ${parts.map(([name, x]) => `${visible(name)} ${num(x)}`).join(", ")}` : null),
    mark(facts.right.answer, "answer"), mark(facts.right.perception, "perception"), mark(facts.right.reasoning, "reasoning"),
    facts.said !== null || facts.reference !== null
      ? h("li", { class: "plain" }, "said ", h("b", {}, facts.said === null ? "nothing" : h("bdi", {}, visible(facts.said))),
        facts.reference !== null ? [", reference ", h("b", {}, h("bdi", {}, visible(facts.reference)))] : null) : null,
    h("li", { class: facts.finished === false ? "cut" : "plain" },
      `${tokens.toLocaleString("en")} token${tokens === 1 ? "" : "s"}`,
      facts.finished === true ? ", finished" : facts.finished === false ? ", cut at the limit" : ""));
  return list;
}

function ask(data, pictures) {
  const figures = [], texts = [];
  for (const message of data.prompt) {
    const words = message.parts.filter((part) => part.text !== undefined && part.text !== "");
    if (words.length) {
      const text = words.map((part) => visible(part.text)).join("\n");
      // a long system prompt should not push the ribbon off the page
      const body = h("p", { class: "said", dir: "auto" }, text);
      texts.push(h("div", { class: "message" }, message.role ? h("p", { class: "role" }, visible(message.role)) : null,
        text.length > 900 ? h("details", {}, h("summary", {}, `${text.slice(0, 200)}… (${text.length.toLocaleString("en")} characters)`), body) : body));
    }
    for (const part of message.parts) if (part.image) figures.push(figure(pictures[part.image], figures.length + 1));
  }
  if (!figures.length && !texts.length) return null;
  return h("section", { class: "ask", "aria-label": "What the model was asked" },
    figures.length ? h("div", { class: "images" }, figures) : null, h("div", { class: "messages" }, texts));
}

function figure(picture, number) {
  if (!picture?.src) {
    return h("figure", {}, h("div", { class: "missing" }, "image ", picture?.note ?? "missing"), h("figcaption", {}, `image ${number}`));
  }
  const note = picture.note ? `, ${picture.note}` : "";
  const image = h("img", { src: picture.src, alt: `Image ${number} of the prompt, ${picture.w} by ${picture.h} pixels`,
    class: Math.max(picture.w, picture.h) <= 128 ? "pixels" : null });
  return h("figure", {}, image, h("figcaption", {}, `${picture.w} × ${picture.h}${note}`));
}

function toolbar(view) {
  const buttons = LAYERS.map((layer, i) => h("button", {
    type: "button", "data-layer": layer.id, "aria-pressed": "false", disabled: !usable(view.k, layer),
    title: usable(view.k, layer) ? layer.hint : "not recorded",
  }, h("kbd", { "aria-hidden": "true" }, String(i + 1)), layer.label));
  return h("div", { class: "tools" }, h("div", { class: "layers", role: "group", "aria-label": "Colour tokens by" }, buttons), view.legend);
}

function setLayer(view, id) {
  const layer = LAYERS.find((l) => l.id === id);
  if (!layer || !usable(view.k, layer)) return;
  view.layer = layer;
  view.state.layer = id;
  view.scale = layer.scale ? layer.scale(view.k) : layer.x ? view.k.largest((t) => layer.x(view.k, t)) : 0;
  view.root.dataset.layer = id;
  for (const button of view.root.querySelectorAll("button[data-layer]")) {
    button.setAttribute("aria-pressed", String(button.dataset.layer === id));
  }
  for (const block of view.blocks) if (block.live) for (const token of block.el.querySelectorAll(".t")) paint(view, token);
  drawLegend(view);
}

function paint(view, el) {
  const { k, layer, scale } = view, t = Number(el.dataset.t);
  delete el.dataset.l;
  delete el.dataset.r;
  if (layer.id === "role") el.dataset.r = ROLES[k.role[t]] ?? "none";
  else el.dataset.l = shade(layer, scale, layer.x(k, t));
  el.classList.toggle("boxed", layer.id === "ratio" && Boolean(k.clip) && k.clip[t] === 1);
}

function drawLegend({ legend, layer, scale, k }) {
  const items = [];
  if (layer.id === "role") {
    const there = new Set(k.role);
    items.push(...ROLES.filter((_, i) => there.has(i)).map((role) => h("span", { class: "swatch", "data-r": role }, role)));
  } else if (layer.id === "loss") {
    items.push(h("span", { class: "swatch", "data-l": "s3" }, "in the loss"));
  } else {
    const sizes = [10, 7, 4, 2], ends = layer.ends(scale);
    const steps = layer.diverging ? [...sizes.map((x) => `n${x}`), "z", ...sizes.toReversed().map((x) => `p${x}`)]
      : ["z", ...sizes.toReversed().map((x) => `s${x}`)];
    items.push(h("span", { class: "scale", "aria-label": `scale from ${ends[0]} to ${ends.at(-1)}` },
      h("span", { class: "end" }, ends[0]), steps.map((step) => h("i", { "data-l": step })), h("span", { class: "end" }, ends.at(-1))));
    if (layer.diverging) items.push(h("span", { class: "key" }, "bar below: under ", ends[1], ", bar above: over ", ends[1]));
  }
  let hatched = 0;
  for (let t = 0; layer.x && t < k.n; t++) hatched += !known(layer.x(k, t));
  if (hatched) items.push(h("span", { class: "swatch", "data-l": "u" }, layer.needs === "adv" || layer.id === "loss" ? "no credit: not trained" : "not measured"));
  legend.replaceChildren(...items);
  legend.title = layer.hint;
}

// Blocks: outside the window a block is its plain text (cheap, and still found by the browser's search).

function cutBlocks(view) {
  const { k, stream } = view;
  const edges = [0];
  if (k.n > WHOLE) {
    for (let t = 0; t < k.n; t++) {
      const size = t + 1 - edges.at(-1);
      // a line of its own begins where the text has one; without a newline soon, where a segment ends; else anywhere
      const natural = k.piece(t).endsWith("\n") || (size > BLOCK * 1.25 && k.start[k.segment[t] + 1] === t + 1);
      if (t + 1 < k.n && ((size >= BLOCK && natural) || size >= BLOCK * 1.5)) edges.push(t + 1);
    }
  }
  edges.push(k.n);
  view.edges = edges;
  for (let b = 0; b + 1 < edges.length; b++) {
    const el = h("div", { class: "block", "data-b": b });
    view.blocks.push({ el, from: edges[b], to: edges[b + 1], live: false });
    stream.append(el);
  }
  if (view.blocks.length === 1) return wake(view, view.blocks[0]);
  stream.classList.add("long");
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const block = view.blocks[Number(entry.target.dataset.b)];
      if (entry.isIntersecting) wake(view, block);
      else if (view.current < block.from || view.current >= block.to) sleep(view, block);
    }
  }, { rootMargin: "900px 0px" });
  for (const block of view.blocks) {
    block.el.textContent = visible(k.words(block.from, block.to));
    observer.observe(block.el);
  }
}

function sleep(view, block) {
  if (!block.live) return;
  block.live = false;
  block.el.replaceChildren(visible(view.k.words(block.from, block.to)));
}

function wake(view, block) {
  if (block.live) return;
  block.live = true;
  const { k } = view, parts = [];
  for (let t = block.from; t < block.to;) {
    const m = k.segment[t], end = Math.min(block.to, k.start[m + 1]);
    parts.push(segment(view, m, t, end));
    t = end;
  }
  block.el.replaceChildren(...parts);
  if (view.layer) for (const token of block.el.querySelectorAll(".t")) paint(view, token);
}

function segment(view, m, from, to) {
  const { k, data } = view, first = k.start[m];
  // a value under every single token would only be noise: there the staircase tells it
  const value = k.seg_val && known(k.seg_val[m]) && k.n >= 1.5 * k.m
    ? `V ${num(k.seg_val[m], 2)}${k.seg_err && known(k.seg_err[m]) ? ` ± ${num(k.seg_err[m], 1)}` : ""}` : "";
  const el = h("span", { class: "seg", role: "group", "data-s": m, "aria-label": segmentWords(view, m) });
  let t = from;
  if (from === first) {
    // the labels stand over the first tokens, which stay together on one line and are at least as wide
    const credit = k.seg_adv[m];
    const sign = !known(credit) ? "none" : credit > 0 ? "plus" : credit < 0 ? "minus" : "zero";
    const tag = h("span", { class: "tag", "aria-hidden": "true", "data-v": value },
      h("b", {}, m + 1), h("i", { "data-sign": sign }, known(credit) ? signed(credit) : "–"));
    const held = h("span", { class: "held" });
    let room = 8, broken = false;
    while (t < to && room > 0 && !broken && !(t > from && data.error?.start === t)) {
      const piece = k.piece(t);
      if (t > from && piece.length > 20) break;
      room -= Math.max(1, piece.length);
      broken = piece.includes("\n");
      if (t > from) gap(held, piece);
      held.append(token(view, t, false));
      t++;
    }
    if (data.error?.start === from) el.append(flag(data.error));
    el.append(h("span", { class: value ? "start valued" : "start" }, tag, held,
      value ? h("span", { class: "val", "aria-hidden": "true" }, value) : null));
    if (broken) el.append(h("br"));
  }
  for (; t < to; t++) {
    if (data.error?.start === t) el.append(flag(data.error));
    gap(el, k.piece(t));
    el.append(token(view, t, true));
  }
  return el;
}

/** A line may break before a word with its space, not between the two: a space alone at a line's end looks like a token. */
function gap(el, piece) {
  if (piece[0] === " ") el.append(h("wbr"));
}

const flag = (error) => h("span", { class: "flag" }, h("b", {}, "✗ first error"), ` ${visible(error.kind)}`,
  error.why ? `: ${visible(error.why.length > 90 ? error.why.slice(0, 90) + "…" : error.why)}` : "");

function token(view, t, breaks) {
  const { k, data } = view, piece = k.piece(t);
  let text = visible(piece.length > CLIP ? piece.slice(0, CLIP) : piece);
  text = text.replaceAll("\n", breaks ? "↵\n" : "↵");
  if (piece.length > CLIP) text += `… +${(piece.length - CLIP).toLocaleString("en")} characters`;
  const empty = piece === "";
  if (empty) text = t === k.n - 1 && data.facts.finished ? "∎" : "◦";
  const el = h("span", { class: "t", "data-t": t }, text);
  if (empty) el.classList.add("empty");
  if (piece.includes("\n")) el.classList.add("nl");
  else if (piece[0] === " " && piece.length <= 24) el.classList.add("word");
  if (k.inError(t)) {
    el.classList.add("err");
    if (t === data.error.end - 1) el.classList.add("last");
  }
  return el;
}

function segmentWords(view, m) {
  const { k, data } = view, say = (x) => signed(x).replace("−", "minus ").replace("+", "plus ");
  const parts = [`Segment ${m + 1} of ${k.m}`, `tokens ${k.start[m] + 1} to ${k.start[m + 1]}`,
    known(k.seg_adv[m]) ? `advantage ${say(k.seg_adv[m])}` : "no credit"];
  if (k.seg_val && known(k.seg_val[m])) parts.push(`value ${num(k.seg_val[m])}`);
  if (k.seg_rule) parts.push(data.rules[k.seg_rule[m]]);
  if (data.error && k.segment[data.error.start] === m) parts.push("holds the first true error");
  return visible(parts.join(", "));
}

// --- pointing and keys: one listener of each kind for the whole ribbon --------------------------------------------

function listen(view) {
  const { root, k, stream } = view;
  const tokenOf = (event) => event.target.closest?.(".t");
  root.addEventListener("pointerover", (event) => {
    const el = tokenOf(event);
    if (el) inspect(view, Number(el.dataset.t));
  });
  stream.addEventListener("pointerleave", () => inspect(view, view.current));
  root.addEventListener("click", (event) => {
    const el = tokenOf(event), button = event.target.closest("button[data-layer]");
    if (button) setLayer(view, button.dataset.layer);
    else if (el) go(view, Number(el.dataset.t));
  });
  root.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { key, shiftKey } = event, t = view.current, m = k.segment[t];
    const layer = LAYERS[Number(key) - 1];
    if (layer) return setLayer(view, layer.id);
    const target = key === "ArrowRight" ? (shiftKey ? k.start[Math.min(m + 1, k.m - 1)] : t + 1)
      : key === "ArrowLeft" ? (shiftKey ? (t > k.start[m] ? k.start[m] : k.start[Math.max(0, m - 1)]) : t - 1)
      : key === "ArrowDown" ? near(view, 1) : key === "ArrowUp" ? near(view, -1)
      : key === "Home" ? 0 : key === "End" ? k.n - 1
      : (key === "e" || key === "E") && view.data.error ? view.data.error.start
      : (key === "w" || key === "W") && view.data.blamed !== null ? k.start[view.data.blamed] : null;
    if (target === null) return;
    event.preventDefault();
    go(view, clamp(target, 0, k.n - 1));
  });
}

const tokenEl = (view, t) => view.stream.querySelector(`.t[data-t="${t}"]`);

/** The token above or below the current one, as the eye sees it. */
function near(view, way) {
  const here = tokenEl(view, view.current)?.getClientRects()[0];
  if (!here) return view.current;
  let best = view.current, row = null, distance = Infinity;
  for (let t = view.current + way; t >= 0 && t < view.k.n; t += way) {
    const box = tokenEl(view, t)?.getClientRects()[0];
    if (!box) return t;
    if (Math.abs(box.bottom - here.bottom) < 8) continue;
    row ??= box.bottom;
    if (Math.abs(box.bottom - row) > 8) break;
    if (Math.abs(box.left - here.left) < distance) [best, distance] = [t, Math.abs(box.left - here.left)];
  }
  return best;
}

/** Makes token t the current one and gives it the keyboard. */
function go(view, t) {
  const block = view.blocks.find((b) => b.from <= t && t < b.to);
  view.current = t;
  wake(view, block);
  const el = reach(view, t);
  el.focus({ preventScroll: true });
  const box = el.getBoundingClientRect(), far = box.bottom < 0 || box.top > innerHeight;
  el.scrollIntoView({ block: far ? "center" : "nearest" });
  inspect(view, t);
}

/** Makes token t the one that Tab reaches, with a name for those who hear it. */
function reach(view, t) {
  for (const old of view.stream.querySelectorAll(".t[tabindex]")) for (const name of ["tabindex", "role", "aria-label"]) old.removeAttribute(name);
  const el = tokenEl(view, t), { k } = view;
  el.setAttribute("tabindex", "0");
  el.setAttribute("role", "button");
  el.setAttribute("aria-label", `token ${t + 1}, ${visible(k.piece(t)).slice(0, 60)}, advantage ${signed(k.adv?.[t])}, segment ${k.segment[t] + 1}`);
  return el;
}

/** Shows every number of token t and of its segment. */
function inspect(view, t) {
  const { k, data } = view, m = k.segment[t];
  view.shown = t;
  for (const old of view.stream.querySelectorAll(".seg.on")) if (Number(old.dataset.s) !== m) old.classList.remove("on");
  for (const seg of view.stream.querySelectorAll(`.seg[data-s="${m}"]`)) seg.classList.add("on");
  const line = (name, x) => [h("dt", {}, name), h("dd", {}, x)];
  const at = (column, show = num) => (column ? show(column[t]) : "not recorded");
  const clip = !k.clip || k.clip[t] === 2 ? "" : k.clip[t] ? "yes" : "no";
  const piece = k.piece(t);
  const words = visible(k.words(k.start[m], Math.min(k.start[m + 1], k.start[m] + 40))).slice(0, 160);
  const loss = k.loss ? ["no", "yes", "not recorded"][k.loss[t]] : "not recorded";
  const rows = [
    line("advantage", k.adv ? (known(k.adv[t]) ? signed4(k.adv[t]) : "none assigned") : "not recorded"),
    line("weight", at(k.weight)),
    line("in the loss", loss),
    line("value before", known(k.value(t)) ? num(k.value(t)) : "not recorded"),
    k.ret ? line("return", at(k.ret)) : [],
    line("probability", at(k.logp, (x) => num(Math.exp(x)))),
    line("log-prob.", at(k.logp)),
    k.ref ? line("log-prob. ref.", at(k.ref)) : [],
    line("entropy, nats", at(k.ent)),
    line("ratio", at(k.ratio)),
    clip ? line("clipped", clip) : [],
    k.role ? line("role", ROLES[k.role[t]] ?? "none") : [],
    k.pc ? line("perc. contrast", at(k.pc)) : [],
    k.rc ? line("reas. contrast", at(k.rc)) : [],
    k.id ? line("token id", String(k.id[t])) : [],
  ];
  const error = k.inError(t) ? h("p", { class: "why" }, h("b", {}, `✗ ${visible(data.error.kind)} error`), data.error.why ? ` ${visible(data.error.why)}` : "") : null;
  const value = k.seg_val && known(k.seg_val[m])
    ? num(k.seg_val[m]) + (k.seg_err && known(k.seg_err[m]) ? ` ± ${num(k.seg_err[m], 2)}` : "") : "not recorded";
  view.inspector.replaceChildren(
    h("section", {},
      h("h3", {}, `Token ${t + 1} `, h("span", {}, `of ${k.n.toLocaleString("en")}`)),
      h("p", { class: "piece", dir: "auto" }, piece === "" ? "(empty)" : visible(piece).replaceAll("\n", "↵").slice(0, 120)), error,
      h("dl", {}, rows)),
    h("section", {},
      h("h3", {}, `Segment ${m + 1} `, h("span", {}, `of ${k.m.toLocaleString("en")}`)),
      h("p", { class: "piece small", dir: "auto" }, words.replaceAll("\n", "↵")),
      h("dl", {}, line("advantage", known(k.seg_adv[m]) ? signed4(k.seg_adv[m]) : "none"),
        line("value at start", value),
        line("tokens", k.seg[m] === 1 ? `${k.start[m] + 1}` : `${k.start[m] + 1} to ${k.start[m + 1]}`)),
      k.seg_rule && data.rules[k.seg_rule[m]] ? h("p", { class: "rule" }, h("b", {}, "cut "), visible(data.rules[k.seg_rule[m]])) : null),
    h("p", { class: "keys" }, h("kbd", {}, "←"), h("kbd", {}, "→"), " token  ", h("kbd", {}, "⇧←"), h("kbd", {}, "⇧→"), " segment  ",
      h("kbd", {}, "1"), "–", h("kbd", {}, "8"), " layer  ", h("kbd", {}, "W"), " most blamed  ", h("kbd", {}, "E"), " error"));
  view.moveCursor?.(t);
}

const signed4 = (x) => (x > 0 ? "+" : "") + num(x, 4);

// --- the staircase ----------------------------------------------------------------------------------------------

function drawStairs(view) {
  const { k, data, stairs } = view, reward = data.facts.reward;
  const measured = k.seg_val ? [...k.seg_val].some(known) : Boolean(k.val);
  if (!measured) {
    stairs.append(h("p", { class: "notice quiet" }, `No values are recorded: ${data.method} did not estimate any, so there is no staircase to draw.`));
    return;
  }
  stairs.append(h("h3", {}, "Value along the completion", h("span", {}, " expected reward before each segment, the reward itself at the end")));
  const box = h("div", { class: "plot" });
  stairs.append(box);
  onWidth(box, (width) => {
    const height = 168, left = 40, right = 52, top = 14, bottom = 24;
    const all = [reward, 0];
    for (let m = 0; m < k.m; m++) if (k.seg_val) all.push(k.seg_val[m], k.seg_err ? k.seg_val[m] + k.seg_err[m] : NaN, k.seg_err ? k.seg_val[m] - k.seg_err[m] : NaN);
    if (k.val) for (const x of k.val) all.push(x);
    let low = Infinity, high = -Infinity;
    for (const x of all) if (Number.isFinite(x) && x !== null) { low = Math.min(low, x); high = Math.max(high, x); }
    if (high <= 1) high = Math.max(high, 1);
    const pad = (high - low) * 0.04 || 0.5;
    const X = (t) => left + ((width - left - right) * t) / k.n;
    const Y = (v) => top + (height - top - bottom) * (1 - (v - low + pad) / (high - low + 2 * pad));
    const svg = s("svg", { width, height, role: "img", "aria-label": stairWords(view) });
    for (const y of ticks(low, high, 3)) {
      svg.append(s("line", { x1: left, x2: width - right, y1: Y(y), y2: Y(y), class: "grid" }),
        s("text", { x: left - 8, y: Y(y) + 4, class: "tick end" }, num(y)));
    }
    if (data.error) {
      const x = X(data.error.start), wide = Math.max(3, X(data.error.end) - x), late = x > width * 0.7;
      svg.append(s("rect", { x, y: top, width: wide, height: height - top - bottom, class: "errband" }),
        s("text", { x: late ? x - 5 : x + wide + 5, y: top + 9, class: `errtext${late ? " end" : ""}` }, "✗ first error"));
    }
    if (k.val) svg.append(s("path", { d: thin(k, X, Y, width), class: "critic" }));
    if (k.seg_val) {
      let d = "", last = null;
      for (let m = 0; m < k.m; m++) {
        const v = k.seg_val[m];
        if (!Number.isFinite(v)) { last = null; continue; }
        const a = X(k.start[m]), b = X(k.start[m + 1]);
        d += `M${a.toFixed(1)} ${Y(v).toFixed(1)}H${b.toFixed(1)}`;
        if (last !== null) riser(svg, a, Y(last), Y(v));
        if (k.seg_err && Number.isFinite(k.seg_err[m]) && k.m <= 200) {
          const mid = (a + b) / 2;
          svg.append(s("path", { d: `M${mid} ${Y(v - k.seg_err[m])}V${Y(v + k.seg_err[m])}`, class: "whisker" }));
        }
        last = v;
      }
      svg.append(s("path", { d, class: "tread" }));
      if (last !== null && known(reward)) riser(svg, X(k.n), Y(last), Y(reward));
    }
    if (known(reward)) {
      svg.append(s("path", { d: `M${X(k.n)} ${Y(reward)}h7`, class: "tread" }), s("circle", { cx: X(k.n) + 9, cy: Y(reward), r: 4, class: "dot" }),
        s("text", { x: X(k.n) + 16, y: Y(reward) + 4, class: "tick strong" }, num(reward)));
    }
    svg.append(s("text", { x: left, y: height - 5, class: "tick" }, "token 1"), s("text", { x: X(k.n), y: height - 5, class: "tick end" }, k.n.toLocaleString("en")));
    const cursor = s("line", { y1: top - 4, y2: height - bottom, class: "cursor" });
    svg.append(cursor);
    view.moveCursor = (t) => { const x = X(t + 0.5); cursor.setAttribute("x1", x); cursor.setAttribute("x2", x); };
    view.moveCursor(view.shown ?? 0);
    const at = (event) => clamp(Math.floor(((event.clientX - svg.getBoundingClientRect().left - left) * k.n) / (width - left - right)), 0, k.n - 1);
    svg.addEventListener("pointermove", (event) => inspect(view, at(event)));
    svg.addEventListener("pointerleave", () => inspect(view, view.current));
    svg.addEventListener("click", (event) => go(view, at(event)));
    box.replaceChildren(svg);
  });
}

/** A rise or fall between two treads; thin and plain where it is small on paper. */
function riser(svg, x, from, to) {
  if (Math.abs(from - to) < 0.5) return;
  svg.append(s("path", { d: `M${x.toFixed(1)} ${from.toFixed(1)}V${to.toFixed(1)}`, class: to < from ? "rise" : "fall" }));
}

/** The critic's value at every token; of more tokens than pixels, the lowest and highest of each pixel. */
function thin(k, X, Y, width) {
  const stride = Math.max(1, Math.floor((2 * k.n) / width));
  let d = "", pen = "M";
  for (let t = 0; t < k.n; t += stride) {
    let low = Infinity, high = -Infinity;
    for (let i = t; i < Math.min(t + stride, k.n); i++) if (Number.isFinite(k.val[i])) { low = Math.min(low, k.val[i]); high = Math.max(high, k.val[i]); }
    if (low > high) { pen = "M"; continue; }
    d += `${pen}${X(t).toFixed(1)} ${Y(low).toFixed(1)}`;
    if (high > low) d += `L${X(t).toFixed(1)} ${Y(high).toFixed(1)}`;
    pen = "L";
  }
  return d;
}

function stairWords({ k, data }) {
  const v = k.seg_val ?? k.val;
  return `Value from ${num(v[0])} at the start over ${k.m} segments to ${num(v[v.length - 1])} before the last, reward ${num(data.facts.reward)}.`;
}

/** About n round numbers within [low, high]. */
function ticks(low, high, n) {
  if (!(high > low)) return [low];
  const rough = (high - low) / n, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].find((f) => f * power >= rough * 0.999) * power;
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

// --- the board --------------------------------------------------------------------------------------------------

const DASHES = ["", "7 4", "2 3", "9 3 2 3", ""];

async function drawBoardPage(data) {
  return h("div", { class: "page" }, h("h1", {}, data.title), drawBoard(data));
}

function drawBoard(data) {
  const root = h("div", { class: "board" });
  if (data.empty) return h("p", { class: "notice" }, data.empty);
  if (data.groups.length > 1 || data.groups.some((g) => g.runs > 1)) {
    root.append(h("p", { class: "quiet" }, data.groups.map((g) => `${g.label}: ${g.runs} run${g.runs > 1 ? "s" : ""}`).join(" · "),
      data.groups.some((g) => g.runs > 1) ? ". Line: mean over runs; band: lowest to highest." : ""));
  }
  const big = data.charts.filter((c) => c.share), small = data.charts.filter((c) => !c.share);
  const sync = [];
  if (big.length) root.append(h("div", { class: `charts big${big.some((c) => c.panels) ? " panels" : ""}` }, big.map((c) => drawChart(c, sync))));
  if (small.length) root.append(h("div", { class: "charts" }, small.map((c) => drawChart(c, sync))));
  if (data.other.length) {
    const holder = h("div", { class: "charts" });
    root.append(h("details", { ontoggle: () => { if (!holder.childElementCount) holder.append(...data.other.map((c) => drawChart(c, sync))); } },
      h("summary", {}, `All other metrics (${data.other.length})`), holder));
  }
  return root;
}

function drawChart(chart, sync) {
  const panels = chart.panels ? [...new Set(chart.lines.map((l) => l.panel))] : [""];
  return h("figure", { class: "chart" }, h("figcaption", {}, h("b", {}, visible(chart.title)), chart.hint ? h("span", {}, ` ${chart.hint}`) : null),
    h("div", { class: "row" }, panels.map((panel) => drawPanel(chart, panel, chart.panels ? chart.lines.filter((l) => l.panel === panel) : chart.lines, sync))));
}

/** A line with its neighbours' mean, where it has many points: { y, wide }. */
function smooth(line) {
  const n = line.y.length;
  if (n <= 60 || line.low) return null;
  const wide = Math.max(5, Math.round(n / 25)) | 1, reach = wide >> 1, y = [];
  for (let i = 0; i < n; i++) {
    const part = line.y.slice(Math.max(0, i - reach), i + reach + 1);
    y.push(part.reduce((a, b) => a + b, 0) / part.length);
  }
  return { y, wide };
}

function drawPanel(chart, panel, lines, sync) {
  const marks = ["●", "■", "▲", "◆", "●"];
  const readings = lines.map(() => h("b", {}));
  const single = !lines[0].label;  // one run, one metric: the title says what it is
  const legend = h("div", { class: "lines" }, lines.map((line, i) => h("span", {},
    single ? null : [glyph(line.style, marks), visible(line.label), " "], readings[i])), h("span", { class: "at" }));
  const at = legend.querySelector(".at"), box = h("div", { class: "plot" });
  const root = h("div", { class: "panel" }, panel ? h("p", { class: "panelname" }, panel) : null, legend, box);
  const steps = [...new Set(lines.flatMap((l) => l.x))].sort((a, b) => a - b);
  const smoothed = lines.map(smooth);
  let put = () => {};

  const show = (step) => {
    lines.forEach((line, i) => {
      const y = step === null ? line.y.at(-1) : nearest(line, step);
      readings[i].textContent = y === null ? "–" : chart.share ? `${(100 * y).toFixed(1)} %` : num(y, 4);
    });
    const window_ = smoothed.find(Boolean);
    at.textContent = step === null ? (single ? ` at step ${lines[0].x.at(-1)}` : "") + (window_ ? ` · thick: mean of ${window_.wide}` : "") : ` at step ${step}`;
    put(step);
  };
  sync.push(show);
  const everywhere = (step) => sync.forEach((f) => f(step));

  onWidth(box, (width) => {
    const height = chart.share ? 190 : 130, left = 46, right = 12, top = 8, bottom = 22;
    let low = Infinity, high = -Infinity;
    for (const l of lines) for (const list of [l.y, l.low ?? [], l.high ?? []]) for (const y of list) { low = Math.min(low, y); high = Math.max(high, y); }
    if (chart.share) [low, high] = [0, 1];
    else if (low > 0 && low < 0.5 * high) low = 0;
    if (high === low) [low, high] = [low - (Math.abs(low) * 0.1 || 1), high + (Math.abs(high) * 0.1 || 1)];
    const [x0, x1] = [steps[0], Math.max(steps.at(-1), steps[0] + 1)];
    const X = (x) => left + ((width - left - right) * (x - x0)) / (x1 - x0);
    const Y = (y) => top + (height - top - bottom) * (1 - (y - low) / (high - low));
    const svg = s("svg", { width, height, tabindex: 0, role: "img", "aria-label": chartWords(chart, panel, lines) });
    for (const y of ticks(low, high, chart.share ? 4 : 3)) {
      svg.append(s("line", { x1: left, x2: width - right, y1: Y(y), y2: Y(y), class: "grid" }),
        s("text", { x: left - 7, y: Y(y) + 4, class: "tick end" }, chart.share ? `${Math.round(100 * y)} %` : num(y)));
    }
    const across = ticks(x0, x1, Math.max(3, Math.floor(width / 90))).filter(Number.isInteger);
    across.forEach((x) => svg.append(s("text", { x: X(x), y: height - 5, class: X(x) > width - 24 ? "tick end" : X(x) < left + 8 ? "tick" : "tick mid" }, num(x, 6))));
    lines.forEach((l, i) => {
      const path = (ys) => l.x.map((x, j) => `${j ? "L" : "M"}${X(x).toFixed(1)} ${Y(ys[j]).toFixed(1)}`).join("");
      if (l.low) {
        const back = l.x.map((x, j) => `L${X(x).toFixed(1)} ${Y(l.low[j]).toFixed(1)}`).reverse().join("");
        svg.append(s("path", { d: `${path(l.high)}${back}Z`, class: `band c${l.style % 5}` }));
      }
      const soft = smoothed[i];
      if (soft) svg.append(s("path", { d: path(l.y), class: `raw c${l.style % 5}` }));
      svg.append(s("path", { d: path(soft ? soft.y : l.y), class: `curve c${l.style % 5}`, "stroke-dasharray": DASHES[l.style % 5] || null }));
      const every = Math.max(1, Math.ceil(l.x.length / 12)), ys = soft ? soft.y : l.y;
      if (!single) for (let j = (l.x.length - 1) % every; j < l.x.length; j += every) svg.append(marker(l.style, X(l.x[j]), Y(ys[j])));
      else if (l.x.length === 1) svg.append(marker(l.style, X(l.x[0]), Y(ys[0])));
    });
    const cursor = s("line", { y1: top, y2: height - bottom, class: "cursor" }), dots = s("g", {});
    svg.append(cursor, dots);
    let place = steps.length - 1;
    put = (step) => {
      cursor.style.display = step === null || step < x0 || step > x1 ? "none" : "";
      if (step === null) return dots.replaceChildren();
      place = steps.reduce((best, x, i) => (Math.abs(x - step) < Math.abs(steps[best] - step) ? i : best), 0);
      cursor.setAttribute("x1", X(step));
      cursor.setAttribute("x2", X(step));
      dots.replaceChildren(...lines.filter((l) => nearest(l, step) !== null).map((l) => s("circle", { cx: X(step), cy: Y(nearest(l, step)), r: 3.5, class: `spot c${l.style % 5}` })));
    };
    put(null);
    svg.addEventListener("pointermove", (event) => {
      const x = x0 + ((event.clientX - svg.getBoundingClientRect().left - left) * (x1 - x0)) / (width - left - right);
      everywhere(steps.reduce((best, y) => (Math.abs(y - x) < Math.abs(best - x) ? y : best), steps[0]));
    });
    svg.addEventListener("pointerleave", () => everywhere(null));
    svg.addEventListener("blur", () => everywhere(null));
    svg.addEventListener("keydown", (event) => {
      const way = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!way) return;
      event.preventDefault();
      everywhere(steps[clamp(place + way, 0, steps.length - 1)]);
    });
    box.replaceChildren(svg);
  });
  show(null);
  return root;
}

/** The line's number at the recorded step nearest to `step`; null where the line lies elsewhere. */
function nearest(line, step) {
  if (step < line.x[0] || step > line.x.at(-1)) return null;
  let best = 0;
  for (let i = 1; i < line.x.length; i++) if (Math.abs(line.x[i] - step) < Math.abs(line.x[best] - step)) best = i;
  return line.y[best];
}

function marker(style, x, y) {
  const r = 3.2, kind = style % 5, name = `mark c${kind}`;
  if (kind === 1) return s("rect", { x: x - r + 0.4, y: y - r + 0.4, width: 2 * r - 0.8, height: 2 * r - 0.8, class: name });
  if (kind === 2) return s("path", { d: `M${x} ${y - r - 0.6}l${r + 0.6} ${2 * r}h${-2 * r - 1.2}z`, class: name });
  if (kind === 3) return s("path", { d: `M${x} ${y - r - 1}l${r + 1} ${r + 1}l${-r - 1} ${r + 1}l${-r - 1} ${-r - 1}z`, class: name });
  return s("circle", { cx: x, cy: y, r, class: name });
}

function glyph(style) {
  return s("svg", { width: 30, height: 12, "aria-hidden": "true", class: "glyph" },
    s("path", { d: "M1 6H29", class: `curve c${style % 5}`, "stroke-dasharray": DASHES[style % 5] || null }), marker(style, 15, 6));
}

function chartWords(chart, panel, lines) {
  const show = (y) => (chart.share ? `${(100 * y).toFixed(0)} percent` : num(y));
  return visible(`${chart.title}${panel ? `, ${panel}` : ""}: ` + lines.map((l) =>
    `${l.label ? `${l.label} ` : ""}from ${show(l.y[0])} at step ${l.x[0]} to ${show(l.y.at(-1))} at step ${l.x.at(-1)}`).join("; "));
}

// --- the report -------------------------------------------------------------------------------------------------

async function drawReport(data) {
  const facts = data.facts.filter(([name]) => !["versions", "commit", "machine"].includes(name));
  const rest = data.facts.filter(([name]) => ["versions", "commit", "machine"].includes(name));
  const list = (items) => h("dl", { class: "facts" }, items.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, visible(value)))));
  const root = h("div", { class: "page" },
    h("header", { class: "top" }, h("p", { class: "eyebrow" }, "SegPO run"), h("h1", {}, visible(data.name), " ", h("span", {}, visible(data.method))),
      data.headline.length ? h("div", { class: "tiles" }, data.headline.map(tile)) : null, list(facts),
      rest.length ? h("details", {}, h("summary", {}, "Versions and machine"), list(rest)) : null,
      data.problems.map((line) => h("p", { class: "notice" }, visible(line)))),
    h("section", {}, h("h2", {}, data.board.title), drawBoard(data.board)));
  const gallery = h("section", { class: "gallery" }, h("h2", {}, "Rollouts worth a look"));
  root.append(gallery);
  if (data.ribbons.length) gallery.append(await drawGallery(data));
  else gallery.append(h("p", { class: "notice" }, "No rollouts are recorded yet."));
  return root;
}

function tile({ label, note, start, end, steps }) {
  const share = (x) => `${(100 * x).toFixed(1)}`, change = end - start;
  return h("div", { class: "tile" }, h("p", { class: "what" }, label), h("p", { class: "figure" }, h("span", {}, share(start)), " → ", h("b", {}, share(end)), h("small", {}, " %")),
    h("p", { class: "quiet" }, `${change >= 0 ? "▲ +" : "▼ −"}${Math.abs(100 * change).toFixed(1)} points, ${note}, steps ${steps[0]} to ${steps[1]}`));
}

async function drawGallery(data) {
  const state = { layer: "advantage" }, stage = h("div", { class: "stage" }), why = h("p", { class: "caption", "aria-live": "polite" });
  const kinds = [...new Set(data.gallery.map((g) => g.kind))], steps = [...new Set(data.gallery.map((g) => g.step))];
  const buttons = [];
  const choose = async (i) => {
    const entry = data.gallery[i];
    buttons.forEach(({ el, i: j }) => el.setAttribute("aria-pressed", String(i === j)));
    why.replaceChildren(h("b", {}, `Step ${entry.step}, ${entry.kind.toLowerCase()}. `), entry.why);
    stage.replaceChildren(await drawRibbon(data.ribbons[entry.ribbon], data.pictures, state));
  };
  const button = (entry) => {
    const i = data.gallery.indexOf(entry), ribbon = data.ribbons[entry.ribbon];
    const reward = ribbon.facts.reward;
    const el = h("button", { type: "button", "aria-pressed": "false", "aria-label": `Step ${entry.step}, ${entry.kind}`, onclick: () => choose(i) },
      strip(ribbon.strip), h("span", {}, `reward ${num(reward, 2)} · ${ribbon.tokens.toLocaleString("en")} tokens`));
    buttons.push({ el, i });
    return el;
  };
  const table = h("table", { class: "picker" },
    h("thead", {}, h("tr", {}, h("td", {}), kinds.map((kind) => h("th", { scope: "col" }, kind)))),
    h("tbody", {}, steps.map((step) => h("tr", {}, h("th", { scope: "row" }, `step ${step}`), kinds.map((kind) => {
      const entries = data.gallery.filter((g) => g.step === step && g.kind === kind);
      return h("td", { "data-kind": kind }, entries.length && entries[0].ribbon !== null ? entries.map(button) : h("span", { class: "none" }, "none recorded"));
    })))));
  const first = data.gallery.findLastIndex((g) => g.ribbon !== null && /error|blamed/i.test(g.kind));
  await choose(first >= 0 ? first : data.gallery.findIndex((g) => g.ribbon !== null));
  return h("div", {}, table, why, stage);
}

/** A rollout's credit at a glance. Bars go up for positive and down for negative credit. */
function strip(levels) {
  const svg = s("svg", { viewBox: `0 0 ${Math.max(1, levels.length)} 22`, preserveAspectRatio: "none", class: "strip", "aria-hidden": "true" });
  levels.forEach((size, x) => {
    if (size === -99) svg.append(s("rect", { x, y: 10, width: 1, height: 2, class: "none" }));
    else if (size) svg.append(s("rect", { x, y: size > 0 ? 11 - size : 11, width: 1, height: Math.abs(size), class: size > 0 ? "up" : "down" }));
  });
  svg.append(s("rect", { x: 0, y: 10.6, width: Math.max(1, levels.length), height: 0.8, class: "zero" }));
  return svg;
}
