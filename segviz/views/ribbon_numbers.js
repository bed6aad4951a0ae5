// --- the ribbon: every number of a token and of its segment --------------------------------------------------------------

/** Shows every number of token t and of its segment. */
function inspect(view, t) {
  const { k, data } = view, m = k.segment[t];
  view.shown = t;
  for (const old of view.stream.querySelectorAll(".seg.on")) if (Number(old.dataset.s) !== m) old.classList.remove("on");
  for (const seg of view.stream.querySelectorAll(`.seg[data-s="${m}"]`)) seg.classList.add("on");
  const line = (name, x) => [h("dt", {}, name), h("dd", {}, x)];
  const at = (column, show = num) => (column ? show(column[t]) : "not recorded");
  const clip = !k.clip || k.clip[t] === 2 ? "" : k.clip[t] ? "yes" : "no";
  const piece = k.piece(t);
  const words = visible(k.words(k.start[m], Math.min(k.start[m + 1], k.start[m] + 40))).slice(0, 160);
  const loss = k.loss ? ["no", "yes", "not recorded"][k.loss[t]] : "not recorded";
  const rows = [
    line("advantage", k.adv ? (known(k.adv[t]) ? signed4(k.adv[t]) : "none assigned") : "not recorded"),
    line("weight", at(k.weight)),
    line("in the loss", loss),
    line("value before", known(k.value(t)) ? num(k.value(t)) : "not recorded"),
    k.ret ? line("return", at(k.ret)) : [],
    line("probability", at(k.logp, chance)),
    line("log-prob.", at(k.logp)),
    k.ref ? line("log-prob. ref.", at(k.ref)) : [],
    line("entropy, nats", at(k.ent)),
    line("ratio", at(k.ratio)),
    clip ? line("clipped", clip) : [],
    k.role ? line("role", ROLES[k.role[t]] ?? "none") : [],
    k.pc ? line("perc. contrast", at(k.pc)) : [],
    k.rc ? line("reas. contrast", at(k.rc)) : [],
    k.id ? line("token id", String(k.id[t])) : [],
  ];
  const error = k.inError(t) ? h("p", { class: "why" }, h("b", {}, `✗ ${visible(data.error.kind)} error`), data.error.why ? ` ${visible(data.error.why)}` : "") : null;
  const value = k.seg_val && known(k.seg_val[m])
    ? num(k.seg_val[m]) + (k.seg_err?.[m] > 0 ? ` ± ${num(k.seg_err[m], 2)}` : k.seg_err?.[m] === 0 ? ", all samples alike" : "") : "not recorded";
  view.inspector.classList.toggle("resting", !view.inspected);  // on opening nobody has asked yet: it lies under the text
  view.inspected = true;
  view.inspector.replaceChildren(
    h("section", {},
      h("h3", {}, `Token ${t + 1} `, h("span", {}, `of ${k.n.toLocaleString("en")}`)),
      h("p", { class: "piece", dir: "auto" }, piece === "" ? "(empty)" : visible(piece).replaceAll("\n", "↵").slice(0, 120)), error,
      h("dl", {}, rows)),
    h("section", {},
      h("h3", {}, `Segment ${m + 1} `, h("span", {}, `of ${k.m.toLocaleString("en")}`)),
      h("p", { class: "piece small", dir: "auto" }, words.replaceAll("\n", "↵")),
      h("dl", {}, line("advantage", known(k.seg_adv[m]) ? signed4(k.seg_adv[m]) : "none"),
        line("value at start", value),
        line("tokens", k.seg[m] === 1 ? `${k.start[m] + 1}` : `${k.start[m] + 1} to ${k.start[m + 1]}`)),
      k.seg_rule && data.rules[k.seg_rule[m]] ? h("p", { class: "rule" }, h("b", {}, "cut "), visible(data.rules[k.seg_rule[m]])) : null),
    h("p", { class: "keys" }, h("kbd", {}, "←"), h("kbd", {}, "→"), " token  ", h("kbd", {}, "⇧←"), h("kbd", {}, "⇧→"), " segment  ",
      h("kbd", {}, "1"), "–", h("kbd", {}, "8"), " layer  ", h("kbd", {}, "W"), " most blamed  ", h("kbd", {}, "E"), " error"));
  view.moveCursor?.(t);
}

const signed4 = (x) => (x > 0 ? "+" : "") + num(x, 4);
