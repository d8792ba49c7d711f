// One chart: curves over a common axis, a crosshair that reads them, a drag that zooms. Keys do what the pointer does.

// what all charts share; a change redraws them
const view = {
  x: "step",
  smoothing: 0,
  logLoss: false,
  zoom: null, // [low, high] of the common axis
  hidden: new Set(), // keys of series
  paper: false, // while it is printed
  charts: [],
  change(what) {
    Object.assign(view, what);
    for (const chart of view.charts) chart.redraw();
    document.dispatchEvent(new CustomEvent("viewchange"));
  },
};

const AXIS = { step: "step", images: "images seen", hours: "hours of training" };
let charts = 0;

class Chart {
  // title, unit: texts. series(): [{key, label, slot, dash, x, y, smooth, dots}], read anew at each drawing.
  // own: {label, log} of an x axis that is not the common one. logY(): whether y is logarithmic. marks(): [{x, y, text}].
  constructor(options) {
    this.options = options;
    this.ownZoom = null;
    this.cursor = null;
    this.number = charts++;
    this.plot = make("div", {
      class: "plot",
      tabindex: 0,
      role: "group",
      "aria-label": `${options.title}. Left and right arrow read the values, plus and minus zoom, 0 shows all.`,
    });
    this.said = make("div", { class: "unseen", "aria-live": "polite" });
    this.tip = make("div", { class: "tip", hidden: true });
    this.legend = make("div", { class: "legend" });
    this.figure = make(
      "figure",
      { class: options.small ? "chart small" : "chart", "data-chart": options.title },
      make("figcaption", {}, make("span", { class: "title" }, options.title), options.small ? "" : this.buttons()),
      this.plot,
      options.small ? "" : this.legend,
      this.said,
    );
    this.listen();
    view.charts.push(this);
    new ResizeObserver(() => this.resized()).observe(this.plot);
  }

  buttons() {
    const button = (text, label, act) =>
      make("button", { type: "button", "aria-label": `${label}: ${this.options.title}`, title: label, on: { click: act } }, text);
    return make(
      "span",
      { class: "buttons" },
      button("−", "Zoom out", () => this.zoomBy(2)),
      button("+", "Zoom in", () => this.zoomBy(0.5)),
      button("all", "Show all", () => this.setZoom(null)),
    );
  }

  get zoom() {
    return this.options.own ? this.ownZoom : view.zoom;
  }

  setZoom(zoom) {
    this.hide();
    if (!this.options.own) {
      view.change({ zoom });
      return;
    }
    this.ownZoom = zoom;
    this.redraw();
  }

  zoomBy(factor) {
    if (!this.x) return;
    const [low, high] = this.x.ends;
    const middle = this.cursor === null ? (low + high) / 2 : this.x.bend(this.cursor);
    const ends = [middle - (middle - low) * factor, middle + (high - middle) * factor];
    const full = this.full.map((end) => this.x.bend(end));
    const kept = [Math.max(ends[0], full[0]), Math.min(ends[1], full[1])];
    const all = kept[0] <= full[0] && kept[1] >= full[1];
    this.setZoom(all ? null : kept.map((end) => (this.x.log ? 10 ** end : end)));
  }

  // Drawing

  resized() {
    const width = this.plot.clientWidth;
    if (width && width !== this.width) this.redraw();
  }

  lines() {
    return this.options
      .series()
      .map((one) => {
        const keep = one.x.map((x, i) => x !== null && x !== undefined && one.y[i] !== undefined && (!this.options.own?.log || x > 0));
        const x = one.x.filter((_, i) => keep[i]);
        const raw = one.y.filter((_, i) => keep[i]);
        const width = one.smooth ? (view.smoothing / 100) * raw.length * 0.05 : 0;
        return { ...one, x, raw, y: smoothed(raw, width), isSmooth: width >= 0.5 };
      })
      .filter((one) => one.raw.some((y) => y !== null));
  }

  // pixels: on paper those of its columns, so that the letters keep their size
  room() {
    if (!view.paper) return this.plot.clientWidth || this.width || 640;
    if (this.options.small) return 220;
    const row = this.figure.closest(".two");
    const wide = !row || (row.lastElementChild === this.figure && row.children.length % 2 === 1); // the odd one has a row of its own
    return wide ? 680 : 330;
  }

