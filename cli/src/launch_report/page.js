"use strict";
// Draws what stands in #data. Names of files are put into text nodes only.

addEventListener("error", (event) => complain(event.message));

function complain(what) {
  const box = document.getElementById("errors");
  box.hidden = false;
  box.append(String(what) + "\n");
}

const SOURCES = {
  origin: "fetched because it was asked for",
  under_way: "was being fetched already",
  launch_stream: "the launch stream brought it",
  disk: "read from the cache on disk",
  memory: "was in memory",
};
const PAGE_BYTES = 4096;
const ROWS_AT_ONCE = 300;
const { trace, circumstances, summary } = JSON.parse(document.getElementById("data").textContent);
// The program was started so long after watching began.
const start = Math.max(0, trace.took - circumstances.since_start_micros);
const whole = { from: 0, to: Math.max(1, start + circumstances.launch_micros) };
const view = { from: whole.from, to: whole.to, rows: ROWS_AT_ONCE };

const $ = (id) => document.getElementById(id);
const path = (number) => trace.paths[number] ?? "?";
const colour = (name) => `var(--${name})`;

function element(name, content, attributes = {}) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...[content].flat());
  return made;
}

function drawn(name, attributes, content = []) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...[content].flat());
  return made;
}

function time(micros) {
  if (Math.abs(micros) >= 1e6) return (micros / 1e6).toFixed(2) + " s";
  return (micros / 1e3).toFixed(Math.abs(micros) >= 1e5 ? 0 : 1) + " ms";
}

function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB"];
  let unit = 0;
  while (bytes >= 1024 && unit < units.length - 1) { bytes /= 1024; unit += 1; }
  return bytes.toFixed(unit ? 1 : 0) + " " + units[unit];
}

const since = (micros) => time(micros - start) + " after the start";

// --- one row a path -------------------------------------------------------------------------------------------------

const rowsByPath = new Map();
function rowOf(number, at) {
  let row = rowsByPath.get(number);
  if (!row) rowsByPath.set(number, (row = { path: number, first: at, marks: [], waited: 0 }));
  row.first = Math.min(row.first, at);
  return row;
}
for (const event of trace.events) {
  const wait = event.source ? event.pages + event.blocks : 0;
  const row = rowOf(event.path, event.t);
  row.waited += wait;
  row.marks.push({ t: event.t, until: event.t + wait, event });
}
for (const arrival of trace.arrivals) {
  rowOf(arrival.path, arrival.t).marks.push({ t: arrival.t, until: arrival.t, arrival });
}
const allRows = [...rowsByPath.values()].sort((a, b) => a.first - b.first);

function described({ event, arrival }) {
  if (arrival) {
    let used = "never read";
    if (arrival.used !== null) {
      used = arrival.used >= arrival.t
        ? `first read ${time(arrival.used - arrival.t)} later`
        : `was asked for ${time(arrival.t - arrival.used)} before`;
    }
    return `${size(arrival.bytes)} at ${arrival.at} came with the launch stream, ${since(arrival.t)}\n${used}`;
  }
  const what = {
    lookup: "looked up",
    list: "listed",
    readlink: "link read",
    xattrs: "attributes read",
    read: `${size(event.bytes)} at ${event.at} read`,
  }[event.op];
  let outcome = event.found ? "" : "\nnot there";
  if (!event.ok) outcome = "\nfailed";
  if (!event.source) return `${what}, ${since(event.t)}${outcome}\nanswered at once`;
  const waits = [[event.pages, "tree pages"], [event.blocks, "blocks"]].filter(([wait]) => wait > 0);
  const waited = waits.map(([wait, of]) => `${time(wait)} for ${of}`).join(", ");
  return `${what}, ${since(event.t)}${outcome}\nwaited ${waited}\n${SOURCES[event.source]}`;
}

function paint({ event, arrival }) {
  if (arrival) return colour(arrival.used === null ? "unused" : "brought");
  return colour(event.source ?? "ready");
}

