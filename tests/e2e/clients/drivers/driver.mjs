// driver.py for Node.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const [url, key, model, way, prompt] = process.argv.slice(2);
// What most clients read.
Object.assign(process.env, {
  OPENAI_BASE_URL: `${url}/v1`,
  OPENAI_API_KEY: key,
  ANTHROPIC_BASE_URL: url,
  ANTHROPIC_API_KEY: key,
});

export const weather = ({ city }) => {
  if (city !== "Oslo") throw new Error(`no weather in ${city}`);
  return "7 degrees";
};

export const schema = {
  type: "object",
  properties: { city: { type: "string" }, degrees: { type: "integer" } },
  required: ["city", "degrees"],
  additionalProperties: false,
};

export async function run(name, ways) {
  if (way === "many") return many(Object.values(ways)[0]);
  const { version } = createRequire(import.meta.url)(`./node_modules/${name}/package.json`);
  let text = null;
  let error = null;
  try {
    text = await ways[way]({ url, key, model, prompt });
  } catch (raised) {
    error = `${raised.name}: ${raised.message}`;
  }
  console.log(JSON.stringify({ version, text, error }));
}

async function many(call) {
  for await (const line of createInterface({ input: process.stdin })) {
    const [model, prompt] = line.split(" ");
    call({ url, key, model, prompt }).then(
      (text) => console.log(JSON.stringify({ model, text })),
      () => console.log(JSON.stringify({ model, text: null })),
    );
  }
}
