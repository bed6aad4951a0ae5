// --- the ribbon: its text in blocks, segments and tokens -----------------------------------------------------------------

const WHOLE = 1500;  // up to so many tokens a rollout is one flowing text
const BLOCK = 256;   // a longer one is cut into blocks of about so many, drawn only near the window
const CLIP = 240;    // longest piece shown whole, in characters

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
