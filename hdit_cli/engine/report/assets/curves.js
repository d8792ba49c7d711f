// The sections with curves: which columns they show, and a sentence where a run has none.

function section(id, title, ...content) {
  return make("section", { id, "data-nav": title }, make("h2", {}, title), ...content);
}

function note(text) {
  return make("p", { class: "note" }, text);
}

// the same column of every run, as series
function perRun(runs, pick, more) {
  return runs.flatMap((run, slot) => {
    const found = pick(run);
    if (!found || !found.y) return [];
    const key = `run/${slot}`;
    return [{ key, run: key, label: run.name, slot, dash: dashOf(slot), x: found.table[view.x], y: found.y, ...more }];
  });
}

function column(part, name) {
  return (run) => ({ table: run[part], y: run[part][name] });
}

function has(runs, part, name) {
  return runs.some((run) => run[part][name]);
}

function plain(runs, title, part, name, more) {
  if (!has(runs, part, name)) return null;
  return new Chart({ title, series: () => perRun(runs, column(part, name), { smooth: Boolean(more?.smooth) }), logY: more?.logY }).figure;
}

function lossSection(runs) {
  const loss = plain(runs, "Training loss", "log", "loss", { smooth: true, logY: () => view.logLoss });
  const thin = runs.filter((run) => run.log.lines_per_point > 1).map((run) => `${run.name}: each point is the mean of ${run.log.lines_per_point} lines of the log.`);
  return section("loss", "Loss", loss || note("No loss was logged yet."), thin.map(note));
}

function trainingSection(runs) {
  const rates = () =>
    runs.flatMap((run, slot) => {
      const names = Object.keys(run.log).filter((name) => name.startsWith("lr "));
      const shown = runs.length === 1 && names.length ? names : run.log.lr ? ["lr"] : [];
      return shown.map((name, i) => ({
        key: names.length && runs.length === 1 ? `lr/${name}` : `run/${slot}`,
        run: `run/${slot}`,
        label: runs.length === 1 ? name.replace(/^lr /, "") : run.name,
        slot: runs.length === 1 ? i : slot,
        dash: runs.length === 1 ? i : dashOf(slot),
        x: run.log[view.x],
        y: run.log[name],
      }));
    });
  const charts = [
    plain(runs, "Gradient norm", "log", "grad_norm", { smooth: true, logY: () => view.logLoss }),
    has(runs, "log", "lr") ? new Chart({ title: "Learning rate", series: rates }).figure : null,
    plain(runs, "Gradient noise scale (images)", "log", "gradient_noise_scale", { smooth: true, logY: () => true }),
    runs.some((run) => run.log.skipped?.some((n) => n > 0)) ? plain(runs, "Steps passed over as not finite", "log", "skipped") : null,
    plain(runs, "Throughput (images/s)", "timing", "images_per_second"),
    plain(runs, "Peak memory (GiB)", "timing", "memory"),
  ].filter(Boolean);
  const memory = has(runs, "timing", "memory") ? null : note("No peak memory: it is written down on CUDA devices only.");
  return section("training", "Training", charts.length ? make("div", { class: "two" }, charts) : note("Nothing was logged yet."), charts.length ? memory : null);
}

const SIGMA_AXIS = { label: "noise level σ", log: true };

function sigmaSection(runs) {
  const told = runs.filter((run) => run.sigma.latest);
  if (!told.length) return section("sigma", "Loss by noise level", note("No losses by noise level in metrics.jsonl."));
  const latest = new Chart({
    title: "Training loss by noise level, newest tenth of the log",
    own: SIGMA_AXIS,
    logY: () => true,
    series: () => perRun(runs, (run) => run.sigma.latest && { table: { [view.x]: run.sigma.latest.sigmas }, y: run.sigma.latest.loss }, { dots: true }),
  });
  const levels = [...new Set(told.flatMap((run) => run.sigma.sigmas))].sort((a, b) => a - b);
  const small = levels.map((level) => {
    const name = Object.fromEntries(told.map((run) => [run.name, Object.keys(run.sigma.over_time).find((key) => Number(key) === Number(level.toPrecision(6)))]));
    const pick = (run) => run.sigma.over_time && { table: run.sigma.over_time, y: run.sigma.over_time[name[run.name]] };
    return new Chart({ title: `σ ≈ ${value(level)}`, small: true, series: () => perRun(runs, pick, { smooth: true }) }).figure;
  });
  const cut = told.filter((run) => run.sigma.total > run.sigma.sigmas.length).map((run) => note(`${run.name}: ${run.sigma.sigmas.length} of ${run.sigma.total} noise levels are shown over time.`));
  return section("sigma", "Loss by noise level", latest.figure, make("h3", {}, "Over time"), cut, make("div", { class: "multiples" }, small));
}

