// --- a page of a rollout, in a frame that may touch nothing else -------------------------------------------------------

const frames = new Map();  // window of a frame -> what hears it
addEventListener("message", (event) => {
  const tell = frames.get(event.source);
  if (!tell || typeof event.data !== "object" || !event.data) return;
  const { segviz, step, group, sample, segment } = event.data;
  if (segviz === "close") tell("close");
  if (segviz === "select" && Number.isInteger(segment) && segment >= 0) tell("select", { segment });
  if (segviz === "open" && [step, group, sample].every((id) => Number.isInteger(id) && id >= 0)) tell("open", { step, group, sample });
});

const viewUrl = ({ run, step, group, sample }, kind, more = {}) =>
  `/view/${encodeURIComponent(run)}/${kind}/${step}/${group}/${sample}?${new URLSearchParams({ theme: theme(), ...more })}`;

/** A frame that shows a rollout: { el, show(rollout, kind) }. `tell(what, ids)` hears what is asked for in it. */
function viewFrame(tell, label) {
  const frame = h("iframe", { class: "view", sandbox: "allow-scripts", title: label });
  const veil = h("div", { class: "loading veil", role: "status" }, "Opening…");
  const el = h("div", { class: "framed" }, frame, veil);
  let current = null;
  frame.addEventListener("load", () => {
    veil.hidden = true;
    for (const [window_] of frames) if (window_.closed) frames.delete(window_);
    if (frame.contentWindow) frames.set(frame.contentWindow, tell);
  });
  const show = (rollout, kind = "rollout") => to(viewUrl(rollout, kind));
  const to = (url) => {
    if (url === current) return;
    current = url;
    veil.hidden = false;
    // replace: a frame's own steps do not belong into the browser's history
    if (frame.contentWindow && frame.isConnected) frame.contentWindow.location.replace(url); else frame.src = url;
  };
  veil.hidden = true;
  return { el, frame, show, to, again: () => { current = null; } };
}
