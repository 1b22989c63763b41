"""What of a chat completion's request changes its price beside tokens.

The fields are those of openai 3.57's `CompletionCreateParams`.
"""

from __future__ import annotations

from collections.abc import Mapping

from chatapp.providers import Extras
from chatapp.providers.openai.answer import tiers_of


def extras_of(fields: Mapping[str, object]) -> Extras:
    """See Forwarder."""
    refused, tiers = {}, {}
    tier = fields.get("service_tier")
    if isinstance(tier, str):
        tiers = dict(zip(["service_tier"], tiers_of(tier) or (), strict=False))
    elif tier is not None:
        refused["service_tier"] = "is not a tier"
    if fields.get("web_search_options") is not None:
        refused["web_search_options"] = "has no price here"
    modalities = fields.get("modalities")
    if fields.get("audio") is not None or (isinstance(modalities, list) and "audio" in modalities):
        refused["modalities"] = "may not name audio, which has no price here"
    messages = fields.get("messages")
    if any(_has_audio(message) for message in (messages if isinstance(messages, list) else ())):
        refused["messages"] = "may not contain input_audio, which has no price here"
    return Extras(
        tiers=tiers,
        refused=refused,
        thinks=False if fields.get("reasoning_effort") == "none" else None,
    )


def _has_audio(message: object) -> bool:
    content = message.get("content") if isinstance(message, dict) else None
    parts = content if isinstance(content, list) else ()
    return any(isinstance(part, dict) and part.get("type") == "input_audio" for part in parts)
