// What the browser keeps for this page: nothing of it is sent to the server.

// Functions, because reading either property raises if the browser forbids storage.
export const forGood = () => localStorage, forThisTab = () => sessionStorage;
const OURS = "chatapp.";

// Null forgets it.
export function remember(storage, name, value) {
  try {
    if (value === null) storage().removeItem(OURS + name);
    else storage().setItem(OURS + name, value);
    return true;
  } catch {
    return false; // full, or forbidden
  }
}

export function remembered(storage, name) {
  try {
    return storage().getItem(OURS + name);
  } catch {
    return null;
  }
}

export function forgetAll() {
  for (const storage of [forGood, forThisTab]) {
    try {
      for (const name of Object.keys(storage())) if (name.startsWith(OURS)) storage().removeItem(name);
    } catch { /* nothing is there */ }
  }
}
