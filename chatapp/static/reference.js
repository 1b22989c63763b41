// The page of the API: what the server's descriptions (OpenAPI) say, as forms that send real requests.

import { button, element } from "./transcript.js";
import { readWait } from "./limit-headers.js";
import { duration } from "./words.js";

const MOST_SHOWN = 200_000; // characters of an answer

const at = (id) => document.getElementById(id);
let description = null;
let loads = 0;

async function load() {
  const url = at("document").value;
  const mine = (loads += 1);
  at("raw").href = url;
  at("problem").textContent = "";
  at("operations").replaceChildren();
  const response = await fetch(url, { headers: authorization() });
  const read = response.ok ? await response.json() : null;
  if (mine !== loads) return; // another one was begun meanwhile
  if (!response.ok) {
    at("about").textContent = "";
    at("problem").textContent =
      response.status === 401
        ? "Enter a management key, or the server's CHATAPP_ADMIN_TOKEN."
        : response.status === 404
          ? "This server has no management API. It has one if CHATAPP_ADMIN_TOKEN is set."
          : `The description cannot be read: status ${response.status}.`;
    return;
  }
  description = read;
  at("about").replaceChildren(...marked(description.info.description));
  for (const [path, methods] of Object.entries(description.paths)) {
    for (const [method, operation] of Object.entries(methods)) at("operations").append(shown(path, method, operation));
  }
  search();
  const linked = document.getElementById(location.hash.slice(1));
  if (linked) {
    linked.open = true;
    linked.scrollIntoView();
  }
}

function authorization() {
  const key = at("key").value.trim();
  return key ? { Authorization: `Bearer ${key}` } : {};
}

function search() {
  const words = at("search").value.toLowerCase().split(/\s+/);
  const operations = [...at("operations").children];
  for (const operation of operations) {
    operation.hidden = !words.every((word) => operation.words.includes(word));
  }
  at("none").hidden = !operations.length || operations.some(({ hidden }) => !hidden);
}

// -- one operation -------------------------------------------------------------------------------

function shown(path, method, operation) {
  const details = element("details", "operation");
  details.id = operation.operationId;
  details.words = `${method} ${path} ${operation.summary}`.toLowerCase();
  const summary = details.appendChild(element("summary"));
  summary.append(element("span", `method ${method}`, method), element("code", "", path));
  summary.appendChild(element("span", "quiet")).append(...marked(operation.summary));
  details.addEventListener("toggle", () => {
    if (!details.open) return;
    history.replaceState(null, "", `#${details.id}`);
    if (!details.querySelector("form")) details.append(formOf(path, method, operation));
  });
  return details;
}

function formOf(path, method, { description: text, parameters = [], requestBody }) {
  const form = element("form");
  if (text) form.append(element("p", "quiet", text));
  const inputs = parameters.filter(({ in: place }) => place === "path" || place === "query").map((parameter) => {
    const { name, schema = {}, required, description: note = schema.description } = parameter;
    const label = element("label", "", required ? name : `${name} (optional)`);
    const input = label.appendChild(choiceOf(schema) ?? element("input"));
    input.required = Boolean(required);
    if (note) label.append(element("span", "quiet", note));
    return { ...parameter, label, input };
  });
  if (inputs.length) form.appendChild(element("div", "fields")).append(...inputs.map(({ label }) => label));

  const schema = requestBody?.content["application/json"]?.schema;
  let body = null;
  const invalid = element("p", "invalid");
  invalid.setAttribute("role", "alert");
  if (schema) {
    const label = form.appendChild(element("label", "", "Body"));
    body = label.appendChild(element("textarea"));
    body.value = JSON.stringify(exampleOf(schema), null, 2);
    body.rows = Math.min(16, body.value.split("\n").length + 1);
    body.spellcheck = false;
    form.append(invalid, fieldsOf(schema));
  }

  const command = box("Command");
  const answer = element("div", "answer");
  const send = button("Send", "", () => {});
  send.type = "submit";
  const actions = form.appendChild(element("div", "actions"));
  const status = element("span");
  status.setAttribute("role", "status");
  actions.append(send, status);
  const asCommand = form.appendChild(element("details"));
  asCommand.append(element("summary", "", "As a command"), command);
  form.append(answer);

  const target = () => {
    const query = new URLSearchParams();
    let address = path.slice(1);
    for (const { in: place, name, input } of inputs) {
      if (place === "path") address = address.replace(`{${name}}`, encodeURIComponent(input.value.trim()));
      else if (input.value) query.set(name, input.value);
    }
    return new URL(query.size ? `${address}?${query}` : address, document.baseURI);
  };
  const showCommand = () => {
    const data = body ? ` \\\n    --json ${quoted(body.value)}` : "";
    const verb = (method === "get" && !body) || (method === "post" && body) ? "" : `-X ${method.toUpperCase()} `;
    command.textContent = `curl ${verb}${quoted(target().href)} -H "Authorization: Bearer $KEY"${data}`;
  };
  form.addEventListener("input", showCommand);
  showCommand();
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    invalid.textContent = body ? mistakeIn(body.value) : "";
    body?.setAttribute("aria-invalid", String(invalid.textContent !== ""));
    if (invalid.textContent) {
      body.focus();
      return;
    }
    send.disabled = true;
    status.textContent = "Sent.";
    const headers = authorization();
    if (body) headers["Content-Type"] = "application/json";
    await request(target(), { method: method.toUpperCase(), headers, body: body?.value }, status, answer);
    send.disabled = false;
  });
  return form;
}

