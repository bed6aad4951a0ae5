// --- the tab Compare --------------------------------------------------------------------------------------------------

const MODES = [
  ["methods", "One rollout, every method", "What would each method have blamed? The same completion, judged by all whose credit is known."],
  ["runs", "Two runs, one prompt", "What two runs make of the same problem: pick a prompt that both have seen, then a completion of each."],
  ["right", "Against the truth", "Which methods' credit is right? Known for completions whose every state was valued."],
  ["time", "One prompt over training", "How a run's answers to one problem change from step to step."],
];

class ComparePanel extends ModePanel {
  static TAB = "compare";
  static KEY = "c";
  static ASK = "What to compare";
  static MODES = MODES;
  static EMPTY = "what it records can be compared here.";

  clicked = new Map();  // run -> which completion of which problem somebody has clicked

  asks() { return address.rollout(); }

  needsNone() { return this.mode === "right"; }

  present() {
    this.again = null;
    ({ methods: () => this.methods(), runs: () => this.prompts(2), right: () => this.right(), time: () => this.time() })[this.mode]();
  }

  select(label, value, names, onchange) {
    const el = h("select", { "aria-label": label, onchange: () => onchange(el.value) }, names.map((name) => h("option", { value: name }, visible(name))));
    if (names.includes(value)) el.value = value;
    return [h("label", {}, h("span", {}, label), el), el];
  }

  // one rollout under every method

  async methods() {
    const names = this.runs.map((run) => run.name), wanted = address.rollout();
    const frame = viewFrame((what, ids) => { if (what === "open") openRollout({ run: run.value, ...ids }); }, "Credit of every method");
    const inputs = ["step", "group", "sample"].map((name) => h("input", { type: "number", min: 0, step: 1, name, "aria-label": name, required: true, value: wanted?.[name] ?? "" }));
    const note = h("div", {}), scores = h("div", { class: "found" }), best = this.runs.find((run) => run.credits.length) ?? this.runs[0];
    const [label, run] = this.select("Run", wanted?.run ?? best.name, names, () => this.first(run.value, inputs).then(go));
    const go = () => {
      if (!inputs.every((el) => /^\d+$/.test(el.value))) return;
      const [step, group, sample] = inputs.map((el) => Number(el.value)), rollout = { run: run.value, step, group, sample };
      const about = this.runs.find((one) => one.name === run.value);
      note.replaceChildren(...(about && !about.credits.length ? [h("p", { class: "notice" }, "Only the credit it was trained with is recorded. Other methods' credit is computed with ",
        h("code", {}, visible(`segpo credit ${about.path} --method grpo,rloo,gspo --steps ${step}`)), ".")] : []));
      this.scores(scores, [run.value]);
      address.set(rollout);
      this.stamp = this.stampOf();
      frame.show(rollout, "methods");
    };
    const form = h("form", { class: "filters", onsubmit: (event) => { event.preventDefault(); go(); } }, label,
      inputs.map((el) => h("label", { class: "short" }, h("span", {}, el.name), el)), h("button", { class: "button", type: "submit" }, "Show"),
      button("Open the rollout", () => openRollout(address.rollout())));
    frame.el.classList.add("tall");
    this.stage.replaceChildren(form, note, scores, frame.el);
    this.again = () => { frame.again(); go(); };
    if (!wanted) await this.first(run.value, inputs).catch((error) => note.replaceChildren(notice(error.message, "failed")));
    if (inputs.every((el) => el.value !== "")) go();
    else note.replaceChildren(empty("No rollouts in this run yet", "Choose another run, or wait for its first step."));
  }

  // methods against the truth

