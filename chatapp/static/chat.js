// The page: its form, its settings, and the way of a message.

import { forGood, forThisTab, forgetAll, remember, remembered } from "./browser-storage.js";
import { newId } from "./chat-database.js";
import { saveChat } from "./chat-file.js";
import { Conversation } from "./conversation.js";
import { Limits } from "./limits.js";
import { copyButton } from "./markdown.js";
import { MOST_FILES, isMedia, kindOf, mediaOf, untaken } from "./media-files.js";
import { presets, savePreset } from "./presets.js";
import { PASTE_KEY, describe, waitSentence } from "./problems.js";
import { Refusal, Server } from "./server.js";
import { withTextOf } from "./text-files.js";
import { Transcript, button, element, fileList } from "./transcript.js";
import { count, dollars, duration } from "./words.js";

const USER_KEY = "user_id";
const API_KEY = "api_key";
const MODEL_KEY = "model";
const DRAFT_KEY = "draft";
const MOST_AUTOMATIC_RETRIES = 5;
// The headers of an answer show the limits after an estimate. What it really cost is asked for when the user pauses.
const USAGE_DELAY_MS = 1500;
// How often the limits are asked for while the caller waits for one of them.
const PAUSE_MS = 3000;
const LONG_DRAFT = 2000; // characters
const MOST_OF_NAME = 200; // characters
const SLACK_MS = 50; // a timer may end early
const MOST_READ_ALOUD = 600; // characters
const PHONE = matchMedia("(max-width: 760px)");

const at = (id) => document.getElementById(id);
const composer = at("composer"), message = at("message"), send = at("send"), stop = at("stop"), model = at("model");
// The page has one of the two: with accounts on, the API key identifies the user.
const userId = at("user-id"), apiKey = at("api-key"), keepsKey = at("keeps-key"), keepsChats = at("keeps-chats");
const instructions = at("instructions");

const server = new Server();
const conversation = new Conversation(hearOtherTab);
const limits = new Limits();
const transcript = new Transcript({
  log: at("log"),
  welcome: at("welcome"),
  latest: at("latest"),
  onRetry: askAgain,
  onContinue: () => submit("Continue."),
  onEdit: edit,
  onTurn: turn,
});
const models = new Map();
let reply = null; // {controller} while one is being written
let waiting = null; // {cancel} until the message is sent again
let attached = []; // images and PDF files of the message in the form
let editing = null; // the message that the one in the form will replace
let retries = 0;
let usageTimer = null;
let entered = null; // what the form had when a new key was entered, until the server has said what it is worth

// -- sending -----------------------------------------------------------------------------------------------------

function submitForm() {
  if (submit(message.value, { replaced: editing, files: attached })) setDraft("");
}

// Returns whether the text has become a message.
function submit(text, { replaced = null, files = [] } = {}) {
  if (reply || waiting || (!text.trim() && files.length === 0)) return false;
  if (apiKey && !server.apiKey) {
    showProblem(describe(new Refusal({ status: 401, body: { error: "" } }), { ...facts(), isOnline: true }));
    return false;
  }
  const problem = text.trim() ? unreadable(files) : "Write what you want to know about the file.";
  if (problem) {
    showProblem({ sentence: problem, waitMs: 0 });
    message.focus();
    return false;
  }
  transcript.clearProblems();
  const content = text.replace(/^(\s*\n)+|\s+$/g, ""); // an indentation may matter
  say(content, { replaced, files });
  return true;
}

// In place of another message, what was said from that one on stays as another version of the chat.
function say(content, { replaced = null, files = [] } = {}) {
  stopEditing();
  const made = { role: "user", content };
  if (files.length > 0) made.files = files;
  if (replaced) {
    transcript.removeFrom(replaced);
    made.versions = conversation.branch(replaced);
  }
  transcript.addMessage(conversation.add(made));
  transcript.scrollToEnd();
  retries = 0;
  ask();
}