function bars(row, width) {
  const scale = width / (view.to - view.from);
  const chart = drawn("svg", { viewBox: `0 0 ${width} 20`, preserveAspectRatio: "none" });
  let last = { until: -9, fill: "" };
  for (const mark of row.marks) {
    if (mark.until < view.from || mark.t > view.to) continue;
    const x = (mark.t - view.from) * scale;
    const wide = Math.max(1.5, (mark.until - mark.t) * scale);
    const fill = paint(mark);
    // Marks of one kind on the same spot are one.
    if (fill === last.fill && x + wide <= last.until + 0.5) continue;
    last = { until: x + wide, fill };
    let [y, height] = mark.arrival ? [13, 5] : [7, 6];
    if (mark.until > mark.t) [y, height] = [3, 14];
    const bar = drawn("rect", { x: x.toFixed(1), width: wide.toFixed(1), y, height, style: `fill:${fill}` });
    bar.mark = mark;
    chart.append(bar);
  }
  const at = (start - view.from) * scale;
  if (at >= 0 && at <= width) chart.append(drawn("line", { x1: at, x2: at, y1: 0, y2: 20, class: "start" }));
  return chart;
}

function ticks(width, height) {
  const scale = width / (view.to - view.from);
  const steps = [2, 3, 4, 5, 6, 7, 8].flatMap((power) => [1, 2, 5].map((n) => n * 10 ** power));
  const step = steps.find((micros) => micros * scale > 90) ?? 1e9;
  const marks = [];
  for (let t = Math.ceil((view.from - start) / step) * step; t + start <= view.to; t += step) {
    const x = (t + start - view.from) * scale;
    marks.push(drawn("line", { x1: x, x2: x, y1: 0, y2: height, class: "grid" }));
    marks.push(drawn("text", { x: x + 3, y: 12 }, time(t)));
  }
  return marks;
}

function shownRows() {
  const part = $("filter").value.toLowerCase();
  const waiting = $("only-waiting").checked;
  return allRows.filter((row) => (!waiting || row.waited > 0) && path(row.path).toLowerCase().includes(part));
}

function drawRows() {
  const width = Math.max(200, Math.round($("rows").clientWidth * 0.7));
  const rows = shownRows();
  const axis = drawn("svg", { viewBox: `0 0 ${width} 22`, preserveAspectRatio: "none" }, ticks(width, 22));
  $("axis").replaceChildren(element("span", ""), axis);
  $("rows").replaceChildren(...rows.slice(0, view.rows).map((row) => {
    const name = element("div", element("bdi", path(row.path)), { class: "path", title: path(row.path) });
    return element("div", [name, bars(row, width)], { class: "row" });
  }));
  $("more").hidden = rows.length <= view.rows;
  $("more").textContent = `Show more rows (${rows.length - view.rows} left)`;
}

function move(from, length = view.to - view.from) {
  view.from = Math.max(whole.from, Math.min(from, whole.to - length));
  view.to = view.from + length;
  drawRows();
}

function zoom(factor, around = (view.from + view.to) / 2) {
  const length = Math.min(Math.max(1000, (view.to - view.from) * factor), whole.to - whole.from);
  const share = (around - view.from) / (view.to - view.from);
  move(around - share * length, length);
}

// --- bytes over time ------------------------------------------------------------------------------------------------

/** [time, bytes read so far], each byte of a file counted once. */
function bytesUsed() {
  const seen = new Map();
  let total = 0;
  const points = [[0, 0]];
  const answered = (event) => event.t + event.pages + event.blocks;
  const reads = trace.events.filter((event) => event.op === "read" && event.ok);
  for (const event of reads.sort((a, b) => answered(a) - answered(b))) {
    if (!seen.has(event.path)) seen.set(event.path, new Set());
    const pages = seen.get(event.path);
    const end = event.at + event.bytes;
    for (let page = Math.floor(event.at / PAGE_BYTES); page * PAGE_BYTES < end; page += 1) {
      if (pages.has(page)) continue;
      pages.add(page);
      total += Math.min(PAGE_BYTES, end - page * PAGE_BYTES);
    }
    points.push([answered(event), total]);
  }
  return points;
}

