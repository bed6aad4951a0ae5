// --- how right is the credit: a row a method, what it finds beside chance, how it correlates, what it costs -------------

function drawRightness(data) {
  const own = data.rows.filter((row) => row.plain), rest = data.rows.filter((row) => !row.plain);
  const first = own.length ? own : data.rows, more = own.length ? rest : [];
  return h("div", { class: "page" }, h("article", { class: "right", "aria-label": data.title },
    h("header", {}, h("p", { class: "eyebrow" }, visible(data.whence)), h("h2", {}, visible(data.title)),
      h("p", { class: "verdict" }, data.verdict.map((line, i) => [i ? " " : null, h(i ? "span" : "strong", {}, visible(line))]))),
    rightTable(first, data, "Methods at their own settings"),
    more.length ? h("details", {}, h("summary", {}, `${more.length} more: other settings, true values under each λ and segmentation, bounds`),
      rightTable(more, data, "Other settings and bounds")) : null,
    h("p", { class: "quiet" }, "Finds: failed completions whose most blamed token is the one that decided (the largest true drop); the upright mark is what chance ",
      "would find with that method's segments. Within: correlation with the true advantage inside a completion, from −1 to 1. Lines: 95 % when ",
      "problems are drawn anew. Tokens: through the model for the credit, a completion, beyond sampling it.")));
}

function rightTable(rows, data, label) {
  const head = ["credit", "finds the deciding token", "within a completion", "tokens"];
  return h("div", { class: "rt-box", tabindex: 0, role: "region", "aria-label": label }, h("table", { class: "rt" },
    h("thead", {}, h("tr", {}, head.map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, rows.map((row) => h("tr", {},
      h("th", { scope: "row" }, visible(row.arm), row.settings ? h("small", {}, visible(row.settings)) : null),
      h("td", {}, rightBar(row.hit, row.hit_low, row.hit_high, row.chance, 0), h("span", { class: "rt-n" }, share(row.hit),
        known(row.chance) ? h("small", {}, ` chance ${share(row.chance)}`) : null)),
      h("td", {}, rightBar(row.within, row.within_low, row.within_high, null, -1), h("span", { class: "rt-n" }, known(row.within) ? signed(row.within) : "–")),
      h("td", { class: "n" }, known(row.tokens) ? Math.round(row.tokens).toLocaleString("en") : "–"))))));
}

const share = (x) => (known(x) ? `${Math.round(100 * x)} %` : "–");

/** A number between `low` and 1 as a bar from zero, its interval a line, chance an upright mark. */
function rightBar(x, from, to, chance, low) {
  const wide = 160, X = (value) => 2 + (wide - 4) * (clamp(value, low, 1) - low) / (1 - low);
  const svg = s("svg", { width: wide, height: 18, class: "rt-bar", "aria-hidden": "true" }, s("line", { x1: X(0), x2: X(0), y1: 1, y2: 17, class: "axis" }));
  if (known(x)) svg.append(s("rect", { x: Math.min(X(0), X(x)), width: Math.max(1, Math.abs(X(x) - X(0))), y: 4, height: 10, class: x < 0 ? "neg" : "pos" }));
  if (known(from) && known(to)) svg.append(s("line", { x1: X(from), x2: X(to), y1: 9, y2: 9, class: "range" }));
  if (known(chance)) svg.append(s("line", { x1: X(chance), x2: X(chance), y1: 0, y2: 18, class: "chance" }));
  return svg;
}

DRAW.rightness = drawRightness;
