// Markdown that grows: what is complete is rendered once, and only the block that is being written is rendered
// again. HTML in a text is shown as text; DOMPurify is the second line of defence.

import { whenSeen } from "./code-colours.js";
import { drawFormulas, mathExtensions, openFormula } from "./math.js";
import { Marked } from "./vendor/marked.esm.js";
import "./vendor/purify.min.js"; // sets globalThis.DOMPurify

const LINES_PER_CHUNK = 200; // of code: each chunk is laid out by itself
const RENDER_EVERY_MS = 50;
const MOST_TO_COLOUR = 20_000; // characters of a block of code
// The time to colour such a word grows with the square of its length, in Java, INI and others.
const ENDLESS_WORD = /[\w$.À-ʸ-]{200}/;
const MOST_TO_RENDER_AGAIN = 100_000; // characters
// In a paragraph, heading, item or cell: the time to find out which marks belong together grows with their square, or
// faster. One with more is shown as it was written.
const MOST_MARKS = 1000;
const FENCE = /^( {0,3})(`{3,}|~{3,})([^\n`]*)\n/;
const IMAGE_IN_TEXT = /^data:image\/(?:png|jpeg|gif|webp|avif);base64,[A-Za-z0-9+/=]+$/;
const OPEN_IMAGE = /!\[[^\]]*\]\(data:[^)\s]*$/; // while it is being written
const MAYBE_A_FENCE = /^ {0,3}(`*|~*)\s*$/;

const PURIFIED = {
  ALLOWED_TAGS: [
    ..."p br hr strong em del code pre blockquote ul ol li h1 h2 h3 h4 h5 h6 a".split(" "),
    ..."table thead tbody tr th td img span".split(" "),
  ],
  ALLOWED_ATTR: ["href", "title", "start", "align", "class", "src", "alt"],
  ADD_URI_SAFE_ATTR: ["align", "start"],
  ALLOWED_URI_REGEXP: /^(?:https?:|mailto:)/i,
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

const escaped = (text) =>
  text.replace(/[&<>"']/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" })[c]);

const crowded = {
  name: "crowded",
  level: "inline",
  tokenizer(source, before) {
    if (before.length > 0 || source.length <= MOST_MARKS) return;
    if (source.match(/[*_~`<$@!\\[\]]/g)?.length > MOST_MARKS) return { type: "crowded", raw: source };
  },
  renderer: ({ raw }) => escaped(raw).replaceAll("\n", "<br>"),
};

const marked = new Marked({
  gfm: true,
  breaks: true,
  extensions: [...mathExtensions(escaped), crowded],
  renderer: {
    html: ({ text }) => escaped(text),
    // An image of another site would tell it who reads the reply, so it is a link. One that is in the text is shown.
    image: ({ href, text }) => IMAGE_IN_TEXT.test(href)
      ? `<img src="${escaped(href)}" alt="${escaped(text || "Image")}">`
      : `<a href="${escaped(href)}">${escaped(text || "Image")}</a>`,
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
  },
});

export class Markdown {
  #parent;
  #text = "";
  #settled = 0; // characters that are rendered for good
  #live = []; // the nodes of the others
  #code = null;
  #hasDefinitions = false;
  #timer = null;
  #lastMs = 0;
  #onRender;

  constructor(parent, onRender = () => {}) {
    this.#parent = parent;
    this.#onRender = onRender;
  }

  push(text) {
    this.#text += text.replaceAll("\r", ""); // else lengths would differ from the lexer's
    // However long a rendering takes, most of the time is left for the reader.
    this.#timer ??= setTimeout(() => this.#renderOnTime(), Math.max(RENDER_EVERY_MS, 4 * this.#lastMs));
  }

