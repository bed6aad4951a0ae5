// --- the tab Rollouts -------------------------------------------------------------------------------------------------

const PAGE = 50;
const CHOICES = [["", "any"], ["right", "right"], ["wrong", "wrong"], ["unknown", "not known"]];
const COLUMNS = [
  { key: "step", name: "Step" }, { key: "answer", name: "Answer" }, { key: "perception", name: "Seen" }, { key: "reasoning", name: "Reasoned" },
  { key: "error", name: "First error" }, { key: "reward", name: "Reward" }, { key: "tokens", name: "Tokens" },
  { key: "spread", name: "Credit, lowest to highest segment" }, { key: null, name: "Text" },
];

class RolloutsPanel extends Panel {
  build() {
    this.filters = Object.fromEntries([...address.get()].filter(([name]) => name.startsWith("f.")).map(([name, value]) => [name.slice(2), value]));
    this.sort = this.filters.sort || "-step";
    this.page = 0;
    this.rows = [];
    this.at = -1;
    this.open = null;
    this.makeFilters();
    this.status = h("p", { class: "quiet", role: "status" });
    this.fresh = button("", () => this.load(0), { hidden: true, class: "button fresh-rows" });
    this.notes = h("div", {});
    this.tbody = h("tbody", {});
    this.thead = h("tr", {});
    this.table = h("table", { class: "rows", role: "grid", "aria-label": "Rollouts" }, h("thead", {}, this.thead), this.tbody);
    this.older = button("Next", () => this.turn(1), { "aria-label": "Next page" });
    this.newer = button("Previous", () => this.turn(-1), { "aria-label": "Previous page" });
    this.pages = h("span", { class: "quiet" });
    this.state = h("div", {});
    this.list = h("section", { class: "list", "aria-label": "Table of rollouts" }, this.form, h("div", { class: "toolbar" }, this.status, this.fresh, fileLinks((form) => `/segpo/api/table.${form}?${new URLSearchParams({ ...this.filters, sort: this.sort })}`)), this.notes,
      h("div", { class: "scroll" }, this.table, this.state), h("div", { class: "toolbar pager" }, this.newer, this.pages, this.older,
        h("span", { class: "quiet keys" }, h("kbd", {}, "↑"), h("kbd", {}, "↓"), " move  ", h("kbd", {}, "Enter"), " open  ", h("kbd", {}, "Esc"), " close")));
    this.makeViewer();
    this.body = h("div", { class: "split" }, this.list, this.viewer);
    this.root.append(this.body);
    this.table.addEventListener("keydown", (event) => this.key(event));
    this.viewer.addEventListener("keydown", (event) => { if (event.key === "Escape") { event.preventDefault(); this.close(); } });
    this.drawHead();
    this.polls = [new Poll(this, () => this.url({ limit: 0 }), 1500, (data, error) => this.news(data, error))];
    address.on(() => this.follow());
    this.state.replaceChildren(h("div", { class: "loading", role: "status" }, "Reading the rollouts…"));
    if (!address.rollout()) this.load(0);
    this.follow();
  }

  // filters

  makeFilters() {
    const set = (name, value, soon) => {
      if (value === "") delete this.filters[name]; else this.filters[name] = value;
      clearTimeout(this.typing);
      this.typing = setTimeout(() => this.changed(), soon ? 0 : 250);
    };
    const select = (name, label, options) => {
      const el = h("select", { name, "aria-label": label, onchange: (event) => set(name, event.target.value, true) }, options.map(([value, text]) => h("option", { value }, text)));
      el.value = this.filters[name] ?? "";
      return h("label", {}, h("span", {}, label), el);
    };
    const range = (name, label, low, high, step) => h("fieldset", {}, h("legend", {}, label), ["from", "to"].map((end) => {
      const el = h("input", { type: "number", name: `${name}_${end}`, placeholder: end, "aria-label": `${label} ${end}`, min: low, max: high, step, oninput: (event) => set(`${name}_${end}`, event.target.value) });
      el.value = this.filters[`${name}_${end}`] ?? "";
      return el;
    }));
    this.failures = new FailureBox(() => `/segpo/api/failures?${new URLSearchParams(this.filters)}`, (filters) => this.ask(filters));
    const search = h("input", { type: "search", name: "text", placeholder: "words in question or completion", title: "Searches the question and the first 4,000 characters of each completion", "aria-label": "Text", oninput: (event) => set("text", event.target.value) });
    search.value = this.filters.text ?? "";
    this.runSelect = select("run", "Run", [["", "all runs"]]);
    this.methodSelect = select("method", "Method", [["", "any"]]);
    this.errorSelect = select("error", "First error", [["", "any"], ["none", "none"]]);
    const more = h("details", { class: "more" }, h("summary", {}, "More filters"), h("div", { class: "filters" }, this.methodSelect,
      select("finished", "Finished", [["", "any"], ["yes", "finished"], ["no", "cut at the limit"]]),
      this.kindSelect = select("kind", "Question", [["", "any"]]), this.labelSelect = select("label", "Yours", [["", "any"]]), this.wrongBox(),
      range("reward", "Reward", null, null, "any"), range("tokens", "Tokens", 0, null, 1), range("spread", "Credit spread", 0, null, "any")));
    more.open = ["method", "finished", "kind", "label", "wrong", "reward_from", "reward_to", "tokens_from", "tokens_to", "spread_from", "spread_to"].some((name) => this.filters[name]);
    this.form = h("form", { class: "filterbox", onsubmit: (event) => event.preventDefault() }, h("div", { class: "filters" }, this.runSelect,
      h("label", { class: "grow" }, h("span", {}, "Text"), search), select("answer", "Answer", CHOICES), select("perception", "Seen", CHOICES), select("reasoning", "Reasoned", CHOICES), this.errorSelect,
      range("step", "Step", 0, null, 1), button("Clear", () => this.clear(), { class: "button clear" })), more, this.failures.el);
  }

