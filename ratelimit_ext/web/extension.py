"""The extension: a ``flask_limiter.Limiter`` that decides a request's limits together.

What an application sees: set-up, definitions, settling. :mod:`asking` is what it asks the
application, :mod:`deciding` the request's way to its decision, :mod:`responding` what its response
says, :mod:`guarding` what is decided from outside.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from decimal import Decimal
from typing import Any, Final, cast

import flask
import flask_limiter
from flask_limiter.util import get_qualified_name

from ratelimit_ext.core.charge import NO_HOLD
from ratelimit_ext.core.decision import Verdict
from ratelimit_ext.core.limit import OPTION_NAMES
from ratelimit_ext.core.limit_string import states_guard
from ratelimit_ext.engine.engine import Engine
from ratelimit_ext.policy import Mistakes, Policy, Uses, did_you_mean
from ratelimit_ext.web.admission import admitted, charged
from ratelimit_ext.web.code_mistakes import (
    check_function,
    check_functions,
    check_keywords,
    check_settings,
    check_strategy,
    keywords_of_signature,
)
from ratelimit_ext.web.commands import take_over
from ratelimit_ext.web.configuration import Configuration, configured_policy
from ratelimit_ext.web.definitions import RouteLimit, extended
from ratelimit_ext.web.guarding import GuardingLimiter
from ratelimit_ext.web.lease import lease_s
from ratelimit_ext.web.limited_request import RequestLimit
from ratelimit_ext.web.limits_adapter import rank
from ratelimit_ext.web.reservation import Reservation
from ratelimit_ext.web.resolution import Place
from ratelimit_ext.web.settlement_queue import EXIT_S
from ratelimit_ext.web.storages import engine_for, storage_prefix

_CONSTRUCTOR: Final = keywords_of_signature(flask_limiter.Limiter.__init__)
_DECORATOR: Final = keywords_of_signature(flask_limiter.Limiter.limit, *OPTION_NAMES)
_SHARED: Final = keywords_of_signature(flask_limiter.Limiter.shared_limit, *OPTION_NAMES)


class Limiter(GuardingLimiter):
    """Flask-Limiter's extension with a strategy per limit and one decision a request.

    Takes everything that ``flask_limiter.Limiter`` takes. ``strategy`` may also be
    ``"token-bucket"`` or ``"sliding-window"``, and every limit may name its own.
    """

    def __init__(self, key_func: Callable[[], str], **options: Any) -> None:
        check_keywords(options, _CONSTRUCTOR, "Limiter")
        check_function(key_func, 0, "Limiter, key_func")
        app = options.pop("app", None)
        super().__init__(key_func, **options)
        self.limit_manager.complete = self._before_listing
        self.app = app
        if app is not None:
            self.init_app(app)

    def _before_listing(self, app: flask.Flask) -> None:
        self._complete_policy(app)
        take_over(self, app)

    # -- set-up ------------------------------------------------------------------------------

    def init_app(self, app: flask.Flask) -> None:
        """Attach to an application. Reads the ``RATELIMIT_*`` keys of its configuration."""
        again = self in app.extensions.get("limiter", ())
        check_settings(app.config)
        check_strategy(self._strategy, app.config)
        super().init_app(app)
        if not self.enabled:
            return
        if not again:
            self._take_over_response_hook(app)
        self._engine = engine_for(self.storage)
        if self._in_memory_fallback_enabled:
            self._fallback_engine = engine_for(self._fallback_storage)
        self._extend_definitions()
        for item in self.limit_manager.stated_items():
            self.check_storage(item)
        self._adapters.clear()
        self._deferred_views.clear()
        policy = configured_policy(app.config, self._strategy, check=self._check_identities)
        if policy is not None and app not in self._configurations:
            configuration = Configuration(policy, self)
            configuration.apply()
            self._configurations[app] = configuration
        self._lease_s = lease_s(app.config)
        self._resolver.configure(
            self._naming,
            self._meta_limits,
            self.estimators,
            swallow_errors=bool(self._swallow_errors),
        )

    def _extend_definitions(self) -> None:
        """Check the limits that apply without a decorator. Flask-Limiter has made definitions of
        its own of those that are strings."""
        manager = self.limit_manager
        manager._application_limits = list(map(extended, manager._application_limits))
        manager._default_limits = list(map(extended, manager._default_limits))
        self._meta_limits = list(map(extended, self._meta_limits))
        self._in_memory_fallback = list(map(extended, self._in_memory_fallback))
        definitions: Iterable[Any] = (
            *manager._application_limits,
            *manager._default_limits,
            *self._meta_limits,
            *self._in_memory_fallback,
        )
        for definition in definitions:
            definition.check(self._strategy)
        manager.check_names()

    def _check_identities(self, uses: Uses, mistakes: Mistakes) -> None:
        knows_plans = self.plan_of_request is not None
        uses.check_identities(self.identities, mistakes, knows_plans=knows_plans)

    def check_policy_file(self, app: flask.Flask, file: str | os.PathLike[str]) -> Policy:
        """The policy in a file, checked as at a start of the application, and not applied.

        Raises ``ConfigurationError`` with every mistake and its line, names of blueprints,
        endpoints and identities included.
        """

        def check(uses: Uses, mistakes: Mistakes) -> None:
            self._check_identities(uses, mistakes)
            uses.check_targets(app.blueprints, app.view_functions, mistakes)

        policy = configured_policy(app.config, self._strategy, file=file, check=check)
        assert policy is not None
        return policy

    # -- settling ----------------------------------------------------------------------------

    @property
    def reservation(self) -> Reservation:
        """What the present request has taken, and what becomes of it.

        Take it before a stream begins: it goes on working when the request's context is gone.
        """
        return self.context.reserved()

    def settle(self, **actual: Any) -> None:
        """Say what the present request really cost: ``tokens=``, ``input_tokens=``,
        ``output_tokens=``, ``usd=``. Every charge in such a unit is corrected when the response is
        closed; without such charges nothing is sent."""
        self.reservation.settle(**actual)

    def cancel(self) -> None:
        """Say that the present request used nothing, as its provider failed: everything is given
        back when the response is closed, but what the application's own limits counted."""
        self.reservation.cancel()

    def remaining_budget(self) -> Decimal | None:
        """What the present request may cost in dollars until one of its budgets is spent: the
        least that an enforced limit in ``usd`` has left, with what the request itself holds of it.

        As of the request's latest admission; the storage is not asked. ``None`` without such a
        limit. Guards do not count: they are no budgets.
        """
        left: dict[tuple[Engine, str], int] = {}
        held: dict[tuple[Engine, str], int] = {}
        for entry in self.context.taken:  # in the order of admission
            limit = entry.claim.limit
            if limit.unit == "usd" and limit.visible and entry.verdict.enforced:
                bucket = entry.admission.engine, entry.verdict.charge.key
                left[bucket] = entry.verdict.remaining
                held[bucket] = held.get(bucket, 0) + entry.cost
        if not left:
            return None
        return Decimal(min(left[each] + held[each] for each in left)).scaleb(-6)

    def verdict(self, name: str) -> Verdict | None:
        """What the limit of that name said of the present request; ``None`` if it has none. Shadow
        limits and guards have verdicts, too. The storage is not asked."""
        named = [e.verdict for e in self.context.decided if e.claim.limit.name == name]
        return named[-1] if named else None

    def calls_in_flight(self) -> int:
        """How many calls of the present caller are in flight, this one included, by the limit
        ``in flight`` that counts the most; 0 without such a limit. The storage is not asked."""
        counted = [e.verdict for e in self.context.decided if e.claim.limit.unit == "calls"]
        in_flight = (v.charge.limit.amount - v.remaining for v in counted if v.enforced)
        return max(in_flight, default=0)

    def flush_settlements(self, timeout_s: float = EXIT_S) -> bool:
        """Wait until the storage has taken all settlements of this process that it could not take
        before, at most ``timeout_s``; whether it has. For tests and the end of a process."""
        return self._settlements.flush(timeout_s)

    def peek(self, endpoint: str, *, method: str = "GET") -> list[RequestLimit]:
        """What the present caller has left of each limit of an endpoint, the shortest period first.

        One look, in which nothing is charged. A limit whose identity the present request cannot
        tell, as the model of a call that is not made, is left out. Raises ``ValueError`` for an
        endpoint that the application does not have.
        """
        app = flask.current_app
        if endpoint not in app.view_functions:
            known = app.view_functions.keys() - {"static"}
            raise ValueError(
                f"the application has no endpoint {endpoint!r}; there are: "
                f"{', '.join(sorted(map(repr, known))) or 'none'}.{did_you_mean(endpoint, known)}"
            )
        view, blueprint = app.view_functions[endpoint], endpoint.rpartition(".")[0] or None
        if not self._is_deferred(endpoint, view, blueprint):
            name = None
        else:
            name = get_qualified_name(view)
        place = Place(cast(Any, app)._get_current_object(), endpoint, blueprint, method, name)
        resolved = self._resolver.resolve(place)
        claims = [*resolved.own, *(c for _, claims in resolved.shared for c in claims)]
        looks = [replace(claim, estimate=lambda: 0) for claim in claims]
        made = charged(looks, (), self.logger, lenient=True)
        outcome = admitted(self.engine, made, NO_HOLD, take=False)
        shown = [e for e in outcome.entries if e.verdict.enforced and e.claim.limit.visible]
        shown.sort(key=lambda entry: rank(entry.claim.runtime.limit))
        return [RequestLimit.of(entry, self) for entry in shown]

    # -- definitions -------------------------------------------------------------------------

    def limit(self, limit_value: str | Callable[[], str], **options: Any) -> RouteLimit:
        """A limit for a view, a blueprint, or (as a context manager) a block of code.

        Takes what ``flask_limiter.Limiter.limit`` takes, and ``strategy``, ``burst``, ``unit``,
        ``name``, ``mode``, ``anchor`` and ``timezone``.
        """
        return self._route_limit(limit_value, shared=False, **options)

    def shared_limit(
        self,
        limit_value: str | Callable[[], str],
        scope: str | Callable[[str], str],
        **options: Any,
    ) -> RouteLimit:
        """A limit that several views share; see :meth:`limit`."""
        return self._route_limit(limit_value, shared=True, scope=scope, **options)

    def _route_limit(self, limit_value: Any, *, shared: bool, **options: Any) -> RouteLimit:
        where = f"limit {limit_value!r}"
        check_keywords(options, _SHARED if shared else _DECORATOR, where)
        check_functions(options, where)
        key_function = options.pop("key_func", None) or self._key_func
        options.setdefault("cost", 1)
        overrides = options.pop("override_defaults", None)
        definition = RouteLimit(
            limit_provider=limit_value,
            limiter=self,
            key_function=key_function,
            shared=shared,
            **options,
        )
        if overrides is None:
            overrides = not states_guard(limit_value, definition)
        definition.override_defaults = overrides
        definition.check(self._strategy)
        return definition

    def reset(self) -> None:
        """Forget everything that was charged."""
        try:
            self.engine.reset(storage_prefix(self.storage) + ":")
            self.logger.info("Storage has been reset and all limits cleared")
        except NotImplementedError:
            self.logger.warning("This storage type does not support being reset")
