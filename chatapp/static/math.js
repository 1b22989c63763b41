// Formulas in TeX, between $ and $, $$ and $$, \( and \), or \[ and \]. They are shown as MathML, which browsers draw
// themselves; as they were written while the library is loading, and if it cannot read them.

// None is longer, or has a blank line: what begins one and has no end is only text.
const DISPLAY =
  /^ {0,3}(?:\$\$((?:(?!\$\$|\n[ \t]*\n)[^]){1,4000})\$\$|\\\[((?:(?!\\\]|\n[ \t]*\n)[^]){1,4000})\\\])[ \t]*(?:\n+|$)/;
const DISPLAY_BEGINS = /(?:^|\n) {0,3}(?:\$\$|\\\[)/;
// An amount of dollars begins none: behind it, a $ follows a space or some code, or precedes a letter or digit.
const INLINE = /^(?:\\\(((?:(?!\\\)|\n[ \t]*\n)[^]){1,1000})\\\)|\$(?![\s$])((?:[^$`\n\\]|\\[^\n])*[^$`\s\\])\$(?![\w$]))/;
const INLINE_DISPLAY = /^(?:\$\$([^$\n]{1,1000})\$\$|\\\[((?:(?!\\\]|\n)[^]){1,1000})\\\])/;
const OPTIONS = { throwOnError: true, trust: false, maxSize: [20, 20], maxExpand: 1000 };
const LIBRARY = new URL("vendor/temml.min.js", import.meta.url); // sets globalThis.temml
let isAskedFor = false;
// A formula in a line that is wider than the line, as on a phone, gets lines of its own.
const fitting = new IntersectionObserver((entries) => {
  for (const { target, boundingClientRect: { width } } of entries) if (width > target.parentElement.clientWidth) setApart(target);
});

// Where a formula begins on a line of its own that has no end yet; the text's length if none does.
export function openFormula(text) {
  const beginning = /(?:^|\n) {0,3}(\$\$|\\\[)/g;
  for (let found; (found = beginning.exec(text)); ) {
    const ending = found[1] === "$$" ? /\$\$|\n[ \t]*\n/g : /\\\]|\n[ \t]*\n/g;
    ending.lastIndex = beginning.lastIndex;
    const end = ending.exec(text);
    if (!end) return found.index + found[0].startsWith("\n");
    beginning.lastIndex = ending.lastIndex - end[0].startsWith("\n"); // the next may begin behind a blank line
  }
  return text.length;
}

// For marked. `escaped` makes HTML of a text.
export function mathExtensions(escaped) {
  const token = (type, isDisplay, pattern) => (source) => {
    const found = pattern.exec(source);
    if (found) return { type, raw: found[0], tex: (found[1] ?? found[2]).trim(), isDisplay };
  };
  const code = ({ tex, isDisplay }) => `<code class="math${isDisplay ? " display" : ""}">${escaped(tex)}</code>`;
  const inline = (source) => token("math", false, INLINE)(source) ?? token("math", true, INLINE_DISPLAY)(source);
  return [
    {
      name: "mathBlock",
      level: "block",
      start: (source) => DISPLAY_BEGINS.exec(source.split("\n\n", 1)[0])?.index,
      tokenizer: token("mathBlock", true, DISPLAY),
      renderer: (found) => `<p>${code(found)}</p>\n`,
    },
    { name: "math", level: "inline", start: (source) => source.search(/\$|\\[([]/), tokenizer: inline, renderer: code },
  ];
}

// Draws the formulas in there, at once or as soon as the library is loaded.
export function drawFormulas(root) {
  const found = root.querySelectorAll("code.math");
  if (found.length === 0) return;
  if (globalThis.temml) found.forEach(draw);
  else load();
}

function load() {
  if (isAskedFor) return;
  isAskedFor = true;
  const script = Object.assign(document.createElement("script"), { src: LIBRARY });
  script.addEventListener("load", () => drawFormulas(document));
  script.addEventListener("error", () => { isAskedFor = false; });
  document.head.append(script);
}

function draw(code) {
  const displayMode = code.classList.contains("display");
  const drawn = document.createElement("span");
  try {
    temml.render(code.textContent, drawn, { ...OPTIONS, displayMode });
  } catch {
    return; // unknown commands: it stays as it was written
  }
  drawn.className = code.className;
  if (displayMode) setApart(drawn);
  else fitting.observe(drawn);
  code.replaceWith(drawn);
}

function setApart(drawn) {
  fitting.unobserve(drawn);
  drawn.classList.add("display");
  drawn.tabIndex = 0; // a long one scrolls, also with the keyboard
  drawn.setAttribute("role", "group");
  drawn.setAttribute("aria-label", "Formula");
}
