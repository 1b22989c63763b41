// Text files as a part of a message's text, which every model reads.

// A message has 32,000 bytes.
const MOST_BYTES = 30_000;

// The draft, and after it the text of the files, each between fences with its name. Throws an Error whose message says
// why not.
export async function withTextOf(files, draft) {
  const large = files.find(({ size }) => size > MOST_BYTES);
  if (large) throw new Error(`${large.name} is too large: 30 kB of text fit into a message.`);
  const bytes = files.reduce((sum, { size }) => sum + size, new Blob([draft]).size);
  if (bytes > MOST_BYTES) {
    throw new Error(`That is ${Math.ceil(bytes / 1000)} kB together, and 30 kB of text fit into a message. Add fewer files.`);
  }
  const parts = [draft.trimEnd()];
  for (const file of files) parts.push(fenced(file.name, await decoded(file)));
  return parts.filter(Boolean).join("\n\n");
}

async function decoded(file) {
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
    if (!text.includes("\0")) return text;
  } catch { /* as below */ }
  throw new Error(`${file.name} is not text: images, PDF files and text can be sent.`);
}

// The fence is longer than any in the text, so that nothing in it ends the block.
function fenced(name, text) {
  const longest = Math.max(2, ...[...text.matchAll(/`+/g)].map(([found]) => found.length));
  const fence = "`".repeat(longest + 1);
  const ending = /\.([a-z0-9]{1,10})$/i.exec(name)?.[1] ?? "";
  return `${name}:\n\n${fence}${ending}\n${text.replace(/\n$/, "")}\n${fence}`;
}
