// --- the editor of a scene: nine cells over the picture that the task's own renderer makes of them ---------------------

/** { el, objects }: objects as [{ cell, size, colour, shape }], to read and to set. */
class SceneEditor {
  constructor({ cells, sizes, colours, shapes }) {
    Object.assign(this, { cells, held: new Map(), brush: { size: "large", colour: "red", shape: "circle" } });
    this.picture = h("img", { alt: "", class: "pixels" });
    this.buttons = cells.map((cell, i) => h("button", { type: "button", class: "cell", "data-cell": cell, tabindex: i === 4 ? "0" : "-1", onclick: () => this.place(cell) }));
    this.grid = h("div", { class: "grid9", role: "group", "aria-label": "Scene, nine cells; arrows move, Enter places, Delete removes" }, this.picture, this.buttons);
    this.grid.addEventListener("keydown", (event) => this.key(event));
    this.words = h("p", { class: "quiet", role: "status" }, "Press a cell to place this shape, once more to take it away.");
    const row = (name, values) => h("fieldset", { class: "brush" }, h("legend", {}, name), values.map((value) => h("label", {},
      h("input", { type: "radio", name: `brush-${name}`, value, checked: this.brush[name] === value, onchange: () => { this.brush[name] = value; } }),
      name === "colour" ? h("i", { class: `dot ${value}`, "aria-hidden": "true" }) : null, h("span", {}, value))));
    this.el = h("div", { class: "scene" }, this.grid, h("div", { class: "brushes" }, row("shape", shapes), row("colour", colours), row("size", sizes)), this.words);
    this.draw();
  }
  get objects() { return [...this.held].map(([cell, object]) => ({ cell, ...object })); }
  set objects(list) {
    this.held = new Map(list.map(({ cell, size, colour, shape }) => [cell, { size, colour, shape }]));
    this.draw();
  }
  place(cell) {
    const there = this.held.get(cell), same = there && Object.entries(this.brush).every(([name, value]) => there[name] === value);
    if (same) this.held.delete(cell); else this.held.set(cell, { ...this.brush });
    this.changed(cell);
  }
  key(event) {
    const at = this.buttons.indexOf(event.target), { key } = event;
    if (at < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const next = { ArrowRight: at % 3 < 2 ? at + 1 : at, ArrowLeft: at % 3 ? at - 1 : at, ArrowDown: at < 6 ? at + 3 : at, ArrowUp: at > 2 ? at - 3 : at, Home: 0, End: 8 }[key];
    if (next !== undefined) {
      event.preventDefault();
      this.buttons.forEach((el, i) => el.setAttribute("tabindex", i === next ? "0" : "-1"));
      this.buttons[next].focus();
    } else if ((key === "Delete" || key === "Backspace") && this.held.delete(this.cells[at])) {
      event.preventDefault();
      this.changed(this.cells[at]);
    }
  }
  changed(cell) {
    this.draw();
    this.words.textContent = `${cell}: ${this.said(cell)}`;
  }
  said(cell) {
    const there = this.held.get(cell);
    return there ? `${there.size} ${there.colour} ${there.shape}` : "empty";
  }
  draw() {
    for (const el of this.buttons) el.setAttribute("aria-label", `${el.dataset.cell}: ${this.said(el.dataset.cell)}`);
    const code = this.cells.filter((cell) => this.held.has(cell)).map((cell) => [cell, this.said(cell).replaceAll(" ", "-")]);
    this.picture.src = `/segpo/api/play/scene.png?${new URLSearchParams(code)}`;
  }
}
