// What the service is doing now, from its own metrics, and what it serves.

import { ask } from "./service.js";

const PERIOD = 2000; // milliseconds between looks
const KEPT = 60; // looks that a line shows

// Prometheus text to name -> sum over its labels.
function parse(text) {
  const sums = {};
  for (const line of text.split("\n")) {
    const sample = /^([a-z_]+)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (!sample || /route="(?!\/predict|\/v2)/.test(sample[2] ?? "")) continue;
    sums[sample[1]] = (sums[sample[1]] ?? 0) + Number(sample[3]);
  }
  return sums;
}

const rate = (name) => (now, before, seconds) => (now[name] - before[name]) / seconds;
const mean = (name) => (now, before) =>
  (now[`${name}_sum`] - before[`${name}_sum`]) / (now[`${name}_count`] - before[`${name}_count`]) || 0;
const GAUGES = [
  ["Requests a second", rate("pthserve_requests_total"), (value) => value.toFixed(1)],
  ["Mean latency", mean("pthserve_request_duration_seconds"), (value) => `${(1000 * value).toFixed(0)} ms`],
  ["In the queue", (now) => now.pthserve_queue_depth, (value) => value.toFixed(0)],
  ["Mean batch", mean("pthserve_batch_size"), (value) => value.toFixed(1)],
  ["Saturation", (now) => now.pthserve_saturation, (value) => `${(100 * value).toFixed(0)} %`],
];

export function watch(details, list, note) {
  const lines = GAUGES.map(([title]) => {
    list.insertAdjacentHTML("beforeend", `<dt>${title}</dt><dd><output>–</output>
      <svg viewBox="0 0 ${KEPT} 10" preserveAspectRatio="none" aria-hidden="true"><polyline/></svg></dd>`);
    const row = list.lastElementChild;
    return { output: row.querySelector("output"), line: row.querySelector("polyline"), values: [] };
  });
  let before = null;
  async function look() {
    if (!details.open || document.hidden) {
      before = null;
      return;
    }
    try {
      const now = { ...parse(await (await ask("metrics")).text()), at: performance.now() };
      if (before) draw(lines, now, before);
      before = now;
      note.textContent = "";
    } catch (error) {
      note.textContent = error.status === 404 ? "The metrics are on a port of their own." : error.message;
    }
  }
  setInterval(look, PERIOD);
  details.addEventListener("toggle", look);
}

function draw(lines, now, before) {
  lines.forEach(({ output, line, values }, index) => {
    const [, measure, format] = GAUGES[index];
    values.push(measure(now, before, (now.at - before.at) / 1000) || 0);
    if (values.length > KEPT) values.shift();
    const most = Math.max(...values) || 1;
    output.textContent = format(values.at(-1));
    line.setAttribute("points", values.map((value, x) => `${x},${(9.5 - (9 * value) / most).toFixed(2)}`).join(" "));
  });
}

export function facts(list, info) {
  const rows = {
    Architecture: info.architecture,
    Version: info.version,
    Classes: info.num_classes,
    "SHA-256 of the weights": info.digest,
    Engine: info.engine,
    Precision: info.precision,
    "Golden images": info.golden?.result ?? "none",
    Preprocessing: info.preprocess.assumed ? "assumed: the card says nothing" : "as the card says",
  };
  list.replaceChildren(...Object.entries(rows).flatMap(([title, value]) => [
    Object.assign(document.createElement("dt"), { textContent: title }),
    Object.assign(document.createElement("dd"), { textContent: value ?? "unknown" }),
  ]));
}
