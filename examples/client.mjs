// A client: `node client.mjs URL IMAGE...` prints what a service says of each image.
// It waits as long as the service asks it to, when that is busy. In a browser, `body` is what an
// <input type="file"> holds.
import { readFile } from "node:fs/promises";
import { basename } from "node:path";
import { setTimeout } from "node:timers/promises";

const ATTEMPTS = 5;

async function predict(url, image, top = 3) {
  const body = new FormData();
  body.append("image", new Blob([await readFile(image)]), basename(image));
  for (let attempt = 1; ; attempt++) {
    const reply = await fetch(`${url}/predict?top=${top}`, { method: "POST", body });
    const answer = await reply.json();
    if (reply.ok) return answer;
    if (reply.status !== 503 || attempt === ATTEMPTS) throw new Error(`${reply.status}: ${answer.error}`);
    await setTimeout(1000 * Number(reply.headers.get("Retry-After")));
  }
}

const [url, ...images] = process.argv.slice(2);
for (const image of images) {
  try {
    for (const { label, probability } of (await predict(url, image)).top) {
      console.log(`${image}: ${label} ${probability.toFixed(3)}`);
    }
  } catch (error) {
    console.error(`${image}: ${error.message}`);
    process.exitCode = 1;
  }
}
