"""The current request: one object with what limits, ledger and response read, each part found out
once."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any, Final

from flask.globals import app_ctx

from chatapp.accounts import ADDRESS, USER
from chatapp.accounts.authentication import Principal
from chatapp.catalogue import Model
from chatapp.estimates.estimate import Estimate
from chatapp.services import Services, services_of
from chatapp.web.model_request import ModelRequest
from ratelimit_ext import Guess, client_ip

#: The tier of a call whose input is long enough for another price, and other limits.
LONG: Final = "long"

_app_context: Final[Any] = app_ctx


class CurrentRequest:
    """What is known of one request.

    ``principal`` is the owner of its API key, None without a valid one. ``model_request`` is its
    body, None if it calls no model or if the body has not been read; the properties that need it
    raise LookupError. ``named_user`` is the user that a request without a body names.
    ``requested_model`` is the name in the body if a fallback has replaced the model. ``tried_keys``
    are the names of the upstream's keys that did not admit or serve it.
    """

    __slots__ = (
        "_cost",
        "_estimate",
        "_held",
        "_tiers",
        "_user",
        "model_request",
        "named_user",
        "principal",
        "requested_model",
        "services",
        "tried_keys",
    )

    _estimate: Estimate | None
    _held: int | None
    _cost: Guess | None
    _tiers: tuple[str, ...] | None

    def __init__(self, services: Services) -> None:
        self.services = services
        self.principal: Principal | None = None
        self.model_request: ModelRequest | None = None
        self.named_user: str | None = None
        self.requested_model: str | None = None
        self.tried_keys: set[str] = set()
        self._user: str | None = None
        self._forget_estimate()

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
    def estimate(self) -> Estimate:
        if self._estimate is None:
            wanted = self.wanted
            self._estimate = self.services.estimator.estimate(
                wanted.turn.model,
                wanted.fields,
                most_output_tokens=wanted.most_output_tokens,
                choices=wanted.choices,
                history_tokens=wanted.history_tokens,
                extras=wanted.extras,
                caller=self.user,
            )
        return self._estimate

    @property
    def tiers(self) -> tuple[str, ...]:
        """The tiers of the call, which have quotas of their own at the provider; none for a
        standard call."""
        if self._tiers is None:
            estimate, model = self.estimate, self.wanted.turn.model
            is_long = self.services.catalogue.is_long(model, estimate.input_tokens)
            self._tiers = (*estimate.tiers, LONG) if is_long else estimate.tiers
        return self._tiers

    @property
    def cost(self) -> Guess:
        if self._cost is None:
            estimator, estimate = self.services.estimator, self.estimate
            slug = self.wanted.turn.model.slug
            cost_usd = estimator.cost_usd(estimate, slug)
            self._cost = Guess(cost_usd, estimator.least_usd(estimate, slug))
        return self._cost

    @property
    def held_cost(self) -> Guess:
        """The expected cost, or a higher one that is to be held: more dollars, not more tokens."""
        if self._held is None:
            return self.cost
        return Guess(Decimal(self._held).scaleb(-6), self.cost.least)

    def hold(self, micro_usd: int | None) -> None:
        """Have the limits in dollars hold that many micro-dollars; None: the expected cost."""
        self._held = micro_usd

    @property
    def choice(self) -> tuple[ModelRequest | None, str | None]:
        """What is called, model and key, and the requested model if it is another one."""
        return self.model_request, self.requested_model

    def choose(self, choice: tuple[ModelRequest | None, str | None]) -> None:
        """Call again what was the choice before."""
        self.model_request, self.requested_model = choice
        self._forget_estimate()

    def use_fallback(self, fallback: Model) -> None:
        """Call this model instead of the requested one. Its estimate and cost are others."""
        wanted = self.wanted
        if wanted.is_tied:
            fallback = replace(fallback, key=wanted.turn.model.key)
        self.requested_model = wanted.turn.model.name
        self.model_request = replace(wanted, turn=replace(wanted.turn, model=fallback))
        self.tried_keys.clear()
        self._forget_estimate()

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
            self.model_request = replace(wanted, turn=replace(wanted.turn, model=other))
        return other

    def _forget_estimate(self) -> None:
        self._estimate = self._held = self._cost = self._tiers = None


def current_request() -> CurrentRequest:
    """The current request's object, which its first use makes."""
    context = _app_context._get_current_object()  # one look-up instead of one per attribute
    known: CurrentRequest | None = context.g.get("chatapp_request")
    if known is None:
        known = context.g.chatapp_request = CurrentRequest(services_of(context.app))
    return known


def user_identity(name: str) -> str:
    return f"{USER}{name}"