async function ask() {
  const controller = new AbortController();
  const current = { controller };
  reply = current;
  clearTimeout(usageTimer);
  refreshForm();
  announce("Writing a reply.");
  const view = transcript.beginReply();
  const messages = conversation.history({ ...chosen(), leftUsd: limits.leftUsd });
  transcript.showCut(conversation.chat);
  const made = { role: "assistant", content: "", model: model.value, usage: null, costUsd: null, end: "cut" };
  current.save = (end) => made.content && conversation.add(Object.assign(made, { end }));
  try {
    const done = await server.ask({
      messages,
      system: conversation.chat.instructions,
      model: model.value,
      signal: controller.signal,
      onHeaders: (headers) => {
        made.callId = headers.get("x-call-id");
        limits.update(headers);
        showLimits();
      },
      onText: (text) => {
        made.content += text;
        view.push(text);
      },
    });
    const { model: name, usage, cost_usd: costUsd, finish_reason: end } = done;
    if (reply === current) finish(view, made, { model: name, usage, costUsd, end });
  } catch (error) {
    if (reply !== current) return; // a new chat has begun
    const isStopped = controller.signal.aborted;
    const problem = isStopped ? null : describe(error, { ...facts(), hasBegun: made.content !== "" });
    if (error instanceof Refusal) {
      limits.refuse(error);
      showLimits();
      setTimeout(showLimits, error.waitMs + SLACK_MS);
    }
    if (!isStopped && !made.content) {
      view.remove();
      refuse(problem);
    } else {
      const costUsd = error instanceof Refusal ? error.body.cost_usd ?? null : null;
      finish(view, made, { end: isStopped ? "stopped" : "cut", costUsd, problem: problem?.sentence });
      showCost(view, made);
    }
  }
}

function finish(view, made, fields) {
  reply = null;
  Object.assign(made, fields);
  conversation.add(made);
  view.end(made);
  catchUp();
  showSpent();
  refreshForm();
  const { text } = view;
  const more = text.length > MOST_READ_ALOUD ? " … The reply is longer." : "";
  const states = { stopped: "Stopped.", cut: "The reply was cut off." };
  announce(states[made.end] ?? `Reply: ${text.slice(0, MOST_READ_ALOUD)}${more}`);
  refreshUsage(USAGE_DELAY_MS);
}

async function showCost(view, made) {
  const call = made.callId && (await server.call(made.callId));
  if (!call) return;
  Object.assign(made, { costUsd: call.cost_usd, usage: call.usage, isEstimated: call.estimated });
  if (conversation.messages.includes(made)) conversation.save();
  view.update(made);
  showSpent();
}

// The message was not answered: it is sent again by itself, or goes back to where it was written.
function refuse(problem) {
  reply = null;
  const isAgain = (problem.isAutomatic || problem.waitsForNetwork) && retries < MOST_AUTOMATIC_RETRIES;
  if (isAgain) {
    retries += 1;
    wait(problem);
  } else {
    giveBack();
    showProblem(problem);
  }
  refreshForm();
  refreshUsage(USAGE_DELAY_MS);
}

function giveBack() {
  const { last } = conversation;
  if (last?.role !== "user") return;
  if (last.versions) {
    const replaced = conversation.takeBack(last);
    showChat();
    startEditing(replaced);
  } else {
    conversation.remove(last);
    transcript.remove(last);
    transcript.showCut(conversation.chat);
  }
  prependToDraft(last);
}

function showProblem({ sentence, offers, waitMs, details }) {
  transcript.clearProblems();
  const text = sentence + waitSentence(waitMs);
  const box = transcript.addProblem(text);
  if (details) {
    const more = box.appendChild(element("details"));
    more.append(element("summary", "", "Details"), element("p", "", details), copyButton(() => details, "Copy details"));
  }
  if (offers === "retry") {
    box.append(button("Try again", "", () => {
      submitForm();
      if (!PHONE.matches) message.focus(); // there it would open the keyboard
    }));
  }
  announce(text);
  if (offers === "key") {
    at("you").open = true;
    apiKey?.focus();
    apiKey?.select();
  }
  transcript.scrollToEnd();
}

