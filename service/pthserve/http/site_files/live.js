// What the service is doing now, from its own metrics.

const PERIOD = 1000; // milliseconds between looks
const KEPT = 45; // looks that a line shows
const ANSWERS = /route="\/(predict|explain|v2\/[^"]*infer)/; // and not probes, nor the page's own looks

// Prometheus text to name -> sum over its labels.
function parse(text) {
  const sums = {};
  for (const line of text.split("\n")) {
    const sample = /^([a-z_]+)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (!sample || (/route="/.test(sample[2] ?? "") && !ANSWERS.test(sample[2]))) continue;
    sums[sample[1]] = (sums[sample[1]] ?? 0) + Number(sample[3]);
  }
  return sums;
}

const more = (name, now, before) => (now[name] ?? 0) - (before[name] ?? 0);
const rate = (name) => (now, before) => more(name, now, before) / (now.at - before.at);
// NaN where there was nothing of which to take the mean.
const mean = (name) => (now, before) => more(`${name}_sum`, now, before) / more(`${name}_count`, now, before);
const milliseconds = (value) => `${(1000 * value).toFixed(value < 0.01 ? 1 : 0)} ms`;
// The planned rate of a pod.
const planned = ({ pthserve_planned_rate: most }) => (most ? ` of ${most.toFixed(1)} planned` : "");
const GAUGES = [
  ["Requests per second", rate("pthserve_requests_total"), (value, now) => value.toFixed(1) + planned(now)],
  ["Latency", mean("pthserve_request_duration_seconds"), milliseconds],
  ["In the queue", (now) => now.pthserve_queue_depth, (value) => value.toFixed(0)],
  ["Images per batch", mean("pthserve_batch_size"), (value) => value.toFixed(1)],
  ["Busy", (now) => now.pthserve_saturation, (value) => `${(100 * value).toFixed(0)} %`, 1],
  ["Rejected", rate("pthserve_rejected_total"), (value) => `${value.toFixed(1)} / s`],
];

export function watch(details, list, note, fetchMetrics) {
  const tiles = GAUGES.map(([title]) => {
    list.insertAdjacentHTML("beforeend", `<div><dt>${title}</dt><dd><span>–</span>
      <svg viewBox="0 0 ${KEPT - 1} 20" preserveAspectRatio="none" aria-hidden="true"><path/><polyline/></svg></dd></div>`);
    const tile = list.lastElementChild;
    return { value: tile.querySelector("span"), tile, values: [] };
  });
  let before = null;
  let looking = false;
  async function look() {
    if (!details.open || document.hidden) before = null; // what happened meanwhile is no rate
    if (!details.open || document.hidden || looking) return;
    looking = true;
    let text = "";
    try {
      const now = { ...parse(await (await fetchMetrics()).text()), at: performance.now() / 1000 };
      tiles.forEach((tile, index) => draw(tile, GAUGES[index], now, before ?? now));
      before = now;
    } catch (error) {
      before = null;
      text = error.status === 404 ? "The metrics are on a port of their own." : error.message;
    }
    looking = false;
    list.hidden = text !== "" && !tiles[0].values.length;
    note.hidden = text === "";
    note.textContent = text;
  }
  setInterval(look, PERIOD);
  details.addEventListener("toggle", look);
  document.addEventListener("visibilitychange", look);
}

function draw({ value, tile, values }, [, measure, format, full], now, before) {
  const measured = measure(now, before);
  value.textContent = Number.isFinite(measured) ? format(measured, now) : "–";
  values.push(Number.isFinite(measured) ? measured : 0);
  if (values.length > KEPT) values.shift();
  const most = full ?? (Math.max(...values) || 1);
  const from = KEPT - values.length; // the latest is at the right
  const points = values.map((one, x) => `${from + x},${(19 - (17 * one) / most).toFixed(2)}`).join(" ");
  tile.querySelector("polyline").setAttribute("points", points);
  tile.querySelector("path").setAttribute("d", `M${from},20 L${points} L${KEPT - 1},20 Z`);
}
