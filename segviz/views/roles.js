// --- the roles ------------------------------------------------------------------------------------------------------

const ROLE_TOKENS = 6000;  // so many tokens are shown; the ribbon shows them all
const ROLE_PICTURE = 240;       // width of an image in px
const LEAST_NATS = 0.1;    // end of the patches' scale at least: a token that looks nowhere stays pale

const ROLE_LAYERS = [
  { id: "role", label: "Role", needs: "role", hint: "what the token does in the completion" },
  { id: "weight", label: "Weight", needs: "weight", diverging: true, x: (k, t) => Math.log(k.weight[t]), none: "no weight",
    ends: (m) => [`×${num(Math.exp(-m), 2)}`, "×1", `×${num(Math.exp(m), 2)}`], hint: "share of the advantage that the token gets, around 1" },
  { id: "d", label: "Seeing contrast d", needs: "pc", diverging: true, x: (k, t) => (k.role?.[t] === 1 ? k.pc[t] : NaN), none: "no perception token",
    ends: (m) => [`${signed(-m)} nats`, "0", `${signed(m)} nats`], hint: "log-probability with the image minus that with the corrupted image, of perception tokens" },
  { id: "c", label: "Evidence contrast c", needs: "rc", diverging: true, x: (k, t) => (k.role?.[t] === 2 ? k.rc[t] : NaN), none: "no reasoning token",
    ends: (m) => [`${signed(-m)} nats`, "0", `${signed(m)} nats`], hint: "log-probability with the perception block minus that without, of reasoning tokens" },
  { id: "advantage", label: "Advantage", needs: "adv", diverging: true, x: (k, t) => (k.trained(t) ? k.adv[t] : NaN), none: "not trained",
    scale: (k) => k.data.limit, ends: (m) => [signed(-m), "0", signed(m)], hint: "credit of each token: its weight times the completion's advantage" },
];

async function drawRolesPage(data, bus) {
  return h("div", { class: "page" }, await drawRoles(data, bus));
}

async function drawRoles(data, bus) {
  const k = new Tokens(data, { ...(await unpack(data.pack)), ...(data.more ? await unpackMore(data.more) : {}) });
  const view = { data, k, bus, current: null, n: Math.min(k.n, ROLE_TOKENS) };
  const root = view.root = h("article", { class: "ribbon roles-view", "aria-label": `${visible(data.title)} ${visible(data.where)}` },
    h("header", {},
      h("p", { class: "eyebrow" }, visible(data.where), " · ", h("b", {}, visible(data.method))),
      h("h2", {}, visible(data.title)),
      h("p", { class: "verdict" }, data.verdict.map((line, i) => [i ? " " : null, h(i ? "span" : "strong", {}, visible(line))])),
      badges(data)),
    data.notices.map((note) => h("p", { class: "notice" }, visible(note))));
  const question = data.prompt.flatMap((m) => m.parts).map((part) => part.text).filter(Boolean).join("\n");
  root.append(h("div", { class: "ro-top" }, await drawSeen(view),
    h("div", { class: "ro-asked" }, question ? h("p", { class: "said", dir: "auto" }, visible(question.length > 600 ? `${question.slice(0, 600)}…` : question)) : null, roleTable(data))));
  if (!k.n) return root;

  view.stream = h("div", { class: "stream", dir: "ltr", role: "group", "aria-label": "Completion, token by token" });
  view.inspector = h("div", { class: "inspect", role: "group", "aria-label": "Numbers of the token" });
  view.legend = h("div", { class: "legend" });
  view.layers = ROLE_LAYERS.map((layer, i) => h("button", { type: "button", "data-layer": layer.id, "aria-pressed": "false", disabled: !usable(k, layer),
    title: usable(k, layer) ? layer.hint : "not recorded", onclick: () => setRoleLayer(view, layer) }, h("kbd", { "aria-hidden": "true" }, String(i + 1)), layer.label));
  root.append(h("div", { class: "tools" }, h("div", { class: "layers", role: "group", "aria-label": "Colour tokens by" }, view.layers), view.legend),
    h("div", { class: "rb-main" }, h("div", { class: "rb-flow" }, view.stream,
      k.n > view.n ? h("p", { class: "notice" }, `The first ${view.n.toLocaleString("en")} of ${k.n.toLocaleString("en")} tokens are shown; the ribbon shows them all.`) : null), view.inspector));
  for (let t = 0; t < view.n;) {
    let end = t + 1;
    while (end < view.n && k.role?.[end] === k.role?.[t]) end++;
    view.stream.append(roleRun(view, t, end));
    t = end;
  }
  setRoleLayer(view, ROLE_LAYERS.find((layer) => usable(k, layer)));
  const start = data.error && data.error.start < view.n ? data.error.start : 0;
  reach(view, start);
  inspectRole(view, start);
  listenRoles(view);
  return root;
}

