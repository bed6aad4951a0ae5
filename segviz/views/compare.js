// --- credit diff: one completion under several methods -----------------------------------------------------------

const DIFF_WINDOW = 240;  // tokens whose columns are drawn at once
const DIFF_BINS = 500;    // bars of an overview

async function drawComparePage(data, bus) {
  return h("div", { class: "page" }, await drawCompare(data, bus));
}

async function drawCompare(data, bus) {
  const k = new Tokens(data, await unpack(data.pack));
  const root = h("article", { class: "sheet diff", "aria-label": `${data.title} ${data.where}` }, heading(data), badges(data));
  for (const note of data.notices) root.append(h("p", { class: "notice" }, visible(note)));
  if (!k.n) return root;
  const methods = data.methods.map((method, i) => {
    const starts = new Set([0]);
    let at = 0;
    for (const size of k[`c${i}`]) starts.add(at += size);
    starts.delete(at);
    const cuts = Uint32Array.from(starts);
    return { ...method, number: i + 1, credit: k[`a${i}`], starts, segmentOf: (t) => cuts.findLastIndex((a) => a <= t) };
  });
  const view = { data, k, bus, methods, current: methods[0].blamed?.start ?? data.error?.start ?? 0, from: 0 };
  view.root = root;
  view.columns = h("div", { class: "diff-columns", dir: "ltr", role: "group", "aria-label": "Token by token: text, then the credit of each method" });
  view.turn = h("p", { class: "diff-turn" });
  view.reading = h("div", { class: "diff-reading" });
  root.append(diffOverview(view), diffLegend(view),
    // the numbers stay in sight as long as the columns are
    h("section", { class: "diff-tokens" },
      h("h3", {}, "Token by token", h("span", {}, " bar up: above zero, bar down: below; each method on its own scale; a line where it cuts")),
      view.turn, view.columns, view.reading),
    h("p", { class: "keys quiet" }, h("kbd", {}, "←"), h("kbd", {}, "→"), " token  ", h("kbd", {}, "⇧←"), h("kbd", {}, "⇧→"), " next cut of any method  ",
      h("kbd", {}, "Home"), h("kbd", {}, "End"), data.error ? ["  ", h("kbd", {}, "E"), " error"] : null));
  diffWindow(view);
  diffTell(view, view.current);
  onWidth(view.columns, () => diffLabels(view));
  diffListen(view);
  bus.onSelect((chosen) => {
    if (chosen.from === view || chosen.key !== data.key || !known(chosen.token)) return;
    diffShow(view, clamp(chosen.token, 0, k.n - 1));
  });
  return root;
}

const diffCuts = (method) => method.pattern === "cuts" || method.pattern === "almost";

