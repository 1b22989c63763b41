"""The schema of models.toml."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import replace
from datetime import date
from decimal import Decimal
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from chatapp.catalogue.price import ONE, Dollars, LaterPrice, LongPrice, Multiple, Price, Tariff

Reasoning = Literal["default", "on request", "never"]
Tokens = Annotated[int, Field(gt=0, le=1_000_000_000)]


class CatalogueError(ValueError):
    """models.toml or providers.toml is invalid; the message names file, key and reason."""


class ModelTable(BaseModel):
    """A model, without its provider."""

    model_config = ConfigDict(extra="forbid", strict=True, defer_build=True)
    aliases: list[str] = []
    context: Tokens | None = None
    max_output: Tokens | None = None
    reasoning: Reasoning = "default"
    speed: Tokens | None = None
    embeds: bool = False
    files: list[Literal["image", "pdf"]] = []
    price: Price | None = None
    later: list[LaterPrice] = []
    long_context: LongPrice | None = None
    tiers: dict[str, Multiple] = {}

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.context and self.max_output and self.max_output > self.context:
            raise ValueError("has a max_output above its context; correct one of them")
        return self


class ModelEntry(ModelTable):
    """A model; the name of its table is its slug."""

    provider: str
    context: Tokens


class ModelsFile(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, defer_build=True)
    version: int
    as_of: date
    sources: list[str]
    tiers: dict[str, dict[str, Multiple]] = {}
    tools: dict[str, dict[str, Dollars]] = {}
    defaults: dict[str, str]
    models: dict[str, ModelEntry]

    def tariffs(self) -> Mapping[str, Tariff]:
        return {
            slug: replace(
                self.tariff(entry.provider, entry.price),
                long=entry.long_context,
                later=tuple(sorted(entry.later, key=lambda price: price.since)),
                tiers={**self.tiers.get(entry.provider, {}), **entry.tiers},
            )
            for slug, entry in self.models.items()
            if entry.price
        }

    def tariff(self, provider: str, price: Price) -> Tariff:
        """Return the tariff of a provider's models at that price, with its tiers and tools."""
        return Tariff(
            usual=price,
            tiers=self.tiers.get(provider, {}),
            other_tiers=self._highest_tiers,
            tools=self.tools.get(provider, {}),
        )

    @cached_property
    def _highest_tiers(self) -> Mapping[str, int]:
        highest: dict[str, int] = {}
        for tiers in (*self.tiers.values(), *(entry.tiers for entry in self.models.values())):
            for name, multiple in tiers.items():
                highest[name] = max(highest.get(name, ONE), multiple)
        return highest


def read(path: Path) -> ModelsFile:
    """Return the content of the file. ValueError if it is not TOML or does not match the schema."""
    return _read(path.read_text("utf-8"))


@lru_cache(maxsize=4)
def _read(text: str) -> ModelsFile:
    return ModelsFile.model_validate(tomllib.loads(text, parse_float=Decimal))
