// Sample grids over time: one slider for all runs, and four ways to look at raw and averaged weights.

const MODES = { both: "side by side", wipe: "wipe" };

class Grids {
  constructor(runs) {
    this.runs = runs.filter((run) => run.grids.shown.length);
    this.steps = [...new Set(this.runs.flatMap((run) => run.grids.shown.map((grid) => grid.step)))].sort((a, b) => a - b);
    this.weights = [...new Set(this.runs.flatMap((run) => run.grids.shown.flatMap((grid) => Object.keys(grid.pictures))))];
    this.weights.sort((a, b) => (b === "ema") - (a === "ema") || a.localeCompare(b));
    this.pair = this.weights.includes("ema") && this.weights.includes("raw");
    this.mode = this.pair && innerWidth > 700 && this.runs.length === 1 ? "both" : this.weights[0];
    this.wipe = 50;
  }

  // what a run shows at a step: its newest grid by then
  at(run, step) {
    return run.grids.shown.filter((grid) => grid.step <= step).pop() || null;
  }

  build() {
    this.slider = make("input", { type: "range", id: "grid-step", min: 0, max: this.steps.length - 1, step: 1, value: this.steps.length - 1, on: { input: () => this.show() } });
    this.told = make("output", { for: "grid-step" });
    this.place = make("div", { class: "grids" });
    const names = [...this.weights, ...(this.pair ? Object.keys(MODES) : [])];
    const modes = make("div", { class: "choice", role: "radiogroup", "aria-label": "weights" }, make("span", { class: "name" }, "weights"), names.map((name) => this.choice(name)));
    this.wiper = make("label", { class: "slide" }, "raw | EMA", make("input", { type: "range", "aria-label": "Where raw ends and EMA begins, in percent", min: 0, max: 100, value: this.wipe, on: { input: (event) => this.move(event) } }));
    const step = make("label", { class: "slide grow", for: "grid-step" }, "step", this.slider, this.told);
    const controls = make("div", { class: "controls" }, step, names.length > 1 ? modes : "", this.wiper);
    this.show();
    return [controls, this.place];
  }

  choice(name) {
    const act = () => {
      this.mode = name;
      this.show();
    };
    return make("label", {}, make("input", { type: "radio", name: "grid-mode", value: name, checked: name === this.mode, on: { change: act } }), MODES[name] || weightsName(name));
  }

  move(event) {
    this.wipe = Number(event.target.value);
    for (const node of this.place.querySelectorAll(".over")) node.style.clipPath = `inset(0 0 0 ${this.wipe}%)`;
  }

  show() {
    const step = this.steps[Number(this.slider.value)];
    this.slider.setAttribute("aria-valuetext", `step ${count(step)}`);
    this.told.textContent = count(step);
    this.wiper.hidden = this.mode !== "wipe";
    this.place.classList.toggle("wide", this.mode === "both" && this.runs.length > 1);
    this.place.replaceChildren(...this.runs.map((run) => this.figure(run, step)));
  }

  figure(run, step) {
    const grid = this.at(run, step);
    const name = this.runs.length > 1 ? `${run.name}, ` : "";
    if (!grid) return make("figure", { class: "grid" }, make("figcaption", {}, `${name}no grid yet at step ${count(step)}`));
    const caption = make("figcaption", {}, `${name}step ${count(grid.step)}`);
    return make("figure", { class: "grid", "data-step": grid.step }, caption, this.pictures(run, grid));
  }

  pictures(run, grid) {
    const { raw, ema } = grid.pictures;
    if (this.mode === "both") return make("div", { class: "pair" }, ["ema", "raw"].map((name) => this.picture(run, grid, name, true)));
    if (this.mode !== "wipe") return this.picture(run, grid, this.mode, false);
    if (!raw || !ema) return note("raw and EMA are not both there at this step");
    const over = picture(ema, `${run.name}, step ${grid.step}, EMA`, "over");
    over.style.clipPath = `inset(0 0 0 ${this.wipe}%)`;
    return make("div", { class: "stack" }, picture(raw, `${run.name}, step ${grid.step}, raw`, ""), over);
  }

  picture(run, grid, name, titled) {
    const address = grid.pictures[name];
    if (!address) return note(`no grid of the ${weightsName(name)} weights at this step`);
    return make("div", {}, titled ? make("div", { class: "faint" }, weightsName(name)) : "", picture(address, `${run.name}, step ${grid.step}, ${weightsName(name)} weights`, ""));
  }

  // paper has no slider: the newest grid of each run, both weights
  printed() {
    return this.runs.map((run) => {
      const grid = run.grids.shown[run.grids.shown.length - 1];
      const names = ["ema", "raw"].filter((name) => grid.pictures[name]);
      const all = names.length ? names : Object.keys(grid.pictures).slice(0, 2);
      const caption = make("figcaption", {}, `${run.name}, step ${count(grid.step)}`);
      return make("figure", { class: "grid paper" }, caption, make("div", { class: "pair" }, all.map((name) => this.picture(run, grid, name, true))));
    });
  }
}

function picture(address, text, kind) {
  return make("img", { src: address, alt: `Sample grid: ${text}`, class: kind, decoding: "sync" });
}

function gridSection(runs) {
  const grids = new Grids(runs);
  if (!grids.runs.length) return section("grids", "Samples over time", note("No sample grids yet: train.sample_every says how often they are drawn."));
  const notes = runs.flatMap((run) => {
    const { total, shown, scale } = run.grids;
    const cut = shown.length < total ? [`${run.name}: ${shown.length} of ${total} grids are on this page, evenly chosen; all lie in its samples folder.`] : [];
    return scale < 1 ? [...cut, `${run.name}: grids are shown at ${Math.round(scale * 100)} % of their size.`] : cut;
  });
  return section("grids", "Samples over time", grids.build(), grids.printed(), notes.map(note));
}
