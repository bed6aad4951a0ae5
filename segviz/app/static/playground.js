// --- the tab Playground -----------------------------------------------------------------------------------------------

const ENDED = ["done", "stopped", "failed"];
const WHERE = [["both", "before and after it"], ["before", "before it"], ["after", "after it"]];

class PlaygroundPanel extends Panel {
  build() {
    this.root.append(h("p", { class: "lead" }, "Ask a checkpoint, write on from any segment, and spoil the picture to see which tokens came from looking."),
      this.stage = h("div", {}, h("div", { class: "loading", role: "status" }, "Looking for checkpoints…")));
    this.polls = [new Poll(this, () => "/segpo/api/play", 5000, (data, error) => this.choices(data, error))];
    addEventListener("message", (event) => this.heard(event));
    addEventListener("pagehide", () => { if (this.job) navigator.sendBeacon(`/segpo/api/play/cancel?job=${this.job}`); });
  }

  choices(data, error) {
    if (error) { if (!this.form) this.stage.replaceChildren(notice(error.message, "failed")); return; }
    if (!this.form) this.layout(data);
    const stamp = JSON.stringify(data.sources);
    if (stamp === this.stamp) return;  // a list that is just open stays open
    this.stamp = stamp;
    const chosen = this.source.value, options = data.sources.map(({ run, step, label }) => h("option", { value: JSON.stringify([run, step]) }, visible(label)));
    if (!options.length) options.push(h("option", { value: "" }, "no checkpoint yet"));
    this.source.replaceChildren(...options);
    if (options.some((el) => el.value === chosen)) this.source.value = chosen;
    this.models = new Map(data.sources.map((one) => [JSON.stringify([one.run, one.step]), one]));
    this.fit();
  }

  /** A language model is asked without a picture. */
  fit() {
    const text = Boolean(this.models.get(this.source.value)?.text);
    if (text === this.text) return;
    this.seen.hidden = this.preset.parentElement.hidden = text;
    this.another.hidden = !text;
    this.text = text;
    this.problem(7);
  }

  // what is asked

  layout(data) {
    this.limits = data;
    const field = (label, el, cls) => h("label", { class: cls }, h("span", {}, label), el);
    this.source = h("select", { name: "source", onchange: () => this.fit() });
    this.models = new Map();
    this.another = button("Another problem", () => this.problem(), { hidden: true });
    this.editor = new SceneEditor(data);
    this.uploaded = null;
    this.file = h("input", { type: "file", accept: "image/png,image/jpeg,image/webp", "aria-label": "Picture to upload", onchange: () => this.upload(this.file.files[0]) });
    this.preview = h("div", { class: "uploaded" });
    const modes = [["draw", "Draw a scene"], ["upload", "Upload a picture"]].map(([mode, name]) => button(name, () => this.mode(mode), { "data-mode": mode, class: "mode", "aria-pressed": "false" }));
    this.modes = modes;
    this.drawing = h("div", {}, this.editor.el, h("p", { class: "buttons" }, button("Another problem", () => this.problem()), button("Clear", () => { this.editor.objects = []; })));
    this.uploading = h("div", { class: "upload", hidden: true }, this.file, h("p", { class: "quiet" }, `PNG, JPEG or WebP, at most ${data.bytes / 2 ** 20} MB. It is kept in memory and goes nowhere else.`), this.preview);
    this.question = h("textarea", { name: "question", rows: 2, maxlength: data.longest, oninput: () => this.matched() });
    this.preset = h("select", { name: "preset", onchange: () => { if (this.preset.value) this.question.value = this.preset.value; } }, h("option", { value: "" }, "in my own words"),
      data.questions.map(([kind, texts]) => h("optgroup", { label: kind }, texts.map((text) => h("option", { value: text }, text)))));
    this.temperature = h("input", { type: "number", name: "temperature", min: 0, max: data.hottest, step: 0.1, value: 1, required: true });
    this.count = h("input", { type: "number", name: "number", min: 1, max: data.most, step: 1, value: 4, required: true });
    this.go = h("button", { type: "submit", class: "button primary" }, "Ask");
    this.form = h("form", { class: "asking filters", "aria-label": "What to ask", onsubmit: (event) => { event.preventDefault(); this.ask(); } },
      field("Model", this.source, "whole"),
      this.seen = h("div", { class: "half" }, h("div", { class: "modes", role: "group", "aria-label": "Picture" }, modes), this.drawing, this.uploading),
      h("div", { class: "half filters" }, field("Question of the task", this.preset, "whole"), field("Question", this.question, "whole"),
        field("Temperature", this.temperature, "short"), field("Completions", this.count, "short"), this.go, this.another));
    this.status = h("span", { role: "status" });
    this.bar = h("progress", { max: 1, hidden: true, "aria-label": "Progress" });
    this.cancel = button("Cancel", () => this.stop(), { class: "button stop", hidden: true });
    this.trouble = h("div", {});
    this.results = h("div", { class: "results" }, empty("Nothing asked yet", "Choose a model and a question, and press Ask. The first question takes some seconds: the model is loaded then."));
    this.stage.replaceChildren(h("div", { class: "play" }, this.form,
      h("section", { "aria-label": "Answers" }, h("div", { class: "toolbar working" }, this.status, this.bar, this.cancel), this.trouble, this.results)));
    this.mode("draw");
  }

