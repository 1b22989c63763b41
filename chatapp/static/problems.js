// An error in a user's words, and what can be done about it.

import { limitIn } from "./limits.js";
import { Refusal } from "./server.js";
import { duration, moment, period } from "./words.js";

// Longer waits are left to the user: hours later, they may not want the reply any more.
const LONGEST_AUTOMATIC_MS = 120_000;
const SHORT_S = 600;
// A longer wait is stated by its end: the sentence stays on the page, and would be wrong a while later.
const SHORT_WAIT_MS = 600_000;
const MINUTE_MS = 60_000;
const SLACK_MS = 5000; // between the clocks, and for the way of the answer: midnight is not 0:01
export const PASTE_KEY = "Paste the key that your administrator gave you.";

// By code: the sentence, and what to offer: "retry" (the same request may succeed), "key" (its field is focused).
const SENTENCES = {
  model_not_allowed: ["Your key does not allow this model. Choose another one at the top."],
  unknown_model: ["This model does not exist here. Choose another one at the top."],
  model_unavailable: ["This model is not available here. Choose another one at the top."],
  message_too_long: ["Your message is too long: about 30,000 characters fit. Shorten it, or send it in parts."],
  conversation_too_long: ["This chat has become too long. Start a new one."],
  unsupported_files: ["This model cannot read such files. Choose another one at the top, or remove the files."],
  file_too_large: ["A file is too large: one may have 3.7 MB."],
  body_too_large: ["Your message is too long. Shorten it, or send it in parts."],
  request_too_large: ["This is more than your limits allow at once. Shorten your message, or start a new chat."],
  blocked: ["Your access is blocked. Ask your administrator."],
  switched_off: ["Your administrator has switched this off for now."],
  abnormal_usage: ["You have spent far more than usual, so sending is paused. Ask your administrator if this is a mistake."],
  server_is_overloaded: ["The model is very busy.", "retry"],
  provider_timeout: ["The model took too long. Try again, with a shorter message if it was long.", "retry"],
  provider_unavailable: ["The model cannot be reached. Try again in a moment, or choose another one.", "retry"],
  provider_refused: ["The model's provider refuses this server. Your administrator has to fix that; trying again does not help."],
  provider_rejected: ["The model's provider rejected this. Change your message, start a new chat, or choose another model."],
  storage_unavailable: ["The server cannot check your limits at the moment. Try again in a moment.", "retry"],
  accounts_unavailable: ["The server cannot check your key at the moment. Try again in a moment.", "retry"],
  internal_error: ["Something went wrong in the server. Try again; if it happens again, ask your administrator.", "retry"],
};

// By code: why a reply ended that had begun.
const BROKEN_OFF = {
  server_is_overloaded: "The model became too busy to go on, so this reply is incomplete.",
  provider_timeout: "The model stopped writing, so this reply is incomplete.",
  provider_unavailable: "The model's provider broke this reply off.",
};

// {sentence, offers, waitMs, isAutomatic, details}. `isAutomatic`: send again after `waitMs`.
// `asksForKey`: the page has a field for one. `hasBegun`: a part of the reply came.
export function describe(error, { asksForKey, hasKey, hasBegun, isOnline }) {
  if (!(error instanceof Refusal)) {
    if (hasBegun) return { sentence: `${isOnline ? "The connection was lost" : "You went offline"}, so this reply is incomplete.` };
    const sentence = isOnline
      ? "The server cannot be reached. Check your connection."
      : "You are offline. Your message is sent when you are online again.";
    return { sentence, offers: "retry", waitMs: 0, isAutomatic: false, waitsForNetwork: !isOnline, details: "" };
  }
  const details = detailsOf(error);
  if (error.status === 401) {
    const paste = asksForKey ? PASTE_KEY : "A key is needed here now. Reload this page to enter yours.";
    const sentence = hasKey ? `This key does not work. ${paste}` : paste;
    return { sentence, offers: "key", waitMs: 0, isAutomatic: false, details };
  }
  if (hasBegun) return { sentence: BROKEN_OFF[error.code] ?? `This reply broke off. ${error.message}` };
  const { waitMs } = error;
  const [known, offers = null] = SENTENCES[error.code] ?? [unknown(error), error.status >= 500 ? "retry" : null];
  if (error.code === "rate_limited" || error.code === "insufficient_quota") {
    const isAutomatic = waitMs > 0 && waitMs <= LONGEST_AUTOMATIC_MS;
    return { sentence: limited(error), offers: null, waitMs, isAutomatic, details };
  }
  const isAutomatic = error.status === 503 && waitMs > 0 && waitMs <= LONGEST_AUTOMATIC_MS && !error.isFinal;
  return { sentence: known, offers, waitMs, isAutomatic, details };
}

// What to wait for, behind the sentence: "Try again in 9 minutes." or "Try again tomorrow at 09:00."
export function waitSentence(waitMs, now = Date.now()) {
  if (waitMs <= 0) return "";
  if (waitMs < SHORT_WAIT_MS) return ` Try again in ${duration(Math.ceil(waitMs / 1000))}.`;
  return ` Try again ${moment(new Date(Math.ceil((now + waitMs - SLACK_MS) / MINUTE_MS) * MINUTE_MS), new Date(now))}.`;
}

function limited(error) {
  const limit = limitIn(error.headers, error.body.policy);
  const when = limit?.windowSeconds ? period(limit.windowSeconds) : "";
  if (error.code === "insufficient_quota") {
    const own = error.message.split(/(?<=\.) /)[0]; // the policy's sentence, if it has one
    return own.startsWith("Rate limit") ? `Your budget${when && ` for ${when}`} is used up.` : own;
  }
  if (limit?.unit === "calls") return "Too many of your messages are being answered at the same time.";
  if (limit?.unit.includes("tokens")) return "Your messages and replies were very long. Take a short break.";
  if (error.body.policy === "model") return "Very many people use this model right now.";
  if (limit && limit.windowSeconds > SHORT_S) return `You have used all your messages${when && ` for ${when}`}.`;
  return "You are sending messages too quickly.";
}

function unknown(error) {
  return error.status >= 500 ? "Something went wrong in the server. Try again in a moment." : error.message;
}

// For a report to the administrator.
function detailsOf({ message, code, requestId }) {
  return [message, code && `(${code})`, requestId && `Request ${requestId}`].filter(Boolean).join(" ");
}
