// What is read as words and tables: the head, scores, recipes, environment.

const STATES = { finished: "finished", training: "training now", stopped: "stopped", empty: "nothing trained yet" };

function state(run) {
  return make("span", { class: `state ${run.summary.state}` }, STATES[run.summary.state]);
}

function card(run, slot, runs) {
  const told = run.summary;
  const of = told.steps ? ` of ${count(told.steps)}` : "";
  const newest = run.environment.length ? run.environment[run.environment.length - 1].environment : {};
  const facts = {
    step: `${count(told.step)}${of}`,
    "images seen": told.images && `${count(told.images)}${told.epochs ? ` (${value(told.epochs)} epochs of ${count(told.pictures)})` : ""}`,
    parameters: told.params && count(told.params),
    GMAC: told.gmacs && `${value(told.gmacs)} an image`,
    "image size": told.size && told.size.join(" × "),
    classes: told.classes.length ? `${told.classes.length}: ${classNames(told.classes)}` : told.unconditional ? "none" : null,
    batch: told.batch_size && `${count(told.batch_size)} images, ${told.precision}`,
    "started from": told.init,
    device: newest.hardware,
    throughput: told.rate && `${value(told.rate)} images/s (median)`,
    "time in training": duration(told.trained_seconds),
    "with pauses": duration(told.wall_seconds),
    "peak memory": told.peak_bytes && `${(told.peak_bytes / 2 ** 30).toFixed(2)} GiB`,
    "last logged": told.last_time && new Date(told.last_time * 1000).toISOString().slice(0, 16).replace("T", " ") + " UTC",
  };
  const rows = Object.entries(facts).filter(([, text]) => text).map(([name, text]) => make("div", {}, make("dt", {}, name), make("dd", {}, text)));
  const head = runs > 1 ? make("h2", {}, swatch({ slot, dash: dashOf(slot) }), make("span", {}, run.name), state(run)) : "";
  const notes = run.notes.length ? make("ul", { class: "notes" }, run.notes.map((text) => make("li", {}, text))) : "";
  return make("article", { class: "card" }, head, make("p", { class: "faint path" }, run.path), make("dl", {}, rows), notes);
}

function classNames(names) {
  return names.length > 12 ? `${names.slice(0, 12).join(", ")}, …` : names.join(", ");
}

function table(head, rows) {
  const top = make("thead", {}, make("tr", {}, head.map((text) => make("th", { scope: "col" }, text))));
  const body = rows.map((row) => make("tr", {}, row.map((cell, i) => (i ? make("td", {}, cell) : make("th", { scope: "row" }, cell)))));
  return make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": head.join(", ") }, make("table", {}, top, make("tbody", {}, body)));
}

// Scores: only those made under the same conditions make one curve

function scoreSection(runs) {
  const all = runs.flatMap((run, slot) => run.scores.map((score) => ({ ...score, name: run.name, run: `run/${slot}`, slot })));
  if (!all.length) return section("scores", "Scores", note("No scores yet: `hdit eval-fid RUN` adds them to the run."));
  const metrics = [...new Set(all.flatMap((score) => Object.keys(score.scores)))];
  const groups = new Map();
  for (const score of all) {
    const key = [score.run, score.weights, score.n, score.sampling, score.reference, score.reference_count].join("/");
    groups.set(key, [...(groups.get(key) || []), score]);
  }
  const charts = metrics.map((metric) => new Chart({ title: metric.toUpperCase(), series: () => [...groups].map(([key, group], i) => scoreSeries(runs, metric, key, group, i)) }).figure);
  const several = runs.length > 1;
  const head = [...(several ? ["run"] : []), "step", "weights", ...metrics.map((name) => name.toUpperCase()), "n", "sampling", "seed", "reference", "date"];
  const rows = all.map((score) => [
    ...(several ? [score.name] : []),
    count(score.step),
    weightsName(score.weights),
    ...metrics.map((name) => value(score.scores[name])),
    count(score.n),
    score.sampling || "–",
    score.seed || "–",
    `${score.reference || "–"}${score.reference_count ? ` (${count(score.reference_count)})` : ""}`,
    score.date.slice(0, 10) || "–",
  ]);
  return section("scores", "Scores", note("Lower is better. Compare scores only at the same n, sampling and reference; a curve joins only those."), make("div", { class: "two" }, charts), table(head, rows));
}

function scoreSeries(runs, metric, key, group, i) {
  const first = group[0];
  const label = [runs.length > 1 ? first.name : "", weightsName(first.weights), `n ${count(first.n)}`, first.sampling].filter(Boolean).join(" · ");
  const there = group.filter((score) => metric in score.scores);
  return { key: `score/${key}`, run: first.run, label, slot: runs.length > 1 ? first.slot : i, dash: i, x: there.map((score) => score[view.x]), y: there.map((score) => score.scores[metric]), dots: true };
}

// Recipes

function recipeTable(names, recipes, keep) {
  const keys = [...new Set(recipes.flatMap((recipe) => Object.keys(recipe)))].filter((key) => keep(recipes.map((recipe) => recipe[key])));
  return keys.length ? table(["key", ...names], keys.map((key) => [key, ...recipes.map((recipe) => recipe[key] ?? "–")])) : null;
}

const differ = (values) => new Set(values).size > 1;

function recipeSection(runs) {
  const told = runs.filter((run) => Object.keys(run.recipe).length);
  if (!told.length) return section("recipe", "Recipe", note("No recipe could be read."));
  const parts = [];
  const names = told.map((run) => run.name);
  const recipes = told.map((run) => run.recipe);
  if (told.length > 1) {
    parts.push(recipeTable(names, recipes, differ) || note("The recipes of these runs are equal."));
  } else if (told[0].base) {
    const { name, recipe } = told[0].base;
    const changed = recipeTable([`shipped ${name}`, told[0].name], [recipe, told[0].recipe], differ);
    parts.push(changed ? [note(`What differs from the shipped recipe ${name}:`), changed] : note(`As the shipped recipe ${name}.`));
  }
  const rest = told.length > 1 ? "All keys that are equal" : "The whole recipe";
  const equal = recipeTable(told.length > 1 ? ["all runs"] : names, [recipes[0]].map((first) => (told.length > 1 ? Object.fromEntries(Object.entries(first).filter(([key]) => !differ(recipes.map((recipe) => recipe[key])))) : first)), () => true);
  if (equal) parts.push(make("details", {}, make("summary", {}, rest), equal));
  return section("recipe", told.length > 1 ? "What differs between the recipes" : "Recipe", parts);
}

// Environment

function environmentSection(runs) {
  const columns = runs.flatMap((run) =>
    run.environment.map((entry, i) => ({ name: `${run.name}${run.environment.length > 1 ? `, ${i ? "from" : "at"} step ${count(entry.step)}` : ""}`, told: entry.environment })),
  );
  if (!columns.length) return section("environment", "Environment", note("No checkpoint tells of machine and versions yet."));
  return section("environment", "Environment", recipeTable(columns.map((each) => each.name), columns.map((each) => each.told), () => true));
}
