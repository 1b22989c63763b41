// What was said, in the chat that is open and in others, and how much of it a model gets.

import { forGood, forThisTab, remember, remembered } from "./browser-storage.js";
import { ChatDatabase, newId } from "./chat-database.js";
import { MOST_FILES, isMediaFile, kindOf, tokensOf } from "./media-files.js";

const KEY = "conversation"; // in the tab: the open chat, and the others if they do not stay in the browser
const STAYS = "chats_stay";
// The history of a message may cost at most this, and at most this share of what the caller has left.
const MOST_USD = 0.05;
const SHARE_OF_BUDGET = 0.1;
// The server takes 400,000 bytes, and at most 1,000 messages.
const MOST_BYTES = 300_000;
const MOST_MESSAGES = 800;
// The server takes 32 MB together. Older files than these are neither sent nor kept.
const MOST_FILE_CHARACTERS = 20_000_000;
const BYTES_PER_TOKEN = 3; // rather too many tokens than too few
const UNKNOWN_CONTEXT_TOKENS = 16_000;
// Part of the context is left for the reply.
const SHARE_OF_CONTEXT = 0.75;
// After a cut the history may grow for a while: a provider reads an unchanged beginning from its cache, for less.
const KEPT_SHARE = 0.7;

const encoder = new TextEncoder();
const sizes = new WeakMap();

function bytesOf(message) {
  if (!sizes.has(message)) sizes.set(message, encoder.encode(message.content).length);
  return sizes.get(message);
}

// A chat is {id, version, savedMs, messages, from, cutFor}, and has a `name` and `instructions` if its user gave it
// some. Its messages are {role, content}, and those before `from` are not sent any more. One of the user may have
// `files`, {name, data}: without `data` if that is not kept any more. A reply also has {model, usage, costUsd, end},
// where `end` is "stop", "length", "refused", "other", "stopped" by the user, or "cut" off.
export class Conversation {
  chat = newChat();
  others = []; // chats, the one that was open last first
  isKept = true; // in the tab
  saved = Promise.resolve(); // when the last change is in the database, or could not be written
  #database = null; // if the chats stay in the browser
  #channel = null; // to the other tabs
  #replacement = null; // of the open chat, which another tab has changed
  #onNews;

  // `onNews` is called when another tab has changed something, with whether everything `isForgotten`.
  constructor(onNews = () => {}) {
    this.#onNews = onNews;
  }

  get messages() {
    return this.chat.messages;
  }

  get costUsd() {
    return costOf(this.messages);
  }

  get last() {
    return this.messages.at(-1);
  }

  // Also of a message that is there and has changed.
  add(message) {
    if (!this.messages.includes(message)) this.messages.push(message);
    if (message.files) this.#dropOldFiles();
    this.save();
    return message;
  }

