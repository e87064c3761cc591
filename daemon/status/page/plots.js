// Owns one plot over steps: lines in an SVG with axes, a legend, and values under the pointer or by arrow keys.
// Whatever comes from a checkpoint is text or a number here; nothing is parsed as HTML.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 460, HEIGHT = 210, LEFT = 62, RIGHT = 12, TOP = 10, BOTTOM = 36;
const MOST_NAMED = 6; // lines that are named one by one; more are coloured by their depth

/** A number in three digits: 0.0213, 1.2e-5. */
export function digits(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size < 1e-3 || size >= 1e5 ? value.toExponential(2).replace(/\.?0+e/, "e") : String(Number(value.toPrecision(3)));
}

/** Element of HTML; `text` is text. */
export function make(tag, { text, ...attributes } = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  made.append(...children);
  return made;
}

function draw(parent, tag, attributes, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

/** Round values between two others, about `count` of them. */
function ticks(low, high, count, whole = false) {
  const raw = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(raw));
  let step = power * [1, 2, 5, 10].find((factor) => factor * power >= raw * 0.999);
  if (whole) step = Math.max(1, Math.round(step));
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-9; at += step) found.push(Number(at.toPrecision(12)));
  return found;
}

function powers(low, high, factors) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
    for (const factor of factors) {
      const at = Number(`${factor}e${power}`);
      if (at >= low * 0.999 && at <= high * 1.001) found.push(at);
    }
  }
  return found.length > 7 ? found.filter((_, place) => place % Math.ceil(found.length / 6) === 0) : found;
}

/** The y axis: limits, ticks, and where a value lies (0 below, 1 above). */
function scale(values, isLog, fromZero) {
  let low = Math.min(...values), high = Math.max(...values);
  if (isLog) {
    const room = Math.max(1.15, (high / low) ** 0.06);
    low /= room;
    high *= room;
    const found = [powers(low, high, [1]), powers(low, high, [1, 2, 5]), ticks(low, high, 4)];
    return { ticks: found.find((one) => one.length > 2) ?? found[2], place: (value) => Math.log(value / low) / Math.log(high / low) };
  }
  if (fromZero && high === 0) return { ticks: [0], place: () => 0 };
  const room = (high - low || Math.abs(high) || 1) * 0.08;
  if (fromZero) low = 0;
  else low = low >= 0 && low < room * 2 ? 0 : low - room;
  high += room;
  return { ticks: ticks(low, high, 4), place: (value) => (value - low) / (high - low) };
}

function colour(place, count) {
  if (count <= 4) return `var(--c${place})`;
  return `hsl(${Math.round(215 + (175 * place) / (count - 1)) % 360} var(--depth-full) var(--depth-light))`;
}

/**
 * A figure of `series` ({name, values}) over `steps` (ascending). A value may be null. `say(place, line)` is more about
 * one value, `about(place)` about a step; `axis` names the y axis, `note` stands below the title.
 */
export function plot({ title, note = "", axis, steps, series, isLog = false, fromZero = false, say = () => "", about = () => "" }) {
  const figure = make("figure", {}, make("h3", { text: title }), make("p", { class: "quiet", text: note }));
  const lines = series.map((one) => ({ ...one, values: one.values.map((v) => (v === null || (isLog && v <= 0) ? null : v)) }));
  const values = lines.flatMap((one) => one.values.filter((v) => v !== null));
  if (!values.length) {
    figure.append(make("p", { class: "quiet", text: "nothing to show yet" }));
    return figure;
  }
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  svg.setAttribute("tabindex", "0");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `${title}, ${steps.length} steps; arrow keys read values`);
  const y = scale(values, isLog, fromZero);
  const first = steps[0], last = steps[steps.length - 1], span = last - first || 2;
  const start = last > first ? first : first - 1;
  const right = WIDTH - RIGHT, bottom = HEIGHT - BOTTOM;
  const atX = (step) => LEFT + ((step - start) / span) * (right - LEFT);
  const atY = (value) => bottom - y.place(value) * (bottom - TOP);

  for (const tick of y.ticks) {
    draw(svg, "line", { class: "grid", x1: LEFT, x2: right, y1: atY(tick), y2: atY(tick) });
    draw(svg, "text", { x: LEFT - 6, y: atY(tick) + 4, "text-anchor": "end" }, digits(tick));
  }
  for (const tick of last > first ? ticks(first, last, 5, true) : [first]) {
    draw(svg, "line", { class: "axis", x1: atX(tick), x2: atX(tick), y1: bottom, y2: bottom + 4 });
    draw(svg, "text", { x: atX(tick), y: bottom + 16, "text-anchor": "middle" }, tick.toLocaleString("en"));
  }
  draw(svg, "line", { class: "axis", x1: LEFT, x2: right, y1: bottom, y2: bottom });
  draw(svg, "text", { x: (LEFT + right) / 2, y: HEIGHT - 4, "text-anchor": "middle" }, "step");
  draw(svg, "text", { x: 10, y: (TOP + bottom) / 2, "text-anchor": "middle", transform: `rotate(-90 10 ${(TOP + bottom) / 2})` }, axis);

  lines.forEach((one, place) => {
    let path = "", drawn = false;
    one.values.forEach((value, at) => {
      if (value !== null) path += `${drawn ? "L" : "M"}${atX(steps[at]).toFixed(1)} ${atY(value).toFixed(1)}`;
      drawn = value !== null;
    });
    draw(svg, "path", { class: "curve", d: path }).style.stroke = colour(place, lines.length);
    if (steps.length > 40) return;
    one.values.forEach((value, at) => {
      if (value === null) return;
      draw(svg, "circle", { r: 2.2, cx: atX(steps[at]), cy: atY(value) }).style.fill = colour(place, lines.length);
    });
  });
  figure.append(svg, legend(lines), reading(svg, { steps, lines, atX, atY, bottom, say, about }));
  return figure;
}

