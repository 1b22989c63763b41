// Anthropic's SDK for Node.
import Anthropic from "@anthropic-ai/sdk";
import { run, schema, weather } from "./driver.mjs";

const messages = new Anthropic().messages;
const said = ({ model, prompt }) => ({
  model,
  max_tokens: 1000,
  messages: [{ role: "user", content: prompt }],
});

await run("@anthropic-ai/sdk", {
  plain: async (request) => (await messages.create(said(request))).content[0].text,
  stream: async (request) => messages.stream(said(request)).finalText(),
  tools: async (request) => {
    const input_schema = { type: "object", properties: { city: { type: "string" } } };
    const fields = { ...said(request), tools: [{ name: "weather", input_schema }] };
    const { content } = await messages.create(fields);
    const result = { type: "tool_result", tool_use_id: content[0].id, content: weather(content[0].input) };
    fields.messages.push({ role: "assistant", content }, { role: "user", content: [result] });
    return (await messages.create(fields)).content[0].text;
  },
  structured: async (request) => {
    const tools = [{ name: "report", input_schema: schema }];
    const tool_choice = { type: "tool", name: "report" };
    const answer = await messages.create({ ...said(request), tools, tool_choice });
    return JSON.stringify(answer.content[0].input);
  },
});
