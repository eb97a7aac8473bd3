// The routes, as /openapi.json tells of them.

const TAGS = ["Predict", "Model", "Probes"]; // first, in this order; then the others as they come
const main = document.getElementById("routes");

function make(tag, about = {}, ...children) {
  const element = Object.assign(document.createElement(tag), about);
  element.append(...children);
  return element;
}
const text = (tag, textContent, className = "") => make(tag, { textContent, className });
const json = (value) => make("pre", { tabIndex: 0, textContent: JSON.stringify(value, null, 2) });

// What a schema says of itself, in a word or two.
function kind(schema) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map(kind).join(" or ");
  if (schema.type === "array") return `list of ${kind(schema.items) || "anything"}`;
  if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(" or ");
  return schema.format === "binary" ? "file" : schema.type ?? "anything";
}

// A list of fields by name, those of lists and objects within it included.
function fields(schema, schemas, seen = []) {
  const choice = schema?.anyOf?.find((one) => one.$ref || one.items) ?? schema;
  const inner = choice?.items ?? choice;
  const name = inner?.$ref && kind(inner);
  if (seen.includes(name)) return "";
  const whole = name ? schemas[name] : inner;
  if (!whole?.properties) return "";
  return make("dl", {}, ...Object.entries(whole.properties).flatMap(([field, about]) => [
    make("dt", {}, text("code", field)),
    make("dd", {}, make("p", {}, text("span", kind(about), "note"), ` ${about.description ?? ""}`), fields(about, schemas, [...seen, name])),
  ]));
}

function bodies(content, schemas) {
  return Object.entries(content ?? {}).flatMap(([type, { schema, example }]) => [
    make("p", {}, text("code", type)),
    fields(schema, schemas),
    ...(example === undefined ? [] : [json(example)]),
  ]);
}

function operation(path, method, about, schemas) {
  const given = (about.parameters ?? []).flatMap(({ name, in: place, description, required, schema }) => [
    make("dt", {}, text("code", name)),
    make("dd", {}, text("span", `${place}, ${kind(schema)}${required ? "" : ", optional"}${schema?.default === undefined ? "" : `, default ${schema.default}`}`, "note"), ` ${description ?? ""}`),
  ]);
  const answers = Object.entries(about.responses).map(([code, { description, content }]) => make(
    "details",
    { className: "answer" },
    make("summary", {}, text("b", code), text("span", description === "Successful Response" ? "the answer" : description, "told")),
    ...bodies(content, schemas),
  ));
  return make(
    "details",
    {},
    make("summary", {}, text("b", method.toUpperCase(), `method ${method}`), text("code", path), text("span", about.summary ?? "", "note")),
    text("p", about.description ?? ""),
    ...(method === "get" && !path.includes("{") ? [make("p", {}, make("a", { href: path.slice(1), textContent: "Open it" }))] : []),
    ...(given.length ? [text("h3", "What it takes"), make("dl", {}, ...given)] : []),
    ...(about.requestBody ? [text("h3", "What is sent"), ...bodies(about.requestBody.content, schemas)] : []),
    text("h3", "What comes back"),
    ...answers,
  );
}

try {
  const { paths, components } = await (await fetch("openapi.json")).json();
  const groups = new Map(TAGS.map((tag) => [tag, []]));
  for (const [path, operations] of Object.entries(paths)) {
    for (const [method, about] of Object.entries(operations)) {
      const tag = about.tags?.[0] ?? "Others";
      groups.set(tag, [...(groups.get(tag) ?? []), operation(path, method, about, components?.schemas ?? {})]);
    }
  }
  main.replaceChildren(...[...groups].filter(([, routes]) => routes.length)
    .map(([tag, routes]) => make("section", {}, text("h2", tag), ...routes)));
} catch {
  document.getElementById("state").textContent = "The service cannot be reached. Is it still running?";
}
