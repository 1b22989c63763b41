// RateLimit-Policy and RateLimit, as in draft-ietf-httpapi-ratelimit-headers-10:
//   RateLimit-Policy: "ip";q=20;w=60, "user";q=10;w=60
//   RateLimit: "user";r=9;t=2, "ip";r=19;t=1
// Structured-field lists whose members and parameters come in any order.

const MEMBER = /"((?:[^"\\]|\\.)*)"((?:\s*;\s*[a-z*][a-z0-9_.*-]*(?:=(?:"(?:[^"\\]|\\.)*"|:[^:]*:|[^,;"\s]+))?)*)/gi;
const PARAMETER = /;\s*([a-z*][a-z0-9_.*-]*)(?:=(?:"((?:[^"\\]|\\.)*)"|([^,;\s]+)))?/gi;

function parseList(field) {
  const members = new Map();
  for (const [, name, parameters] of (field ?? "").matchAll(MEMBER)) {
    const values = {};
    for (const [, key, text, bare] of parameters.matchAll(PARAMETER)) {
      values[key.toLowerCase()] = text ?? bare ?? "?1";
    }
    members.set(name.replace(/\\(.)/g, "$1"), values);
  }
  return members;
}

function whole(text) {
  const number = Number(text);
  return text !== undefined && Number.isFinite(number) ? number : null;
}

// [{name, unit, quota, windowSeconds, remaining}], in the policy's order; a figure that the
// server did not send is null.
export function readLimits(headers) {
  const policies = parseList(headers.get("RateLimit-Policy"));
  const states = parseList(headers.get("RateLimit"));
  return [...new Set([...policies.keys(), ...states.keys()])].map((name) => ({
    name,
    unit: policies.get(name)?.qu ?? "requests",
    quota: whole(policies.get(name)?.q),
    windowSeconds: whole(policies.get(name)?.w),
    remaining: whole(states.get(name)?.r),
  }));
}

// The wait in ms, 0 if the answer states none; the most exact value counts.
export function readWait(headers, body) {
  const statements = [
    whole(headers.get("retry-after-ms") ?? undefined),
    typeof body?.retry_after === "number" ? body.retry_after * 1000 : null,
    whole(headers.get("Retry-After") ?? undefined) * 1000,
  ];
  return statements.find((wait) => wait !== null && wait > 0) ?? 0;
}
