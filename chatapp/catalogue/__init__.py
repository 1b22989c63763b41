"""The models, their names and prices, from models.toml and providers.toml."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, time
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from chatapp import validation
from chatapp.catalogue import models_file
from chatapp.catalogue.models_file import CatalogueError, ModelEntry, ModelsFile, ModelTable
from chatapp.catalogue.price import Tariff
from chatapp.catalogue.providers_file import ProvidersFile
from chatapp.catalogue.usage import Usage

log = logging.getLogger(__name__)

MODELS_FILE: Final = Path(__file__).parent.with_name("models.toml")
#: For a model without `max_output`: what every current model can generate, and what none can.
UNKNOWN_MAX_OUTPUT: Final = 32_768
ABOVE_ANY_OUTPUT: Final = 200_000
#: The most that a file search of OpenAI's adds to the input, 20 pieces of 800 tokens; it stands for
#: every result of a provider's tool.
RESULT_TOKENS: Final = 16_000
#: A page that a provider fetches may have so many tokens.
MOST_RESULT_TOKENS: Final = 128_000
LEAST_RESULT_TOKENS: Final = 1_000
MOST_TOOL_USES: Final = 100
#: The end of the slug of all unlisted models of an upstream.
OTHER: Final = "-other"
#: What is known of an unlisted model.
UNLISTED: Final = ModelTable()
# What providers append to a name for a version of the same model: a date in their three forms,
# a moving pointer, or both (gpt-4-1106-preview).
VARIANT: Final = re.compile(r"(-(latest|preview|\d{4}|\d{8}|\d{4}-\d{2}-\d{2}))+")


__all__ = ["Catalogue", "CatalogueError", "Model", "load"]


@dataclass(frozen=True, slots=True)
class Model:
    """A model: ``name`` is sent to ``upstream``, the requested one unless the upstream has another;
    limits count by ``slug``. ``protocol`` is the upstream's; by default it has the upstream's name.
    ``key`` is the name of the key to use, if the upstream has several."""

    name: str
    slug: str
    upstream: str
    protocol: str = ""
    key: str = ""
    #: What its upstream's quotas count by: the slug; the name, if the model is unlisted.
    family: str = field(init=False, repr=False, compare=False)
    #: The identity of cool-downs and quotas for standard calls; each key has its own.
    quota_identity: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        derive = object.__setattr__
        derive(self, "protocol", self.protocol or self.upstream)
        family = self.name if self.slug == f"{self.upstream}{OTHER}" else self.slug
        derive(self, "family", family)
        named = f"{self.upstream}/{family}"
        derive(self, "quota_identity", f"{named}/{self.key}" if self.key else named)


class Catalogue:
    """Slugs by name, and the default model of each upstream.

    By slug: ``entries`` are the models' tables in the files, ``sent_names`` what its upstream calls
    a model if that is not the requested name, ``tariffs`` what it costs, as it was on ``as_of``;
    ``embedding`` are the models that make embeddings only. By upstream: ``protocols`` are their
    protocols, ``others`` the tariffs of which the dearest applies to models without one, ``tiers``
    are those priced for every model, and ``tools`` its own tools that have a price; those in
    ``strict`` serve listed models only. ``classes`` are the classes of traffic in its table.
    """

    def __init__(
        self, file: ModelsFile, slugs: Mapping[str, str], upstreams: ProvidersFile | None
    ) -> None:
        tables = upstreams.upstreams if upstreams else {}
        self.slugs = slugs
        self.entries = file.models
        self.upstreams = {slug: entry.provider for slug, entry in file.models.items()}
        self.protocols = {name: name for name in self.upstreams.values()}
        self.protocols |= {name: table.protocol for name, table in tables.items()}
        self.defaults = file.defaults
        self.sent_names = upstreams.sent_names if upstreams else {}
        self.tariffs = file.tariffs()
        self.embedding = frozenset(slug for slug, entry in file.models.items() if entry.embeds)
        self.others = {
            upstream: [t for slug, t in self.tariffs.items() if self.upstreams[slug] == upstream]
            for upstream in set(self.upstreams.values())
        }
        self.others |= {
            n: [file.tariff(n, table.price)] for n, table in tables.items() if table.price
        }
        self.tiers = file.tiers
        self.tools = file.tools
        self.as_of = file.as_of
        self.classes = {n: [*t.classes.values] for n, t in tables.items() if t.classes}
        self.strict = frozenset(n for n, table in tables.items() if table.unlisted == "refused")
        self._unpriced: set[str] = set()

    def model(self, name: str, upstream: str) -> Model:
        """Return the model of that name at that upstream; unlisted names share one slug."""
        slug = self.slug_of(f"{upstream}/{name}") or self.slug_of(name)
        if slug is None or self.upstreams[slug] != upstream:
            slug = f"{upstream}{OTHER}"
        name = self.sent_names.get(slug, name)
        return Model(name, slug, upstream, self.protocols.get(upstream, upstream))

    def price(self, slug: str, usage: Usage) -> int:
        """Return what that usage costs, in micro-dollars, rounded up. A slug without a price costs
        as much as its upstream's dearest model, so that it cannot escape a budget; logged once."""
        own = self.tariffs.get(slug)
        return own.of(usage) if own else max([tariff.of(usage) for tariff in self._dearest(slug)])

    def output_tokens_for(self, micro_usd: int, slug: str, prompt: Usage) -> int:
        """Return how many output tokens so many micro-dollars pay in addition to the prompt."""
        own = self.tariffs.get(slug)
        tariffs = (own,) if own else self._dearest(slug)
        return min([tariff.output_tokens_for(micro_usd, prompt) for tariff in tariffs])

    def tools_for(
        self, micro_usd: int, slug: str, prompt: Usage, tools: Collection[str]
    ) -> tuple[int, int]:
        """Return how many uses of a provider's tools an amount pays besides the prompt, read again
        after each, with all results; and how many tokens a result may have. At least one use."""
        left, one_use = micro_usd - self.price(slug, prompt), dict.fromkeys(tools, 1)

        def reading(added: int) -> int:
            read = Usage(prompt.input_tokens + added, 0, tool_calls=one_use, tiers=prompt.tiers)
            return self.price(slug, read)

        uses, spent, size = 0, 0, MOST_RESULT_TOKENS
        while uses < MOST_TOOL_USES and spent <= left:
            uses += 1
            spent += reading(uses * RESULT_TOKENS)
        uses = max(1, uses - (spent > left))
        while size > LEAST_RESULT_TOKENS:
            if sum(reading(n * size) for n in range(1, uses + 1)) <= left:
                break
            size = max(LEAST_RESULT_TOKENS, size // 2)
        return uses, size

    def longest_answer(self, model: Model, asked: int | None = None) -> int:
        """Return the longest answer of the model in tokens, with the request's bound ``asked``."""
        most = self.entry(model.slug).max_output
        if asked is None:
            return UNKNOWN_MAX_OUTPUT if most is None else most
        return asked if most is None else min(asked, most)

    def bound(self, model: Model, asked: int | None, paid: int) -> int | None:
        """Return the bound to send upstream for an answer of which ``paid`` tokens are paid; None
        if the answer cannot be longer. A bound above what a model generates would be refused."""
        if asked is None and self.entry(model.slug).max_output is None:
            return min(paid, UNKNOWN_MAX_OUTPUT) if paid < ABOVE_ANY_OUTPUT else None
        return max(1, paid) if paid < self.longest_answer(model, asked) else None

    def prices_tier(self, model: Model, tier: str) -> bool:
        """Return whether a call of the model in that tier has a price."""
        tariff = self.tariffs.get(model.slug)
        return tier in (tariff.tiers if tariff else self.tiers.get(model.upstream, ()))

    def may_hide_output(self, model: Model, *, thinks: bool | None) -> bool:
        """Return whether a call may generate output that is billed but not sent. ``thinks``:
        whether the request turns thinking on or off; None if it does neither."""
        if (reasoning := self.entry(model.slug).reasoning) == "on request":
            return thinks is True
        return reasoning != "never" and thinks is not False

    def entry(self, slug: str) -> ModelTable:
        return self.entries.get(slug, UNLISTED)

    def is_long(self, model: Model, input_tokens: int) -> bool:
        """Return whether that input makes a call long, with another price and other limits."""
        tariff = self.tariffs.get(model.slug)
        return tariff is not None and tariff.is_long(input_tokens)

    def _dearest(self, slug: str) -> Collection[Tariff]:
        """Return the tariffs of which the dearest applies: those of the upstream, or else all."""
        if slug not in self._unpriced:
            self._unpriced.add(slug)
            log.warning(
                "%s has no price and costs as much as its upstream's most expensive model. Add "
                "its price to the providers file: `chat prices check` prints what to write.",
                slug,
            )
        upstream = self.upstreams.get(slug) or slug.removesuffix(OTHER)
        return self.others.get(upstream) or self.tariffs.values()

    def slug_of(self, name: str) -> str | None:
        """Return the slug of a name; None for an unlisted name."""
        if name in self.slugs:
            return self.slugs[name]
        # The longest name that this one is a variant of: gpt-4-0125-preview is gpt-4-0125.
        end = len(name)
        while (end := name.rfind("-", 1, end)) > 0:
            if name[:end] in self.slugs and VARIANT.fullmatch(name[end:]):
                return self.slugs[name[:end]]
        return None

    def names_of(self, upstream: str) -> list[str]:
        return [name for name, slug in self.slugs.items() if self.upstreams[slug] == upstream]

    @property
    def priced_since(self) -> datetime:
        """Return since when all prices have been what they are."""
        began = [tariff.changed_s for tariff in self.tariffs.values()]
        as_of = datetime.combine(self.as_of, time(), UTC)
        return max(as_of, datetime.fromtimestamp(max(began), UTC))

    @property
    def unlisted_slugs(self) -> tuple[str, ...]:
        return tuple([f"{upstream}{OTHER}" for upstream in self.protocols])


def load(path: Path = MODELS_FILE, *, upstreams: ProvidersFile | None = None) -> Catalogue:
    """Return the catalogue in that file and of these upstreams; CatalogueError if it is invalid."""
    try:
        file = models_file.read(path)
    except ValidationError as error:
        mistakes = (
            f"{path}: {validation.location(mistake)} {validation.problem(mistake, verb='write')}"
            for mistake in error.errors(include_url=False)
        )
        raise CatalogueError("\n".join(mistakes)) from error
    except ValueError as error:
        raise CatalogueError(f"{path}: {error}") from error
    if upstreams is not None:
        file, path = upstreams.merged(file), upstreams.path
    slugs = _slugs(file.models, path)
    for upstream, default in file.defaults.items():
        if default not in file.models or file.models[default].provider != upstream:
            wrong = f"{path}: defaults.{upstream}: {default!r} is not a model of {upstream}"
            raise CatalogueError(f"{wrong}; write one of its slugs under [models]")
    loaded = Catalogue(file, slugs, upstreams)
    if not loaded.tariffs:
        raise CatalogueError(f"{path}: no model has a price; unlisted models need one, too")
    return loaded


def _slugs(models: Mapping[str, ModelEntry], path: Path) -> dict[str, str]:
    slugs: dict[str, str] = {}
    for slug, entry in models.items():
        for name in (slug, *entry.aliases):
            if name in slugs:
                twice = f"the name {name!r} already belongs to {slugs[name]!r}"
                raise CatalogueError(f"{path}: models.{slug}: {twice}; remove it from one of them")
            slugs[name] = slug
    return slugs
