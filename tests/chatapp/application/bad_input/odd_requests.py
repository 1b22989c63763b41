"""Generated requests, as clients, proxies and attackers send them, and stranger ones."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

METHODS: Final = (
    *("POST",) * 12,
    *("GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "get", "BREW"),
)
ENDPOINTS: Final = (
    *("/chat", "/v1/chat/completions", "/v1/messages", "/v1/messages/count_tokens") * 6,
    *("/v1/responses", "/v1/responses/input_tokens", "/v1/embeddings") * 4,
    *("/v1/responses/compact", "/v1/responses/resp_1", "/v1/responses/a/input_items"),
    *("/v1/models", "/v1/models/gpt-5.4-mini", "/usage", "/usage?user_id=%ff%00", "/usage/models"),
    *("/usage/calls/%00", "/", "/static/chat.js", "/healthz", "/readyz"),
)
PATHS: Final = (
    *ENDPOINTS * 4,
    *("/v1/models/%ff", "/v1/models/..%2f..%2fetc", "/v1/models/" + "a" * 3000, "/static/../x"),
    *("/static/%00", "/v1", "/v1/v1/messages", "/v1/batches", "/v1/responses/%00", "//", "/%"),
    *("/%zz", "/chat/", "/CHAT", "/chat%20", "/\u00e9".encode().decode("latin-1"), "/;a=b"),
    "/v1//messages",
)
MODELS: Final = ("offline", "offline", "gpt-5.4-mini", "claude-haiku-4-5", "gpt-", "", "o1-" * 90)
TEXTS: Final = (
    *("hi", "", " ", "\x00", "a\ud800b", "\udfff\ud800", "\u202e\u200d\ufeff", "\U0001f600" * 50),
    *("e\u0301" * 99, "x" * 20_000, "<script>alert(1)</script>", "'; DROP TABLE calls; --"),
    *("a\r\nSet-Cookie: b=c", "${jndi:ldap://x}", "{{7*7}}", "*", "user:ip:10.0.0.1", "%s%n%d"),
)
NUMBERS: Final = (
    *(0, -1, 1, 7, 2**31, 2**53, 2**63, 2**64, -(2**63), 10**30, 0.5, -0.0, 1e308, 5e-324),
)
RAW_NUMBERS: Final = ("1e999", "-1e999", "NaN", "Infinity", "1" * 5000, "1e-999", "01", "1.", "-")
FIELDS: Final = (
    *("model", "message", "messages", "stream", "max_tokens", "user_id", "max_completion_tokens"),
    *("n", "tools", "tool_choice", "temperature", "metadata", "stream_options", "service_tier"),
    *("thinking", "system", "stop", "user", "reasoning_effort", "response_format", "speed"),
    *("mcp_servers", "container", "web_search_options", "audio", "modalities", "prediction"),
    *("input", "instructions", "previous_response_id", "background", "reasoning", "text", "prompt"),
    *("max_output_tokens", "conversation", "prompt_cache_options", "output", "encrypted_content"),
    *("cache_control", "functions", "logit_bias", "store", "", "__class__", "a" * 300),
)
HEADERS: Final[dict[str, Sequence[str]]] = {
    "Authorization": (
        *("Bearer", "Bearer x", "Basic %%%", "bearer sk-chat-", "Digest a=", "\xff", "B" * 9000),
    ),
    "x-api-key": ("", "sk-chat-0000000000000000-" + "a" * 43, "sk-ant-1", "\xe9"),
    "anthropic-version": ("2023-06-01", "x", "\xff", ""),
    "anthropic-beta": ("context-1m", "a,b,,", "\xe9" * 50, "x" * 2000),
    "OpenAI-Beta": ("assistants=v2", "\x7f"),
    "OpenAI-Organization": ("org", "\xa0"),
    "X-Forwarded-For": (
        *("1.2.3.4", "1.2.3.4:99", "[::1]:7", "x", ",,,", "::1, fe80::1%eth0", "9" * 999),
    ),
    "X-Forwarded-Proto": ("https", "gopher", ",", "\xff"),
    "Forwarded": ("for=1.2.3.4", "for="),
    "Accept": (
        *("*/*", "application/problem+json", "text/html;q=x", ";;;", "a/b;q=1e99"),
        "application/*;q=0",
    ),
    "Accept-Encoding": ("gzip", "identity;q=0", "\xff"),
    "Accept-Language": ("xx", "*;q=-1"),
    "Content-Encoding": ("gzip", "identity", "br", "deflate, gzip", ""),
    "Content-Type": (
        *("application/json",) * 5,
        *("application/json; charset=utf-16", "text/plain", "application/json;charset=\xff", ";"),
        *("application/x-www-form-urlencoded", "multipart/form-data; boundary=x"),
        "multipart/form-data",
    ),
    "Cookie": ("a=b", "=;=;", "session=\xff", "a=" + "b" * 5000),
    "Expect": ("", "200-ok"),
    "Range": ("bytes=0-1", "bytes=-", "bytes=99999999999999999999-", "lines=1-2"),
    "If-None-Match": ("*", '"x"', "\xff"),
    "If-Modified-Since": (
        "yesterday",
        "Thu, 01 Jan 1970 00:00:00 GMT",
        "Mon, 99 Foo 99999 99:99:99 GMT",
    ),
    "Idempotency-Key": ("1", "\x01"),
    "Origin": ("null", "http://evil.example", "\xff"),
    "X-Request-Id": ("1", "a\tb"),
    "User-Agent": ("", "curl", "\xff" * 300),
    "X-HTTP-Method-Override": ("DELETE",),
}
HOSTS: Final = (
    *("localhost",) * 30,
    *("evil.example", "[::1]:1", "[", "a b", "\xff", "localhost:99999", ""),
)
QUERIES: Final = (
    *("", "", "", "beta=true", "a=%ff", "%", "a=b&a=c", "&&&=", "x=" + "y" * 2000, "beta=%0d%0a"),
    "\xe9",
)


@dataclass(frozen=True, slots=True)
class OddRequest:
    """A request; texts are as in WSGI, each character a byte. ``declared`` is the announced
    Content-Length."""

    method: str
    path: str
    query: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    declared: str | None

    def head(self) -> bytes:
        """Request line and headers on the wire."""
        query = f"?{self.query}" if self.query else ""
        lines = [f"{self.method} {self.path}{query} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        if self.declared is not None:
            lines.append(f"Content-Length: {self.declared}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


class OddRequests:
    """Makes requests from a seed, always the same ones. ``keys`` are valid API keys that most of
    the requests have."""

    def __init__(self, seed: int, keys: Sequence[str] = ()) -> None:
        self._random = random.Random(seed)
        self._keys = keys

    def next(self) -> OddRequest:
        chance = self._random.random
        choice = self._random.choice
        path = choice(PATHS)
        method = choice(METHODS) if chance() < 0.8 else "POST"
        names = self._random.sample(sorted(HEADERS), self._random.randrange(5))
        headers = [("Host", choice(HOSTS)), *((name, choice(HEADERS[name])) for name in names)]
        if chance() < 0.9 and "Content-Type" not in names:
            headers.append(("Content-Type", "application/json"))
        if self._keys and chance() < 0.8:
            headers.append(("Authorization", f"Bearer {choice(self._keys)}"))
        body = self._body(path) if method not in {"GET", "HEAD"} or chance() < 0.05 else b""
        declared: str | None = str(len(body))
        if chance() < 0.03:
            declared = choice(
                [None, "0", "-1", "x", "9" * 30, "", "+1", str(max(0, len(body) - 1))]
            )
        return OddRequest(method, path, choice(QUERIES), tuple(headers), body, declared)

    def _body(self, path: str) -> bytes:
        fields = self._fields(path)
        for _ in range(self._random.choice((0, 1, 1, 2, 4))):
            name = self._random.choice((*fields, *FIELDS) if fields else FIELDS)
            if self._random.random() < 0.2:
                fields.pop(name, None)
            else:
                fields[name] = self._value(0)
        text = json.dumps(fields, ensure_ascii=self._random.random() < 0.8)
        raw = text.encode("utf-8", "surrogatepass")
        return self._spoilt(raw) if self._random.random() < 0.15 else raw

    def _fields(self, path: str) -> dict[str, Any]:
        model, text = self._random.choice(MODELS), self._random.choice(TEXTS)
        stream = {"stream": True} if self._random.random() < 0.3 else {}
        if path == "/chat":
            said = [{"role": "user", "content": text}, self._value(2)]
            form = self._random.choice(
                ({"message": text}, {"messages": said[: 1 + (len(text) % 2)]})
            )
            return {"model": model, **form, **stream}
        if path.startswith("/v1/responses") or path == "/v1/embeddings":
            items = [self._value(1), {"role": "user", "content": text}]
            return {"model": model, "input": self._random.choice((text, items)), **stream}
        content: Any = text
        if self._random.random() < 0.3:
            content = [{"type": "text", "text": text}, self._value(2)]
        said = [{"role": "user", "content": content}]
        return {"model": model, "messages": said, "max_tokens": 20, **stream}

    def _value(self, depth: int) -> Any:
        makers: list[Callable[[], Any]] = [
            lambda: None,
            lambda: self._random.random() < 0.5,
            lambda: self._random.choice(NUMBERS),
            lambda: self._random.choice(TEXTS),
            lambda: self._random.choice(MODELS),
        ]
        if depth < 4:
            makers += [
                lambda: [self._value(depth + 1) for _ in range(self._random.randrange(4))],
                lambda: {
                    self._random.choice((*FIELDS, "type", "role", "content", "text")): self._value(
                        depth + 1
                    )
                    for _ in range(self._random.randrange(4))
                },
            ]
        return self._random.choice(makers)()

    def _spoilt(self, raw: bytes) -> bytes:
        at = self._random.randrange(len(raw) + 1)
        number = self._random.choice(RAW_NUMBERS).encode()
        deep = self._random.choice((10, 500, 100_000))
        return self._random.choice(
            (
                raw[:at],
                raw[:at] + bytes([self._random.randrange(256)]) + raw[at:],
                raw + raw,
                b"\xef\xbb\xbf" + raw,
                raw.decode("utf-8", "replace").encode("utf-16"),
                b"",
                b"[]",
                b"null",
                b'"text"',
                number,
                b'{"max_tokens": ' + number + b", " + raw[1:],
                b'{"model": "offline", ' + raw[1:],
                b"[" * deep + b"]" * deep,
                b'{"messages": ' * deep + b"1" + b"}" * deep,
                raw[:-1] + b', "x": ' + b"[" * deep + b"]" * deep + b"}",
                b" " * 200_000 + raw,
                b"\x1f\x8b\x08" + raw,
            )
        )
