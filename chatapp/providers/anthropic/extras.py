"""What of a message's request changes its price beside tokens.

The fields and tools are those of anthropic 2.13's beta `MessageCreateParams`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from chatapp.providers import Extras
from chatapp.providers.anthropic.answer import STANDARD

#: Tools that callers run themselves, and those of the provider's that cost their tokens alone, by
#: the beginning of their type.
FREE_TOOLS: Final = (
    *("custom", "bash_", "text_editor_", "computer_", "browser_", "memory_"),
    *("web_fetch_", "tool_search_tool_", "tool_reference", "mcp_toolset"),
)
WEB_SEARCH: Final = "web_search_"
#: What is billed at another model's price, or belongs to whoever made it under the shared key.
REFUSED: Final = {
    "fallbacks": "has no price here: another model may answer",
    "container": "is not supported: a container belongs to all who share this server's key",
    "thread": "is not supported: a thread belongs to all who share this server's key",
}
#: A part of a message that adds a tool.
TOOL_ADDITION: Final = "tool_addition"


def extras_of(fields: Mapping[str, object]) -> Extras:
    """See Forwarder."""
    refused = {name: why for name, why in REFUSED.items() if fields.get(name)}
    billing = fields.get("billing_policy")
    if isinstance(billing, dict) and billing.get("bill_to", "self") != "self":
        refused["billing_policy"] = "is not supported: this server is billed"
    tiers = {}
    for name in ("speed", "inference_geo"):
        value = fields.get(name)
        if isinstance(value, str) and value.lower() not in STANDARD:
            tiers[name] = value.lower()
        elif not isinstance(value, str | None):
            refused[name] = "is not a string"
    tools = []
    for name, tool in (*_listed(fields, "tools"), *_added(fields)):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if isinstance(kind, str) and kind.startswith(WEB_SEARCH):
            tools.append("web_search")
        elif isinstance(kind, str) and not kind.startswith(FREE_TOOLS):
            refused[name] = f"may not have a tool {kind[:50]!r}, which has no price here"
    return Extras(tiers=tiers, tools=tuple(tools), refused=refused, thinks=_thinks(fields))


def _listed(fields: Mapping[str, object], name: str) -> Iterator[tuple[str, object]]:
    listed = fields.get(name)
    for each in listed if isinstance(listed, list) else ():
        yield name, each


def _added(fields: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """The tools that messages add on the way."""
    for _, message in _listed(fields, "messages"):
        for _, part in _listed(message, "content") if isinstance(message, dict) else ():
            if isinstance(part, dict) and part.get("type") == TOOL_ADDITION:
                tool = part.get("tool")
                yield "messages", tool.get("definition", tool) if isinstance(tool, dict) else tool


def _thinks(fields: Mapping[str, object]) -> bool | None:
    thinking = fields.get("thinking")
    kind = thinking.get("type") if isinstance(thinking, dict) else None
    return None if kind is None else kind != "disabled"
