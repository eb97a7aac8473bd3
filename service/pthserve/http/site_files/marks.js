// Boxes, masks and keypoints of objects, drawn over the picture.

import { percent } from "./answer.js";
import { contrary, css, ofObjects } from "./colours.js";
import { fill, layer, pixel, tag } from "./layers.js";
import { pieces } from "./runs.js";

const MASK = 0.45; // opacity of masks, as the service draws them
const CHOSEN = 0.75, OTHERS = 0.15; // and of the chosen object's and the others', where one is chosen
const svg = (name, about) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(about)) element.setAttribute(key, value);
  return element;
};

// Draws the objects of an image of `high` x `wide` pixels over `picture`, the canvas in `stack`. The result: the drawing,
// whose parts have the number of their object as `data-index`, and update(visible, chosen), which is given whether each
// object is shown and the number of the one that stands out, or null.
export function marks(stack, picture, detections, [high, wide]) {
  let shown = [];
  let one = null;
  const masks = detections.map(({ mask }) => mask && pieces(mask, picture.width, picture.height));
  const paint = (pixels) => {
    pixels.fill(0);
    const put = (number, opacity) => {
      if (masks[number]) fill(pixels, picture.width, masks[number], pixel(ofObjects(detections[number].class_index), opacity));
    };
    for (let number = masks.length - 1; number >= 0; number -= 1) { // the surest on top
      if (shown[number] && number !== one) put(number, one === null ? MASK : OTHERS);
    }
    if (one !== null) put(one, CHOSEN);
  };
  const repaint = masks.some(Boolean) ? layer(stack, picture, paint) : () => {};

  const groups = detections.map(group);
  const drawing = svg("svg", { viewBox: `0 0 ${wide} ${high}`, preserveAspectRatio: "none", class: "over", "aria-hidden": "true" });
  const areas = detections.map(({ box: [left, top, right, bottom] }) => (right - left) * (bottom - top));
  // The smallest on top, so that each can be pointed at.
  drawing.append(...[...groups.keys()].sort((a, b) => areas[b] - areas[a]).map((number) => groups[number]));
  stack.append(drawing);
  const say = tag(stack);

  function update(visible, chosen) {
    [shown, one] = [visible, chosen];
    groups.forEach((element, number) => {
      element.toggleAttribute("hidden", !visible[number]);
      element.classList.toggle("chosen", number === chosen);
    });
    drawing.classList.toggle("choosing", chosen !== null);
    if (chosen === null) say();
    else {
      const { label, score, box } = detections[chosen];
      say(`${label} ${percent(score)}`, box[0] / wide, box[1] / high);
    }
    repaint();
  }
  return { drawing, update };
}

// Box and keypoints of one object. Each line has another below it, black or white, so that it is seen on any picture.
function group({ box: [left, top, right, bottom], keypoints, class_index: index }, number) {
  const stroke = css(ofObjects(index));
  const both = svg("g", { "data-index": number, stroke: contrary(ofObjects(index)) });
  const box = { x: left, y: top, width: Math.max(right - left, 0), height: Math.max(bottom - top, 0) };
  both.append(svg("rect", { ...box, class: "casing" }), svg("rect", { ...box, stroke }));
  if (keypoints) {
    const points = { d: keypoints.map(({ x, y }) => `M${x} ${y}h.01`).join("") };
    both.append(svg("path", { ...points, class: "casing" }), svg("path", { ...points, stroke }));
  }
  return both;
}
