// --- the ribbon -------------------------------------------------------------------------------------------------

async function drawRibbonPage(data, bus) {
  return h("div", { class: "page" }, await drawRibbon(data, data.pictures, bus));
}

/** The layer is kept in `bus.state`, so that a gallery stays on the chosen one. */
async function drawRibbon(data, pictures, bus) {
  const k = new Tokens(data, await unpack(data.pack));
  const view = { data, k, bus, current: 0, blocks: [] };
  const root = h("article", { class: "ribbon", "aria-label": `${data.title} ${data.where}` });
  view.root = root;
  root.append(
    heading(data), badges(data),
    ask(data, pictures));
  for (const note of data.notices) root.append(h("p", { class: "notice" }, note));
  if (!k.n) return root;

  view.stream = h("div", { class: "stream", dir: "ltr", role: "group", "aria-label": "Completion, token by token" });
  view.inspector = h("div", { class: "inspect", role: "group", "aria-label": "Numbers of the token" });
  view.legend = h("div", { class: "legend" });
  view.stairs = h("div", { class: "stairs" });
  root.append(toolbar(view), h("div", { class: "rb-main" },
    h("div", { class: "rb-flow" }, view.stream, view.stairs), view.inspector));

  cutBlocks(view);
  setLayer(view, usable(k, LAYERS.find((l) => l.id === bus.state.layer)) ? bus.state.layer : LAYERS.find((l) => usable(k, l))?.id);
  listen(view);
  drawStairs(view);
  view.current = data.blamed ?? data.error?.start ?? 0;
  wake(view, view.blocks.find((b) => view.current < b.to));
  reach(view, view.current);
  inspect(view, view.current);
  bus.onSelect((chosen) => {
    if (chosen.from === view || chosen.key !== data.key || !known(chosen.token) || chosen.token === view.current) return;
    show(view, clamp(chosen.token, 0, k.n - 1));
  });
  return root;
}

/** Which rollout, what is asked and the answer in words. */
function heading(data) {
  return h("header", { class: "rb-head" },
    h("p", { class: "eyebrow" }, visible(data.where), data.method ? [" · ", h("b", {}, visible(data.method))] : null),
    h("h2", {}, visible(data.title)),
    h("p", { class: "verdict" }, data.verdict.map((line, i) => [i ? " " : null, h(i ? "span" : "strong", {}, visible(line))])));
}

const usable = (k, layer) => Boolean(layer) && layer.needs.split(" ").some((name) => k[name]);

function badges({ facts, tokens }) {
  const mark = (ok, label) => ok === null || ok === undefined ? null
    : h("li", { class: ok ? "ok" : "bad" }, h("span", { "aria-hidden": "true" }, ok ? "✓ " : "✗ "), `${label} ${ok ? "right" : "wrong"}`);
  const parts = Object.entries(facts.parts);
  const list = h("ul", { class: "badges" },
    h("li", { class: "plain" }, "reward ", h("b", {}, num(facts.reward)),
      parts.length > 1 ? ` = ${parts.map(([name, x]) => `${visible(name)} ${num(x)}`).join(", ")}` : null),
    mark(facts.right.answer, "answer"), mark(facts.right.perception, "perception"), mark(facts.right.reasoning, "reasoning"),
    facts.said !== null || facts.reference !== null
      ? h("li", { class: "plain" }, "said ", h("b", {}, facts.said === null ? "nothing" : h("bdi", {}, visible(facts.said))),
        facts.reference !== null ? [", reference ", h("b", {}, h("bdi", {}, visible(facts.reference)))] : null) : null,
    h("li", { class: facts.finished === false ? "cut" : "plain" },
      `${tokens.toLocaleString("en")} token${tokens === 1 ? "" : "s"}`,
      facts.finished === true ? ", finished" : facts.finished === false ? ", cut at the limit" : ""));
  return list;
}

function ask(data, pictures) {
  const figures = [], texts = [];
  for (const message of data.prompt) {
    const words = message.parts.filter((part) => part.text !== undefined && part.text !== "");
    if (words.length) {
      const text = words.map((part) => visible(part.text)).join("\n");
      // a long system prompt should not push the ribbon off the page
      const body = h("p", { class: "said", dir: "auto" }, text);
      texts.push(h("div", { class: "message" }, message.role ? h("p", { class: "role" }, visible(message.role)) : null,
        text.length > 900 ? h("details", {}, h("summary", {}, `${text.slice(0, 200)}… (${text.length.toLocaleString("en")} characters)`), body) : body));
    }
    for (const part of message.parts) if (part.image) figures.push(figure(pictures[part.image], figures.length + 1));
  }
  if (!figures.length && !texts.length) return null;
  return h("div", { class: "ask", role: "group", "aria-label": "What the model was asked" },
    figures.length ? h("div", { class: "images" }, figures) : null, h("div", { class: "messages" }, texts));
}

