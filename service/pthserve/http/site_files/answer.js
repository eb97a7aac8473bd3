// What an answer says, by its task: a headline, a note beside it, rows, and the expression that a Python client prints.
// A row: label and text; with a probability it has a bar, with a class index what spoke for it can be shown.

const SHOWN = 8; // numbers of a vector
const percent = (probability) => `${(100 * probability).toFixed(1)} %`;
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

function objects({ detections, threshold }) {
  const rows = detections.map(({ label, score }) => ({ label, text: percent(score), probability: score }));
  return { title: `${rows.length} ${rows.length === 1 ? "object" : "objects"}`, note: `from ${percent(threshold)} on`, rows, field: '["detections"]' };
}

function areas({ classes, size }) {
  const rows = classes.map(({ label, share }) => ({ label, text: percent(share), probability: share }));
  return { title: rows[0].label, note: `${rows[0].text} of ${size[1]} x ${size[0]} pixels`, rows, field: '["classes"]' };
}

const TASKS = { classification: classes, binary: classes, multilabel: labels, regression: values, embedding: vector, detection: objects, segmentation: areas };
export const told = (answer) => TASKS[answer.task ?? "classification"](answer);