  /** The first wrong words that are asked for, exactly. */
  wrongBox() {
    const el = this.wrong = h("input", { type: "text", name: "wrong", placeholder: "exactly", "aria-label": "First wrong words", oninput: (event) => this.ask({ wrong: event.target.value }, 250) });
    el.value = this.filters.wrong ?? "";
    return h("label", {}, h("span", {}, "First wrong words"), el);
  }

  /** Takes filters in, and shows what fits. */
  ask(filters, wait = 0) {
    for (const [name, value] of Object.entries(filters)) if (value === "") delete this.filters[name]; else this.filters[name] = value;
    for (const [name, value] of Object.entries(filters)) {
      const el = this.form.querySelector(`[name="${name}"]`);
      if (el && el.value !== value) el.value = value;
    }
    clearTimeout(this.typing);
    this.typing = setTimeout(() => this.changed(), wait);
  }

  clear() {
    this.filters = {};
    this.form.reset();
    for (const el of this.form.querySelectorAll("select")) el.value = "";
    this.changed();
  }

  changed() {
    this.tellAddress();
    this.load(0);
  }

  tellAddress() {
    this.failures.stale();
    const names = [...address.get().keys()].filter((name) => name.startsWith("f."));
    address.set({ ...Object.fromEntries(names.map((name) => [name, null])), ...Object.fromEntries(Object.entries(this.filters).map(([name, value]) => [`f.${name}`, value])) });
  }

  /** Options of a select, kept chosen though it is not (yet) among them. */
  offer(label, options) {
    const el = label.querySelector("select"), chosen = this.filters[el.name] ?? "";
    if (chosen && !options.some(([value]) => value === chosen)) options = [...options, [chosen, visible(chosen)]];
    const stamp = JSON.stringify(options);
    if (el.dataset.stamp !== stamp) el.replaceChildren(...options.map(([value, text]) => h("option", { value }, text)));
    el.dataset.stamp = stamp;
    if (el.value !== chosen && this.shadowRoot.activeElement !== el) el.value = chosen;
  }

  /** The table holds one run and nothing else is asked of it. Returns whether that changes anything. */
  narrow(run) {
    if (Object.keys(this.filters).every((name) => name === "run" || name === "sort") && this.filters.run === run) return false;
    const { sort } = this.filters;
    this.form.reset();
    this.filters = { run, ...(sort ? { sort } : {}) };
    this.tellAddress();
    return true;
  }

  /** Of all runs' rows only this run's, whatever else is asked of them; "": again of all. */
  narrowTo(run) {
    if (run) this.filters.run = run; else delete this.filters.run;
    this.tellAddress();
  }

  // rows

  url(more) {
    const params = new URLSearchParams({ ...this.filters, sort: this.sort, ...more });
    return `/segpo/api/rollouts?${params}`;
  }

