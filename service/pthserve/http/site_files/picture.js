// An image file as the browser shows it, and as the model sees it.

const EXIF = 0xe1, PIXELS = 0xda; // markers of a JPEG's segments

const LARGE = 1600; // pixels a side of a picture that is shown whole, at most
const NARROW = 12; // how many times longer than the other a side is shown, at most

// What `use` makes of the image in `file`, or null where the browser cannot show this format.
async function opened(file, use) {
  const image = new Image();
  image.src = URL.createObjectURL(file);
  try {
    await image.decode();
    return await use(image);
  } catch {
    return null;
  } finally {
    URL.revokeObjectURL(image.src);
  }
}

// `file` as it lies: without the EXIF by which browsers turn a photo upright, whatever they are told.
async function unturned(file) {
  const data = new DataView(await file.arrayBuffer());
  if (data.byteLength < 4 || data.getUint16(0) !== 0xffd8) return file;
  const kept = [data.buffer.slice(0, 2)];
  let at = 2;
  while (at + 4 <= data.byteLength && data.getUint8(at + 1) !== PIXELS) {
    const end = at + 2 + data.getUint16(at + 2);
    if (data.getUint8(at + 1) !== EXIF) kept.push(data.buffer.slice(at, end));
    at = end;
  }
  return new Blob([...kept, data.buffer.slice(at)], { type: file.type });
}

// Resize and centre crop onto `canvas`, as the service does it; null where the browser cannot.
export async function crop(canvas, file, spec) {
  const size = spec?.crop ?? [224, 224];
  const resize = spec?.resize === undefined ? 256 : spec.resize;
  return opened(spec?.exif ? file : await unturned(file), (image) => {
    const { naturalWidth: wide, naturalHeight: high } = image;
    const scale = typeof resize === "number" ? resize / Math.min(wide, high) : 1;
    const [height, width] = Array.isArray(resize) ? resize : [high * scale, wide * scale];
    [canvas.height, canvas.width] = size;
    canvas.classList.toggle("grey", spec?.mean.length === 1);
    canvas.classList.toggle("coarse", size[1] < 112);
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(image, (size[1] - width) / 2, (size[0] - height) / 2, width, height);
    return canvas;
  });
}

// The whole image onto `canvas`, made smaller where it is large; null where the browser cannot.
export async function whole(canvas, file, spec) {
  return opened(spec?.exif ? file : await unturned(file), (image) => {
    const { naturalWidth: wide, naturalHeight: high } = image;
    const scale = Math.min(1, LARGE / Math.max(wide, high));
    [canvas.width, canvas.height] = [wide, high].map((side) => Math.max(1, Math.round(side * scale)));
    canvas.classList.toggle("grey", spec?.mean.length === 1);
    canvas.classList.toggle("coarse", Math.max(wide, high) < 112);
    // Neither as narrow as a line, nor higher than the window.
    canvas.parentElement.style.setProperty("--ratio", Math.min(Math.max(wide / high, 1 / NARROW), NARROW));
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    return canvas;
  });
}

// The image as a JPEG file, for a service that does not read its format; null where the browser does not either.
export function jpeg(file) {
  return opened(file, async (image) => {
    const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
    canvas.getContext("2d").drawImage(image, 0, 0);
    const blob = await canvas.convertToBlob({ type: "image/jpeg", quality: 0.95 });
    return new File([blob], `${file.name}.jpg`, { type: blob.type });
  });
}
