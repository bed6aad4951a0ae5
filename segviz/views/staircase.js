// --- the staircase ----------------------------------------------------------------------------------------------

const JUDGED = ["noise unknown", "within noise", "beyond noise"];

/** The small one below a ribbon: the values that its page carries. */
function drawStairs(view) {
  const { k, data, stairs } = view;
  const measured = k.seg_val ? [...k.seg_val].some(known) : Boolean(k.val);
  if (!measured) {
    stairs.append(h("p", { class: "notice quiet" }, `No values are recorded: ${data.method} did not estimate any, so there is no staircase to draw.`));
    return;
  }
  const noise = k.seg_err && [...k.seg_err].some(known) ? "; band: ± 1.96 standard errors" : "";
  stairs.append(h("h3", {}, "Value along the completion", h("span", {}, ` expected reward before each segment, the reward itself at the end${noise}`)));
  const box = h("div", { class: "plot" });
  stairs.append(box);
  const plot = stairPlot(box, {
    n: k.n, start: k.start, value: k.seg_val, err: k.seg_err, critic: k.val, reward: data.facts.reward, error: data.error, height: 168,
    words: stairWords(k, data), hover: (t) => inspect(view, t), leave: () => inspect(view, view.current), choose: (t) => go(view, t),
  });
  view.moveCursor = (t) => plot.move(t);
  plot.move(view.shown ?? 0);
}

function stairWords(k, data) {
  const v = k.seg_val ?? k.val;
  return `Value from ${num(v[0])} at the start over ${k.m} segments to ${num(v[v.length - 1])} before the last, reward ${num(data.facts.reward)}.`;
}

/**
 * Draws a staircase into `box`, anew at every width. What is drawn:
 *
 *   n, reward, error             tokens of the completion, its reward, its first true error
 *   start, value, err            states, in order: token that follows, value, standard error (value and err may be missing)
 *   judge, flags                 per state: how the change after it compares with noise (index of JUDGED); states to label
 *   critic                       value before every token        own   { start, value }: what the method used instead
 *
 * hover(t), leave(), choose(t) hear the pointer. Returns { move(t, i) }: puts the cursor on token t and lights up step i.
 */
