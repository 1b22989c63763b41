"""Prices of a list that others maintain, the package genai-prices, beside those of models.toml."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from importlib import import_module
from typing import Any, Final

from chatapp.catalogue import Catalogue
from chatapp.catalogue.price import LongPrice, Price, Tariff

PACKAGE: Final = "genai-prices"
PROVIDERS: Final = ("openai", "anthropic")
#: The list's names of our prices.
KINDS: Final = {
    "input": "input_mtok",
    "cached_input": "cache_read_mtok",
    "cache_write": "cache_write_mtok",
    "cache_write_1h": "cache_write_1h_mtok",
    "output": "output_mtok",
}
#: Without them a model is not billed by its tokens.
REQUIRED: Final = ("input", "output")


@dataclass(frozen=True, slots=True)
class MaintainedPrice:
    """A model of the list: ``usual`` and ``long`` are dollars per million tokens, by our names, as
    far as the list has them; ``over`` is None if it has no price of long calls. ``is_new``: the
    catalogue lacks the model."""

    name: str
    provider: str
    context: int | None
    is_new: bool
    usual: Mapping[str, Decimal]
    over: int | None
    long: Mapping[str, Decimal]

    def differs(self, tariff: Tariff) -> bool:
        """Return whether the tariff has another price today, where the list has one."""
        usual, long = tariff.prices()
        if _differs(usual, self.usual):
            return True
        if self.over is None:
            return False
        return long is None or long.over != self.over or _differs(long, self.long)

    def table(self) -> str:
        """Return what to write into the providers file."""
        new = [f'provider = "{self.provider}"', f"context = {self.context}"]
        lines = [f'[models."{self.name}"]', *(new if self.is_new else ())]
        lines.append(f"price = {{ {_written(self.usual)} }}")
        if self.over is not None:
            lines.append(f"long_context = {{ over = {self.over}, {_written(self.long)} }}")
        return "\n".join(lines) + "\n"


def maintained_prices(catalogue: Catalogue, now: datetime) -> Iterator[MaintainedPrice]:
    """Yield what the list has of our models with a price, by their slugs, then its other models of
    both providers. ImportError without the package."""
    providers = {p.id: p for p in import_module("genai_prices.data").providers}
    for provider in PROVIDERS:
        ours = [s for s in catalogue.tariffs if catalogue.upstreams[s] == provider]
        found = [(slug, providers[provider].find_model(slug)) for slug in ours]
        known = {model.id for _, model in found if model is not None}
        others = [m for m in providers[provider].models if m.id not in known]
        # Without a context it is too old for a date in the list, or no model for conversations.
        new = [m for m in others if m.context_window and catalogue.slug_of(m.id) is None]
        for name, model in (*found, *((model.id, model) for model in new)):
            prices = model and model.get_prices(now)
            listed = {kind: getattr(prices, theirs, None) for kind, theirs in KINDS.items()}
            if all(listed[kind] is not None for kind in REQUIRED):
                sizes = _tiers({kind: p for kind, p in listed.items() if p is not None})
                context = model.context_window
                yield MaintainedPrice(name, provider, context, model in new, *sizes)


def _tiers(listed: Mapping[str, Any]) -> tuple[dict[str, Decimal], int | None, dict[str, Decimal]]:
    """Return the usual price, from which input on a call is long, and its price."""
    usual = {kind: getattr(price, "base", price) for kind, price in listed.items()}
    tiers = {kind: price.tiers[0] for kind, price in listed.items() if hasattr(price, "tiers")}
    if not tiers:
        return usual, None, {}
    over = max(tier.start for tier in tiers.values())
    return usual, over, usual | {kind: tier.price for kind, tier in tiers.items()}


def _differs(ours: Price | LongPrice, listed: Mapping[str, Decimal]) -> bool:
    return any(getattr(ours, kind) != int(usd * 1_000_000) for kind, usd in listed.items())


def _written(listed: Mapping[str, Decimal]) -> str:
    """Return a table of prices; what the list lacks costs as much as the input."""
    kinds = [kind for kind in KINDS if kind in listed or kind != "cache_write_1h"]
    return ", ".join(f"{kind} = {listed.get(kind, listed['input'])}" for kind in kinds)
