// --- the tab Live ---------------------------------------------------------------------------------------------------

class LivePanel extends Panel {
  build() {
    this.chosen = address.get().getAll("live");
    this.auto = !this.chosen.length;  // nothing chosen: the run that changed last
    this.paused = false;
    this.pinned = new Map();
    this.runs = [];
    this.pending = null;
    this.missed = 0;
    this.picker = h("div", { class: "picker-runs", role: "group", "aria-label": "Runs to watch" });
    this.status = h("span", { class: "quiet", role: "status" });
    this.pause = button("Pause", () => this.setPaused(!this.paused), { "aria-pressed": "false" });
    this.board = h("div", { class: "live-board" });
    this.cards = h("div", { class: "cards" });
    this.stories = h("section", { class: "stories", "aria-label": "What became of it so far" });
    this.found = h("div", { class: "found" });
    this.ends = new Map();  // run -> what says how far it is
    this.look = {};  // how the curves are looked at, whenever they are drawn anew
    this.notes = h("div", {});
    this.body = h("div", { class: "live" }, this.stories,
      h("section", { class: "newest", "aria-label": "Newest rollouts" }, this.heading = h("h2", {}, "What it says"),
        h("p", { class: "quiet" }, "Of each prompt of the newest step, the completion with the strongest credit. Bars up: praised; down: blamed. Click one to see why."), this.cards),
      this.found, h("section", { class: "curves", "aria-label": "Curves" }, this.board));
    const lead = h("details", { class: "lead-in" }, h("summary", {}, "What am I looking at?"),
      h("p", {}, "A model is being trained: it writes answers, and each answer earns one reward. The method of the run deals that reward out over the words that were written: ",
        h("b", {}, "credit"), ". Words above the line are praised and will be said more often, words below it are blamed. Below stand: what has become of the run, what the model says just now and where it goes wrong, "
        + "whether the blame lies where the error is, and the curves."),
      h("p", {}, h("b", {}, "Perception right"), ": what it says about the picture is so. ", h("b", {}, "Grounded"), ": that and the answer are right. A model can learn to answer without looking; only the two together show it. “95 %” is the range in which the true share lies with that confidence."));
    this.root.append(this.picker, h("div", { class: "toolbar" }, this.pause, this.status, lead), this.notes, this.body);
    this.body.append(h("div", { class: "loading wide", role: "status" }, "Reading the runs…"));
    this.polls = [
      new Poll(this, () => "/segpo/api/runs", 1000, (data, error) => this.shelf(data, error)),
      this.live = new Poll(this, () => (this.chosen.length ? `/segpo/api/live?${new URLSearchParams(this.chosen.map((name) => ["run", name]))}` : null),
        1000, (data, error) => this.news(data, error)),
    ];
    for (const name of ["pointerleave", "focusout"]) this.body.addEventListener(name, () => setTimeout(() => this.flush(), 50));
    this.body.addEventListener("pointermove", () => this.flush());
    address.on(() => {
      const named = address.get().getAll("live");
      if (named.length && String(named) !== String(this.chosen)) { this.chosen = named; this.auto = false; this.drawPicker(); this.live.now(); }
    });
  }

  shelf(data, error) {
    if (error) { this.notes.replaceChildren(notice(error.message, "failed")); return; }
    if (this.lost) { this.notes.replaceChildren(); this.live.now(); }
    this.lost = false;
    this.runs = data.runs;
    this.body.querySelector(".loading")?.remove();
    if (this.auto && !this.held) {
      const first = data.runs.find((run) => run.state !== "unreadable") ?? data.runs[0];
      const next = first ? [first.name] : [];
      if (String(next) !== String(this.chosen)) { this.chosen = next; this.live.now(); }
    }
    this.drawPicker();
    if (!data.runs.length) {
      this.board.replaceChildren(empty("No runs yet", `Nothing is recorded in ${data.roots.map(visible).join(", ")}. `, "Start one in the tab “Start a run”, or with ",
        h("code", {}, "segpo train --config configs/demo.yaml --output-dir runs/first"), ". It shows here by itself."));
      this.cards.replaceChildren();
      this.stories.replaceChildren();
      this.found.replaceChildren();
    }
    this.body.classList.toggle("alone", !data.runs.length);
    for (const story of this.told ?? []) this.drawEnd(story);
    this.say();
  }

