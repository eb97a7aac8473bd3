// An answer by its task: a headline, a note, rows, and what a Python client prints; `summary` is a sentence, for
// where the headline is not.
// A row: label and text; with a probability it has a bar, with a class index what spoke for it can be shown.

const SHOWN = 8; // numbers of a vector
export const percent = (probability) => `${(100 * probability).toFixed(1)} %`;
const number = (value) => String(Number(value.toPrecision(6)));
const ranked = (answer) => answer.top.map((one) => ({ label: one.label, text: percent(one.probability), probability: one.probability, index: one.class_index }));

function classes(answer) {
  const note = percent(answer.probabilities[answer.class_index]);
  return { title: answer.label, note, rows: ranked(answer), index: answer.class_index, field: '["label"]' };
}

function labels(answer) {
  const names = answer.labels.map(({ label }) => label);
  return {
    title: names.join(", ") || "None of the labels",
    note: `from ${percent(answer.threshold)} on`,
    rows: ranked(answer).map((row) => ({ ...row, applies: row.probability >= answer.threshold })),
    index: answer.top[0].class_index,
    field: '["labels"]',
  };
}

function values(answer) {
  const rows = Object.entries(answer.values).map(([label, value]) => ({
    label, text: [number(value), answer.units[label]].filter(Boolean).join(" "),
  }));
  return { title: rows[0].text, note: rows[0].label, rows, field: '["values"]' };
}

function vector({ embedding }) {
  const rows = embedding.slice(0, SHOWN).map((value, index) => ({ label: `${index}`, text: number(value) }));
  return { title: `${embedding.length} numbers`, note: `length ${number(Math.hypot(...embedding))}`, rows, field: '["embedding"]' };
}

const SUMMED = 5; // classes that a summary names
const listed = (texts) => texts.slice(0, SUMMED).join(", ") + (texts.length > SUMMED ? ` and ${texts.length - SUMMED} others` : "");
const plural = (count, name, names = `${name}s`) => `${count} ${count === 1 ? name : names}`;

// One object as a row; `detail` is its box.
export function object({ label, score, box }) {
  const [left, top, right, bottom] = box.map(Math.round);
  return { label, text: percent(score), probability: score, detail: `left ${left}, top ${top}, right ${right}, bottom ${bottom}` };
}

// The headline for these objects, the note beside it, and both as a sentence for who hears it.
export function counted(detections, threshold) {
  const counts = new Map();
  for (const { label } of detections) counts.set(label, (counts.get(label) ?? 0) + 1);
  const kinds = listed([...counts].sort((a, b) => b[1] - a[1]).map(([label, count]) => `${count} × ${label}`));
  const title = detections.length ? plural(detections.length, "object") : "No objects";
  const score = `score of ${percent(threshold)} or more`;
  return { title, note: kinds || `with a ${score}`, summary: `${title}${kinds && `: ${kinds}`}; ${score}` };
}

function objects({ detections, threshold }, least) {
  const from = Math.max(threshold, least ?? threshold);
  const shown = detections.filter(({ score }) => score >= from);
  return { ...counted(shown, from), rows: shown.map(object), field: '["detections"]' };
}

// The same for the classes that are shown, of `count` that there are, in an image of this size.
export function shared(classes, count, [height, width]) {
  const kinds = listed(classes.map(({ label, share }) => `${label} ${percent(share)}`));
  const title = plural(count, "class", "classes");
  const shown = classes.length < count ? `, ${classes.length} shown` : "";
  return { title, note: `in ${width} × ${height} pixels`, summary: `${title}${shown}${kinds && `: ${kinds}`}` };
}

function areas({ classes, size }) {
  const rows = classes.map(({ label, share }) => ({ label, text: percent(share), probability: share }));
  return { ...shared(classes, classes.length, size), rows, field: '["classes"]' };
}

const TASKS = { classification: classes, binary: classes, multilabel: labels, regression: values, embedding: vector, detection: objects, segmentation: areas };

// threshold: of the model, where its task has one.
export const told = (answer, threshold) => TASKS[answer.task ?? "classification"](answer, threshold);
