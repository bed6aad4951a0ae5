// --- what became of a run: the numbers above a report and above the app's Live ------------------------------------

const MEANT = { answer: "answer right", perception: "perception right", grounded: "both right: grounded" };

/** A number's start and end. Shares are in percent, a reward is as it is. */
function tile({ label, note, share, start, end, steps, problems, interval, change }) {
  const say = (x) => (share ? (100 * x).toFixed(1) : num(x, 3)), moved = end - start;
  const size = share ? `${Math.abs(100 * moved).toFixed(1)} points` : num(Math.abs(moved), 3);
  const signed_ = (x) => `${x < 0 ? "−" : "+"}${share ? Math.abs(100 * x).toFixed(1) : num(Math.abs(x), 3)}`;
  const only = steps[0] === steps[1];
  return h("div", { class: "tile" }, h("p", { class: "what" }, MEANT[label] ?? label),
    h("p", { class: "figure" }, only ? null : [h("span", {}, say(start)), " → "], h("b", {}, say(end)), share ? h("small", {}, " %") : null),
    h("p", { class: "quiet" }, only ? `${note}, step ${steps[0]}`
      : [h("span", { class: "move" }, `${moved >= 0 ? "▲ +" : "▼ −"}${size}`), change ? ` (95 %: ${signed_(change[0])} to ${signed_(change[1])})` : "", `, ${note}, steps ${steps[0]} to ${steps[1]}`]),
    interval ? h("p", { class: "quiet" }, `${problems ? `${problems.toLocaleString("en")} problems, ` : ""}${only ? "" : "now "}95 %: ${say(interval[0])} to ${say(interval[1])}`) : null);
}

const roundShare = (x) => (x === null ? "–" : `${(100 * x).toFixed(0)} %`);

/** A share with its interval and what chance would give, on a scale from 0 to 1. */
function shareBar({ share, low, high, chance: blind }) {
  const svg = s("svg", { viewBox: "0 0 100 12", preserveAspectRatio: "none", class: "sharebar", "aria-hidden": "true" });
  svg.append(s("rect", { x: 0, y: 5, width: 100, height: 2, class: "track" }));
  if (share !== null) {
    svg.append(s("rect", { x: 0, y: 3, width: 100 * share, height: 6, class: "part" }), s("rect", { x: 100 * low, y: 5.2, width: Math.max(0.5, 100 * (high - low)), height: 1.6, class: "range" }),
      s("rect", { x: Math.min(99, 100 * blind), y: 0, width: 1, height: 12, class: "blind" }));
  }
  return svg;
}

/**
 * Does the credit find the first true error, and what would chance give: a sentence, and tables of kinds of errors and of
 * methods (or runs) beside it.
 */
function finding({ said, whence, by_token, lines, methods, trust, beside }) {
  const number = (n) => n.toLocaleString("en"), range = (line) => `${roundShare(line.low)} to ${roundShare(line.high)}`;
  const row = (label, line, more = []) => h("tr", {}, h("th", { scope: "row" }, visible(label)), h("td", {}, shareBar(line)),
    h("td", {}, h("b", {}, roundShare(line.share))), h("td", {}, line.share === null ? "–" : range(line)), h("td", {}, roundShare(line.chance)),
    more, h("td", {}, `${number(line.named)} of ${number(line.wrong)}`));
  const table = (first, more, rows) => h("table", {}, h("thead", {}, h("tr", {}, [first, h("span", { class: "unseen" }, "picture"), "found", "95 % interval", "by chance", ...more, "with a place named"]
    .map((name) => h("th", { scope: "col" }, name)))), h("tbody", {}, rows));
  const kinds = ["seeing errors", "reckoning errors"].filter((label) => methods.some((method) => method.lines.some((line) => line.label === label)));
  const kind = (method, label) => {
    const line = method.lines.find((one) => one.label === label);
    return h("td", {}, line && line.share !== null ? [h("b", {}, roundShare(line.share)), ` (${range(line)})`] : "–");
  };
  return h("section", { class: "finding" }, h("h2", {}, "Does this credit find the error?"), said ? h("p", { class: "verdict" }, said) : null,
    trust.length ? h("ul", { class: "trust" }, trust.map((line) => h("li", {}, line))) : null,
    lines[0]?.named ? table("First true error", [], lines.map((line) => row(line.label, line))) : null,
    methods.length ? [beside ? null : h("h3", {}, "And other methods, on the same completions ", h("span", {}, visible(methods[0].whence))),
      table(beside ?? "Method", kinds, methods.map((method) => row(`${method.label}${method.own ? " (as trained)" : ""}`, method.lines[0], kinds.map((label) => kind(method, label)))))] : null,
    lines[0]?.named || methods.length ? h("p", { class: "quiet" }, `Wrong completions with a known first error${whence ? `, ${visible(whence)}` : ""}. Found: the most blamed ${beside || methods.length ? "place" : by_token ? "token" : "segment"} holds it; `
      + "of equally blamed ones each counts in part. By chance (the upright mark): the same credit dealt out blindly to its places; where these are long, that finds much too.") : null);
}
