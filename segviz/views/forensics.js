// --- update forensics: what one step learned from ----------------------------------------------------------------------

async function drawForensics(data, bus) {
  const root = h("article", { class: "forensics", "aria-label": `${data.title} Step ${data.step}` },
    h("header", {}, h("p", { class: "eyebrow" }, data.run ? `${visible(data.run)} · ` : "", h("b", {}, visible(data.method)), ` · step ${data.step}`),
      h("h2", {}, data.title),
      h("p", { class: "verdict" }, data.verdict.map((line, i) => [i ? " " : null, h(i ? "span" : "strong", {}, visible(line))])),
      h("p", { class: "quiet" }, `${data.tokens.toLocaleString("en")} trained tokens in ${data.segments.toLocaleString("en")} segments of ${data.rollouts.toLocaleString("en")} rollouts. `,
        `Share: |advantage|, ${data.normaliser}. Ratios and log-probabilities are those after the step's updates.`)),
    data.notices.map((note) => h("p", { class: "notice" }, visible(note))));
  if (!data.tokens) return h("div", { class: "page" }, root);
  const charts = h("div", { class: "fo-charts" });
  if (data.histogram) charts.append(ratioChart(data));
  if (data.points) charts.append(changeChart(data, await unpack(data.points)));
  root.append(charts, heaviest(data, bus));
  return h("div", { class: "page" }, root);
}

const percent = (x) => (known(x) ? `${num(100 * x, 2)} %` : "–");
const SIGN_MARK = { positive: "+", negative: "−" };

/** Tokens by importance ratio, those with positive credit upwards, with negative credit downwards; counts on a log scale. */
function ratioChart({ histogram, clip, level, clipped }) {
  const box = h("div", { class: "plot" }), { edges } = histogram, log = (n) => Math.log10(1 + n);
  const most = log(Math.max(...["up", "down"].flatMap((side) => histogram[side].map((n, i) => n + histogram[`${side}_clipped`][i])), 1));
  const words = `Tokens by importance ratio from ${num(edges[0])} to ${num(edges.at(-1))}. ` + clipped.map((c) =>
    `${c.credit} credit: ${c.hits} of ${c.tokens} tokens beyond the clip range`).join("; ");
  onWidth(box, (width) => {
    const height = 220, left = 44, right = 12, top = 16, bottom = 24, mid = (top + height - bottom) / 2, half = mid - top;
    const low = Math.log(edges[0]), high = Math.log(edges.at(-1));
    const X = (ratio) => left + ((width - left - right) * (Math.log(ratio) - low)) / (high - low);
    const svg = s("svg", { width, height, role: "img", "aria-label": words });
    for (let n = 1; log(n) <= most; n *= 10) for (const side of [-1, 1]) {
      const y = mid - side * half * (log(n) / most);
      svg.append(s("line", { x1: left, x2: width - right, y1: y, y2: y, class: "grid" }));
      svg.append(s("text", { x: left - 6, y: y + 4, class: "tick end" }, n.toLocaleString("en")));
    }
    edges.slice(0, -1).forEach((edge, i) => {
      for (const [side, way] of [["up", 1], ["down", -1]]) {
        const cut = histogram[`${side}_clipped`][i], all = histogram[side][i] + cut;
        if (!all) continue;
        const x = X(edge) + 0.5, wide = Math.max(1, X(edges[i + 1]) - X(edge) - 1), tall = half * (log(all) / most);
        const bar = { x, width: wide, y: way > 0 ? mid - tall : mid, height: tall };
        svg.append(s("rect", { ...bar, class: way > 0 ? "fo-pos" : "fo-neg" },
          s("title", {}, `ratio ${num(edge)} to ${num(edges[i + 1])}, ${way > 0 ? "positive" : "negative"} credit: ${all} tokens${cut ? `, ${cut} clipped` : ""}`)));
        if (cut) svg.append(s("rect", { ...bar, class: "fo-cut" }));
      }
    });
    svg.append(s("line", { x1: left, x2: width - right, y1: mid, y2: mid, class: "fo-zero" }),
      s("text", { x: left + 4, y: top + 17, class: "tick" }, "+ credit ↑"), s("text", { x: left + 4, y: height - bottom - 3, class: "tick" }, "− credit ↓"));
    for (const [i, ratio] of (clip ?? []).entries()) {
      if (!(ratio > edges[0] && ratio < edges.at(-1))) continue;
      svg.append(s("line", { x1: X(ratio), x2: X(ratio), y1: top - 8, y2: height - bottom, class: "fo-clip" }),
        s("text", { x: X(ratio) + (i ? -4 : 4), y: top - 4, class: i ? "tick end" : "tick" }, `clip ×${num(ratio)}`));
    }
    for (const ratio of ticks(edges[0], edges.at(-1), Math.max(2, Math.floor(width / 90)))) if (ratio > 0) svg.append(s("text", { x: X(ratio), y: height - 6, class: X(ratio) > width - 30 ? "tick end" : X(ratio) < left + 12 ? "tick" : "tick mid" }, `×${num(ratio, 6)}`));
    box.replaceChildren(svg);
  });
  const range = clip ? `${num(clip[0])} to ${num(clip[1])}` : "not recorded";
  return h("figure", { class: "chart" }, h("figcaption", {}, h("b", {}, "Importance ratio"), h("span", {}, ` one a ${level}; tokens, log scale; clip range ${range}`)), box,
    h("ul", { class: "fo-facts" }, clipped.map((c) => h("li", {}, h("b", {}, SIGN_MARK[c.credit]), ` ${c.credit} credit: `, h("b", {}, percent(c.share)),
      ` beyond the clip range (${c.hits.toLocaleString("en")} of ${c.tokens.toLocaleString("en")} tokens`, c.tokens ? `, 95 %: ${percent(c.low)} to ${percent(c.high)})` : ")"))));
}