  redraw() {
    const all = this.lines();
    this.shown = all.filter((one) => !view.hidden.has(one.key) && !view.hidden.has(one.run));
    this.width = this.room();
    const height = this.options.small ? 150 : Math.min(320, Math.max(210, this.width * 0.42));
    const log = Boolean(this.options.logY?.());
    const margin = { left: 54, right: 14, top: 10, bottom: this.options.small ? 22 : 38 };
    this.box = { ...margin, width: this.width, height, right: this.width - margin.right, bottom: height - margin.bottom };
    const root = draw("svg", { viewBox: `0 0 ${this.width} ${height}`, role: "img", "aria-label": this.options.title });
    if (this.scales(log)) this.paint(root);
    else root.append(draw("text", { x: this.width / 2, y: height / 2, class: "empty" }, all.length ? "all curves are hidden" : "nothing to show"));
    this.hide();
    this.plot.replaceChildren(root, this.tip);
    this.root = root;
    this.paintLegend(all);
  }

  // false where nothing is visible
  scales(log) {
    const xs = extent(this.shown.flatMap((one) => [one.x[0], one.x[one.x.length - 1]]));
    this.x = null;
    if (!xs) return false;
    this.full = xs[0] === xs[1] ? [xs[0] - 0.5, xs[1] + 0.5] : xs;
    const domain = this.zoom || this.full;
    const ys = [];
    for (const one of this.shown) {
      const inside = (list) => list.filter((_, i) => one.x[i] >= domain[0] && one.x[i] <= domain[1]);
      ys.push(...(extent(inside(one.y)) || []), ...(extent(inside(one.raw), one.isSmooth) || []));
    }
    const positive = ys.filter((y) => !log || y > 0);
    let [low, high] = extent(positive) || (log ? [0.1, 1] : [0, 1]);
    if (low === high) [low, high] = log ? [low / 2, high * 2] : [low - Math.abs(low || 1) * 0.1, high + Math.abs(high || 1) * 0.1];
    const pad = log ? (high / low) ** 0.05 : (high - low) * 0.06;
    const ends = log ? [low / pad, high * pad] : [low >= 0 ? Math.max(0, low - pad) : low - pad, high + pad];
    this.y = new Scale(ends, [this.box.bottom, this.box.top], log);
    this.yTicks = this.y.ticks(this.options.small ? 3 : 6);
    this.yTexts = tickTexts(this.yTicks);
    this.box.left = Math.max(this.box.left, 12 + 7 * Math.max(0, ...this.yTexts.map((text) => text.length))); // long labels need room
    this.x = new Scale(domain, [this.box.left, this.box.right], Boolean(this.options.own?.log));
    return true;
  }

