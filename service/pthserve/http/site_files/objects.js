// The objects that a detector found: drawn over the picture, in a list beside it, and chosen in either.

import { counted, object, percent } from "./answer.js";
import { bar } from "./bar.js";
import { css, ofObjects } from "./colours.js";
import { marks } from "./marks.js";
import { switches } from "./switches.js";

const KEYS = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1, Home: -Infinity, End: Infinity };

// Show the answer in its card. threshold: the score from which on objects are shown at first; changed(headline,
// announced) is told what is shown, whenever that changes.
export function show(part, { detections, size, threshold: least }, threshold, changed) {
  const [stack, list, dial] = [part(".stack"), part(".bars"), part(".dial")];
  const visible = detections.map(() => true);
  const { drawing, update: draw } = marks(stack, part(".crop"), detections, size);

  // The list, of which one entry can be reached with Tab and the others with the arrow keys.
  const items = detections.map((one, index) => bar({ ...object(one), index }));
  const rows = items.map((item) => item.querySelector("button"));
  rows.forEach((row, number) => {
    row.disabled = false;
    row.style.borderInlineStartColor = css(ofObjects(detections[number].class_index));
  });
  list.classList.add("objects");
  list.replaceChildren(...items);
  const reach = (number) => rows.forEach((row, one) => { row.tabIndex = one === number ? 0 : -1; });
  function step(number, by) {
    const shown = [...rows.keys()].filter((one) => visible[one]);
    rows[shown[Math.min(Math.max(shown.indexOf(number) + by, 0), shown.length - 1)]].focus();
  }

  // The object that is chosen: the one under the pointer, else the one with the focus, else the one that was pressed.
  const ways = { pointer: null, focus: null, pressed: null };
  let chosen = null;
  function choose(change) {
    Object.assign(ways, change);
    const now = ways.pointer ?? ways.focus ?? ways.pressed;
    rows.forEach((row, number) => {
      row.classList.toggle("chosen", number === now);
      row.setAttribute("aria-pressed", number === ways.pressed);
    });
    if (now !== chosen) draw(visible, (chosen = now));
  }
  const numberOf = ({ target }) => {
    const index = target.closest("[data-index]")?.dataset.index;
    return index === undefined ? null : Number(index);
  };
  for (const place of [drawing, list]) {
    place.addEventListener("pointerover", (event) => {
      choose({ pointer: numberOf(event) });
      if (place === drawing && ways.pointer !== null) bring(list, items[ways.pointer]);
    });
    place.addEventListener("pointerleave", () => choose({ pointer: null }));
    place.addEventListener("click", (event) => {
      const number = numberOf(event);
      if (number === null) return;
      rows[number].focus({ preventScroll: true });
      choose({ pressed: ways.pressed === number ? null : number });
    });
  }
  list.addEventListener("focusin", (event) => {
    reach(numberOf(event));
    choose({ focus: numberOf(event) });
  });
  list.addEventListener("focusout", () => choose({ focus: null }));
  list.addEventListener("keydown", (event) => {
    if (!(event.key in KEYS)) return;
    event.preventDefault();
    step(numberOf(event), KEYS[event.key]);
  });
  stack.closest("article").addEventListener("keydown", ({ key }) => {
    if (key === "Escape") choose({ pointer: null, focus: null, pressed: null });
  });

  // What is shown, by the threshold and by a switch for each class, in the order of their surest objects.
  const kinds = [...new Map(detections.map(({ class_index: index, label }) => [index, label]))]
    .map(([index, label]) => ({ index, label, colour: ofObjects(index) }));
  const places = new Map(kinds.map(({ index }, place) => [index, place]));
  const classes = switches(part(".switches"), kinds, () => update(true));
  const slider = dial.querySelector("input");
  let from = Math.max(threshold, least);
  function update(announced) {
    const likely = detections.filter(({ score }) => score >= from);
    detections.forEach(({ score, class_index: index }, number) => {
      visible[number] = score >= from && classes.on(places.get(index));
      items[number].hidden = !visible[number];
    });
    kinds.forEach(({ index }, place) => classes.tell(place, likely.filter((one) => one.class_index === index).length));
    dial.querySelector("output").value = percent(from);
    slider.setAttribute("aria-valuetext", percent(from));
    reach(visible.indexOf(true));
    choose(Object.fromEntries(Object.entries(ways).map(([way, number]) => [way, visible[number] ? number : null])));
    draw(visible, chosen);
    changed(counted(detections.filter((_, number) => visible[number]), from), announced);
  }
  slider.min = Math.round(100 * least);
  slider.value = 100 * from;
  slider.setAttribute("aria-label", "Lowest score of the objects that are shown");
  slider.oninput = () => {
    from = Math.max(slider.value / 100, least);
    update(false);
  };
  slider.onchange = () => update(true);
  dial.firstElementChild.textContent = "Score from";
  dial.hidden = detections.length === 0;
  update(true);
}

// Scroll `list`, and not the page, until `item` is in it.
function bring(list, item) {
  const [above, below] = [item.offsetTop, item.offsetTop + item.offsetHeight - list.clientHeight];
  list.scrollTop = Math.max(Math.min(list.scrollTop, above), below);
}