function growth() {
  const [width, height, bottom] = [1200, 180, 160];
  let sum = 0;
  const curves = [
    ["used", "read, the kernel's read-ahead included, each byte once", bytesUsed()],
    ["origin", "received from the origin, compressed", trace.fetched.map((sample) => [sample.t, sample.bytes])],
    ["launch_stream", "brought by the launch stream", trace.arrivals.map(({ t, bytes }) => [t, (sum += bytes)])],
  ].filter(([, , points]) => points.length > 0);
  const top = curves.reduce((most, [, , points]) => points.reduce((m, [, bytes]) => Math.max(m, bytes), most), 1);
  const x = (t) => (Math.min(t, whole.to) / whole.to) * width;
  const y = (bytes) => bottom - (bytes / top) * (bottom - 14);
  const chart = drawn("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none" });
  for (const share of [0, 0.5, 1]) {
    const at = y(top * share);
    chart.append(drawn("line", { x1: 0, x2: width, y1: at, y2: at, class: "grid" }));
    chart.append(drawn("text", { x: 4, y: at - 3 }, size(top * share)));
  }
  chart.append(
    drawn("line", { x1: x(start), x2: x(start), y1: 0, y2: bottom, class: "start" }),
    drawn("text", { x: x(start) + 3, y: height - 4 }, "program starts"),
    drawn("text", { x: width - 50, y: height - 4 }, time(circumstances.launch_micros)));
  const key = element("div", [], { class: "hint" });
  for (const [name, meaning, points] of curves) {
    let line = `M0 ${bottom}`;
    let before = 0;
    for (const [t, bytes] of points) {
      // Steps: what came, came then.
      line += `L${x(t).toFixed(1)} ${y(before).toFixed(1)}L${x(t).toFixed(1)} ${y(bytes).toFixed(1)}`;
      before = Math.max(before, bytes);
    }
    line += `L${width} ${y(before).toFixed(1)}`;
    chart.append(drawn("path", { d: line, class: "curve", style: `stroke:${colour(name)}` }));
    key.append(element("i", [], { class: "key", style: `background:${colour(name)}` }), `${meaning}: ${size(before)}`);
  }
  $("growth").replaceChildren(chart, key);
}

// --- words and tables -----------------------------------------------------------------------------------------------

function verdict() {
  const lines = [];
  const say = (text, kind = "") => lines.push(element("p", text, { class: kind }));
  const share = Math.min(100, Math.round((100 * summary.waiting_seconds) / Math.max(summary.launch_seconds, 1e-6)));
  const times = `${summary.waiting_seconds.toFixed(2)} of ${summary.launch_seconds.toFixed(2)} s`;
  say(`In ${share} % of the launch (${times}) something was waiting for data.`, share > 20 ? "bad" : "good");
  const origin = summary.by_source.origin;
  if (!trace.arrivals.length && summary.bytes_fetched > 0) {
    say("No launch set was streamed: publish this version with a profile (streamfs profile, publish --profile).", "bad");
  } else if (origin && trace.arrivals.length) {
    const slow = origin.seconds > 0.1 * summary.launch_seconds;
    say(`${origin.count} questions asked for what the launch set did not have and waited ${origin.seconds.toFixed(2)} s ` +
      "together; record the launch anew if they are many.", slow ? "bad" : "");
  }
  if (summary.bytes_streamed > 0) {
    const [all, early, unused] = [summary.bytes_streamed, summary.bytes_in_time, summary.bytes_wasted].map(size);
    const wasteful = summary.bytes_wasted > 0.2 * summary.bytes_streamed;
    say(`Of ${all} that the launch stream brought, ${early} came in time and ${unused} were not used.`,
      wasteful ? "bad" : "");
  }
  if (summary.failed > 0) say(`${summary.failed} questions failed.`, "bad");
  if (trace.dropped > 0) say(`${trace.dropped} events were too many to be shown.`, "bad");
  $("verdict").replaceChildren(...lines);
}

function tiles() {
  const tile = (value, meaning) => element("div", [element("b", value), element("span", meaning)], { class: "tile" });
  $("tiles").replaceChildren(
    tile(`${summary.launch_seconds.toFixed(2)} s`, circumstances.cold ? "launch, nothing cached" : "launch, cache as it was"),
    tile(`${summary.waiting_seconds.toFixed(2)} s`, "of it something waited"),
    tile(`${summary.waited} / ${summary.questions}`, "questions that waited"),
    tile(String(summary.reads), "reads"),
    tile(String(summary.not_found), "names looked up in vain"),
    tile(size(summary.bytes_read), "read, with read-ahead"),
    tile(size(summary.bytes_fetched), `received in ${summary.requests} requests`),
    tile(size(summary.bytes_streamed), "brought by the launch stream"),
    tile(size(summary.bytes_wasted), "of it never used"));
}