  #dropOldFiles() {
    let left = MOST_FILE_CHARACTERS;
    for (const { files = [] } of this.messages.toReversed()) {
      for (const file of files) if ((left -= file.data?.length ?? 0) < 0) delete file.data;
    }
  }

  remove(message) {
    const { chat } = this;
    chat.messages = chat.messages.filter((each) => each !== message);
    chat.from = Math.min(chat.from, Math.max(0, chat.messages.length - 1));
    this.save();
  }

  // -- versions: a message of the user that was changed has `versions`, {tails, at, before}. A tail is the message and
  // what follows; that of the version which is shown, tails[at], is null, because it is the end of the chat's messages.
  // If that one is new, tails[before] was shown until it began.

  // Begins another version of the chat at this message. Returns the `versions` of the message that comes in its place.
  branch(message) {
    if (!this.messages.includes(message)) return undefined; // it is another chat by now: nothing is replaced
    const versions = message.versions ?? { tails: [null], at: 0 };
    this.#putAside(message, versions);
    versions.before = versions.at;
    versions.at = versions.tails.push(null) - 1;
    return versions;
  }

  // Shows the version before this one (step -1), or after it (1).
  turn(message, step) {
    if (!this.messages.includes(message)) return;
    const { versions } = message;
    this.#putAside(message, versions);
    this.#show(versions, versions.at + step);
  }

  // Takes back a version whose message was not answered. Returns the message of the one that is shown instead.
  takeBack({ versions }) {
    const { tails, at, before = Math.max(0, at - 1) } = versions;
    this.messages.pop();
    tails.splice(at, 1);
    return this.#show(versions, before);
  }

  #putAside(message, versions) {
    const at = this.messages.indexOf(message);
    delete message.versions;
    versions.tails[versions.at] = this.messages.splice(at);
    this.chat.from = Math.min(this.chat.from, at);
  }

  #show(versions, at) {
    const [first, ...others] = versions.tails[at];
    versions.tails[at] = null;
    versions.at = at;
    delete versions.before;
    if (versions.tails.length > 1) first.versions = versions;
    this.messages.push(first, ...others);
    this.save();
    return first;
  }

  titleOf({ name, messages }) {
    return name ?? messages.find(({ role }) => role === "user")?.content ?? "";
  }

  // Those of the others that have these words, in whatever order.
  find(words) {
    const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
    return this.others.filter((chat) => {
      const text = [chat.name, ...chat.messages.map(({ content }) => content)].join("\n").toLowerCase();
      return wanted.every((word) => text.includes(word));
    });
  }

  // Opens a chat of the others, or an empty one; the one that was open becomes one of the others.
  open(chat = newChat()) {
    this.others = this.others.filter((each) => each !== chat);
    const { id, messages } = this.#replacement ?? {};
    const isDeleted = id === this.chat.id && messages.length === 0; // in another tab
    if (this.messages.length > 0 && !isDeleted) this.others.unshift(this.chat);
    this.chat = chat;
    this.#saveInTab();
  }

  // "" takes the name away.
  rename(name) {
    this.chat.name = name || undefined;
    this.save();
  }

  instruct(text) {
    this.chat.instructions = text.trim() || undefined;
    if (this.messages.length > 0) this.save();
    else this.#saveInTab();
  }

  // Forgets a chat of the others.
  forget(chat) {
    this.others = this.others.filter((each) => each !== chat);
    this.#saveInTab();
    if (this.#database) this.#announce(this.#database.delete(chat), chat);
  }

  // About how many tokens this text and these files, and what is sent with them, have for a model.
  tokensWith(text, files, model) {
    const own = { content: text + (this.chat.instructions ?? ""), files };
    const sent = [...this.messages.slice(this.chat.from), own];
    return Math.ceil(sent.reduce((sum, each) => sum + tokensIn(each, model), 0));
  }

  // The messages to send, with the files that the model takes. Moves `from` if they are too many: `cutFor` is then why,
  // "context" or "money".
  history({ leftUsd, ...model }) {
    const { contextTokens, inputUsd, takes = [] } = model;
    const context = (contextTokens ?? UNKNOWN_CONTEXT_TOKENS) * SHARE_OF_CONTEXT;
    const usd = Math.min(MOST_USD, leftUsd === null ? Infinity : leftUsd * SHARE_OF_BUDGET);
    const money = inputUsd > 0 ? (usd / inputUsd) * 1e6 : Infinity;
    const own = encoder.encode(this.chat.instructions ?? "").length;
    // How many of the newest messages fit; the last one always.
    const fitting = (share) => {
      let [bytes, tokens, count] = [own, own / BYTES_PER_TOKEN, 0];
      for (; count < this.messages.length - this.chat.from; count += 1) {
        const message = this.messages.at(-1 - count);
        bytes += bytesOf(message);
        tokens += tokensIn(message, model);
        const fits = bytes <= MOST_BYTES * share && tokens <= Math.min(context, money) * share;
        if (count > 0 && !(fits && count < MOST_MESSAGES * share)) break;
        if (count === 0 && !fits) return 1;
      }
      return count;
    };
    if (fitting(1) < this.messages.length - this.chat.from) {
      this.chat.cutFor = money < context ? "money" : "context";
      this.chat.from = this.messages.length - fitting(KEPT_SHARE);
    }
    while (this.messages[this.chat.from]?.role === "assistant") this.chat.from += 1;
    let filesLeft = MOST_FILES;
    return this.messages
      .slice(this.chat.from)
      .filter((message) => message.content.trim())
      .toReversed()
      .map(({ role, content, files = [] }) => {
        const taken = files.filter((file) => file.data && takes.includes(kindOf(file))).slice(0, filesLeft);
        filesLeft -= taken.length;
        return taken.length > 0 ? { role, content, files: taken } : { role, content };
      })
      .reverse();
  }

  // -- what is kept ------------------------------------------------------------------------------------------------

  get staysInBrowser() {
    return this.#database !== null;
  }

  save() {
    this.chat.savedMs = Date.now();
    this.#saveInTab();
    if (!this.#database) return;
    const { chat } = this;
    const saving = this.messages.length > 0 ? this.#database.put(chat) : this.#database.delete(chat);
    this.saved = this.#announce(saving, chat);
  }

  async load() {
    this.#loadFromTab();
    this.#channel = new BroadcastChannel("chatapp");
    this.#channel.onmessage = ({ data }) => this.#hear(data);
    if (remembered(forGood, STAYS)) await this.#join().catch(() => {});
    this.catchUp();
  }

  // The chats of all tabs are in each of them, and after all are closed. Rejects if the browser forbids it.
  async stayInBrowser() {
    await this.#join();
    remember(forGood, STAYS, "yes");
    this.#channel.postMessage({ stays: true });
  }

  async #join() {
    this.#database ??= await ChatDatabase.open();
    const chats = (await this.#database.all()).filter(isChat).sort((a, b) => b.savedMs - a.savedMs);
    const kept = new Map(chats.map((chat) => [chat.id, chat]));
    for (const chat of [this.chat, ...this.others]) {
      // A tab and its duplicate have chats of the same id, and each may have gone on in its own way.
      if (chat.version === 0 && kept.has(chat.id) && !isBeginning(chat, kept.get(chat.id))) chat.id = newId();
    }
    const found = kept.get(this.chat.id);
    // The tab may have what was said last, as the page was closed. Another tab may have gone on, or forgotten the chat.
    const isNewer = found ? found.version === this.chat.version && found.savedMs < this.chat.savedMs : !this.chat.version;
    if (!isNewer) this.#replacement = found ?? { ...newChat(), id: this.chat.id };
    const own = this.others.filter(({ id }) => !kept.has(id));
    for (const chat of isNewer ? [this.chat, ...own] : own) {
      if (chat.version > 0 || chat.messages.length === 0) continue;
      await this.#database.put(chat);
      this.#channel.postMessage({ changed: chat.id });
    }
    this.others = [...own, ...chats.filter(({ id }) => id !== this.chat.id)];
    this.#saveInTab();
  }

  // The chats stay in this tab only.
  async leaveBrowser() {
    remember(forGood, STAYS, null);
    await this.#database.clear();
    this.#channel.postMessage({ stays: false });
    this.#closeDatabase();
  }

  // Nothing is left of the chats, in no tab.
  async forgetAll() {
    await this.#database?.clear();
    this.#channel.postMessage({ isForgotten: true });
  }

  #closeDatabase() {
    this.#database.close();
    this.#database = null;
    for (const chat of [this.chat, ...this.others]) chat.version = 0;
    this.#saveInTab();
  }

  // To the other tabs, once it is written.
  async #announce(writing, chat) {
    try {
      await writing;
      this.#channel.postMessage({ changed: chat.id });
      this.#saveInTab();
    } catch {
      this.isKept = false;
    }
  }

  async #hear({ changed, stays, isForgotten }) {
    if (stays) {
      await this.#join().catch(() => {});
    } else if (stays === false && this.#database) {
      this.others = [];
      this.#closeDatabase();
    } else if (changed && this.#database) {
      const found = await this.#database.get(changed).catch(() => null);
      this.others = this.others.filter(({ id }) => id !== changed);
      if (changed === this.chat.id) this.#replacement = found ?? { ...newChat(), id: changed };
      else if (isChat(found)) this.others.unshift(found);
    }
    this.#onNews({ isForgotten });
  }

  // Returns whether the open chat has become another one: as another tab left it. Only once this tab's is `saved`.
  catchUp() {
    const found = this.#replacement;
    this.#replacement = null;
    if (!found) return false;
    if (found.id === this.chat.id) this.chat = found;
    else if (found.messages.length > 0) this.others.unshift(found); // see ChatDatabase.put()
    this.#saveInTab();
    return this.chat === found;
  }

  // sessionStorage: it survives a reload, and ends with the tab; another tab has its own. If that is full, the latest
  // chats are kept, and of the open one the latest messages.
  #saveInTab() {
    const others = this.others.filter(({ version }) => !this.staysInBrowser || version === 0);
    let count = this.messages.length;
    for (let chats = others.length; ; ) {
      const skipped = this.messages.length - count;
      const kept = {
        ...this.chat,
        savedMs: skipped ? 0 : this.chat.savedMs,
        messages: this.messages.slice(skipped),
        from: Math.max(0, this.chat.from - skipped),
        others: others.slice(0, chats),
      };
      const isDone = remember(forThisTab, KEY, JSON.stringify(kept));
      this.isKept = this.staysInBrowser || (isDone && skipped === 0 && chats === others.length);
      if (isDone || count === 0) return;
      if (chats > 0) chats = Math.floor(chats / 2);
      else count = Math.floor(count / 2);
    }
  }

  #loadFromTab() {
    try {
      const { others = [], ...chat } = JSON.parse(remembered(forThisTab, KEY)) ?? {};
      if (!isChat(chat)) return;
      this.chat = { ...newChat(), ...chat };
      this.others = others.filter(isChat).map((each) => ({ ...newChat(), ...each }));
    } catch { /* not this page's */ }
  }
}

