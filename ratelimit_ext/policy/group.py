"""A group while it is being read: blueprints and endpoints with limits in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ratelimit_ext.policy.limit_reader import Placed
from ratelimit_ext.policy.place import Place
from ratelimit_ext.policy.plans_asked import PlansAsked


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """``members`` are blueprints or endpoints, which only the application can tell.

    ``plans`` is how the group asks for the caller's plan; ``None`` where it does not.
    """

    members: Mapping[str, Place]
    limits: Sequence[Placed]
    plans: PlansAsked | None
