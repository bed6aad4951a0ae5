// Parts of one ES module, joined by segviz.app.server in the order of SCRIPTS: this one first, all in one scope.
//
// Each tab is a custom element with a shadow root: Gradio's style sheet does not reach into it, and Gradio, which treats
// HTML as a template, never sees a text of a run. Such text reaches the page through text nodes alone.

import { h, s, num, signed, visible, known, strip, render, tile, finding } from "/segpo/renderer.js";

const sheet = new CSSStyleSheet();
sheet.replaceSync(await (await fetch("/segpo/app.css")).text());

/** An element drawn by the views' renderer and style sheet, light or dark as Gradio's page is. */
class Panel extends HTMLElement {
  connectedCallback() {
    if (!this.shadowRoot) {
      this.root = h("div", { class: "app" });
      this.ground = h("div", {}, this.root);
      const shadow = this.attachShadow({ mode: "open" });
      shadow.adoptedStyleSheets = [sheet];
      shadow.append(this.ground);
      this.build();
    }
    this.ground.setAttribute("data-segviz-theme", theme());
    this.watcher = new MutationObserver(() => { this.ground.setAttribute("data-segviz-theme", theme()); this.recolour?.(); });
    this.watcher.observe(document.body, { attributeFilter: ["class"] });
    this.polls?.forEach((poll) => poll.start());
  }
  disconnectedCallback() {
    this.watcher.disconnect();
    this.polls?.forEach((poll) => poll.stop());
  }
  /** Whether somebody can see it: its tab is chosen, and the browser's tab is. */
  get shown() { return !document.hidden && this.getClientRects().length > 0; }
}

/** A tab that asks one of several questions, with the runs at hand. A tab says TAB (its name), KEY (of the question in the address),
 *  ASK (what the row of questions is called), MODES ([name, title, lead]), EMPTY (what could be done if there were a run), and draws with
 *  `present()`; what it shows beyond the question stands in `asks()`, and it is drawn again where the address says something else. */
class ModePanel extends Panel {
  build() {
    this.runs = [];
    this.mode = this.wanted() ?? this.constructor.MODES[0][0];
    this.modes = h("div", { class: "modes", role: "group", "aria-label": this.constructor.ASK }, this.constructor.MODES.map(([mode, title]) => button(title, () => this.choose(mode), { "data-mode": mode, class: "mode" })));
    this.lead = h("p", { class: "lead" });
    this.stage = h("div", { class: "stage" }, h("div", { class: "loading", role: "status" }, "Reading the runs…"));
    this.root.append(this.modes, this.lead, this.stage);
    this.polls = [new Poll(this, () => "/segpo/api/runs", 3000, (data, error) => {
      if (error) { if (!this.drawn) this.stage.replaceChildren(notice(error.message, "failed")); return; }
      const names = data.runs.map((run) => run.name).join("/");
      this.runs = data.runs;
      if (names !== this.names || !this.drawn) { this.names = names; this.draw(); }
    })];
    address.on(() => {
      if (address.get().get("tab") !== this.constructor.TAB || this.stampOf() === this.stamp) return;
      this.mode = this.wanted() ?? this.mode;
      this.draw();
    });
  }

  /** The question that the address names, if there is such a one. */
  wanted() { const mode = address.get().get(this.constructor.KEY); return this.constructor.MODES.some(([known]) => known === mode) ? mode : undefined; }

  stampOf() { return JSON.stringify([this.wanted() ?? this.mode, this.asks()]); }

  choose(mode) {
    this.mode = mode;
    address.set({ tab: this.constructor.TAB, [this.constructor.KEY]: mode });
    this.draw();
  }

  draw() {
    this.drawn = true;
    this.stamp = this.stampOf();
    for (const el of this.modes.children) el.setAttribute("aria-pressed", String(el.dataset.mode === this.mode));
    this.lead.textContent = this.constructor.MODES.find(([mode]) => mode === this.mode)[2];
    if (this.runs.length || this.needsNone?.()) this.present();
    else this.stage.replaceChildren(empty("No runs yet", `Start one in the tab “Start a run”; ${this.constructor.EMPTY}`));
  }
}

