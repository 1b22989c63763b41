// OpenAI's SDK for Node: chat completions.
import OpenAI from "openai";
import { run, schema, weather } from "./driver.mjs";

const chat = new OpenAI().chat.completions;
const said = ({ model, prompt }) => ({ model, messages: [{ role: "user", content: prompt }] });
const text = (answer) => answer.choices[0].message.content;

await run("openai", {
  plain: async (request) => text(await chat.create(said(request))),
  stream: async (request) => {
    let received = "";
    const chunks = await chat.create({ ...said(request), stream: true });
    for await (const chunk of chunks) received += chunk.choices[0]?.delta.content ?? "";
    return received;
  },
  tools: async (request) => {
    const parameters = { type: "object", properties: { city: { type: "string" } } };
    const tools = [{ type: "function", function: { name: "weather", parameters } }];
    const { messages, ...fields } = { ...said(request), tools };
    const { message } = (await chat.create({ ...fields, messages })).choices[0];
    const [call] = message.tool_calls;
    const content = weather(JSON.parse(call.function.arguments));
    messages.push(message, { role: "tool", tool_call_id: call.id, content });
    return text(await chat.create({ ...fields, messages }));
  },
  structured: async (request) => {
    const json_schema = { name: "weather", strict: true, schema };
    const response_format = { type: "json_schema", json_schema };
    return text(await chat.create({ ...said(request), response_format }));
  },
});