  mode(mode) {
    this.uses = mode;
    for (const el of this.modes) el.setAttribute("aria-pressed", String(el.dataset.mode === mode));
    this.drawing.hidden = mode !== "draw";
    this.uploading.hidden = mode !== "upload";
  }

  async problem(number = Math.floor(Math.random() * 1e6)) {
    try {
      const [run] = JSON.parse(this.source.value || "[null]"), of = run === null ? "" : `&run=${encodeURIComponent(run)}`;
      const { scene, question } = await ask(`/segpo/api/play/problem?number=${number}${of}`);
      if (this.text && scene) {  // a language model that was not trained on sums: no problems are known
        this.another.hidden = true;
        this.question.value = "";
        return;
      }
      if (scene) this.editor.objects = scene;
      this.question.value = question;
      this.matched();
    } catch (error) { this.fail(error); }
  }

  /** The list of questions shows which one it is, if it is one of the task's. */
  matched() {
    this.preset.value = this.question.value.trim();
    if (this.preset.selectedIndex < 0) this.preset.value = "";
  }

  async upload(file) {
    if (!file) return;
    this.uploaded = null;
    if (file.size > this.limits.bytes) { this.preview.replaceChildren(notice(`The file is larger than ${this.limits.bytes / 2 ** 20} MB; choose a smaller picture.`, "failed")); return; }
    this.preview.replaceChildren(h("p", { class: "quiet" }, "Reading the picture…"));
    try {
      const got = await ask("/segpo/api/play/picture", undefined, { method: "POST", body: file });
      this.uploaded = got.picture;
      this.preview.replaceChildren(h("img", { src: `/segpo/api/play/picture?name=${got.picture}`, alt: `Uploaded picture, ${got.width} by ${got.height} pixels` }), h("p", { class: "quiet" }, `${got.width} × ${got.height} pixels, as it will be given to the model's processor`));
    } catch (error) { this.preview.replaceChildren(notice(error.message, "failed")); }
  }

  ask() {
    if (!this.source.value) return this.fail(new Error("There is no checkpoint to ask; train a run with save_steps above 0."));
    if (!this.text && this.uses === "upload" && !this.uploaded) return this.fail(new Error("No picture is uploaded yet; choose a file, or draw a scene."));
    const [run, step] = JSON.parse(this.source.value);
    const picture = this.text ? {} : this.uses === "upload" ? { picture: this.uploaded } : { scene: this.editor.objects };
    return this.work("ask", { run, step, question: this.question.value, temperature: Number(this.temperature.value), number: Number(this.count.value), ...picture }, (job) => this.answers(job));
  }

  // one request at a time

  async work(what, wish, then) {
    if (this.working) return;
    this.working = true;
    this.unwanted = false;
    this.busy(true);
    this.trouble.replaceChildren();
    this.say("Sending…");
    this.status.parentElement.scrollIntoView({ block: "nearest" });  // on a narrow page it lies below
    let job = null, error = null;
    try {
      job = await ask(`/segpo/api/play/${what}`, undefined, { method: "POST", body: JSON.stringify(wish), headers: { "Content-Type": "application/json" } });
      this.job = job.job;
      if (this.unwanted) await this.stop();
      while (!ENDED.includes(job.state)) {
        this.say(job.words, job.total ? job.done / job.total : null);
        await new Promise((done) => setTimeout(done, 200));
        job = await ask(`/segpo/api/play/job?job=${this.job}`);
      }
    } catch (problem) { error = problem; }
    this.job = null;
    this.working = false;
    this.busy(false);
    this.say(job?.state === "stopped" ? job.words + (job.result ? " What there was in time is shown." : "") : "");
    if (error) this.fail(error);
    else if (job.state === "failed") this.fail(new Error(job.words));
    else if (job.result) then(job);
  }

