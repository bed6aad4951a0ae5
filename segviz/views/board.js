// --- the board --------------------------------------------------------------------------------------------------

const DASHES = ["", "7 4", "2 3", "9 3 2 3", ""];

async function drawBoardPage(data, bus) {
  return h("div", { class: "page" }, h("h1", {}, data.title), drawBoard(data, bus));
}

function drawBoard(data, bus) {
  const root = h("div", { class: "board" });
  const status = (data.status ?? []).map((words) => h("p", { class: "notice" }, visible(words)));
  if (data.empty) return h("div", { class: "board" }, h("p", { class: "notice" }, data.empty), status);
  if (status.length) root.append(h("div", {}, status));
  if (data.groups.length > 1 || data.groups.some((g) => g.runs > 1)) {
    root.append(h("p", { class: "quiet" }, data.groups.map((g) => `${visible(g.label)}${g.runs > 1 ? `: ${g.runs} runs` : ""}`).join(", "),
      data.groups.some((g) => g.runs > 1) ? ". Line: mean over runs; band: lowest to highest." : ""));
  }
  const big = data.charts.filter((c) => c.share), small = data.charts.filter((c) => !c.share);
  const sync = [];
  sync.open = stepOpener(data, bus);
  sync.look = data.look ?? (bus.state.look ??= {});  // drawn anew, it stays as the reader set it
  sync.paints = [];
  root.append(lookTools(data, sync));
  if (big.length) root.append(h("div", { class: `charts big${big.some((c) => c.panels) ? " panels" : ""}` }, big.map((c) => drawChart(c, sync))));
  if (small.length) root.append(h("div", { class: "charts" }, small.map((c) => drawChart(c, sync))));
  if (data.other.length) {
    const holder = h("div", { class: "charts" });
    root.append(h("details", { ontoggle: () => { if (!holder.childElementCount) holder.append(...data.other.map((c) => drawChart(c, sync))); } },
      h("summary", {}, `All other metrics (${data.other.length})`), holder));
  }
  return root;
}

/** How all charts are looked at: how smooth, and which steps. `sync.look` is {smooth, from, to}; null: of itself. */
function lookTools(data, sync) {
  const { look, paints } = sync, lines = [...data.charts, ...data.other].flatMap((chart) => chart.lines);
  const ends = lines.reduce(([a, b], line) => [Math.min(a, line.x[0]), Math.max(b, line.x.at(-1))], [Infinity, -Infinity]);
  look.usual = lines.some((line) => line.y.length > 60) ? 4 : 0;
  const slider = h("input", { type: "range", min: 0, max: 30, step: 2, "aria-label": "Smoothing, percent of the steps" });
  const said = h("span", { class: "bo-said" });
  const box = (name) => h("input", { type: "number", min: ends[0], max: ends[1], step: 1, "aria-label": name });
  const from = box("First step shown"), to = box("Last step shown"), all = h("button", { type: "button" }, "All steps");
  const put = () => {
    slider.value = look.smooth ?? look.usual;
    said.textContent = Number(slider.value) ? `mean over ${slider.value} %` : "off";
    from.value = look.from ?? ends[0];
    to.value = look.to ?? ends[1];
    all.hidden = (look.from ?? look.to ?? null) === null;
  };
  const paint = () => { put(); paints.forEach((again) => again()); };
  sync.zoom = (a, b) => {
    [a, b] = [Math.max(ends[0], Math.min(a, b)), Math.min(ends[1], Math.max(a, b))];
    if (!(b > a)) return put();
    Object.assign(look, { from: a > ends[0] ? a : null, to: b < ends[1] ? b : null });
    paint();
  };
  slider.addEventListener("input", () => { look.smooth = Number(slider.value); paint(); });
  for (const input of [from, to]) input.addEventListener("change", () => sync.zoom(Number(from.value), Number(to.value)));
  all.addEventListener("click", () => { Object.assign(look, { from: null, to: null }); paint(); from.focus(); });
  put();
  return h("div", { class: "bo-tools", role: "group", "aria-label": "All charts" }, h("label", {}, "Smoothing ", slider, said),
    h("span", {}, "Steps ", from, " to ", to), all, h("span", { class: "quiet bo-hint" }, "Drag over a chart to zoom all of them."));
}

