// Parts of one ES module, joined by segviz.theme.script(): this one first, main.js last, all in one scope.
//
// Text from models is hostile: it reaches the page through text nodes and attributes set by name, never as markup.
// The page's policy forbids style attributes: set styles with el.style.

// --- small tools ------------------------------------------------------------------------------------------------

/** Kind of data -> what draws it, (data, bus) -> element. Every view adds its own at the end of its file. */
const DRAW = {};

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
/** The probability of a log-probability; one that only rounds to 1 is not called certain. */
function chance(logprob, digits = 3) {
  const p = Math.exp(logprob), text = num(p, digits);
  return p < 1 && text === "1" ? `> ${(1 - 5 * 10 ** -(digits + 1)).toFixed(digits + 1)}` : text;
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

// --- links between views ------------------------------------------------------------------------------------------

/**
 * Links the views that are drawn together. What is selected in one is told to the others and to the host (a notebook's
 * Python side, an app), which may also select, and may show another rollout when a view asks for it.
 *
 * A selection is { key, token, segment, node, from }: `key` "step/group/sample", the rest where it makes sense.
 */
class Bus extends EventTarget {
  /** `host`: { select(detail), open(key) }, each optional. `state` is what views keep when they are drawn anew. */
  constructor(host = {}) {
    super();
    this.host = host;
    this.state = {};
    this.last = null;
  }
  select(detail, fromHost = false) {
    this.last = detail;
    this.dispatchEvent(new CustomEvent("select", { detail }));
    if (!fromHost) this.host.select?.(detail);
  }
  onSelect(tell) { this.addEventListener("select", (event) => tell(event.detail)); }
  /** Asks for a rollout { step, group, sample }. A view on the page may answer (onOpen returns true), else the host. */
  open(key) {
    const event = new CustomEvent("open", { detail: key, cancelable: true });
    if (this.dispatchEvent(event)) this.host.open?.(key);
  }
  onOpen(answer) {
    this.answers = true;
    this.addEventListener("open", (event) => { if (answer(event.detail)) event.preventDefault(); });
  }
  /** Whether somebody would answer. */
  get opens() { return Boolean(this.host.open || this.answers); }
}

/** "step/group/sample" of a rollout's data or ids. */
const keyOf = ({ step, group, sample }) => `${step ?? ""}/${group ?? ""}/${sample ?? ""}`;

/** About n round numbers within [low, high]. */
function ticks(low, high, n) {
  if (!(high > low)) return [low];
  const rough = (high - low) / n, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].find((f) => f * power >= rough * 0.999) * power;
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}
