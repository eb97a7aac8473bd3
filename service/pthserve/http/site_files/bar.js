// A line of an answer: a label, a text, and where there is a probability a bar behind them.

export function bar({ index, label, text: shown, detail, probability, applies }) {
  const item = document.createElement("li");
  const progress = Object.assign(document.createElement("progress"), { max: 1, value: probability ?? 0 });
  progress.setAttribute("aria-hidden", "true");
  if (applies !== undefined) item.className = applies ? "applies" : "not";
  const row = Object.assign(document.createElement("button"), { type: "button", disabled: true });
  row.dataset.index = index;
  row.dataset.label = label;
  for (const text of [label, applies ? `${shown} ✓` : shown]) {
    row.append(Object.assign(document.createElement("span"), { textContent: text }));
  }
  if (detail) row.firstChild.append(Object.assign(document.createElement("small"), { textContent: detail }));
  item.append(progress, row);
  return item;
}
