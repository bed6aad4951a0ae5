// --- last of all: an element draws itself as soon as its name is known, and may use what any file holds -------------------

const PANELS = { top: Top, live: LivePanel, rollouts: RolloutsPanel, compare: ComparePanel, inspect: InspectPanel, playground: PlaygroundPanel, trainer: TrainerPanel };
for (const [name, panel] of Object.entries(PANELS)) customElements.define(`segpo-${name}`, panel);
