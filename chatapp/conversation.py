"""One turn of a conversation: which model is asked, what it is asked, what came of it. No Flask."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from chatapp.catalogue import Catalogue, Model
from chatapp.providers import (
    AnswerStream,
    Extras,
    Forwarder,
    Message,
    Prompt,
    Provider,
    ProviderError,
    Quota,
    RawAnswer,
    RawRequest,
    TokenCounter,
    Usage,
)

log = logging.getLogger(__name__)

NO_SUCH_ADDRESS: Final = frozenset({404, 405})


class UnknownModelError(ValueError):
    """No provider answers for this name; the message says which names are answered."""


class ModelUnavailableError(ValueError):
    """The model's provider cannot be asked. The message is for who asks for it; ``missing`` is what
    the operator would have to set, which is none of the other's business."""

    def __init__(self, sentence: str, *, missing: str) -> None:
        super().__init__(sentence)
        self.missing = missing


@dataclass(frozen=True, slots=True)
class Turn:
    """What somebody says, and the model it is said to."""

    message: str
    model: Model


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a turn; ``model`` is the one that gave it, as its provider calls it, ``usage``
    what it reported, if that can be read, and ``quotas`` are the provider's that came with it."""

    text: str
    model: str
    usage: Usage | None
    quotas: tuple[Quota, ...] = ()


