"""The limits that policies give to blueprints and endpoints, by their whole registered names.

Flask-Limiter files what decorators give to a nested blueprint under the last part of its name. A
policy tells ``v1.chat`` from ``v2.chat``, and what an inner blueprint has from what lies around it,
as :mod:`ratelimit_ext.policy.nesting` says.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator

from flask_limiter import Limit

from ratelimit_ext.policy.nesting import around


class ConfiguredLimits:
    """Definitions by name; those that are equal are one."""

    def __init__(self) -> None:
        self._blueprints: dict[str, list[Limit]] = {}
        self._endpoints: dict[str, list[Limit]] = {}

    def __iter__(self) -> Iterator[Limit]:
        for named in (self._blueprints, self._endpoints):
            for limits in named.values():
                yield from limits

    def add_to_blueprint(self, name: str, limits: Iterable[Limit]) -> None:
        """Add limits of a blueprint; without any, it counts as limited all the same."""
        _add(self._blueprints.setdefault(name, []), limits)

    def add_to_endpoint(self, endpoint: str, limits: Iterable[Limit]) -> None:
        """Add limits of an endpoint; without any, it counts as limited all the same."""
        _add(self._endpoints.setdefault(endpoint, []), limits)

    def concern(self, endpoint: str, blueprint: str | None) -> bool:
        """Whether a policy names the endpoint, its blueprint, or one around that."""
        if endpoint in self._endpoints:
            return True
        return not self._blueprints.keys().isdisjoint(_to(blueprint))

    def of_endpoint(self, endpoint: str) -> list[Limit]:
        """What the endpoint has itself."""
        return self._endpoints.get(endpoint, [])

    def of_blueprint(self, name: str) -> list[Limit]:
        """What the blueprint has itself."""
        return self._blueprints.get(name, [])

    def reaching(self, blueprint: str, *, exempt: Container[str]) -> list[Limit]:
        """What the blueprint has and those around it, the outermost first.

        One that overrides hides those around it from all that lies inside it. ``exempt`` are last
        parts of names whose limits are left out.
        """
        reaching: list[Limit] = []
        for name in reversed(_to(blueprint)):
            if name.rpartition(".")[2] in exempt:
                continue
            limits = self.of_blueprint(name)
            reaching = [*limits, *reaching]
            if limits and all(limit.override_defaults for limit in limits):
                break
        return reaching

    def inside_plans(self, endpoint: str, blueprint: str | None) -> list[Limit]:
        """The limits around which there are plans and nothing else.

        They leave the plans alone, and therefore say that they override nothing; of the defaults
        that says nothing.
        """
        on_plans = False
        for limits in (*map(self.of_blueprint, _to(blueprint)), self.of_endpoint(endpoint)):
            own = [limit for limit in limits if not is_of_plan(limit)]
            if own:
                return own if on_plans else []
            on_plans = on_plans or bool(limits)
        return []


def is_of_plan(limit: Limit) -> bool:
    """Whether the limit applies to the callers of a plan alone."""
    return getattr(limit, "asks", None) is not None


def _to(blueprint: str | None) -> tuple[str, ...]:
    """The names on the way to a blueprint, the outermost first and its own last."""
    return (*around(blueprint), blueprint) if blueprint else ()


def _add(present: list[Limit], limits: Iterable[Limit]) -> None:
    present += [limit for limit in limits if limit not in present]
