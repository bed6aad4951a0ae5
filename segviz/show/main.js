// The last part: several views on one page, and what draws any of them into a page or a notebook.

/** Several views on one page, linked. */
async function drawTogether(data, bus) {
  const page = h("div", { class: "page together" }, data.title ? h("h1", {}, visible(data.title)) : null);
  for (const part of data.parts) page.append(h("section", { class: "part", "data-kind": part.kind }, await DRAW[part.kind](part, bus)));
  return page;
}

DRAW.together = drawTogether;

/**
 * Draws into `el`.
 *
 *   render({ el, data, host })    in a page; `host` as in Bus       render({ model, el })    in a notebook widget
 *   render({ el, data, notebook: true })    in a notebook without a kernel
 */
async function render({ model, el, data, host, notebook }) {
  el.classList.add("segviz");
  const make = model ? widgetHost(model) : { host };
  let bus = null, turn = 0, before = {};
  const draw = async (read) => {
    const mine = ++turn, next = new Bus(make.host);  // a new one each time: what was drawn before hears nothing more
    next.state = bus?.state ?? next.state;
    next.last = bus ? bus.last : make.chosen?.();
    let node, shown = {};
    try {
      shown = read();
      if (!DRAW[shown.kind]) throw new Error(`this version draws no view of kind "${shown.kind}"`);
      node = await DRAW[shown.kind](shown, next);
    } catch (error) {
      console.error(error);
      node = failure(shown.kind, error);
    }
    if (mine !== turn) return;  // newer data came while this was being drawn
    next.last = bus ? bus.last : next.last;
    bus = next;
    const back = before.kind === shown.kind ? keepPlace(el) : () => {};
    el.setAttribute("aria-live", shown.state !== before.state ? "polite" : "off");  // a new state is read aloud
    before = { kind: shown.kind, state: shown.state };
    el.replaceChildren(node);
    if (bus.last) bus.select({ ...bus.last, from: null }, true);  // drawn anew: what was chosen stays chosen
    back();
  };
  if (model || notebook) el.classList.add("in-notebook");
  if (!model) {
    if (notebook) keepKeys(el);
    return draw(() => data);
  }
  const redraw = () => draw(() => JSON.parse(model.get("data")));
  const chosen = () => { if (!make.telling) bus?.select(make.chosen(), true); };
  const release = keepKeys(el);
  model.on("change:data", redraw);
  model.on("change:selection", chosen);
  await redraw();
  return () => {
    release();
    model.off("change:data", redraw);
    model.off("change:selection", chosen);
  };
}
export default { render };

/** What stands in place of a view that could not be drawn. */
function failure(kind, error) {
  return h("div", { class: "page" }, h("p", { class: "notice failed", role: "alert" }, h("b", {}, "This view could not be drawn. "),
    visible(`${kind ? `${kind}: ` : ""}${error?.message ?? error}. `),
    "The recorded data are unharmed. Draw it again with the installed version of segpo; if it stays, report the message."));
}

/** What happens in the page, told to the Python side. */
function widgetHost(model) {
  const make = {
    telling: false,
    chosen: () => model.get("selection"),
    host: {
      select({ key, token, segment, node }) {
        make.telling = true;
        model.set("selection", JSON.parse(JSON.stringify({ key, token, segment, node })));
        make.telling = false;
        model.save_changes();
      },
      open(key) { model.send({ open: key }); },
      ask(wish) { model.send({ ask: wish }); },  // of a list: another page, another order
    },
  };
  return make;
}

/** Remembers what is scrolled, unfolded and focused inside `el`; what it returns puts it back on the new content. */
function keepPlace(el) {
  const path = (node) => (node === el ? [] : [...path(node.parentNode), [...node.parentNode.children].indexOf(node)]);
  const at = (steps) => steps.reduce((node, i) => node?.children[i], el);
  const scrolled = [...el.querySelectorAll("*")].filter((node) => node.scrollTop || node.scrollLeft)
    .map((node) => [path(node), node.scrollTop, node.scrollLeft]);
  const unfolded = [...el.querySelectorAll("details")].map((node) => node.open);
  const active = el.getRootNode().activeElement, held = active && active !== el && el.contains(active) ? active : null;
  const place = held && path(held);
  // charts draw a moment later, when they know their width: without its height the page above would jump
  el.style.minHeight = `${el.offsetHeight}px`;
  return () => {
    const folds = el.querySelectorAll("details");
    if (folds.length === unfolded.length) folds.forEach((node, i) => { node.open = unfolded[i]; });
    if (held) {
      // in a row of things of which Tab reaches one, the one that it reaches now
      const stops = held.matches('[tabindex="0"]') ? el.querySelectorAll(`${held.localName}[tabindex="0"]`) : [];
      const next = stops.length === 1 ? stops[0] : at(place);
      if (next?.localName === held.localName) next.focus({ preventScroll: true });
    }
    requestAnimationFrame(() => requestAnimationFrame(() => {
      for (const [steps, top, left] of scrolled) at(steps)?.scrollTo(left, top);
      el.style.minHeight = "";
    }));
  };
}

/** Keys pressed in a widget are not JupyterLab's, except for saving. Returns what undoes it. */
function keepKeys(el) {
  const held = new WeakRef(el);
  const release = () => window.removeEventListener("keydown", guard, true);
  const guard = (event) => {
    const el = held.deref();
    if (!el) return release();
    // the whole of an explorer or follower: arrows in its lists and sliders would move the notebook's cells
    if (!(el.closest(".segviz-whole") ?? el).contains(event.target)) return;
    const saves = (event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "s";
    // on the very element: a shortcut's selector may match it (":focus") before its ancestors are asked
    event.target.toggleAttribute("data-lm-suppress-shortcuts", !saves);
  };
  window.addEventListener("keydown", guard, true);  // before JupyterLab, which listens on the document
  return release;
}