const theme = () => (document.body.classList.contains("dark") ? "dark" : "light");

// --- the address: what is shown can be sent to somebody else --------------------------------------------------------

const address = {
  get: () => new URLSearchParams(location.search),
  /** Changes some parameters; null removes one, an array repeats it. `push`: the browser's Back leads here again. */
  set(changes, push = false) {
    const params = this.get();
    for (const [name, value] of Object.entries(changes)) {
      params.delete(name);
      for (const one of [value].flat()) if (one !== null && one !== "" && one !== undefined) params.append(name, one);
    }
    const url = `${location.pathname}${params.size ? `?${params}` : ""}`;
    if (url === location.pathname + location.search) return;
    history[push ? "pushState" : "replaceState"](null, "", url);
    dispatchEvent(new Event("segpo:address"));
  },
  /** Calls tell() when the address has changed, by us or by Back. */
  on(tell) { addEventListener("segpo:address", tell); addEventListener("popstate", tell); },
  /** The rollout that the address names: { run, step, group, sample }, or null. */
  rollout() {
    const params = this.get(), ids = ["step", "group", "sample"].map((name) => params.get(name));
    if (!params.get("run") || !ids.every((id) => /^\d{1,9}$/.test(id ?? ""))) return null;
    return { run: params.get("run"), step: Number(ids[0]), group: Number(ids[1]), sample: Number(ids[2]) };
  },
};
const sameRollout = (a, b) => Boolean(a && b) && ["run", "step", "group", "sample"].every((name) => a[name] === b[name]);

/** The button of a tab; on a narrow page Gradio moves some into a menu, without their ids. */
const tabButton = (name) => document.getElementById(`tab-${name}-button`)
  ?? [...document.querySelectorAll("#tabs .overflow-dropdown button")].find((el) => tabName(el) === name);
const tabName = (el) => el.textContent.trim().split(/\s/)[0].toLowerCase();
const showTab = (name) => tabButton(name)?.click();
function openRollout({ run, step, group, sample }, push = true) {
  address.set({ tab: "rollouts", run, step, group, sample }, push);
  showTab("rollouts");
}

/** The name of the app, and what the directory holds. */
class Top extends Panel {
  build() {
    this.words = h("span", { class: "quiet" });
    this.root.append(h("header", { class: "bar" }, h("h1", {}, h("b", {}, "SegPO")), h("span", { class: "quiet" }, "which part of the reasoning earned the reward?"), this.words));
    this.left = h("ul", {});
    this.leftOut = h("details", { class: "left-out", hidden: true }, h("summary", {}), this.left);
    this.root.append(this.leftOut);
    this.polls = [new Poll(this, () => "/segpo/api/runs", 2000, (data, error) => {
      this.words.textContent = error ? "" : `${data.runs.length} run${data.runs.length === 1 ? "" : "s"} in ${data.roots.map(visible).join(", ")}`;
      if (!error) this.tellLeftOut(data.left_out);
    })];
    const wanted = address.get().get("tab") ?? (address.rollout() ? "rollouts" : null);
    this.choose(wanted, 200);
    addEventListener("popstate", () => this.choose(address.get().get("tab") ?? "live", 1));
    document.addEventListener("click", (event) => {
      const chosen = event.target.closest?.("#tabs button[role=tab], #tabs .overflow-dropdown button");
      if (chosen && event.isTrusted) address.set({ tab: tabName(chosen) });
    });
  }
  /** What lies among the runs and is not shown, with the reason. */
  tellLeftOut(words) {
    const stamp = words.join("\n");
    if (this.told === stamp) return;
    this.told = stamp;
    this.leftOut.hidden = !words.length;
    this.leftOut.querySelector("summary").textContent = `${count(words.length)} left out`;
    this.left.replaceChildren(...words.map((line) => h("li", {}, visible(line))));
  }
  /** Shows a tab as soon as Gradio has made it. */
  choose(name, tries) {
    if (!name || !/^\w+$/.test(name)) return;
    const button = tabButton(name);
    if (button) { if (button.getAttribute("aria-selected") !== "true") button.click(); }
    else if (tries > 0) setTimeout(() => this.choose(name, tries - 1), 50);
  }
}

