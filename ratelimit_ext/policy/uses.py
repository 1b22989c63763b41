"""What a policy refers to outside itself: blueprints, endpoints, identities and plans."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple, TypeAlias

from ratelimit_ext.core.spelling import did_you_mean
from ratelimit_ext.policy.errors import Mistakes
from ratelimit_ext.policy.place import Place

Kind: TypeAlias = Literal["blueprint", "endpoint", "either"]


class Name(NamedTuple):
    """A name in a policy that the application has to know."""

    kind: Kind
    name: str
    place: Place


@dataclass(frozen=True, slots=True)
class Uses:
    """Every reference of a policy, with its place."""

    targets: tuple[Name, ...] = ()
    identities: tuple[tuple[str, Place], ...] = ()
    plans: tuple[Place, ...] = ()

    def check_targets(
        self, blueprints: Collection[str], endpoints: Collection[str], mistakes: Mistakes
    ) -> None:
        """Note names of blueprints and endpoints that are not registered.

        A blueprint has its whole name: the last part does not tell what it is nested in.
        """
        known: Mapping[Kind, tuple[str, Collection[str]]] = MappingProxyType(
            {
                "blueprint": ("there is no blueprint {!r}", blueprints),
                "endpoint": ("there is no endpoint {!r}", endpoints),
                "either": (
                    "{!r} is neither blueprint nor endpoint",
                    {**dict.fromkeys(blueprints), **dict.fromkeys(endpoints)},
                ),
            }
        )
        for kind, name, place in self.targets:
            sentence, registered = known[kind]
            if name not in registered:
                mistakes.add(
                    place,
                    f"{sentence.format(name)}; registered: {_listed(registered)}."
                    f"{did_you_mean(name, registered)}",
                )

    def check_identities(
        self, identities: Collection[str], mistakes: Mistakes, *, knows_plans: bool
    ) -> None:
        """Note identities that are not registered, and plans without a function that returns the
        caller's."""
        for name, place in self.identities:
            if name not in identities:
                mistakes.add(
                    place,
                    f"there is no identity {name!r}; registered: {_listed(identities)}."
                    f"{did_you_mean(name, identities)} Register it before init_app with "
                    f'@limiter.identity("{name}").',
                )
        if not knows_plans:
            for place in self.plans:
                mistakes.add(
                    place,
                    "no function returns the caller's plan. Register one before init_app with "
                    "@limiter.plan_loader.",
                )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(map(repr, names))) or "none"
