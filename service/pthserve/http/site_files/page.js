import { classes, facts } from "./card.js";
import { watch } from "./live.js";
import { card } from "./result.js";
import { ask, forgetKey, keyed, setKey } from "./service.js";

const AT_ONCE = 4; // images on their way to the service
const AGAIN = 2000; // milliseconds until the service is looked for again
const byId = (id) => document.getElementById(id);
const root = document.documentElement;

// The theme: the system's, until somebody chooses.
const system = matchMedia("(prefers-color-scheme: dark)");
const dark = () => (root.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
const paint = () => byId("theme").setAttribute("aria-pressed", dark());
byId("theme").addEventListener("click", () => {
  root.dataset.theme = dark() ? "light" : "dark";
  localStorage.setItem("theme", root.dataset.theme);
  paint();
});
system.addEventListener("change", paint);
paint();

let info = null;
let retry = 0;
function state(kind, text) {
  byId("state").className = kind;
  if (byId("state").textContent !== text) byId("state").textContent = text;
}

async function introduce() {
  clearTimeout(retry);
  try {
    info = await (await ask("info")).json();
  } catch (error) {
    if (error.status === 401) locked();
    else {
      state(error.status === 503 ? "soon" : "off", error.message);
      retry = setTimeout(introduce, AGAIN);
    }
    return;
  }
  byId("key-form").hidden = true;
  byId("forget").hidden = !keyed();
  byId("name").textContent = info.name;
  document.title = `${info.name} · pthserve`;
  state("on", "ready");
  byId("card-note").hidden = true;
  facts(byId("facts"), info);
  for (const again of document.querySelectorAll(".locked .again")) again.click();
  classes(byId("classes"), byId("find"), byId("labels"), byId("found"), info);
}

// Without a key, or with one that does not fit.
function locked() {
  state("soon", "waits for an API key");
  byId("key-error").textContent = keyed() ? "That is none of this service's keys. Look at it again, or ask whoever runs the service." : "";
  forgetKey();
  byId("forget").hidden = true;
  byId("key-form").hidden = false;
  byId("key").focus();
}
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey(byId("key").value.trim());
  byId("key").value = "";
  introduce();
});
byId("forget").addEventListener("click", () => {
  forgetKey();
  info = null;
  introduce();
});

const page = {
  info: () => info,
  announce: (text) => { byId("said").textContent = text; },
  answered: async (said) => { if (said.model.digest !== info?.digest) await introduce(); }, // another model is served by now
  failed: (error) => { if (error.status === 401) locked(); },
};

let busy = 0;
const waiting = [];
async function work() {
  if (busy === AT_ONCE) return;
  busy += 1;
  while (waiting.length) await waiting.shift()();
  busy -= 1;
}
function show(files) {
  if (!files.length) return;
  const cards = Array.from(files, (file) => card(page, file));
  byId("results").prepend(...cards.map(({ article }) => article));
  waiting.push(...cards.map(({ run }) => run));
  byId("drop").classList.add("small");
  for (let worker = 0; worker < AT_ONCE; worker += 1) work();
}

for (const [button, input] of [["choose", "files"], ["photograph", "camera"]]) {
  byId(button).addEventListener("click", () => byId(input).click());
  byId(input).addEventListener("change", ({ target }) => {
    show(target.files);
    target.value = "";
  });
}

byId("photograph").hidden = !navigator.maxTouchPoints; // a desk has a camera that nobody holds over anything

let depth = 0; // dragenter and dragleave come for each child too
const over = (change) => root.classList.toggle("over", (depth = Math.max(0, depth + change)) > 0);
addEventListener("dragenter", () => over(1));
addEventListener("dragleave", () => over(-1));
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  over(-depth);
  show(event.dataTransfer.files);
});
addEventListener("paste", ({ clipboardData }) => show(clipboardData.files));

watch(byId("live"), byId("gauges"), byId("live-note"), () => ask("metrics"));
introduce();
