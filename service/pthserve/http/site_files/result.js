// One image and what the model says of it.

import { told } from "./answer.js";
import { bar } from "./bar.js";
import { snippets } from "./code.js";
import { heat } from "./heat.js";
import { crop, jpeg, whole } from "./picture.js";
import { ask, form } from "./service.js";

// Of the tasks whose answers are places in the image: what shows them over it.
const VIEWS = { detection: () => import("./objects.js"), segmentation: () => import("./areas.js") };
const LOWEST = 0.05; // score from which on objects are asked for, so that a slider can show them
const TRIES = 20; // of an image that a busy service turns away
const HOPELESS = [400, 413, 415, 422]; // statuses that the same image will get again
const milliseconds = (seconds) => `${(1000 * seconds).toFixed(1)} ms`;
const pause = (seconds) => new Promise((done) => { setTimeout(done, 1000 * seconds); });
const bytes = (size) => (size < 1e6 ? `${Math.ceil(size / 1000)} kB` : `${(size / 1e6).toFixed(1)} MB`);

// A card for `file`, and what has it filled in.
// page: info() is what /info says or null; announce(text), answered(said) and failed(error) are told.
export function card(page, file) {
  const article = document.getElementById("result").content.cloneNode(true).querySelector("article");
  const part = (selector) => article.querySelector(selector);
  const about = `${file.name} · ${bytes(file.size)}`;
  part(".file").textContent = about;
  part(".away").setAttribute("aria-label", `Remove ${file.name}`);
  part(".away").addEventListener("click", () => {
    (article.nextElementSibling?.querySelector(".away") ?? document.getElementById("choose")).focus();
    article.remove();
  });
  part(".again").addEventListener("click", run);

  // Whether the browser shows `sent`: what the model sees of it or, where the answer is of places in it, all of it.
  async function see(sent) {
    const { preprocess, task } = page.info() ?? {};
    const all = task !== undefined && task.name in VIEWS;
    const seen = (await (all ? whole : crop)(part(".crop"), sent, preprocess)) !== null;
    article.classList.toggle("whole", all);
    part(".crop").setAttribute("aria-label", all ? file.name : `${file.name}, cropped as the model sees it`);
    part("figure").hidden = false;
    part("figcaption").textContent = seen ? caption(article) : "this browser cannot show this format";
    return seen;
  }

  // The file that was sent, and the answer; browsers read formats that the service does not, such as HEIC.
  async function predicted(sent) {
    const tell = (text) => { part("h3").textContent = text; };
    const { name, threshold } = page.info()?.task ?? {};
    const path = name === "detection" ? `predict?threshold=${Math.min(LOWEST, threshold)}` : "predict?top=5";
    try {
      return [sent, await (await patiently(() => ask(path, form(sent)), tell)).json()];
    } catch (error) {
      const other = error.status === 415 && sent === file ? await jpeg(file) : null;
      if (other === null) throw error;
      part(".file").textContent = `${about} · sent as JPEG, since the service reads no such file`;
      return predicted(other);
    }
  }

  async function run() {
    part(".error").textContent = "";
    part(".again").hidden = true;
    part("h3").textContent = "Asking the model";
    article.classList.remove("locked");
    article.classList.add("asking");
    const known = page.info();
    let seen = await see(file);
    try {
      const began = performance.now();
      const [sent, said] = await predicted(file);
      const seconds = (performance.now() - began) / 1000;
      await page.answered(said);
      if (sent !== file || page.info() !== known) seen = await see(sent);
      const { field, index } = show(said, seconds);
      snippets(article, file.name, field);
      if (said.task in VIEWS) await (seen ? view(said) : drawing(sent));
      if (page.info()?.explain && index !== undefined) explains(article, sent, index, seen);
    } catch (error) {
      const locked = error.status === 401;
      article.classList.toggle("locked", locked);
      part("h3").textContent = locked ? "No answer without a key" : "No answer";
      part(".error").textContent = locked ? "Enter the key above; the answer comes by itself then." : error.message;
      part("figure").hidden = !seen;
      part(".again").hidden = locked || HOPELESS.includes(error.status);
      page.failed(error);
    }
    article.classList.remove("asking");
  }

  function headline({ title, note, summary }, announced = true) {
    part("h3").replaceChildren(`${title} `, Object.assign(document.createElement("small"), { textContent: note }));
    if (announced) page.announce(`${file.name}: ${summary ?? `${title}, ${note}`}`);
  }

  // Places over the image, and what goes with them.
  async function view(said) {
    const { show: over } = await VIEWS[said.task]().catch(() => {
      throw new Error("This page and the service are of different versions. Reload the page.");
    });
    over(part, said, page.info()?.task.threshold ?? said.threshold, headline);
  }

  // Of an image that the browser cannot show, the service's own drawing.
  async function drawing(sent) {
    const asked = { ...form(sent), headers: { Accept: "image/png" } };
    let drawn;
    try {
      drawn = await (await patiently(() => ask("predict?picture=overlay", asked), () => {})).blob();
    } catch (error) {
      part(".error").textContent = error.message;
      return;
    }
    part(".heated").src = URL.createObjectURL(drawn);
    part(".heated").alt = part("h3").textContent;
    part(".heated").hidden = false;
    part(".crop").hidden = true;
  }

  function show(said, seconds) {
    const answer = told(said, page.info()?.task.threshold);
    headline(answer);
    part(".bars").replaceChildren(...answer.rows.map(bar));
    const stages = ["decode", "queue", "infer"].map((stage) => [stage, said.timing[stage]]);
    part(".stages").replaceChildren(...stages.map(([stage, took]) => {
      const piece = Object.assign(document.createElement("span"), { className: stage });
      piece.style.flexGrow = 1e6 * took; // that sum to less than 1 fill no line
      return piece;
    }));
    part(".timing .note").replaceChildren(...stages.map(([stage, took]) =>
      Object.assign(document.createElement("span"), { className: stage, textContent: `${stage} ${milliseconds(took)}` })),
    `${milliseconds(seconds)} round trip`);
    part(".timing").hidden = part(".same").hidden = false;
    return answer;
  }

  return { article, run };
}