function legend(lines) {
  const shown = make("div", { class: "legend" });
  if (lines.length <= MOST_NAMED) {
    lines.forEach((one, place) => {
      const swatch = make("i");
      swatch.style.background = colour(place, lines.length);
      shown.append(make("span", {}, swatch, one.name));
    });
    return shown;
  }
  const ramp = make("span", { class: "ramp" });
  for (let part = 0; part < 16; part += 1) {
    const swatch = make("i");
    swatch.style.background = colour(Math.round((part * (lines.length - 1)) / 15), lines.length);
    ramp.append(swatch);
  }
  shown.append(lines[0].name, ramp, lines[lines.length - 1].name);
  return shown;
}

/** The values of one step, for pointer and arrow keys. */
function reading(svg, { steps, lines, atX, atY, bottom, say, about }) {
  const output = make("output", { class: lines.length > 2 ? "reading long" : "reading" });
  const here = draw(svg, "line", { class: "here", y1: TOP, y2: bottom, visibility: "hidden" });
  const dot = draw(svg, "circle", { class: "dot", r: 4, visibility: "hidden" });
  let at = -1, line = 0;

  function clear() {
    at = -1;
    output.textContent = "";
    for (const mark of [here, dot]) mark.setAttribute("visibility", "hidden");
  }

  function show() {
    const value = lines[line].values[at];
    here.setAttribute("visibility", "visible");
    here.setAttribute("x1", atX(steps[at]));
    here.setAttribute("x2", atX(steps[at]));
    dot.setAttribute("visibility", value === null ? "hidden" : "visible");
    if (value !== null) {
      dot.setAttribute("cx", atX(steps[at]));
      dot.setAttribute("cy", atY(value));
      dot.style.fill = colour(line, lines.length);
    }
    const told = lines.length <= 4 ? lines : [lines[line]];
    const parts = told.filter((one) => one.values[at] !== null).map((one) => `${one.name} ${digits(one.values[at])}${say(at, one)}`);
    output.textContent = `step ${steps[at].toLocaleString("en")}${about(at)}: ${parts.join(", ") || "no value"}`;
  }

  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), zoom = WIDTH / box.width;
    const x = (event.clientX - box.left) * zoom, y = (event.clientY - box.top) * zoom;
    const near = (places, to) => places.reduce((best, place, index) => (Math.abs(place - to) < Math.abs(places[best] - to) ? index : best), 0);
    at = near(steps.map(atX), x);
    line = near(lines.map((one) => (one.values[at] === null ? Infinity : atY(one.values[at]))), y);
    show();
  });
  svg.addEventListener("pointerleave", clear);
  svg.addEventListener("blur", clear);
  svg.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1], Home: [-Infinity, 0], End: [Infinity, 0] };
    if (event.key === "Escape") clear();
    if (!(event.key in moves)) return;
    event.preventDefault();
    const [along, across] = moves[event.key];
    at = at < 0 ? steps.length - 1 : Math.min(steps.length - 1, Math.max(0, at + along));
    line = Math.min(lines.length - 1, Math.max(0, line + across));
    show();
  });
  return output;
}
