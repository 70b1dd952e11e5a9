// The page: controls <-> the address <-> the answer. The address's query holds the options of `isoflop plan` by their
// names, and nothing else is kept.
import { draw, short } from "/page/draw.js";

const DEBOUNCE_MS = 60;
const GOALS = {
  flops: ["Training FLOPs", 1e18, 1e27, "5.76e23"],
  "accelerator-hours": ["Device hours", 1e2, 1e8, "1e6"],
  dollars: ["Dollars", 1e2, 1e9, "2e6"],
  deadline: ["Days", 1, 365, "30"],
  "quality-of": ["Parameters", 1e8, 1e12, "7e10"],
  "target-loss": ["Loss", 1.7, 4, "2"],
};
const COLUMNS = ["n", "d", "loss"];
const $ = (id) => document.getElementById(id);
const SECTIONS = ["facts", "candidates", "points", "levers", "memory", "serving", "reasons", "built"];
const fields = [...document.querySelectorAll("#controls .field[data-flag]")].filter((f) => f.dataset.flag !== "goal");
let extra = []; // columns of a table of runs, which no control shows
let asking = null, timer = 0, gesture = null, answer = null;

// --- numbers and sliders

function numberOf(text) {
  const plain = text.trim().replaceAll(/[,_\s]/g, "");
  const found = /^([\d.]+(?:e[+-]?\d+)?)([kMBTQ])$/i.exec(plain);
  if (!found) return plain;
  const size = { k: 1e3, m: 1e6, b: 1e9, t: 1e12, q: 1e15 }[found[2].toLowerCase()];
  return written(+found[1] * size);
}

function written(value) {
  const digits = +value.toPrecision(6);
  return (digits >= 1e6 ? digits.toExponential() : String(digits)).replace("e+", "e");
}

// A slider goes from 0 to 1000 over its range, in logarithms; one end may stand for "none".
function valueOf(slider) {
  const { low, high, scale, none } = slider.range, part = slider.value / 1000;
  if ((none === "low" && part === 0) || (none === "high" && part === 1)) return "";
  if (scale === "linear") return String(+(low + part * (high - low)).toFixed(3));
  const value = low * (high / low) ** part;
  return scale === "two" ? String(2 ** Math.round(Math.log2(value))) : written(+value.toPrecision(3));
}

function setSlider(slider, text) {
  const { low, high, scale, none, usual } = slider.range, value = parseFloat(numberOf(text) || usual);
  const end = none === "high" ? 1000 : 0;
  const log = scale === "linear" ? (value - low) / (high - low) : Math.log(value / low) / Math.log(high / low);
  slider.value = Number.isFinite(log) ? 1000 * log : end;
  slider.setAttribute("aria-valuetext", text === "" && none ? "none" : short(value) || text);
}

for (const field of fields) {
  const { scale, low, high, none, default: usual } = field.dataset, slider = field.querySelector("[type=range]");
  if (!slider) continue;
  slider.range = { low: +low, high: +high, scale, none, usual: usual ?? "" };
  slider.min = 0; slider.max = 1000;
  slider.step = scale === "two" ? 1000 / Math.log2(high / low) : 1000 / (Math.log10(high / low) * 50);
  slider.addEventListener("input", () => { entry(field).value = valueOf(slider); });
}

function entry(field) { return field.querySelector("input[type=text], select"); }

// --- controls from and to the options

function values(box) { return [...box.querySelectorAll("input")].map((input) => input.value); }
function checked(box) { return [...box.querySelectorAll("input:checked")].map((input) => input.value); }

function check(box, wanted) {
  for (const name of wanted) if (!values(box).includes(name)) box.append(checkbox(name));
  for (const input of box.querySelectorAll("input")) input.checked = wanted.includes(input.value);
}

function checkbox(name) {
  const label = document.createElement("label"), input = document.createElement("input"), text = document.createElement("span");
  input.type = "checkbox"; input.value = name; text.textContent = name;
  label.append(input, text);
  return label;
}