  end() {
    clearTimeout(this.#timer);
    this.#timer = null;
    this.#render({ isOver: true });
    if (this.#hasDefinitions && this.#text.length < MOST_TO_RENDER_AGAIN) {
      // A link may be defined anywhere after its use.
      this.#parent.replaceChildren(fragmentOf(lexed(this.#text)));
    }
    this.#onRender();
  }

  #renderOnTime() {
    const began = performance.now();
    this.#timer = null;
    this.#render({ isOver: false });
    this.#onRender();
    this.#lastMs = performance.now() - began;
  }

  #render({ isOver }) {
    for (;;) {
      if (this.#code) {
        const end = this.#code.grow(this.#text, isOver);
        if (end === null) return;
        this.#settled = end;
        this.#code = null;
      }
      const rest = this.#text.slice(this.#settled);
      const fence = FENCE.exec(rest);
      if (fence) {
        this.#clearLive();
        this.#code = new GrowingCode(this.#parent, fence, this.#settled);
        continue;
      }
      const settled = this.#settle(rest, isOver);
      if (settled === 0 || isOver) {
        this.#showLive(this.#text.slice(this.#settled), isOver);
        return;
      }
    }
  }

  // Renders the blocks of complete lines that nothing can change any more: all but the last one. Returns their
  // length, or stops in front of a block of code.
  #settle(rest, isOver) {
    const lines = rest.slice(0, rest.lastIndexOf("\n") + 1);
    // The lines of a formula may look like a list, or a heading.
    const complete = isOver ? rest : lines.slice(0, openFormula(lines));
    const tokens = lexed(complete);
    if (tokens.reduce((sum, token) => sum + token.raw.length, 0) !== complete.length) return 0;
    let last = isOver ? tokens.length : tokens.findLastIndex((token) => token.type !== "space");
    const code = tokens.findIndex((token, index) => index > 0 && FENCE.test(`${token.raw}\n`));
    if (code > 0) last = Math.min(last, code);
    const done = tokens.slice(0, Math.max(0, last));
    if (done.length === 0) return 0;
    this.#hasDefinitions ||= done.some((token) => token.type === "def");
    this.#clearLive();
    this.#parent.append(fragmentOf(done));
    const length = done.reduce((sum, token) => sum + token.raw.length, 0);
    this.#settled += length;
    return length;
  }

  #showLive(text, isOver) {
    this.#clearLive();
    if (!text) return;
    const fragment = fragmentOf(lexed(isOver ? text : text.replace(OPEN_IMAGE, "…")));
    this.#live = [...fragment.childNodes];
    this.#parent.append(fragment);
  }

  #clearLive() {
    for (const node of this.#live) node.remove();
    this.#live = [];
  }
}

// A fenced block of code: lines are appended as they come.
class GrowingCode {
  #view;
  #at;
  #closing;
  #indent;