function table(heads, rows, none) {
  if (!rows.length) return element("p", none, { class: "hint" });
  const head = element("tr", heads.map(([text, kind]) => element("th", text, { class: kind })));
  const line = (row) => element("tr", row.map((cell, i) => element("td", cell, { class: heads[i][1] })));
  return element("table", [head, ...rows.map(line)]);
}

function tables() {
  const waits = trace.events.filter((event) => event.source)
    .sort((a, b) => b.pages + b.blocks - a.pages - a.blocks).slice(0, 25);
  $("waits").replaceChildren(table(
    [["waited", "number"], ["at", "number"], ["what", ""], ["path", "path"], ["for", ""]],
    waits.map((event) => [
      time(event.pages + event.blocks),
      time(event.t - start),
      event.op === "read" ? `read ${size(event.bytes)} at ${event.at}` : event.op,
      path(event.path),
      `${event.pages > event.blocks ? "tree pages" : "blocks"}: ${SOURCES[event.source]}`,
    ]),
    "Nothing waited."));
  const waste = trace.files.map((file) => ({ ...file, extra: file.wasted + Math.max(0, file.blocks - file.read) }))
    .filter((file) => file.extra > 0).sort((a, b) => b.extra - a.extra).slice(0, 25);
  $("wasted").replaceChildren(table(
    [["not used", "number"], ["streamed, never read", "number"], ["read", "number"], ["in blocks of", "number"],
      ["path", "path"]],
    waste.map((file) => [size(file.extra), size(file.wasted), size(file.read), size(file.blocks), path(file.path)]),
    "Everything that was brought was used."));
}

function legend() {
  const waits = Object.entries(SOURCES).filter(([name]) => summary.by_source[name]);
  const kinds = [...waits.map(([name, text]) => [name, `waited: ${text}`]), ["ready", "answered at once"],
    ["brought", "came with the stream"], ["unused", "came and was not used"]];
  const key = ([name, text]) => [element("i", [], { style: `background:${colour(name)}` }), text];
  $("legend").replaceChildren(...kinds.flatMap(key));
}

// --- what can be done with the page ---------------------------------------------------------------------------------

function timeAt(event) {
  const box = event.target.closest("svg").getBoundingClientRect();
  return view.from + ((event.clientX - box.left) / box.width) * (view.to - view.from);
}

$("zoom-in").addEventListener("click", () => zoom(0.5));
$("zoom-out").addEventListener("click", () => zoom(2));
$("zoom-all").addEventListener("click", () => move(whole.from, whole.to - whole.from));
$("more").addEventListener("click", () => { view.rows += ROWS_AT_ONCE; drawRows(); });
$("filter").addEventListener("input", drawRows);
$("only-waiting").addEventListener("change", drawRows);
$("rows").addEventListener("wheel", (event) => {
  if (!event.ctrlKey || !event.target.closest("svg")) return;
  event.preventDefault();
  zoom(event.deltaY < 0 ? 0.8 : 1.25, timeAt(event));
}, { passive: false });
let dragged = null;
$("rows").addEventListener("mousedown", (event) => { dragged = event.target.closest("svg") ? timeAt(event) : null; });
addEventListener("mouseup", () => { dragged = null; });
$("rows").addEventListener("mousemove", (event) => {
  const { mark } = event.target;
  $("detail").hidden = !mark;
  if (mark) {
    $("detail").textContent = described(mark);
    $("detail").style.left = `${Math.min(event.clientX + 12, innerWidth - 500)}px`;
    $("detail").style.top = `${event.clientY + 14}px`;
  }
  if (dragged !== null && event.target.closest("svg")) move(view.from + dragged - timeAt(event));
});
$("rows").addEventListener("mouseleave", () => { $("detail").hidden = true; });
addEventListener("resize", drawRows);

$("title").textContent = document.title;
$("command").textContent = circumstances.command.join(" ");
verdict();
tiles();
growth();
legend();
drawRows();
tables();
// Details of every kind are described once, so that a mistake in that shows at once and not to a mouse only.
allRows.slice(0, ROWS_AT_ONCE).forEach((row) => row.marks.slice(0, 3).forEach(described));
document.body.dataset.drawn = "true";