function wait({ sentence, waitMs, waitsForNetwork }) {
  const box = transcript.addProblem(sentence);
  const countdown = element("b");
  const end = performance.now() + waitMs;
  const stopWaiting = () => {
    clearInterval(timer);
    removeEventListener("online", sendAgain);
    box.remove();
    waiting = null;
    refreshForm();
  };
  const sendAgain = () => {
    stopWaiting();
    ask();
  };
  const tick = () => {
    const left = Math.ceil((end - performance.now()) / 1000);
    if (left <= 0) sendAgain();
    else countdown.textContent = duration(left);
  };
  let timer = null;
  const cancel = () => {
    stopWaiting();
    giveBack();
    announce("Not sent. Your message is in the form again.");
    message.focus();
  };
  waiting = { cancel };
  if (waitsForNetwork) {
    addEventListener("online", sendAgain);
    announce(sentence);
  } else {
    box.querySelector("p").append(" Your message is sent again in ", countdown, ".");
    timer = setInterval(tick, 100);
    tick();
    // Once, not every second: a screen reader would read the countdown aloud.
    announce(`${sentence} Your message is sent again in ${countdown.textContent}.`);
  }
  box.append(button("Cancel", "plain", cancel));  // the wait may be over already
  transcript.follow();
}

function askAgain(made) {
  if (reply || waiting || conversation.last !== made) return;
  stopEditing(); // the message may go back into the form, out of the chat
  transcript.clearProblems();
  if (made.end === "stop") {
    const asked = conversation.messages.at(-2);
    say(asked.content, { replaced: asked, files: asked.files });
  } else {
    conversation.remove(made);
    transcript.remove(made);
    retries = 0;
    ask();
  }
  message.focus();
}

function edit(made) {
  if (reply) return;
  if (waiting) {
    waiting.cancel();
    return;
  }
  transcript.clearProblems();
  startEditing(made);
  prependToDraft(made);
  announce("Your message is in the form again.");
  message.focus();
}

function startEditing(made) {
  editing = made;
  at("editing").hidden = false;
}

function stopEditing() {
  editing = null;
  at("editing").hidden = true;
}

function turn(made, step) {
  if (reply || waiting) return;
  conversation.turn(made, step);
  showChat();
  announce("Another version of the chat is shown.");
}

function newChat() {
  leaveChat();
  conversation.open();
  showChat();
  announce("New chat.");
  message.focus();
}

// What had come of a reply stays in its chat. A message without a reply goes back into the form.
function leaveChat() {
  const isOpen = reply !== null;
  reply?.save("stopped");
  reply?.controller.abort();
  reply = null;
  waiting?.cancel();
  refreshForm();
  if (isOpen) giveBack();
}

// What another tab of this browser did with the chats.
function hearOtherTab({ isForgotten }) {
  if (isForgotten) forgetEverything();
  else catchUp();
}

async function catchUp() {
  await conversation.saved;
  if (!reply && !waiting && conversation.catchUp()) showChat();
  else showChats();
}

function openChat(chat) {
  leaveChat();
  conversation.open(chat);
  showChat();
  if (PHONE.matches) at("chats-box").open = false;
  announce("The chat is open.");
  message.focus();
}

function showChat() {
  stopEditing();
  transcript.show(conversation.chat);
  instructions.value = conversation.chat.instructions ?? "";
  if (instructions.value && !PHONE.matches) at("instructions-box").open = true;
  const { last } = conversation;
  if (last?.role === "assistant" && last.end !== "stop" && !last.usage) showCost(transcript.viewOf(last), last);
  showSpent();
  showChats();
}

// -- what the page shows -----------------------------------------------------------------------------------------

function facts() {
  return { asksForKey: apiKey !== null, hasKey: Boolean(server.apiKey), isOnline: navigator.onLine };
}

function announce(text) {
  at("status").textContent = text;
}

function refreshForm() {
  const hadFocus = document.activeElement === stop || document.activeElement === send;
  send.hidden = reply !== null;
  stop.hidden = reply === null;
  send.disabled = waiting !== null;
  if (hadFocus) message.focus();
}

function showSpent() {
  const { costUsd, isKept } = conversation;
  const facts = [];
  if (costUsd > 0) facts.push(`This chat has cost ${dollars(costUsd)}.`);
  if (!isKept) facts.push("Your browser cannot keep all of it: a reload loses the oldest messages.");
  at("spent").hidden = facts.length === 0;
  at("spent").textContent = facts.join(" ");
}

function showChats() {
  keepsChats.checked = conversation.staysInBrowser;
  const { chat: open, others } = conversation;
  at("open-chat").hidden = open.messages.length === 0;
  at("search-box").hidden = others.length === 0;
  at("chats-box").hidden = at("open-chat").hidden && others.length === 0;
  at("chats").replaceChildren(...conversation.find(at("search").value).map((chat) => {
    const title = conversation.titleOf(chat);
    const row = element("li");
    const forget = button("Delete", "plain", () => {
      if (!confirm("Delete this chat?")) return;
      conversation.forget(chat);
      showChats();
      announce("The chat is deleted.");
      message.focus();
    });
    forget.setAttribute("aria-label", `Delete the chat ${title.slice(0, 60)}`);
    row.append(button(title.slice(0, MOST_OF_NAME), "title", () => openChat(chat)), forget);
    return row;
  }));
}

