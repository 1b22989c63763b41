"""The router: finds a model, and calls its upstream. No Flask."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from types import MappingProxyType
from typing import Final

from chatapp.catalogue import Catalogue, Model
from chatapp.upstreams import (
    AnswerStream,
    Bounds,
    Completion,
    Extras,
    RawAnswer,
    RawRequest,
    Turn,
    Upstream,
    UpstreamError,
)
from chatapp.upstreams.cancellation import ConnectionFailed, was_hung_up
from chatapp.upstreams.keys import RefusedKey
from chatapp.upstreams.sdk import SDKUpstream

log = logging.getLogger(__name__)

UNBOUNDED: Final = Bounds()
NO_SUCH_ADDRESS: Final = frozenset({404, 405})
#: How many requested names are known, with their models.
MOST_NAMES: Final = 1024


class UnknownModelError(ValueError):
    """No upstream serves this name; the message lists the names that are served."""


class ModelUnavailableError(ValueError):
    """The model's upstream is not configured. The message is for the client; ``missing`` is the
    environment variable that the operator has not set, which is not for the client; "" if the
    model has no price."""

    def __init__(self, sentence: str, *, missing: str) -> None:
        super().__init__(sentence)
        self.missing = missing


class Router:
    """Finds models and calls their upstreams.

    ``upstreams`` are in order of preference: without ``default_model``, the default is that of the
    first upstream that is configured. ``max_tokens`` bounds the answer to a turn. ``fallbacks`` are
    model names, by the name of the model that they replace. ``on_refused_key`` learns that an
    upstream refuses a key for its cost, once a day, or for its quota.
    """

    def __init__(
        self,
        upstreams: Sequence[Upstream],
        catalogue: Catalogue,
        *,
        default_model: str | None,
        max_tokens: int,
        fallbacks: Mapping[str, str] = MappingProxyType({}),
        on_refused_key: Callable[[RefusedKey], None] = lambda _: None,
    ) -> None:
        self._upstreams = {upstream.name: upstream for upstream in upstreams}
        self._forwarders = {u.name: u for u in upstreams if isinstance(u, SDKUpstream)}
        self._keys = {name: u.keys for name, u in self._forwarders.items()}
        self._several_keys = {n: keys for n, keys in self._keys.items() if len(keys.names) > 1}
        self.catalogue = catalogue
        # A decorator would keep routers that are gone.
        self._serving = lru_cache(maxsize=MOST_NAMES)(self._found)
        self.max_tokens = max_tokens
        #: Whether an upstream gets the class of a call.
        self.sends_classes: Final = any(u.sends_classes for u in self._forwarders.values())
        self._on_refused_key = on_refused_key
        self._missed: set[str] = set()
        self.default_model = self._available(default_model or self._first_default())
        self._fallbacks = {
            self._available(name).quota_identity: self._other(name, other)
            for name, other in fallbacks.items()
        }

    def model(self, name: str | None) -> Model:
        """Return the model of that name, with the key to use; the default model without a name.

        Raises UnknownModelError or ModelUnavailableError.
        """
        if name is None:
            return self._with_key(self.default_model)
        try:
            return self._with_key(self._available(name))
        except ModelUnavailableError as error:
            if error.missing and error.missing not in self._missed:
                self._missed.add(error.missing)
                log.warning("Model %r was requested but %s is not set", name, error.missing)
            raise
        except UnknownModelError as error:
            raise UnknownModelError(
                f'{error}. Leave "model" out for {self.default_model.name}.'
            ) from error

    def _available(self, name: str) -> Model:
        missing = None
        for upstream, model in self._serving(name):
            if upstream.missing is None:
                has_price = model.slug in self.catalogue.entries
                if has_price or upstream.name not in self.catalogue.strict:
                    return model
                raise ModelUnavailableError(
                    f'The model "{name[:100]}" has no price on this server. Ask the operator to '
                    "add it: `chat prices check` prints what to write.",
                    missing="",
                )
            missing = missing or upstream.missing
        if missing is not None:
            raise ModelUnavailableError(
                f'The model "{name}" is not available on this server; available models: '
                f"{self._patterns()}.",
                missing=missing,
            )
        raise UnknownModelError(
            f'The model "{name[:100]}" is unknown; available models: {self._patterns()}'
        )

    def upstream_of(self, model: Model) -> Upstream:
        return self._upstreams[model.upstream]

    def _found(self, name: str) -> list[tuple[Upstream, Model]]:
        """Return the upstreams that serve this name, in order, each with its own model: only one if
        the name begins with an upstream's."""
        first, _, rest = name.partition("/")
        if rest and first in self._upstreams and self._upstreams[first].serves(rest):
            return [(self._upstreams[first], self.catalogue.model(rest, first))]
        serving = [each for each in self._upstreams.values() if each.serves(name)]
        return [(each, self.catalogue.model(name, each.name)) for each in serving]

    def fallback(self, model: Model) -> Model | None:
        """Return the configured fallback of that model, if any, with the key to use."""
        fallback = self._fallbacks.get(replace(model, key="").quota_identity)
        return None if fallback is None else self._with_key(fallback)

    # -- keys ----------------------------------------------------------------------------------

    def _with_key(self, model: Model) -> Model:
        """Return the model with the key that is next, if its upstream has several."""
        keys = self._several_keys.get(model.upstream)
        return model if keys is None else replace(model, key=keys.next(model.family))

    def with_other_key(self, model: Model, tried: Collection[str]) -> Model | None:
        """Return the model with another key than these, if one can be used now."""
        if not model.key:
            return None
        other = self._keys[model.upstream].other(model.family, tried)
        return None if other is None else replace(model, key=other)

    def pause_key(self, model: Model, for_s: float) -> None:
        """Leave the model's key out for that time, if there are others."""
        if model.key:
            self._keys[model.upstream].pause(model.key, model.family, for_s)

    def quota_identities(self, model: Model) -> tuple[str, ...]:
        """Return the identities of the model's cool-downs and quotas: one for each key."""
        keys = self._several_keys.get(model.upstream)
        names = ("",) if keys is None else keys.names
        return tuple(replace(model, key=name).quota_identity for name in names)

    @contextmanager
    def call(self, model: Model, *, unless: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """A call of the model, or the rest of one: a failure is logged, and its key may be
        paused; ``unless`` this server hung up."""
        try:
            yield
        except UpstreamError as error:
            if not (unless() or was_hung_up()):
                _log_failure(model, error)
                keys = self._keys.get(model.upstream)
                if keys and (refused := keys.note(model.key, model.family, error)):
                    self._on_refused_key(refused)
            raise

    # -- models --------------------------------------------------------------------------------

    @property
    def available_models(self) -> dict[str, str]:
        """The upstreams of all available listed models, by slug, in the catalogue's order."""
        return {
            slug: name
            for slug, name in self.catalogue.upstreams.items()
            if name in self._upstreams and self._upstreams[name].missing is None
        }

    def models_of(self, *protocols: str) -> dict[str, str]:
        """Return the available models in these protocols, each with its upstream."""
        by_name = self.catalogue.protocols
        return {s: name for s, name in self.available_models.items() if by_name[name] in protocols}

    def answer(self, turn: Turn, bounds: Bounds = UNBOUNDED) -> Completion:
        """Call the upstream, and wait for the answer; UpstreamError if it fails. ``bounds`` are
        further ones of this call, here and below."""
        with self.call(turn.model):
            return self.upstream_of(turn.model).complete(turn, self._max_tokens(bounds))

    def stream(self, turn: Turn, bounds: Bounds = UNBOUNDED) -> AnswerStream:
        """Call the upstream for a stream; UpstreamError if none begins."""
        with self.call(turn.model):
            return self.upstream_of(turn.model).stream(turn, self._max_tokens(bounds))

    def forward(
        self, model: Model, raw_request: RawRequest, bounds: Bounds = UNBOUNDED
    ) -> RawAnswer:
        """Forward a request in the upstream's own protocol; UpstreamError if there is no answer."""
        with self.call(model):
            adapted = self._adapted(raw_request, model, bounds)
            return self._forwarders[model.upstream].forward(adapted)

    def forward_stream(
        self, model: Model, raw_request: RawRequest, bounds: Bounds = UNBOUNDED
    ) -> AnswerStream | RawAnswer:
        """The same for a stream; the whole answer of an upstream that has none."""
        with self.call(model):
            adapted = self._adapted(raw_request, model, bounds)
            return self._forwarders[model.upstream].forward_stream(adapted)

    def extras(self, model: Model, raw_request: RawRequest) -> Extras:
        """Return what changes the price of a request in an upstream's protocol, besides tokens."""
        upstream = self._forwarders.get(model.upstream)
        if upstream is None:
            return Extras()
        extras = upstream.extras(raw_request)
        if raw_request.traffic_class is None:
            return extras
        sent = self._with_class(raw_request, model, upstream)
        return extras._replace(tiers=upstream.extras(sent).tiers)

    def _with_class(self, raw: RawRequest, model: Model, upstream: SDKUpstream) -> RawRequest:
        """Return the request with its class, as far as a tier has a price."""
        if raw.traffic_class is None:
            return raw
        try:
            for sent in upstream.with_class(raw, raw.traffic_class):
                tiers = upstream.extras(sent).tiers.values()
                if all(self.catalogue.prices_tier(model, tier) for tier in tiers):
                    return sent
        except ValueError as error:  # as in _adapted
            raise UpstreamError("bad_request", message=str(error), status=400) from error
        return raw

    def count(self, model: Model, raw_request: RawRequest) -> RawAnswer | None:
        """Return the upstream's count of a request's input; None if it does not, or not in time."""
        counter = self._forwarders.get(model.upstream)
        if counter is None:
            return None
        with self.call(model):
            try:
                classless = raw_request._replace(traffic_class=None)
                return counter.count(self._adapted(classless, model, UNBOUNDED))
            except UpstreamError as error:
                if error.status not in NO_SUCH_ADDRESS and error.kind not in {"timeout", "quota"}:
                    raise
        return None

    def fetch(self, upstream: str, raw_request: RawRequest) -> RawAnswer:
        """Read or change an answer that the upstream keeps; UpstreamError if that fails."""
        return self._forwarders[upstream].fetch(raw_request)

    def _adapted(self, raw: RawRequest, model: Model, bounds: Bounds) -> RawRequest:
        """Return the request to that model, with its class, within these bounds; unchanged bytes if
        none of them differs."""
        upstream = self._forwarders[model.upstream]
        raw = self._with_class(raw, model, upstream)
        try:
            adapted = raw.with_fields(model=model.name)
            if model.key:
                adapted = adapted._replace(key=model.key)
            return upstream.bounded(adapted, bounds)
        except ValueError as error:  # 1e999 is JSON, but overflows here
            raise UpstreamError("bad_request", message=str(error)) from error

    def _max_tokens(self, bounds: Bounds) -> int:
        return min(self.max_tokens, bounds.output_tokens or self.max_tokens)

    def _other(self, name: str, other: str) -> Model:
        chosen = self._available(other)
        if chosen.quota_identity == self._available(name).quota_identity:
            raise UnknownModelError(
                f'"{other}" and "{name}" are the same model; choose another fallback.'
            )
        return chosen

    def _first_default(self) -> str:
        defaults = self.catalogue.defaults
        ready = (p.name for p in self._upstreams.values() if p.missing is None)
        return next(defaults[name] for name in ready if name in defaults)

    def _patterns(self) -> str:
        ready = (p for p in self._upstreams.values() if p.missing is None)
        return ", ".join(pattern for upstream in ready for pattern in upstream.patterns)


def _log_failure(model: Model, error: UpstreamError) -> None:
    wait = error.retry_after_s and f"{error.retry_after_s} s"
    facts = {"status": error.status, "retry after": wait, "request": error.request_id}
    why = [f"{name} {fact}" for name, fact in facts.items() if fact]
    if isinstance(error, ConnectionFailed):  # its message is not the upstream's
        why = [error.message]
    causes = ", ".join([error.kind, *why])
    log.warning("%s did not answer for %s: %s", model.upstream, model.slug, causes)
    # An upstream's message may quote the prompt; these two kinds may quote a key.
    if not error.is_accounts:
        log.debug("%s said %r", model.upstream, error.message[:500])