  right() {
    const frame = viewFrame(() => {}, "How right each method's credit is"), shipped = "completions that ship with the toolkit";
    const names = [shipped, ...this.runs.filter((run) => run.judged).map((run) => run.name)], wanted = address.get().get("run");
    const [label, pick] = this.select("Measured on", names.includes(wanted) ? wanted : shipped, names, () => go());
    const go = () => {
      const run = pick.value === shipped ? {} : { run: pick.value };
      frame.to(`/view/rightness?${new URLSearchParams({ theme: theme(), ...run })}`);
    };
    const other = this.runs.find((run) => !run.judged);
    const how = other && h("p", { class: "notice" }, "How right it is on a run's own policy and problems is measured with ",
      h("code", {}, visible(`segpo bench-credit --small --run ${other.path}`)), ", in minutes.");
    frame.el.classList.add("tall");
    this.stage.replaceChildren(h("form", { class: "filters", onsubmit: (event) => event.preventDefault() }, label), how ?? h("div"), frame.el);
    this.again = go;
    go();
  }

  /** Whether the credit of methods, or of runs, finds the first true error: over many completions, above the one. */
  async scores(el, names) {
    if (el.dataset.runs === JSON.stringify(names)) return;
    el.dataset.runs = JSON.stringify(names);
    const mine = (this.scored = (this.scored ?? 0) + 1);
    try {
      const data = await ask(`/segpo/api/found?${new URLSearchParams(names.map((name) => ["run", name]))}`);
      if (mine !== this.scored) return;
      const [one] = data.runs, counting = data.runs.some((run) => run.counting);
      const found = names.length > 1 ? data.found : one.methods.length ? { said: "", whence: one.methods[0].whence, by_token: false, lines: [], methods: one.methods, trust: [], beside: "Method" } : one.found;
      el.replaceChildren(...(found ? [h("div", { class: "segviz" }, finding(found))] : []), ...(counting ? [h("p", { class: "quiet" }, "Still counting …")] : []));
      if (counting) setTimeout(() => { if (mine === this.scored && el.isConnected) { el.dataset.runs = ""; this.scores(el, names); } }, 1000);
    } catch (error) { if (mine === this.scored) el.replaceChildren(notice(error.message, "failed")); }
  }

  /** Fills in a run's newest rollout that went wrong, or its newest one. */
  async first(run, inputs) {
    for (const filter of [{ answer: "wrong" }, {}]) {
      const { rows } = await ask(`/segpo/api/rollouts?${new URLSearchParams({ run, limit: 1, ...filter })}`);
      if (rows.length) { inputs.forEach((el) => { el.value = rows[0][el.name]; }); return; }
    }
    inputs.forEach((el) => { el.value = ""; });
  }

  recolour() { this.again?.(); }

  /** The same held-out problems at each evaluation; the training prompts that came back, of a run that recorded none, or asked for. */
  time() {
    const has = this.runs.filter((run) => run.evals).map((run) => run.name), wanted = address.get().get("cr");
    if (address.get().get("of") === "training" || !has.length || (wanted && this.runs.some((run) => run.name === wanted) && !has.includes(wanted))) { this.prompts(1); return; }
    const frame = viewFrame(() => {}, "One prompt over training");
    frame.el.classList.add("tall");
    const [label, run] = this.select("Run", wanted ?? has[0], this.runs.map((one) => one.name), () => { address.set({ cr: [run.value] }); if (has.includes(run.value)) go(); else this.draw(); });
    const go = () => frame.to(`/view/${encodeURIComponent(run.value)}/over_training?theme=${theme()}`);
    this.again = () => { frame.again(); go(); };
    const other = button("Training prompts instead", () => { address.set({ of: "training", cr: [run.value] }); this.draw(); });
    this.stage.replaceChildren(h("form", { class: "filters", onsubmit: (event) => event.preventDefault() }, label, other), frame.el);
    go();
  }

  // one prompt in two runs, or over training

