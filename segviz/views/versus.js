// --- two completions beside each other: one scroll, lines that stay together, what differs is marked ---------------------------

const VS_LINE = 14;  // tokens of a stretch that both say, in one line

async function drawVersus(data) {
  const marks = [], rows = [];
  for (const [same, a, aEnd, b, bEnd] of data.blocks) {
    if (same) for (let i = 0; i < aEnd - a; i += VS_LINE) rows.push(vsRow(data, true, [a + i, Math.min(aEnd, a + i + VS_LINE)], [b + i, Math.min(bEnd, b + i + VS_LINE)]));
    else { const row = vsRow(data, false, [a, aEnd], [b, bEnd]); marks.push(row); rows.push(row); }
  }
  let at = -1;
  const go = (way) => {
    at = clamp(at + way, 0, marks.length - 1);
    marks.forEach((row, i) => row.classList.toggle("here", i === at));
    marks[at].scrollIntoView({ block: "center" });
    marks[at].focus({ preventScroll: true });
    said.textContent = `difference ${at + 1} of ${marks.length}`;
  };
  const said = h("span", { class: "quiet", role: "status" }, `${marks.length} difference${marks.length === 1 ? "" : "s"}`);
  const text = h("div", { class: "vs-text", role: "region", tabindex: 0, "aria-label": "Both completions, line by line" }, rows);
  const root = h("article", { class: "versus", "aria-label": data.title },
    h("header", {}, h("h2", {}, data.title), h("p", { class: "verdict" }, data.verdict.map((line, i) => [i ? " " : null, h(i ? "span" : "strong", {}, visible(line))]))),
    data.same_prompt ? null : h("p", { class: "notice" }, "These are completions of two different prompts; the one above is the first one's."),
    data.notices.map((note) => h("p", { class: "notice" }, visible(note))),
    ask(data, data.pictures),
    h("div", { class: "vs-tools" }, h("button", { type: "button", disabled: !marks.length, onclick: () => go(-1) }, "◀ previous difference"), h("button", { type: "button", disabled: !marks.length, onclick: () => go(1) }, "next difference ▶"), said),
    h("div", { class: "vs-heads" }, data.sides.map((side) => h("div", {}, h("b", {}, visible(side.name)), h("p", { class: "quiet" }, `${visible(side.where)} · ${visible(side.method)}`),
      h("p", { class: "quiet" }, known(side.facts.reward) ? `reward ${num(side.facts.reward, 3)}` : "no reward", side.limit ? ` · credit up to ±${num(side.limit, 2)}` : " · no credit")))),
    text);
  root.addEventListener("keydown", (event) => {
    if (marks.length && !event.ctrlKey && !event.metaKey && (event.key === "n" || event.key === "p")) { event.preventDefault(); go(event.key === "n" ? 1 : -1); }
  });
  return h("div", { class: "page" }, root);
}

function vsRow(data, same, ...spans) {
  const words = same ? null : `differs: ${data.sides.map((side, i) => `${side.name} says ${side.pieces.slice(...spans[i]).join("") || "nothing"}`).join(", ")}`;
  return h("div", { class: `vs-row${same ? "" : " differs"}`, tabindex: same ? null : -1, role: same ? null : "group", "aria-label": words && visible(words) },
    data.sides.map((side, i) => h("p", { class: "vs-side", dir: "auto" }, spans[i][0] === spans[i][1] ? h("span", { class: "quiet" }, "—") : side.pieces.slice(...spans[i]).map((piece, j) => vsToken(side, spans[i][0] + j, piece)))));
}

function vsToken(side, t, piece) {
  const size = side.level[t], inError = side.error && side.error[0] <= t && t < side.error[1];
  return h("span", { class: `vs-t${inError ? " error" : ""}`, "data-l": size === null || size === 0 ? null : `${size > 0 ? "p" : "n"}${Math.abs(size)}`,
    title: known(side.credit[t]) ? `token ${t + 1}: ${signed(side.credit[t])}${inError ? ", in the first true error" : ""}` : `token ${t + 1}` }, visible(piece));
}

DRAW.versus = drawVersus;
