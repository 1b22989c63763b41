"""Which models there are, and which names mean the same one: models.toml, read once."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

MODELS_FILE: Final = Path(__file__).with_name("models.toml")
# What providers append to a name for a version of the same model: a date in their three forms,
# a moving pointer, or both (gpt-4-1106-preview).
VARIANT: Final = re.compile(r"(-(latest|preview|\d{4}|\d{8}|\d{4}-\d{2}-\d{2}))+")


class CatalogueError(ValueError):
    """The file of models cannot be used; the message names file and key, and says why."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model to ask: ``name`` is what was asked for and what the provider is told, ``slug`` what
    limits count it under."""

    name: str
    slug: str
    provider: str


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Slugs by name, and the model of each provider that is asked where none is named."""

    slugs: Mapping[str, str]
    providers: Mapping[str, str]
    defaults: Mapping[str, str]

    def model(self, name: str, provider: str) -> Model:
        """The model of that name at that provider; unlisted names share one slug."""
        slug = self._slug(name)
        if slug is None or self.providers[slug] != provider:
            slug = f"{provider}-other"
        return Model(name=name, slug=slug, provider=provider)

    def _slug(self, name: str) -> str | None:
        if name in self.slugs:
            return self.slugs[name]
        # The longest name that this one is a variant of: gpt-4-0125-preview is gpt-4-0125.
        for end in range(len(name) - 1, 0, -1):
            if name[end] == "-" and name[:end] in self.slugs and VARIANT.fullmatch(name[end:]):
                return self.slugs[name[:end]]
        return None


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    provider: str
    aliases: list[str] = []


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    version: int
    defaults: dict[str, str]
    models: dict[str, _Entry]


def load(path: Path = MODELS_FILE) -> Catalogue:
    """The catalogue in that file; CatalogueError where it is wrong."""
    try:
        file = _File.model_validate(tomllib.loads(path.read_text("utf-8")))
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise CatalogueError(f"{path}: {error}") from error
    slugs: dict[str, str] = {}
    for slug, entry in file.models.items():
        for name in (slug, *entry.aliases):
            if name in slugs:
                raise CatalogueError(
                    f"{path}: models.{slug}: the name {name!r} already belongs to "
                    f"{slugs[name]!r}; a name means one model: remove it from one of them"
                )
            slugs[name] = slug
    for provider, default in file.defaults.items():
        if default not in file.models or file.models[default].provider != provider:
            raise CatalogueError(
                f"{path}: defaults.{provider}: {default!r} is no model of {provider}; "
                "name one of its slugs under [models]"
            )
    return Catalogue(
        slugs=slugs,
        providers={slug: entry.provider for slug, entry in file.models.items()},
        defaults=file.defaults,
    )