function stairPlot(box, what) {
  const { n, reward, error, start, critic, own, judge, height } = what, value = what.value ?? [];
  const end = (i) => (i + 1 < value.length ? start[i + 1] : n);
  let place = () => {}, last = [0, -1];
  onWidth(box, (width) => {
    const left = 40, right = 52, top = 14, bottom = 24, edge = width - right;
    const all = [0, reward, ...(critic ?? []), ...(own?.value ?? [])];
    for (let i = 0; i < value.length; i++) {
      const reach = known(what.err?.[i]) ? 1.96 * what.err[i] : 0;
      all.push(value[i] - reach, value[i] + reach);
    }
    let low = Infinity, high = -Infinity;
    for (const x of all) if (Number.isFinite(x) && x !== null) { low = Math.min(low, x); high = Math.max(high, x); }
    if (high <= 1) high = 1;
    const pad = (high - low) * 0.04 || 0.5;
    const X = (t) => left + ((edge - left) * t) / n;
    const Y = (v) => top + (height - top - bottom) * (1 - (v - low + pad) / (high - low + 2 * pad));
    const px = (x) => x.toFixed(1);
    const svg = s("svg", { width, height, role: "img", "aria-label": what.words });
    for (const y of ticks(low, high, height > 200 ? 5 : 3)) {
      svg.append(s("line", { x1: left, x2: edge, y1: Y(y), y2: Y(y), class: "grid" }),
        s("text", { x: left - 8, y: Y(y) + 4, class: "tick end" }, num(y)));
    }
    const here = s("rect", { y: top - 4, height: height - top - bottom + 4, class: "here" });
    svg.append(here);
    if (error) {
      const x = X(error.start), wide = Math.max(3, X(error.end) - x), late = x > width * 0.7;
      svg.append(s("rect", { x, y: top, width: wide, height: height - top - bottom, class: "errband" }),
        s("text", { x: late ? x - 5 : x + wide + 5, y: top + 9, class: `errtext${late ? " end" : ""}` }, "✗ first error"));
    }
    let band = "", treads = "";
    const risers = {}, marks = [];
    for (let i = 0; i < value.length; i++) {
      const v = value[i];
      if (!Number.isFinite(v)) continue;
      const a = X(start[i]), b = X(end(i)), reach = known(what.err?.[i]) ? 1.96 * what.err[i] : 0;
      treads += `M${px(a)} ${px(Y(v))}H${px(b)}`;
      if (reach) band += `M${px(a)} ${px(Y(v + reach))}H${px(b)}V${px(Y(v - reach))}H${px(a)}Z`;
      const next = i + 1 < value.length ? value[i + 1] : reward;
      if (!known(next) || !Number.isFinite(next) || Math.abs(Y(next) - Y(v)) < 0.5) continue;
      const way = next > v ? "rise" : "fall", said = judge ? [" unsure", " within", " beyond"][judge[i]] : "";
      risers[way + said] = `${risers[way + said] ?? ""}M${px(b)} ${px(Y(v))}V${px(Y(next))}`;
      if (judge?.[i] === 2 || (judge?.[i] === 0 && what.flags.includes(i))) marks.push({ i, x: b, y: (Y(v) + Y(next)) / 2, change: next - v, way, sure: judge[i] === 2 });
    }
    if (band) svg.append(s("path", { d: band, class: "noise" }));
    if (critic) svg.append(s("path", { d: thinLine(critic, n, X, Y, width), class: "critic" }));
    for (const [name, d] of Object.entries(risers)) svg.append(s("path", { d, class: name }));
    if (treads) svg.append(s("path", { d: treads, class: "tread" }));
    if (own) svg.append(s("path", { d: [...own.start].map((t, i) => `M${px(X(t))} ${px(Y(own.value[i]) - 4)}l4 4l-4 4l-4 -4Z`).join(""), class: "own" }));
    if (known(reward)) {
      svg.append(s("path", { d: `M${X(n)} ${Y(reward)}h7`, class: "tread" }), s("circle", { cx: X(n) + 9, cy: Y(reward), r: 4, class: "dot" }),
        s("text", { x: X(n) + 17, y: Y(reward) + 4, class: "tick strong" }, num(reward)));
    }
    drawFlags(svg, marks, what.flags ?? [], edge);
    svg.append(s("text", { x: left, y: height - 5, class: "tick" }, "token 1"));
    if (n > 1) svg.append(s("text", { x: X(n), y: height - 5, class: "tick end" }, n.toLocaleString("en")));
    const cursor = s("line", { y1: top - 4, y2: height - bottom, class: "cursor" });
    svg.append(cursor);
    place = (t, i) => {
      const x = X(t + 0.5);
      cursor.setAttribute("x1", x);
      cursor.setAttribute("x2", x);
      here.setAttribute("x", i >= 0 ? X(start[i]) : 0);
      here.setAttribute("width", i >= 0 ? X(end(i)) - X(start[i]) : 0);
    };
    place(...last);
    const at = (event) => clamp(Math.floor(((event.clientX - svg.getBoundingClientRect().left - left) * n) / (edge - left)), 0, n - 1);
    svg.addEventListener("pointermove", (event) => what.hover(at(event)));
    svg.addEventListener("pointerleave", () => what.leave());
    svg.addEventListener("click", (event) => what.choose(at(event)));
    box.replaceChildren(svg);
  });
  return { move: (t, i = -1) => place(...(last = [t, i])) };
}

/** Triangles on the changes that matter: filled beyond noise, hollow where noise is unknown. Those of `flags` say their size. */
function drawFlags(svg, marks, flags, edge) {
  const labels = [];
  for (const { i, x, y, change, way, sure } of marks) {
    const tip = way === "rise" ? -1 : 1;
    svg.append(s("path", { d: `M${x - 5.5} ${y - 4 * tip}h11L${x} ${y + 5 * tip}Z`, class: `flagmark ${way}mark${sure ? "" : " hollow"}`, "data-i": i }));
    if (!flags.includes(i)) continue;
    const before = x > edge - 60, at = before ? x - 10 : x + 10;
    if (labels.some((l) => Math.abs(l.at - at) < 46 && Math.abs(l.y - y) < 14)) continue;
    labels.push({ at, y });
    svg.append(s("text", { x: at, y: y + 4, class: `flagtext${before ? " end" : ""}` }, signed(change)));
  }
}

/** A value at every token; of more tokens than pixels, the lowest and highest of each pixel. */
function thinLine(values, n, X, Y, width) {
  const stride = Math.max(1, Math.floor((2 * n) / width));
  let d = "", pen = "M";
  for (let t = 0; t < n; t += stride) {
    let low = Infinity, high = -Infinity;
    for (let i = t; i < Math.min(t + stride, n); i++) if (Number.isFinite(values[i])) { low = Math.min(low, values[i]); high = Math.max(high, values[i]); }
    if (low > high) { pen = "M"; continue; }
    d += `${pen}${X(t).toFixed(1)} ${Y(low).toFixed(1)}`;
    if (high > low) d += `L${X(t).toFixed(1)} ${Y(high).toFixed(1)}`;
    pen = "L";
  }
  return d;
}

// The view of its own: every change judged against noise, and what was said between two states.

