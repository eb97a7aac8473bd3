// An image file as the browser shows it, and as the model sees it.

// What `use` makes of the image in `file`, or null where the browser cannot show this format.
// upright: turned as its EXIF orientation says. Only an image in the document can be told not to be.
async function opened(file, upright, use) {
  const place = Object.assign(document.createElement("span"), { className: "unseen" });
  const image = Object.assign(document.createElement("img"), { alt: "", src: URL.createObjectURL(file) });
  image.style.imageOrientation = upright ? "from-image" : "none";
  place.append(image);
  document.body.append(place);
  try {
    await image.decode();
    return use(image, image.width, image.height);
  } catch {
    return null;
  } finally {
    URL.revokeObjectURL(image.src);
    place.remove();
  }
}

// Resize and centre crop onto `canvas`, as the service does it; null where the browser cannot.
export function crop(canvas, file, spec) {
  const size = spec?.crop ?? [224, 224];
  const resize = spec?.resize === undefined ? 256 : spec.resize;
  return opened(file, spec?.exif, (image, wide, high) => {
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

// The image as a JPEG file, for a service that does not read its format; null where the browser does not either.
export function jpeg(file) {
  return opened(file, true, async (image, width, height) => {
    const canvas = new OffscreenCanvas(width, height);
    canvas.getContext("2d").drawImage(image, 0, 0, width, height);
    const blob = await canvas.convertToBlob({ type: "image/jpeg", quality: 0.95 });
    return new File([blob], `${file.name}.jpg`, { type: blob.type });
  });
}
