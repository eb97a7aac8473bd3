// Posts an image in each way that fetch and node:http have.
import { readFileSync } from "node:fs";
import http from "node:http";

const [address, path] = process.argv.slice(2);
const image = readFileSync(path);
const headers = { "Content-Type": "image/png" };

async function* pieces() {
  for (let start = 0; start < image.length; start += 50) yield image.subarray(start, start + 50);
}

function post(extra) {
  return new Promise((resolve, reject) => {
    const options = { method: "POST", agent, headers: { ...headers, ...extra } };
    const request = http.request(address, options, async (response) => {
      let answer = "";
      for await (const piece of response) answer += piece;
      resolve(answer);
    });
    request.on("error", reject);
    if (extra.Expect) {
      request.on("continue", () => request.end(image));
      request.flushHeaders();
    } else request.end(image);
  });
}

const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
const form = new FormData();
form.append("image", new Blob([image]), "a.png");
for (const body of [image, form]) {
  const answer = await fetch(address, { method: "POST", body, ...(body === form ? {} : { headers }) });
  console.log(await answer.text());
}
const streamed = await fetch(address, { method: "POST", headers, body: pieces(), duplex: "half" });
console.log(await streamed.text());
console.log(await post({ "Content-Length": image.length, Expect: "100-continue" }));
console.log(await post({ "Transfer-Encoding": "chunked" }));
agent.destroy();