  async stop() {
    this.cancel.disabled = this.unwanted = true;
    if (!this.job) return;  // not sent yet: it is cancelled as soon as it has a name
    try { await ask(`/segpo/api/play/cancel?job=${this.job}`, undefined, { method: "POST" }); } catch (error) { this.fail(error); }
  }

  busy(on) {
    this.cancel.hidden = this.bar.hidden = !on;
    this.cancel.disabled = false;
    for (const el of [this.go, ...this.root.querySelectorAll(".probe button")]) el.disabled = on;
  }

  say(words, share = null) {
    const said = visible(words);
    if (this.status.textContent !== said) this.status.textContent = said;
    if (share === null) this.bar.removeAttribute("value"); else this.bar.value = share;
  }

  fail(error) { this.trouble.replaceChildren(notice(error.message, "failed")); }

  // what came back

  answers({ job, result }) {
    this.asked = { job, ...result };
    this.open = 0;
    const right = result.completions.filter((one) => one.answer_right).length, n = result.completions.length;
    const truth = result.answer === null ? "Nothing says what is right." : `The answer is ${visible(result.answer)}: ${right} of ${n} right.`;
    this.chips = result.completions.map((one, i) => h("button", { type: "button", class: "answer", "aria-pressed": "false", onclick: () => this.show(i) },
      h("span", { class: "said" }, h("b", {}, `${i + 1} `), "answer ", verdict(one.answer_right, false), ` · reward ${reward(one.reward)} · ${count(one.tokens)} tokens · entropy ${num(one.entropy, 2)}`,
        one.error_kind ? ` · first error: ${visible(one.error_kind)}` : "", one.finished ? "" : " · cut"),
      h("span", { class: "text" }, visible(one.text))));
    this.page = viewFrame(() => {}, "The completion, token by token");
    this.segment = h("select", { "aria-label": "Segment", onchange: () => this.pick(Number(this.segment.value)) });
    this.where = h("select", { "aria-label": "Write on from" }, WHERE.map(([value, name]) => h("option", { value }, name)));
    this.draws = h("input", { type: "number", "aria-label": "Continuations of each side", min: 1, max: this.limits.most, value: 8 });
    this.spoil = h("select", { "aria-label": "How to spoil the picture" }, this.limits.corruptions.map((kind) => h("option", { value: kind }, kind)));
    this.after = h("div", { class: "after" });
    this.results.replaceChildren(
      h("h2", {}, `${n} completion${n === 1 ? "" : "s"} of ${visible(result.source)}`), h("p", { class: "quiet" }, truth,
        result.temperature === 0 ? " At temperature 0 all are the same, so one was drawn." : ` Temperature ${result.temperature}${result.cut && `, ${result.cut}`}.`, result.critic ? "" : " This model has no critic, so there are no values."),
      h("div", { class: "answers", role: "group", "aria-label": "Completions" }, this.chips), this.page.el,
      h("div", { class: "probes" },
        h("form", { class: "probe", "aria-label": "Write on", onsubmit: (event) => { event.preventDefault(); this.resample(); } }, h("h3", {}, "Write on from here"),
          h("p", { class: "quiet" }, "Press a token above to choose its segment; ", h("kbd", {}, "Enter"), " on it begins."),
          h("div", { class: "line" }, this.segment, this.where, this.draws, h("button", { type: "submit", class: "button" }, "Write on"))),
        result.picture === false ? null : h("form", { class: "probe", "aria-label": "Spoil the picture", onsubmit: (event) => { event.preventDefault(); this.corrupt(); } }, h("h3", {}, "Spoil the picture"),
          h("p", { class: "quiet" }, "Which tokens become less likely when the model cannot see?"),
          h("div", { class: "line" }, this.spoil, h("button", { type: "submit", class: "button" }, "See which move")))),
      this.after);
    this.show(0);
    const heading = this.results.querySelector("h2");
    if (heading.getBoundingClientRect().top > innerHeight * 0.6) heading.scrollIntoView({ block: "start" });
  }

