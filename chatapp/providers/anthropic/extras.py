"""What of a message's request changes its price beside tokens.

The fields and tools are those of anthropic 2.13's beta `MessageCreateParams`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from chatapp.providers import Extras
from chatapp.providers.anthropic.answer import STANDARD

#: Tools that callers run themselves, and those of the provider's that cost their tokens alone, by
#: the beginning of their type.
FREE_TOOLS: Final = (
    *("custom", "bash_", "text_editor_", "computer_", "browser_", "memory_"),
    *("web_fetch_", "tool_search_tool_", "mcp_toolset"),
)
WEB_SEARCH: Final = "web_search_"
#: What is billed at another model's price, or belongs to whoever made it under the shared key.
REFUSED: Final = {
    "fallbacks": "has no price here: another model may answer",
    "container": "is not supported: a container belongs to all who share this server's key",
    "thread": "is not supported: a thread belongs to all who share this server's key",
    "billing_policy": "is not supported: this server is billed",
}
MOST_TOOLS: Final = 10_000


def extras_of(fields: Mapping[str, object]) -> Extras:
    """See Forwarder."""
    refused = {name: why for name, why in REFUSED.items() if fields.get(name)}
    tiers = {}
    for name in ("speed", "inference_geo"):
        value = fields.get(name)
        if isinstance(value, str) and value.lower() not in STANDARD:
            tiers[name] = value.lower()
        elif not isinstance(value, str | None):
            refused[name] = "is not a string"
    tools = []
    listed = fields.get("tools")
    for tool in (listed if isinstance(listed, list) else ())[:MOST_TOOLS]:
        kind = tool.get("type") if isinstance(tool, dict) else None
        if isinstance(kind, str) and kind.startswith(WEB_SEARCH):
            tools.append("web_search")
        elif isinstance(kind, str) and not kind.startswith(FREE_TOOLS):
            refused["tools"] = f"may not have the type {kind[:50]!r}, which has no price here"
    return Extras(tiers=tiers, tools=tuple(tools), refused=refused, thinks=_thinks(fields))


def _thinks(fields: Mapping[str, object]) -> bool | None:
    thinking = fields.get("thinking")
    kind = thinking.get("type") if isinstance(thinking, dict) else None
    return None if kind is None else kind != "disabled"