// The user's own instructions, to begin a chat with.
function showPresets(chosen = "") {
  const names = presets().map(([name]) => new Option(name, name, false, name === chosen));
  at("presets").replaceChildren(new Option(names.length ? "Your saved instructions" : "Nothing is saved", ""), ...names);
  at("presets").value = chosen;
  at("delete-preset").hidden = !chosen;
}

function installInstructions() {
  instructions.addEventListener("input", () => conversation.instruct(instructions.value));
  at("presets").addEventListener("change", ({ target: { value: name } }) => {
    instructions.value = presets().find(([each]) => each === name)?.[1] ?? instructions.value;
    conversation.instruct(instructions.value);
    showPresets(name);
  });
  at("save-preset").addEventListener("click", () => {
    const name = instructions.value.trim() && prompt("Save these instructions as", at("presets").value)?.trim();
    if (!name) return;
    announce(savePreset(name, instructions.value) ? "Saved." : "This browser does not allow that.");
    showPresets(name);
  });
  at("delete-preset").addEventListener("click", () => {
    savePreset(at("presets").value, null);
    announce("Deleted.");
    showPresets();
    at("presets").focus();
  });
  showPresets();
}

function installChats() {
  at("rename").addEventListener("click", () => {
    const { chat } = conversation;
    const name = prompt("Name of this chat", conversation.titleOf(chat).slice(0, MOST_OF_NAME))?.trim();
    if (name === undefined) return;
    conversation.rename(name.slice(0, MOST_OF_NAME));
    announce(name ? "The chat has a new name." : "The chat has its first message as its name.");
  });
  for (const ending of ["md", "json"]) {
    at(`save-${ending}`).addEventListener("click", () => {
      saveChat(conversation.titleOf(conversation.chat), conversation.chat, ending);
    });
  }
  at("search").addEventListener("input", () => {
    showChats();
    announce(`${count(at("chats").childElementCount, "chat")} found.`);
  });
}

function showLimits() {
  if (!limits.isKnown) return;
  at("sentence").textContent = limits.sentence;
  at("limits-box").hidden = limits.rows.length === 0;
  at("limits").replaceChildren(...limits.rows.map(({ title, text, left, most }) => {
    const row = element("li", left <= 0 ? "spent" : "");
    const head = row.appendChild(element("div", "name"));
    head.append(element("span", "", title), element("span", "", text));
    const bar = row.appendChild(element("progress"));
    bar.max = most;
    bar.value = Math.min(Math.max(0, left), most);
    bar.setAttribute("aria-hidden", "true"); // the text beside it says the same
    return row;
  }));
}

function refreshUsage(delayMs = 0) {
  clearTimeout(usageTimer);
  if (apiKey && !server.apiKey) {
    at("sentence").textContent = PASTE_KEY;
    at("limits-box").hidden = true;
    entered = null;
    return;
  }
  usageTimer = setTimeout(async () => {
    try {
      limits.read(await server.usage());
      showLimits();
      if (limits.isPaused) refreshUsage(PAUSE_MS);
      if (entered !== null) acceptKey();
    } catch (error) {
      if (error instanceof Refusal && error.status === 401) {
        at("sentence").textContent = describe(error, facts()).sentence;
        at("limits-box").hidden = true;
        if (apiKey) at("welcome").querySelector("h2").textContent = PASTE_KEY;
        if (entered !== null) rejectKey();
      } else if (!(error instanceof Refusal) || error.status !== 429) {
        at("sentence").textContent = "Your limits cannot be shown at the moment.";
      }
    }
  }, delayMs);
}

function acceptKey() {
  entered = null;
  if (PHONE.matches) at("you").open = false;
  announce(at("sentence").textContent);
}

function rejectKey() {
  const isWriting = message.value !== entered;
  entered = null;
  announce(at("sentence").textContent);
  if (isWriting) return;
  apiKey.focus();
  apiKey.select();
}