/** Columns that were too long for the ribbon. */
async function unpackMore(packed) {
  const { text, ...columns } = await unpack(packed);
  return columns;
}

/** Tokens of one role, with its name and mean weight over the first ones. */
function roleRun(view, from, to) {
  const { k, data } = view, role = ROLES[k.role?.[from]], el = h("span", { class: "seg", role: "group", "aria-label": role ?? "no role" });
  let t = from;
  if (role && role !== "other") {
    let sum = 0, count = 0;
    for (let i = from; k.weight && i < to; i++) if (known(k.weight[i])) { sum += k.weight[i]; count++; }
    const held = h("span", { class: "held" });
    for (let room = 20; t < to && room > 0 && !(t > from && (k.piece(t - 1).includes("\n") || data.error?.start === t)); t++) {
      if (data.error?.start === t) el.append(flag(data.error));
      held.append(token(view, t, false));
      room -= Math.max(1, k.piece(t).length);
    }
    el.append(h("span", { class: "start" }, h("span", { class: "tag", "aria-hidden": "true" }, h("i", {}, role), count && k.words(from, to).length > 16 ? ` mean ×${num(sum / count, 3)}` : ""), held));
  }
  for (; t < to; t++) {
    if (data.error?.start === t) el.append(flag(data.error));
    gap(el, k.piece(t));
    el.append(token(view, t, true));
  }
  return el;
}