/** Change of log-probability against advantage: one dot a segment, a line through the tokens' means. */
function changeChart({ moved, trend, dots, segments }, points) {
  const box = h("div", { class: "plot" });
  const size = (xs) => { let best = 0; for (const x of xs) if (Number.isFinite(x)) best = Math.max(best, Math.abs(x)); return best || 1; };
  const sorted = [...points.y].filter(Number.isFinite).map(Math.abs).sort((a, b) => a - b);
  const wide = size(points.x), all = sorted.at(-1) || 1e-4, tall = Math.min(all, Math.max(6 * (sorted[Math.floor(0.98 * sorted.length)] ?? all), size(trend.map((p) => p[1])) * 1.2, 1e-4));
  const beyond = sorted.filter((y) => y > tall).length;
  const words = "Change of log-probability against advantage. " + moved.map((m) => `${m.credit} credit: ${m.up} tokens likelier, ${m.down} less likely, ${m.still} unmoved`).join("; ");
  onWidth(box, (width) => {
    const height = 220, left = 52, right = 12, top = 12, bottom = 24;
    const X = (x) => left + ((width - left - right) * (x + wide)) / (2 * wide);
    const Y = (y) => top + (height - top - bottom) * (1 - (clamp(y, -tall, tall) + tall) / (2 * tall));
    const svg = s("svg", { width, height, role: "img", "aria-label": words });
    for (const [x, y, name] of [[X(0), top, "good"], [left, Y(0), "good"]]) {
      svg.append(s("rect", { x, y, width: (width - left - right) / 2, height: (height - top - bottom) / 2, class: `fo-${name}` }));
    }
    for (const y of ticks(-tall, tall, 4)) svg.append(s("line", { x1: left, x2: width - right, y1: Y(y), y2: Y(y), class: "grid" }), s("text", { x: left - 6, y: Y(y) + 4, class: "tick end" }, num(y, 2)));
    for (const x of ticks(-wide, wide, 4)) svg.append(s("text", { x: X(x), y: height - 6, class: X(x) > width - 24 ? "tick end" : "tick mid" }, num(x, 2)));
    svg.append(s("line", { x1: X(0), x2: X(0), y1: top, y2: height - bottom, class: "fo-zero" }), s("line", { x1: left, x2: width - right, y1: Y(0), y2: Y(0), class: "fo-zero" }));
    // one path for all dots of a sign: thousands of elements would be slow
    for (const [name, way] of [["fo-dots pos", 1], ["fo-dots neg", -1]]) {
      let d = "";
      for (let i = 0; i < points.x.length; i++) if (points.x[i] * way > 0 && Number.isFinite(points.y[i])) d += `M${X(points.x[i]).toFixed(1)} ${Y(points.y[i]).toFixed(1)}h0`;
      svg.append(s("path", { d, class: name }));
    }
    if (trend.length > 1) svg.append(s("path", { d: trend.map(([x, y], i) => `${i ? "L" : "M"}${X(x).toFixed(1)} ${Y(y).toFixed(1)}`).join(""), class: "fo-trend" }));
    box.replaceChildren(svg);
  });
  const some = dots < segments ? `${dots.toLocaleString("en")} of ${segments.toLocaleString("en")} segments` : "a dot a segment";
  return h("figure", { class: "chart" }, h("figcaption", {}, h("b", {}, "Change of log-probability against advantage"),
    h("span", {}, ` ${some}; line: mean of tokens; shaded: where credit points${beyond ? `; ${beyond} beyond the edge` : ""}`)), box,
    h("ul", { class: "fo-facts" }, moved.map((m) => h("li", {}, h("b", {}, SIGN_MARK[m.credit]), ` ${m.credit} credit: `, threeParts(m),
      ` ${m.up.toLocaleString("en")} likelier, ${m.still.toLocaleString("en")} unmoved, ${m.down.toLocaleString("en")} less likely`))));
}

/** Changes below 0.0001 nats are those of tokens that were as good as certain. */
const changeWords = (x) => !known(x) ? "–" : Math.abs(x) < 1e-4 ? "≈ 0" : `${x > 0 ? "▲ +" : "▼ "}${num(x, 2)}`;

