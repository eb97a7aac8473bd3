// What lies over the picture: pixels of masks and classes, and a tag that names one place.

// A canvas over the picture, as large as it. paint(pixels) fills its pixels, one number each, before the next frame
// after repaint() was called, however often that was.
export function layer(stack, picture, paint) {
  const canvas = Object.assign(document.createElement("canvas"), { className: "over", width: picture.width, height: picture.height });
  canvas.classList.toggle("coarse", picture.classList.contains("coarse"));
  canvas.setAttribute("aria-hidden", "true");
  stack.append(canvas);
  let due = 0;
  let image = null;
  return function repaint() {
    due ||= requestAnimationFrame(() => {
      due = 0;
      image ??= new ImageData(canvas.width, canvas.height);
      paint(new Uint32Array(image.data.buffer));
      canvas.getContext("2d").putImageData(image, 0, 0);
    });
  };
}

// A colour as one pixel; opacity is 0 to 1.
const word = new Uint8ClampedArray(4);
export function pixel(colour, opacity) {
  word.set([...colour, 255 * opacity]);
  return new Uint32Array(word.buffer)[0];
}

// Gives the pixels of a mask, by its `pieces`, this value; `width` is that of the picture.
export function fill(pixels, width, pieces, value) {
  for (let at = 0; at < pieces.length; at += 3) {
    const column = pieces[at], end = pieces[at + 2] * width;
    for (let row = pieces[at + 1] * width; row < end; row += width) pixels[row + column] = value;
  }
}

// A tag with a text at a place in the picture, in shares of its width and height; no text hides it. What it says is in
// the list beside the picture, too.
export function tag(stack) {
  const box = Object.assign(document.createElement("p"), { className: "tag", hidden: true });
  box.setAttribute("aria-hidden", "true");
  stack.append(box);
  return (text, x = 0, y = 0) => {
    box.hidden = !text;
    box.textContent = text ?? "";
    const percent = (share) => `${100 * Math.min(Math.max(share, 0), 1)}%`;
    [box.style.left, box.style.right] = x <= 0.5 ? [percent(x), "auto"] : ["auto", percent(1 - x)];
    [box.style.top, box.style.bottom] = y <= 0.15 ? [percent(y), "auto"] : ["auto", percent(1 - y)];
  };
}
