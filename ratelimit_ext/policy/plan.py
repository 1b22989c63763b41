"""A plan: what a caller has booked."""

from __future__ import annotations

from dataclasses import dataclass

from ratelimit_ext.policy.policy_limit import PolicyLimit


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Limits that apply to its callers, wherever a blueprint or route says ``plans = true``.

    ``next`` is the name of the plan that one can change to for more.
    """

    source: str
    name: str
    title: str
    limits: tuple[PolicyLimit, ...]
    next: str | None = None