  /** Shows a page; `near`: the one that holds this rollout, if it is among the rows that fit. */
  async load(page, land = null, near = null) {
    const mine = (this.loads = (this.loads ?? 0) + 1);
    this.table.setAttribute("aria-busy", "true");
    try {
      const data = await ask(this.url({ limit: PAGE, offset: page * PAGE, ...(near ? { near: ["run", "step", "group", "sample"].map((name) => near[name]).join("/") } : {}) }));
      if (mine !== this.loads) return;
      if (near && data.at === null && data.read >= data.files && this.narrow(near.run)) return this.load(0, null, near);
      if (page > 0 && !data.rows.length && data.total) return this.load(Math.floor((data.total - 1) / PAGE), land);
      this.page = Math.floor(data.offset / PAGE);
      this.seeking = near && data.at === null && data.read < data.files ? near : null;  // the index is still filling
      this.seen = data;
      this.rows = data.rows;
      this.drawRows(land);
      this.facts(data);
    } catch (error) {
      if (mine !== this.loads) return;
      if (near) { this.narrowTo(""); return this.load(0); }  // the frame says that it is not there
      this.rows = [];
      this.tbody.replaceChildren();
      this.state.replaceChildren(notice(error.message, "failed"));
      this.status.textContent = "";
    }
    this.table.removeAttribute("aria-busy");
    this.fresh.hidden = true;
  }

  /** What has changed since the rows were drawn is told, and shown when the reader wants it. */
  news(data, error) {
    if (error) { this.notes.replaceChildren(notice(error.message, "failed")); this.broken = true; return; }
    if (this.broken || !this.seen) { this.broken = false; this.load(this.page, null, this.at < 0 ? this.open : null); return; }
    if (this.seeking && sameRollout(this.seeking, this.open)) { this.load(this.page, null, this.seeking); return; }
    this.facts(data);
    if (!this.rows.length && data.total) { this.load(0); return; }
    if (data.read < data.files || data.version === this.seen.version) return;
    if (this.seen.read < this.seen.files && this.sort === "-step") { this.seen = data; return; }  // only older ones were still missing
    const more = data.total - this.seen.total;
    this.fresh.hidden = false;
    this.fresh.textContent = more > 0 ? `${count(more)} new: show them` : "Rollouts changed: show the table anew";
  }

  facts(data) {
    this.latest = data;
    const filtered = Object.keys(this.filters).some((name) => name !== "run");
    const filling = data.read < data.files ? `, still reading: ${count(data.read)} of ${count(data.files)} steps` : "";
    const words = filtered ? `${count(data.total)} of ${count(data.every)} rollouts${filling}` : `${count(data.every)} rollouts${filling}`;
    if (this.status.textContent !== words) this.status.textContent = words;
    this.notes.replaceChildren(...data.problems.map((text) => notice(text)));
    const last = Math.max(1, Math.ceil(data.total / PAGE));
    this.pages.textContent = `page ${count(this.page + 1)} of ${count(last)}`;
    this.newer.disabled = this.page === 0;
    this.older.disabled = this.page + 1 >= last;
    this.offer(this.methodSelect, [["", "any"], ...data.methods.map(([name, label]) => [name, visible(label)])]);
    this.offer(this.errorSelect, [["", "any"], ["none", "none"], ...data.errors.map((kind) => [kind, visible(kind)])]);
    this.offer(this.kindSelect, [["", "any"], ...data.kinds.map((kind) => [kind, visible(kind)])]);
    this.offer(this.labelSelect, [["", "any"], ["any", `noted or labelled (${count(data.noted)})`], ...data.labels.map((label) => [label, visible(label)])]);
    this.offer(this.runSelect, [["", "all runs"], ...data.runs.map((name) => [name, visible(name)])]);
    if (!this.rows.length) {
      this.state.replaceChildren(!data.runs.length ? empty("No runs yet", "Start one in the tab “Start a run”; its rollouts appear here.")
        : data.every ? empty("No rollout fits these filters", "Take one away, or ", button("clear them all", () => this.clear(), { class: "link" }), ".")
        : data.read < data.files ? h("div", { class: "loading", role: "status" }, "Reading the rollouts…")
        : empty("No rollouts are recorded yet", "They appear with the first step that is recorded. A run with ", h("code", {}, "record_steps: 0"), " records none."));
    } else this.state.replaceChildren();
    this.table.hidden = !this.rows.length;
  }

  drawHead() {
    const down = this.sort.startsWith("-"), by = this.sort.replace(/^-/, "");
    this.thead.replaceChildren(h("th", { class: "c-run", scope: "col" }, "Run"), ...COLUMNS.map(({ key, name }) => h("th", { scope: "col", class: `c-${key ?? "text"}`, "aria-sort": key === by ? (down ? "descending" : "ascending") : null },
      key ? h("button", { type: "button", onclick: () => this.sortBy(key) }, name, h("i", { "aria-hidden": "true" }, key === by ? (down ? " ↓" : " ↑") : "")) : name)));
  }