/** `sync`: what moves the cursors of all charts; `sync.open(step, figure)` lists a step's rollouts, where there is a way. */
function drawChart(chart, sync) {
  const panels = chart.panels ? [...new Set(chart.lines.map((l) => l.panel))] : [""];
  const open = sync.open && ((step, byKey, label) => sync.open(step, figure, byKey, label));
  const figure = h("figure", { class: "chart" }, h("figcaption", {}, h("b", {}, visible(chart.title)), chart.hint ? h("span", {}, ` ${chart.hint}`) : null),
    h("div", { class: "row" }, panels.map((panel) => drawPanel(chart, panel, chart.panels ? chart.lines.filter((l) => l.panel === panel) : chart.lines, sync, open))),
    floorWords(chart.floor), oddWords(chart, open));
  return figure;
}

const floorWords = (floor) => floor && h("p", { class: "quiet bo-floor" },
  `▼ ${floor.below.toLocaleString("en")} value${floor.below === 1 ? "" : "s"} below ${num(floor.at)} drawn at the edge; the lowest is ${num(floor.lowest)} at step ${floor.step}.`);

/** Unusual steps in words, each one click from its rollouts. */
function oddWords(chart, open) {
  const found = chart.lines.flatMap((line) => (line.odd ?? []).map((odd) => ({ ...odd, line })));
  if (!found.length) return null;
  const show = (y) => (chart.share ? `${(100 * y).toFixed(1)} %` : num(y, 3));
  return h("p", { class: "quiet bo-odd" }, h("span", { "aria-hidden": "true" }, "◇ "), "Unusual: ", found.map(({ step, y, usual, line }, i) => {
    const name = [line.panel && line.panel !== line.label ? line.panel : "", line.label].filter(Boolean).map(visible).join(", ");
    const words = `step ${step.toLocaleString("en")}`;
    return [i ? "; " : null, open ? h("button", { type: "button", onclick: () => open(step, true, line.label) }, words) : h("b", {}, words),
      ` ${name ? `${name} ` : ""}${show(y)}, around it ${show(usual)}`];
  }), ".");
}

/** Lists the rollouts of a step under the chart where it was chosen. null where nothing could be shown or opened. */
function stepOpener(data, bus) {
  const lists = new Map();
  for (const item of data.rollouts ?? []) lists.set(item.step, [...(lists.get(item.step) ?? []), item]);
  if (!lists.size && !bus.opens) return null;
  const place = h("section", { class: "bo-step", tabindex: -1 });
  let back = null;
  place.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.stopPropagation();
    place.remove();
    back?.focus();
  });
  return (step, figure, byKey, label) => {
    if (!lists.size) return bus.open({ step, label });
    const at = [...lists.keys()].reduce((best, x) => (Math.abs(x - step) < Math.abs(best - step) ? x : best));
    const row = ({ step, group, sample, run, words }) => {
      const key = { step, group, sample, ...(run ? { run } : {}) }, name = `${run ? `${visible(run)}, ` : ""}group ${group}, sample ${sample}`;
      return h("li", {}, bus.opens ? h("button", { type: "button", onclick: () => bus.open(key) }, name) : h("b", {}, name), `: ${visible(words)}`);
    };
    back = figure.getRootNode().activeElement;
    place.replaceChildren(h("h3", {}, `Rollouts of step ${at.toLocaleString("en")}`, h("span", {}, at === step ? "" : ` the nearest to step ${step.toLocaleString("en")} that is listed`)),
      h("ul", {}, lists.get(at).map(row)),
      bus.opens ? null : h("p", { class: "quiet" }, "To look at one: ", h("code", {}, `sv.ribbon(run.rollout(${at}, group, sample))`)));
    place.setAttribute("aria-label", `Rollouts of step ${at}`);
    figure.append(place);
    if (byKey) (place.querySelector("button") ?? place).focus();
  };
}

/** A line with its neighbours' mean over a share of its points: { y, wide }; null where that is one point. */
function smooth(line, { smooth: asked, usual }) {
  const n = line.y.length, reach = Math.round((n * (asked ?? usual)) / 200), y = [];
  if (!reach || (line.low && asked === undefined)) return null;
  for (let i = 0; i < n; i++) {
    const part = line.y.slice(Math.max(0, i - reach), i + reach + 1);
    y.push(part.reduce((a, b) => a + b, 0) / part.length);
  }
  return { y, wide: 2 * reach + 1 };
}

