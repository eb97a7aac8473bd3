// The colours of classes: those of the service's own drawings, in tasks/drawing.py.

const OBJECTS = [
  [230, 25, 75], [0, 130, 200], [60, 180, 75], [245, 130, 48], [145, 30, 180],
  [0, 128, 128], [170, 110, 40], [128, 0, 0], [128, 128, 0], [0, 0, 128],
];
export const ofObjects = (index) => OBJECTS[index % OBJECTS.length];

// Pascal VOC's: from the lowest bit of an index on, every third goes to red, to green or to blue, the highest first.
export const ofAreas = (index) => [0, 1, 2].map((channel) => {
  let value = 0;
  for (let place = 0; place < 8; place += 1) value |= ((index >> (3 * place + channel)) & 1) << (7 - place);
  return value;
});

export const css = ([red, green, blue]) => `rgb(${red} ${green} ${blue})`;

// Black or white, whichever has more contrast with the colour: 4.5:1 at least (WCAG 2.2, relative luminance).
export function contrary(colour) {
  const [red, green, blue] = colour.map((value) => (value <= 10 ? value / 3294.6 : ((value / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 ? "#000" : "#fff";
}
