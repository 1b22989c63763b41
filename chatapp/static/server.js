// Requests to this server.

import { readWait } from "./limit-headers.js";

// An answer that is an error: its status and body, and what its headers say of a retry.
export class Refusal extends Error {
  constructor({ status, body, headers }) {
    super(body?.error ?? `The server answered ${status}.`);
    this.status = status;
    this.body = body ?? {};
    this.code = body?.code ?? "";
    this.headers = headers;
    this.waitMs = headers ? readWait(headers, body) : 0;
    this.isFinal = headers?.get("x-should-retry") === "false";
    this.requestId = headers?.get("x-request-id") ?? null;
  }
}

// The connection ended before the reply did.
export class Disconnect extends Error {}

export class Server {
  apiKey = "";
  userId = "";

  // Streams a reply: `onHeaders` gets the answer's headers, `onText` each part. Returns the fields of the event
  // `done`. Throws a Refusal, a Disconnect, or an AbortError if `signal` aborts.
  async ask({ messages, system, model, signal, onHeaders, onText }) {
    const body = { messages, stream: true };
    if (model) body.model = model;
    if (system) body.system = system;
    if (this.userId) body.user_id = this.userId;
    const response = await this.#fetch("chat", { method: "POST", body: JSON.stringify(body), signal });
    onHeaders(response.headers);
    if (!response.ok) throw await refusalOf(response);
    for await (const { name, data } of eventsOf(response.body, signal)) {
      if (name === "delta") onText(data.text);
      else if (name === "done") return data;
      else if (name === "error") throw new Refusal({ status: 200, body: data, headers: null });
    }
    throw new Disconnect();
  }

  usage() {
    return this.#get("usage");
  }

  models() {
    return this.#get("usage/models");
  }

  // What a call used and cost, once it is over: a moment after its connection. Null if that is unknown.
  async call(callId) {
    for (const waitMs of [150, 300, 600, 1200]) {
      await new Promise((resolve) => setTimeout(resolve, waitMs));
      const call = await this.#get(`usage/calls/${callId}`).catch(() => null);
      if (call && call.status !== "unfinished") return call;
    }
    return null;
  }

  async #get(path) {
    const query = this.userId ? `?user_id=${encodeURIComponent(this.userId)}` : "";
    const response = await this.#fetch(path + query, {});
    if (!response.ok) throw await refusalOf(response);
    return response.json();
  }

  async #fetch(path, options) {
    const headers = { "Content-Type": "application/json" };
    // A header cannot have other characters, and a key has none.
    if (/[^\x21-\x7e]/.test(this.apiKey)) throw new Refusal({ status: 401, body: { error: "" } });
    if (this.apiKey) headers.Authorization = `Bearer ${this.apiKey}`;
    try {
      return await fetch(path, { ...options, headers, cache: "no-store" });
    } catch (error) {
      throw error.name === "AbortError" ? error : new Disconnect();
    }
  }
}

async function refusalOf(response) {
  const body = await response.json().catch(() => null);
  return new Refusal({ status: response.status, body, headers: response.headers });
}

// The server-sent events of a body. Comments and unknown fields are skipped.
async function* eventsOf(body, signal) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      pending += value;
      const blocks = pending.split("\n\n");
      pending = blocks.pop();
      for (const block of blocks) {
        const fields = block.split("\n").map((line) => line.split(/: ?(.*)/s));
        const field = (name) => fields.find(([each]) => each === name)?.[1];
        const data = field("data");
        if (data) yield { name: field("event"), data: JSON.parse(data) };
      }
    }
  } catch (error) {
    throw signal.aborted ? error : new Disconnect();
  } finally {
    reader.cancel().catch(() => {});
  }
}
