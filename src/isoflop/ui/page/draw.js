// Figures: the report's charts as SVG. A chart is {title, caption, absent, panels: [{x, y, series}]}, drawn to the width
// there is; hovering, touching or the arrow keys tell the nearest point.

const SVG = "http://www.w3.org/2000/svg";
const RAISED = "⁰¹²³⁴⁵⁶⁷⁸⁹";
const EDGE = { left: 66, right: 14, top: 10, bottom: 44 };
const DASHES = { solid: "", dash: "7 5", dot: "2 4" };

export function draw(figure, chart) {
  const title = element("h2", {}, chart.title);
  if (!chart.panels.length) {
    figure.replaceChildren(title, element("p", { class: "absent" }, chart.absent));
    return;
  }
  const plots = chart.panels.map((panel) => plotOf(figure, panel, chart));
  figure.replaceChildren(title, ...plots.flat(), element("figcaption", {}, chart.caption));
}

function plotOf(figure, panel, chart) {
  const style = getComputedStyle(figure);
  const width = Math.max(240, figure.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight));
  const height = Math.round(Math.min(380, Math.max(260, width * 0.5)));
  const label = `${chart.title}. ${chart.caption} Arrow keys go from point to point.`;
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", tabindex: 0, "aria-label": label });
  const x = scale(panel.x, panel.series.flatMap((s) => s.x), EDGE.left, width - EDGE.right, 0.01);
  const y = scale(panel.y, panel.series.flatMap(heights), height - EDGE.bottom, EDGE.top, 0.04);
  axes(svg, x, y, width, height);
  for (const one of panel.series) svg.append(...marks(one, x, y));
  const plot = element("div", { class: "plot" });
  plot.append(svg);
  follow(plot, svg, points(panel, x, y), width);
  return [legend(panel), plot];
}

const heights = (series) => [...series.y, ...(series.low ?? []), ...(series.high ?? [])];

function scale(axis, values, from, to, room) {
  const go = axis.log ? Math.log10 : (v) => v;
  const known = values.filter((v) => Number.isFinite(v) && (!axis.log || v > 0)).map(go);
  let low = Math.min(...known), high = Math.max(...known);
  const more = (high - low || 1) * room;
  low -= more; high += more;
  const at = (v) => from + ((go(v) - low) / (high - low)) * (to - from);
  return { axis, at, ticks: ticks(axis, low, high, Math.abs(to - from)) };
}

function ticks(axis, low, high, length) {
  if (!axis.log) return straight(low, high, length / 55);
  const room = length / (axis.unit === "power" ? 34 : 50);
  const span = high - low;
  for (const digits of [[1, 1.5, 2, 3, 4, 5, 6, 8], [1, 2, 5], [1, 3], [1]]) {
    const found = [];
    for (let d = Math.floor(low); d <= Math.ceil(high); d++)
      for (const digit of digits) {
        const place = d + Math.log10(digit);
        if (place >= low && place <= high) found.push(digit * 10 ** d);
      }
    if (found.length <= room && (span > 0.4 || found.length > 1)) return found;
  }
  const step = Math.ceil(span / room);
  return Array.from({ length: Math.floor(span / step) + 1 }, (_, i) => 10 ** (Math.ceil(low) + i * step));
}

function straight(low, high, count) {
  const rough = (high - low) / Math.max(2, count), power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((f) => f * power).find((s) => s >= rough);
  const first = Math.ceil(low / step);
  return Array.from({ length: Math.floor(high / step) - first + 1 }, (_, i) => +((first + i) * step).toPrecision(12));
}

export function short(value) {
  for (const [size, suffix] of [[1e15, "Q"], [1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]])
    if (value >= 0.9995 * size) return +(value / size).toPrecision(3) + suffix;
  return String(+value.toPrecision(4));
}

function raised(value) {
  const [digits, exponent] = value.toExponential(1).split("e+");
  if (exponent === undefined) return String(+value.toPrecision(3));
  const ten = "10" + [...exponent].map((c) => RAISED[+c]).join("");
  const digit = digits.replace(".0", "");
  return digit === "1" ? ten : `${digit}·${ten}`;
}

const told = (axis, value) => (axis.unit === "power" ? raised(value) : axis.unit === "short" ? short(value) : String(value));

function axes(svg, x, y, width, height) {
  const bottom = height - EDGE.bottom;
  for (const tick of y.ticks) {
    const at = y.at(tick);
    svg.append(shape("line", { class: "grid", x1: EDGE.left, x2: width - EDGE.right, y1: at, y2: at }));
    svg.append(shape("text", { x: EDGE.left - 8, y: at + 4, "text-anchor": "end" }, told(y.axis, tick)));
  }
  for (const tick of x.ticks) {
    const at = x.at(tick);
    svg.append(shape("line", { class: "grid", x1: at, x2: at, y1: EDGE.top, y2: bottom }));
    svg.append(shape("text", { x: at, y: bottom + 17, "text-anchor": "middle" }, told(x.axis, tick)));
  }
  svg.append(shape("line", { class: "axis", x1: EDGE.left, x2: width - EDGE.right, y1: bottom, y2: bottom }));
  const middle = (EDGE.left + width - EDGE.right) / 2, centre = (EDGE.top + bottom) / 2;
  svg.append(shape("text", { class: "title", x: middle, y: height - 6, "text-anchor": "middle" }, x.axis.title));
  const turned = { class: "title", transform: `translate(13 ${centre}) rotate(-90)`, "text-anchor": "middle" };
  svg.append(shape("text", turned, y.axis.title));
}

