"""The keywords that plans and limits of calls have beside the extension's.

`models = ["claude-opus*"]` says for which models alone a limit is, and which models a plan allows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

from chatapp import guards_file
from chatapp.catalogue import Catalogue
from chatapp.web import allowed_models
from chatapp.web.allowed_models import Allowance, names_of_call, names_of_slug, patterns, unknown
from chatapp.web.current_request import current_request
from ratelimit_ext import Limiter, Policy

MODELS: Final = "models"


def install(limiter: Limiter, catalogue: Catalogue) -> None:
    """Add the keywords to the plans and limits of a policy."""
    limiter.plan_keyword(allowed_models.KEYWORD)(patterns)
    limiter.limit_keyword(MODELS, applies=partial(covers, catalogue))(patterns)
    limiter.policy_rules(_mistakes)


def covers(
    catalogue: Catalogue, models: Sequence[str], who: Mapping[str, str] | None = None
) -> bool:
    """Return whether a limit of these models is one of the current request, or of a call of
    ``who["model"]``. True without a model: the caller has such a limit."""
    if who is None:
        current = current_request()
        if current.model_request is None:
            return True
        names = names_of_call(current.wanted.turn.model, catalogue)
    elif slug := who.get("model"):
        names = names_of_slug(slug, catalogue.upstreams.get(slug, ""))
    else:
        return True
    return Allowance("", models).has(names)


def unknown_models(policy: Policy | None, catalogue: Catalogue) -> Iterator[str]:
    """Yield a sentence for each pattern of a plan or a limit that matches no model."""
    if policy is None:
        return
    for plan in policy.plans.values():
        word = allowed_models.KEYWORD
        for pattern in unknown(plan.keywords.get(word, ()), catalogue):
            yield f"{plan.source}.{word}: {pattern!r} matches no model of models.toml"
    for limit in policy.all_limits():
        for pattern in unknown(dict(limit.keywords).get(MODELS, ()), catalogue):
            yield f"{limit.source}.{MODELS}: {pattern!r} matches no model of models.toml"


def _mistakes(policy: Policy) -> Iterator[tuple[Any, str]]:
    """Yield keywords at limits of which no call of a model is a part."""
    calls = guards_file.call_members()
    named = (*policy.blueprints.items(), *policy.routes.items(), *policy.targets.items())
    others = [limits for name, limits in named if not calls & {name, name.rpartition(".")[0]}]
    found: dict[str, tuple[Any, str]] = {}
    for limits in (policy.application, policy.default, *others):
        for limit in limits:
            for word, _ in limit.keywords:
                at = limit.place and limit.place.at(word)
                said = f"only for limits of calls: of a plan, or of {', '.join(sorted(calls))}"
                found[str(at)] = at, f"is {said}. Remove it, or move the limit."
    yield from found.values()
