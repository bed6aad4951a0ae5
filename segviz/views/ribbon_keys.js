// --- the ribbon: pointing and keys, one listener of each kind for all of it ----------------------------------------------

function listen(view) {
  const { root, k, stream } = view;
  const tokenOf = (event) => event.target.closest?.(".t");
  root.addEventListener("pointerover", (event) => {
    const el = tokenOf(event);
    if (el) inspect(view, Number(el.dataset.t));
  });
  stream.addEventListener("pointerleave", () => inspect(view, view.current));
  root.addEventListener("click", (event) => {
    const el = tokenOf(event), button = event.target.closest("button[data-layer]");
    if (button) setLayer(view, button.dataset.layer);
    else if (el) go(view, Number(el.dataset.t));
  });
  root.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { key, shiftKey } = event, t = view.current, m = k.segment[t];
    const layer = LAYERS[Number(key) - 1];
    if (layer) return setLayer(view, layer.id);
    const target = key === "ArrowRight" ? (shiftKey ? k.start[Math.min(m + 1, k.m - 1)] : t + 1)
      : key === "ArrowLeft" ? (shiftKey ? (t > k.start[m] ? k.start[m] : k.start[Math.max(0, m - 1)]) : t - 1)
      : key === "ArrowDown" ? near(view, 1) : key === "ArrowUp" ? near(view, -1)
      : key === "Home" ? 0 : key === "End" ? k.n - 1
      : (key === "e" || key === "E") && view.data.error ? view.data.error.start
      : key === "w" || key === "W" ? view.data.blamed : null;
    if (target === null) return;
    event.preventDefault();
    go(view, clamp(target, 0, k.n - 1));
  });
}

const tokenEl = (view, t) => view.stream.querySelector(`.t[data-t="${t}"]`);

/** The token above or below the current one, as the eye sees it. */
function near(view, way) {
  const here = tokenEl(view, view.current)?.getClientRects()[0];
  if (!here) return view.current;
  let best = view.current, row = null, distance = Infinity;
  for (let t = view.current + way; t >= 0 && t < view.k.n; t += way) {
    const box = tokenEl(view, t)?.getClientRects()[0];
    if (!box) return t;
    if (Math.abs(box.bottom - here.bottom) < 8) continue;
    row ??= box.bottom;
    if (Math.abs(box.bottom - row) > 8) break;
    if (Math.abs(box.left - here.left) < distance) [best, distance] = [t, Math.abs(box.left - here.left)];
  }
  return best;
}

/** Makes token t the current one, gives it the keyboard and tells the other views. */
function go(view, t) {
  const el = show(view, t);
  el.focus({ preventScroll: true });
  const box = el.getBoundingClientRect(), far = box.bottom < 0 || box.top > innerHeight;
  el.scrollIntoView({ block: far ? "center" : "nearest" });
  view.bus.select({ key: view.data.key, token: t, segment: view.k.segment[t], from: view });
}

/** Makes token t the current one, without taking the keyboard or moving the page. */
function show(view, t) {
  view.current = t;
  wake(view, view.blocks.find((b) => b.from <= t && t < b.to));
  const el = reach(view, t);
  inspect(view, t);
  return el;
}

/** Makes token t the one that Tab reaches, with a name for those who hear it. */
function reach(view, t) {
  for (const old of view.stream.querySelectorAll(".t[tabindex]")) for (const name of ["tabindex", "role", "aria-label"]) old.removeAttribute(name);
  const el = tokenEl(view, t), { k } = view;
  el.setAttribute("tabindex", "0");
  el.setAttribute("role", "button");
  el.setAttribute("aria-label", `token ${t + 1}, ${visible(k.piece(t)).slice(0, 60)}, advantage ${signed(k.adv?.[t])}, segment ${k.segment[t] + 1}`);
  return el;
}
