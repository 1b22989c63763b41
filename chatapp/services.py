"""The services of one application, made once by `create_app`."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, cast

from flask import Flask, current_app

from chatapp.accounts.admin_keys import AdminKeys
from chatapp.accounts.authentication import Authenticator
from chatapp.accounts.managed_settings import Rows
from chatapp.accounts.store import Accounts
from chatapp.alerts.watch import Alerts
from chatapp.calls.throttle import Throttle
from chatapp.catalogue import Catalogue
from chatapp.database.connection import Database
from chatapp.estimates.estimate import Estimator
from chatapp.ledger.reports import Reports
from chatapp.ledger.stored_answers import StoredAnswers
from chatapp.ledger.writer import BackgroundLedger
from chatapp.settings import Settings
from chatapp.traces import Traces
from chatapp.upstreams.router import Router
from ratelimit_ext import Limiter, Policy

EXTENSION_KEY: Final = "chatapp"


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """``policy`` is None without a policy file, ``alerts`` if they are switched off."""

    settings: Settings
    #: How long a call reserves without a sign of life: an older one has lost its worker.
    lease: timedelta
    policy: Policy | None
    limiter: Limiter
    catalogue: Catalogue
    router: Router
    estimator: Estimator
    database: Database
    ledger: BackgroundLedger
    reports: Reports
    stored_answers: StoredAnswers
    alerts: Alerts | None
    accounts: Accounts
    admin_keys: AdminKeys
    authenticator: Authenticator
    #: None unless calls are traced.
    traces: Traces | None = None
    #: On the machines of people who sign in.
    managed_settings: Rows = field(default_factory=dict)
    throttle: Throttle = field(default_factory=Throttle)
    #: The names of the policy's plans.
    plans: tuple[str, ...] = field(init=False)
    #: The plan of users without one. Accounts have it even if the policy has no plans.
    default_plan: str = field(init=False)

    def __post_init__(self) -> None:
        default = self.policy and self.policy.default_plan
        object.__setattr__(self, "plans", tuple(self.policy.plans) if self.policy else ())
        object.__setattr__(self, "default_plan", default.name if default else "starter")

    def known_plan(self, plan: str) -> str | None:
        """Return the plan, or the default if the policy does not have it; None without plans."""
        if not self.plans:
            return None
        return plan if plan in self.plans else self.default_plan


def services_of(app: Flask) -> Services:
    return cast(Services, app.extensions[EXTENSION_KEY])


def current_services() -> Services:
    return services_of(cast(Any, current_app)._get_current_object())
