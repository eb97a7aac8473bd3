// The lines of code that ask the same.

import { keyed } from "./service.js";

export function snippets(article, name, field) {
  const url = new URL("predict", location.href).href;
  const key = keyed();
  const texts = [
    `curl ${key ? '-H "X-API-Key: $API_KEY" ' : ""}-F ${quoted(`image=@${name}`)} ${quoted(url)}`,
    [
      ...(key ? ["import os", ""] : []),
      "import httpx",
      "",
      `with open(${JSON.stringify(name)}, "rb") as image:`,
      `    answer = httpx.post(${JSON.stringify(url)}, files={"image": image}` +
        `${key ? ', headers={"X-API-Key": os.environ["API_KEY"]}' : ""})`,
      `print(answer.raise_for_status().json()${field})`,
    ].join("\n"),
  ];
  article.querySelectorAll(".snippet").forEach((snippet, index) => {
    const [pre, button] = [snippet.querySelector("pre"), snippet.querySelector("button")];
    pre.textContent = texts[index];
    const title = button.textContent;
    button.addEventListener("click", async () => {
      button.textContent = (await copied(pre)) ? "Copied" : "Select and copy it";
      setTimeout(() => { button.textContent = title; }, 2000);
    });
  });
}

// As a shell wants a word that may hold anything.
const quoted = (word) => (/^[\w./:=@-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`);

// A page that came over plain HTTP from another machine has no clipboard but the old one.
async function copied(pre) {
  if (navigator.clipboard) return navigator.clipboard.writeText(pre.textContent).then(() => true, () => false);
  getSelection().selectAllChildren(pre);
  return document.execCommand("copy");
}