/** The table that answers: who blames what, and is it there. */
function diffOverview(view) {
  const { data, methods, k } = view;
  const rows = methods.map((m) => {
    const { blamed } = m;
    const range = m.pattern === "none" ? "no credit recorded" : m.pattern === "untrained" ? "no token in the loss" : m.pattern === "zero" ? "zero everywhere"
      : m.pattern === "uniform" ? `${signed(m.low)} on every token` : m.low === m.high ? `${signed(m.low)} where there is any` : `${signed(m.low)} to ${signed(m.high)}`;
    return h("tr", { "data-pattern": m.pattern },
      h("th", { scope: "row" }, h("span", { class: "nr" }, m.number), " ", visible(m.label),
        h("small", {}, m.limit > 0 ? `scale ± ${num(m.limit)}` : "", m.pattern === "uniform" ? h("em", {}, "uniform") : m.pattern === "almost" ? h("em", {}, "almost uniform") : null)),
      h("td", { class: "wide" }, diffStrip(view, m), h("small", {}, `${range} · ${m.segments} segment${m.segments === 1 ? "" : "s"}`)),
      h("td", { "data-name": "most blamed" }, blamed
        ? h("button", { type: "button", class: "blame", onclick: () => diffGo(view, blamed.start) },
          h("b", {}, signed(blamed.credit)), ` ${blamed.end === blamed.start + 1 ? `token ${blamed.end}` : `tokens ${blamed.start + 1}–${blamed.end}`}`,
          h("q", { dir: "ltr" }, visible(blamed.text).replaceAll("\n", "↵")))
        : h("span", { class: "quiet" }, m.pattern === "uniform" ? "names no place" : m.pattern === "cuts" || m.pattern === "almost" ? "nothing: none below 0" : "–")),
      data.error ? h("td", { "data-name": "first true error" }, m.hit === null ? h("span", { class: "quiet" }, "–")
        : h("span", { class: m.hit ? "hit" : "miss" }, m.hit === 1 ? "✓ there" : m.hit ? "among equals" : "✗ elsewhere")) : null);
  });
  if (k.apart) {
    rows.push(h("tr", { class: "apart" }, h("th", { scope: "row" }, "Disagreement", h("small", {}, "scale 0 to 1")),
      h("td", { class: "wide" }, diffStrip(view, { credit: k.apart, limit: 1, apart: true, pattern: "cuts", starts: new Set() })),
      h("td", { colspan: data.error ? 2 : 1, class: "quiet" }, "Some methods that cut are above zero, others below: the size of the weaker side.")));
  }
  return h("table", { class: "diff-table" },
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Method"), h("th", { scope: "col" }, "Credit along the completion"),
      h("th", { scope: "col" }, "Most blamed"), data.error ? h("th", { scope: "col" }, "First true error") : null)),
    h("tbody", {}, rows));
}

/** A method's credit over the whole completion; a uniform one is a hatched block, which cannot be taken for blame. */
function diffStrip(view, m) {
  const { k, data } = view, high = 34, middle = m.apart ? high - 2 : high / 2, full = m.apart ? high - 4 : high / 2 - 1;
  const svg = s("svg", { viewBox: `0 0 ${k.n} ${high}`, preserveAspectRatio: "none", class: `diff-strip${m.apart ? " apart" : ""}`, "aria-hidden": "true" });
  if (data.error) svg.append(s("rect", { x: data.error.start, y: 0, width: Math.max(data.error.end - data.error.start, k.n / 250), height: high, class: "errband" }));
  const bar = (t, wide, x) => {
    const size = clamp(Math.abs(x) / m.limit, 0, 1) * full;
    svg.append(s("rect", { x: t, y: x > 0 ? middle - size : middle, width: wide, height: Math.max(size, 0.6), class: m.apart ? "over" : x > 0 ? "up" : "down" }));
  };
  if (m.pattern === "uniform") {
    const up = m.low > 0;
    svg.append(s("rect", { x: 0, y: up ? 6 : middle, width: k.n, height: middle - 6, class: `flat ${up ? "up" : "down"}` }));
  } else if (m.limit > 0) {
    const wide = Math.max(1, Math.ceil(k.n / DIFF_BINS));
    for (let t = 0; t < k.n; t += wide) {
      let top = 0, low = 0;
      for (let i = t; i < Math.min(t + wide, k.n); i++) if (known(m.credit[i])) { top = Math.max(top, m.credit[i]); low = Math.min(low, m.credit[i]); }
      if (top > 0) bar(t, wide, top);
      if (low < 0) bar(t, wide, low);
    }
  }
  svg.append(s("line", { x1: 0, x2: k.n, y1: middle, y2: middle, class: "axis" }));
  if (m.starts.size <= 120) for (const t of m.starts) if (t) svg.append(s("line", { x1: t, x2: t, y1: 2, y2: high - 2, class: "cut" }));
  svg.append(s("line", { x1: 0, x2: 0, y1: 0, y2: high, class: "cursor" }));
  svg.addEventListener("click", (event) => {
    const box = svg.getBoundingClientRect();
    diffGo(view, clamp(Math.floor(((event.clientX - box.left) * k.n) / box.width), 0, k.n - 1));
  });
  return svg;
}