function drawPanel(chart, panel, lines, sync, open) {
  const marks = ["●", "■", "▲", "◆", "●"];
  const readings = lines.map(() => h("b", {}));
  const single = !lines[0].label;  // one run, one metric: the title says what it is
  const legend = h("div", { class: "lines" }, lines.map((line, i) => h("span", {},
    single ? null : [glyph(line.style, marks), visible(line.label), " "], readings[i])), h("span", { class: "at" }));
  const at = legend.querySelector(".at"), box = h("div", { class: "plot" });
  const root = h("div", { class: "panel" }, panel ? h("p", { class: "panelname" }, panel) : null, legend, box);
  const steps = [...new Set(lines.flatMap((l) => l.x))].sort((a, b) => a - b);
  const { look } = sync;
  let smoothed = lines.map((line) => smooth(line, look));
  let put = () => {}, wide = 0, shown = null;

  const show = (step) => {
    shown = step;
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

  const paint = (width) => {
    smoothed = lines.map((line) => smooth(line, look));
    const height = chart.share ? 190 : 130, left = 46, right = 12, top = 8, bottom = 22;
    const ends = [steps[0], Math.max(steps.at(-1), steps[0] + 1)];
    let [x0, x1] = [look.from ?? ends[0], look.to ?? ends[1]];
    if (!(x1 > x0)) x1 = x0 + 1;
    const within = (x) => x >= x0 && x <= x1, here = steps.filter(within), places = here.length ? here : steps;
    let low = Infinity, high = -Infinity;
    const take = (y) => { low = Math.min(low, y); high = Math.max(high, y); };
    for (const l of lines) {
      for (const list of [l.y, l.low ?? [], l.high ?? []]) list.forEach((y, i) => { if (!here.length || within(l.x[i])) take(y); });
      for (const o of l.odd ?? []) if (within(o.step)) take(o.y);
    }
    if (chart.floor) low = chart.floor.at;
    if (chart.share) [low, high] = [0, 1];
    else if (low > 0 && low < 0.5 * high) low = 0;
    if (high === low) [low, high] = low >= 0 ? [0, 2 * high || 1] : [2 * low, 0];
    const X = (x) => left + ((width - left - right) * (x - x0)) / (x1 - x0);
    const Y = (y) => top + (height - top - bottom) * (1 - (Math.max(y, low) - low) / (high - low));
    const hint = open ? ". Arrow keys move over the steps, Enter lists the rollouts of one" : "";
    const svg = s("svg", { width, height, tabindex: 0, role: "slider", "aria-label": chartWords(chart, panel, lines) + hint, class: open ? "opens" : null,
      "aria-valuemin": places[0], "aria-valuemax": places.at(-1), "aria-valuenow": places.at(-1) });
    // curves go on beyond the steps that are shown; a page may hold several copies of this script, and each its own names
    const clip = `segviz-${Math.random().toString(36).slice(2)}`, field = s("g", { "clip-path": `url(#${clip})` });
    svg.append(s("clipPath", { id: clip }, s("rect", { x: left - 8, y: 0, width: width - left - right + 16, height })));
    const held = box.contains(box.getRootNode().activeElement);
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
        field.append(s("path", { d: `${path(l.high)}${back}Z`, class: `band c${l.style % 5}` }));
      }
      const soft = smoothed[i];
      if (soft) field.append(s("path", { d: path(l.y), class: `raw c${l.style % 5}` }));
      field.append(s("path", { d: path(soft ? soft.y : l.y), class: `curve c${l.style % 5}`, "stroke-dasharray": DASHES[l.style % 5] || null }));
      const every = Math.max(1, Math.ceil(l.x.length / 12)), ys = soft ? soft.y : l.y;
      if (!single) for (let j = (l.x.length - 1) % every; j < l.x.length; j += every) if (within(l.x[j])) field.append(marker(l.style, X(l.x[j]), Y(ys[j])));
      else if (l.x.length === 1) field.append(marker(l.style, X(l.x[0]), Y(ys[0])));
    });
    for (const l of lines) {
      for (const odd of (l.odd ?? []).filter((o) => within(o.step))) field.append(s("path", { d: `M${X(odd.step)} ${Y(odd.y) - 7}l7 7l-7 7l-7 -7z`, class: `oddmark c${l.style % 5}` },
        s("title", {}, `step ${odd.step}: ${num(odd.y)}, around it ${num(odd.usual)}`)));
      if (chart.floor) l.x.forEach((x, j) => { if (l.y[j] < low && within(x)) field.append(s("path", { d: `M${X(x) - 4} ${Y(low) - 5}h8l-4 6z`, class: `mark c${l.style % 5}` })); });
    }
    const cursor = s("line", { y1: top, y2: height - bottom, class: "cursor" }), dots = s("g", {});
    const chosen = s("rect", { y: top, height: height - top - bottom, class: "bo-chosen" });
    chosen.style.display = "none";
    svg.append(field, chosen, cursor, dots);
    let place = places.length - 1;
    put = (step) => {
      cursor.style.display = step === null || step < x0 || step > x1 ? "none" : "";
      if (step === null) return dots.replaceChildren();
      place = places.reduce((best, x, i) => (Math.abs(x - step) < Math.abs(places[best] - step) ? i : best), 0);
      cursor.setAttribute("x1", X(step));
      cursor.setAttribute("x2", X(step));
      svg.setAttribute("aria-valuenow", places[place]);
      svg.setAttribute("aria-valuetext", `step ${step}: ${lines.map((l, i) => `${l.label ? `${visible(l.label)} ` : ""}${readings[i].textContent}`).join(", ")}`);
      dots.replaceChildren(...lines.filter((l) => within(step) && nearest(l, step) !== null).map((l) => s("circle", { cx: X(step), cy: Y(nearest(l, step)), r: 3.5, class: `spot c${l.style % 5}` })));
    };
    put(null);
    const exactly = (event) => clamp(x0 + ((event.clientX - svg.getBoundingClientRect().left - left) * (x1 - x0)) / (width - left - right), x0, x1);
    const under = (event) => {
      const x = exactly(event);
      return places.reduce((best, y) => (Math.abs(y - x) < Math.abs(best - x) ? y : best), places[0]);
    };
    let began = null, dragged = false;
    svg.addEventListener("pointerdown", (event) => {
      if (event.pointerType !== "mouse" || event.button) return;
      [began, dragged] = [exactly(event), false];
      svg.setPointerCapture(event.pointerId);
    });
    svg.addEventListener("pointermove", (event) => {
      everywhere(under(event));
      if (began === null) return;
      const x = exactly(event), [a, b] = [X(Math.min(began, x)), X(Math.max(began, x))];
      dragged ||= b - a > 6;
      chosen.style.display = dragged ? "" : "none";
      chosen.setAttribute("x", a);
      chosen.setAttribute("width", b - a);
    });
    svg.addEventListener("pointerup", (event) => {
      const from = began;
      began = null;
      chosen.style.display = "none";
      if (from !== null && dragged) sync.zoom(Math.round(Math.min(from, exactly(event))), Math.round(Math.max(from, exactly(event))));
    });
    svg.addEventListener("pointercancel", () => { began = null; chosen.style.display = "none"; });
    svg.addEventListener("dblclick", () => sync.zoom(-Infinity, Infinity));
    svg.addEventListener("pointerleave", () => everywhere(null));
    if (open) svg.addEventListener("click", (event) => { if (!dragged) open(under(event)); });
    svg.addEventListener("blur", () => everywhere(null));
    svg.addEventListener("keydown", (event) => {
      if (open && (event.key === "Enter" || event.key === " ")) {
        event.preventDefault();
        return open(places[place], true);
      }
      const to = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: places.length - 1 }[event.key];
      if (to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      everywhere(places[clamp(to, 0, places.length - 1)]);
    });
    box.replaceChildren(svg);
    if (held) svg.focus({ preventScroll: true });  // a new width does not take the keyboard away
  };
  onWidth(box, (width) => { wide = width; paint(width); });
  sync.paints.push(() => { if (wide) { paint(wide); show(shown); } });
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

DRAW.board = drawBoardPage;
