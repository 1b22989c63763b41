"""Tags: the caller's own words for a call, which go into the ledger and nowhere else.

They come from the header X-Chat-Tags (`project=a, run=7`), from what Claude Code says of an agent
and its session, and from what OpenAI's and Anthropic's bodies say about users and runs. Callers
choose them freely, so no limit may count by them alone. One by session counts the sessions of each
caller apart.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Final

# Headers by their keys in the WSGI environment: werkzeug raises for each one that is not sent.
HEADER: Final = "HTTP_X_CHAT_TAGS"
#: Of Claude Code, Codex, Open WebUI's chats, and others.
SESSION_HEADERS: Final = (
    "HTTP_X_CLAUDE_CODE_SESSION_ID",
    "HTTP_SESSION_ID",
    "HTTP_X_OPENWEBUI_CHAT_ID",
    "HTTP_X_SESSION_ID",
)
#: What Claude Code says of a request, by the tag: a subagent has an id, the person's agent none.
#: Type and class are sent with CLAUDE_CODE_GATEWAY_HINT_HEADERS=1.
AGENT: Final = "agent"
REQUEST_CLASS: Final = "request-class"
AGENT_HEADERS: Final = {
    AGENT: "HTTP_X_CLAUDE_CODE_AGENT_ID",
    "parent-agent": "HTTP_X_CLAUDE_CODE_PARENT_AGENT_ID",
    "agent-type": "HTTP_X_CLAUDE_CODE_AGENT_TYPE",
    REQUEST_CLASS: "HTTP_X_CLAUDE_CODE_REQUEST_CLASS",
}
#: The classes of requests for which no person waits. Compaction is not one of them.
UNATTENDED: Final = frozenset({"subagent", "workflow", "auxiliary"})
#: In Claude Code's `metadata.user_id`: JSON, and the older form.
_SESSION: Final = re.compile(r'(?:"session_id"\s*:\s*"|_session_)([0-9A-Za-z-]+)')
#: Fields of a body that are tags by the same name; `metadata` has any names.
FIELDS: Final = ("user", "safety_identifier", "prompt_cache_key")
TAGS_MOST: Final = 8
NAME_MAX_CHARACTERS: Final = 32
#: Claude Code's `metadata.user_id` has 160.
VALUE_MAX_CHARACTERS: Final = 200
#: As the ledger has it, in JSON, which needs 12 bytes for an emoji.
VALUE_MAX_BYTES: Final = 250
_NOT_IN_A_NAME: Final = re.compile(r"[^A-Za-z0-9_.-]+")


def tags_of(environ: Mapping[str, str], fields: Mapping[str, object]) -> dict[str, str]:
    """Return the tags of a request with this body; the first of a name counts, and the first
    TAGS_MOST of all, those of the header before those of the body.

    >>> tags_of({HEADER: "project=a, run=7"}, {"user": "u1", "metadata": {"run": "8"}})
    {'project': 'a', 'run': '7', 'user': 'u1'}
    """
    tags: dict[str, str] = {}
    for name, value in _pairs(environ, fields):
        cleaned = _NOT_IN_A_NAME.sub("_", name.strip())[:NAME_MAX_CHARACTERS]
        text = _cut("".join(filter(str.isprintable, value)).strip()[:VALUE_MAX_CHARACTERS])
        if cleaned and text:
            tags.setdefault(cleaned, text)
        if len(tags) == TAGS_MOST:
            break
    return tags


def _cut(text: str) -> str:
    """Return as much of the beginning as VALUE_MAX_BYTES have."""
    while (size := len(json.dumps(text)) - 2) > VALUE_MAX_BYTES:
        text = text[: len(text) * VALUE_MAX_BYTES // size]
    return text


def session_of(environ: Mapping[str, str], fields: Mapping[str, object]) -> str | None:
    """Return the id of the agent's session that a request belongs to; None if it names none.

    >>> session_of({}, {"metadata": {"user_id": "user_5f_account__session_4df4"}})
    '4df4'
    """
    sent = next(filter(None, map(environ.get, SESSION_HEADERS)), None)
    if sent is None:
        metadata = fields.get("metadata")
        metadata = metadata if isinstance(metadata, dict) else {}
        sent = metadata.get("session_id")
        if not isinstance(sent, str):
            match = _SESSION.search(str(metadata.get("user_id")))
            sent = match and match[1]
    return "".join(filter(str.isprintable, sent or "")).strip()[:VALUE_MAX_CHARACTERS] or None


def is_unattended(environ: Mapping[str, str]) -> bool:
    """Return whether an agent says that no person waits for this request."""
    said = environ.get(AGENT_HEADERS[REQUEST_CLASS])
    return bool(environ.get(AGENT_HEADERS[AGENT])) or said in UNATTENDED


def _pairs(environ: Mapping[str, str], fields: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    if tags := environ.get(HEADER):
        for pair in tags.split(","):
            name, _, value = pair.partition("=")
            yield name, value
    if session := session_of(environ, fields):
        yield "session", session
    for name, key in AGENT_HEADERS.items():
        if said := environ.get(key):
            yield name, said
    for field in FIELDS:
        text = fields.get(field)
        if isinstance(text, str):
            yield field, text
    metadata = fields.get("metadata")
    if isinstance(metadata, dict):
        yield from ((name, text) for name, text in metadata.items() if isinstance(text, str))