  prompts(count_) {
    const names = this.runs.map((run) => run.name);
    if (names.length < count_) { this.stage.replaceChildren(empty("Two runs are needed", "Start another one; with the same seed it sees the same problems.")); return; }
    const params = address.get(), said = params.getAll("cr"), pick = [said[0] ?? names[0]];
    if (count_ === 2) pick.push(said[1] ?? names.find((name) => name !== pick[0]));
    const scores = h("div", { class: "found" }), list = h("div", { class: "prompts" }), detail = h("div", { class: "detail" }), search = h("input", { type: "search", placeholder: "part of the question or of its id", "aria-label": "Prompt" });
    const evals = (name) => count_ === 1 && this.runs.some((run) => run.name === name && run.evals), chose = address.get().get("of") === "training";
    const turn = () => { if (!chose && evals(selects[0][1].value)) { address.set({ cr: [selects[0][1].value] }); this.draw(); } else load(); };
    const selects = pick.map((name, i) => this.select(count_ === 2 ? `Run ${"AB"[i]}` : "Run", name, names, turn));
    const load = async () => {
      const chosen = selects.map(([, el]) => el.value);
      address.set({ cr: chosen });
      if (count_ === 2 && chosen[0] === chosen[1]) { list.replaceChildren(empty("The same run twice", "Choose two different ones.")); return; }
      if (count_ === 2) this.scores(scores, chosen);
      const query = new URLSearchParams([...chosen.map((name) => ["run", name]), ["search", search.value]]);
      const mine = (this.loads = (this.loads ?? 0) + 1);
      try {
        const data = await ask(`/segpo/api/prompts?${query}`);
        if (mine !== this.loads) return;
        this.fill(list, detail, data, chosen);
        if (data.filling) setTimeout(() => { if (mine === this.loads && list.isConnected) load(); }, 1000);
      } catch (error) { if (mine === this.loads) list.replaceChildren(notice(error.message, "failed")); }
    };
    search.addEventListener("input", () => { clearTimeout(this.typing); this.typing = setTimeout(load, 250); });
    this.stage.replaceChildren(h("form", { class: "filters", onsubmit: (event) => event.preventDefault() }, selects.map(([label]) => label),
      h("label", { class: "grow" }, h("span", {}, "Prompt"), search),
      evals(pick[0]) ? button("Held-out problems instead", () => { address.set({ of: null, cr: [selects[0][1].value] }); this.draw(); }) : null), scores, h("div", { class: "columns" }, list, detail));
    list.replaceChildren(h("div", { class: "loading", role: "status" }, "Looking for prompts…"));
    load();
  }

  fill(list, detail, data, chosen) {
    const two = chosen.length === 2, same = data.prompts.map((p) => p.example).join("\n");
    if (!data.prompts.length) {
      list.replaceChildren(data.filling ? h("div", { class: "loading", role: "status" }, "Reading the rollouts…")
        : empty(two ? "No prompt that both runs saw" : "No prompts", two ? "Runs with the same seed and data see the same problems." : "None is recorded that fits."));
      detail.replaceChildren();
      return;
    }
    const share = (run) => (known(run.right) ? `${run.right} of ${run.count} right` : `${run.count} completions`);
    const buttons = data.prompts.map((prompt) => h("button", { type: "button", class: "prompt", "aria-pressed": "false", onclick: () => open(prompt.example) },
      h("span", { class: "asked" }, prompt.picture ? h("img", { src: `/segpo/picture/${prompt.picture.map(encodeURIComponent).join("/")}`, alt: "the picture that is asked about", loading: "lazy" }) : null,
        prompt.question ? h("span", { class: "words" }, visible(prompt.question)) : null), h("b", {}, visible(prompt.example)), prompt.runs.map((run, i) => h("span", {}, two ? `${"AB"[i]}: ${share(run)}` : share(run), run.times > 1 ? `, at ${count(run.times)} steps` : `, step ${run.steps[0]}`))));
    const open = (example) => {
      buttons.forEach((el, i) => el.setAttribute("aria-pressed", String(data.prompts[i].example === example)));
      address.set({ ce: example });
      this.detail(detail, example, chosen);
    };
    list.replaceChildren(h("p", { class: "quiet" }, `${count(data.total)} prompts${two ? " seen by both, those with the largest difference first" : ", those seen most often first"}${data.total > data.prompts.length ? `; ${data.prompts.length} shown` : ""}`),
      h("div", { class: "scroll" }, buttons));
    const wanted = address.get().get("ce");
    if (this.listed === same && detail.childElementCount) return;
    this.listed = same;
    open(wanted && (data.prompts.some((p) => p.example === wanted)) ? wanted : data.prompts[0].example);
  }