  sortBy(key) {
    this.sort = this.sort === `-${key}` ? key : `-${key}`;
    address.set({ "f.sort": this.sort === "-step" ? null : this.sort });
    if (this.sort === "-step") delete this.filters.sort; else this.filters.sort = this.sort;
    this.drawHead();
    this.load(0);
  }

  drawRows(land) {
    this.list.classList.toggle("several", this.seen.runs.length > 1 && !this.filters.run);
    const size = Math.max(...this.rows.flatMap((row) => [Math.abs(row.lowest ?? 0), Math.abs(row.highest ?? 0)]), 0);
    this.tbody.replaceChildren(...this.rows.map((row, i) => h("tr", { role: "row", tabindex: "-1", "data-i": i, onclick: () => this.pick(i, true), "aria-label": this.words(row) },
      h("td", { class: "c-run" }, visible(row.run)), h("td", { class: "c-step" }, h("b", {}, row.step), h("small", {}, ` ${row.group}·${row.sample}`)),
      h("td", { class: "c-mark" }, verdict(row.answer_right)), h("td", { class: "c-mark" }, verdict(row.perception_right)), h("td", { class: "c-mark" }, verdict(row.reasoning_right)),
      h("td", { class: "c-error" }, row.error_kind ? visible(row.error_kind) : h("span", { class: "quiet" }, "–")),
      h("td", { class: "c-number" }, known(row.reward) ? num(row.reward, 3) : "–"), h("td", { class: "c-number" }, known(row.tokens) ? count(row.tokens) : "–", row.finished === false ? h("span", { title: "cut at the length limit" }, " ✂") : ""),
      h("td", { class: "c-spread" }, spreadBar(row.lowest, row.highest, size)),
      h("td", { class: "c-text" }, noteMarks(row), visible(row.before), row.match ? h("mark", {}, visible(row.match)) : null, visible(row.text)))));
    const at = land === "last" ? this.rows.length - 1 : land === "first" ? 0 : this.rows.findIndex((row) => sameRollout(row, this.open));
    this.mark(at);
    if (land) this.pick(at, Boolean(this.open));
  }

  words(row) {
    const said = (value) => MARKS[value ?? null][1];
    return `${visible(row.run)}, ${place(row)}: answer ${said(row.answer_right)}, seen ${said(row.perception_right)}, reasoned ${said(row.reasoning_right)}, reward ${reward(row.reward)}`;
  }

  mark(i) {
    this.at = i;
    for (const el of [this.before, this.after]) el.disabled = i < 0;
    const focusable = Math.max(0, i);
    [...this.tbody.children].forEach((el, j) => {
      el.tabIndex = j === focusable ? 0 : -1;
      if (j === i) el.setAttribute("aria-selected", "true"); else el.removeAttribute("aria-selected");
    });
  }

  /** Moves to a row; `open` shows it. */
  pick(i, open) {
    if (i < 0 || i >= this.rows.length) return;
    this.mark(i);
    const el = this.tbody.children[i];
    el.focus({ preventScroll: true });
    el.scrollIntoView({ block: "nearest" });
    if (open) this.show(this.rows[i], true);
  }

  turn(way, land = null) {
    const page = this.page + way;
    if (page < 0 || page * PAGE >= this.latest.total) return;
    this.load(page, land);
  }

