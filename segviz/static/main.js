// The last part: what kind of data is drawn by what.

const DRAW = {
  ribbon: drawRibbonPage,
  board: drawBoardPage,
  report: drawReport,
  together: drawTogether,
};

/** Several views on one page, linked. */
async function drawTogether(data, bus) {
  const page = h("div", { class: "page together" }, data.title ? h("h1", {}, visible(data.title)) : null);
  for (const part of data.parts) page.append(h("section", { class: "part", "data-kind": part.kind }, await DRAW[part.kind](part, bus)));
  return page;
}

/**
 * Draws into `el`.
 *
 *   render({ el, data, host })    in a page; `host` as in Bus       render({ model, el })    in a notebook widget
 */
export async function render({ model, el, data, host }) {
  el.classList.add("segviz");
  const bus = new Bus(model ? widgetHost(model) : host);
  const draw = async (shown) => {
    el.replaceChildren(await DRAW[shown.kind](shown, bus));
    if (bus.last) bus.select({ ...bus.last, from: null }, true);  // drawn anew: what was chosen stays chosen
  };
  if (!model) return draw(data);
  el.setAttribute("data-lm-suppress-shortcuts", "true");  // keys pressed here are not JupyterLab's
  const redraw = () => draw(JSON.parse(model.get("data")));
  const chosen = () => bus.select(model.get("selection"), true);
  model.on("change:data", redraw);
  model.on("change:selection", chosen);
  await redraw();
  return () => {
    model.off("change:data", redraw);
    model.off("change:selection", chosen);
  };
}
export default { render };

/** What happens in the page, told to the Python side. */
function widgetHost(model) {
  return {
    select({ key, token, segment, node }) {
      model.set("selection", JSON.parse(JSON.stringify({ key, token, segment, node })));
      model.save_changes();
    },
    open(key) { model.send({ open: key }); },
  };
}