function diffLegend({ methods, data }) {
  const there = (pattern) => methods.some((m) => m.pattern === pattern);
  const swatch = (name, label) => h("span", { class: "glyphed" }, h("i", { class: `mini ${name}` }), label);
  return h("div", { class: "legend diff-legend" }, swatch("up", "above zero"), swatch("down", "below zero"), swatch("cutline", "a cut"),
    there("uniform") ? swatch("flat", "uniform: the same on every token") : null, swatch("none", "no credit"),
    data.error ? swatch("errmark", "first true error") : null,
    h("span", {}, "Each method is drawn on its own scale, symmetric around 0: compare shapes and signs, not sizes."));
}

/** Draws the columns of the tokens around the current one. */
function diffWindow(view) {
  const { k, methods, data } = view, size = Math.min(DIFF_WINDOW, k.n);
  view.from = clamp(Math.floor(view.current / DIFF_WINDOW) * DIFF_WINDOW, 0, k.n - size);
  view.to = view.from + size;
  const columns = [];
  for (let t = view.from; t < view.to; t++) {
    const piece = k.piece(t), text = piece === "" ? "◦" : visible(piece.slice(0, 40)).replaceAll("\n", "↵");
    const lanes = methods.map((m) => {
      const x = m.credit[t], cell = h("i", { class: m.starts.has(t) && t ? "cell cut" : "cell", "data-p": m.pattern });
      if (!known(x)) cell.dataset.none = "";
      else if (m.limit > 0 && x !== 0) {
        const bar = h("i", { class: x > 0 ? "up" : "down" });
        bar.style.height = `${Math.max(8, clamp(Math.abs(x) / m.limit, 0, 1) * 50)}%`;
        cell.append(bar);
      }
      return cell;
    });
    if (k.apart) {
      const cell = h("i", { class: "cell apart" });
      if (k.apart[t] > 0) {
        const bar = h("i", { class: "over" });
        bar.style.height = `${Math.max(10, 100 * k.apart[t])}%`;
        cell.append(bar);
      }
      lanes.push(cell);
    }
    columns.push(h("div", { class: `col${k.inError(t) ? " err" : ""}`, "data-t": t },
      data.error?.start === t ? h("span", { class: "errflag", "aria-hidden": "true" }, "✗") : null,
      h("span", { class: "text" }, text), lanes));
  }
  view.labels = h("div", { class: "diff-labels", "aria-hidden": "true" });
  view.columns.replaceChildren(view.labels, ...columns);
  if (size < k.n) {
    const turn = (to, label) => h("button", { type: "button", disabled: to < 0 || to >= k.n, onclick: () => diffGo(view, to) }, label);
    view.turn.replaceChildren(turn(view.from - 1, "← earlier"), ` tokens ${(view.from + 1).toLocaleString("en")} to ${view.to.toLocaleString("en")} of ${k.n.toLocaleString("en")} `, turn(view.to, "later →"));
  }
  diffLabels(view);
}

/** Names beside the lanes of every wrapped row of columns. */
function diffLabels(view) {
  const tops = new Set();
  for (const col of view.columns.querySelectorAll(".col")) tops.add(col.offsetTop);
  view.labels.replaceChildren(...[...tops].map((top) => {
    const stack = h("div", { class: "names" }, h("span", { class: "text" }, " "),
      view.methods.map((m) => h("span", { class: "name", "data-p": m.pattern, title: m.label }, h("b", {}, m.number), h("span", {}, ` ${visible(m.label)}`))),
      view.k.apart ? h("span", { class: "name apart" }, h("b", {}, "≠"), h("span", {}, " disagreement")) : null);
    stack.style.top = `${top}px`;
    return stack;
  }));
}

