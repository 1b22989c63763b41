// Images and PDF files as parts of a message, for models that take them.

// The server takes 20 files in a chat, each with at most 3,750,000 bytes.
export const MOST_FILES = 20;
const MOST_BYTES = 3_700_000;
const AS_IT_IS_BYTES = 500_000;
// In pixels: providers scale a larger image down before the model sees it.
const LONGEST_SIDE = 1568;
const TYPES = ["image/png", "image/jpeg", "image/gif", "image/webp"];
const PDF = "application/pdf";
const DATA = new RegExp(`^data:(?:${[...TYPES, PDF].join("|")});base64,[A-Za-z0-9+/=]+$`);
const NAMES = { image: "images", pdf: "PDF files" };

// An image that is text, as SVG, is sent as text.
export function isMedia({ type }) {
  return type === PDF || (type.startsWith("image/") && !type.includes("svg"));
}

// {name, data}, where `data` is a URL. Throws an Error whose message says why the file cannot be sent.
export async function mediaOf(file) {
  const name = Array.from(file.name.replace(/[\p{C}\p{Z}]+/gu, " ")).slice(0, 100).join("").trim() || "file";
  const content = file.type === PDF ? file : await scaled(file);
  if (content.size > MOST_BYTES) throw new Error(`${name} is too large: a file may have 3.7 MB.`);
  const data = await urlOf(content);
  if (!DATA.test(data)) throw new Error(`${name} is empty.`);
  return { name, data };
}

export function isMediaFile({ name, data }) {
  return typeof name === "string" && (data === undefined || DATA.test(data));
}

export function kindOf({ data }) {
  return data.startsWith(`data:${PDF}`) ? "pdf" : "image";
}

// "images and PDF files": those that a model does not take.
export function untaken(files, takes) {
  const kinds = new Set(files.map(kindOf).filter((kind) => !takes.includes(kind)));
  return [...kinds].map((kind) => NAMES[kind]).join(" and ");
}

// About how many tokens a model reads, by what GET /usage/models says.
export function tokensOf(file, { takes = [], imageTokens = 0, pdfBytesPerToken = 1 }) {
  const kind = file.data && kindOf(file);
  if (!takes.includes(kind)) return 0;
  return kind === "image" ? imageTokens : ((file.data.length - file.data.indexOf(",")) * 3) / 4 / pdfBytesPerToken;
}

// On white, as JPEG has no transparency; without what a camera has written into the file.
async function scaled(file) {
  const image = await createImageBitmap(file).catch(() => null);
  if (!image) throw new Error(`${file.name} is not an image that can be sent: PNG, JPEG, GIF and WebP can.`);
  const { width, height } = image;
  const scale = Math.min(1, LONGEST_SIDE / Math.max(width, height));
  if (scale === 1 && file.size <= AS_IT_IS_BYTES && TYPES.includes(file.type)) return file;
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const context = canvas.getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.85));
}

function urlOf(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error("The file cannot be read."));
    reader.readAsDataURL(blob);
  });
}
