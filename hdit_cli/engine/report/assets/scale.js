// From values to pixels, the ticks between, and smoothing.

class Scale {
  // domain [low, high] to pixels [from, to]; log: both ends above 0
  constructor(domain, range, log) {
    this.domain = domain;
    this.range = range;
    this.log = log;
    this.ends = domain.map((end) => this.bend(end));
  }

  bend(number) {
    return this.log ? Math.log10(number) : number;
  }

  pixel(number) {
    const [low, high] = this.ends;
    const part = high === low ? 0.5 : (this.bend(number) - low) / (high - low);
    return this.range[0] + part * (this.range[1] - this.range[0]);
  }

  value(pixel) {
    const [low, high] = this.ends;
    const bent = low + ((pixel - this.range[0]) / (this.range[1] - this.range[0])) * (high - low);
    return this.log ? 10 ** bent : bent;
  }

  // whole: between whole numbers there is nothing
  ticks(wanted, whole) {
    return this.log ? logTicks(this.domain, wanted) : linearTicks(this.domain, wanted, whole);
  }
}

function linearTicks([low, high], wanted, whole) {
  const rough = (high - low) / Math.max(1, wanted);
  if (!(rough > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(rough));
  const nice = power * ([1, 2, 5].find((factor) => factor * power >= rough * 0.8) || 10);
  const step = whole ? Math.max(1, nice) : nice;
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1) ticks.push(Number((i * step).toPrecision(12)));
  return [...new Set(ticks)];
}

function logTicks([low, high], wanted) {
  const decades = Math.log10(high / low);
  if (decades < 0.7) return linearTicks([low, high], wanted);
  const factors = decades < 1.5 ? [1, 2, 3, 5] : decades < 3 ? [1, 3] : [1];
  const every = decades < 3 ? 1 : Math.max(1, Math.round(decades / wanted));
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) {
    if (power % every) continue;
    for (const factor of factors) {
      const tick = factor * 10 ** power;
      if (tick >= low * 0.9999 && tick <= high * 1.0001) ticks.push(Number(tick.toPrecision(6)));
    }
  }
  return ticks;
}

// mean of the points around each one, weighted by a Gaussian of that many points; gaps stay gaps
function smoothed(values, width) {
  if (width < 0.5) return values;
  const reach = Math.ceil(3 * width);
  const weights = Array.from({ length: reach + 1 }, (_, i) => Math.exp(-0.5 * (i / width) ** 2));
  return values.map((own, at) => {
    if (own === null) return null;
    let sum = 0;
    let total = 0;
    for (let i = Math.max(0, at - reach); i <= Math.min(values.length - 1, at + reach); i += 1) {
      if (values[i] === null) continue;
      const weight = weights[Math.abs(i - at)];
      sum += weight * values[i];
      total += weight;
    }
    return sum / total;
  });
}

// lowest and highest; of many values without the outermost hundredth on each side
function extent(values, trim) {
  const sorted = values.filter((each) => each !== null).sort((a, b) => a - b);
  if (!sorted.length) return null;
  const cut = trim && sorted.length > 200 ? Math.floor(sorted.length / 100) : 0;
  return [sorted[cut], sorted[sorted.length - 1 - cut]];
}

// index of the entry of an ascending list that is nearest to a number
function nearest(list, number) {
  let low = 0;
  let high = list.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (list[middle] < number) low = middle;
    else high = middle;
  }
  return Math.abs(list[low] - number) <= Math.abs(list[high] - number) ? low : high;
}