function figure(picture, number) {
  if (!picture?.src) {
    return h("figure", {}, h("div", { class: "missing" }, "image ", picture?.note ?? "missing"), h("figcaption", {}, `image ${number}`));
  }
  const note = picture.note ? `, ${picture.note}` : "";
  const image = h("img", { src: picture.src, alt: `Image ${number} of the prompt, ${picture.w} by ${picture.h} pixels`,
    class: Math.max(picture.w, picture.h) <= 128 ? "pixels" : null });
  return h("figure", {}, image, h("figcaption", {}, `${picture.w} × ${picture.h}${note}`));
}

function toolbar(view) {
  const buttons = LAYERS.map((layer, i) => h("button", {
    type: "button", "data-layer": layer.id, "aria-pressed": "false", disabled: !usable(view.k, layer),
    title: usable(view.k, layer) ? layer.hint : "not recorded",
  }, h("kbd", { "aria-hidden": "true" }, String(i + 1)), layer.label));
  return h("div", { class: "tools" }, h("div", { class: "layers", role: "group", "aria-label": "Colour tokens by" }, buttons), view.legend);
}

function setLayer(view, id) {
  const layer = LAYERS.find((l) => l.id === id);
  if (!layer || !usable(view.k, layer)) return;
  view.layer = layer;
  view.bus.state.layer = id;
  view.scale = layer.scale ? layer.scale(view.k) : layer.x ? view.k.largest((t) => layer.x(view.k, t)) : 0;
  view.root.dataset.layer = id;
  for (const button of view.root.querySelectorAll("button[data-layer]")) {
    button.setAttribute("aria-pressed", String(button.dataset.layer === id));
  }
  for (const block of view.blocks) if (block.live) for (const token of block.el.querySelectorAll(".t")) paint(view, token);
  drawLegend(view);
}

function paint(view, el) {
  const { k, layer, scale } = view, t = Number(el.dataset.t);
  delete el.dataset.l;
  delete el.dataset.r;
  if (layer.id === "role") el.dataset.r = ROLES[k.role[t]] ?? "none";
  else el.dataset.l = shade(layer, scale, layer.x(k, t));
  el.classList.toggle("boxed", layer.id === "ratio" && Boolean(k.clip) && k.clip[t] === 1);
}

function drawLegend({ legend, layer, scale, k }) {
  const items = [];
  if (layer.id === "role") {
    const there = new Set(k.role);
    items.push(...ROLES.filter((_, i) => there.has(i)).map((role) => h("span", { class: "swatch", "data-r": role }, role)));
  } else if (layer.id === "loss") {
    items.push(h("span", { class: "swatch", "data-l": "s3" }, "in the loss"));
  } else {
    const sizes = [10, 7, 4, 2], ends = layer.ends(scale);
    const steps = layer.diverging ? [...sizes.map((x) => `n${x}`), "z", ...sizes.toReversed().map((x) => `p${x}`)]
      : ["z", ...sizes.toReversed().map((x) => `s${x}`)];
    items.push(h("span", { class: "scale", "aria-label": `scale from ${ends[0]} to ${ends.at(-1)}` },
      h("span", { class: "end" }, ends[0]), steps.map((step) => h("i", { "data-l": step })), h("span", { class: "end" }, ends.at(-1))));
    if (layer.diverging) items.push(h("span", { class: "key" }, "bar below: under ", ends[1], ", bar above: over ", ends[1]));
  }
  let hatched = 0;
  for (let t = 0; layer.x && t < k.n; t++) hatched += !known(layer.x(k, t));
  if (hatched) items.push(h("span", { class: "swatch", "data-l": "u" }, layer.needs === "adv" || layer.id === "loss" ? "no credit: not trained" : "not measured"));
  legend.replaceChildren(...items);
  legend.title = layer.hint;
}

DRAW.ribbon = drawRibbonPage;