function roleTable(data) {
  if (!data.roles.length) return null;
  const percent = (x) => (known(x) ? `${Math.round(100 * x)} %` : "–");
  const bar = (x, name) => {
    const fill = h("i", { class: name });
    fill.style.width = `${100 * clamp(x ?? 0, 0, 1)}%`;
    return h("span", { class: "ro-bar", "aria-hidden": "true" }, fill);
  };
  const names = ["role", "tokens", "share of tokens", "share of |advantage|", "mean weight", "mean contrast"];
  return h("table", { class: "ro-table" }, h("thead", {}, h("tr", {}, names.map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, data.roles.map((row) => h("tr", {}, h("th", { scope: "row" }, h("span", { class: "swatch", "data-r": row.role }, row.role)),
      h("td", {}, row.tokens.toLocaleString("en")), h("td", {}, percent(row.share), bar(row.share)),
      h("td", {}, percent(row.credit), bar(row.credit, "ro-credit")), h("td", {}, num(row.weight)),
      h("td", {}, known(row.contrast) ? `${signed(row.contrast)} nats` : row.role === "perception" || row.role === "reasoning" ? "not measured" : "not defined")))));
}

// The image as the model got it, what it was corrupted to, and where it looked.

async function drawSeen(view) {
  const { data } = view, own = Object.values(data.pictures), figures = own.map((picture, i) => seenFigure(picture, own.length > 1 ? `image ${i + 1}` : "as the model got it"));
  if (!figures.length) figures.push(h("figure", {}, h("div", { class: "missing ro-missing" }, "no image"), h("figcaption", {}, "text only")));
  if (data.patches) await drawPatches(view, figures[0]);
  if (data.corrupted) figures.splice(1, 0, seenFigure(data.corrupted, "corrupted, for the seeing contrast"));
  return h("div", { class: "ro-seen" }, h("div", { class: "ro-figures" }, figures), view.patches?.panel ?? null);
}

function seenFigure(picture, caption) {
  if (!picture.src) return h("figure", {}, h("div", { class: "missing ro-missing" }, "image ", picture.note || "missing"), h("figcaption", {}, caption));
  const image = h("img", { src: picture.src, alt: `Image, ${caption}, ${picture.w} by ${picture.h} pixels`, class: Math.max(picture.w, picture.h) <= 128 ? "pixels" : null });
  return h("figure", {}, h("div", { class: "ro-picture" }, image), h("figcaption", {}, `${caption}, ${picture.w} × ${picture.h}${picture.note ? `, ${picture.note}` : ""}`));
}

async function drawPatches(view, figure) {
  const { rows, cols, pack, about, tokens } = view.data.patches, columns = await unpack(pack);
  const grid = h("div", { class: "ro-grid", role: "img", tabindex: 0 });
  grid.style.gridTemplateColumns = `repeat(${cols}, 1fr)`;
  grid.style.gridTemplateRows = `repeat(${rows}, 1fr)`;
  const cells = Array.from({ length: rows * cols }, (_, i) => h("div", { class: "ro-cell", "data-i": i }));
  grid.append(...cells);
  const holder = figure.querySelector(".ro-picture, .ro-missing");
  holder.classList.add("ro-held");
  holder.append(grid);
  const legend = h("p", { class: "ro-legend" }), reading = h("p", { class: "ro-reading", "aria-live": "polite" });
  const back = h("button", { type: "button", hidden: true, onclick: () => leaveToken(view) }, "Back to the mean");
  const toggle = h("button", { type: "button", "aria-pressed": "true", onclick: () => {
    grid.hidden = !grid.hidden;
    toggle.setAttribute("aria-pressed", String(!grid.hidden));
  } }, "Show patches");
  view.patches = { rows, cols, about, each: tokens > 0, all: columns.all, mean: columns.mean, grid, cells, legend, reading, back, at: 0,
    panel: h("div", { class: "ro-panel" }, h("div", { class: "ro-buttons" }, toggle, back), legend, reading) };
  const look = (i) => { view.patches.at = i; readPatch(view); };
  grid.addEventListener("pointerover", (event) => { const cell = event.target.closest(".ro-cell"); if (cell) look(Number(cell.dataset.i)); });
  grid.addEventListener("keydown", (event) => {
    const { at } = view.patches, r = Math.floor(at / cols), c = at % cols;
    const to = { ArrowRight: [r, c + 1], ArrowLeft: [r, c - 1], ArrowDown: [r + 1, c], ArrowUp: [r - 1, c] }[event.key];
    if (!to) return;
    event.preventDefault();
    look(clamp(to[0], 0, rows - 1) * cols + clamp(to[1], 0, cols - 1));
  });
  showPatches(view, null);
}

/** Lays the map of token t over the image; of all tokens together for null. */
function showPatches(view, t) {
  const p = view.patches, size = p?.rows * p?.cols;
  if (!p || (t !== null && !p.each)) return;
  p.map = t === null ? p.mean : p.all.subarray(t * size, (t + 1) * size);
  p.whose = t === null ? p.about : `token ${t + 1} “${visible(view.k.piece(t)).trim().slice(0, 24)}”`;
  let most = 0, top = -1, scale = LEAST_NATS;
  p.map.forEach((x, i) => {
    if (!Number.isFinite(x)) return;
    scale = Math.max(scale, Math.abs(x));
    if (top < 0 || x > most) [most, top] = [x, i];
  });
  const wide = ROLE_PICTURE / p.cols >= 42 && ROLE_PICTURE / p.rows >= 20;
  p.cells.forEach((cell, i) => {
    const x = p.map[i], lost = !Number.isFinite(x), size = lost ? 0 : Math.round((10 * Math.abs(x)) / scale);
    cell.className = `ro-cell${lost ? " ro-lost" : x < 0 && size > 0 ? " ro-under" : ""}${i === top ? " ro-most" : ""}`;
    cell.style.backgroundColor = !lost && x > 0 ? `rgba(13,148,136,${(0.075 * size).toFixed(3)})` : "";
    cell.title = `row ${Math.floor(i / p.cols) + 1}, column ${(i % p.cols) + 1}: ${lost ? "not measured" : `${signed(x)} nats`}`;
    cell.replaceChildren(wide && (size > 0 || lost) ? h("span", {}, lost ? "?" : signed(x)) : "");
  });
  p.grid.setAttribute("aria-label", `Patches, ${p.rows} rows by ${p.cols} columns, for ${p.whose}. `
    + (top < 0 ? "Nothing was measured." : `Strongest: row ${Math.floor(top / p.cols) + 1}, column ${(top % p.cols) + 1}, ${signed(most)} nats.`));
  p.legend.replaceChildren(h("b", {}, p.whose), " ", h("span", { class: "scale" }, h("span", { class: "end" }, "0"), [2, 4, 6, 8, 10].map((x) => {
    const step = h("i", {});
    step.style.backgroundColor = `rgba(13,148,136,${0.075 * x})`;
    return step;
  }), h("span", { class: "end" }, `${signed(scale)} nats`)), " +\u00a0masking the patch makes it less likely; ", h("span", { class: "ro-key" }, "−"), " dashed: more likely");
  if (top >= 0) p.at = top;
  p.back.hidden = t === null;
  readPatch(view);
}

function readPatch({ patches: p }) {
  const x = p.map[p.at], place = `row ${Math.floor(p.at / p.cols) + 1}, column ${(p.at % p.cols) + 1}`;
  for (const cell of p.cells) cell.classList.toggle("ro-at", Number(cell.dataset.i) === p.at);
  p.reading.replaceChildren(h("b", {}, `${place}: ${Number.isFinite(x) ? `${signed(x)} nats` : "not measured"}`), ` for ${p.whose}`);
}

// Tokens: pointing, keys, numbers.

function setRoleLayer(view, layer) {
  if (!usable(view.k, layer)) return;
  view.layer = layer;
  view.scale = layer.scale ? layer.scale(view.k) : layer.x ? view.k.largest((t) => layer.x(view.k, t)) : 0;
  view.layers.forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.layer === layer.id)));
  for (const el of view.stream.querySelectorAll(".t")) paint(view, el);
  drawLegend(view);
  const hatched = view.legend.querySelector('[data-l="u"]');
  if (hatched) hatched.textContent = layer.none;
}

