"use strict";
const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 320, HEIGHT = 170, LEFT = 44, RIGHT = 8, TOP = 8, BOTTOM = 20;
const SECONDS_BETWEEN_NUMBERS = 2, SECONDS_BETWEEN_CURVES = 6;
const byId = id => document.getElementById(id);

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function drawn(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function number(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size >= 1000 || (Number.isInteger(value) && size < 1e15)) return Math.round(value).toLocaleString("en");
  return size !== 0 && size < 0.001 ? value.toExponential(2) : String(Number(value.toPrecision(4)));
}

function time(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  const minutes = Math.floor(seconds / 60);
  if (minutes < 1) return `${Math.floor(seconds)} s`;
  const hours = Math.floor(minutes / 60);
  return hours ? `${hours} h ${String(minutes % 60).padStart(2, "0")} min` : `${minutes} min`;
}

function cards(list, values) {
  list.replaceChildren(...Object.entries(values).map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, value))));
}

// Round numbers that lie between two others.
function ticks(low, high, most) {
  const rough = (high - low) / most, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(k => k * power).find(size => size >= rough);
  const found = [];
  for (let k = Math.ceil(low / step); k * step <= high * (1 + 1e-9); k++) found.push(k * step);
  return found;
}

// A figure of lines over x: series are [label, [[x, y], ...]] with null for what is no number.
class Chart {
  constructor(place, title, unit) {
    this.unit = unit;
    this.svg = drawn("svg", {viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": title});
    this.legend = element("p");
    this.title = title;
    place.append(element("figure", {}, element("figcaption", {}, title), this.legend, this.svg));
    this.svg.addEventListener("pointermove", event => this.point(event));
    this.svg.addEventListener("pointerleave", () => { this.at = null; this.tell(); });
  }

  draw(series) {
    this.series = series.map(([label, points]) => [label, points.filter(([, y]) => y !== null && y !== undefined)]);
    const all = this.series.flatMap(([, points]) => points);
    this.svg.replaceChildren();
    if (!all.length) return;
    const xs = all.map(([x]) => x), ys = all.map(([, y]) => y);
    this.low = Math.min(...xs);
    this.high = Math.max(...xs);
    const least = Math.min(0, ...ys), highest = Math.max(0, ...ys), most = (highest > least ? highest : 1) * 1.05;
    const inside = WIDTH - LEFT - RIGHT, span = this.high - this.low || 1;
    this.x = value => LEFT + inside * (value - this.low) / span;
    const y = value => HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - least) / (most - least);
    for (const value of ticks(least, most, 4)) {
      this.svg.append(drawn("line", {class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value)}));
      this.svg.append(drawn("text", {x: LEFT - 5, y: y(value) + 3, "text-anchor": "end"}, number(value)));
    }
    for (const value of this.high > this.low ? ticks(this.low, this.high, 5).filter(Number.isInteger) : [this.low]) {
      this.svg.append(drawn("text", {x: this.x(value), y: HEIGHT - 5, "text-anchor": "middle"}, number(value)));
    }
    this.series.forEach(([, points], k) => {
      const colour = COLOURS[k % COLOURS.length];
      const path = points.map(([x, value]) => `${this.x(x).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
      this.svg.append(drawn("polyline", {points: path, stroke: colour}));
      if (points.length < 15) {
        for (const [x, value] of points) this.svg.append(drawn("circle", {cx: this.x(x), cy: y(value), r: 2.2, fill: colour}));
      }
    });
    this.line = drawn("line", {class: "at", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden"});
    this.svg.append(this.line);
    this.tell();
  }

  point(event) {
    if (!this.series) return;
    const box = this.svg.getBoundingClientRect();
    const share = ((event.clientX - box.left) / box.width * WIDTH - LEFT) / (WIDTH - LEFT - RIGHT);
    this.at = this.low + share * (this.high - this.low);
    this.tell();
  }

  // The legend, with the values under the pointer, or the last ones.
  tell() {
    const parts = [];
    let where = null;
    this.series.forEach(([label, points], k) => {
      if (!points.length) return;
      const nearest = this.at === null || this.at === undefined ? points[points.length - 1] :
        points.reduce((a, b) => Math.abs(b[0] - this.at) < Math.abs(a[0] - this.at) ? b : a);
      where = nearest[0];
      const swatch = element("span", {class: "swatch"});
      swatch.style.background = COLOURS[k % COLOURS.length];
      parts.push(swatch, `${label} ${number(nearest[1])} `.trimStart(), " ");
    });
    if (where !== null) parts.push(`(${this.unit} ${number(where)})`);
    this.legend.replaceChildren(...parts);
    const said = this.series.filter(([, points]) => points.length)
      .map(([label, points]) => `${label} ${number(points[points.length - 1][1])}`.trim());
    this.svg.setAttribute("aria-label", `${this.title}: last ${said.join(", ")}`);
    const shown = this.at !== null && this.at !== undefined && where !== null;
    this.line.setAttribute("visibility", shown ? "visible" : "hidden");
    if (shown) for (const end of ["x1", "x2"]) this.line.setAttribute(end, this.x(where));
  }
}

const charts = new Map();
function chart(place, title, unit, series) {
  const known = series.filter(([, points]) => points.some(([, y]) => y !== null && y !== undefined));
  if (!known.length) return;
  const key = place + title;
  if (!charts.has(key)) charts.set(key, new Chart(byId(place), title, unit));
  charts.get(key).draw(known);
}

function column(rows, x, name) {
  return rows.map(row => [row[x], row[name]]);
}

function showCurves(found) {
  const {steps, epochs, every} = found;
  byId("every").textContent = every > 1 ? `One step in ${every} is shown.` : "";
  const ofSteps = [...new Set(steps.flatMap(row => Object.keys(row)))];
  for (const name of ofSteps.filter(name => name.endsWith("_loss"))) {
    chart("steps", name.replace(/_/g, " "), "step", [["", column(steps, "step", name)]]);
  }
  for (const [name, title] of [["lr", "learning rate"], ["grad_norm", "gradient norm"], ["images_per_s", "images per second"]]) {
    chart("steps", title, "step", [["", column(steps, "step", name)]]);
  }
  const over = (title, parts) => chart("epochs", title, "epoch",
    parts.map(([label, name]) => [label, column(epochs, "epoch", name)]));
  over("mAP", [["0.5:0.95", "metrics/mAP_0.5:0.95"], ["0.5", "metrics/mAP_0.5"]]);
  over("precision, recall", [["precision", "metrics/precision"], ["recall", "metrics/recall"]]);
  const ofEpochs = new Set(epochs.flatMap(row => Object.keys(row)));
  for (const name of [...ofEpochs].filter(name => name.startsWith("train/"))) {
    const loss = name.slice("train/".length);
    over(loss.replace(/_/g, " "), [["train", name], ["validation", `val/${loss}`]]);
  }
  if (!epochs.length) byId("epochs").textContent = "No epoch is over yet.";
  else if (byId("epochs").firstChild.nodeType === Node.TEXT_NODE) byId("epochs").firstChild.remove();
}

function showRanks(ranks) {
  const table = byId("ranks");
  if (!ranks.length) return table.replaceChildren(element("tr", {}, element("td", {}, "No step is done yet.")));
  const words = ["rank", "host", "images/s", "computed", "waited for data", "waited for ranks", "time"];
  const head = element("tr", {}, ...words.map(word => element("th", {scope: "col"}, word)));
  const rows = ranks.map((rank, k) => {
    const shares = [Math.max(1 - rank.data - rank.ranks, 0), rank.data, rank.ranks];
    const bar = element("div", {class: "bar"});
    shares.forEach((share, part) => {
      const piece = element("span");
      piece.style.width = `${100 * share}%`;
      piece.style.background = part ? COLOURS[part] : COLOURS[0];
      bar.append(piece);
    });
    const cells = [String(k), rank.host, number(rank.images_per_s), ...shares.map(share => `${Math.round(100 * share)}%`), bar];
    return element("tr", {}, ...cells.map(cell => element("td", {}, cell)));
  });
  table.replaceChildren(head, ...rows);
}

function showLog(lines) {
  const box = byId("log"), below = box.scrollHeight - box.clientHeight - box.scrollTop < 20;
  const text = lines.flatMap(({at, level, text}) => {
    const clock = new Date(1000 * at).toLocaleTimeString("en-GB");
    return [`${clock} `, level === "info" ? text : element("b", {}, `${level}: ${text}`), "\n"];
  });
  box.replaceChildren(...text);
  if (below) box.scrollTop = box.scrollHeight;
}

let first = null;  // where the run was when this page first saw it train
function show(now) {
  const facts = now.facts, share = now.batches[1] ? now.batches[0] / now.batches[1] : 0;
  const done = now.epochs ? Math.min((now.epoch + share) / now.epochs, 1) : 0;
  const at = Date.now() / 1000, epoch = Math.min(now.epoch + 1, now.epochs);
  document.title = `${Math.floor(100 * done)} % · ${facts.model}`;
  document.querySelector("h1").textContent = facts.model;
  document.querySelector("p.run").textContent = facts.run;
  const state = byId("state");
  state.className = "";
  state.textContent = now.epochs ? `${now.phase}: epoch ${epoch} of ${now.epochs}, batch ${now.batches[0]} of ${now.batches[1]}` : now.phase;
  byId("progress").value = done;
  if (now.images && !first) first = {at, done};
  const left = first && done > first.done ? (at - first.at) / (done - first.done) * (1 - done) : NaN;
  cards(byId("scores"), Object.fromEntries(Object.entries(now.scores).map(([name, value]) => [name, number(value)])));
  cards(byId("facts"), {
    "images/s": number(now.images_per_s),
    "step": number(now.step),
    "time": time(at - now.started_at),
    "time left, at most": time(left),
    "ranks": number(facts.ranks),
    "global batch": number(facts.global_batch),
    "last checkpoint": now.checkpoint_at ? `${time(at - now.checkpoint_at)} ago` : "–",
    "skipped steps": number(now.skipped),
    ...(now.replaced ? {"images replaced": number(now.replaced)} : {}),
  });
  showRanks(now.ranks);
  showLog(now.log);
}

// Ask again and again, one question at a time; what does not answer is said, and asked on.
async function follow(path, seconds, use) {
  try {
    const answer = await fetch(path, {cache: "no-store"});
    if (!answer.ok) throw new Error(`${answer.status}`);
    use(await answer.json());
  } catch (error) {
    const state = byId("state");
    state.className = "gone";
    state.textContent = `No answer (${error.message}): the run is over, or the way to it is cut. This is what was known last.`;
  }
  setTimeout(() => follow(path, seconds, use), 1000 * seconds);
}

follow("api/now", SECONDS_BETWEEN_NUMBERS, show);
follow("api/curves", SECONDS_BETWEEN_CURVES, showCurves);