function setGoal(kind, amount) {
  const [label, low, high, usual] = GOALS[kind], slider = $("amount-slider");
  $("goal").value = kind;
  $("amount-label").textContent = label;
  slider.setAttribute("aria-label", `${label}, slider`);
  slider.range = { low, high, scale: kind === "target-loss" ? "linear" : "log", usual };
  slider.min = 0; slider.max = 1000; slider.step = 1;
  $("amount").value = amount ?? usual;
  setSlider(slider, $("amount").value);
}

function options() {
  const found = [[$("goal").value, numberOf($("amount").value)]];
  const laws = checked($("laws")), families = checked($("families"));
  if (laws.join() !== document.body.dataset.law) found.push(...(laws.length ? laws : [""]).map((law) => ["law", law]));
  if (families.join() !== document.body.dataset.families) found.push(["family", families.join()]);
  for (const field of fields) {
    const control = entry(field), text = control.value;
    const value = control.inputMode ? numberOf(text) : text.trim();
    if (value !== "") found.push([field.dataset.flag, value]);
  }
  return new URLSearchParams([...found, ...extra]);
}

function show(query) {
  const given = new URLSearchParams(query), kind = Object.keys(GOALS).find((name) => given.has(name)) ?? "flops";
  setGoal(kind, given.get(kind));
  const { families, law } = document.body.dataset;
  check($("families"), given.has("family") ? given.getAll("family").join().split(",").filter(Boolean) : families.split(","));
  check($("laws"), given.has("law") ? given.getAll("law").filter(Boolean) : [law]);
  for (const field of fields) {
    const slider = field.querySelector("[type=range]"), control = entry(field), value = given.get(field.dataset.flag) ?? "";
    if (control.tagName === "SELECT" && ![...control.options].some((o) => o.value === value)) control.add(new Option(value, value));
    control.value = value;
    if (slider) setSlider(slider, value);
  }
  extra = [...given].filter(([name]) => COLUMNS.includes(name));
  summaries();
}

function summaries() { $("laws-chosen").textContent = checked($("laws")).join(", ") || "none"; }

// --- asking

function changed(event) {
  const field = event.target.closest(".field");
  const slider = field?.querySelector("[type=range]");
  if (event.target === $("goal")) setGoal($("goal").value);
  else if (event.target === $("amount-slider")) $("amount").value = valueOf(event.target);
  if (event.target === $("another")) return;
  if (event.target === $("hardware")) equip(event.target.value !== "");
  if (slider) slider === event.target ? setSlider(slider, entry(field).value) : setSlider(slider, event.target.value);
  summaries();
  clearTimeout(timer);
  timer = setTimeout(() => settle(event.target), DEBOUNCE_MS);
}

// Hardware needs a number of devices, and what is said of devices needs hardware.
function equip(yes) {
  if (yes && $("devices").value) return;
  for (const id of ["devices", "price", "device-memory"]) $(id).value = yes && id === "devices" ? "512" : "";
  setSlider($("devices").closest(".field").querySelector("[type=range]"), $("devices").value);
}

function settle(target) {
  const address = "?" + options();
  if (address !== location.search) {
    history[gesture === target ? "replaceState" : "pushState"](null, "", address);
    gesture = target;
  }
  ask();
}

async function ask() {
  asking?.abort();
  const mine = (asking = new AbortController()), start = performance.now();
  $("decision").setAttribute("aria-busy", "true");
  try {
    const response = await fetch("/api/plan" + (location.search || "?" + options()), { signal: mine.signal });
    if (!response.ok) throw new Error(`it failed (${response.status}); the terminal it runs in says why`);
    const told = await response.json();
    render(told);
    // For whoever waits: which address the page now shows.
    document.body.dataset.answered = location.search || "?";
    $("timing").textContent = told.ms === undefined ? "" : `Answered in ${told.ms} ms, ${Math.round(performance.now() - start)} ms with the way here and the drawing.`;
  } catch (error) {
    if (error.name === "AbortError") return;
    stale(true);
    say(error instanceof TypeError ? "Nothing answers; is `isoflop ui` still running?" : `No answer: ${error.message}`, true);
  }
  if (asking === mine) $("decision").removeAttribute("aria-busy");
}

