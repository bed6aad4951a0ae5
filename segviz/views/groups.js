// --- a group: where each completion parts from a sibling that earned another reward ------------------------------

async function drawGroupPage(data, bus) {
  return h("div", { class: "page" }, drawGroup(data, bus));
}

function drawGroup(data, bus) {
  const root = h("article", { class: "sheet group", "aria-label": `${data.title} ${data.where}` }, heading(data),
    h("ul", { class: "badges" }, h("li", { class: "plain" }, `${data.completions} completion${data.completions === 1 ? "" : "s"}`),
      data.reference !== null ? h("li", { class: "plain" }, "reference ", h("b", {}, h("bdi", {}, visible(data.reference)))) : null,
      data.signal ? null : h("li", { class: "cut" }, "no difference in reward: no signal for group methods")),
    ask(data, data.pictures) ?? "");
  for (const note of data.notices) root.append(h("p", { class: "notice" }, visible(note)));
  const view = { data, bus };
  if (data.completions > 1) {
    const { tokens, text, cut } = data.shared;
    root.append(h("div", { class: "gr-shared" }, h("h3", {}, "All begin with", h("span", {}, tokens ? ` the same ${tokens.toLocaleString("en")} token${tokens === 1 ? "" : "s"}` : " nothing in common: the first token differs")),
      tokens ? h("p", { class: "gr-text", dir: "ltr" }, cut ? `… (${cut.toLocaleString("en")} characters) ` : "", visible(text)) : null));
  }
  const list = h("ol", { class: "gr-rows", "aria-label": "Completions, highest reward first" }, data.rows.map((row, i) => groupRow(view, row, i)));
  root.append(groupLegend(data), list,
    h("p", { class: "keys quiet" }, h("kbd", {}, "↑"), h("kbd", {}, "↓"), " completion", bus.opens ? ["  ", h("kbd", {}, "Enter"), " open it"] : null));
  const mains = [...list.querySelectorAll(".gr-main")];
  const mark = (i) => mains.forEach((el, j) => {
    el.setAttribute("aria-pressed", String(i === j));
    el.setAttribute("tabindex", i === j || (i < 0 && j === 0) ? "0" : "-1");
    el.parentElement.classList.toggle("on", i === j);
  });
  const choose = (i, sample = data.rows[i].samples[0]) => {
    mark(i);
    const row = data.rows[i], token = clamp(row.fork?.at ?? 0, 0, Math.max(0, row.tokens - 1));
    bus.select({ key: `${data.key}/${sample}`, token, from: view });
  };
  const open = (i, sample = data.rows[i].samples[0]) => {
    choose(i, sample);
    bus.open({ step: data.step, group: data.group, sample });
  };
  list.addEventListener("click", (event) => {
    const el = event.target.closest("li"), button = event.target.closest("button[data-sample]");
    if (!el) return;
    const i = Number(el.dataset.i);
    if (!button) mains[i].focus({ preventScroll: true });
    open(i, button ? data.rows[i].samples[Number(button.dataset.sample)] : undefined);
  });
  list.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !event.target.classList.contains("gr-main")) return;
    const i = mains.indexOf(event.target), { key } = event;
    const to = key === "ArrowDown" ? i + 1 : key === "ArrowUp" ? i - 1 : key === "Home" ? 0 : key === "End" ? mains.length - 1 : null;
    if (to === null && key !== "Enter" && key !== " ") return;
    event.preventDefault();
    if (to === null) return open(i);
    const next = clamp(to, 0, mains.length - 1);
    mains[next].focus({ preventScroll: true });
    mains[next].scrollIntoView({ block: "nearest" });
    choose(next);
  });
  mark(-1);
  bus.onSelect((chosen) => {
    if (chosen.from === view) return;
    const i = data.rows.findIndex((row) => row.samples.some((sample) => `${data.key}/${sample}` === chosen.key));
    if (i >= 0) mark(i);
  });
  return root;
}

