// --- the counterfactual: outcomes of continuations from before and from after a segment ------------------------------

async function drawCounterfactual(data, bus) {
  const { segment, sides } = data, tokens = segment.end === segment.start + 1 ? `token ${segment.end}` : `tokens ${segment.start + 1} to ${segment.end}`;
  const root = h("article", { class: "sheet counterfactual", "aria-label": `${visible(data.title)} ${visible(data.where)}` }, heading(data));
  if (data.policy) root.append(h("p", { class: "quiet cf-who" }, visible(data.policy)));
  for (const note of data.notices) root.append(h("p", { class: "notice" }, visible(note)));
  root.append(
    h("section", { class: "cf-segment", "aria-label": "The segment" },
      h("h3", {}, `Segment ${segment.number} of ${segment.of}`, h("span", {}, ` ${tokens}${known(segment.credit) ? `, credit ${signed(segment.credit)}` : ""}`)),
      h("p", { class: "cf-text", dir: "ltr" }, h("span", { class: "cf-dim" }, visible(segment.before)), h("mark", {}, visible(segment.text)), h("span", { class: "cf-dim" }, visible(segment.after)))),
    h("section", { class: "cf-rates", "aria-label": "Success" }, sides.map((side) => cfRate(side, data)), data.difference ? cfDifference(data) : null));
  const drawn = sides.filter((side) => side.samples.length);
  if (!drawn.length) return h("div", { class: "page" }, root);
  const lists = h("div", { class: "cf-lists" }, drawn.map((side) => cfList(side, data, bus)));
  lists.addEventListener("keydown", (event) => cfWalk(event, lists));
  root.append(lists, h("p", { class: "keys quiet" }, h("kbd", {}, "↑"), h("kbd", {}, "↓"), h("kbd", {}, "←"), h("kbd", {}, "→"), " continuation  ",
    h("kbd", {}, "Enter"), " whole text  ", h("kbd", {}, "Home"), h("kbd", {}, "End"), " first, last"));
  return h("div", { class: "page" }, root);
}

const CF_NAMES = { before: "Before: the segment is written anew", after: "After: the segment stays" };
const cfShare = (x) => `${Math.round(100 * x)} %`;
const cfPoints = (x) => `${x > 0 ? "+" : x < 0 ? "−" : ""}${Math.abs(Math.round(100 * x))}`;

/** One side: its outcomes one by one, and their share with its interval. */
function cfRate(side, data) {
  const box = h("div", { class: "plot" });
  const says = side.rate === null ? "no verdict"
    : side.recorded ? "recorded: the completion ends here"
      : `${side.successes} of ${side.n}, 95 % interval ${cfShare(side.low)} to ${cfShare(side.high)}`;
  const graded = side.samples.some((x) => known(x.reward) && x.reward !== 0 && x.reward !== 1);
  onWidth(box, (width) => {
    const left = 8, right = 8, per = Math.max(1, Math.floor((width - left - right) / 13)), rows = Math.ceil(side.samples.length / per);
    const top = 12 * rows + (rows ? 8 : 0), height = top + 36, X = (x) => left + (width - left - right) * x;
    const svg = s("svg", { width, height, role: "img", "aria-label": `${CF_NAMES[side.name]}. Success ${side.rate === null ? "" : cfShare(side.rate)} (${says}).` });
    side.samples.forEach((sample, i) => svg.append(cfMark(sample.success, left + 6 + 13 * (i % per), 6 + 12 * Math.floor(i / per))));
    cfAxis(svg, [0, 0.25, 0.5, 0.75, 1], X, top, height, cfShare);
    if (side.rate !== null) {
      svg.append(s("rect", { x: X(0), y: top + 4, width: X(side.rate) - X(0), height: 12, class: "cf-bar" }));
      if (!side.recorded) svg.append(cfWhisker(X(side.low), X(side.high), top + 10, ""));
      svg.append(s("circle", { cx: X(side.rate), cy: top + 10, r: 5, class: "cf-dot" }));
    }
    box.replaceChildren(svg);
  });
  return h("div", { class: "cf-rate", "data-side": side.name },
    h("div", { class: "cf-name" }, h("h3", {}, CF_NAMES[side.name]), h("p", { class: "quiet" }, says, graded && known(side.mean) ? `; mean reward ${num(side.mean)}` : "")),
    h("p", { class: "cf-figure" }, side.rate === null ? "–" : cfShare(side.rate)), box);
}

/** The difference on a scale of its own, from −100 to +100 points. */
function cfDifference(data) {
  const { value, low, high } = data.difference, box = h("div", { class: "plot" });
  const words = `95 % interval ${cfPoints(low)} to ${cfPoints(high)} points`, beyond = data.causal;
  onWidth(box, (width) => {
    const left = 8, right = 8, top = 2, height = 38, X = (x) => left + ((width - left - right) * (x + 1)) / 2;
    const svg = s("svg", { width, height, role: "img", "aria-label": `Difference ${cfPoints(value)} points, ${words}.` });
    cfAxis(svg, [-1, -0.5, 0, 0.5, 1], X, top, height, cfPoints);
    const y = top + 10, x = X(value), at = X(0);
    svg.append(s("rect", { x: Math.min(x, at), y: y - 6, width: Math.abs(x - at), height: 12, class: `cf-bar ${value < 0 ? "down" : "up"}${beyond ? "" : " unsure"}` }),
      s("line", { x1: at, x2: at, y1: top - 2, y2: top + 22, class: "cf-zero" }), cfWhisker(X(low), X(high), y, beyond ? "" : "unsure"),
      s("path", { d: `M${x} ${y - 6}l6 6l-6 6l-6 -6z`, class: beyond ? "cf-dot" : "cf-dot hollow" }));
    box.replaceChildren(svg);
  });
  return h("div", { class: "cf-rate cf-difference" },
    h("div", { class: "cf-name" }, h("h3", {}, "Difference: what the segment does"), h("p", { class: "quiet" }, `${words}; ${beyond ? "beyond noise" : "within noise"}`)),
    h("p", { class: "cf-figure", "data-way": beyond ? Math.sign(value) : 0 }, cfPoints(value), h("small", {}, " points")), box);
}