function render(told) {
  problems(told);
  $("command").textContent = told.command;
  if (told.kind === "answer") $("export").href = "/report.html" + (location.search || "?" + options());
  else $("export").removeAttribute("href");
  stale(told.kind !== "answer");
  if (told.kind !== "answer") {
    say(told.line, true);
    return;
  }
  answer = told;
  say(told.plan.sentence, false);
  document.title = `Isoflop: ${told.plan.sentence}`;
  for (const name of SECTIONS) put($(name), told.sections[name]);
  drawAll();
}

// Only what differs is replaced, so that what is open or focused stays so.
function put(box, html) {
  if (box.told === html) return;
  const open = box.querySelector("details")?.open, focused = box.contains(document.activeElement);
  box.told = html;
  box.innerHTML = html;
  if (open) box.querySelector("details")?.setAttribute("open", "");
  if (focused) box.querySelector("[tabindex], summary")?.focus();
}

function drawAll() {
  for (const figure of document.querySelectorAll("#panels figure")) {
    const chart = answer?.charts.find((one) => one.key === figure.id), focused = figure.contains(document.activeElement);
    figure.hidden = !chart;
    if (chart) draw(figure, chart);
    if (focused) figure.querySelector("svg[tabindex]")?.focus();
  }
}

function say(line, no) {
  const sentence = $("sentence");
  if (sentence.textContent !== line) sentence.textContent = line;
  sentence.classList.toggle("no", no);
}

function stale(yes) {
  for (const id of ["facts", "panels"]) $(id).classList.toggle("stale", yes && answer !== null);
}

function problems(told) {
  document.querySelectorAll(".problem").forEach((old) => old.remove());
  document.querySelectorAll("[aria-invalid]").forEach((old) => { old.removeAttribute("aria-invalid"); old.removeAttribute("aria-describedby"); });
  if (told.kind !== "wrong" || !told.flag) return;
  const flag = told.flag in GOALS ? "goal" : told.flag, place = document.querySelector(`#controls [data-flag="${flag}"]`);
  if (!place) return;
  const line = document.createElement("p");
  line.className = "problem"; line.id = "problem"; line.textContent = told.line;
  place.append(line);
  place.closest("details")?.setAttribute("open", "");
  const control = place.querySelector("input:not([type=range]), select");
  control.setAttribute("aria-invalid", "true");
  control.setAttribute("aria-describedby", "problem");
}

// --- events

const controls = $("controls");
controls.addEventListener("input", changed);
controls.addEventListener("change", (event) => {
  if (event.target !== $("another")) { setTimeout(() => { gesture = null; }, DEBOUNCE_MS + 1); return; }
  const name = event.target.value.trim();
  if (!name) return;
  check($("families"), [...checked($("families")), name]);
  event.target.value = "";
  settle(event.target);
});
controls.addEventListener("submit", (event) => event.preventDefault());
addEventListener("popstate", () => { gesture = null; show(location.search); ask(); });
$("reset").addEventListener("click", (event) => {
  event.preventDefault();
  history.pushState(null, "", "/");
  gesture = null; show(""); ask();
});

async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
    $("copied").textContent = `${what} copied`;
  } catch {
    $("copied").textContent = "The browser does not let this page copy; select the text instead.";
  }
  setTimeout(() => { $("copied").textContent = ""; }, 2500);
}
$("copy").addEventListener("click", () => copy($("command").textContent, "Command"));
$("link").addEventListener("click", () => copy(location.origin + "/" + (location.search || "?" + options()), "Link"));

const dark = matchMedia("(prefers-color-scheme: dark)");
function theme() { return document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light"); }
function nameTheme() {
  const next = theme() === "dark" ? "light" : "dark";
  $("theme").textContent = next === "dark" ? "Dark" : "Light";
  $("theme").setAttribute("aria-label", `Switch to the ${next} theme`);
}
$("theme").addEventListener("click", () => {
  const next = theme() === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  localStorage.setItem("theme", next);
  nameTheme();
});
const kept = localStorage.getItem("theme");
if (kept === "dark" || kept === "light") document.documentElement.dataset.theme = kept;
dark.addEventListener("change", nameTheme);
nameTheme();

let width = innerWidth;
addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; drawAll(); } });

show(location.search);
ask();
