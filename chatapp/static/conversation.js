// What was said in this tab, in the chat that is open and in others, and how much of it a model gets.

const KEY = "chatapp.conversation";
// The history of a message may cost at most this, and at most this share of what the caller has left.
const MOST_USD = 0.05;
const SHARE_OF_BUDGET = 0.1;
// The server takes 400,000 bytes, and at most 1,000 messages.
const MOST_BYTES = 300_000;
const MOST_MESSAGES = 800;
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

// `messages` are {role, content}; a reply also has {model, usage, costUsd, end}, where `end` is "stop", "length",
// "refused", "other", "stopped" by the user, or "cut" off. Those before `from` are not sent any more.
export class Conversation {
  messages = [];
  from = 0;
  cutFor = null;
  others = []; // chats as {messages, from, cutFor}, the one that was open last first
  isKept = true;

  get costUsd() {
    return this.messages.reduce((sum, message) => sum + (message.costUsd ?? 0), 0);
  }

  get last() {
    return this.messages.at(-1);
  }

  // Also of a message that is there and has changed.
  add(message) {
    if (!this.messages.includes(message)) this.messages.push(message);
    this.save();
    return message;
  }

  remove(message) {
    this.messages = this.messages.filter((each) => each !== message);
    this.from = Math.min(this.from, Math.max(0, this.messages.length - 1));
    this.save();
  }

  // The title of a chat, or of the open one.
  titleOf({ messages } = this) {
    return messages.find(({ role }) => role === "user")?.content ?? "";
  }

  // Opens a chat of the others, or an empty one; the one that was open becomes one of the others.
  open(chat = { messages: [], from: 0, cutFor: null }) {
    const { messages, from, cutFor } = this;
    this.others = this.others.filter((each) => each !== chat);
    if (messages.length > 0) this.others.unshift({ messages, from, cutFor });
    Object.assign(this, chat);
    this.save();
  }

  // Forgets a chat of the others, or all chats.
  forget(chat) {
    this.others = chat ? this.others.filter((each) => each !== chat) : [];
    if (!chat) Object.assign(this, { messages: [], from: 0, cutFor: null });
    this.save();
  }

  // The messages to send. Moves `from` if they are too many: `cutFor` is then why, "context" or "money".
  history({ contextTokens, inputUsd, leftUsd }) {
    const context = (contextTokens ?? UNKNOWN_CONTEXT_TOKENS) * SHARE_OF_CONTEXT * BYTES_PER_TOKEN;
    const usd = Math.min(MOST_USD, leftUsd === null ? Infinity : leftUsd * SHARE_OF_BUDGET);
    const money = inputUsd > 0 ? (usd / inputUsd) * 1e6 * BYTES_PER_TOKEN : Infinity;
    const most = Math.min(context, money, MOST_BYTES);
    const sent = this.messages.slice(this.from);
    if (total(sent) > most || sent.length > MOST_MESSAGES) {
      this.cutFor = money < context ? "money" : "context";
      let kept = 1; // the newest message always
      let bytes = bytesOf(sent.at(-1));
      for (; kept < Math.min(sent.length, MOST_MESSAGES * KEPT_SHARE); kept += 1) {
        bytes += bytesOf(sent[sent.length - 1 - kept]);
        if (bytes > most * KEPT_SHARE) break;
      }
      this.from = this.messages.length - kept;
    }
    while (this.messages[this.from]?.role === "assistant") this.from += 1;
    return this.messages
      .slice(this.from)
      .filter((message) => message.content.trim())
      .map(({ role, content }) => ({ role, content }));
  }

  // sessionStorage: it survives a reload, and ends with the tab; another tab has its own. If that is full, the latest
  // chats are kept, and of the open one the latest messages.
  save() {
    let count = this.messages.length;
    for (let chats = this.others.length; ; ) {
      const skipped = this.messages.length - count;
      const kept = {
        messages: this.messages.slice(skipped),
        from: Math.max(0, this.from - skipped),
        cutFor: this.cutFor,
        others: this.others.slice(0, chats),
      };
      try {
        sessionStorage.setItem(KEY, JSON.stringify(kept));
        this.isKept = skipped === 0 && chats === this.others.length;
        return;
      } catch {
        this.isKept = false; // full, or forbidden
        if (chats > 0) chats = Math.floor(chats / 2);
        else if (count > 0) count = Math.floor(count / 2);
        else return;
      }
    }
  }

  load() {
    try {
      const kept = JSON.parse(sessionStorage.getItem(KEY)) ?? {};
      if (isChat(kept)) {
        const { messages, from, cutFor, others = [] } = kept;
        Object.assign(this, { messages, from: Number(from) || 0, cutFor: cutFor ?? null });
        this.others = others.filter(isChat);
      }
    } catch { /* forbidden, or not this page's */ }
  }
}

function total(messages) {
  return messages.reduce((sum, message) => sum + bytesOf(message), 0);
}

function isChat(value) {
  return Array.isArray(value?.messages) && value.messages.every(isMessage);
}

function isMessage(value) {
  return ["user", "assistant"].includes(value?.role) && typeof value.content === "string";
}
