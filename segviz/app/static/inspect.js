// --- the tab Inspect ---------------------------------------------------------------------------------------------------

const QUESTIONS = [
  ["audit", "Can I trust it?", "The values and advantages of a run held against what is known: Monte Carlo values, or the outcomes."],
  ["forensics", "What did a step learn?", "Which segments one update pulled at, and what it did to them. Sort the table by movement, share, advantage, ratio or clipping."],
  ["lift", "Where is it unsure?", "Whether large changes of value, and first true errors, fall on the tokens of highest entropy (SAPO's lift curve)."],
  ["boundaries", "Are the cuts real?", "The recorded cuts of one completion beside those that a rule would make, with the signal behind each."],
];
const RULE_NAMES = [["", "what suits it"], ["entropy", "entropy"], ["probability", "probability"], ["fixed", "fixed length"], ["newline", "line ends"], ["steps", "“Step n”"]];
const NARROW = 700;  // px; below, the panels of a figure stand under each other

class InspectPanel extends ModePanel {
  static TAB = "inspect";
  static KEY = "q";
  static ASK = "What to ask";
  static MODES = QUESTIONS;
  static EMPTY = "what it records can be inspected here.";

  /** What the address says of this tab; its names are its own, so that the rollout that is open elsewhere stays. */
  asks() { const params = address.get(); return Object.fromEntries(["run", "step", "group", "sample"].map((name) => [name, params.get(`i.${name}`)])); }

  present() {
    const wanted = this.asks(), names = this.runs.map((run) => run.name);
    const readable = this.runs.find((run) => run.state !== "unreadable") ?? this.runs[0];
    const run = h("select", { "aria-label": "Run", onchange: () => this.asked(run.value) }, names.map((name) => h("option", { value: name }, visible(name))));
    run.value = names.includes(wanted.run) ? wanted.run : readable.name;
    this.frame = viewFrame((what, ids) => { if (what === "open") openRollout({ run: run.value, ...ids }); }, this.lead.textContent);
    this.frame.el.classList.add("tall");
    this.form = h("form", { class: "filters", onsubmit: (event) => { event.preventDefault(); this.asked(run.value); } }, h("label", {}, h("span", {}, "Run"), run));
    this.note = h("div", {});
    this.stage.replaceChildren(this.form, this.note, this.frame.el);
    this.fields = {};
    if (this.mode === "forensics") this.stepFields(run, wanted);
    if (this.mode === "boundaries") this.rolloutFields(run, wanted);
    this.asked(run.value, true);
  }

  field(name, value) {
    const el = this.fields[name] = h("input", { type: "number", min: 0, step: 1, name, "aria-label": name, required: true, value: value ?? "" });
    return h("label", { class: "short" }, h("span", {}, name), el);
  }

  stepFields(run, wanted) {
    this.form.append(this.field("step", wanted.run === run.value ? wanted.step : ""),
      button("◂", () => this.walk(run.value, -1), { "aria-label": "Recorded step before" }), button("▸", () => this.walk(run.value, 1), { "aria-label": "Next recorded step" }),
      h("button", { class: "button", type: "submit" }, "Show"));
  }

  rolloutFields(run, wanted) {
    const mine = wanted.run === run.value;
    this.cut = h("select", { "aria-label": "Held against", onchange: () => this.asked(run.value) }, RULE_NAMES.map(([value, text]) => h("option", { value }, text)));
    this.form.append(...["step", "group", "sample"].map((name) => this.field(name, mine ? wanted[name] : "")), h("label", {}, h("span", {}, "Held against"), this.cut),
      h("button", { class: "button", type: "submit" }, "Show"), button("Open the rollout", () => openRollout({ run: run.value, ...this.values() })));
  }

  /** Shows what the fields ask for; of a run that was not asked about, its newest. */
  async asked(run, first = false) {
    const mine = (this.turns = (this.turns ?? 0) + 1), inputs = Object.values(this.fields);
    if (run !== this.of && !first) for (const el of inputs) el.value = "";
    this.of = run;
    try {
      if (inputs.some((el) => !/^\d+$/.test(el.value))) await this.newest(run);
      if (mine !== this.turns) return;
      this.note.replaceChildren();
    } catch (error) {
      if (mine === this.turns) { this.note.replaceChildren(notice(error.message, "failed")); this.frame.el.hidden = true; }
      return;
    }
    const values = this.values(), at = encodeURIComponent(run), more = new URLSearchParams({ theme: theme() });
    this.frame.el.hidden = false;
    address.set({ q: this.mode, ...Object.fromEntries(["run", "step", "group", "sample"].map((name) => [`i.${name}`, { run, ...values }[name] ?? null])) });
    this.stamp = this.stampOf();
    if (this.mode === "forensics") this.frame.to(`/inspect/${at}/forensics/${values.step}?${more}`);
    else if (this.mode === "boundaries") this.frame.to(viewUrl({ run, ...values }, "boundaries", { cut: this.cut.value }));
    else {
      if (this.getBoundingClientRect().width < NARROW) more.set("narrow", "1");
      this.frame.to(`/inspect/${at}/${this.mode}?${more}`);
    }
  }

  values() { return Object.fromEntries(Object.values(this.fields).map((el) => [el.name, Number(el.value)])); }

  async newest(run) {
    const { rows } = await ask(`/segpo/api/rollouts?${new URLSearchParams({ run, limit: 1, ...(this.mode === "boundaries" ? { answer: "wrong" } : {}) })}`);
    const row = rows[0] ?? (await ask(`/segpo/api/rollouts?${new URLSearchParams({ run, limit: 1 })}`)).rows[0];
    if (!row) throw new Error("No rollouts are recorded in this run yet. Choose another one, or wait for its first step.");
    for (const el of Object.values(this.fields)) el.value = row[el.name];
  }

  /** To the recorded step before or after the one that is shown. */
  async walk(run, way) {
    try {
      const { steps } = await ask(`/segpo/api/steps?${new URLSearchParams({ run })}`), now = Number(this.fields.step.value);
      const to = way > 0 ? steps.find((step) => step > now) : steps.findLast((step) => step < now);
      if (to === undefined) return;
      this.fields.step.value = to;
      this.asked(run);
    } catch (error) { this.note.replaceChildren(notice(error.message, "failed")); }
  }

  recolour() { if (this.drawn && this.runs.length) this.asked(this.of); }
}
/** What one step of a run learned from. */
function openStep(run, step) {
  address.set({ tab: "inspect", q: "forensics", "i.run": run, "i.step": step, "i.group": null, "i.sample": null }, true);
  showTab("inspect");
}