  drawPicker() {
    const stamp = JSON.stringify([this.runs.map((run) => [run.name, run.words, run.label]), this.chosen]);
    if (stamp === this.drawn) return;
    this.drawn = stamp;
    const focused = this.shadowRoot.activeElement?.dataset?.run;
    const gone = this.chosen.filter((name) => !this.runs.some((run) => run.name === name)).map((name) => ({ name, label: "", state: "unreadable", words: "not there (any more)" }));
    this.picker.replaceChildren(...[...this.runs, ...gone].map((run) => h("button", {
      type: "button", class: "run", "data-run": run.name, "aria-pressed": String(this.chosen.includes(run.name)), onclick: () => this.toggle(run.name),
    }, h("b", {}, visible(run.name)), run.label ? h("span", {}, visible(run.label)) : null, stateMark(run))));
    if (!this.placed && this.chosen.length) {  // of many runs, the chosen one is in sight
      this.placed = true;
      const first = this.picker.querySelector("[aria-pressed=true]");
      if (first) this.picker.scrollTop = first.offsetTop - this.picker.offsetTop;
    }
    if (focused) [...this.picker.children].find((el) => el.dataset.run === focused)?.focus();
  }

  toggle(name) {
    this.auto = false;
    this.chosen = this.chosen.includes(name) ? this.chosen.filter((other) => other !== name) : [...this.chosen, name];
    address.set({ live: this.chosen });
    this.drawPicker();
    this.pending = null;
    if (this.chosen.length) { this.live.now(); return; }
    this.boards = (this.boards ?? 0) + 1;  // what is being drawn just now is not wanted any more
    this.board.replaceChildren(empty("No run is chosen", "Choose one or several above; several are laid over each other."));
    for (const place of [this.cards, this.notes, this.stories, this.found]) place.replaceChildren();
    this.told = [];
    this.body.classList.add("alone");
    this.say();
  }

  /** Somebody is reading here: nothing is pulled away from under the pointer or the focus. */
  get held() { return this.paused || this.body.querySelector(".plot:hover, .bo-tools:hover, .card:hover, .card:focus-within, .plot :focus, .bo-tools :focus") !== null; }

  setPaused(paused) {
    this.paused = paused;
    this.pause.textContent = paused ? "Follow" : "Pause";
    this.pause.setAttribute("aria-pressed", String(paused));
    this.flush();
    this.say();
  }

  news(data, error) {
    if (error) { this.lost = true; this.notes.replaceChildren(notice(error.message, "failed")); return; }
    if (!this.chosen.length) return;
    if (!this.paused) this.drawStories(data);
    const step = Math.max(0, ...data.newest.flatMap((run) => run.cards.map((card) => card.step)));
    if (this.held && this.last !== undefined) {
      this.pending = data;
      this.missed += 1;
      this.say();
      return;
    }
    this.last = step;
    this.pending = null;
    this.missed = 0;
    this.draw(data);
    this.say();
  }

  flush() {
    if (!this.pending || this.held) return;
    const data = this.pending;
    this.pending = null;
    this.news(data, null);
  }

  say() {
    const shown = this.runs.filter((run) => this.chosen.includes(run.name));
    const words = this.pending ? `${this.paused ? "Paused" : "Held while you read"}: ${count(this.missed)} newer update${this.missed === 1 ? "" : "s"}`
      : this.paused ? "Paused; nothing newer yet" : shown.some((run) => run.state === "running") ? "Following" : shown.length ? "Up to date; no run that is shown is training just now" : "";
    if (this.status.textContent !== words) this.status.textContent = words;
  }

