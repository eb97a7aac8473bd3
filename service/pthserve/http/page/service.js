// The service behind the page, and the key that it may ask for.

export function setKey(key) {
  sessionStorage.setItem("key", key);
}

export function keyed() {
  return sessionStorage.getItem("key") !== null;
}

// The answer to one request; an Error with its `status` and a sentence for a person where it is none.
export async function ask(path, options = {}) {
  const key = sessionStorage.getItem("key");
  const headers = { ...options.headers, ...(key && { "X-API-Key": key }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch {
    throw new Error("The service cannot be reached. Is it still running?");
  }
  if (response.ok) return response;
  const said = await response.json().catch(() => ({}));
  throw Object.assign(new Error(said.error ?? `The service answered ${response.status}.`), { status: response.status });
}
