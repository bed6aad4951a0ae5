// --- the process that was started here --------------------------------------------------------------------------------

class TrainerPanel extends Panel {
  build() {
    this.words = h("p", { class: "lead", role: "status" });
    this.link = button("Watch it live", () => { address.set({ tab: "live", live: [this.name] }, true); showTab("live"); }, { hidden: true });
    this.stop = button("Stop after this step", async () => { this.stop.disabled = true; await fetch("/segpo/api/trainer/stop", { method: "POST" }); this.polls[0].now(); }, { hidden: true, class: "button stop" });
    this.output = h("pre", { class: "output", tabindex: "0", "aria-label": "What the training says" });
    this.root.append(h("section", { class: "trainer" }, h("h2", {}, "Training"), this.words, h("p", { class: "buttons" }, this.link, this.stop), this.output));
    this.polls = [new Poll(this, () => "/segpo/api/trainer", 1000, (data, error) => {
      if (error) { this.words.replaceChildren(notice(error.message, "failed")); return; }
      this.name = data.name;
      this.words.textContent = data.words;
      this.root.dataset.state = data.state;
      this.stop.hidden = data.state !== "running" && data.state !== "stopping";
      this.stop.disabled = false;
      this.stop.textContent = data.state === "stopping" ? "Stop at once" : "Stop after this step";
      this.link.hidden = !data.name || data.state === "failed";
      const down = this.output.scrollTop + this.output.clientHeight >= this.output.scrollHeight - 8;
      this.output.textContent = visible(data.output);
      this.output.hidden = !data.output;
      if (down) this.output.scrollTop = this.output.scrollHeight;
    })];
  }
}
