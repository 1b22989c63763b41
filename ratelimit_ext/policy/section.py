"""What a list of limits is for, as far as that changes its keywords and their defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True, slots=True)
class Section:
    """``refused`` are keywords that mean nothing here, each with the reason.

    ``scope`` names the bucket of a limit that is shared and names no scope itself. It begins with a
    slash where it might else be taken for an endpoint.
    """

    shared: bool
    scope: str | None
    override_defaults: bool = True
    refused: Mapping[str, str] = field(default_factory=dict)
    needs_name: bool = False


APPLICATION: Final = Section(
    shared=True,
    scope="global",
    refused={
        "shared": "a limit of the application always is one bucket for all of it",
        "override_defaults": "a limit of the application applies beside all others",
    },
)

DEFAULT: Final = Section(
    shared=False,
    scope="/default",
    refused={"override_defaults": "this is a default"},
)

ROUTE: Final = Section(
    shared=False,
    scope=None,
    refused={"shared": 'a route has one bucket anyway; with others it is shared by scope = "…"'},
)

#: A plan applies beside whatever else limits a view.
PLAN: Final = Section(shared=True, scope="/plans", override_defaults=False, needs_name=True)


def blueprint(name: str) -> Section:
    """The section of a blueprint, or of what may turn out to be one."""
    return Section(shared=True, scope=f"/blueprint/{name}")


def group(name: str) -> Section:
    """The section of a group: one bucket for all of its members."""
    return Section(shared=True, scope=f"/group/{name}")