async function drawStaircasePage(data, bus) {
  return h("div", { class: "page" }, await drawStaircase(data, bus));
}

async function drawStaircase(data, bus) {
  const k = new Tokens(data, await unpack(data.pack)), steps = k.st_start.length;
  const root = h("article", { class: "sheet staircase", "aria-label": `${data.title} ${data.where}` }, heading(data), badges(data));
  for (const note of data.notices) root.append(h("p", { class: "notice" }, note));
  if (!k.n) return root;
  const end = (i) => (i + 1 < steps ? k.st_start[i + 1] : k.n);
  const after = (i) => (i + 1 < steps ? k.st_value[i + 1] : data.facts.reward);
  const stepOf = (t) => { let i = steps - 1; while (i >= 0 && k.st_start[i] > t) i--; return i; };
  const view = { current: 0 };

  const box = h("div", { class: "plot", role: "slider", tabindex: "0", "aria-label": "Step of the staircase", "aria-valuemin": 1, "aria-valuemax": Math.max(1, steps) });
  const reading = h("div", { class: "reading" });
  if (!steps) {
    root.append(h("p", { class: "notice" }, "There is no staircase to draw: a critic, Monte Carlo continuations or a tree would give one."));
    return root;
  }
  const own = k.own_start ? { start: k.own_start, value: k.own_value } : null;
  const plot = stairPlot(box, {
    n: k.n, start: k.st_start, value: k.st_value, err: k.st_err, judge: k.st_j, flags: data.largest, critic: k.val, own,
    reward: data.facts.reward, error: data.error, height: 300, words: data.verdict.join(" "),
    hover: (t) => tell(t), leave: () => tell(view.current), choose: (t) => { go(t); box.focus({ preventScroll: true }); },
  });
  const words = (i) => {
    const se = k.st_err[i], next = i + 1 < steps ? k.st_err[i + 1] : NaN;
    const reach = (e) => (e > 0 ? ` ± ${num(1.96 * e, 2)}` : e === 0 ? " (all samples alike)" : "");
    const ends = [`${num(k.st_value[i])}${reach(se)}`, known(after(i)) ? `${num(after(i))}${reach(next)}` : "no reward"];
    return { ends, change: known(after(i)) ? signed(after(i) - k.st_value[i]) : "–", z: known(k.st_z[i]) ? `z ${signed(k.st_z[i])}, ` : "",
      judged: known(after(i)) ? JUDGED[k.st_j[i]] : "nothing to compare with" };
  };
  const name = (i) => {
    const a = k.st_start[i], b = end(i), m = k.segment[a];
    const tokens = b === a + 1 ? `token ${a + 1}` : `tokens ${a + 1} to ${b}`;
    return k.m > 1 && k.start[m] === a && k.start[m + 1] === b ? `Segment ${m + 1} of ${k.m}, ${tokens}` : tokens[0].toUpperCase() + tokens.slice(1);
  };
  /** Shows token t and its step, without choosing it. */
  function tell(t) {
    const i = stepOf(t);
    plot.move(t, i);
    for (const button of root.querySelectorAll(".falls button")) button.setAttribute("aria-pressed", String(Number(button.dataset.i) === i));
    box.setAttribute("aria-valuenow", Math.max(1, i + 1));
    if (i < 0) {
      box.setAttribute("aria-valuetext", "before the first value");
      return reading.replaceChildren(h("h3", {}, `Token ${t + 1}`), h("p", { class: "quiet" }, "No value is recorded before it."));
    }
    const { ends, change, z, judged } = words(i);
    box.setAttribute("aria-valuetext", `${name(i)}: ${ends.join(" to ")}, change ${change}, ${z}${judged}`);
    reading.replaceChildren(
      h("h3", {}, name(i), h("span", {}, ` step ${i + 1} of ${steps}`)),
      h("p", { class: "change" }, h("span", {}, ends[0]), " → ", h("span", {}, ends[1], i + 1 === steps && known(after(i)) ? " (the reward)" : ""),
        h("b", { "data-way": known(after(i)) ? Math.sign(after(i) - k.st_value[i]) : null }, change), h("i", { "data-j": k.st_j[i] }, z, judged)),
      h("p", { class: "said", dir: "ltr" }, saidTokens(k, k.st_start[i], end(i), t)));
  }
  function go(t) {
    view.current = clamp(t, 0, k.n - 1);
    tell(view.current);
    bus.select({ key: data.key, token: view.current, segment: k.segment[view.current], from: view });
  }
  box.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const i = stepOf(view.current), { key } = event;
    const to = key === "ArrowRight" || key === "ArrowUp" ? Math.min(i + 1, steps - 1) : key === "ArrowLeft" || key === "ArrowDown" ? Math.max(i - 1, 0)
      : key === "Home" ? 0 : key === "End" ? steps - 1 : key === "w" || key === "W" ? data.largest[0]
      : (key === "e" || key === "E") && data.error ? -1 : undefined;
    if (to === undefined) return;
    event.preventDefault();
    go(to < 0 ? data.error.start : k.st_start[to]);
  });
  const list = data.largest.map((i) => {
    const { change, z, judged } = words(i);
    return h("li", {}, h("button", { type: "button", "data-i": i, "aria-pressed": "false", onclick: () => go(k.st_start[i]) },
      h("b", {}, change), " ", h("span", {}, `${name(i)}; ${z}${judged}`), " ",
      h("q", { dir: "ltr" }, visible(k.words(k.st_start[i], Math.min(end(i), k.st_start[i] + 30))).replaceAll("\n", "↵").slice(0, 90) || "◦")));
  });
  root.append(box, stairLegend(k, data, own), reading,
    list.length ? h("section", { class: "falls" }, h("h3", {}, "Largest falls", h("span", {}, " those beyond noise first")), h("ol", {}, list)) : "",
    h("p", { class: "keys quiet" }, h("kbd", {}, "←"), h("kbd", {}, "→"), " step  ", list.length ? [h("kbd", {}, "W"), " largest fall  "] : null, data.error ? [h("kbd", {}, "E"), " error"] : null));
  view.current = data.largest.length ? k.st_start[data.largest[0]] : data.error ? data.error.start : 0;
  tell(view.current);
  bus.onSelect((chosen) => {
    if (chosen.from === view || chosen.key !== data.key || !known(chosen.token)) return;
    view.current = clamp(chosen.token, 0, k.n - 1);
    tell(view.current);
  });
  return root;
}

