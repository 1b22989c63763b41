// The messages on the page.

import { Markdown, copyButton } from "./markdown.js";
import { kindOf } from "./media-files.js";
import { count, dollars } from "./words.js";

const NEAR_THE_END_PX = 60;
const MOST_OBSERVED = 20;
// Of more messages, the oldest are put into a group: the browser looks at each child of the log in each frame.
const MOST_LOOSE = 60;
const GROUP = 40;
const CUT = {
  money: "What is above is no longer sent to the model, to keep replies cheap.",
  context: "What is above is no longer sent to the model, which cannot read more at once.",
};
const ENDS = {
  stopped: "You stopped this reply.",
  cut: "The connection was lost, so this reply is incomplete.",
  length: "This reply reached the longest length that is allowed here.",
  refused: "The model declined to say more.",
};

export class Transcript {
  #log;
  #welcome;
  #latest;
  #follows = true;
  #observed = [];
  #observer = new ResizeObserver(() => this.follow());

  // `onRetry` gets a reply that is to be made again, `onEdit` a message to be changed, `onTurn` one of which the version
  // before (-1) or after (1) is to be shown; `onContinue` is for a reply that became too long.
  constructor({ log, welcome, latest, onRetry, onContinue, onEdit, onTurn }) {
    this.#log = log;
    this.#welcome = welcome;
    this.#latest = latest;
    this.onRetry = onRetry;
    this.onContinue = onContinue;
    this.onEdit = onEdit;
    this.onTurn = onTurn;
    log.addEventListener("scroll", () => {
      this.#follows = log.scrollHeight - log.scrollTop - log.clientHeight < NEAR_THE_END_PX;
      latest.hidden = this.#follows;
    });
    latest.addEventListener("click", () => this.scrollToEnd());
    // Replies change their size when they are laid out: see content-visibility in chat.css.
    this.#observer.observe(log);
  }

  show(chat) {
    this.#log.replaceChildren(this.#welcome);
    this.#follows = false; // else each message would be laid out before the next one is made
    for (const message of chat.messages) {
      if (message.role === "user") this.addMessage(message);
      else this.beginReply().end(message, message.content);
    }
    this.isWriting = false;
    this.#refreshWelcome();
    this.showCut(chat);
    this.scrollToEnd();
  }

  addMessage(message) {
    const article = this.#add("me", "You", message);
    const text = article.appendChild(element("div", "text", message.content));
    text.dir = "auto";
    if (message.files) text.prepend(fileList(message.files));
    const edit = article.appendChild(button("Edit", "edit plain", () => this.onEdit(message)));
    edit.setAttribute("aria-label", "Edit your message");
    if (message.versions) article.append(this.#turner(message));
    return article;
  }

  #turner(message) {
    const { tails: { length }, at } = message.versions;
    const turner = element("span", "versions");
    const step = (text, label, by, isPossible) => {
      const made = button(text, "plain", () => this.onTurn(message, by));
      made.setAttribute("aria-label", label);
      made.disabled = !isPossible;
      return made;
    };
    turner.append(
      step("‹", "Earlier version", -1, at > 0),
      element("span", "", `${at + 1} of ${length}`),
      step("›", "Later version", 1, at < length - 1),
    );
    return turner;
  }