class Conversation:
    """Finds models and asks their providers.

    ``providers`` are in order of preference: where a request names no model, and no default is
    set, the first that can be asked is asked for its own default. ``max_tokens`` bounds the answer
    to a turn. ``fallbacks`` are the models, by name, to ask in another's place.
    """

    def __init__(
        self,
        providers: Sequence[Provider],
        catalogue: Catalogue,
        *,
        default_model: str | None,
        max_tokens: int,
        fallbacks: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._providers = {provider.name: provider for provider in providers}
        self._catalogue = catalogue
        self.max_tokens = max_tokens
        self._missed: set[str] = set()
        self.default_model = self._found(default_model or self._cheapest_at_hand())
        self._fallbacks = {
            self._found(name).family: self._other(name, other) for name, other in fallbacks.items()
        }

    def model(self, name: str | None) -> Model:
        """The model of that name, the default where there is none.

        Raises UnknownModelError or ModelUnavailableError, before anything is charged or asked.
        """
        if name is None:
            return self.default_model
        try:
            return self._found(name)
        except ModelUnavailableError as error:
            if error.missing not in self._missed:
                self._missed.add(error.missing)
                log.warning("Somebody asked for %r, and %s is not set", name, error.missing)
            raise
        except UnknownModelError as error:
            raise UnknownModelError(
                f'{error}, or leave "model" out for {self.default_model.name}.'
            ) from error

    def _found(self, name: str) -> Model:
        for provider in self._providers.values():
            if not provider.serves(name):
                continue
            if provider.missing is not None:
                raise ModelUnavailableError(
                    f'The model "{name}" belongs to {provider.name}, of which this server offers '
                    f"nothing; ask for one of: {self._at_hand()}.",
                    missing=provider.missing,
                )
            return self._catalogue.model(name, provider.name)
        raise UnknownModelError(
            f'The model "{name[:100]}" is unknown; allowed are {self._at_hand()}: name one of them'
        )

    def fallback(self, model: Model) -> Model | None:
        """The model to ask where that one has no room; None where nobody named one."""
        return self._fallbacks.get(model.family)

    @property
    def models_at_hand(self) -> tuple[str, ...]:
        """The slugs of all listed models that can be asked now, in the catalogue's order."""
        return tuple(
            slug
            for slug, provider in self._catalogue.providers.items()
            if provider in self._providers and self._providers[provider].missing is None
        )

    def models_of(self, *providers: str) -> dict[str, str]:
        """Of the models at hand those of these providers, each with its provider."""
        return {
            slug: self._catalogue.providers[slug]
            for slug in self.models_at_hand
            if self._catalogue.providers[slug] in providers
        }

    @property
    def catalogue(self) -> Catalogue:
        """What is known of the models."""
        return self._catalogue

    def price(self, slug: str, usage: Usage) -> int:
        """What tokens of that model cost, in micro-dollars."""
        return self._catalogue.price(slug, usage)

    def answer(self, turn: Turn, most_output_tokens: int | None = None) -> Reply:
        """Ask, and wait for the answer; ProviderError where there is none. ``most_output_tokens``
        bounds this answer further, here and below."""
        with failures_logged(turn.model):
            prompt = self._prompt(turn, most_output_tokens)
            completion = self._providers[turn.model.provider].complete(prompt)
        return Reply(
            text=completion.text,
            model=completion.model,
            usage=completion.usage,
            quotas=completion.quotas,
        )

    def stream(self, turn: Turn, most_output_tokens: int | None = None) -> AnswerStream:
        """Ask for an answer piece by piece; ProviderError where none begins."""
        with failures_logged(turn.model):
            prompt = self._prompt(turn, most_output_tokens)
            return self._providers[turn.model.provider].stream(prompt)

    def forward(
        self, model: Model, passage: RawRequest, most_output_tokens: int | None = None
    ) -> RawAnswer:
        """Hand a request in the provider's own protocol on; ProviderError where it gives none."""
        with failures_logged(model):
            provider = self._forwarder(model)
            return provider.forward(_adapted(passage, model, provider, most_output_tokens))

    def forward_stream(
        self, model: Model, passage: RawRequest, most_output_tokens: int | None = None
    ) -> AnswerStream:
        """The same, piece by piece."""
        with failures_logged(model):
            provider = self._forwarder(model)
            return provider.forward_stream(_adapted(passage, model, provider, most_output_tokens))

    def extras(self, model: Model, fields: Mapping[str, object]) -> Extras:
        """What of a request in its provider's own protocol changes its price."""
        provider = self._providers[model.provider]
        return provider.extras(fields) if isinstance(provider, Forwarder) else Extras()

    def count(self, model: Model, passage: RawRequest) -> RawAnswer | None:
        """The provider's count of the input of a request in its own protocol; None where the
        provider counts none, or has no address for it."""
        counter = self._providers[model.provider]
        if not isinstance(counter, TokenCounter):
            return None
        with failures_logged(model):
            try:
                return counter.count(_adapted(passage, model))
            except ProviderError as error:
                if error.status not in NO_SUCH_ADDRESS and error.kind != "timeout":
                    raise
        return None

    def _forwarder(self, model: Model) -> Forwarder:
        provider = self._providers[model.provider]
        assert isinstance(provider, Forwarder), f"{provider.name} has no protocol of its own"
        return provider

    def _prompt(self, turn: Turn, most_output_tokens: int | None) -> Prompt:
        return Prompt(
            model=turn.model.name,
            messages=(Message(role="user", text=turn.message),),
            max_tokens=min(self.max_tokens, most_output_tokens or self.max_tokens),
        )

    def _other(self, name: str, other: str) -> Model:
        """The model that is asked in the place of one of that name."""
        chosen = self._found(other)
        if chosen.family == self._found(name).family:
            raise UnknownModelError(
                f'"{other}" cannot answer in the place of "{name}", for it is the same model; '
                "name another one, or leave it out."
            )
        return chosen

    def _cheapest_at_hand(self) -> str:
        ready = next(p for p in self._providers.values() if p.missing is None)
        return self._catalogue.defaults[ready.name]

    def _at_hand(self) -> str:
        ready = (p for p in self._providers.values() if p.missing is None)
        return ", ".join(pattern for provider in ready for pattern in provider.patterns)


def _adapted(
    passage: RawRequest,
    model: Model,
    provider: Forwarder | None = None,
    most_output_tokens: int | None = None,
) -> RawRequest:
    """The request to that model, with that bound; as it came if neither changes it."""
    try:
        adapted = passage.with_fields(model=model.name)
        if provider is None or most_output_tokens is None:
            return adapted
        return provider.bounded(adapted, most_output_tokens)
    except ValueError as error:  # 1e999 is JSON, and no number here
        raise ProviderError(model.provider, "bad_request", message=str(error)) from error


@contextmanager
def failures_logged(model: Model, *, unless: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Tell the operator why a provider gave no answer, and raise on; not where we hung up."""
    try:
        yield
    except ProviderError as error:
        if unless():
            raise
        log.warning(
            "%s gave no answer for %s: %s, status %s, retry after %s s, request %s",
            *(error.provider, model.slug, error.kind, error.status),
            *(error.retry_after_s, error.request_id),
        )
        # A provider's text may quote the prompt, or a key: only for who debugs, and never a key.
        if error.kind not in {"auth", "quota"}:
            log.debug("%s said %r", error.provider, error.message[:500])
        raise