// The models that the caller may use; until they are known, those that the server has.
async function refreshModels() {
  if (apiKey && !server.apiKey) return;
  const found = await server.models().catch(() => null);
  if (!found) return;
  models.clear();
  const { pdf_bytes_per_token: pdfBytesPerToken } = found;
  for (const each of found.models) {
    const { name, context_tokens: contextTokens, input_usd: inputUsd, output_usd: outputUsd } = each;
    const { files: takes, image_tokens: imageTokens } = each;
    models.set(name, { contextTokens, inputUsd, outputUsd, takes, imageTokens, pdfBytesPerToken });
  }
  const wanted = remembered(forGood, MODEL_KEY);
  model.replaceChildren(...found.models.map(({ name, input_usd: input, output_usd: output }) => {
    const option = new Option(name, name);
    option.title = priceOf(input, output);
    return option;
  }));
  model.value = models.has(wanted) ? wanted : found.default;
  showModel();
}

function showModel() {
  const shown = at("welcome").querySelector("strong");
  if (shown) shown.textContent = model.value;
  const { inputUsd = null, outputUsd } = models.get(model.value) ?? {};
  at("price").hidden = inputUsd === null;
  if (inputUsd !== null) at("price").textContent = `${model.value}: ${priceOf(inputUsd, outputUsd)}.`;
}

function priceOf(inputUsd, outputUsd) {
  if (!inputUsd && !outputUsd) return "free";
  return `${dollars(inputUsd)} for a million tokens in, ${dollars(outputUsd)} out`;
}

function draftChanged() {
  message.style.height = "auto";
  message.style.height = `${message.scrollHeight}px`;
  remember(forThisTab, DRAFT_KEY, message.value);
  showEstimate();
}

function setDraft(text, files = []) {
  message.value = text;
  attached = files;
  at("attached").hidden = files.length === 0;
  at("attached").replaceChildren(fileList(files, (file) => {
    setDraft(message.value, attached.filter((each) => each !== file));
    announce(`${file.name} is removed.`);
    message.focus();
  }));
  draftChanged();
}

function prependToDraft({ content, files = [] }) {
  const kept = files.filter(({ data }) => data);
  setDraft([content, message.value].filter(Boolean).join("\n\n"), [...kept, ...attached].slice(0, MOST_FILES));
}

// What is known of the chosen model. The server knows whether it takes files.
function chosen() {
  return { contextTokens: null, inputUsd: 0, takes: ["image", "pdf"], ...models.get(model.value) };
}

function unreadable(files) {
  const names = untaken(files, chosen().takes);
  return names && `${model.value} cannot read ${names}. Choose another model at the top, or remove the files.`;
}

// The price of a long message, or one with files, before it is sent.
function showEstimate() {
  const { inputUsd, contextTokens } = chosen();
  const problem = unreadable(attached);
  at("estimate").hidden = !problem && ((message.value.length < LONG_DRAFT && attached.length === 0) || !inputUsd);
  if (at("estimate").hidden) return; // else each letter would sum up the whole chat
  // A provider bills no more than its model reads. How much of a PDF file is text, only the provider knows.
  const tokens = Math.min(conversation.tokensWith(message.value, attached, chosen()), contextTokens ?? Infinity);
  const usd = (tokens * inputUsd) / 1e6;
  const about = attached.some((file) => kindOf(file) === "pdf") ? "Up to" : "About";
  at("estimate").textContent = problem || `${about} ${count(tokens, "token")} to read: ${dollars(usd)}. The reply costs extra.`;
}

async function attach(files) {
  try {
    const [media, texts] = [files.filter(isMedia), files.filter((file) => !isMedia(file))];
    if (attached.length + media.length > MOST_FILES) throw new Error(`${MOST_FILES} files fit into a message. Add fewer.`);
    const made = await Promise.all(media.map(mediaOf));
    setDraft(texts.length ? await withTextOf(texts, message.value) : message.value, [...attached, ...made]);
    announce(`${count(files.length, "file")} added.`);
  } catch (error) {
    showProblem({ sentence: error.message, waitMs: 0 });
  }
  at("files").value = "";
  message.focus();
}

// -- who the caller is, and what the browser keeps -----------------------------------------------------------------

