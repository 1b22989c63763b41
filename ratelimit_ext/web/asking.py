"""Asking: what the extension asks the application. Who calls, on which plan, and what a call is
estimated to cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import flask_limiter

from ratelimit_ext.core.errors import ConfigurationError
from ratelimit_ext.core.traits import UNITS
from ratelimit_ext.policy import did_you_mean
from ratelimit_ext.web.code_mistakes import check_function
from ratelimit_ext.web.identities import BUILT_IN, Identity

#: Of a call that is in flight there is nothing to estimate: it is one.
ESTIMATED: Final = UNITS

Estimate: TypeAlias = Callable[[], Any]


class AskingLimiter(flask_limiter.Limiter):
    """Flask-Limiter's extension, with functions of the application that a policy can name."""

    def __init__(self, key_func: Callable[[], str], **options: Any) -> None:
        #: Who pays, by the names that a policy can use.
        self.identities: dict[str, Identity] = dict(BUILT_IN)
        #: Answers with the name of the present caller's plan; ``None``: nobody said how.
        self.plan_of_request: Callable[[], str] | None = None
        #: What a call is estimated to cost, by unit and the name of the limit ("": any other).
        self.estimators: dict[tuple[str, str], Estimate] = {}
        super().__init__(key_func, **options)

    def identity(self, name: str) -> Callable[[Identity], Identity]:
        """Register who pays under a name that a policy can use; replaces a built-in one.

        ::

            @limiter.identity("user")
            def user() -> str:
                return str(g.user.id)
        """

        def register(function: Identity) -> Identity:
            check_function(function, 0, f"identity {name!r}")
            self.identities[name] = function
            return function

        return register

    def plan_loader(self, function: Callable[[], str]) -> Callable[[], str]:
        """Register the function that answers with the name of the present caller's plan."""
        self.plan_of_request = function
        return function

    def estimator(self, unit: str, *, limit: str = "") -> Callable[[Estimate], Estimate]:
        """Register what a call is estimated to cost, for limits in the unit that state no cost.

        ``tokens``, ``input_tokens`` and ``output_tokens`` are whole numbers, ``usd`` is in dollars.
        ``limit`` is the name of one limit that has an estimate of its own. Raises
        ``ConfigurationError`` for a unit that is none.
        """
        if unit not in ESTIMATED:
            allowed = ", ".join(map(repr, ESTIMATED))
            raise ConfigurationError(
                f"an estimator for the unit {unit!r}; allowed: {allowed}."
                f"{did_you_mean(str(unit), ESTIMATED)}"
            )

        def register(function: Estimate) -> Estimate:
            self.estimators[unit, limit] = function
            return function

        return register