  paint(root) {
    const { left, right, top, bottom } = this.box;
    const clip = `clip-${this.number}`;
    root.append(draw("defs", {}, draw("clipPath", { id: clip }, draw("rect", { x: left, y: top - 4, width: right - left, height: bottom - top + 8 }))));
    this.yTicks.forEach((tickAt, i) => {
      const y = this.y.pixel(tickAt);
      root.append(draw("line", { class: "grid", x1: left, x2: right, y1: y, y2: y }));
      root.append(draw("text", { class: "ytick", x: left - 6, y: y + 4 }, this.yTexts[i]));
    });
    const xTicks = this.x.ticks(Math.max(2, Math.floor((right - left) / 65)), !this.options.own && view.x !== "hours");
    const xTexts = tickTexts(xTicks);
    xTicks.forEach((tickAt, i) => {
      const x = this.x.pixel(tickAt);
      root.append(draw("line", { class: "grid", x1: x, x2: x, y1: top, y2: bottom }));
      root.append(draw("text", { class: "xtick", x, y: bottom + 15 }, xTexts[i]));
    });
    root.append(draw("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom }));
    if (!this.options.small) {
      const label = this.options.own ? this.options.own.label : AXIS[view.x];
      root.append(draw("text", { class: "xlabel", x: (left + right) / 2, y: bottom + 32 }, label));
    }
    const body = draw("g", { "clip-path": `url(#${clip})` });
    for (const one of this.shown) this.paintLine(body, one);
    for (const mark of this.options.marks?.() || []) this.paintMark(body, mark);
    this.cross = draw("g", { class: "cross" });
    this.band = draw("rect", { class: "band", y: top, height: bottom - top, x: left, width: 0 });
    root.append(body, this.band, this.cross);
  }

  path(one, ys) {
    let text = "";
    let pen = "M";
    one.x.forEach((x, i) => {
      if (ys[i] === null || (this.y.log && ys[i] <= 0)) {
        pen = "M";
        return;
      }
      text += `${pen}${this.x.pixel(x).toFixed(1)} ${this.y.pixel(ys[i]).toFixed(1)}`;
      pen = "L";
    });
    return text;
  }

  paintLine(body, one) {
    const dash = `s${one.slot % 8} d${(one.dash || 0) % 4}`;
    if (one.isSmooth) body.append(draw("path", { class: `line raw s${one.slot % 8}`, d: this.path(one, one.raw) }));
    body.append(draw("path", { class: `line ${dash}`, d: this.path(one, one.y) }));
    const there = (i) => i >= 0 && i < one.x.length && one.raw[i] !== null && !(this.y.log && one.raw[i] <= 0);
    one.x.forEach((x, i) => {
      const alone = !there(i - 1) && !there(i + 1); // no line leads to it
      if (there(i) && (one.dots || alone)) body.append(draw("circle", { class: `dot s${one.slot % 8}`, cx: this.x.pixel(x), cy: this.y.pixel(one.raw[i]), r: 3.5 }));
    });
  }

  paintMark(body, mark) {
    if (view.hidden.has(mark.key) || view.hidden.has(mark.run) || mark.x === null) return;
    const x = this.x.pixel(mark.x);
    const y = this.y.pixel(mark.y);
    const end = x > (this.box.left + this.box.right) / 2;
    body.append(draw("circle", { class: `mark s${mark.slot % 8}`, cx: x, cy: y, r: 6 }));
    body.append(draw("text", { class: `marktext${end ? " end" : ""}`, x: x + (end ? -9 : 9), y: Math.min(y + 16, this.box.bottom - 4) }, mark.text));
  }

  paintLegend(all) {
    if (this.options.small || all.length < 2) {
      this.legend.replaceChildren();
      return;
    }
    const focused = this.legend.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    const offered = all.filter((one) => one.key === one.run || !view.hidden.has(one.run));
    this.legend.replaceChildren(...offered.map((one) => legendButton(one)));
    if (focused !== null) [...this.legend.children].find((button) => button.dataset.key === focused)?.focus();
  }

  // Reading

  listen() {
    const plot = this.plot;
    let from = null;
    const at = (event) => {
      const frame = this.root.getBoundingClientRect();
      return ((event.clientX - frame.left) / frame.width) * this.width;
    };
    plot.addEventListener("pointermove", (event) => {
      if (!this.x) return;
      if (from !== null) {
        const [low, high] = [from, this.clamp(at(event))].sort((a, b) => a - b);
        this.band.setAttribute("x", low);
        this.band.setAttribute("width", high - low);
      }
      this.read(this.x.value(this.clamp(at(event))));
    });
    plot.addEventListener("pointerdown", (event) => {
      if (!this.x || event.button !== 0) return;
      if (event.pointerType === "touch") {
        this.read(this.x.value(this.clamp(at(event)))); // a finger reads; the buttons zoom
        return;
      }
      from = this.clamp(at(event));
      plot.setPointerCapture(event.pointerId);
    });
    plot.addEventListener("pointerup", (event) => {
      if (from === null) return;
      const ends = [from, this.clamp(at(event))].sort((a, b) => a - b);
      from = null;
      if (ends[1] - ends[0] > 6) this.setZoom(ends.map((end) => this.x.value(end)));
    });
    plot.addEventListener("pointercancel", () => (from = null));
    plot.addEventListener("pointerleave", (event) => from === null && event.pointerType !== "touch" && this.hide());
    plot.addEventListener("blur", () => this.hide());
    plot.addEventListener("dblclick", () => this.setZoom(null));
    plot.addEventListener("keydown", (event) => this.key(event));
  }

  clamp(pixel) {
    return Math.min(this.box.right, Math.max(this.box.left, pixel));
  }

  key(event) {
    if (!this.x || event.ctrlKey || event.metaKey || event.altKey) return;
    const steps = { ArrowLeft: -1, ArrowRight: 1, PageUp: -20, PageDown: 20 };
    if (event.key in steps) this.walk(steps[event.key]);
    else if (event.key === "+" || event.key === "=") this.zoomBy(0.5);
    else if (event.key === "-") this.zoomBy(2);
    else if (event.key === "0" || event.key === "Escape") this.setZoom(null);
    else return;
    event.preventDefault();
  }

  walk(by) {
    const [low, high] = this.x.domain;
    const stops = [...new Set(this.shown.flatMap((one) => one.x))].filter((x) => x >= low && x <= high).sort((a, b) => a - b);
    if (!stops.length) return;
    const here = this.cursor === null ? (by > 0 ? -1 : stops.length) : nearest(stops, this.cursor);
    this.read(stops[Math.min(stops.length - 1, Math.max(0, here + by))]);
    this.said.textContent = this.tip.innerText.replace(/\n+/g, ", ");
  }

  // shows the values at the point of a visible curve that is nearest to x
  read(x) {
    const [low, high] = this.x.domain;
    const inside = this.shown.map((one) => ({ one, at: nearest(one.x, x) }));
    const near = inside.map(({ one, at }) => one.x[at]).filter((point) => point >= low && point <= high);
    if (!near.length) return;
    const bent = this.x.bend(x);
    const point = near.reduce((best, each) => (Math.abs(this.x.bend(each) - bent) < Math.abs(this.x.bend(best) - bent) ? each : best));
    this.cursor = point;
    const pixel = this.x.pixel(point);
    this.cross.replaceChildren(draw("line", { x1: pixel, x2: pixel, y1: this.box.top, y2: this.box.bottom }));
    const label = this.options.own ? this.options.own.label : AXIS[view.x];
    const rows = [make("div", { class: "tiphead" }, `${label} ${view.x === "hours" || this.options.own ? value(point) : count(point)}`)];
    for (const one of this.shown) {
      const at = nearest(one.x, point);
      const spacing = one.x.length > 1 ? (one.x[one.x.length - 1] - one.x[0]) / (one.x.length - 1) : Infinity;
      if (Math.abs(one.x[at] - point) > spacing && !this.options.own) continue; // this curve does not reach here
      if (one.raw[at] === null) continue;
      const y = this.y.pixel(one.y[at]);
      if (y >= this.box.top - 4 && y <= this.box.bottom + 4) this.cross.append(draw("circle", { class: `dot s${one.slot % 8}`, cx: this.x.pixel(one.x[at]), cy: y, r: 4 }));
      rows.push(this.row(one, at));
    }
    this.tip.replaceChildren(...rows);
    this.tip.hidden = false;
    const scale = this.plot.clientWidth / this.width;
    const left = pixel * scale;
    const room = this.plot.clientWidth - this.tip.offsetWidth;
    this.tip.style.left = `${Math.max(0, Math.min(room, left > this.plot.clientWidth / 2 ? left - this.tip.offsetWidth - 12 : left + 12))}px`;
  }

  row(one, at) {
    const smooth = one.isSmooth ? make("span", { class: "faint" }, ` smoothed ${value(one.y[at])}`) : "";
    return make("div", { class: "tiprow" }, swatch(one), make("span", { class: "tiplabel" }, one.label), make("b", {}, value(one.raw[at])), smooth);
  }

  hide() {
    this.cursor = null;
    this.tip.hidden = true;
    this.cross?.replaceChildren();
    this.band?.setAttribute("width", 0);
  }
}

// of a run: the ninth has the colour of the first, and other dashes
function dashOf(slot) {
  return slot + Math.floor(slot / 8);
}

function swatch(one) {
  const line = draw("line", { class: `line s${one.slot % 8} d${(one.dash || 0) % 4}`, x1: 1, x2: 23, y1: 6, y2: 6 });
  return draw("svg", { class: "swatch", viewBox: "0 0 24 12", "aria-hidden": "true" }, line);
}

function legendButton(one) {
  const on = !view.hidden.has(one.key);
  const toggle = () => {
    if (on) view.hidden.add(one.key);
    else view.hidden.delete(one.key);
    view.change({});
  };
  return make("button", { type: "button", "aria-pressed": String(on), "data-key": one.key, on: { click: toggle } }, swatch(one), one.label);
}
