// --- the tokens of a rollout ------------------------------------------------------------------------------------

const ROLES = ["other", "perception", "reasoning", "answer"];
const LEVELS = 10;

class Tokens {
  constructor(data, columns) {
    Object.assign(this, columns);
    this.data = data;
    this.n = columns.units.length;
    this.m = columns.seg.length;
    this.offset = new Uint32Array(this.n + 1);
    for (let t = 0; t < this.n; t++) this.offset[t + 1] = this.offset[t] + columns.units[t];
    this.start = new Uint32Array(this.m + 1);
    for (let m = 0; m < this.m; m++) this.start[m + 1] = this.start[m] + columns.seg[m];
    this.segment = new Uint32Array(this.n);
    for (let m = 0; m < this.m; m++) this.segment.fill(m, this.start[m], this.start[m + 1]);
  }
  piece(t) { return this.text.slice(this.offset[t], this.offset[t + 1]); }
  words(from, to) { return this.text.slice(this.offset[from], this.offset[to]); }
  trained(t) { return (!this.loss || this.loss[t] === 1) && (!this.adv || !Number.isNaN(this.adv[t])); }
  inError(t) { const e = this.data.error; return Boolean(e) && e.start <= t && t < e.end; }
  /** Value of the state before token t: the critic's, else the one known for the start of its segment. */
  value(t) { return this.val ? this.val[t] : this.seg_val ? this.seg_val[this.segment[t]] : NaN; }
  /** Largest size of f over all tokens where it is known. */
  largest(f) {
    let best = 0;
    for (let t = 0; t < this.n; t++) { const x = Math.abs(f(t)); if (x > best && Number.isFinite(x)) best = x; }
    return best;
  }
}

// What a token can be coloured by. `x` gives the number that is coloured: diverging around 0, or from 0 up.
const LAYERS = [
  { id: "advantage", label: "Advantage", needs: "adv", diverging: true, x: (k, t) => (k.trained(t) ? k.adv[t] : NaN),
    scale: (k) => k.data.limit, ends: (m) => [signed(-m), "0", signed(m)],
    hint: "credit of each token; the scale is symmetric around 0 and made from trained tokens only" },
  { id: "value", label: "Value", needs: "val seg_val", x: (k, t) => k.value(t),
    ends: (m) => ["0", num(m, 2)], hint: "expected reward of the state before the token" },
  { id: "entropy", label: "Entropy", needs: "ent", x: (k, t) => k.ent[t], ends: (m) => ["0", `${num(m, 2)} nats`],
    hint: "of the distribution that the token was drawn from" },
  { id: "probability", label: "Probability", needs: "logp", x: (k, t) => 1 - Math.exp(k.logp[t]), scale: () => 1,
    ends: () => ["certain", "unlikely"], hint: "of the token when it was drawn; the darker the less likely" },
  { id: "ratio", label: "Ratio", needs: "ratio", diverging: true, x: (k, t) => Math.log(k.ratio[t]),
    ends: (m) => [`×${num(Math.exp(-m), 2)}`, "×1", `×${num(Math.exp(m), 2)}`],
    hint: "importance ratio after the step's updates, around 1; boxed tokens are clipped" },
  { id: "weight", label: "Weight", needs: "weight", diverging: true, x: (k, t) => k.weight[t] - 1,
    ends: (m) => [num(1 - m, 2), "1", num(1 + m, 2)], hint: "share of the advantage that the token gets, around 1" },
  { id: "role", label: "Role", needs: "role", hint: "what the token does in a structured completion" },
  { id: "loss", label: "Loss mask", needs: "loss", x: (k, t) => (k.trained(t) ? 0.3 : NaN), scale: () => 1,
    hint: "tokens that entered the loss with credit" },
];

/** The name of a shade: p3 above zero, n3 below, s3 on a scale from 0 up, "u" where there is no number. */
function shade(layer, scale, x) {
  if (!known(x)) return "u";
  if (scale <= 0 || Math.abs(x) < 1e-9) return "z";
  const size = clamp(Math.round((LEVELS * Math.abs(x)) / scale), 1, LEVELS);
  return (layer.diverging ? (x > 0 ? "p" : "n") : "s") + size;
}