  async detail(el, example, chosen) {
    const mine = (this.details = (this.details ?? 0) + 1);
    try {
      const { rows } = await ask(`/segpo/api/prompt?${new URLSearchParams([...chosen.map((name) => ["run", name]), ["example", example]])}`);
      if (mine === this.details) this.drawDetail(el, example, chosen, rows);
    } catch (error) { if (mine === this.details) el.replaceChildren(notice(error.message, "failed")); }
  }

  drawDetail(el, example, chosen, rows) {
    const two = chosen.length === 2, sides = chosen.map((run) => ({ run, rows: rows.filter((row) => row.run === run) }));
    // of two runs one page: what differs is marked, and both are scrolled as one
    const frame = viewFrame((what, ids) => { if (what === "open") openRollout({ run: chosen[0], ...ids }); }, two ? "Both completions, differences marked" : `Rollout of ${chosen[0]}`);
    const picked = new Map();
    const draw = () => {
      if (!two) { const row = picked.get(chosen[0]); if (row) frame.show({ ...row, run: chosen[0] }); return; }
      if (picked.size < 2) return;
      const [a, b] = chosen.map((run) => { const row = picked.get(run); return [run, row.step, row.group, row.sample].join("/"); });
      frame.to(`/versus?${new URLSearchParams({ a, b, theme: theme() })}`);
    };
    const side = ({ run, rows: mine }) => {
      let shown = null;
      const steps = [...new Set(mine.map((row) => row.step))];
      const chips = mine.map((row) => [row, h("button", { type: "button", class: "chip", "aria-pressed": "false", "aria-label": `${place(row)}, answer ${MARKS[row.answer_right ?? null][1]}`, title: `${place(row)}, reward ${reward(row.reward)}`, onclick: () => { this.clicked.set(run, [example, place(row)].join()); show(row); } },
        verdict(row.answer_right), ` ${row.sample}`)]);
      const link = button("Open", () => openRollout({ ...shown, run }));
      const show = (row) => {
        shown = row;
        chips.forEach(([other, chip]) => chip.setAttribute("aria-pressed", String(other === row)));
        picked.set(run, row);
        draw();
      };
      const lines = steps.map((step) => {
        const here = chips.filter(([row]) => row.step === step), right = here.filter(([row]) => row.answer_right).length;
        return h("div", { class: "stepline" }, h("span", { class: "quiet" }, `step ${step}`), h("span", { class: "chips" }, here.map(([, chip]) => chip)), h("span", { class: "quiet" }, `${right} of ${here.length} right`));
      });
      const box = h("div", { class: "side" }, h("div", { class: "toolbar" }, h("h3", {}, two ? `${"AB"[chosen.indexOf(run)]}: ` : "", visible(run)), link), h("div", { class: "lines" }, lines));
      if (!two && steps.length === 1) box.prepend(notice(`This run saw the prompt at step ${steps[0]} only, and recorded no held-out answers (log_eval_completions): a new run does.`));
      // what somebody has chosen stays, also where the list comes anew because more was read meanwhile
      const stays = mine.find((row) => [example, place(row)].join() === this.clicked.get(run));
      if (mine.length) queueMicrotask(() => show(stays ?? mine.find((row) => row.answer_right === false) ?? mine[0]));
      return box;
    };
    this.again = () => { frame.again(); draw(); };
    el.replaceChildren(h("h2", {}, visible(example)), h("div", { class: `sides${two ? " two" : ""}` }, sides.map(side)), frame.el);
  }
}
