// Vercel's AI SDK: openai(model), which is the Responses API, and anthropic(model).
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { generateText, jsonSchema, Output, stepCountIs, streamText, tool } from "ai";
import { run, schema, weather } from "./driver.mjs";

const asked = ({ url, key, model, prompt }) => {
  const create = model.startsWith("claude") ? createAnthropic : createOpenAI;
  return { model: create({ baseURL: `${url}/v1`, apiKey: key })(model), prompt };
};

await run("ai", {
  plain: async (request) => (await generateText(asked(request))).text,
  stream: async (request) => {
    let failure;
    let received = "";
    const { textStream } = streamText({
      ...asked(request),
      onError: ({ error }) => {
        failure = error;
      },
    });
    for await (const piece of textStream) received += piece;
    if (failure) throw failure instanceof Error ? failure : new Error(JSON.stringify(failure));
    return received;
  },
  tools: async (request) => {
    const inputSchema = jsonSchema({ type: "object", properties: { city: { type: "string" } } });
    const description = "The weather in a city.";
    const tools = { weather: tool({ description, inputSchema, execute: weather }) };
    return (await generateText({ ...asked(request), tools, stopWhen: stepCountIs(3) })).text;
  },
  structured: async (request) => {
    const output = Output.object({ schema: jsonSchema(schema) });
    return JSON.stringify((await generateText({ ...asked(request), output })).output);
  },
});