// --- asking the server ---------------------------------------------------------------------------------------------

/** JSON of our own routes. Throws an Error that says in words what is wrong. */
async function ask(url, signal, more = {}) {
  let answer;
  try {
    answer = await fetch(url, { signal, ...more });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The app's server does not answer. It may have been ended; the runs are unharmed.");
  }
  const body = await answer.json().catch(() => null);
  if (!answer.ok || body === null) throw new Error(body?.error ?? `The server could not answer (${answer.status}).`);
  return body;
}

/** Asks again and again while its panel is seen, and tells when the answer is another. */
class Poll {
  constructor(panel, url, every, tell) {
    Object.assign(this, { panel, url, every, tell, tag: null, last: null, timer: null, running: false });
  }
  start() { if (!this.running) { this.running = true; this.turn(); } }
  stop() { this.running = false; clearTimeout(this.timer); }
  /** Ask now. */
  now() { if (this.running) { clearTimeout(this.timer); this.turn(); } }
  async turn() {
    const mine = (this.turns = (this.turns ?? 0) + 1);
    if (this.panel.shown) await this.once(mine);
    if (this.running && mine === this.turns) this.timer = setTimeout(() => this.turn(), this.every);
  }
  async once(mine) {
    const url = this.url();
    if (!url) return;
    if (url !== this.last) this.tag = null;
    try {
      const answer = await fetch(url, { headers: this.tag ? { "If-None-Match": this.tag } : {}, cache: "no-store" });
      if (mine !== this.turns) return;
      if (answer.status === 304 && !this.failed) return;
      const body = answer.status === 304 ? null : await answer.json();
      if (!answer.ok) throw new Error(body?.error ?? `The server could not answer (${answer.status}).`);
      if (mine !== this.turns) return;
      this.tag = answer.headers.get("ETag");
      this.last = url;
      this.failed = false;
      this.tell(body, null);
    } catch (error) {
      if (mine !== this.turns) return;
      const lost = error instanceof TypeError;
      this.failed = true;
      this.tag = null;
      this.tell(null, lost ? new Error("The app's server does not answer. It may have been ended; the runs are unharmed. Trying again.") : error);
    }
  }
}

// --- small parts ---------------------------------------------------------------------------------------------------

const notice = (text, kind = "") => h("p", { class: `notice ${kind}`, role: kind === "failed" ? "alert" : null }, visible(text));
const empty = (title, ...words) => h("div", { class: "empty" }, h("p", { class: "title" }, title), h("p", {}, ...words));
const button = (text, onclick, more = {}) => h("button", { type: "button", class: "button", onclick, ...more }, text);
const count = (n) => n.toLocaleString("en");
const reward = (x) => (known(x) ? num(x, 3) : "no reward");
const MARKS = { true: ["✓", "right"], false: ["✗", "wrong"], null: ["–", "not known"] };
/** A verdict as sign and word. */
function verdict(value, short = true) {
  const [sign, word] = MARKS[value ?? null];
  return h("span", { class: `verdict-${word.split(" ")[0]}`, title: word, "aria-label": word }, short ? sign : `${sign} ${word}`);
}
const place = ({ step, group, sample }) => `step ${step} · group ${group} · sample ${sample}`;

/** The state of a run as sign and word: colour is never alone. */
function stateMark(run) {
  const sign = { running: "▶", finished: "✓", quiet: "○", unreadable: "!" }[run.state] ?? "?";
  return h("span", { class: `state ${run.state}` }, h("i", { "aria-hidden": "true" }, sign), visible(run.words));
}