  constructor(parent, [opening, indent, fence, info], at) {
    this.#view = new CodeView(info);
    this.#at = at + opening.length;
    this.#closing = new RegExp(`^ {0,3}\\${fence[0]}{${fence.length},}[ \\t]*$`);
    this.#indent = new RegExp(`^ {0,${indent.length}}`);
    parent.append(this.#view.element);
  }

  // The end of the block in the text; null if it is still open.
  grow(text, isOver) {
    const lines = [];
    for (let end; (end = text.indexOf("\n", this.#at)) !== -1; this.#at = end + 1) {
      const line = text.slice(this.#at, end);
      if (this.#closing.test(line)) {
        this.#view.append(lines);
        this.#view.end();
        return end + 1;
      }
      lines.push(line.replace(this.#indent, ""));
    }
    const last = text.slice(this.#at);
    this.#view.append(lines, MAYBE_A_FENCE.test(last) ? "" : last.replace(this.#indent, ""));
    if (!isOver) return null;
    if (!this.#closing.test(last)) this.#view.append([last]);
    this.#view.end();
    return text.length;
  }
}

class CodeView {
  #language;
  #code;
  #lines = [];
  #open = null; // the text of the chunk that grows
  #openLines = 0;
  #last;

  constructor(info) {
    const language = (info ?? "").trim().split(/\s/, 1)[0].slice(0, 30);
    this.#language = language;
    this.element = document.createElement("figure");
    this.element.className = "code";
    const caption = this.element.appendChild(document.createElement("figcaption"));
    caption.append(Object.assign(document.createElement("span"), { textContent: language || "code" }));
    caption.append(copyButton(() => this.text, "Copy code"));
    const pre = this.element.appendChild(document.createElement("pre"));
    pre.tabIndex = 0; // a long line scrolls, also with the keyboard
    pre.dir = "ltr";
    pre.setAttribute("role", "group");
    pre.setAttribute("aria-label", language ? `Code in ${language}` : "Code");
    this.#code = pre.appendChild(document.createElement("code"));
    this.#last = this.#code.appendChild(document.createElement("span"));
  }

  get text() {
    return [...this.#lines, this.#last.textContent].join("\n").replace(/\n$/, "");
  }

  append(lines, last = "") {
    this.#lines.push(...lines);
    for (let at = 0; at < lines.length; ) {
      if (this.#openLines === 0) {
        const chunk = document.createElement("span");
        this.#open = chunk.appendChild(document.createTextNode(""));
        this.#last.before(chunk);
      }
      const some = lines.slice(at, at + LINES_PER_CHUNK - this.#openLines);
      this.#open.appendData(`${some.join("\n")}\n`);
      at += some.length;
      this.#openLines = (this.#openLines + some.length) % LINES_PER_CHUNK;
    }
    this.#last.textContent = last;
  }

  // Its colours come once it is complete and in sight.
  end() {
    const { text } = this;
    if (!this.#language || text.length > MOST_TO_COLOUR || ENDLESS_WORD.test(text)) return;
    whenSeen(this.element, this.#language, text, (html) => {
      const coloured = document.createElement("span");
      coloured.append(purified(html));
      this.#code.replaceChildren(coloured);
    });
  }
}

export function copyButton(text, label) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy plain";
  button.textContent = "Copy";
  button.setAttribute("aria-label", label);
  button.addEventListener("click", async () => {
    button.textContent = (await copied(text())) ? "Copied" : "Not copied";
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
  return button;
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Without HTTPS there is no clipboard; the older command still works.
    const area = Object.assign(document.createElement("textarea"), { value: text, className: "unseen" });
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}

function lexed(text) {
  try {
    return marked.lexer(text);
  } catch { // nested too deeply
    return [{ type: "paragraph", raw: text, text, tokens: [{ type: "text", raw: text, text }] }];
  }
}

function purified(html) {
  return DOMPurify.sanitize(html, PURIFIED);
}

function fragmentOf(tokens) {
  let fragment;
  try {
    fragment = purified(marked.parser(tokens));
  } catch { // nested too deeply
    fragment = document.createDocumentFragment();
    fragment.append(tokens.map((token) => token.raw).join(""));
  }
  for (const link of fragment.querySelectorAll("a[href]")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer nofollow";
  }
  for (const image of fragment.querySelectorAll("img")) if (!IMAGE_IN_TEXT.test(image.src)) image.remove();
  for (const table of fragment.querySelectorAll("table")) {
    const box = document.createElement("div");
    box.className = "table";
    box.tabIndex = 0;
    box.setAttribute("role", "group");
    box.setAttribute("aria-label", "Table");
    table.replaceWith(box);
    box.append(table);
  }
  for (const pre of fragment.querySelectorAll("pre")) {
    const code = pre.querySelector("code");
    const view = new CodeView(code?.className.replace(/^language-/, ""));
    view.append((code ?? pre).textContent.replace(/\n$/, "").split("\n"));
    view.end();
    pre.replaceWith(view.element);
  }
  // The direction of a block is that of its first letter, also of a list, whose marks and indentation follow it. What
  // is in it has its own: see unicode-bidi in chat.css.
  for (const block of fragment.children) if (!block.matches(".code")) block.dir = "auto";
  drawFormulas(fragment);
  return fragment;
}
