// A chat as a file for its user.

// Markdown, as it was written; JSON has all that is kept.
const FORMATS = {
  md: { type: "text/markdown", textOf: markdownOf },
  json: { type: "application/json", textOf: (chat) => `${JSON.stringify(chat, null, 2)}\n` },
};

// The browser downloads it; the server has no part in it.
export function saveChat(title, { name = title, instructions, messages }, ending) {
  const { type, textOf } = FORMATS[ending];
  const url = URL.createObjectURL(new Blob([textOf({ name, instructions, messages })], { type }));
  const link = Object.assign(document.createElement("a"), { href: url, download: `${fileName(title)}.${ending}` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000); // the download has begun
}

function markdownOf({ name, instructions, messages }) {
  const parts = messages.map(({ role, model, content, files = [] }) => {
    const text = [content.trim(), ...files.map((file) => `(File: ${file.name})`)].join("\n\n");
    return [role === "user" ? "You" : model ?? "Reply", text];
  });
  if (instructions) parts.unshift(["Instructions", instructions]);
  const sections = parts.map(([heading, text]) => `## ${heading}\n\n${text}\n`);
  return [`# ${name.replace(/\s+/g, " ").slice(0, 200)}\n`, ...sections].join("\n");
}

// Letters and digits: whatever a message begins with, it is no path and has no other ending.
function fileName(title) {
  return title.slice(0, 60).replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-+|-+$/g, "") || "chat";
}
