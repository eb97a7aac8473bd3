// The class of each pixel, as colours over the picture, and a legend beside it.

import { percent, shared } from "./answer.js";
import { ofAreas } from "./colours.js";
import { fill, layer, pixel, tag } from "./layers.js";
import { pieces } from "./runs.js";
import { switches } from "./switches.js";

const BACKGROUND = "__background__"; // torchvision's label of what is nothing in particular
const OPACITY = 60; // at first, in percent
const CHOSEN = 0.9, OTHERS = 0.1; // opacity of the chosen class and of the others

// Show the answer in its card. changed(headline, announced) is told what is shown, whenever that changes.
export function show(part, { classes, size: [high, wide] }, _, changed) {
  const [stack, picture, dial] = [part(".stack"), part(".crop"), part(".dial")];
  const slider = dial.querySelector("input");
  const colours = classes.map((one) => ofAreas(one.class_index));

  // Of each pixel of the picture the number of its class among these, from 1 on.
  const map = new Uint16Array(picture.width * picture.height);
  classes.forEach(({ mask }, number) => fill(map, picture.width, pieces(mask, picture.width, picture.height), number + 1));

  const legend = switches(part(".switches"), classes.map(({ label, share }, number) => ({
    label, share, colour: colours[number], off: label === BACKGROUND,
  })), () => update(true));
  classes.forEach(({ share }, number) => legend.tell(number, percent(share)));

  const repaint = layer(stack, picture, (pixels) => {
    const opacity = Number(slider.value) / 100;
    const shown = chosen !== null && legend.on(chosen) ? chosen : null;
    const values = Uint32Array.from([0, ...classes.map((one, number) => {
      if (!legend.on(number)) return 0;
      return pixel(colours[number], shown === null ? opacity : number === shown ? CHOSEN : OTHERS);
    })]);
    for (let place = 0; place < map.length; place += 1) pixels[place] = values[map[place]];
  });

  // The class whose entry has focus or pointer stands out.
  let chosen = null;
  const choose = (number) => {
    chosen = number;
    legend.rows.forEach((row, one) => row.classList.toggle("chosen", one === number));
    repaint();
  };
  legend.rows.forEach((row, number) => {
    row.addEventListener("pointerenter", () => choose(number));
    row.addEventListener("pointerleave", () => choose(null));
    row.addEventListener("focusin", () => choose(number));
    row.addEventListener("focusout", () => choose(null));
  });

  // The class under the pointer, over the picture.
  const say = tag(stack);
  const leave = () => {
    say();
    for (const row of legend.rows) row.classList.remove("under");
  };
  stack.addEventListener("pointermove", ({ clientX, clientY }) => {
    const { left, top, width, height } = picture.getBoundingClientRect();
    const [x, y] = [(clientX - left) / width, (clientY - top) / height];
    const column = Math.min(Math.floor(x * picture.width), picture.width - 1);
    const row = Math.min(Math.floor(y * picture.height), picture.height - 1);
    const number = map[row * picture.width + column] - 1;
    leave();
    if (!(number >= 0)) return;
    say(`${classes[number].label} ${percent(classes[number].share)}`, x, y);
    legend.rows[number].classList.add("under");
  });
  stack.addEventListener("pointerleave", leave);
  stack.closest("article").addEventListener("keydown", ({ key }) => {
    if (key !== "Escape") return;
    leave();
    choose(null);
  });

  function update(announced) {
    dial.querySelector("output").value = `${slider.value} %`;
    slider.setAttribute("aria-valuetext", `${slider.value} %`);
    changed(shared(classes.filter((one, number) => legend.on(number)), classes.length, [high, wide]), announced);
    repaint();
  }
  part(".bars").replaceChildren(); // the legend has the same lines
  slider.min = 0;
  slider.value = OPACITY;
  slider.setAttribute("aria-label", "Opacity of the classes over the image");
  dial.firstElementChild.textContent = "Opacity";
  dial.hidden = false;
  slider.oninput = () => update(false);
  update(true);
}
