// Masks: COCO's compressed run lengths, brought to the size of a picture.

// The lengths of runs of pixels that are in turn outside and inside the mask, down one column after the other: six bits
// a character, the lowest first (`rleFrString` of COCO's maskApi.c).
function lengths(counts) {
  const found = [];
  for (let at = 0; at < counts.length;) {
    let value = 0, factor = 1, bits;
    do {
      bits = counts.charCodeAt(at++) - 48;
      value += (bits & 31) * factor;
      factor *= 32;
    } while (bits & 32);
    if (bits & 16) value -= factor;
    found.push(value + (found.length > 2 ? found[found.length - 2] : 0));
  }
  return found;
}

// The pixels of a mask in a picture of `width` x `height`, no larger than the mask: in turn a column, the first row of
// it, and the row behind the last. Each pixel of the picture is the one of the mask that its centre is on.
export function pieces({ size: [rows, columns], counts }, width, height) {
  const shown = new Int32Array(columns).fill(-1);
  for (let x = 0; x < width; x += 1) shown[Math.floor(((x + 0.5) * columns) / width)] = x;
  const row = (at) => Math.ceil((at * height) / rows - 0.5);
  const found = [];
  let at = 0;
  lengths(counts).forEach((length, index) => {
    const end = at + length;
    while (at < end) {
      const column = Math.floor(at / rows);
      const stop = index % 2 ? Math.min(end, (column + 1) * rows) : end;
      if (index % 2 && shown[column] >= 0) {
        const [first, last] = [row(at - column * rows), row(stop - column * rows)];
        if (last > first) found.push(shown[column], first, last);
      }
      at = stop;
    }
  });
  return Int32Array.from(found);
}