/** The text of tokens a to b: the one at t boxed, the first true error underlined, a long one cut around t. */
function saidTokens(k, a, b, t) {
  const from = Math.max(a, Math.min(t - 60, b - 160)), to = Math.min(b, from + 160), parts = [];
  if (from > a) parts.push(h("span", { class: "quiet" }, `… ${(from - a).toLocaleString("en")} tokens … `));
  for (let i = from; i < to; i++) {
    const piece = k.piece(i), shown = piece === "" ? "◦" : visible(piece.slice(0, CLIP)).replaceAll("\n", "↵\n");
    parts.push(h("span", { class: `${i === t ? "at" : ""}${k.inError(i) ? " wrong" : ""}`.trim() || null }, shown,
      piece.length > CLIP ? `… +${(piece.length - CLIP).toLocaleString("en")} characters` : ""));
  }
  if (to < b) parts.push(h("span", { class: "quiet" }, ` … ${(b - to).toLocaleString("en")} tokens`));
  return parts;
}

/** What the marks mean, only those that are there. */
function stairLegend(k, data, own) {
  const judged = new Set(k.st_j), there = (f) => [...k.st_err].some(f);
  const item = (draw, label) => h("span", { class: "glyphed" }, s("svg", { width: 26, height: 14, "aria-hidden": "true" }, draw), label);
  const beyond = [...k.st_j].map((j, i) => (j === 2 ? Math.sign((i + 1 < k.st_j.length ? k.st_value[i + 1] : data.facts.reward) - k.st_value[i]) : 0));
  const items = [
    item(s("path", { d: "M2 7H24", class: "tread" }), "value"),
    there((e) => e > 0) ? item(s("rect", { x: 2, y: 1, width: 22, height: 12, class: "noise" }), "± 1.96 standard errors") : null,
    k.val ? item(s("path", { d: "M2 9L9 5L15 8L24 4", class: "critic" }), "critic, every token") : null,
    own ? item(s("path", { d: "M13 3l4 4l-4 4l-4 -4Z", class: "own" }), "the method's own values") : null,
    beyond.includes(-1) ? item(s("path", { d: "M7.5 3h11L13 12Z", class: "flagmark fallmark" }), "fall beyond noise") : null,
    beyond.includes(1) ? item(s("path", { d: "M7.5 11h11L13 2Z", class: "flagmark risemark" }), "rise beyond noise") : null,
    judged.has(1) ? item(s("path", { d: "M13 1V13", class: "fall within" }), "within noise") : null,
    judged.has(0) && data.largest.some((i) => k.st_j[i] === 0) ? item(s("path", { d: "M7.5 3h11L13 12Z", class: "flagmark fallmark hollow" }), "largest falls, noise unknown") : null,
    item(s("circle", { cx: 13, cy: 7, r: 4, class: "dot" }), "reward"),
  ];
  return h("div", { class: "stairkey" }, h("div", { class: "legend" }, items), data.notes.map((note) => h("p", { class: "quiet" }, note)));
}

DRAW.staircase = drawStaircasePage;
