// Puts the page together.

const facts = JSON.parse(document.getElementById("facts").textContent);

function choice(name, label, options, act) {
  const inputs = Object.entries(options).map(([key, text]) =>
    make("label", {}, make("input", { type: "radio", name, value: key, checked: key === view[name], on: { change: () => act(key) } }), text),
  );
  return make("div", { class: "choice", role: "radiogroup", "aria-label": label }, make("span", { class: "name" }, label), inputs);
}

function toolbar(runs) {
  const timed = runs.some((run) => run.log.hours?.some((hours) => hours !== null));
  const axes = { step: "steps", images: "images", ...(timed ? { hours: "hours" } : {}) };
  const smoothing = make("output", {}, "off");
  const smooth = (event) => {
    const width = Number(event.target.value);
    smoothing.textContent = width ? `${width} %` : "off";
    view.change({ smoothing: width });
  };
  smoothing.textContent = view.smoothing ? `${view.smoothing} %` : "off";
  const slider = make("input", { type: "range", id: "smoothing", min: 0, max: 100, step: 5, value: view.smoothing, on: { input: smooth } });
  const log = make("input", { type: "checkbox", id: "log-loss", on: { change: (event) => view.change({ logLoss: event.target.checked }) } });
  const legend = make("div", { class: "legend runs", "aria-label": "Runs" });
  const list = () => {
    const focused = legend.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    legend.replaceChildren(...(runs.length > 1 ? runs.map((run, slot) => legendButton({ key: `run/${slot}`, label: run.name, slot, dash: dashOf(slot) })) : []));
    if (focused) legend.querySelector(`[data-key="${focused}"]`)?.focus();
  };
  document.addEventListener("viewchange", list);
  list();
  return make(
    "div",
    { class: "toolbar", role: "toolbar", "aria-label": "All curves" },
    choice("x", "x axis", axes, (x) => view.change({ x, zoom: null })),
    make("label", { class: "slide", for: "smoothing" }, "smoothing", slider, smoothing),
    make("label", { class: "check" }, log, "logarithmic loss"),
    make("button", { type: "button", id: "show-all", on: { click: () => view.change({ zoom: null }) } }, "show all"),
    runs.length > 1 ? legend : "",
  );
}

function contents(sections) {
  const links = sections.map((part) => make("a", { href: `#${part.id}` }, part.dataset.nav));
  return make("nav", { "aria-label": "Sections" }, links);
}

function page() {
  const { runs, made } = facts;
  view.smoothing = runs.some((run) => (run.log.loss || []).length > 30) ? 20 : 0;
  hideSideCurves(runs);
  const names = runs.map((run) => run.name);
  document.title = `${names.slice(0, 3).join(", ")}${names.length > 3 ? ", …" : ""} – hdit report`;
  const head = make("header", {}, make("h1", {}, names.length > 1 ? `${names.length} runs` : [names[0], state(runs[0])]), make("p", { class: "faint" }, `hdit report of ${made.date}`));
  const sections = [lossSection, validationSection, gridSection, scoreSection, sigmaSection, trainingSection, recipeSection, environmentSection].map((build) => build(runs));
  const hint = make("p", { class: "faint hint" }, "Point at a curve or tap it to read it; drag to zoom, double-click to see all again, or use the buttons. With the keyboard: arrows, + and −, 0.");
  const foot = make("footer", { class: "faint" }, `Made by hdit ${made.hdit} on ${made.date}. This page is one file of ${bytes(facts.bytes)}; it loads nothing from anywhere.`);
  document.body.append(head, make("div", { class: "cards" }, runs.map((run, slot) => card(run, slot, runs.length))), contents(sections), toolbar(runs), hint, make("main", {}, sections), foot);
  addEventListener("beforeprint", () => view.change({ paper: true }));
  addEventListener("afterprint", () => view.change({ paper: false }));
  view.change({});
}

page();
