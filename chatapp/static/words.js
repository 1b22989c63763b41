// Amounts and times in a user's words.

export function count(number, noun) {
  return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
}

export function duration(seconds) {
  if (seconds < 60) return count(seconds, "second");
  const units = [[86400, "day"], [3600, "hour"], [60, "minute"], [1, "second"]];
  const first = units.findIndex(([size]) => seconds >= size);
  const [[size, noun], [smallerSize, smallerNoun]] = [units[first], units[first + 1]];
  const rest = Math.floor((seconds % size) / smallerSize);
  return count(Math.floor(seconds / size), noun) + (rest ? ` ${count(rest, smallerNoun)}` : "");
}

// "tomorrow at 09:00", in the user's time zone and way of writing times.
export function moment(date, now = new Date()) {
  const time = date.toLocaleTimeString([], { hour: "numeric", minute: "2-digit" });
  const days = Math.round((midnight(date) - midnight(now)) / 86_400_000);
  if (days < 2) return `${["", "tomorrow "][days]}at ${time}`;
  return `on ${date.toLocaleDateString("en", { weekday: "long", day: "numeric", month: "long" })}, at ${time}`;
}

function midnight(date) {
  return new Date(date.getFullYear(), date.getMonth(), date.getDate());
}

// "today", of a limit with that period.
export function period(seconds) {
  const days = seconds / 86400;
  if (days >= 28 && days <= 31) return "this month";
  const names = { 1: "this second", 60: "this minute", 3600: "this hour", 86400: "today", 604800: "this week" };
  return names[seconds] ?? `in ${duration(seconds)}`;
}

// Cents, and smaller costs with two digits that say something.
export function dollars(usd) {
  if (usd === 0) return "$0";
  if (usd < 0.0001) return "under $0.0001";
  if (usd >= 0.1) return `$${usd.toFixed(2).replace(/\.00$/, "")}`;
  return `$${Number(usd.toPrecision(2))}`;
}

export function money(usd) {
  if (usd > 0 && usd < 0.005) return "less than $0.01";
  const text = usd.toLocaleString("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 });
  return `$${text.replace(/\.00$/, "")}`;
}