// What `ask` gives, however often the service is too busy at first.
async function patiently(send, tell) {
  for (let tries = 1; ; tries += 1) {
    try {
      return await send();
    } catch (error) {
      if (error.status !== 503 || tries === TRIES) throw error;
      tell("Waiting for the service");
      await pause(error.wait);
    }
  }
}

function caption(article) {
  const { width, height } = article.querySelector(".crop");
  if (article.classList.contains("whole")) return "the whole image";
  return `${width} × ${height} pixels, as the model sees it`;
}

// The heat map: of the best class, or of whichever is chosen among the bars.
function explains(article, file, best, seen) {
  const part = (selector) => article.querySelector(selector);
  const [why, mix, canvas, slider] = [".why", ".mix", ".heat", ".mix input"].map(part);
  const rows = [...article.querySelectorAll(".bars button")];
  const maps = new Map();
  let shown = null;

  async function show(index) {
    const { label } = rows.find((row) => row.dataset.index === String(index)).dataset;
    part(".error").textContent = "";
    article.classList.add("asking");
    try {
      if (!maps.has(index)) maps.set(index, await (seen ? numbers : picture)(file, index));
      const { map, method, url } = maps.get(index);
      if (seen) heat(canvas, map, part(".crop"));
      else part(".heated").src = url;
      const words = `what spoke for ${label}${method ? `, by ${method}` : ""}`;
      canvas.setAttribute("aria-label", words);
      part(".heated").alt = words;
      part("figcaption").textContent = words;
      turn(index);
    } catch (error) {
      part(".error").textContent = error.message;
    }
    article.classList.remove("asking");
  }

  function turn(index) {
    shown = index;
    canvas.hidden = mix.hidden = index === null || !seen;
    part(".heated").hidden = index === null || seen;
    part(".crop").hidden = !seen;
    for (const row of rows) row.setAttribute("aria-pressed", String(index) === row.dataset.index);
    why.setAttribute("aria-pressed", index !== null);
    why.textContent = index === null ? "Show why" : "Hide the heat map";
    if (index === null && seen) part("figcaption").textContent = caption(article);
  }

  const toggle = (index) => (shown === index ? turn(null) : show(index));
  for (const row of rows) {
    row.disabled = false;
    row.title = `What spoke for ${row.dataset.label}?`;
    row.addEventListener("click", () => toggle(Number(row.dataset.index)));
  }
  why.hidden = part(".hint").hidden = false;
  why.onclick = () => toggle(shown ?? best);
  slider.oninput = () => { canvas.style.opacity = slider.value / 100; };
  slider.oninput();
  turn(null);
}

async function numbers(file, index) {
  return (await ask(`explain?class=${index}`, { ...form(file), headers: { Accept: "application/json" } })).json();
}

// Of an image that the browser cannot show, the service's own drawing.
async function picture(file, index) {
  return { url: URL.createObjectURL(await (await ask(`explain?class=${index}`, form(file))).blob()) };
}
