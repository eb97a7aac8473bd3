// The service behind the page, and the key that it may ask for.

const KEY = "api-key"; // in the tab's own storage, which ends with the tab

export const keyed = () => sessionStorage.getItem(KEY) !== null;
export const setKey = (key) => sessionStorage.setItem(KEY, key);
export const forgetKey = () => sessionStorage.removeItem(KEY);

// The answer to one request. Where it is none: an Error with a sentence for a person, the HTTP `status` (0 where
// nobody answered), and `wait`, the seconds after which to try again.
export async function ask(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key && { "X-API-Key": key }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch {
    const error = new Error("The service cannot be reached. Is it still running, and are you online?");
    throw Object.assign(error, { status: 0 });
  }
  if (response.ok) return response;
  const said = await response.json().catch(() => ({}));
  throw Object.assign(new Error(sentence(said.error ?? `the service answered ${response.status}`)), {
    status: response.status,
    wait: Number(response.headers.get("Retry-After")) || 1,
  });
}

// A form with the image, as /predict and /explain take it.
export function form(file) {
  const body = new FormData();
  body.append("image", file);
  return { method: "POST", body };
}

const sentence = (text) => text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
