// --- one prompt over training: what is said to the same held-out problem at each evaluation -------------------------

async function drawOverTrainingPage(data) {
  return h("div", { class: "page" }, h("h1", {}, data.title), drawOverTraining(data));
}

function drawOverTraining(data) {
  const sign = (right) => (right === null ? "–" : right ? "✓" : "✗"), word = (right) => (right === null ? "not judged" : right ? "right" : "wrong");
  const stage = h("div", { class: "ot-stage", "aria-live": "polite" });
  const ends = ({ marks }) => [marks[0], marks.at(-1)];
  const buttons = data.problems.map((problem) => {
    const [first, last] = ends(problem);
    return h("button", { type: "button", "aria-pressed": "false", onclick: () => choose(problem) },
      problem.images.length && data.pictures[problem.images[0]]?.src ? h("img", { src: data.pictures[problem.images[0]].src, alt: "" }) : null,
      h("span", { class: "ot-marks" }, problem.marks.map(({ right }) => h("i", { class: `ot-${word(right).split(" ")[0]}`, "aria-hidden": "true" }, sign(right))),
        h("span", { class: "unseen" }, `${problem.example}: ${word(first.right)} at step ${first.step}, ${word(last.right)} at step ${last.step}`)));
  });
  const line = (one) => h("tr", {}, h("th", { scope: "row" }, one.from === one.to ? `step ${one.from}` : `steps ${one.from} to ${one.to}`),
    h("td", { class: `ot-${word(one.right).split(" ")[0]}` }, `${sign(one.right)} `, one.said === null ? "no answer" : h("b", {}, visible(one.said)), one.seen === false ? h("span", { class: "quiet" }, " sees wrongly") : null,
      one.finished === false ? h("span", { class: "quiet" }, " cut at the limit") : null),
    h("td", {}, h("p", { class: "ot-text" }, one.parts.map(([text, changed, wrong]) => h(changed ? "mark" : "span", { class: wrong ? "ot-error" : null }, visible(text)))),
      one.why ? h("p", { class: "quiet" }, h("span", { class: "ot-error" }, "first error"), ` ${visible(one.why)}`) : null));
  const choose = (problem) => {
    buttons.forEach((el, i) => el.setAttribute("aria-pressed", String(data.problems[i] === problem)));
    stage.replaceChildren(h("div", { class: "ask" },
      problem.images.length ? h("div", { class: "images" }, problem.images.map((sha) => (data.pictures[sha]?.src ? h("img", { class: data.pictures[sha].w < 160 ? "pixels" : null, src: data.pictures[sha].src, alt: "the picture that is asked about" }) : h("div", { class: "missing" }, "image missing")))) : null,
      h("div", { class: "messages" }, h("p", { class: "ot-question" }, visible(problem.question)), problem.reference === null ? null : h("p", { class: "quiet" }, "right is ", h("b", {}, visible(problem.reference)), ` · ${visible(problem.example)}`))),
    h("div", { class: "ot-scroll", tabindex: 0, role: "region", "aria-label": "What it says" }, h("table", {}, h("thead", {}, h("tr", {}, ["evaluation", "answer", "text; what changed is marked"].map((name) => h("th", { scope: "col" }, name)))), h("tbody", {}, problem.says.map(line)))));
  };
  // the most telling one first: wrong before, right after
  const telling = data.problems.find((problem) => ends(problem)[0].right === false && ends(problem)[1].right) ?? data.problems[0];
  choose(telling);
  return h("div", { class: "ot" }, h("p", { class: "verdict" }, data.verdict), h("div", { class: "ot-picker", role: "group", "aria-label": "Held-out problems" }, buttons), stage);
}

DRAW.over_training = drawOverTrainingPage;
