// The caller's limits, from GET /usage and the headers of each answer, in plain words.

import { readLimits } from "./limit-headers.js";
import { count, money, period } from "./words.js";

const HOUR = 3600;
const SCARCE = 0.25;
// Refusals that last; the server does not say how long.
const UNTIL_ANSWERED = ["abnormal_usage", "blocked", "insufficient_quota", "switched_off"];
const UNITS = { "micro-usd": "usd", "concurrent-requests": "calls" };

export class Limits {
  #limits = []; // {name, unit, most, left, period}
  isKnown = false;
  #isApproximate = false;
  #refusedUntil = 0; // after a refusal, in ms of performance.now()
  #tooLittleUsd = null; // what was left when a budget refused the last message

  // `usage` is the answer of GET /usage.
  read(usage) {
    this.isKnown = true;
    this.#limits = usage.limits.map(({ name, unit, limit, burst, remaining, period: seconds }) => {
      return { name, unit, most: burst ?? limit, left: remaining, period: burst ? null : seconds };
    });
  }

  // The headers of an answer are newer than the last GET /usage.
  update(headers) {
    this.forgetRefusal();
    // While the storage of the limits is down, each process of the server counts for itself.
    this.#isApproximate = headers.has("X-RateLimit-Degraded");
    for (const { name, unit, remaining } of readLimits(headers)) {
      const known = this.#limits.find((limit) => limit.name === name);
      if (known && remaining !== null) known.left = unit === "micro-usd" ? remaining / 1e6 : remaining;
    }
  }

  // Whether a wait of seconds or minutes is what keeps the caller from sending.
  get isPaused() {
    return this.#of("requests").some(({ left, period: seconds }) => left < 1 && (seconds ?? 0) < HOUR);
  }

  // The last message was refused.
  refuse({ code, waitMs }) {
    // A budget refuses a message that may cost more than it has left: until there is more.
    this.#tooLittleUsd = code === "insufficient_quota" ? this.leftUsd : null;
    if (this.#tooLittleUsd !== null) return;
    this.#refusedUntil = performance.now() + (waitMs || (UNTIL_ANSWERED.includes(code) ? Infinity : 0));
  }

  // Another user, or another model, may be allowed to send.
  forgetRefusal() {
    this.#refusedUntil = 0;
    this.#tooLittleUsd = null;
  }

  get #isRefused() {
    return performance.now() < this.#refusedUntil;
  }

  get leftUsd() {
    const amounts = this.#of("usd").map(({ left }) => left);
    return amounts.length ? Math.max(0, Math.min(...amounts)) : null;
  }

  // "You can send 9 more messages now; 87 of 100 left today; $4.20 of $5 left this month."
  get sentence() {
    if (this.#limits.length === 0) return this.#isRefused ? "You cannot send a message right now." : "No limits apply to you.";
    const requests = this.#of("requests");
    const now = least(requests);
    const long = least(requests.filter((limit) => limit.period >= HOUR));
    const usd = least(this.#of("usd"));
    const tokens = least(this.#of("tokens").filter(({ left, most }) => left < SCARCE * most));
    const parts = [];
    const isOver = now?.left < 1 || usd?.left <= (this.#tooLittleUsd ?? 0);
    if (isOver || this.#isRefused) parts.push("You cannot send a message right now");
    else if (now) parts.push(`You can send ${count(now.left, "more message")} now`);
    if (long) parts.push(`${long.left.toLocaleString("en")} of ${long.most.toLocaleString("en")} left ${period(long.period)}`);
    if (usd) parts.push(`${money(Math.max(0, usd.left))} of ${money(usd.most)} left${usd.period ? ` ${period(usd.period)}` : ""}`);
    if (tokens) parts.push(`${tokens.left.toLocaleString("en")} tokens left`);
    return `${parts.join("; ")}.${this.#isApproximate ? " The server can only estimate this at the moment." : ""}`;
  }

  // [{title, text, left, most}], for a list.
  get rows() {
    const scarcest = new Map(); // of the limits with the same title, such as those of a key and of its team
    for (const limit of this.#limits) {
      const title = titleOf(limit);
      scarcest.set(title, least([limit, scarcest.get(title) ?? limit]));
    }
    return [...scarcest].map(([title, { unit, left, most }]) => {
      const shown = unit === "usd" ? money : (amount) => amount.toLocaleString("en");
      return { title, text: `${shown(Math.max(0, left))} of ${shown(most)} left`, left, most };
    });
  }

  #of(unit) {
    return this.#limits.filter((limit) => limit.unit === unit);
  }
}

// The limit of this name in the headers of a refusal: {unit, windowSeconds}.
export function limitIn(headers, name) {
  const found = readLimits(headers).find((limit) => limit.name === name);
  return found && { ...found, unit: UNITS[found.unit] ?? found.unit };
}

function titleOf({ unit, period: seconds }) {
  const when = seconds ? ` ${period(seconds)}` : "";
  if (unit === "calls") return "Replies at the same time";
  if (unit === "usd") return `Money${when}`;
  if (unit === "requests") return `Messages${when || " now"}`;
  return `${unit.replace("_", " ").replace(/^./, (c) => c.toUpperCase())}${when}`;
}

function least(limits) {
  return limits.reduce((least, limit) => (least && least.left <= limit.left ? least : limit), undefined);
}
