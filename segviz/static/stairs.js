// --- the staircase ----------------------------------------------------------------------------------------------

function drawStairs(view) {
  const { k, data, stairs } = view, reward = data.facts.reward;
  const measured = k.seg_val ? [...k.seg_val].some(known) : Boolean(k.val);
  if (!measured) {
    stairs.append(h("p", { class: "notice quiet" }, `No values are recorded: ${data.method} did not estimate any, so there is no staircase to draw.`));
    return;
  }
  stairs.append(h("h3", {}, "Value along the completion", h("span", {}, " expected reward before each segment, the reward itself at the end")));
  const box = h("div", { class: "plot" });
  stairs.append(box);
  onWidth(box, (width) => {
    const height = 168, left = 40, right = 52, top = 14, bottom = 24;
    const all = [reward, 0];
    for (let m = 0; m < k.m; m++) if (k.seg_val) all.push(k.seg_val[m], k.seg_err ? k.seg_val[m] + k.seg_err[m] : NaN, k.seg_err ? k.seg_val[m] - k.seg_err[m] : NaN);
    if (k.val) for (const x of k.val) all.push(x);
    let low = Infinity, high = -Infinity;
    for (const x of all) if (Number.isFinite(x) && x !== null) { low = Math.min(low, x); high = Math.max(high, x); }
    if (high <= 1) high = Math.max(high, 1);
    const pad = (high - low) * 0.04 || 0.5;
    const X = (t) => left + ((width - left - right) * t) / k.n;
    const Y = (v) => top + (height - top - bottom) * (1 - (v - low + pad) / (high - low + 2 * pad));
    const svg = s("svg", { width, height, role: "img", "aria-label": stairWords(view) });
    for (const y of ticks(low, high, 3)) {
      svg.append(s("line", { x1: left, x2: width - right, y1: Y(y), y2: Y(y), class: "grid" }),
        s("text", { x: left - 8, y: Y(y) + 4, class: "tick end" }, num(y)));
    }
    if (data.error) {
      const x = X(data.error.start), wide = Math.max(3, X(data.error.end) - x), late = x > width * 0.7;
      svg.append(s("rect", { x, y: top, width: wide, height: height - top - bottom, class: "errband" }),
        s("text", { x: late ? x - 5 : x + wide + 5, y: top + 9, class: `errtext${late ? " end" : ""}` }, "✗ first error"));
    }
    if (k.val) svg.append(s("path", { d: thin(k, X, Y, width), class: "critic" }));
    if (k.seg_val) {
      let d = "", last = null;
      for (let m = 0; m < k.m; m++) {
        const v = k.seg_val[m];
        if (!Number.isFinite(v)) { last = null; continue; }
        const a = X(k.start[m]), b = X(k.start[m + 1]);
        d += `M${a.toFixed(1)} ${Y(v).toFixed(1)}H${b.toFixed(1)}`;
        if (last !== null) riser(svg, a, Y(last), Y(v));
        if (k.seg_err && Number.isFinite(k.seg_err[m]) && k.m <= 200) {
          const mid = (a + b) / 2;
          svg.append(s("path", { d: `M${mid} ${Y(v - k.seg_err[m])}V${Y(v + k.seg_err[m])}`, class: "whisker" }));
        }
        last = v;
      }
      svg.append(s("path", { d, class: "tread" }));
      if (last !== null && known(reward)) riser(svg, X(k.n), Y(last), Y(reward));
    }
    if (known(reward)) {
      svg.append(s("path", { d: `M${X(k.n)} ${Y(reward)}h7`, class: "tread" }), s("circle", { cx: X(k.n) + 9, cy: Y(reward), r: 4, class: "dot" }),
        s("text", { x: X(k.n) + 16, y: Y(reward) + 4, class: "tick strong" }, num(reward)));
    }
    svg.append(s("text", { x: left, y: height - 5, class: "tick" }, "token 1"), s("text", { x: X(k.n), y: height - 5, class: "tick end" }, k.n.toLocaleString("en")));
    const cursor = s("line", { y1: top - 4, y2: height - bottom, class: "cursor" });
    svg.append(cursor);
    view.moveCursor = (t) => { const x = X(t + 0.5); cursor.setAttribute("x1", x); cursor.setAttribute("x2", x); };
    view.moveCursor(view.shown ?? 0);
    const at = (event) => clamp(Math.floor(((event.clientX - svg.getBoundingClientRect().left - left) * k.n) / (width - left - right)), 0, k.n - 1);
    svg.addEventListener("pointermove", (event) => inspect(view, at(event)));
    svg.addEventListener("pointerleave", () => inspect(view, view.current));
    svg.addEventListener("click", (event) => go(view, at(event)));
    box.replaceChildren(svg);
  });
}

/** A rise or fall between two treads; thin and plain where it is small on paper. */
function riser(svg, x, from, to) {
  if (Math.abs(from - to) < 0.5) return;
  svg.append(s("path", { d: `M${x.toFixed(1)} ${from.toFixed(1)}V${to.toFixed(1)}`, class: to < from ? "rise" : "fall" }));
}

/** The critic's value at every token; of more tokens than pixels, the lowest and highest of each pixel. */
function thin(k, X, Y, width) {
  const stride = Math.max(1, Math.floor((2 * k.n) / width));
  let d = "", pen = "M";
  for (let t = 0; t < k.n; t += stride) {
    let low = Infinity, high = -Infinity;
    for (let i = t; i < Math.min(t + stride, k.n); i++) if (Number.isFinite(k.val[i])) { low = Math.min(low, k.val[i]); high = Math.max(high, k.val[i]); }
    if (low > high) { pen = "M"; continue; }
    d += `${pen}${X(t).toFixed(1)} ${Y(low).toFixed(1)}`;
    if (high > low) d += `L${X(t).toFixed(1)} ${Y(high).toFixed(1)}`;
    pen = "L";
  }
  return d;
}

function stairWords({ k, data }) {
  const v = k.seg_val ?? k.val;
  return `Value from ${num(v[0])} at the start over ${k.m} segments to ${num(v[v.length - 1])} before the last, reward ${num(data.facts.reward)}.`;
}
