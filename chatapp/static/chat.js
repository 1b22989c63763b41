import { readLimits, readWait } from "./limit-headers.js";

const USER_KEY = "chatapp.user_id";
const API_KEY = "chatapp.api_key";
const at = (id) => document.getElementById(id);
const log = at("log"), composer = at("composer"), message = at("message"), send = at("send");
// The page has one of the two: with accounts on, the API key identifies the user.
const userId = at("user-id"), apiKey = at("api-key"), model = at("model");
let waitTimer = null;
let busy = false;

// Replies and errors are inserted as text, never as markup.
function element(name, className, text = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

function say(className, text) {
  at("empty").hidden = true;
  const line = log.appendChild(element("div", className, text));
  line.setAttribute("role", "article"); // otherwise only side and colour show the author
  line.setAttribute("aria-label", className === "me" ? "You" : "Answer");
  log.scrollTop = log.scrollHeight;
  return line;
}

function duration(seconds) {
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
}

function period(seconds) {
  const names = { 1: "second", 60: "minute", 3600: "hour", 86400: "day", 2592000: "month" };
  return seconds === null ? "" : `per ${names[seconds] ?? duration(seconds)}`;
}

function amount(value, unit) {
  if (value === null) return "?";
  return unit === "micro-usd" ? `$${(value / 1e6).toFixed(2)}` : value.toLocaleString("en");
}

// What a limit counts if its name does not say so: calls in flight have no period.
function title({ name, unit, windowSeconds }) {
  if (unit === "concurrent-requests") return name;
  return `${name.replace(/^usd-.*/, "money")} ${period(windowSeconds)}`.trim();
}

function showLimits(limits) {
  if (limits.length === 0) return;
  at("limits").replaceChildren(...limits.map((limit) => {
    const { unit, quota, remaining } = limit;
    const row = element("li", remaining === 0 ? "spent" : "");
    const head = row.appendChild(element("div", "name"));
    const left = element("span", "", `${amount(remaining, unit)} of ${amount(quota, unit)}`);
    left.append(element("span", "left", " left"));
    head.append(element("span", "", title(limit)), left);
    if (quota !== null && remaining !== null) {
      const bar = row.appendChild(element("progress", ""));
      bar.max = quota;
      bar.value = Math.min(remaining, quota);
      bar.setAttribute("aria-hidden", "true"); // the text beside it says the same
    }
    return row;
  }));
}

function usageLine(reply) {
  const { input_tokens: input, output_tokens: output, cached_input_tokens: cached } = reply.usage;
  return `${reply.model} · ${input} tokens in${cached ? ` (${cached} cached)` : ""} · ${output} out`;
}

function refreshSend() {
  send.disabled = busy || waitTimer !== null;
}

function stopWaiting() {
  clearInterval(waitTimer);
  waitTimer = null;
  at("wait").hidden = true;
  refreshSend();
}

function startWaiting(milliseconds) {
  stopWaiting();
  const end = performance.now() + milliseconds;
  const tick = () => {
    const left = end - performance.now();
    if (left <= 0) {
      stopWaiting();
      at("status").textContent = "You can send again.";
      return;
    }
    at("countdown").textContent = duration(Math.ceil(left / 1000));
    at("wait-bar").value = left / milliseconds;
  };
  waitTimer = setInterval(tick, 100);
  at("wait").hidden = false;
  // Once, not every second: a screen reader would read the countdown aloud.
  at("status").textContent = `Wait ${duration(Math.ceil(milliseconds / 1000))}.`;
  tick();
  refreshSend();
}

function credentials() {
  const key = apiKey?.value.trim();
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function ask(text) {
  const body = { message: text };
  if (userId?.value.trim()) body.user_id = userId.value.trim();
  if (model.value.trim()) body.model = model.value.trim();
  const response = await fetch("chat", {
    method: "POST",
    headers: { "Content-Type": "application/json", ...credentials() },
    body: JSON.stringify(body),
  });
  const answer = await response.json().catch(() => null);
  return { response, answer };
}

function giveBack(text) {
  if (!message.value) message.value = text;
  resize();
}

async function submit(text) {
  busy = true;
  refreshSend();
  const mine = say("me", text);
  const line = say("model pending", "…");
  message.value = "";
  resize();
  try {
    const { response, answer } = await ask(text);
    showLimits(readLimits(response.headers));
    if (response.ok && answer) {
      line.className = "model";
      line.textContent = answer.reply;
      line.append(element("small", "", usageLine(answer)));
    } else {
      mine.remove(); // the message was not sent: put its text back into the form
      line.className = "error";
      line.textContent = answer?.error ?? `The server answered ${response.status}.`;
      giveBack(text);
      const wait = readWait(response.headers, answer);
      if (response.status === 429 || response.status === 503) startWaiting(wait || 1000);
    }
  } catch {
    mine.remove();
    line.className = "error";
    line.textContent = "The server is unreachable. Check your connection and send again.";
    giveBack(text);
  } finally {
    busy = false;
    refreshSend();
    log.scrollTop = log.scrollHeight;
  }
}

function resize() {
  message.style.height = "auto";
  message.style.height = `${message.scrollHeight}px`;
}

function newUserId() {
  return `guest-${Array.from(crypto.getRandomValues(new Uint8Array(4)), (byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

function remember(storage, name, value) {
  try {
    storage().setItem(name, value);
  } catch { /* storage is optional */ }
}

function remembered(storage, name) {
  try {
    return storage().getItem(name);
  } catch {
    return null;
  }
}

// Functions, because reading either property raises if the browser forbids storage.
const forGood = () => localStorage, forThisTab = () => sessionStorage;

if (userId) {
  userId.value = remembered(forGood, USER_KEY) ?? newUserId();
  remember(forGood, USER_KEY, userId.value);
  userId.addEventListener("change", () => {
    remember(forGood, USER_KEY, userId.value.trim());
    stopWaiting(); // another user has other limits; the server answers if not
  });
}
if (apiKey) {
  apiKey.value = remembered(forThisTab, API_KEY) ?? "";
  apiKey.addEventListener("change", () => {
    remember(forThisTab, API_KEY, apiKey.value.trim());
    stopWaiting();
  });
}
model.addEventListener("change", stopWaiting);
message.addEventListener("input", resize);
message.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    composer.requestSubmit();
  }
});
composer.addEventListener("submit", (event) => {
  event.preventDefault();
  const text = message.value;
  if (!send.disabled && text.trim()) submit(text);
});
// Without a key nothing can be sent: open its field and focus it first.
const needsKey = apiKey !== null && !apiKey.value;
at("you").open = needsKey || !matchMedia("(max-width: 760px)").matches;
(needsKey ? apiKey : message).focus();
