// --- notes, labels, files of the table, and failures in groups: parts of the tab Rollouts -----------------------------------

/** The reader's note and labels on the rollout that is open. `done()` hears of a change that was kept. */
class NoteBox {
  constructor(done) {
    this.labels = h("input", { type: "text", "aria-label": "Labels", placeholder: "labels, with commas between them", maxlength: 400 });
    this.text = h("textarea", { "aria-label": "Note", rows: 2, maxlength: 4000, placeholder: "a note of yours; kept in a file of yours, not in the run" });
    this.said = h("span", { class: "quiet", role: "status" });
    this.el = h("form", { class: "notebox", hidden: true, onsubmit: (event) => { event.preventDefault(); this.save(); } },
      this.labels, this.text, h("span", { class: "buttons" }, h("button", { class: "button", type: "submit" }, "Keep"), this.said));
    this.el.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { event.stopPropagation(); event.preventDefault(); this.toggle(false); }
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); this.save(); }
    });
    this.toggler = button("Note", () => this.toggle(this.el.hidden), { "aria-expanded": "false" });
    this.done = done;
  }
  toggle(open) {
    this.el.hidden = !open;
    this.toggler.setAttribute("aria-expanded", String(open));
    (open ? this.labels : this.toggler).focus();
  }
  /** Another rollout is open. */
  async show(rollout) {
    this.rollout = rollout;
    this.said.textContent = "";
    this.set({ note: "", labels: [], at: "" });
    try {
      const ids = ["run", "step", "group", "sample"].map((name) => rollout[name]).join("/");
      const { rows } = await ask(`/segpo/api/rollouts?${new URLSearchParams({ run: rollout.run, sort: "-step", limit: 1, near: ids })}`);
      if (this.rollout === rollout && rows.length && sameRollout(rows[0], rollout)) this.set(rows[0]);
    } catch (error) { if (this.rollout === rollout) this.said.textContent = error.message; }
  }
  set({ note, labels, at }) {
    this.labels.value = labels.join(", ");
    this.text.value = note;
    this.seen = at;
    this.mark(note || labels.length);
  }
  mark(some) { this.toggler.textContent = some ? "Note ●" : "Note"; this.toggler.setAttribute("aria-label", some ? "Note, there is one" : "Note"); }
  async save() {
    const rollout = this.rollout, labels = this.labels.value.split(",").map((label) => label.trim()).filter(Boolean), { run, step, group, sample } = rollout;
    try {
      const kept = await ask("/segpo/api/note", undefined, { method: "POST", body: JSON.stringify({ run, step, group, sample, note: this.text.value, labels, seen: this.seen }) });
      if (this.rollout !== rollout) return;
      this.set(kept);
      this.said.textContent = `Kept in ${visible(kept.file)}`;
      this.done();
    } catch (error) { if (this.rollout === rollout) this.said.textContent = error.message; }
  }
}

/** Labels of a row, and a sign that it has a note. */
const noteMarks = (row) => [row.labels.map((label) => h("span", { class: "label" }, visible(label))), row.note ? h("span", { class: "label", title: visible(row.note) }, "✎ note") : null];

/** Failures by what they have in common. `url()` asks for them, `pick(filters)` opens a group. */
class FailureBox {
  constructor(url, pick) {
    this.lists = h("div", { class: "failures" });
    this.el = h("details", { class: "more", ontoggle: () => { if (this.el.open) this.load(); } }, h("summary", {}, "Failures in groups"), this.lists);
    Object.assign(this, { url, pick });
  }
  /** The filters are others. */
  stale() { if (this.el.open) this.load(); }
  async load() {
    const mine = (this.loads = (this.loads ?? 0) + 1);
    try {
      const data = await ask(this.url());
      if (mine === this.loads) this.draw(data);
    } catch (error) { if (mine === this.loads) this.lists.replaceChildren(notice(error.message, "failed")); }
  }
  draw({ total, groups }) {
    if (!total) { this.lists.replaceChildren(h("p", { class: "quiet" }, "No wrong answer is known among these rollouts.")); return; }
    const list = (name, title) => h("section", { "aria-label": title }, h("h2", {}, title), groups[name].length ? h("ul", {}, groups[name].map(([value, many]) =>
      h("li", {}, h("button", { type: "button", class: "link", onclick: () => this.pick({ answer: "wrong", [name]: value }) }, h("bdi", {}, visible(value))), ` ${count(many)}`)))
      : h("p", { class: "quiet" }, "not known"));
    this.lists.replaceChildren(h("p", { class: "quiet" }, `${count(total)} wrong answers among these rollouts. A click opens a group.`),
      h("div", { class: "failure-lists" }, list("error", "First error is of"), list("kind", "Kind of question"), list("wrong", "First wrong words")));
  }
}

/** Links to the table as a file. `url(form)` says where it is. */
const fileLinks = (url) => h("span", { class: "buttons" }, h("span", { class: "quiet" }, "As a file:"), [["csv", "CSV"], ["parquet", "Parquet"], ["jsonl", "JSONL"]].map(([form, name]) =>
  h("button", { type: "button", class: "link", title: `All rows that fit, as ${name}`, onclick: () => { location.assign(url(form)); } }, name)));
