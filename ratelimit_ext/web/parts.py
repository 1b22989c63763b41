"""The parts of an extension that depend on its settings and its storage, joined."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flask_limiter

from ratelimit_ext.core.events import Events
from ratelimit_ext.core.limit import DEFAULT_STRATEGY
from ratelimit_ext.engine.outage import Workers
from ratelimit_ext.web.bound_limit import ChargeRecord, Naming
from ratelimit_ext.web.declarations.callbacks import Callbacks
from ratelimit_ext.web.declarations.code_checks import KnownNames
from ratelimit_ext.web.declarations.manager import Manager
from ratelimit_ext.web.guards import Attempts, Blocks
from ratelimit_ext.web.operators.inventory import Inventory
from ratelimit_ext.web.operators.overrides import Overrides, store_for
from ratelimit_ext.web.request.admission import Admission, AdmissionSettings
from ratelimit_ext.web.request.request_state import RequestLimit
from ratelimit_ext.web.request.response import ResponseWriter
from ratelimit_ext.web.resolver import Resolver
from ratelimit_ext.web.settlements.queue import settlements
from ratelimit_ext.web.settlements.reservation import Reservation
from ratelimit_ext.web.storage import Engines, FailurePolicy, storage_prefix


class Parts:
    """The parts, made anew for other settings. ``limiter`` has the settings, as Flask-Limiter has
    read them; the other arguments last as long as the extension."""

    def __init__(
        self,
        limiter: flask_limiter.Limiter,
        manager: Manager,
        callbacks: Callbacks,
        known_names: KnownNames,
        *,
        events: Events,
        lease_s: float,
        workers: Workers,
        is_deferred: Callable[[str, Any, str | None], bool],
    ) -> None:
        self._limiter = limiter
        self._callbacks = callbacks
        self._known_names = known_names
        self._events = events
        self.lease_s = lease_s
        self.workers = workers
        self.settlements = settlements
        storage, logger = limiter._storage, limiter.logger
        swallow_errors = bool(limiter._swallow_errors)
        failure_policy = FailurePolicy(bool(limiter._in_memory_fallback_enabled), swallow_errors)
        self.naming = Naming(
            storage_prefix(storage) if storage is not None else "",
            limiter._key_prefix,
            limiter._strategy or DEFAULT_STRATEGY,
        )
        self.engines = Engines(storage, failure_policy, workers, events=events, queue=settlements)
        self.overrides = Overrides(store_for(storage, limiter._key_prefix))
        self.resolver = self.resolver_of(manager)
        settings = AdmissionSettings(
            lease_s=lease_s,
            swallow_errors=swallow_errors,
            fail_on_first_breach=bool(limiter._fail_on_first_breach),
            in_memory_fallback=limiter._in_memory_fallback,
            on_breach=limiter._on_breach,
            on_meta_breach=limiter._on_meta_breach,
        )
        self.admission = Admission(
            self.resolver,
            self.engines,
            callbacks,
            settings,
            events=events,
            settlements=settlements,
            show=self.shown,
            logger=logger,
        )
        self.blocks = Blocks(self.resolver, self.engines)
        self.attempts = Attempts(self.admission, known_names, logger=logger)
        self.inventory = Inventory(
            manager=manager,
            identities=callbacks.identities,
            metas=limiter._meta_limits,
            naming=self.naming,
            failure_policy=failure_policy,
            is_deferred=is_deferred,
        )
        self.response = ResponseWriter(
            names=limiter._header_mapping,
            headers_enabled=bool(limiter._headers_enabled),
            retry_after_as_date=limiter._retry_after == "http-date",
            swallow_errors=swallow_errors,
            logger=logger,
        )

    def resolver_of(self, manager: Manager) -> Resolver:
        """What finds the limits of routes, among those of this manager."""
        return Resolver(
            manager,
            self.naming,
            metas=self._limiter._meta_limits,
            callbacks=self._callbacks,
            overrides=self.overrides,
            swallow_errors=bool(self._limiter._swallow_errors),
            logger=self._limiter.logger,
        )

    def reserve(self, taken: list[ChargeRecord]) -> Reservation:
        """The reservation of what a request takes."""
        return Reservation(
            taken,
            self._known_names,
            settlements=self.settlements,
            events=self._events,
            lease_s=self.lease_s,
        )

    def shown(self, record: ChargeRecord) -> RequestLimit:
        """The record as the application sees it."""
        return RequestLimit.of(record, self._limiter)