function marks(one, x, y) {
  const line = (values) => one.x.map((v, i) => `${x.at(v).toFixed(1)} ${y.at(values[i]).toFixed(1)}`);
  if (one.kind === "band") {
    const around = [...line(one.high), ...line(one.low).reverse()].join("L");
    return [shape("path", { d: `M${around}Z`, fill: one.colour, "fill-opacity": 0.16 })];
  }
  const found = [];
  if (one.kind.includes("line")) {
    const stroke = { stroke: one.colour, "stroke-width": one.width, "stroke-dasharray": DASHES[one.dash] };
    const soft = one.width > 4 ? { "stroke-opacity": 0.55, "stroke-linecap": "round" } : {};
    found.push(shape("path", { d: "M" + line(one.y).join("L"), fill: "none", "stroke-linejoin": "round", ...stroke, ...soft }));
  }
  if (one.kind.includes("points")) one.x.forEach((v, i) => found.push(symbol(one, x.at(v), y.at(one.y[i]))));
  return found;
}

function symbol(one, x, y) {
  const r = one.size / 2, colour = one.colour;
  if (one.symbol === "diamond") {
    const d = `M${x} ${y - r - 2}L${x + r + 2} ${y}L${x} ${y + r + 2}L${x - r - 2} ${y}Z`;
    return shape("path", { d, class: "open", stroke: colour, "stroke-width": 3, "stroke-linejoin": "round" });
  }
  const open = one.symbol === "circle-open";
  const look = open ? { class: "open", stroke: colour, "stroke-width": 2.5 } : { fill: colour };
  return shape("circle", { cx: x, cy: y, r: open ? r + 1 : r, ...look });
}

function legend(panel) {
  const list = element("ul", { class: "legend" });
  for (const one of panel.series.filter((s) => s.name).reverse()) {
    const item = element("li", {}), key = shape("svg", { viewBox: "0 0 24 12", "aria-hidden": "true" });
    const fake = { ...one, x: [2, 22], y: [6, 6] }, same = { at: (v) => v };
    if (one.kind.includes("line")) key.append(...marks({ ...fake, kind: "line" }, same, same));
    if (one.kind.includes("points")) key.append(symbol({ ...one, size: 6 }, 12, 6));
    item.append(key, one.name);
    list.append(item);
  }
  return list;
}

function points(panel, x, y) {
  const noted = panel.series.filter((one) => one.notes.length);
  const all = noted.flatMap((one) => one.x.map((v, i) => ({ x: x.at(v), y: y.at(one.y[i]), note: one.notes[i] ?? one.notes[0] })));
  return all.sort((a, b) => a.x - b.x);
}

// The nearest point: of the pointer, or the one that the arrow keys have come to.
function follow(plot, svg, all, width) {
  const tip = element("div", { class: "tip", role: "status" });
  const ring = shape("circle", { class: "cursor", r: 6, visibility: "hidden" });
  tip.hidden = true;
  svg.append(ring);
  plot.append(tip);
  let current = -1;
  const show = (index) => {
    current = index;
    tip.hidden = index < 0;
    ring.setAttribute("visibility", index < 0 ? "hidden" : "visible");
    if (index < 0) return;
    const { x, y, note } = all[index];
    ring.setAttribute("cx", x); ring.setAttribute("cy", y);
    tip.textContent = note;
    const right = x > width / 2;
    tip.style.left = right ? "auto" : `${x + 12}px`;
    tip.style.right = right ? `${width - x + 12}px` : "auto";
    tip.style.top = `${Math.max(0, y - 34)}px`;
  };
  const near = (event) => {
    const box = svg.getBoundingClientRect(), ratio = width / box.width;
    const px = (event.clientX - box.left) * ratio, py = (event.clientY - box.top) * ratio;
    const far = all.map((p) => Math.hypot(p.x - px, p.y - py));
    const best = far.indexOf(Math.min(...far));
    show(far[best] < 60 ? best : -1);
  };
  svg.addEventListener("pointermove", near);
  svg.addEventListener("pointerdown", near);
  svg.addEventListener("pointerleave", () => show(-1));
  svg.addEventListener("blur", () => show(-1));
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape") show(-1);
    if (!step || !all.length) return;
    event.preventDefault();
    show(current < 0 ? (step > 0 ? 0 : all.length - 1) : Math.min(all.length - 1, Math.max(0, current + step)));
  });
}

function shape(name, attributes, text) { return filled(document.createElementNS(SVG, name), attributes, text); }
function element(name, attributes, text) { return filled(document.createElement(name), attributes, text); }
function filled(made, attributes, text) {
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}
