"""Whether what both inputs say goes together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ratelimit_ext.policy.draft import Draft
from ratelimit_ext.policy.errors import Mistakes
from ratelimit_ext.policy.limit_reader import Placed
from ratelimit_ext.policy.place import Place
from ratelimit_ext.policy.shared_buckets import check_buckets


def check_together(draft: Draft, strategy: str | None, mistakes: Mistakes) -> None:
    """Note limits that would be counted or told as one, of those that apply together."""
    check_buckets(draft.application, strategy, mistakes)
    check_buckets(draft.default, strategy, mistakes)
    application = [entry.limit for entry in draft.application]
    of_plans = [limit for plan in draft.plans.values() for limit in plan.limits]
    for placed, on_plans in _together(draft):
        beside = [*application, *of_plans] if on_plans else application
        check_buckets(placed, strategy, mistakes, beside=beside)


def _together(draft: Draft) -> Iterator[tuple[list[Placed], bool]]:
    """For each name, what its blueprints have and then its own; and whether plans apply there."""
    layers = draft.layers()
    targets = draft.targets_by_name(layers)
    asking = {*draft.plan_blueprints, *draft.plan_routes, *draft.plan_targets}
    for name in draft.limited():
        outer = layers.reaching(name)
        inherited = [
            entry
            for around in outer
            for entry in (*draft.blueprints.get(around, ()), *targets.get(around, ()))
        ]
        on_plans = not asking.isdisjoint((name, *outer))
        # A target may be either kind; a blueprint and a view of one name have nothing in common.
        kinds = [lists[name] for lists in (draft.blueprints, draft.routes) if name in lists]
        for placed in kinds or [[]]:
            yield [*inherited, *placed, *targets.get(name, ())], on_plans


def check_plans(draft: Draft, places: Mapping[str, Place], mistakes: Mistakes) -> None:
    """Note plans that would apply nowhere, and places that ask for plans where none are.

    ``places`` are those of all plans, the unsound ones too.
    """
    asking = [*draft.plan_blueprints.values(), *draft.plan_routes.values()]
    asking += draft.plan_targets.values()
    asking += [group.plans for group in draft.groups if group.plans is not None]
    if not places:
        for asked in asking:
            mistakes.add(
                asked.place,
                f"found {asked.found}, but there is no plan. Add a table [plans.NAME] to the "
                "policy file, or remove the key.",
            )
    elif not asking:
        mistakes.add(
            next(iter(places.values())),
            "the plans would apply nowhere. Write plans = true in the table of a blueprint, "
            "such as [blueprints.chat].",
        )