// Another user has other limits and models.
function callerChanged() {
  limits.forgetRefusal();
  server.userId = userId?.value.trim() ?? "";
  server.apiKey = apiKey?.value.trim() ?? "";
  at("welcome").querySelector("h2").textContent = apiKey && !server.apiKey ? PASTE_KEY : "What can I do for you?";
  waiting?.cancel();
  refreshUsage();
  refreshModels();
}

// On a computer that others use, too: nothing of the user is left, in no tab.
function forgetEverything() {
  reply?.controller.abort();
  reply = null; // else its end would be saved
  forgetAll();
  location.reload();
}

async function keepChats() {
  if (keepsChats.checked) {
    await conversation.stayInBrowser().catch(() => announce("This browser does not allow that."));
  } else if (confirm("Remove your chats from this browser? Those on this page stay until you close its tab.")) {
    await conversation.leaveBrowser();
  }
  await catchUp();
}

function rememberKey() {
  const key = apiKey.value.trim() || null;
  remember(forGood, API_KEY, keepsKey.checked ? key : null);
  remember(forThisTab, API_KEY, keepsKey.checked ? null : key);
}

function installSettings() {
  if (userId) {
    userId.value = remembered(forGood, USER_KEY) ?? `guest-${newId(4)}`;
    remember(forGood, USER_KEY, userId.value);
    userId.addEventListener("change", () => {
      remember(forGood, USER_KEY, userId.value.trim());
      callerChanged();
    });
  }
  if (apiKey) {
    const kept = remembered(forGood, API_KEY);
    keepsKey.checked = kept !== null;
    apiKey.value = kept ?? remembered(forThisTab, API_KEY) ?? "";
    keepsKey.addEventListener("change", rememberKey);
    apiKey.addEventListener("change", () => {
      rememberKey();
      transcript.clearProblems();
      entered = message.value;
      callerChanged();
    });
    apiKey.addEventListener("keydown", (event) => {
      if (event.key !== "Enter") return;
      event.preventDefault(); // else it also begins a line in the message
      message.focus();
    });
  }
  keepsChats.addEventListener("change", keepChats);
  at("forget").addEventListener("click", async () => {
    if (!confirm(at("forget").title)) return;
    await conversation.forgetAll();
    forgetEverything();
  });
  model.addEventListener("change", () => {
    remember(forGood, MODEL_KEY, model.value);
    showModel();
    showEstimate();
    limits.forgetRefusal(); // another model may answer
    showLimits();
  });
}

function installForm() {
  message.addEventListener("input", draftChanged);
  message.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      composer.requestSubmit();
    }
  });
  composer.addEventListener("submit", (event) => {
    event.preventDefault();
    submitForm();
  });
  stop.addEventListener("click", () => reply?.controller.abort());
  message.addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files];
    if (files.length === 0 || event.clipboardData.types.includes("text/plain")) return;
    event.preventDefault();
    attach(files);
  });
  at("attach").addEventListener("click", () => at("files").click());
  at("files").addEventListener("change", ({ target: { files } }) => files.length && attach([...files]));
  for (const [event, isOver] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
    composer.addEventListener(event, (dragged) => {
      if (!dragged.dataTransfer.types.includes("Files")) return;
      dragged.preventDefault();
      composer.classList.toggle("dropping", isOver);
      if (event === "drop") attach([...dragged.dataTransfer.files]);
    });
  }
  at("stop-editing").addEventListener("click", () => {
    stopEditing();
    setDraft("");
    message.focus();
  });
  at("new-chat").addEventListener("click", newChat);
  addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    if (reply) reply.controller.abort();
    else if (waiting) waiting.cancel();
    else stopEditing();
  });
  // What had come of a reply survives a reload.
  addEventListener("pagehide", () => reply?.save("cut"));
  // Another tab, or another program, may have used the limits meanwhile.
  document.addEventListener("visibilitychange", () => document.hidden || refreshUsage());
}

await conversation.load();
installSettings();
installForm();
installChats();
installInstructions();
message.value ||= remembered(forThisTab, DRAFT_KEY) ?? ""; // on a slow network, it may be written in already
draftChanged();
callerChanged();
showChat();
if (conversation.last?.role === "user") giveBack(); // the page was closed before it was answered
// Without a key nothing can be sent: open its field and focus it first.
const needsKey = apiKey !== null && !apiKey.value;
at("you").open = needsKey || !PHONE.matches;
at("limits-box").open = at("chats-box").open = !PHONE.matches;
(needsKey ? apiKey : message).focus();