function groupRow(view, row, i) {
  const { data } = view, { fork, error, samples } = row;
  const right = row.right ?? (row.reward === null ? null : row.reward > 0);
  const sign = right === null ? "–" : right ? "✓" : "✗";
  const advantage = row.low === null ? "no credit" : row.low === row.high ? signed(row.low) : `${signed(row.low)} to ${signed(row.high)}`;
  const at = fork ? fork.at - row.first : 0;
  const token = (piece, j) => {
    const t = row.first + j, wrong = error && error.start <= t && t < error.end;
    const text = piece === "" ? "◦" : visible(piece).replaceAll("\n", j < at ? "↵" : "↵\n");
    return h("span", { class: `${wrong ? "wrong" : ""}${fork && t === fork.at ? " fork" : ""}`.trim() || null }, text);
  };
  const own = fork ? row.pieces.slice(at) : row.pieces;
  const words = fork === null ? null : fork.same
    ? [`the same text as sample ${fork.rival} (reward ${num(fork.rival_reward)}): another reward for the same words`]
    : [`after ${fork.at.toLocaleString("en")} shared token${fork.at === 1 ? "" : "s"}, where `, h("b", {}, `sample ${fork.rival}`), ` (reward ${num(fork.rival_reward)}) says `,
      h("q", { dir: "ltr" }, visible(fork.rival_piece)), `: probability ${num(fork.probability, 2)} here, ${num(fork.rival_probability, 2)} there`,
      known(fork.entropy) ? `, entropy ${num(fork.entropy, 2)} nats` : ""];
  const label = `${samples.length > 1 ? "Samples" : "Sample"} ${samples.join(", ")}: reward ${num(row.reward)}, advantage ${advantage}` +
    (fork && !fork.same ? `, says ${visible(fork.piece)} where sample ${fork.rival} says ${visible(fork.rival_piece)}` : "") + (error ? `, first true error at token ${error.start + 1}` : "");
  return h("li", { "data-i": i },
    h("div", { class: "gr-main", role: "button", tabindex: "-1", "aria-pressed": "false", "aria-label": label },
      h("div", { class: "gr-won" }, h("p", { class: right === null ? "gr-mark" : right ? "gr-mark hit" : "gr-mark miss" }, h("span", { "aria-hidden": "true" }, `${sign} `), num(row.reward)),
        h("p", {}, "advantage ", h("b", {}, advantage)),
        h("p", { class: "quiet" }, `${row.tokens.toLocaleString("en")} token${row.tokens === 1 ? "" : "s"}${row.finished === false ? ", cut at the limit" : ""}`)),
      h("div", { class: "gr-said" }, groupBar(data, row), words ? h("p", { class: "gr-fork" }, words) : null,
        h("div", { class: fork ? "gr-line" : "gr-line whole", dir: "ltr" },
          fork ? h("span", { class: "gr-before" }, row.pieces.slice(0, at).map(token)) : null,
          h("span", { class: "gr-own" }, row.tokens === 0 ? h("span", { class: "quiet" }, "(the completion is empty)") : fork && !own.length ? h("span", { class: "fork" }, "(the end)") : null,
            own.map((piece, j) => token(piece, at + j)), row.after ? h("span", { class: "quiet" }, ` … ${row.after.toLocaleString("en")} more`) : null)),
        error ? h("p", { class: "gr-error" }, h("b", {}, "✗ first true error"), ` ${visible(error.kind)}, token ${error.start + 1}`, error.place ? ` (${error.place})` : "", ": ",
          h("q", { dir: "ltr" }, visible(error.piece)), error.why ? [" ", visible(error.why.slice(0, 200))] : null) : null)),
    h("p", { class: "gr-samples" }, samples.length > 1 ? `${samples.length} alike: ` : null,
      samples.map((sample, j) => h("button", { type: "button", "data-sample": j, "aria-label": `${view.bus.opens ? "Open" : "Choose"} sample ${sample}` }, `sample ${sample}`))));
}

/** The whole completion on the scale of the longest: shared part, own part, fork and first true error. */
function groupBar(data, row) {
  const n = Math.max(1, data.longest), at = row.fork ? Math.min(row.fork.at, row.tokens) : 0;
  return s("svg", { viewBox: `0 0 ${n} 10`, preserveAspectRatio: "none", class: "gr-bar", "aria-hidden": "true" },
    s("rect", { x: 0, y: 4, width: at, height: 2, class: "past" }), s("rect", { x: at, y: 2.5, width: Math.max(0, row.tokens - at), height: 5, class: "mine" }),
    row.error ? s("rect", { x: row.error.start, y: 0, width: Math.max(row.error.end - row.error.start, n / 160), height: 10, class: "bad" }) : null,
    row.fork ? s("line", { x1: at, x2: at, y1: 0, y2: 10, class: "cut" }) : null);
}

function groupLegend(data) {
  if (!data.rows.some((row) => row.fork)) return h("p", { class: "quiet" }, data.window);
  return h("div", { class: "legend" }, h("span", { class: "glyphed" }, h("span", { class: "fork" }, "token"), "where it parts from its closest sibling", data.signal ? " with another reward" : ""),
    h("span", { class: "glyphed" }, h("span", { class: "wrong" }, "token"), "first true error"),
    h("span", {}, "✓ ✗ ", data.rows.some((row) => row.right !== null) ? "answer right or wrong" : "reward above zero or not"),
    h("span", {}, "bar: the completion, thin while it is shared with that sibling"), h("span", {}, data.window));
}

DRAW.group = drawGroupPage;