  show(i) {
    this.open = i;
    this.chips.forEach((el, n) => el.setAttribute("aria-pressed", String(n === i)));
    const { segments } = this.asked.completions[i];
    this.segment.replaceChildren(...segments.map((one, m) => h("option", { value: m }, visible(`${m + 1}: ${one.text.trim() || "(end)"}`.slice(0, 60)))));
    this.pick(this.asked.completions[i].error_segment ?? 0);  // where the page begins, too
    this.page.to(`/play/${this.asked.job}/${i}?theme=${theme()}`);
  }

  pick(m) { if (this.segment && m < this.segment.options.length) this.segment.value = String(m); }

  /** What is chosen in the frame. */
  heard(event) {
    if (!this.page || event.source !== this.page.frame.contentWindow || typeof event.data !== "object" || !event.data) return;
    const { segviz, segment } = event.data;
    if (segviz === "select" && Number.isInteger(segment) && segment >= 0) this.pick(segment);
    if (segviz === "enter") this.resample();
  }

  resample() {
    const wish = { job: this.asked.job, completion: this.open, segment: Number(this.segment.value), where: this.where.value, number: Number(this.draws.value) };
    const name = `Completion ${this.open + 1}, written on from ${WHERE.find(([value]) => value === wish.where)[1].replace("it", `segment ${wish.segment + 1}`)}`;
    return this.work("resample", wish, ({ job }) => this.follow(name, job, "What follows"));
  }

  corrupt() {
    const wish = { job: this.asked.job, completion: this.open, corruption: this.spoil.value };
    return this.work("corrupt", wish, ({ job, result }) => this.follow(`Completion ${this.open + 1}, its picture spoiled: ${wish.corruption}`, job, "What the tokens owe to the picture", this.moved(result.tokens)));
  }

  follow(name, job, label, ...more) {
    const frame = viewFrame(() => {}, label), heading = h("h2", { tabindex: "-1" }, visible(name));
    this.after.replaceChildren(heading, ...more, frame.el);
    this.below = { frame, job };
    frame.to(`/play/${job}/0?theme=${theme()}`);
    heading.focus({ preventScroll: true });
    heading.scrollIntoView({ block: "start", behavior: "auto" });
  }

  /** Every token by what it loses, in nats; those that lose most in words. */
  moved(tokens) {
    const largest = Math.max(0.1, ...tokens.map(([, drop]) => Math.abs(drop)));
    const level = (drop) => { const size = Math.round((10 * Math.abs(drop)) / largest); return size ? `${drop > 0 ? "p" : "n"}${size}` : "z"; };
    const most = tokens.map(([piece, drop], t) => ({ piece, drop, t })).sort((a, b) => Math.abs(b.drop) - Math.abs(a.drop)).slice(0, 8).filter((one) => Math.abs(one.drop) >= 0.01);
    return h("div", { class: "segviz moved" },
      h("p", { class: "stream", dir: "ltr", "aria-label": "Tokens by what they lose" }, tokens.map(([piece, drop], t) => [piece[0] === " " ? h("wbr") : null, h("span", { class: "t", "data-l": level(drop), title: `token ${t + 1}: ${signed(drop)} nats` }, visible(piece) || "∎")])),
      h("p", { class: "quiet" }, h("span", { "data-l": "p8" }, " bar above "), " less likely without the picture · ", h("span", { "data-l": "n8" }, " bar below "), ` more likely · strongest ${num(largest, 3)} nats`),
      most.length ? h("ol", { class: "most", "aria-label": "Tokens that move most" }, most.map(({ piece, drop, t }) => h("li", {}, h("b", { dir: "ltr" }, `“${visible(piece).trim() || "∎"}”`), ` ${signed(drop)} nats `, h("span", { class: "quiet" }, `token ${t + 1}`))))
        : h("p", { class: "notice" }, "No token moves: what was written does not hang on this picture."));
  }

  recolour() {
    if (this.asked && this.page) this.page.to(`/play/${this.asked.job}/${this.open}?theme=${theme()}`);
    if (this.below) this.below.frame.to(`/play/${this.below.job}/0?theme=${theme()}`);
  }
}
