"""The current request: one object with what limits, ledger and response read, each part found out
once; and the functions by which limits ask for it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Final, NamedTuple

from flask import request
from flask.globals import _cv_app, app_ctx

from chatapp.accounts import ADDRESS, SESSION, TEAM, USER
from chatapp.accounts.authentication import Principal
from chatapp.calls.demand import Demand
from chatapp.catalogue import Model
from chatapp.catalogue.usage import Usage
from chatapp.services import Services, services_of
from chatapp.upstreams import Extras, RawRequest, Turn
from chatapp.web.tags import session_of
from ratelimit_ext import Claim, DecisionEvent, Event, Guess, WaitEvent, client_ip

#: The tier of a call whose input is long enough for another price, and other limits.
LONG: Final = "long"

_app_context: Final[Any] = app_ctx
_contexts: Final[Any] = _cv_app


class ModelRequest(NamedTuple):
    """A valid request, in the CurrentRequest of every endpoint that calls a model.

    ``names_model``: the model is the requested one, and not the default. ``most_output_tokens``
    bounds its ``choices`` (answers) together, None if it has no bound. ``extras`` change the price.

    ``raw_request`` is the request in the upstream's own protocol, None for POST /chat. ``turn`` is
    for POST /chat and for the offline model, ``fields`` the body in a provider's protocol.
    ``user_id`` is that of POST /chat alone. ``history_tokens`` are those of the conversation that
    the request continues without sending it, None if unknown. ``is_tied``: only the upstream and
    key of its model have what it continues.
    """

    turn: Turn
    fields: Mapping[str, object]
    most_output_tokens: int | None
    stream: bool = False
    user_id: str | None = None
    raw_request: RawRequest | None = None
    choices: int = 1
    extras: Extras = Extras()
    history_tokens: int | None = 0
    is_tied: bool = False
    names_model: bool = True


@dataclass(slots=True, eq=False, repr=False)
class CurrentRequest:
    """What is known of one request.

    ``principal`` is the owner of its API key, None without a valid one. ``model_request`` is its
    body, None if it calls no model or if the body has not been read; the properties that need it
    raise LookupError. ``named_user`` is the user that a request without a body names.
    ``requested_model`` is the name in the body if a fallback has replaced the model. ``tried_keys``
    are the names of the upstream's keys that did not admit or serve it. ``is_cheaper``: a cheaper
    model answers, because a budget refused the requested one. ``began_s`` is when it came, by the
    monotonic clock; it has waited for ``in_line_s`` for its turn, and for ``paused_s`` for its
    provider. ``decisions`` are those that admitted it.
    """

    services: Services
    principal: Principal | None = None
    model_request: ModelRequest | None = None
    named_user: str | None = None
    requested_model: str | None = None
    tried_keys: set[str] = field(default_factory=set)
    is_cheaper: bool = False
    began_s: float = field(default_factory=time.monotonic)
    in_line_s: float = 0.0
    paused_s: float = 0.0
    decisions: list[DecisionEvent] = field(default_factory=list)
    _user: str | None = None
    _demand: Demand | None = None

    @property
    def wanted(self) -> ModelRequest:
        if self.model_request is None:
            raise LookupError("The current request calls no model.")
        return self.model_request

    @property
    def user_id(self) -> str | None:
        """The name of the user: the owner of the API key, or without keys the body's user_id."""
        if self.principal is not None:
            return self.principal.user
        return self.named_user if self.model_request is None else self.model_request.user_id

    @property
    def user(self) -> str:
        """The identity of the user; the client's address if the request names none."""
        if self._user is None:
            name = self.user_id
            identity = f"{ADDRESS}{client_ip()}" if name is None else user_identity(name)
            if self.model_request is None:  # the body may still name one
                return identity
            self._user = identity
        return self._user

    @property
    def demand(self) -> Demand:
        """What the call asks of its model: it is estimated and priced once."""
        if self._demand is not None:
            return self._demand
        wanted, catalogue = self.wanted, self.services.catalogue
        extras = wanted.extras
        model, longest = wanted.turn.model, wanted.most_output_tokens
        estimate = self.services.estimator.estimate(
            model,
            wanted.fields,
            most_output_tokens=longest,
            choices=wanted.choices,
            history_tokens=wanted.history_tokens,
            extras=extras,
            caller=self.user,
        )
        usage, prompt = estimate.usage, estimate.least_input_tokens
        thinks = extras.predicts or catalogue.may_hide_output(model, thinks=extras.thinks)
        is_long = catalogue.is_long(model, estimate.input_tokens)
        entry = catalogue.entry(model.slug)
        most = estimate.output_tokens if longest is None else longest
        self._demand = Demand(
            model=model,
            estimate=estimate,
            cost_micro_usd=catalogue.price(model.slug, usage),
            least_micro_usd=catalogue.price(model.slug, Usage(prompt, 0, prompt)),  # all cached
            bound=longest and longest // estimate.choices,
            may_hide_output=thinks,
            # The provider of a plain answer may not notice a disconnect, and a rejected prediction
            # is generated at once.
            speed=entry.speed if wanted.stream and not extras.predicts else None,
            # What the provider counts before it answers: in a quota for both directions, the bound.
            quota_use={
                "tokens": estimate.input_tokens + most,
                "input_tokens": estimate.input_tokens,
            },
            is_unbounded=extras.is_unbounded,
            tiers=(*estimate.tiers, LONG) if is_long else estimate.tiers,
        )
        return self._demand

    @property
    def choice(self) -> tuple[ModelRequest | None, str | None]:
        """What is called, model and key, and the requested model if it is another one."""
        return self.model_request, self.requested_model

    def choose(self, choice: tuple[ModelRequest | None, str | None]) -> None:
        """Call again what was the choice before."""
        self.model_request, self.requested_model = choice
        self._demand = None

    def use_fallback(self, fallback: Model) -> None:
        """Call this model instead of the requested one. Its estimate and cost are others."""
        wanted = self.wanted
        if wanted.is_tied:
            fallback = replace(fallback, key=wanted.turn.model.key)
        self.requested_model = wanted.turn.model.name
        self.model_request = wanted._replace(turn=wanted.turn._replace(model=fallback))
        self.tried_keys.clear()
        self._demand = None

    def use_other_key(self) -> Model | None:
        """Call the model with another key of its upstream; returns the model with that key, or None
        without a key that was not tried and has what the request continues."""
        wanted = self.wanted
        if wanted.is_tied:
            return None
        model = wanted.turn.model
        self.tried_keys.add(model.key)
        other = self.services.router.with_other_key(model, self.tried_keys)
        if other is not None:
            self.model_request = wanted._replace(turn=wanted.turn._replace(model=other))
            self._demand = self._demand and self._demand._replace(model=other)
        return other