  async draw(data) {
    this.notes.replaceChildren(...data.gone.map((run) => notice(`${run.name}: ${run.words}`, "failed")), ...data.problems.map((text) => notice(text)),
      ...(data.unread ? [notice(`Still reading: ${count(data.unread)} steps to go. The newest are shown already.`)] : []));
    if (!this.chosen.length) return;
    this.body.classList.remove("alone");
    this.drawStories(data);
    this.found.replaceChildren(...(data.found ? [h("div", { class: "segviz" }, finding(data.found))] : []),
      ...(data.found && data.counting ? [h("p", { class: "quiet" }, `Still counting: ${count(data.counting)} steps to go.`)] : []));
    if (!data.board || data.board.empty) {
      this.board.replaceChildren(data.gone.length ? empty("Nothing to draw", "What is chosen cannot be read just now; it is shown as soon as it can be.")
        : empty("No step is finished yet", "Training has begun; the evaluation before the first step takes a moment. Curves appear here by themselves."));
    } else await this.drawBoard({ ...data.board, look: this.look });
    if (this.chosen.length) this.drawCards(data.newest);
  }

  /** The numbers from start to now, and one sentence of them; of one run or of several below each other. */
  drawStories(data) {
    const stamp = JSON.stringify(data.stories);
    if (stamp === this.storied && this.stories.childElementCount) return;
    this.storied = stamp;
    this.told = data.stories;
    this.ends.clear();
    const several = data.stories.length > 1;
    this.stories.replaceChildren(...data.stories.map((story) => {
      const end = h("div", { class: "run-end", role: "status" });
      this.ends.set(story.name, end);
      this.drawEnd(story);
      return h("article", { class: "segviz story" }, h("h2", { class: "sentence" }, several ? [h("b", {}, visible(story.name)), ": "] : null, visible(story.sentence)),
        end, story.headline.length ? h("div", { class: "tiles" }, story.headline.map(tile)) : null);
    }));
  }

  /** How far a run is, how long it will take, and at its end the report. */
  drawEnd(story) {
    const { step, planned, done, left } = story.progress, el = this.ends.get(story.name);
    const known_ = this.runs.find((run) => run.name === story.name), state = known_?.state ?? "running", over = done === 1;
    const stamp = JSON.stringify([story.progress, state, known_?.words]);
    if (!el || el.dataset.stamp === stamp) return;
    el.dataset.stamp = stamp;
    const of = step === null ? "no step yet" : planned ? `step ${count(step)} of ${count(planned)}` : `step ${count(step)}`;
    const words = over ? [h("b", {}, "This run has ended: "), `all ${count(planned)} steps are done.`]
      : state === "quiet" && known_.words.endsWith("stopped") ? [h("b", {}, `It was stopped at ${of}: `), "nobody is training it any more; --resume goes on with it."]
      : state === "quiet" ? [h("b", {}, `No news for a while at ${of}: `), "it was stopped, or a step takes long."]
      : [h("b", {}, of), left !== null && left !== undefined ? `, about ${lasting(left)} left` : ""];
    el.replaceChildren(...[done === null ? null : h("progress", { max: 1, value: done, "aria-label": `Steps done of ${visible(story.name)}` }), h("span", {}, words),
      over || state === "quiet" ? h("a", { class: "button", target: "_blank", rel: "noopener", href: `/view/${encodeURIComponent(story.name)}/report?theme=${theme()}` }, over ? "Read its report" : "Report so far") : null].filter(Boolean));
  }

  /** The new board is drawn behind the old one and then takes its place, so that nothing jumps. */
  async drawBoard(board) {
    const mine = (this.boards = (this.boards ?? 0) + 1), el = h("div", { class: "fresh", "aria-hidden": "true" }), open = this.board.querySelector("details")?.open;
    this.board.append(el);
    await render({ el, data: board, host: { open: ({ step, label }) => openStep(this.chosen.find((name) => label?.startsWith(`${name} · `)) ?? this.chosen[0], step) } });
    if (open) {
      const details = el.querySelector("details");
      if (details) details.open = true;
    }
    await new Promise((done) => setTimeout(done, 60));  // charts draw themselves when they know their width
    if (mine !== this.boards) { el.remove(); return; }  // newer ones came
    el.classList.remove("fresh");
    el.removeAttribute("aria-hidden");
    this.board.replaceChildren(el);
  }