  beginReply() {
    this.isWriting = true;
    return new Reply(this, this.#add("model pending", "Reply"));
  }

  set isWriting(isWriting) {
    this.#log.classList.toggle("writing", isWriting);
  }

  viewOf(message) {
    return this.#articles().find((article) => article.message === message).reply;
  }

  addProblem(sentence) {
    const article = this.#add("error", "Problem");
    article.append(element("p", "", sentence));
    this.follow();
    return article;
  }

  clearProblems() {
    for (const problem of this.#log.querySelectorAll(".error")) problem.remove();
    this.#refreshWelcome();
  }

  remove(message) {
    for (const article of this.#articles()) if (article.message === message) article.remove();
    this.#ungroup();
    this.#refreshWelcome();
  }

  // The message, and all that follows.
  removeFrom(message) {
    const articles = this.#articles();
    const at = articles.findIndex((each) => each.message === message);
    if (at !== -1) for (const article of articles.slice(at)) article.remove();
    this.#ungroup();
  }

  #group() {
    const loose = [...this.#log.children].filter((each) => each !== this.#welcome && each.className !== "older");
    const oldest = loose.slice(0, GROUP);
    if (loose.length <= MOST_LOOSE || oldest.some((each) => each.contains(document.activeElement))) return;
    const older = element("div", "older");
    oldest[0].before(older);
    older.append(...oldest);
  }

  // The last message is in no group: see .again in chat.css.
  #ungroup() {
    while (!this.#log.querySelector(":scope > article")) {
      const last = [...this.#log.querySelectorAll(":scope > .older")].at(-1);
      if (!last) return;
      last.replaceWith(...last.childNodes);
    }
  }

  // A line in front of the first message that is still sent.
  showCut({ messages, from, cutFor }) {
    this.#log.querySelector(".cut-line")?.remove();
    const articles = this.#articles();
    const first = articles.find((article) => article.message === messages[from]);
    if (cutFor && first && first !== articles[0]) first.before(element("p", "cut-line", CUT[cutFor]));
  }

  follow() {
    if (this.#follows) this.#log.scrollTop = this.#log.scrollHeight;
  }

  scrollToEnd() {
    this.#follows = true;
    this.#latest.hidden = true;
    this.follow();
  }

  #refreshWelcome() {
    this.#welcome.hidden = this.#articles().length > 0;
  }

  #articles() {
    return [...this.#log.querySelectorAll("article")];
  }

  // Only the latest: the browser looks at each of them in each frame.
  #observe(article) {
    this.#observer.observe(article);
    this.#observed.push(article);
    if (this.#observed.length > MOST_OBSERVED) this.#observer.unobserve(this.#observed.shift());
  }

  #add(className, label, message = null) {
    this.#welcome.hidden = true;
    const article = element("article", className);
    article.setAttribute("aria-label", label); // otherwise only side and colour show the author
    article.message = message;
    this.#log.append(article);
    this.#group();
    this.#observe(article);
    this.follow();
    return article;
  }
}

// A reply: it grows, and has its cost and its buttons when it is over.
class Reply {
  #transcript;
  #article;
  #content;
  #markdown;
  text = ""; // of a reply that has just been written: what is on the page, without marks of Markdown

  constructor(transcript, article) {
    this.#transcript = transcript;
    this.#article = article;
    article.setAttribute("aria-busy", "true");
    this.#content = article.appendChild(element("div", "content"));
    this.#markdown = new Markdown(this.#content, () => transcript.follow());
    const dots = article.appendChild(element("div", "dots"));
    dots.setAttribute("aria-hidden", "true");
    dots.append(element("span"), element("span"), element("span"));
  }

  push(text) {
    this.#markdown.push(text);
  }

  remove() {
    this.#article.remove();
    this.#transcript.isWriting = false;
  }

  // `text` is what was not pushed yet.
  end(message, text = "") {
    this.#markdown.push(text);
    this.#markdown.end();
    if (!text) this.text = this.#content.innerText; // later, it may not be laid out
    Object.assign(this.#article, { message, reply: this });
    this.#article.className = "model";
    this.#transcript.isWriting = false;
    this.#article.removeAttribute("aria-busy");
    this.#article.querySelector(".dots").remove();
    this.#article.append(this.#footer(message));
    this.#transcript.follow();
  }

  // The cost of a reply that was not whole comes later.
  update(message) {
    this.#article.querySelector("footer").replaceWith(this.#footer(message));
    this.#transcript.follow();
  }

  #footer(message) {
    const footer = element("footer");
    const note = message.problem ?? ENDS[message.end];
    if (note) footer.append(element("p", "note", `${note}${paid(message)}`));
    footer.append(element("small", "", factsOf(message)));
    const buttons = footer.appendChild(element("span", "buttons"));
    if (message.content) buttons.append(copyButton(() => message.content, "Copy reply"));
    if (message.end === "length") buttons.append(button("Continue", "plain", () => this.#transcript.onContinue()));
    const again = button(message.end === "stop" ? "Ask again" : "Try again", "again plain", () => {
      this.#transcript.onRetry(message);
    });
    buttons.append(again);
    return footer;
  }
}

// What a reply cost that is not whole, and why.
function paid({ end, costUsd, usage, isEstimated }) {
  if (end !== "stopped" && end !== "cut") return "";
  if (costUsd === null) return " What had come is charged.";
  if (!usage || costUsd === 0) return ` It cost ${dollars(costUsd)}.`;
  const cost = ` It cost ${dollars(costUsd)}: the model read ${count(usage.input_tokens, "token")}`;
  const wrote = usage.output_tokens.toLocaleString("en");
  if (!isEstimated) return `${cost} and wrote ${wrote}.`;
  return `${cost} and wrote about ${wrote}, including what did not arrive here, such as its thoughts.`;
}

function factsOf(message) {
  const { model, usage, costUsd } = message;
  const facts = [model];
  if (usage && !paid(message)) {
    const cached = usage.cached_input_tokens ? ` (${usage.cached_input_tokens.toLocaleString("en")} cached)` : "";
    facts.push(`${count(usage.input_tokens, "token")} in${cached}`, `${usage.output_tokens.toLocaleString("en")} out`);
  }
  if (typeof costUsd === "number" && !paid(message)) facts.push(dollars(costUsd));
  return facts.filter(Boolean).join(" · ");
}

// The files of a message: images are shown, and each can be saved. `onRemove` gets one that its user takes out again.
export function fileList(files, onRemove = null) {
  const list = element("ul", "files");
  for (const file of files) {
    const { name, data } = file;
    const row = list.appendChild(element("li"));
    const isImage = data && kindOf(file) === "image";
    const shown = isImage ? Object.assign(element("img"), { src: data, alt: name }) : element("span", "", name);
    if (!data) shown.append(" is no longer kept");
    if (onRemove) {
      row.append(shown, button("×", "plain", () => onRemove(file)));
      row.lastChild.setAttribute("aria-label", `Remove ${name}`);
    } else if (data) {
      const link = row.appendChild(Object.assign(element("a"), { href: data, download: name, title: `Save ${name}` }));
      link.append(shown);
    } else row.append(shown);
  }
  return list;
}

export function button(text, className, onClick) {
  const made = element("button", className, text);
  made.type = "button";
  made.addEventListener("click", onClick);
  return made;
}

// Text is inserted as text, never as markup.
export function element(name, className = "", text = "") {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.textContent = text;
  return made;
}
