// --- what would have happened: questions about the rollout that is open, to a checkpoint of its run ---------------------------

class AskBox {
  /** `show(url)`: shows a page in place of the rollout, null the rollout again. */
  constructor(show) {
    this.segment = h("select", { "aria-label": "Segment" });
    this.number = h("input", { type: "number", min: 1, max: 32, value: 8, "aria-label": "Continuations" });
    this.spoilKind = h("select", { "aria-label": "How the picture is spoiled" });
    const act = (ask, text, title) => button(text, () => this.begin(ask), { title, "data-ask": ask });
    this.acts = [act("on", "Sample on from here", "What follows after the segment is written anew"), act("without", "Sample on without it", "The segment, and what follows, is written anew"),
      act("both", "Compare both", "Does this segment change the chance of success?")];
    this.spoil = act("spoil", "Spoil the picture", "Which tokens lose their probability when the picture is spoiled?");
    this.cancel = button("Cancel", () => { if (this.job) ask(`/segpo/api/play/cancel?job=${this.job}`, undefined, { method: "POST" }).catch(() => {}); }, { hidden: true });
    this.said = h("span", { class: "quiet", role: "status" });
    this.results = h("span", { class: "results" });
    this.el = h("section", { class: "askbox", hidden: true, "aria-label": "Ask a checkpoint" },
      h("div", { class: "toolbar" }, h("label", {}, "Segment ", this.segment), h("label", {}, "continuations ", this.number), this.acts, h("span", { class: "spoil buttons" }, this.spoil, this.spoilKind), this.cancel),
      h("p", {}, this.said, " ", this.results));
    this.el.addEventListener("keydown", (event) => { if (event.key === "Escape") { event.stopPropagation(); event.preventDefault(); this.toggle(false); } });
    this.toggler = button("Ask", () => this.toggle(this.el.hidden), { "aria-expanded": "false", title: "What would have happened? A checkpoint of this run writes on" });
    this.page = show;
  }
  toggle(open) {
    this.el.hidden = !open;
    this.toggler.setAttribute("aria-expanded", String(open));
    if (open) this.load(); else this.toggler.focus();
  }
  /** Another rollout is open. */
  show(rollout) {
    this.rollout = rollout;
    this.job = null;
    this.cancel.hidden = true;
    this.said.textContent = "";
    this.results.replaceChildren();
    if (!this.el.hidden) this.load();
  }
  /** A segment was chosen in the frame. */
  choose(segment) { if (segment < this.segment.length) this.segment.value = String(segment); }
  ids() { const { run, step, group, sample } = this.rollout; return { run, step, group, sample }; }

  async load() {
    const rollout = this.rollout;
    try {
      const found = await ask(`/segpo/api/asked?${new URLSearchParams(this.ids())}`);
      if (rollout !== this.rollout) return;
      const chosen = this.segment.value;
      this.segment.replaceChildren(...found.segments.map((text, i) => h("option", { value: i }, `${i + 1}: ${visible(text.trim().slice(0, 40)) || "(empty)"}`)));
      if (chosen && Number(chosen) < found.segments.length) this.segment.value = chosen;
      this.number.max = found.most;
      this.spoilKind.replaceChildren(...found.corruptions.map((kind) => h("option", { value: kind }, kind)));
      this.spoil.parentElement.hidden = !found.corruptions.length;
      const none = found.checkpoint === null;
      for (const el of [...this.acts, this.spoil]) el.disabled = none;
      if (!this.job) this.said.textContent = none ? "This run keeps no checkpoint to ask." : `Asks the checkpoint of step ${count(found.checkpoint)}.`;
      this.results.replaceChildren(...(found.results.length ? [h("span", { class: "quiet" }, "Kept beside the run: "), ...found.results.slice(0, 8).map(({ name, words }) =>
        button(visible(words), () => this.page(`/asked/${encodeURIComponent(rollout.run)}/${name}?${new URLSearchParams({ theme: theme() })}`), { class: "link" })),
        button("back to the rollout", () => this.page(null), { class: "link" })] : []));
    } catch (error) { if (rollout === this.rollout) this.said.textContent = error.message; }
  }

  async begin(what) {
    const rollout = this.rollout;
    try {
      const job = await ask("/segpo/api/asked", undefined, { method: "POST", body: JSON.stringify({ ...this.ids(), ask: what, segment: Number(this.segment.value), number: Number(this.number.value), corruption: this.spoilKind.value || null }) });
      if (rollout !== this.rollout) return;
      this.job = job.job;
      this.follow(job, rollout);
    } catch (error) { if (rollout === this.rollout) this.said.textContent = error.message; }
  }

  async follow(job, rollout) {
    while (rollout === this.rollout && this.job === job.job) {
      const busy = job.state === "waiting" || job.state === "running";
      this.said.textContent = `${visible(job.words)}${busy && job.total ? ` ${count(job.done)} of ${count(job.total)}` : ""}`;
      this.cancel.hidden = !busy;
      if (!busy) {
        this.job = null;
        if (job.state === "done") {
          this.page(`/play/${job.job}/0?${new URLSearchParams({ theme: theme() })}`);
          await this.load();
          if (job.result?.problem) this.said.textContent = visible(job.result.problem);
        }
        return;
      }
      await new Promise((done) => setTimeout(done, 500));
      try { job = await ask(`/segpo/api/play/job?job=${job.job}`); } catch (error) { this.said.textContent = error.message; this.cancel.hidden = true; return; }
    }
  }
}