async function request(url, options, status, answer) {
  const began = performance.now();
  answer.replaceChildren();
  try {
    const response = await fetch(url, options);
    const waitMs = response.status === 429 ? readWait(response.headers, null) : 0;
    const wait = waitMs ? ` · try again in ${duration(Math.ceil(waitMs / 1000))}` : "";
    const line = `${response.status} ${response.statusText}`.trim();
    const headers = element("details");
    const lines = [...response.headers].map(([name, value]) => `${name}: ${value}`).join("\n");
    const body = box("Answer");
    headers.append(element("summary", "", "Headers"), box("Headers", lines));
    answer.append(headers, body);
    await read(response, body);
    status.textContent = `${line} · ${Math.round(performance.now() - began)} ms${wait}`;
  } catch (error) {
    status.textContent = `No answer: ${error.message}`;
  }
}

// Text that may be wider or longer than its place.
function box(label, text = "") {
  const made = element("pre", "", text);
  made.tabIndex = 0;
  made.setAttribute("role", "group");
  made.setAttribute("aria-label", label);
  return made;
}

// A stream is shown as it comes.
async function read(response, body) {
  const decoder = new TextDecoder();
  let text = "";
  const reader = response.body?.getReader();
  for (let part = await reader?.read(); part && !part.done; part = await reader.read()) {
    text += decoder.decode(part.value, { stream: true });
    body.textContent = text.slice(0, MOST_SHOWN);
    if (text.length > MOST_SHOWN) {
      await reader.cancel();
      body.textContent += "\n… The answer is longer.";
      return;
    }
  }
  if (response.headers.get("content-type")?.includes("json")) {
    try {
      body.textContent = JSON.stringify(JSON.parse(text), null, 2);
    } catch {
      return; // it stays as it came
    }
  }
}

function mistakeIn(text) {
  try {
    JSON.parse(text);
    return "";
  } catch (error) {
    return `This is not JSON: ${error.message}.`;
  }
}

function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

// -- schemas -------------------------------------------------------------------------------------

function resolved(schema) {
  let found = schema ?? {};
  while (found.$ref) found = found.$ref.slice(2).split("/").reduce((part, name) => part[name], description);
  return found;
}

// The forms that a value may have, without null.
function alternatives(schema) {
  const { anyOf, oneOf } = resolved(schema);
  const all = anyOf ?? oneOf;
  return all ? all.flatMap(alternatives).filter(({ type }) => type !== "null") : [resolved(schema)];
}

function choiceOf(schema) {
  const [first] = alternatives(schema);
  const values = first?.enum ?? (first?.type === "boolean" ? ["true", "false"] : null);
  if (!values) return null;
  const select = element("select");
  select.append(new Option("", ""), ...values.map((value) => new Option(value, value)));
  return select;
}

// A body to begin with: what is required.
function exampleOf(schema) {
  const form = alternatives(schema)[0] ?? {};
  if ("const" in form) return form.const;
  if (form.examples) return form.examples[0];
  if (form.enum) return form.enum[0];
  if (form.default !== undefined && form.default !== null) return form.default;
  if (form.type === "array") return form.items ? [exampleOf(form.items)] : [];
  if (form.type === "integer" || form.type === "number") return form.minimum ?? 1;
  if (form.type === "boolean") return false;
  if (form.type === "string") return "";
  const { properties = {}, required = [] } = form;
  return Object.fromEntries(required.map((name) => [name, exampleOf(properties[name])]));
}

function typeOf(schema) {
  const types = alternatives(schema).map((form) => {
    if (form.enum) return form.enum.join(" | ");
    if ("const" in form) return String(form.const);
    if (form.type === "array") return `list of ${typeOf(form.items)}`;
    return [form.type ?? (form.properties ? "object" : "any")].flat().join(" or ");
  });
  return [...new Set(types)].join(" or ");
}

function fieldsOf(schema) {
  const details = element("details");
  details.append(element("summary", "", "Fields"));
  for (const { description: about, properties = {}, required = [] } of alternatives(schema)) {
    if (about) details.append(element("h2", "", about));
    const box = details.appendChild(element("div", "table"));
    box.tabIndex = 0;
    const table = box.appendChild(element("table"));
    table.createTHead().insertRow().append(...["Field", "Type", "Meaning"].map((name) => element("th", "", name)));
    const rows = table.createTBody();
    for (const [name, field] of Object.entries(properties)) {
      const notes = [resolved(field), ...alternatives(field)].map(({ description: note }) => note);
      const texts = [required.includes(name) ? name : `${name} (optional)`, typeOf(field), notes.find(Boolean) ?? ""];
      const row = rows.insertRow();
      for (const text of texts) row.insertCell().append(...marked(text));
    }
  }
  return details;
}

// Text with `code` in it.
function marked(text) {
  return text.split(/`+/).map((part, at) => (at % 2 ? element("code", "", part) : part));
}

at("document").addEventListener("change", load);
at("key").addEventListener("change", () => at("operations").childElementCount === 0 && load());
at("search").addEventListener("input", search);
if (location.hash && !location.hash.includes(".")) at("document").value = "admin/api/v1/openapi.json";
await load();
