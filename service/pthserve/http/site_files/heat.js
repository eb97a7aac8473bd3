// A map of evidence as colour over the crop, as http/explain.py draws it.

// Viridis, sampled at five places (Smith and van der Walt, 2015): it reads the same to the colour-blind and in grey.
const STOPS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
const COLD = 0.3; // opacity where nothing spoke for the class, as a share of the warmest place's

function colour(value) {
  const place = Math.min(Math.max(value, 0), 1) * (STOPS.length - 1);
  const left = Math.min(Math.floor(place), STOPS.length - 2);
  const mixed = STOPS[left].map((from, channel) => from + (STOPS[left + 1][channel] - from) * (place - left));
  return [...mixed, 255 * (COLD + (1 - COLD) * value)];
}

// map: rows of values in 0..1, of any size; the browser's own smoothing brings it to the crop's.
export function heat(canvas, map, crop) {
  const small = new OffscreenCanvas(map[0].length, map.length);
  const pixels = new ImageData(small.width, small.height);
  map.flat().forEach((value, index) => pixels.data.set(colour(value), 4 * index));
  small.getContext("2d").putImageData(pixels, 0, 0);
  [canvas.width, canvas.height] = [crop.width, crop.height];
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
}