  key(event) {
    if (event.target.closest("thead")) return;
    const last = this.rows.length - 1, move = { ArrowDown: this.at + 1, j: this.at + 1, ArrowUp: this.at - 1, k: this.at - 1, Home: 0, End: last }[event.key];
    if (move !== undefined && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      if (move > last) return this.turn(1, "first");
      if (move < 0) return this.turn(-1, "last");
      this.mark(move);
      this.pick(move, false);
      if (this.open) {  // walking with a rollout open shows each, once the keys rest
        clearTimeout(this.walking);
        this.walking = setTimeout(() => this.show(this.rows[this.at], false), 120);
      }
    } else if (event.key === "PageDown") { event.preventDefault(); this.turn(1, "first"); }
    else if (event.key === "PageUp") { event.preventDefault(); this.turn(-1, "first"); }
    else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      const row = this.rows[this.at];
      if (row && sameRollout(row, this.open)) this.frame.frame.focus(); else this.pick(Math.max(0, this.at), true);
    } else if (event.key === "Escape") this.close();
  }

  // the rollout that is open

  makeViewer() {
    this.frame = viewFrame((what, ids) => { if (what === "close") this.close(); else if (what === "select") this.asking.choose(ids.segment); else this.show({ run: this.open.run, ...ids }, true); }, "The rollout and its credit");
    this.heading = h("h2", { tabindex: "-1" });
    this.save = h("a", { class: "button" }, "Download");
    this.save.title = "One HTML file that needs no network";
    this.viewer = h("section", { class: "viewer", "aria-label": "Rollout", hidden: true }, h("div", { class: "toolbar" }, this.heading, h("span", { class: "buttons" },
      this.before = button("◂", () => this.step(-1), { "aria-label": "Rollout before", title: "the row above" }),
      this.after = button("▸", () => this.step(1), { "aria-label": "Next rollout", title: "the row below" }),
      button("Cuts", () => { const { run, step, group, sample } = this.open; address.set({ tab: "inspect", q: "boundaries", "i.run": run, "i.step": step, "i.group": group, "i.sample": sample }, true); showTab("inspect"); }, { title: "Its segments beside those that a rule would make" }),
      button("Compare methods", () => { address.set({ tab: "compare", c: "methods" }, true); showTab("compare"); }),
      (this.asking = new AskBox((url) => { if (url) this.frame.to(url); else { this.frame.again(); this.frame.show(this.open); } })).toggler,
      (this.note = new NoteBox(() => this.load(this.page))).toggler,
      this.copy = button("Copy link", () => this.copyLink()), this.save, button("Close", () => this.close(), { class: "button close" }))), this.note.el, this.asking.el, this.frame.el);
  }

  async copyLink() {
    const url = new URL(location.href), { run, step, group, sample } = this.open;
    url.search = new URLSearchParams({ run, step, group, sample });
    try { await navigator.clipboard.writeText(url); this.copy.textContent = "Copied"; } catch { prompt("The link to this rollout:", url); }
    setTimeout(() => { this.copy.textContent = "Copy link"; }, 1500);
  }

  step(way) {
    if (this.at < 0) return;
    const next = this.at + way;
    if (next >= this.rows.length) this.turn(1, "first"); else if (next < 0) this.turn(-1, "last"); else this.pick(next, true);
  }

  show(rollout, push) {
    const { run, step, group, sample } = rollout;
    address.set({ run, step, group, sample }, push);
    this.follow();
  }

  close() {
    if (!this.open) return;
    address.set({ run: null, step: null, group: null, sample: null }, true);
    this.follow();
    this.pick(this.at >= 0 ? this.at : 0, false);
  }

  /** Shows what the address says. */
  follow() {
    const wanted = address.rollout(), before = this.open;
    if (sameRollout(wanted, before)) return;
    this.open = wanted;
    this.viewer.hidden = !wanted;
    this.body.classList.toggle("opened", Boolean(wanted));
    this.mark(this.rows.findIndex((row) => sameRollout(row, wanted)));
    if (!wanted) { if (!this.seen) this.load(0); return; }
    if (this.at < 0) {  // from a link, a card or Back: the table goes where it stands, so that ◂ and ▸ lead to its neighbours
      if (!before && !this.filters.run) this.narrowTo(wanted.run);
      this.load(0, null, wanted);
    }
    this.heading.textContent = `${visible(wanted.run)} · ${place(wanted)}`;
    this.save.href = viewUrl(wanted, "rollout", { download: 1, theme: "" });
    this.save.setAttribute("download", "");
    this.note.show(wanted);
    this.asking.show(wanted);
    this.frame.show(wanted);
  }

  recolour() { if (this.open) { this.frame.again(); this.frame.show(this.open); } }
}

/** From the lowest to the highest segment's credit, around zero, with the numbers. */
function spreadBar(low, high, size) {
  if (!known(low)) return h("span", { class: "quiet" }, "not assigned");
  const svg = s("svg", { width: 84, height: 12, "aria-hidden": "true" }), x = (v) => 42 + (size ? (v / size) * 40 : 0);
  svg.append(s("line", { x1: 2, x2: 82, y1: 6, y2: 6, class: "track" }));
  if (low < 0) svg.append(s("rect", { x: x(low), y: 6, width: Math.max(1, x(Math.min(0, high)) - x(low)), height: 5, class: "down" }));
  if (high > 0) svg.append(s("rect", { x: x(Math.max(0, low)), y: 1, width: Math.max(1, x(high) - x(Math.max(0, low))), height: 5, class: "up" }));
  svg.append(s("line", { x1: 42, x2: 42, y1: 0, y2: 12, class: "axis" }));
  return h("span", {}, h("span", { class: "low" }, signed(low)), svg, h("span", { class: "high" }, signed(high)));
}
