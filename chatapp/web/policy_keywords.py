"""The keywords that plans and limits of calls have beside the extension's.

- `models = ["claude-opus*"]`: for which models alone a limit is, and which models a plan allows
- `at_limit = "claude-haiku*"`: which model answers instead if this budget refuses a call
- `warn_at = 80`: from how much of this budget on, in percent, answers have a warning
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, product
from typing import Any, Final

from chatapp import guards_file
from chatapp.catalogue import Catalogue
from chatapp.catalogue.usage import Usage
from chatapp.web import allowed_models
from chatapp.web.allowed_models import Allowance, matching, names_of_slug, patterns, unknown
from chatapp.web.call_limits import AT_LIMIT, MODELS, WARN_AT
from chatapp.web.current_request import current_request
from chatapp.web.identities import CLASS, REQUEST_CLASS
from ratelimit_ext import Limiter, Policy, PolicyLimit

UNREAD: Final = "the class {!r} has no effect: no `keep` lists it; correct it, or add it to one"
#: Only budgets have them.
OF_BUDGETS: Final = (AT_LIMIT, WARN_AT)


def install(limiter: Limiter, catalogue: Catalogue) -> None:
    limiter.plan_keyword(allowed_models.KEYWORD)(patterns)
    limiter.limit_keyword(MODELS, applies=partial(covers, catalogue))(patterns)
    limiter.limit_keyword(AT_LIMIT)(_cheaper)
    limiter.limit_keyword(WARN_AT)(_percent)
    limiter.policy_rules(partial(_mistakes, catalogue))


def has_warnings(policy: Policy | None) -> bool:
    limits = policy.all_limits() if policy else ()
    return any(WARN_AT in dict(limit.keywords) for limit in limits)


def _cheaper(value: object) -> tuple[str, ...]:
    return patterns([value] if isinstance(value, str) else value)


def _percent(value: object) -> int:
    if type(value) is not int or not 0 < value <= 100:
        raise ValueError(f"found {value!r}; allowed: percent of the budget, from 1 to 100.")
    return value


def covers(
    catalogue: Catalogue, models: Sequence[str], who: Mapping[str, str] | None = None
) -> bool:
    """Return whether a limit of these models is one of the current request, or of a call of
    ``who["model"]``. True without a model: the caller has such a limit."""
    if who is None:
        current = current_request()
        if current.model_request is None:
            return True
        names = allowed_models.names_of_call(current.wanted.turn.model, catalogue)
    elif slug := who.get("model"):
        names = names_of_slug(slug, catalogue.upstreams.get(slug, ""))
    else:
        return True
    return Allowance("", models).has(names)


def declared_classes(policy: Policy | None, catalogue: Catalogue) -> Sequence[str]:
    """Return the classes of traffic in `keep`, or without any those that upstreams read."""
    kept = policy.classes(CLASS) + policy.classes(REQUEST_CLASS) if policy else ()
    return [*dict.fromkeys(kept or chain.from_iterable(catalogue.classes.values()))]


def without_effect(policy: Policy | None, catalogue: Catalogue) -> Iterator[str]:
    """Yield a sentence for each pattern of a plan or a limit that matches no model, and for each
    class of a plan or upstream that nothing reads. An upstream's last row is for other classes."""
    if policy is None:
        return
    classes = declared_classes(policy, catalogue)
    named = [(f"{p.place}.{CLASS}", p.keywords.get(CLASS, "")) for p in policy.plans.values()]
    for upstream, rows in catalogue.classes.items():
        named += [(f"upstreams.{upstream}.classes", name) for name in rows[:-1]]
    for where, name in named:
        if name not in {"", *classes}:
            yield f"{where}: {UNREAD.format(name)}"
    places = [(plan.place, allowed_models.KEYWORD, plan.keywords) for plan in policy.plans.values()]
    for limit in policy.all_limits():
        places += [(limit.place, word, dict(limit.keywords)) for word in (MODELS, AT_LIMIT)]
    for place, word, keywords in places:
        for pattern in unknown(keywords.get(word, ()), catalogue):
            yield f"{place}.{word}: {pattern!r} matches no model of models.toml"


def _mistakes(catalogue: Catalogue, policy: Policy) -> Iterator[tuple[Any, str]]:
    """Yield keywords at limits of which no call of a model is a part, those of budgets at other
    limits, cheaper models that can never answer, and undeclared classes of plans."""
    calls = guards_file.call_members()
    named = (*policy.blueprints.items(), *policy.routes.items(), *policy.targets.items())
    others = [limits for name, limits in named if not calls & {name, name.rpartition(".")[0]}]
    groups = {name: group for name, group in policy.groups.items() if name != guards_file.CALLS}
    others += [group.limits for group in groups.values() if not group.members]
    where = f"only for limits of calls: of a plan, or of {', '.join(sorted(calls))}"
    limits = chain(policy.application, policy.default, *others)
    places = [limit.place.at(word) for limit in limits for word, _ in limit.keywords]
    for place in {str(place): place for place in places}.values():
        yield place, f"is {where}. Remove it, or move the limit."
    classes = () if policy.classes(CLASS) else declared_classes(policy, catalogue)
    for plan in policy.plans.values() if classes else ():
        if (name := plan.keywords.get(CLASS, classes[0])) not in classes:
            yield plan.place.at(CLASS), f"unknown class {name!r}; allowed: {', '.join(classes)}."
    for limit in policy.all_limits():
        if REQUEST_CLASS in (limit.key if isinstance(limit.key, tuple) else (limit.key,)):
            chosen = f"callers choose {REQUEST_CLASS!r} by a header. Use it as priority."
            yield limit.place.at("key"), chosen
        yield from _mistakes_of_budget(limit, policy, catalogue)


def _mistakes_of_budget(
    limit: PolicyLimit, policy: Policy, catalogue: Catalogue
) -> Iterator[tuple[Any, str]]:
    keywords, place, [parsed, *_] = dict(limit.keywords), limit.place, limit.parsed
    for word in OF_BUDGETS:
        if word in keywords and (parsed.unit, parsed.strategy) != ("usd", None):
            yield place.at(word), 'is only for budgets, such as "20 usd/week". Remove it.'
    plan = next((plan for plan in policy.plans.values() if limit in plan.limits), None)
    allowed = plan.keywords.get(allowed_models.KEYWORD) if plan else None
    for pattern in keywords.get(AT_LIMIT, ()):
        covered = matching(keywords.get(MODELS, ["*"]), catalogue)
        named = matching([pattern], catalogue)
        theirs, ours = ({*models.values()} for models in (named, covered))
        if not (ours and theirs):
            continue  # the models are not listed
        problem = ""
        if not ours & theirs:
            problem = (
                f"a model of {' and '.join(sorted(theirs))}, but the limit is for models of "
                f"{' and '.join(sorted(ours))}. A cheaper model of the same provider is allowed."
            )
        elif not any(
            named[slug] == covered[other]
            and catalogue.price(slug, usage) < catalogue.price(other, usage)
            for slug, other in product(named, covered)
            for usage in (Usage(10_000, 0), Usage(0, 10_000))
        ):
            problem = "which is not cheaper than a model of the limit. Write a cheaper one."
        elif allowed and not named.keys() & matching(allowed, catalogue).keys():
            problem = "a model that the plan does not allow. Write one of the plan's models."
        if problem:
            yield place.at(AT_LIMIT), f"found {pattern!r}, {problem}"
