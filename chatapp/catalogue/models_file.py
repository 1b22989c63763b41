"""The schema of models.toml."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from chatapp.catalogue.price import ONE, Price, Tariff

Reasoning = Literal["default", "on request", "never"]


def _micro_dollars(dollars: Decimal) -> int:
    micro = dollars * 1_000_000
    if micro < 0 or micro != int(micro):
        raise ValueError(f"is {dollars}; write an amount of whole micro-dollars")
    return int(micro)


def _thousandths(multiple: Decimal) -> int:
    if not 0 < multiple <= 100:
        raise ValueError(f"is {multiple}; write a multiple of a price above 0 and at most 100")
    return int(-(-multiple * ONE // 1))


Dollars = Annotated[Decimal, AfterValidator(_micro_dollars)]
Multiple = Annotated[Decimal, AfterValidator(_thousandths)]


class _Price(BaseModel):
    # Not strict: 5 and 5.00 are both exact, as an integer and a decimal.
    model_config = ConfigDict(extra="forbid")
    input: Dollars
    cached_input: Dollars
    cache_write: Dollars
    cache_write_1h: Dollars | None = None
    output: Dollars

    def price(self) -> Price:
        # Typed as Decimal, but the validator returns integers.
        hour = self.cache_write_1h
        return Price(
            input=int(self.input),
            cached_input=int(self.cached_input),
            cache_write=int(self.cache_write),
            cache_write_1h=2 * int(self.input) if hour is None else int(hour),
            output=int(self.output),
        )


class _LongPrice(_Price):
    over: Annotated[int, Field(gt=0)]


class _Tools(BaseModel):
    model_config = ConfigDict(extra="forbid")
    web_search: Dollars | None = None


class Entry(BaseModel):
    """A model; the name of its table is its slug."""

    model_config = ConfigDict(extra="forbid", strict=True)
    provider: str
    aliases: list[str] = []
    context: Annotated[int, Field(gt=0)]
    max_output: Annotated[int, Field(gt=0)] | None = None
    reasoning: Reasoning = "default"
    price: _Price | None = None
    long_context: _LongPrice | None = None
    tiers: Annotated[dict[str, Multiple], Field(strict=False)] = {}


class ModelsFile(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", strict=True)
    version: int
    as_of: date
    sources: list[str]
    tiers: Annotated[dict[str, dict[str, Multiple]], Field(strict=False)] = {}
    tools: dict[str, _Tools] = {}
    defaults: dict[str, str]
    models: dict[str, Entry]

    def tariffs(self) -> Mapping[str, Tariff]:
        """The tariffs of all models with a price, by slug."""
        return {slug: self._tariff(entry) for slug, entry in self.models.items() if entry.price}

    def web_search(self, provider: str) -> int | None:
        """The price of a web search in micro-dollars; None if it has none."""
        tools = self.tools.get(provider, _Tools())
        return None if tools.web_search is None else int(tools.web_search)

    def tiers_of(self, provider: str, entry: Entry | None = None) -> dict[str, int]:
        """The multiples of a provider, and of one of its models, in thousandths."""
        multiples = {**self.tiers.get(provider, {}), **(entry.tiers if entry else {})}
        return {tier: int(multiple) for tier, multiple in multiples.items()}

    def _tariff(self, entry: Entry) -> Tariff:
        assert entry.price is not None
        long = entry.long_context
        every = [*self.tiers.values(), *[entry.tiers for entry in self.models.values()]]
        highest: dict[str, int] = {}
        for name, multiple in (each for tiers in every for each in tiers.items()):
            highest[name] = max(highest.get(name, ONE), int(multiple))
        return Tariff(
            usual=entry.price.price(),
            long=long.price() if long else None,
            long_over_tokens=long.over if long else 0,
            tiers=self.tiers_of(entry.provider, entry),
            other_tiers=highest,
            web_search=self.web_search(entry.provider) or 0,
        )


def read(path: Path) -> ModelsFile:
    """The content of the file. ValueError if it is not TOML or does not match the schema."""
    # Decimals, because 0.1 as a float is not a tenth of a dollar.
    content = tomllib.loads(path.read_text("utf-8"), parse_float=Decimal)
    return ModelsFile.model_validate(content)