function newChat() {
  return { id: newId(), version: 0, savedMs: 0, messages: [], from: 0, cutFor: null };
}

function costOf(messages) {
  const aside = (message) => (message.versions?.tails ?? []).reduce((sum, tail) => sum + costOf(tail ?? []), 0);
  return messages.reduce((sum, message) => sum + (message.costUsd ?? 0) + aside(message), 0);
}

function tokensIn(message, model) {
  const files = (message.files ?? []).reduce((sum, file) => sum + tokensOf(file, model), 0);
  return bytesOf(message) / BYTES_PER_TOKEN + files;
}

// Whether another chat has all that this one has.
function isBeginning({ messages }, other) {
  const text = ({ role, content, versions, files } = {}) => JSON.stringify([role, content, versions, files]);
  return messages.length > 0 && messages.every((message, at) => text(message) === text(other.messages[at]));
}

function isChat(value) {
  return Array.isArray(value?.messages) && value.messages.every(isMessage);
}

function isMessage(value) {
  const { role, content, versions, files = [] } = value ?? {};
  if (!["user", "assistant"].includes(role) || typeof content !== "string") return false;
  return (!versions || isVersions(versions)) && Array.isArray(files) && files.every(isMediaFile);
}

function isVersions({ tails, at }) {
  const isTail = (tail, index) => (index === at ? tail === null : tail?.length > 0 && isChat({ messages: tail }));
  return Array.isArray(tails) && at in tails && tails.every(isTail);
}