  drawCards(newest) {
    const several = newest.length > 1;
    const shown = [...this.pinned.values()], keys = new Set(this.pinned.keys());
    for (const { run, cards } of newest) for (const card of cards) {
      const item = { run, several, ...card }, key = `${run}/${card.step}/${card.group}/${card.sample}`;
      if (!keys.has(key)) shown.push(item);
    }
    const steps = [...new Set(newest.flatMap(({ cards }) => cards.map((card) => card.step)))];
    this.heading.textContent = steps.length === 1 ? `What it said in step ${count(steps[0])}` : "What they said last";
    if (!shown.length) this.cards.replaceChildren(empty("No rollouts yet", "They appear with the first step that is recorded."));
    else this.cards.replaceChildren(...shown.map((item) => this.card(item)));
  }

  /** What it said, and what is right. */
  answered({ said, reference, answer_right, reward: earned, finished }) {
    const says = said === null ? "gives no answer" : [h("span", { class: "quiet" }, "says "), h("b", {}, visible(said))];
    return h("span", { class: "saying" }, says, answer_right === null ? null : [" ", verdict(answer_right, false)],
      answer_right === false && reference !== null ? [h("span", { class: "quiet" }, " · right is "), h("b", {}, visible(reference))] : null,
      answer_right === null ? h("span", { class: "quiet" }, ` · reward ${reward(earned)}`) : null, finished === false ? h("span", { class: "quiet" }, " · cut at the length limit") : null);
  }

  /** The word where it went wrong, or where it was blamed most; of a right one without an error, how it begins. */
  wentWrong({ wrong, text, answer_right }) {
    if (!wrong) return h("p", { class: "text" }, visible(text));
    const quoted = h("span", { class: "excerpt" }, "…", visible(wrong.before), h(wrong.kind ? "mark" : "b", {}, visible(wrong.word)), visible(wrong.after), "…");
    if (!wrong.kind) return h("p", { class: "where" }, h("span", { class: "quiet" }, answer_right === null ? "blamed most: " : "no error in it is known; blamed most: "), quoted);
    const kind = { perception: "sees wrongly", reasoning: "reckons wrongly" }[wrong.kind] ?? `${wrong.kind} error`;
    const blame = wrong.blamed === "there" ? h("span", { class: "verdict-right" }, "✓ blamed there") : wrong.blamed ? h("span", {}, "✗ blamed at “", visible(wrong.blamed), "”") : h("span", {}, "blamed nowhere in particular");
    return h("p", { class: "where" }, h("b", {}, kind), h("span", { class: "quiet" }, wrong.why ? `: ${visible(wrong.why)}` : ""), h("br"), quoted, h("br"), h("span", { class: "quiet" }, "the credit: ", blame));
  }

  card(item) {
    const key = `${item.run}/${item.step}/${item.group}/${item.sample}`, pinned = this.pinned.has(key);
    const el = h("article", { class: `card${pinned ? " pinned" : ""}` },
      h("button", { type: "button", class: "open", onclick: () => openRollout(item), "aria-label": `Open ${visible(item.run)}, ${place(item)}` },
        h("p", { class: "eyebrow" }, item.several || pinned ? h("b", {}, visible(item.run), " ") : null, place(item)),
        h("span", { class: "asked" }, item.picture ? h("img", { src: `/segpo/picture/${encodeURIComponent(item.run)}/${encodeURIComponent(item.picture)}`, alt: "the picture that is asked about", loading: "lazy" }) : null,
          h("span", { class: "words" }, h("span", { class: "question" }, visible(item.question || "(no question recorded)")), this.answered(item))),
        this.wentWrong(item),
        item.strip.length ? strip(item.strip) : h("p", { class: "quiet" }, "no segment's credit recorded")),
      h("button", {
        type: "button", class: "pin", "aria-pressed": String(pinned), title: pinned ? "Unpin" : "Pin: it stays while newer ones come",
        "aria-label": pinned ? "Unpin" : "Pin", onclick: () => {
          if (pinned) this.pinned.delete(key); else this.pinned.set(key, item);
          el.replaceWith(this.card(item));
        },
      }, pinned ? "Unpin" : "Pin"));
    return el;
  }
}

/** Seconds as people say them. */
function lasting(seconds) {
  if (seconds < 50) return `${Math.max(1, Math.round(seconds / 5) * 5 || 1)} s`;
  if (seconds < 3000) return `${Math.max(1, Math.round(seconds / 60))} min`;
  return seconds < 1.5 * 86400 ? `${num(seconds / 3600, 2)} h` : `${num(seconds / 86400, 2)} days`;
}
