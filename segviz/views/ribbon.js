// --- the ribbon -------------------------------------------------------------------------------------------------

const WHOLE = 1500;  // up to so many tokens a rollout is one flowing text
const BLOCK = 256;   // a longer one is cut into blocks of about so many, drawn only near the window
const CLIP = 240;    // longest piece shown whole, in characters

async function drawRibbonPage(data, bus) {
  return h("div", { class: "page" }, await drawRibbon(data, data.pictures, bus));
}

/** The layer is kept in `bus.state`, so that a gallery stays on the chosen one. */
async function drawRibbon(data, pictures, bus) {
  const k = new Tokens(data, await unpack(data.pack));
  const view = { data, k, bus, current: 0, blocks: [] };
  const root = h("article", { class: "ribbon", "aria-label": `${data.title} ${data.where}` });
  view.root = root;
  root.append(
    heading(data), badges(data),
    ask(data, pictures));
  for (const note of data.notices) root.append(h("p", { class: "notice" }, note));
  if (!k.n) return root;

  view.stream = h("div", { class: "stream", dir: "ltr", role: "group", "aria-label": "Completion, token by token" });
  view.inspector = h("div", { class: "inspect", role: "group", "aria-label": "Numbers of the token" });
  view.legend = h("div", { class: "legend" });
  view.stairs = h("div", { class: "stairs" });
  root.append(toolbar(view), h("div", { class: "rb-main" },
    h("div", { class: "rb-flow" }, view.stream, view.stairs), view.inspector));

  cutBlocks(view);
  setLayer(view, usable(k, LAYERS.find((l) => l.id === bus.state.layer)) ? bus.state.layer : LAYERS.find((l) => usable(k, l))?.id);
  listen(view);
  drawStairs(view);
  view.current = data.blamed ?? data.error?.start ?? 0;
  wake(view, view.blocks.find((b) => view.current < b.to));
  reach(view, view.current);
  inspect(view, view.current);
  bus.onSelect((chosen) => {
    if (chosen.from === view || chosen.key !== data.key || !known(chosen.token) || chosen.token === view.current) return;
    show(view, clamp(chosen.token, 0, k.n - 1));
  });
  return root;
}

/** Which rollout, what is asked and the answer in words. */
function heading(data) {
  return h("header", { class: "rb-head" },
    h("p", { class: "eyebrow" }, visible(data.where), data.method ? [" · ", h("b", {}, visible(data.method))] : null),
    h("h2", {}, visible(data.title)),
    h("p", { class: "verdict" }, data.verdict.map((line, i) => [i ? " " : null, h(i ? "span" : "strong", {}, visible(line))])));
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
  return h("div", { class: "ask", role: "group", "aria-label": "What the model was asked" },
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
  view.bus.state.layer = id;
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
    ? `V ${num(k.seg_val[m], 2)}${k.seg_err?.[m] > 0 ? ` ± ${num(k.seg_err[m], 1)}` : ""}` : "";
  const el = h("span", { class: "seg", role: "group", "data-s": m, "aria-label": segmentWords(view, m) });
  let t = from;
  if (from === first) {
    // the labels stand over the first tokens, which stay together on one line and are at least as wide
    const credit = k.seg_adv[m];
    const sign = !known(credit) ? "none" : credit > 0 ? "plus" : credit < 0 ? "minus" : "zero";
    const tag = h("span", { class: "tag", "aria-hidden": "true", "data-v": value }, calm(view, credit) ? "\u00a0"
      : [h("b", {}, m + 1), h("i", { "data-sign": sign }, known(credit) ? signed(credit) : "–")]);
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
    el.append(h("span", { class: ["start", value ? "valued" : "", calm(view, credit) ? "calm" : ""].join(" ").trim() }, tag, held,
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

/** Of credit by token, most says nothing: where it is next to none, neither a number nor a cut stands over the token. */
function calm(view, credit) {
  const { k } = view;
  if (k.n >= 1.5 * k.m || k.m < 8) return false;
  view.strongest ??= k.seg_adv.reduce((most, x) => (known(x) ? Math.max(most, Math.abs(x)) : most), 0);
  return known(credit) && Math.abs(credit) < 0.01 * view.strongest;
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
      : key === "w" || key === "W" ? view.data.blamed : null;
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

/** Makes token t the current one, gives it the keyboard and tells the other views. */
function go(view, t) {
  const el = show(view, t);
  el.focus({ preventScroll: true });
  const box = el.getBoundingClientRect(), far = box.bottom < 0 || box.top > innerHeight;
  el.scrollIntoView({ block: far ? "center" : "nearest" });
  view.bus.select({ key: view.data.key, token: t, segment: view.k.segment[t], from: view });
}

/** Makes token t the current one, without taking the keyboard or moving the page. */
function show(view, t) {
  view.current = t;
  wake(view, view.blocks.find((b) => b.from <= t && t < b.to));
  const el = reach(view, t);
  inspect(view, t);
  return el;
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
    line("probability", at(k.logp, chance)),
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
    ? num(k.seg_val[m]) + (k.seg_err?.[m] > 0 ? ` ± ${num(k.seg_err[m], 2)}` : k.seg_err?.[m] === 0 ? ", all samples alike" : "") : "not recorded";
  view.inspector.classList.toggle("resting", !view.inspected);  // on opening nobody has asked yet: it lies under the text
  view.inspected = true;
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

DRAW.ribbon = drawRibbonPage;