function cfAxis(svg, marks, X, top, height, name) {
  marks.forEach((x, i) => svg.append(s("line", { x1: X(x), x2: X(x), y1: top, y2: top + 20, class: "grid" }),
    s("text", { x: X(x), y: height - 3, class: `tick ${i === 0 ? "" : i === marks.length - 1 ? "end" : "mid"}` }, name(x))));
}

const cfWhisker = (from, to, y, kind) => s("path", { d: `M${from} ${y}H${to}M${from} ${y - 5}v10M${to} ${y - 5}v10`, class: `cf-whisker ${kind}` });

/** ✓ a full circle, ✗ an open square, no verdict a bar: shapes, not only colours. */
function cfMark(success, x, y) {
  if (success === null) return s("path", { d: `M${x - 4} ${y}h8`, class: "cf-mark none" });
  return success ? s("circle", { cx: x, cy: y, r: 4.4, class: "cf-mark yes" }) : s("rect", { x: x - 3.6, y: y - 3.6, width: 7.2, height: 7.2, class: "cf-mark no" });
}

const CF_SHOWN = 8;  // continuations of a side that are shown before one asks for more

/** Equal continuations as one, with their number; successes first, then the most frequent. */
function cfMerged(samples) {
  const found = new Map();
  for (const sample of samples) {
    const name = JSON.stringify([sample.same, sample.first, sample.rest, sample.token, sample.tokens, sample.reward, sample.finished]);
    found.set(name, { ...sample, times: (found.get(name)?.times ?? 0) + 1 });
  }
  const rank = (sample) => (sample.success === null ? 2 : sample.success ? 0 : 1);
  return [...found.values()].sort((a, b) => rank(a) - rank(b) || b.times - a.times);
}

/** The continuations of one side. */
function cfList(side, data, bus) {
  const items = cfMerged(side.samples).map((sample, i) => {
    const text = h("p", { class: "cf-text", dir: "ltr" }, h("span", { class: "cf-dim" }, visible(sample.same)),
      sample.first ? h("mark", {}, visible(sample.first)) : null, visible(sample.rest),
      sample.finished ? null : h("span", { class: "cf-cut" }, " cut at the limit"));
    const outcome = sample.success === null ? "? no verdict" : sample.success ? "✓ success" : "✗ no success";
    const button = h("button", { "aria-expanded": "false", tabindex: i ? -1 : 0, "data-i": i, onclick: () => {
      button.setAttribute("aria-expanded", String(button.getAttribute("aria-expanded") === "false"));
      if (sample.token !== null) bus.select({ key: data.key, token: sample.token, from: "counterfactual" });
    } },
    h("b", { class: sample.success === null ? "none" : sample.success ? "yes" : "no" }, outcome, sample.times > 1 ? ` ×${sample.times}` : ""),
    h("span", {}, `reward ${num(sample.reward)}`),
    h("span", {}, sample.token === null ? "the recorded text again" : `differs at token ${sample.token + 1}`));
    return h("li", {}, button, text);
  });
  const rest = items.slice(CF_SHOWN), list = h("ol", {}, items.slice(0, CF_SHOWN));
  const more = rest.length ? h("button", { class: "cf-more", onclick: () => {
    list.append(...rest);
    more.remove();
    rest[0].querySelector("button").focus();
  } }, `Show ${rest.length} more`) : null;
  return h("section", { "aria-label": `Continuations ${side.name} the segment` },
    h("h3", {}, `From ${side.name} the segment`, h("span", {}, ` ${side.samples.length} continuation${side.samples.length > 1 ? "s" : ""}${items.length === side.samples.length ? "" : items.length === 1 ? ", all the same text" : `, ${items.length} different`}`)), list, more);
}

/** Arrow keys walk over the continuations of both sides. */
function cfWalk(event, lists) {
  const button = event.target.closest("button");
  const columns = [...lists.querySelectorAll("ol")].map((list) => [...list.querySelectorAll("button")]);
  const column = columns.findIndex((list) => list.includes(button));
  const place = column < 0 ? -1 : columns[column].indexOf(button);
  const to = { ArrowDown: [column, place + 1], ArrowUp: [column, place - 1], ArrowRight: [column + 1, place], ArrowLeft: [column - 1, place],
    Home: [column, 0], End: [column, Infinity] }[event.key];
  if (!to || place < 0 || !columns[to[0]]) return;
  event.preventDefault();
  const list = columns[to[0]], next = list[clamp(to[1], 0, list.length - 1)];
  list.forEach((other) => other.setAttribute("tabindex", other === next ? 0 : -1));
  next.focus();
}

DRAW.counterfactual = drawCounterfactual;
