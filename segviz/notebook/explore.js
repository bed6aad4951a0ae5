// --- the list of rollouts, and a line that says how things stand ---------------------------------------------------

/** The handles of ipywidgets' sliders beside the list have no names: they get those of their labels. */
function nameSliders(root, tries = 50) {
  const handles = root.closest(".widget-vbox")?.querySelectorAll(".widget-hslider .noUi-handle") ?? [];
  for (const handle of handles) {
    const name = handle.closest(".widget-hslider").querySelector(".widget-label")?.textContent ?? "";
    const end = handle.classList.contains("noUi-handle-lower") ? "from" : handle.classList.contains("noUi-handle-upper") ? "to" : "";
    handle.setAttribute("aria-label", `${name} ${end}`.trim());
  }
  if (!handles.length && tries) setTimeout(() => nameSliders(root, tries - 1), 100);
}

/** One page of the list. Arrow keys walk over the rows and open them; headings sort; both only where someone answers. */
async function drawList(data, bus) {
  const live = Boolean(bus.host.ask);
  // who walks fast is ahead of the host: its answers, which draw the list anew, must not pull the reader back
  const walk = (bus.state.walk ??= { ahead: null, waiting: 0 });
  if (walk.ahead === data.current) walk.ahead = null;
  const ask = (wish) => {
    clearTimeout(walk.waiting);
    walk.ahead = null;
    bus.host.ask(wish);
  };
  const root = h("section", { class: "list", "aria-label": data.title });
  nameSliders(root);
  const last = data.first + data.rows.length;
  const told = !data.matched ? data.empty
    : `${(data.first + 1).toLocaleString("en")}–${last.toLocaleString("en")} of ${data.matched.toLocaleString("en")}`
      + (data.recorded > data.matched ? ` that fit, ${data.recorded.toLocaleString("en")} recorded` : "");
  const turn = (to, label, name) => h("button", { type: "button", disabled: to < 0 || to >= data.pages || to === data.page, "aria-label": name,
    title: name, onclick: () => ask({ page: to }) }, label);
  root.append(h("div", { class: "list-head" }, h("h3", {}, visible(data.title), " ", h("span", {}, visible(told))),
    live && data.pages > 1 ? h("div", { class: "turn", role: "group", "aria-label": "Pages" },
      turn(0, "«", "first page"), turn(data.page - 1, "‹", "page before"),
      h("span", {}, `page ${data.page + 1} of ${data.pages}`),
      turn(data.page + 1, "›", "next page"), turn(data.pages - 1, "»", "last page")) : null));
  for (const note of data.notices) root.append(h("p", { class: "notice" }, visible(note)));
  if (!data.rows.length) return root;

  const place = (key) => data.rows.findIndex((row) => keyOf(row.key) === key);
  const current = place(walk.ahead) >= 0 ? place(walk.ahead) : place(data.current);
  let here = Math.max(0, current);
  const head = data.columns.map((column) => {
    const sorted = column.id === data.sort, arrow = sorted ? (data.descending ? " ▾" : " ▴") : "";
    return h("th", { scope: "col", "data-c": column.id, title: column.hint,
      "aria-sort": sorted ? (data.descending ? "descending" : "ascending") : null },
    live ? h("button", { type: "button", onclick: () => ask({ sort: column.id }) }, column.label, h("span", { "aria-hidden": "true" }, arrow)) : [column.label, arrow]);
  });
  const rows = data.rows.map((row, i) => h("tr", { "data-i": i, tabindex: live ? (i === here ? 0 : -1) : null,
    "aria-current": i === current ? "true" : null, "aria-label": rowWords(data, row) },
  data.columns.map((column, j) => cell(column.id, row.cells[j], row))));
  root.append(h("div", { class: "list-box" }, h("table", {}, h("thead", {}, h("tr", {}, head)), h("tbody", {}, rows))));
  if (!live) return root;

  const choose = (i, at_once) => {
    rows[here].tabIndex = -1;
    here = i;
    rows[i].tabIndex = 0;
    rows[i].focus({ preventScroll: true });
    rows[i].scrollIntoView({ block: "nearest" });
    for (const row of rows) row.toggleAttribute("aria-current", false);
    rows[i].setAttribute("aria-current", "true");
    walk.ahead = keyOf(data.rows[i].key);
    clearTimeout(walk.waiting);  // who holds an arrow key down wants the last row, not all between
    walk.waiting = setTimeout(() => bus.open(data.rows[i].key), at_once ? 0 : 140);
  };
  root.addEventListener("click", (event) => {
    const row = event.target.closest("tbody tr");
    if (row) choose(Number(row.dataset.i), true);
  });
  root.addEventListener("keydown", (event) => {
    if (!event.target.closest("tbody tr") || event.ctrlKey || event.metaKey || event.altKey) return;
    const end = rows.length - 1;
    const to = { ArrowDown: here + 1, ArrowUp: here - 1, Home: 0, End: end, Enter: here, " ": here }[event.key];
    const page = { PageDown: data.page + 1, PageUp: data.page - 1 }[event.key];
    if (to === undefined && page === undefined) return;
    event.preventDefault();
    if (page !== undefined) { if (page >= 0 && page < data.pages) ask({ page }); }
    else if (to >= 0 && to <= end) choose(to, event.key === "Enter" || event.key === " ");
    else if (to < 0 ? data.page > 0 : data.page + 1 < data.pages) ask({ step: to < 0 ? -1 : 1, from: keyOf(data.rows[here].key) });
  });
  return root;
}

function cell(name, value, row) {
  const number = typeof value === "number";
  if (typeof value === "boolean") {
    return h("td", { "data-c": name, class: value ? "ok" : "bad" }, h("span", { "aria-hidden": "true" }, value ? "✓" : "✗"));
  }
  const size = row.levels[name];
  const text = !known(value) ? "–" : number && name in row.levels ? signed(value) : number ? num(value) : visible(String(value));
  return h("td", { "data-c": name, class: number ? "n" : null },
    size ? h("span", { class: "chip", "data-l": `${size > 0 ? "p" : "n"}${Math.abs(size)}` }, text) : text,
    name === "tokens" && row.cut ? h("span", { title: "cut at the limit" }, " ✂") : null);
}

/** The row as a sentence, for those who hear it. */
function rowWords(data, row) {
  const parts = data.columns.map((column, j) => {
    const x = row.cells[j];
    return `${column.label} ${!known(x) ? "not known" : typeof x === "boolean" ? (x ? "right" : "wrong") : typeof x === "number" ? num(x).replace("−", "minus ") : x}`;
  });
  return visible(parts.join(", ") + (row.cut ? ", cut at the limit" : ""));
}

/** How things stand: a mark, a word, a sentence; further notes below. */
async function drawStatus(data) {
  return h("div", { class: "status", "data-state": data.state },
    h("p", {}, h("span", { class: "lamp", "aria-hidden": "true" }, data.mark), h("b", {}, data.word), " ", visible(data.words)),
    data.notes.map((note) => h("p", { class: "notice" }, visible(note))));
}

DRAW.list = drawList;
DRAW.status = drawStatus;