function inspectRole(view, t) {
  const { k, data } = view, role = ROLES[k.role?.[t]], line = (name, x) => [h("dt", {}, name), h("dd", {}, x)];
  const at = (column, show = num) => (column ? (known(column[t]) ? show(column[t]) : "none") : "not recorded");
  const nats = (column, mine) => (!column ? "not recorded" : role !== mine ? "not defined" : known(column[t]) ? `${signed4(column[t])} nats` : "not measured");
  view.inspector.replaceChildren(h("section", {},
    h("h3", {}, `Token ${t + 1} `, h("span", {}, `of ${k.n.toLocaleString("en")}`)),
    h("p", { class: "piece", dir: "auto" }, visible(k.piece(t)).replaceAll("\n", "↵").slice(0, 120) || "(empty)"),
    k.inError(t) ? h("p", { class: "why" }, h("b", {}, `✗ ${visible(data.error.kind)} error`), data.error.why ? ` ${visible(data.error.why)}` : "") : null,
    h("dl", {}, line("role", role ?? "not recorded"), line("weight", at(k.weight)), line("seeing contrast", nats(k.pc, "perception")),
      line("evidence contrast", nats(k.rc, "reasoning")), line("advantage", at(k.adv, signed4)), line("probability", at(k.logp, chance)))),
  h("p", { class: "keys" }, h("kbd", {}, "←"), h("kbd", {}, "→"), " token  ", h("kbd", {}, "1"), "–", h("kbd", {}, "5"), " layer  ", h("kbd", {}, "E"), " error  ",
    view.patches?.each ? [h("kbd", {}, "Esc"), " mean map"] : null));
}

function chooseToken(view, t, focus = true) {
  view.current = t;
  const el = reach(view, t);
  for (const old of view.stream.querySelectorAll(".t.ro-now")) old.classList.remove("ro-now");
  el.classList.add("ro-now");
  inspectRole(view, t);
  showPatches(view, t);
  if (!focus) return;
  el.focus({ preventScroll: true });
  el.scrollIntoView({ block: "nearest" });
  view.bus.select({ key: view.data.key, token: t, segment: view.k.segment[t], from: view });
}

function leaveToken(view) {
  view.current = null;
  for (const old of view.stream.querySelectorAll(".t.ro-now")) old.classList.remove("ro-now");
  showPatches(view, null);
}

function listenRoles(view) {
  const { stream, bus, data } = view, of = (event) => event.target.closest?.(".t");
  const point = (t) => { inspectRole(view, t); showPatches(view, t); };
  stream.addEventListener("pointerover", (event) => { if (of(event)) point(Number(of(event).dataset.t)); });
  stream.addEventListener("pointerleave", () => {
    showPatches(view, view.current);
    if (view.current !== null) inspectRole(view, view.current);
  });
  stream.addEventListener("click", (event) => { if (of(event)) chooseToken(view, Number(of(event).dataset.t)); });
  view.root.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const layer = ROLE_LAYERS[Number(event.key) - 1];
    if (layer) setRoleLayer(view, layer);
    else if (event.key === "Escape") leaveToken(view);
    else if ((event.key === "e" || event.key === "E") && data.error?.start < view.n) chooseToken(view, data.error.start);
  });
  stream.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !of(event)) return;
    view.current ??= Number(of(event).dataset.t);
    const { key } = event, t = view.current;
    const to = key === "ArrowRight" ? t + 1 : key === "ArrowLeft" ? t - 1 : key === "ArrowDown" ? near(view, 1) : key === "ArrowUp" ? near(view, -1)
      : key === "Home" ? 0 : key === "End" ? view.n - 1 : key === "Enter" || key === " " ? t : null;
    if (to === null) return;
    event.preventDefault();
    chooseToken(view, clamp(to, 0, view.n - 1));
  });
  bus.onSelect((chosen) => {
    if (chosen.from === view || chosen.key !== data.key || !known(chosen.token) || chosen.token >= view.n) return;
    chooseToken(view, Math.max(0, chosen.token), false);
  });
}

DRAW.roles = drawRolesPage;