def current_request() -> CurrentRequest:
    """Return the current request's object, which its first use makes."""
    # What the proxies `app_ctx` and `g` do, without their functions: this is asked twenty times.
    context = _contexts.get(None) or _app_context._get_current_object()
    cached: CurrentRequest | None = context.g.__dict__.get("chatapp_request")
    if cached is None:
        cached = context.g.chatapp_request = CurrentRequest(services_of(context.app))
    return cached


def note_decision(event: Event) -> None:
    """Keep what a trace has of the current request: how long it waited, and what admitted it."""
    if event.__class__ is DecisionEvent and event.reason is None and event.endpoint:
        current_request().decisions.append(event)
    elif event.__class__ is WaitEvent and event.outcome == "started":
        current_request().in_line_s = event.seconds


def user_identity(name: str) -> str:
    return f"{USER}{name}"


def team_identity(name: str) -> str:
    return f"{TEAM}{name}"


# -- what limits ask: their identities, and whether they apply ---------------------------------


def user() -> str:
    return current_request().user


def api_key() -> str:
    current = current_request()
    return current.user if current.principal is None else current.principal.key_id


def session() -> str:
    """Return the caller with the id of their session; without one, the session of the key."""
    current = current_request()
    fields = {} if current.model_request is None else current.model_request.fields
    id_ = (session_of(request.environ, fields) or api_key()).removeprefix(USER)
    return f"{SESSION}{current.user.removeprefix(USER)}/{id_.replace('/', '_')}"  # users have "/"


def team() -> str:
    current = current_request()
    if current.principal is None or current.principal.team is None:
        return current.user  # counts alone
    return team_identity(current.principal.team)


def model() -> str:
    return current_request().wanted.turn.model.slug


def upstream() -> str:
    """Return the model, key and tiers at the provider. Unlisted models share limits, but not a
    cool-down."""
    demand = current_request().demand
    return "/".join([demand.model.quota_identity, *demand.tiers])


def plan() -> str:
    current = current_request()
    if current.principal is not None:
        return current.principal.plan
    services = current.services
    return services.settings.plans.get(current.user_id or "", services.default_plan)


def amounts() -> Mapping[str, str]:
    principal = current_request().principal
    return {} if principal is None else principal.limits


def has_valid_key() -> bool:
    """Return whether the request is authenticated; not yet for some limits, as that of a 401."""
    return current_request().principal is not None


def has_no_valid_key() -> bool:
    """Return the opposite, also for every request while accounts are off."""
    return current_request().principal is None


def names_no_model() -> bool:
    """Return whether the request is about something else, such as a stored response."""
    return current_request().model_request is None


def is_named_by_key() -> bool:
    """Return whether the key, as that of a chat UI, has named the user: many share it."""
    return bool((principal := current_request().principal) and principal.is_named)


def has_no_team() -> bool:
    principal = current_request().principal
    return principal is None or principal.team is None


def has_no_quota_by_direction() -> bool:
    """Return whether the upstream of the model reports no quota in input or output tokens: limits
    that follow such a quota would never deny."""
    current = current_request()
    upstream = current.services.router.upstream_of(current.wanted.turn.model)
    return not upstream.quotas_by_direction


# -- what they charge --------------------------------------------------------------------------


def tokens() -> Guess:
    estimate = current_request().demand.estimate
    return Guess(estimate.tokens, estimate.least_tokens)


def input_tokens() -> Guess:
    return Guess(current_request().demand.estimate.input_tokens)


def output_tokens() -> Guess:
    return Guess(current_request().demand.estimate.output_tokens)


def counted_input() -> int:
    """Return what the provider will count as input. A cached prompt hardly counts, and how much of
    it is cached is unknown before the answer."""
    current = current_request()
    raw_request, estimate = current.wanted.raw_request, current.demand.estimate
    if raw_request is not None and b'"cache_control"' in raw_request.raw:
        return 0
    return estimate.input_tokens - estimate.cached_input_tokens


def usd() -> Guess:
    return _guess(current_request().demand)


def claimed_usd() -> Guess:
    """Return the expected cost, with what it claims of budgets: more dollars, not more tokens."""
    current = current_request()
    demand = current.demand
    return _guess(demand, Claim(*demand.claim(current.services.catalogue)))


def _guess(demand: Demand, claim: Claim | None = None) -> Guess:
    cost, least = demand.cost_micro_usd, demand.least_micro_usd
    return Guess(Decimal(cost).scaleb(-6), Decimal(least).scaleb(-6), claim)