// Validation

function curveLabel(runs, run, curve) {
  return `${runs.length > 1 ? `${run.name} · ` : ""}${curve.split}, ${weightsName(curve.weights)}`;
}

// one run: colour tells the split, dashes the weights; several: colour tells the run, dashes the kind
function validationSeries(runs, shape) {
  return runs.flatMap((run, slot) => {
    const splits = [...new Set(run.validation.map((curve) => curve.split))].sort();
    const weights = [...new Set(run.validation.map((curve) => curve.weights))].sort((a, b) => (b === "ema") - (a === "ema"));
    return run.validation.map((curve) => ({
      key: `run/${slot}/${curve.split}/${curve.weights}`,
      run: `run/${slot}`,
      label: curveLabel(runs, run, curve),
      slot: runs.length > 1 ? slot : splits.indexOf(curve.split),
      dash: runs.length > 1 ? splits.indexOf(curve.split) * 2 + Math.min(1, weights.indexOf(curve.weights)) : weights.indexOf(curve.weights),
      ...shape(curve),
    }));
  });
}

// the held-out curve that decides: the average's, where there is one
function judge(run) {
  const held = run.validation.filter((curve) => curve.split === "held-out");
  return held.find((curve) => curve.weights === "ema") || held.find((curve) => curve.weights.startsWith("ema")) || held[0];
}

function least(curve) {
  return curve.table.mean.reduce((best, mean, i, all) => (mean !== null && (all[best] === null || mean < all[best]) ? i : best), 0);
}

// of many runs only the deciding curve is shown at first; the others are a click away
function hideSideCurves(runs) {
  if (runs.length < 3) return;
  runs.forEach((run, slot) => {
    for (const curve of run.validation) if (curve !== judge(run)) view.hidden.add(`run/${slot}/${curve.split}/${curve.weights}`);
  });
}

function verdict(run, runs) {
  const curve = judge(run);
  const who = runs.length > 1 ? `${run.name}: ` : "";
  if (!curve) return run.validation.length ? note(`${who}no held-out losses, so overfitting cannot be seen.`) : note(`${who}no validation.jsonl: nothing was held out, so overfitting cannot be seen.`);
  const means = curve.table.mean;
  const at = least(curve);
  const last = means.length - 1;
  const what = `the held-out loss of the ${weightsName(curve.weights)} weights`;
  if (at === last) return note(`${who}${what} is lowest at the newest step, ${count(curve.table.step[last])} (${value(means[last])}): no overfitting so far.`);
  const rise = ((means[last] / means[at] - 1) * 100).toPrecision(2);
  return note(`${who}${what} was lowest at step ${count(curve.table.step[at])} (${value(means[at])}) and is ${Number(rise)} % higher at the newest, ${count(curve.table.step[last])}.`);
}

function validationSection(runs) {
  const told = runs.filter((run) => run.validation.length);
  if (!told.length) return section("validation", "Validation", note("No validation.jsonl: nothing was held out, so overfitting cannot be seen here."));
  const marks = () =>
    runs.flatMap((run, slot) => {
      const curve = judge(run);
      if (!curve) return [];
      const at = least(curve);
      const key = `run/${slot}/${curve.split}/${curve.weights}`;
      return [{ key, run: `run/${slot}`, slot: runs.length > 1 ? slot : 0, x: curve.table[view.x][at], y: curve.table.mean[at], text: runs.length > 3 ? "" : `lowest, step ${count(curve.table.step[at])}` }];
    });
  const over = new Chart({
    title: "Validation loss on fixed noise: held out against trained on, raw against EMA",
    logY: () => view.logLoss,
    marks,
    series: () => validationSeries(runs, (curve) => ({ x: curve.table[view.x], y: curve.table.mean, dots: curve.table.step.length < 40 })),
  });
  const by = new Chart({
    title: "Validation loss by noise level, newest",
    own: SIGMA_AXIS,
    logY: () => true,
    series: () => validationSeries(runs, (curve) => ({ x: curve.latest.sigmas, y: curve.latest.loss })),
  });
  const counts = [...new Set(told.flatMap((run) => run.validation.map((curve) => `${runs.length > 1 ? `${run.name}, ` : ""}${curve.split}: ${count(curve.n)} pictures`)))];
  return section("validation", "Validation", over.figure, runs.map((run) => verdict(run, runs)), by.figure, make("p", { class: "faint" }, counts.join("; "), "."));
}
