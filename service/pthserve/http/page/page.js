import { facts, watch } from "./live.js";
import { answer } from "./result.js";
import { ask, setKey } from "./service.js";

const byId = (id) => document.getElementById(id);
const root = document.documentElement;

// The theme: the system's, until somebody chooses; the choice lasts as long as the tab.
const system = matchMedia("(prefers-color-scheme: dark)");
function paint() {
  const dark = (sessionStorage.getItem("theme") ?? (system.matches ? "dark" : "light")) === "dark";
  root.dataset.theme = dark ? "dark" : "light";
  byId("theme").setAttribute("aria-pressed", dark);
}
byId("theme").addEventListener("click", () => {
  sessionStorage.setItem("theme", root.dataset.theme === "dark" ? "light" : "dark");
  paint();
});
system.addEventListener("change", paint);
paint();

let info = null;
async function introduce() {
  try {
    info = await (await ask("info")).json();
  } catch (error) {
    byId("state").textContent = error.message;
    if (error.status === 401) byId("key-form").hidden = false;
    else setTimeout(introduce, 2000);
    return;
  }
  byId("key-form").hidden = true;
  document.title = byId("name").textContent = info.name;
  byId("state").textContent = `ready, ${info.num_classes} classes`;
  facts(byId("facts"), info);
}

function show(files) {
  for (const file of files) answer(byId("results"), file, info, () => { byId("key-form").hidden = false; });
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey(byId("key").value);
  byId("key").value = "";
  byId("key-form").hidden = true;
  introduce();
});

for (const [button, input] of [["choose", "files"], ["photograph", "camera"]]) {
  byId(button).addEventListener("click", () => byId(input).click());
  byId(input).addEventListener("change", ({ target }) => {
    show(target.files);
    target.value = "";
  });
}

let depth = 0; // dragenter and dragleave come for each child too
const over = (change) => byId("drop").classList.toggle("over", (depth = Math.max(0, depth + change)) > 0);
addEventListener("dragenter", () => over(1));
addEventListener("dragleave", () => over(-1));
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  over(-depth);
  show(event.dataTransfer.files);
});
addEventListener("paste", ({ clipboardData }) => show(clipboardData.files));

watch(byId("live"), byId("gauges"), byId("live-note"));
introduce();
