// --- the report -------------------------------------------------------------------------------------------------

async function drawReport(data, bus) {
  const gallery = h("section", { class: "gallery" }, h("h2", {}, "Rollouts worth a look"));
  const places = new Map(data.ribbons.map((ribbon, i) => [ribbon.key, i]));
  if (data.board.rollouts.length) bus.onOpen((key) => places.has(keyOf(key)) && Boolean(gallery.show?.(places.get(keyOf(key)))));
  const facts = data.facts.filter(([name]) => !["versions", "commit", "machine"].includes(name));
  const rest = data.facts.filter(([name]) => ["versions", "commit", "machine"].includes(name));
  const list = (items) => h("dl", { class: "facts" }, items.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, visible(value)))));
  const root = h("div", { class: "page" },
    h("header", { class: "top" }, h("p", { class: "eyebrow" }, "SegPO run"), h("h1", {}, visible(data.name), " ", h("span", {}, visible(data.method))),
      h("p", { class: "verdict" }, visible(data.sentence)),
      data.headline.length ? h("div", { class: "tiles" }, data.headline.map(tile)) : null, list(facts),
      rest.length ? h("details", {}, h("summary", {}, "Versions and machine"), list(rest)) : null,
      data.problems.map((line) => h("p", { class: "notice" }, visible(line)))),
    data.found ? finding(data.found) : null, gallery,
    data.over ? h("section", {}, h("h2", {}, data.over.title), drawOverTraining(data.over)) : null,
    h("section", {}, h("h2", {}, data.board.title), drawBoard(data.board, bus)));
  if (data.ribbons.length) await drawGallery(gallery, data, bus);
  else gallery.append(h("p", { class: "notice" }, "No rollouts are recorded yet."));
  return root;
}

/** Fills `place`; `place.show(i)` shows the ribbon number i. */
async function drawGallery(place, data, bus) {
  const stage = h("div", { class: "stage" }), why = h("p", { class: "caption", "aria-live": "polite" });
  const kinds = [...new Set(data.gallery.map((g) => g.kind))], steps = [...new Set(data.gallery.map((g) => g.step))];
  const buttons = [];
  const choose = async (entry) => {
    buttons.forEach(({ el, entry: other }) => el.setAttribute("aria-pressed", String(entry === other)));
    const lead = entry.step === undefined ? `${entry.kind}. ` : `Step ${entry.step}, ${entry.kind.toLowerCase()}. `;
    why.replaceChildren(h("b", {}, lead), visible(entry.why));
    stage.replaceChildren(await drawRibbon(data.ribbons[entry.ribbon], data.pictures, bus));
  };
  const button = (entry, label) => {
    const ribbon = data.ribbons[entry.ribbon], reward = ribbon.facts.reward;
    const el = h("button", { type: "button", "aria-pressed": "false", "aria-label": label ?? `Step ${entry.step}, ${entry.kind}`, onclick: () => choose(entry) },
      strip(ribbon.strip), h("span", {}, label ?? `reward ${num(reward, 2)} · ${ribbon.tokens.toLocaleString("en")} tokens`));
    buttons.push({ el, entry });
    return el;
  };
  const tour = data.tour.length ? h("div", { class: "tour" }, h("h3", {}, data.tour.length === 1 ? "Begin with this one" : `Begin with these ${["", "", "two", "three"][data.tour.length]}`),
    h("ol", {}, data.tour.map((stop) => h("li", {}, button(stop, stop.kind))))) : null;
  const table = h("table", { class: "picker" },
    h("thead", {}, h("tr", {}, h("td", {}), kinds.map((kind) => h("th", { scope: "col" }, kind)))),
    h("tbody", {}, steps.map((step) => h("tr", {}, h("th", { scope: "row" }, `step ${step}`), kinds.map((kind) => {
      const entries = data.gallery.filter((g) => g.step === step && g.kind === kind);
      return h("td", { "data-kind": kind }, entries.length && entries[0].ribbon !== null ? entries.map((entry) => button(entry)) : h("span", { class: "none" }, "none recorded"));
    })))));
  await choose(data.tour[0] ?? data.gallery.findLast((g) => g.ribbon !== null && /error|blamed/i.test(g.kind)) ?? data.gallery.find((g) => g.ribbon !== null));
  if (tour) place.append(tour);
  place.append(table, why, stage);
  place.show = (i) => {
    const at = [...data.tour, ...data.gallery].find((g) => g.ribbon === i);
    if (at) choose(at);
    else {
      buttons.forEach(({ el }) => el.setAttribute("aria-pressed", "false"));
      why.replaceChildren(h("b", {}, visible(data.ribbons[i].where)));
      drawRibbon(data.ribbons[i], data.pictures, bus).then((ribbon) => stage.replaceChildren(ribbon));
    }
    why.scrollIntoView({ block: "start" });
    return true;
  };
}

/** A rollout's credit at a glance. Bars go up for positive and down for negative credit. */
function strip(levels) {
  const svg = s("svg", { viewBox: `0 0 ${Math.max(1, levels.length)} 22`, preserveAspectRatio: "none", class: "strip", "aria-hidden": "true" });
  levels.forEach((size, x) => {
    if (size === -99) svg.append(s("rect", { x, y: 10, width: 1, height: 2, class: "none" }));
    else if (size) svg.append(s("rect", { x, y: size > 0 ? 11 - size : 11, width: 1, height: Math.abs(size), class: size > 0 ? "up" : "down" }));
  });
  svg.append(s("rect", { x: 0, y: 10.6, width: Math.max(1, levels.length), height: 0.8, class: "zero" }));
  return svg;
}

DRAW.report = drawReport;
