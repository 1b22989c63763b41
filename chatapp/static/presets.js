// Instructions that the user has saved by name, in this browser.

import { forGood, remember, remembered } from "./browser-storage.js";

const KEY = "presets";

// As [name, text], by name.
export function presets() {
  try {
    const found = Object.entries(JSON.parse(remembered(forGood, KEY)) ?? {});
    return found.filter(([, text]) => typeof text === "string").sort(([a], [b]) => a.localeCompare(b));
  } catch {
    return []; // not this page's
  }
}

// Null as text deletes it. Returns whether the browser has it.
export function savePreset(name, text) {
  const others = presets().filter(([each]) => each !== name);
  return remember(forGood, KEY, JSON.stringify(Object.fromEntries(text === null ? others : [...others, [name, text]])));
}
