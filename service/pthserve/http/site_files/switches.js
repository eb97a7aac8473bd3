// A switch for each class, which shows and hides it.

import { css } from "./colours.js";

const make = (name, about = {}) => Object.assign(document.createElement(name), about);

// kinds: of each class its label, its colour, whether it is `off` at first, and perhaps its share of a whole.
// changed(): after one was switched. The result: whether class `number` is on; tell(number, text) writes beside its label.
export function switches(fieldset, kinds, changed) {
  const rows = kinds.map(({ label, colour, off, share }) => {
    const row = make("label");
    const box = make("input", { type: "checkbox", checked: !off });
    const swatch = make("i", { className: "swatch" });
    swatch.style.background = css(colour);
    row.append(box); // first: a label is that of the first control in it, of which a progress bar is one
    if (share !== undefined) {
      const bar = make("progress", { max: 1, value: share });
      bar.setAttribute("aria-hidden", "true");
      row.append(bar);
    }
    row.append(swatch, make("span", { textContent: label }), make("span"));
    box.addEventListener("change", () => { name(); changed(); });
    return row;
  });
  const boxes = rows.map((row) => row.querySelector("input"));
  const list = make("ul");
  list.append(...rows.map((row) => { const item = make("li"); item.append(row); return item; }));
  const all = make("button", { type: "button", className: "quiet" });
  const name = () => { all.textContent = boxes.every((box) => box.checked) ? "Hide all" : "Show all"; };
  all.addEventListener("click", () => {
    const on = !boxes.every((box) => box.checked);
    for (const box of boxes) box.checked = on;
    name();
    changed();
  });
  name();
  all.hidden = rows.length < 2;
  fieldset.append(all, list);
  fieldset.hidden = rows.length === 0;
  return {
    rows,
    on: (number) => boxes[number].checked,
    tell: (number, text) => { rows[number].lastElementChild.textContent = text; },
  };
}