function diffListen(view) {
  const { columns, k, methods, data } = view;
  const at = (event) => event.target.closest?.(".col");
  columns.addEventListener("pointerover", (event) => { if (at(event)) diffTell(view, Number(at(event).dataset.t)); });
  columns.addEventListener("pointerleave", () => diffTell(view, view.current));
  columns.addEventListener("click", (event) => { if (at(event)) diffGo(view, Number(at(event).dataset.t)); });
  columns.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { key, shiftKey } = event, t = view.current;
    const cut = (way) => { let i = t + way; while (i > 0 && i < k.n - 1 && !methods.some((m) => m.starts.has(i))) i += way; return i; };
    const to = key === "ArrowRight" ? (shiftKey ? cut(1) : t + 1) : key === "ArrowLeft" ? (shiftKey ? cut(-1) : t - 1)
      : key === "ArrowDown" ? diffBelow(view, 1) : key === "ArrowUp" ? diffBelow(view, -1)
      : key === "Home" ? 0 : key === "End" ? k.n - 1 : (key === "e" || key === "E") && data.error ? data.error.start : null;
    if (to === null) return;
    event.preventDefault();
    diffGo(view, clamp(to, 0, k.n - 1));
  });
}

/** The token in the row of columns below or above. */
function diffBelow(view, way) {
  const here = diffColumn(view, view.current);
  let best = view.current, top = null, distance = Infinity;
  for (let el = here; el; el = way > 0 ? el.nextElementSibling : el.previousElementSibling) {
    if (!el.classList.contains("col") || el.offsetTop === here.offsetTop) continue;
    top ??= el.offsetTop;
    if (el.offsetTop !== top) break;
    const off = Math.abs(el.offsetLeft - here.offsetLeft);
    if (off < distance) [best, distance] = [Number(el.dataset.t), off];
  }
  return best;
}

const diffColumn = (view, t) => view.columns.querySelector(`.col[data-t="${t}"]`);

/** Chooses token t, gives it the keyboard and tells the other views. */
function diffGo(view, t) {
  const el = diffShow(view, t);
  el.focus({ preventScroll: true });
  el.scrollIntoView({ block: "nearest" });
  view.bus.select({ key: view.data.key, token: t, segment: view.k.segment[t], from: view });
}

function diffShow(view, t) {
  view.current = t;
  if (t < view.from || t >= view.to) diffWindow(view);
  diffTell(view, t);
  return diffColumn(view, t);
}

/** Shows every method's number for token t. */
function diffTell(view, t) {
  const { k, methods, columns } = view;
  for (const old of columns.querySelectorAll(".col.on")) {
    old.classList.remove("on");
    for (const name of ["tabindex", "role", "aria-label"]) old.removeAttribute(name);
  }
  const said = (m) => `${known(m.credit[t]) ? signed(m.credit[t]) : "no credit"}`;
  const shown = diffColumn(view, t) ?? diffColumn(view, view.current);
  shown.classList.add("on");
  const keys = diffColumn(view, view.current) ?? shown;
  for (const old of columns.querySelectorAll(".col[tabindex]")) old.removeAttribute("tabindex");
  keys.setAttribute("tabindex", "0");
  shown.setAttribute("role", "button");
  shown.setAttribute("aria-label", `token ${t + 1}, ${visible(k.piece(t)).slice(0, 60)}${k.inError(t) ? ", first true error" : ""}: ${methods.map((m) => `${visible(m.label)} ${said(m)}`).join(", ")}`);
  for (const line of view.root.querySelectorAll(".diff-strip .cursor")) for (const end of ["x1", "x2"]) line.setAttribute(end, t + 0.5);
  view.reading.replaceChildren(
    h("h3", {}, `Token ${t + 1} `, h("span", {}, `of ${k.n.toLocaleString("en")} `), h("bdi", { class: "said" }, k.piece(t) === "" ? "(empty)" : visible(k.piece(t).slice(0, 60)).replaceAll("\n", "↵")),
      k.inError(t) ? h("b", { class: "miss" }, " ✗ first true error") : null),
    h("dl", {}, methods.map((m) => h("div", {}, h("dt", {}, `${m.number} ${visible(m.label)}`),
      h("dd", {}, said(m), diffCuts(m) ? h("span", {}, ` segment ${m.segmentOf(t) + 1}/${m.segments}`) : null))),
    k.apart ? h("div", {}, h("dt", {}, "≠ disagreement"), h("dd", {}, k.apart[t] > 0 ? num(k.apart[t], 2) : "none")) : null));
}

DRAW.compare = drawComparePage;
