"""What all of OpenAI's APIs share: tiers, priced fields, usages, and errors within a stream."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Final

from pydantic import ConfigDict, Field

from chatapp.catalogue.usage import Usage
from chatapp.upstreams import ErrorKind, Extras, UpstreamError
from chatapp.upstreams.answer import TOKENS_MAX, Fields, Tokens, objects_in

#: Tiers with a price of their own, under one name for each. All others have the standard price.
TIERS: Final = {"priority": "priority", "fast": "priority", "flex": "flex"}
STANDARD_TIERS: Final = frozenset({"", "auto", "default", "standard", "scale"})
#: How long the cache keeps a prompt at the price of a cache write.
CACHE_TTLS: Final = (None, "30m")
#: By an error's code, or else its type; compatible servers send the status as code.
STREAM_KINDS: Final[dict[str, ErrorKind]] = {
    "rate_limit_exceeded": "rate_limited",
    "slow_down": "rate_limited",
    "rate_limit_error": "rate_limited",
    "requests": "rate_limited",
    "tokens": "rate_limited",
    "429": "rate_limited",
    "server_is_overloaded": "overloaded",
    "service_unavailable_error": "overloaded",
    "503": "overloaded",
}
#: Types and codes of errors that end only when the account is paid or its owner raises a cap.
CAPS: Final = frozenset(
    {
        "insufficient_quota",
        "project_spend_limit_exceeded",
        "organization_spend_limit_exceeded",
        "organization_usage_limit_exceeded",
        "credit_balance_exhausted",
        "billing_hard_limit_reached",
        "billing_not_active",
    }
)


def common_extras(fields: Mapping[str, object]) -> Extras:
    """Return what the fields that all APIs have change in the price."""
    refused, tiers = {}, {}
    tier = fields.get("service_tier")
    if isinstance(tier, str):
        tiers = dict(zip(["service_tier"], tiers_of(tier) or (), strict=False))
    elif tier is not None:
        refused["service_tier"] = "is not a tier"
    cache = fields.get("prompt_cache_options")
    if isinstance(cache, dict) and cache.get("ttl") not in CACHE_TTLS:
        refused["prompt_cache_options"] = "may only have the ttl '30m'; others have no price here"
    return Extras(tiers=tiers, refused=refused)


def refused_parts(fields: Mapping[str, object], name: str) -> dict[str, str]:
    """Why the messages or items in that field are refused; empty if they are not."""
    for part in _parts(objects_in(fields, name)):
        if part.get("type") == "input_audio":
            return {name: "may not contain input_audio, which has no price here"}
        cache = part.get("prompt_cache_breakpoint")
        if isinstance(cache, dict) and cache.get("ttl") not in CACHE_TTLS:
            return {name: "may only be cached with the ttl '30m'; others have no price here"}
    return {}


def _parts(items: Iterable[dict[str, object]]) -> Iterator[dict[str, object]]:
    """Yield all objects in these messages or items: their contents, the outputs of tools."""
    for item in items:
        for value in item.values():
            listed = value if isinstance(value, list) else (value,)
            yield from (part for part in listed if isinstance(part, dict))


def tiers_of(service_tier: str | None) -> tuple[str, ...] | None:
    """Return a tier under the name that prices use; an unknown one by its own name."""
    if service_tier is None:
        return None
    word = service_tier.lower()
    return () if word in STANDARD_TIERS else (TIERS.get(word, word[:32]),)


class Details(Fields):
    """Of a usage: how much of its input was read from the cache, and written to it; or how much of
    its output was not shown."""

    cached_tokens: Tokens | None = None
    cache_write_tokens: Tokens | None = None
    reasoning_tokens: Tokens | None = None

    def within(self, input_tokens: int) -> tuple[int, int]:
        """Both, as parts of that input: more than all of it would be an error of the upstream."""
        cached = min(self.cached_tokens or 0, input_tokens)
        return cached, min(self.cache_write_tokens or 0, input_tokens - cached)


class Bill(Fields):
    """What OpenAI calls usage."""

    input_tokens: Annotated[Tokens, Field(ge=1)]  # compatible servers send 0 for "unknown"
    output_tokens: Tokens
    input_tokens_details: Details | None = None
    output_tokens_details: Details | None = None
    total_tokens: object = None

    def usage(self, tiers: tuple[str, ...] | None) -> Usage:
        cached, written = (self.input_tokens_details or Details()).within(self.input_tokens)
        generated, total = self.output_tokens_details or Details(), self.total_tokens
        # xAI and Gemini leave reasoning out of the output: only their total includes it.
        most = total if isinstance(total, int) and total <= TOKENS_MAX else 0
        return Usage(
            input_tokens=self.input_tokens,
            output_tokens=max(self.output_tokens, most - self.input_tokens),
            cached_input_tokens=cached,
            cache_write_tokens=written,
            reasoning_tokens=generated.reasoning_tokens or 0,
            tiers=tiers,
        )


class ChatBill(Bill):
    """The same in the words of chat completions."""

    model_config = ConfigDict(
        alias_generator=lambda name: name.replace("input", "prompt").replace("output", "completion")
    )


def stream_error(error: object) -> UpstreamError:
    """Return an error that was reported within a stream or an answer, in any form."""
    fields = error if isinstance(error, dict) else {"message": error}
    words = (str(fields.get("code")), str(fields.get("type")))
    kinds = (STREAM_KINDS[word] for word in words if word in STREAM_KINDS)
    kind: ErrorKind = "quota" if CAPS.intersection(words) else next(kinds, "unavailable")
    message = str(fields.get("message") or "")
    return UpstreamError(kind, message=message, status=200)