/** A bar of three parts: likelier, unmoved, less likely. */
function threeParts({ up, still, down }) {
  const all = up + still + down || 1, wide = 90, a = (wide * up) / all, b = (wide * still) / all;
  return s("svg", { width: wide, height: 10, "aria-hidden": "true", class: "fo-three" },
    s("rect", { x: 0, y: 0, width: a, height: 10, class: "fo-pos" }), s("rect", { x: a, y: 3, width: b, height: 4, class: "fo-still" }),
    s("rect", { x: a + b, y: 0, width: wide - a - b, height: 10, class: "fo-neg" }));
}

/** How large an entry is by what the table is sorted by; what is not known is smallest. */
const FO_SIZE = { moved: (e) => e.moved, share: (e) => e.share, advantage: (e) => Math.abs(e.advantage), ratio: (e) => Math.abs(Math.log(e.ratio)), clipped: (e) => e.clipped };
const FO_HEADS = [["", "rank"], ["", "group · sample · segment"], ["", "text"], ["moved", "moved, nats"], ["share", "share"], ["advantage", "advantage"], ["ratio", "ratio"], ["clipped", "clipped"], ["", "change of log-prob."]];

/** The segments, by what the reader sorts. A click or Enter asks for the rollout; where nobody answers, the text around is shown. */
function heaviest(data, bus) {
  const body = h("tbody", {}), head = h("tr", {}), words = h("span", {});
  const draw = (sort, focus) => {
    const size = (e) => { const x = FO_SIZE[sort](e); return Number.isFinite(x) ? x : -1; };
    const top = [...data.top].sort((a, b) => size(b) - size(a) || b.share - a.share).slice(0, data.shown);
    words.textContent = ` by ${data.sorts[sort] ?? sort}. Enter ${bus.opens ? "opens the rollout" : "shows the text around"}.`;
    head.replaceChildren(...FO_HEADS.map(([name, label]) => h("th", { scope: "col", "aria-sort": name && name === sort ? "descending" : null },
      name && data.sorts[name] ? h("button", { type: "button", "data-sort": name, title: `by ${data.sorts[name]}`, onclick: () => draw(name, true) }, label, h("span", { "aria-hidden": "true" }, name === sort ? " ▾" : "")) : label)));
    body.replaceChildren(...top.flatMap((e, i) => foRow(data, bus, e, i)));
    if (focus) head.querySelector(`[data-sort="${sort}"]`).focus();
  };
  draw(data.sort, false);
  return h("section", { class: "fo-top" }, h("h3", {}, `The first ${Math.min(data.shown, data.top.length)} segments`, words),
    h("div", { class: "fo-scroll", tabindex: 0, role: "region", "aria-label": "The first segments" }, h("table", {}, h("thead", {}, head), body)));
}

function foRow(data, bus, e, i) {
  const largest = Math.max(...data.top.map((one) => one.share)) || 1, others = e.samples.filter((sample) => sample !== e.sample);
  const around = h("tr", { class: "fo-around", hidden: true }, h("td", { colspan: FO_HEADS.length }, h("p", { class: "fo-text", dir: "auto" },
    h("span", { class: "quiet" }, visible(e.before)), h("mark", {}, visible(e.text)), e.more ? `… ${e.more.toLocaleString("en")} more characters ` : null, h("span", { class: "quiet" }, visible(e.after)))));
  const button = h("button", { type: "button", "aria-expanded": "false", "aria-label": visible(`Segment ${e.segment + 1} of group ${e.group}, sample ${e.sample}: ${e.text.slice(0, 60)}`),
    onclick: () => {
      const key = { step: e.step, group: e.group, sample: e.sample };
      if (bus.opens) bus.open(key);
      else {
        around.hidden = !around.hidden;
        button.setAttribute("aria-expanded", String(!around.hidden));
      }
      bus.select({ key: keyOf(e), token: e.start, segment: e.segment, from: data });
    } }, h("bdi", {}, visible(e.text.slice(0, 110)).replaceAll("\n", "↵") || "(empty)"), e.text.length > 110 || e.more ? "…" : null);
  const share = s("svg", { width: 64, height: 8, "aria-hidden": "true" }, s("rect", { x: 0, y: 0, width: (64 * e.share) / largest, height: 8, class: e.advantage > 0 ? "fo-pos" : "fo-neg" }));
  const alike = others.length ? h("span", { class: "quiet", title: `samples ${e.samples.join(", ")} say the same up to here` }, ` (+${others.length})`) : null;
  return [h("tr", {}, h("td", {}, i + 1), h("td", { class: "where" }, `${e.group} · ${e.sample}`, alike, ` · ${e.segment + 1}`), h("td", { class: "words" }, button),
    h("td", {}, e.moved ? num(e.moved, 3) : "–"), h("td", { class: "share" }, h("span", {}, `${(100 * e.share).toFixed(1)} %`), share),
    h("td", { class: e.advantage > 0 ? "plus" : "minus" }, signed(e.advantage)), h("td", {}, known(e.ratio) ? `×${num(e.ratio)}` : "–"),
    h("td", {}, !known(e.clipped) ? "–" : e.clipped > 0 ? h("b", { title: "beyond the clip range" }, e.clipped < 1 ? percent(e.clipped) : "clipped") : "no"),
    h("td", {}, changeWords(e.change))), around];
}

DRAW.forensics = drawForensics;
