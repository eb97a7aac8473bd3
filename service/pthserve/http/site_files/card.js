// What is served.

const SHOWN = 200; // labels in the list at once
const element = (tag, text) => Object.assign(document.createElement(tag), { textContent: text });
const count = new Intl.NumberFormat("en", { notation: "compact", compactDisplay: "long", maximumSignificantDigits: 3 });
const UNCERTAIN = { default: "the architecture's default", assumed: "assumed" };
const ENGINES = { openvino: "OpenVINO", torch: "PyTorch" };

// What was inferred about the model, what it rests on, and the line that settles what is uncertain.
function found(inferred) {
  const rows = {};
  for (const { subject, value, origin, setting } of inferred) {
    if (subject === "architecture" || (subject === "labels" && origin === "card")) continue;
    const title = subject[0].toUpperCase() + subject.slice(1);
    const text = origin in UNCERTAIN ? `${value} (${UNCERTAIN[origin]}; in model.yaml: ${setting})` : value;
    rows[title] = rows[title] ? `${rows[title]}; ${text}` : text;
  }
  return rows;
}

// How the answers compare with those of fp32 PyTorch.
function agreement({ crops, mean, largest, same, clear, kept, accuracy, reference_accuracy: fp32 }) {
  const percent = (share) => `${(100 * share).toFixed(1)} %`;
  return [
    `against fp32 PyTorch on ${crops} crops: probabilities differ by ${mean.toFixed(4)} on average, ${largest.toFixed(4)} at most`,
    same !== null && `same decision on ${percent(same)}`,
    clear !== null && `on ${kept} of ${clear} where it is clear`,
    accuracy !== null && `accuracy ${percent(accuracy)}, ${percent(fp32)} at fp32`,
  ].filter(Boolean).join("; ");
}

// The planned load of a pod.
const plan = ({ rate, latency }) =>
  `up to ${rate.toFixed(1)} requests per second${latency ? `, 99 % of them within ${(1000 * latency).toFixed(0)} ms` : ""}`;

const colours = ({ mean }) => (mean.length === 1 ? "grey" : "colour");
function resized({ resize, longest }) {
  if (typeof resize === "number") return `its shorter side ${resize} pixels${longest ? `, the longer at most ${longest}` : ""}`;
  return resize ? `resized to ${resize[1]} × ${resize[0]}` : "as it is";
}

export function facts(list, info) {
  const { preprocess: spec, golden } = info;
  const rows = {
    Architecture: info.architecture,
    Parameters: count.format(info.parameters),
    Task: info.task.name + (info.task.threshold === undefined ? "" : `, threshold ${info.task.threshold}`),
    ...(info.labels.length ? { [info.task.outputs ? "Values" : "Classes"]: info.num_classes } : { Vector: `${info.task.dimensions} numbers` }),
    Input: spec.whole ? `the whole image, ${resized(spec)}, ${colours(spec)}` : `${spec.crop[1]} × ${spec.crop[0]}, ${colours(spec)}`,
    ...found(info.inferred),
    ...(info.planned.rate && { Plan: plan(info.planned) }),
    Engine: ENGINES[info.engine] ?? info.engine,
    Precision: info.precision,
    ...(info.agreement && { Agreement: agreement(info.agreement) }),
    "Golden images": golden ? `${golden.images}, ${golden.result}` : "none",
    Version: info.version,
    "SHA-256": info.digest,
  };
  list.replaceChildren(
    ...Object.entries(rows).flatMap(([title, value]) => [element("dt", title), element("dd", value)]),
  );
  list.lastElementChild.className = "digest";
}

export function classes(details, find, list, note, { labels, task }) {
  function show() {
    const wanted = find.value.trim().toLowerCase();
    const matching = labels.filter((label) => label.toLowerCase().includes(wanted));
    list.replaceChildren(...matching.slice(0, SHOWN).map((label) => element("li", label)));
    note.textContent = matching.length > SHOWN
      ? `${SHOWN} of ${matching.length}; type to find others`
      : `${matching.length} of ${labels.length}`;
  }
  find.oninput = show;
  details.querySelector("summary").textContent = task.outputs ? "List of values" : "List of classes";
  details.hidden = labels.length === 0;
  show();
}
