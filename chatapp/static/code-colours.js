// The colours of code. The library is loaded with the first block of code that is seen, and plain text needs none.

let library = null;
const waiting = new WeakMap();
const seeing = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) if (isIntersecting) colour(target);
});

// Calls `onColours` with the HTML of this code once the element is seen, if the language is known.
export function whenSeen(element, language, code, onColours) {
  waiting.set(element, { language, code, onColours });
  seeing.observe(element);
}

async function colour(element) {
  seeing.unobserve(element);
  const { language, code, onColours } = waiting.get(element);
  waiting.delete(element);
  try {
    library ??= import("./vendor/highlight.min.js");
    const { default: highlighter } = await library;
    if (highlighter.getLanguage(language)) onColours(highlighter.highlight(code, { language }).value);
  } catch {
    library = null; // it could not be loaded: the code is as readable without
  }
}
