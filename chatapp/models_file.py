"""The form of models.toml: what it may say, and what a mistake in it is."""

from __future__ import annotations

import tomllib
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from chatapp.price import Price, Tariff


def _micro_dollars(dollars: Decimal) -> int:
    micro = dollars * 1_000_000
    if micro < 0 or micro != int(micro):
        raise ValueError(f"{dollars} is no amount of whole micro-dollars")
    return int(micro)


Dollars = Annotated[Decimal, AfterValidator(_micro_dollars)]


class _Price(BaseModel):
    # Not strict: 5 is as good as 5.00. Both arrive as exact decimals or integers.
    model_config = ConfigDict(extra="forbid")
    input: Dollars
    cached_input: Dollars
    cache_write: Dollars
    output: Dollars

    def price(self) -> Price:
        return Price(**{kind: int(getattr(self, kind)) for kind in _Price.model_fields})


class _LongPrice(_Price):
    over: Annotated[int, Field(gt=0)]


class Entry(BaseModel):
    """A model: its slug is its table's name."""

    model_config = ConfigDict(extra="forbid", strict=True)
    provider: str
    aliases: list[str] = []
    context: Annotated[int, Field(gt=0)]
    price: _Price | None = None
    long_context: _LongPrice | None = None

    def tariff(self) -> Tariff | None:
        """What it costs, where the file says so."""
        if self.price is None:
            return None
        if self.long_context is None:
            return Tariff(usual=self.price.price())
        long = self.long_context
        return Tariff(usual=self.price.price(), long=long.price(), long_over_tokens=long.over)


class ModelsFile(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", strict=True)
    version: int
    as_of: date
    sources: list[str]
    defaults: dict[str, str]
    models: dict[str, Entry]


def read(path: Path) -> ModelsFile:
    """The file's content. ValueError where it is no TOML, or says what it may not."""
    # Decimals, because 0.1 as a float is no tenth of a dollar.
    content = tomllib.loads(path.read_text("utf-8"), parse_float=Decimal)
    return ModelsFile.model_validate(content)
