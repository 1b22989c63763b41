"""What of an extension depends on an application: on its settings, storage and policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pkgutil import resolve_name
from typing import TYPE_CHECKING, cast

import flask
import flask_limiter
from limits.storage import Storage

from ratelimit_ext.core.errors import ConfigurationError, did_you_mean, not_allowed, shown
from ratelimit_ext.core.events import Events
from ratelimit_ext.core.key import Naming
from ratelimit_ext.core.limit import DEFAULT_STRATEGY
from ratelimit_ext.engine.engine import Workers
from ratelimit_ext.records.overrides import Overrides
from ratelimit_ext.records.store import record_store, storage_prefix
from ratelimit_ext.settlements.queue import settlements
from ratelimit_ext.web.bound_limit import ChargeRecord
from ratelimit_ext.web.declarations.callbacks import AdmissionSettings, Callbacks
from ratelimit_ext.web.declarations.manager import Manager
from ratelimit_ext.web.declarations.policies import Policies
from ratelimit_ext.web.inventory import Decider, Inventory
from ratelimit_ext.web.request.admission import Admission
from ratelimit_ext.web.request.request_state import RequestLimit
from ratelimit_ext.web.request.reservation import KnownNames, Reservation
from ratelimit_ext.web.request.resolver import Resolver
from ratelimit_ext.web.request.response import ResponseWriter
from ratelimit_ext.web.storage import Engines, failure_policy

if TYPE_CHECKING:
    from ratelimit_ext.records.recorder import Recorder


@dataclass(eq=False)
class Components:
    """The components for one application; without one, an extension has some that have no storage.

    ``settings`` is what Flask-Limiter has read for this application.
    """

    settings: flask_limiter.Limiter
    callbacks: Callbacks
    lease_s: float
    workers: Workers
    is_enabled: bool
    #: Whether mistakes are refused that are only logged otherwise: ``RATELIMIT_STRICT``.
    strict: bool
    decider: Decider
    current_plan: Callable[[], str]

    def __post_init__(self) -> None:
        settings = self.settings
        self.manager = cast(Manager, settings.limit_manager)
        self.settlements = settlements
        self.events = Events()
        # A policy is not read while limits are disabled.
        self.known_names = KnownNames(self.manager.definitions if self.is_enabled else lambda: ())
        self.policies = Policies(
            settings,
            self.manager,
            self.callbacks,
            check_storage=lambda *limit: self.engines.check(*limit, strategy=self.naming.strategy),
            lease_s=self.lease_s,
            current_plan=self.current_plan,
        )
        #: Of a storage that others can have, too.
        self.address = ""
        self.fail_on_first_breach = bool(settings._fail_on_first_breach)
        self.use(settings._storage)

    def use(self, storage: Storage | None) -> None:
        """Decide by this storage from now on."""
        settings, logger = self.settings, self.settings.logger
        self.storage = settings._storage = storage
        swallow_errors = bool(settings._swallow_errors)
        local = bool(settings._in_memory_fallback_enabled)
        on_failure = partial(failure_policy, has_fallback=local, swallow_errors=swallow_errors)
        self.naming = Naming(
            storage_prefix(storage) if storage is not None else "",
            settings._key_prefix,
            settings._strategy or DEFAULT_STRATEGY,
        )
        self.engines = Engines(
            storage, on_failure, self.workers, events=self.events, queue=settlements
        )
        self._records = record_store(storage, settings._key_prefix)
        self.overrides = Overrides(self._records, keep=self.callbacks.keep_change)
        if "recorder" in vars(self):
            self.recorder.use(self._records)
        self.resolver = self.resolver_of(self.manager)
        self.admission = Admission(
            self.resolver,
            self.engines,
            self.callbacks,
            AdmissionSettings(
                lease_s=self.lease_s,
                most_waiting=self.workers.waiting,
                swallow_errors=swallow_errors,
                fail_on_first_breach=self.fail_on_first_breach,
                in_memory_fallback=settings._in_memory_fallback,
                on_breach=settings._on_breach,
                on_meta_breach=settings._on_meta_breach,
            ),
            events=self.events,
            settlements=settlements,
            show=self.shown,
            logger=logger,
        )
        self.inventory = Inventory(
            *(self.manager, self.callbacks.identities, settings._meta_limits, self.naming),
            *(on_failure, self.decider),
        )
        self.response = ResponseWriter(
            names=settings._header_mapping,
            headers_enabled=bool(settings._headers_enabled),
            retry_after_as_date=settings._retry_after == "http-date",
            swallow_errors=swallow_errors,
            logger=logger,
        )

    @cached_property
    def recorder(self) -> Recorder:
        make = resolve_name("ratelimit_ext.records.recorder:Recorder")
        return cast("Recorder", make(self.events, self._records))

    def shares_buckets_with(self, other: Components) -> bool:
        """Return whether equal limits of both have the same names in the same storage."""
        is_one_storage = bool(self.address) and self.address == other.address
        return is_one_storage and self.naming.key_prefix == other.naming.key_prefix

    def resolver_of(self, manager: Manager) -> Resolver:
        return Resolver(
            manager,
            self.naming,
            metas=self.settings._meta_limits,
            callbacks=self.callbacks,
            overrides=self.overrides,
            swallow_errors=bool(self.settings._swallow_errors),
            strict=self.strict,
            logger=self.settings.logger,
        )

    def asked_plan(self) -> str:
        """Return the plan that the plan loader returns. The default one stands in for a loader that
        fails and for what the policy does not have, which is logged once, unless it is empty."""
        if self.callbacks.plan_loader is None:
            raise ConfigurationError(
                "No function returns the caller's plan. Register one with @limiter.plan_loader."
            )
        app, policy = flask.current_app, self.policies.policy
        loader, instead = self.callbacks.plan_loader, "the default plan applies"
        name = self.resolver.loaded(loader, "plan_loader", app, instead)
        plans = {} if policy is None else policy.plans
        if isinstance(name, str) and (name in plans or not plans):
            return name
        default = "" if policy is None or (plan := policy.default_plan) is None else plan.name
        if name and self.resolver.log_once(app, f"plan {shown(name)}"):
            known = not_allowed(name, ", ".join(map(repr, plans)) or "a text")
            known += did_you_mean(str(name), plans)
            app.logger.error("The default plan %r applies: plan_loader: %s", default, known)
        return default

    def reserve(self, taken: list[ChargeRecord]) -> Reservation:
        return Reservation(
            taken,
            self.known_names,
            settlements=self.settlements,
            events=self.events,
            lease_s=self.lease_s,
        )

    def shown(self, record: ChargeRecord) -> RequestLimit:
        return RequestLimit.of(record, self.settings)
