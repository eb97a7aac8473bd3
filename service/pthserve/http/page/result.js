// One image and what the model says of it.

import { heat } from "./heat.js";
import { ask, keyed } from "./service.js";

const percent = (probability) => `${(100 * probability).toFixed(1)} %`;
const milliseconds = (seconds) => `${(1000 * seconds).toFixed(1)} ms`;

export async function answer(results, file, info, needKey) {
  const article = document.getElementById("result").content.cloneNode(true).querySelector("article");
  const part = (selector) => article.querySelector(selector);
  part("h3").textContent = file.name;
  part(".crop").setAttribute("aria-label", `${file.name}, cropped as the model sees it`);
  results.prepend(article);
  const cropped = crop(part(".crop"), file, info?.preprocess);
  let said;
  try {
    const body = new FormData();
    body.append("image", file);
    said = await (await ask("predict?top=5", { method: "POST", body })).json();
  } catch (error) {
    part(".error").textContent = error.message;
    part(".error").hidden = false;
    part("figure").hidden = !(await cropped);
    if (error.status === 401) needKey();
    return;
  }
  part(".bars").replaceChildren(...said.top.map(bar));
  part(".timing").textContent = ["decode", "queue", "infer"]
    .map((stage) => `${stage} ${milliseconds(said.timing[stage])}`).join(" · ");
  part(".same").hidden = false;
  snippets(article, file.name);
  if (info?.explain !== false && (await cropped)) why(article, file, said);
}

function bar({ label, probability }) {
  const item = document.createElement("li");
  const progress = document.createElement("progress");
  progress.max = 1;
  progress.value = probability;
  progress.setAttribute("aria-hidden", "true");
  const line = document.createElement("span");
  for (const text of [label, percent(probability)]) {
    line.append(Object.assign(document.createElement("b"), { textContent: text }));
  }
  item.append(progress, line);
  return item;
}

// Resize and centre crop, as the service does it; false where the browser cannot show this format.
async function crop(canvas, file, spec) {
  const size = spec?.crop ?? [224, 224];
  const resize = spec?.resize === undefined ? 256 : spec.resize;
  let image;
  try {
    image = await createImageBitmap(file, { imageOrientation: spec?.exif ? "from-image" : "none" });
  } catch {
    canvas.parentElement.parentElement.querySelector("figcaption").textContent = "this browser cannot show this format";
    return false;
  }
  const scale = typeof resize === "number" ? resize / Math.min(image.width, image.height) : 1;
  const [height, width] = Array.isArray(resize) ? resize : [image.height * scale, image.width * scale];
  [canvas.height, canvas.width] = size;
  canvas.getContext("2d").drawImage(image, (size[1] - width) / 2, (size[0] - height) / 2, width, height);
  image.close();
  return true;
}

function snippets(article, name) {
  const url = new URL("predict", location.href).href;
  const key = keyed();
  const quoted = `'${name.replaceAll("'", "'\\''")}'`;
  const texts = [
    `curl ${key ? '-H "X-API-Key: $API_KEY" ' : ""}-F image=@${quoted} ${url}`,
    [
      ...(key ? ["import os"] : []),
      "import httpx",
      "",
      `with open(${JSON.stringify(name)}, "rb") as image:`,
      `    answer = httpx.post("${url}", files={"image": image}${key ? ', headers={"X-API-Key": os.environ["API_KEY"]}' : ""})`,
      'print(answer.json()["label"])',
    ].join("\n"),
  ];
  article.querySelectorAll(".snippet").forEach((snippet, index) => {
    const [pre, button] = [snippet.querySelector("pre"), snippet.querySelector("button")];
    pre.textContent = texts[index];
    const title = button.textContent;
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(texts[index]);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = title; }, 2000);
    });
  });
}

function why(article, file, said) {
  const [button, mix, canvas] = [".why", ".mix", ".heat"].map((selector) => article.querySelector(selector));
  const slider = mix.querySelector("input");
  const blend = () => { canvas.style.opacity = slider.value / 100; };
  button.hidden = false;
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      const body = new FormData();
      body.append("image", file);
      const headers = { Accept: "application/json" };
      const explained = await (await ask(`explain?class=${said.class_index}`, { method: "POST", body, headers })).json();
      heat(canvas, explained.map, article.querySelector(".crop"));
      canvas.setAttribute("aria-label", `heat map: what spoke for ${said.label}, by ${explained.method}`);
      canvas.hidden = mix.hidden = false;
      button.hidden = true;
      blend();
      slider.focus();
    } catch (error) {
      article.querySelector(".error").textContent = error.message;
      article.querySelector(".error").hidden = false;
      button.disabled = false;
    }
  });
  slider.addEventListener("input", blend);
}
