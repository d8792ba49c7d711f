// Elements and texts. Whatever comes from a run enters the page as text, never as markup.

const SVG_SPACE = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name === "on") {
      for (const [event, act] of Object.entries(value)) node.addEventListener(event, act);
    } else if (value === true) {
      node.setAttribute(name, "");
    } else if (value !== false && value !== null && value !== undefined) {
      node.setAttribute(name, String(value));
    }
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== "") node.append(child);
  }
  return node;
}

function make(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function draw(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG_SPACE, tag), attributes, children);
}

function count(value) {
  return value === null || value === undefined ? "–" : Math.round(value).toLocaleString("en-US");
}

// a measured value: four digits, the power of ten where it is far from 1
function value(number) {
  if (number === null || number === undefined) return "–";
  const size = Math.abs(number);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) return number.toExponential(3).replace("e+", "e");
  if (size >= 1e4) return Math.round(number).toLocaleString("en-US");
  return String(Number(number.toPrecision(4)));
}

// a label of an axis, in so many digits: as short as it goes
function tick(number, digits) {
  const size = Math.abs(number);
  if (size >= 1e6) return `${Number((number / 1e6).toPrecision(digits))}M`;
  if (size >= 1e4 || (size >= 1e3 && number % 100 === 0)) return `${Number((number / 1e3).toPrecision(digits))}k`;
  if (size !== 0 && size < 1e-3) return number.toExponential(digits - 3).replace(/\.?0*e/, "e");
  return String(Number(number.toPrecision(digits)));
}

// the labels of an axis: as many digits as it takes to tell them apart
function tickTexts(numbers) {
  for (let digits = 4; digits < 15; digits += 1) {
    const texts = numbers.map((number) => tick(number, digits));
    if (new Set(texts).size === texts.length) return texts;
  }
  return numbers.map(String);
}

function duration(seconds) {
  if (seconds === null || seconds === undefined) return null;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours} h ${minutes % 60} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

function bytes(size) {
  return size >= 1e6 ? `${(size / 1e6).toFixed(1)} MB` : `${Math.max(1, Math.round(size / 1e3))} kB`;
}

function weightsName(name) {
  return name.replace(/^ema/, "EMA");
}
