"""Which models a caller may use: those that the plan allows (`models = […]` in the policy) and, if
the API key has models of its own, the key too.

A pattern, such as `gpt-5*`, matches the requested name or the model's slug in models.toml.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Final, NamedTuple

from chatapp.catalogue import Catalogue, Model
from chatapp.services import Services
from chatapp.web.current_request import CurrentRequest
from chatapp.web.errors import ApiError
from ratelimit_ext import Limiter, Policy

log = logging.getLogger(__name__)

#: The keyword of a plan.
KEYWORD: Final = "models"
PATTERN_MAX_CHARACTERS: Final = 100
PATTERNS_MOST: Final = 100
ALLOWED: Final = 'a list of names such as ["gpt-5*", "claude-haiku*"]'


class Allowance(NamedTuple):
    """The models that a plan or a key allows; ``owner`` begins a sentence."""

    owner: str
    patterns: Sequence[str]

    def has(self, *names: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.patterns for name in names)


def install(limiter: Limiter) -> None:
    """Add the keyword `models` to the plans of a policy."""
    limiter.plan_keyword(KEYWORD)(patterns)


def patterns(value: object) -> tuple[str, ...]:
    """The patterns of a list; ValueError if it is empty, or has anything but names."""
    if not isinstance(value, list) or not 0 < len(value) <= PATTERNS_MOST:
        raise ValueError(f"found {_shown(value)}; allowed: {ALLOWED}.")
    for each in value:
        is_name = isinstance(each, str) and each.isprintable() and each.split() == [each]
        if not (is_name and len(each) <= PATTERN_MAX_CHARACTERS):
            raise ValueError(f"found {_shown(each)} in the list; allowed: {ALLOWED}.")
    return tuple(value)


def warn_of_unknown(policy: Policy | None, catalogue: Catalogue) -> None:
    """Log patterns that match no model of the catalogue, as a misspelt one does. They may be meant:
    a provider serves models that are not listed."""
    for plan in policy.plans.values() if policy else ():
        for pattern in plan.keywords.get(KEYWORD, ()):
            if not Allowance(plan.title, [pattern]).has(*catalogue.slugs):
                log.warning(
                    "%s.%s: %r matches no model of models.toml", plan.source, KEYWORD, pattern
                )


def check(current: CurrentRequest) -> None:
    """ApiError (403) if the caller may not use the model of the request. If the request names none
    and the default is not allowed, it gets one that is."""
    found, wanted = allowances(current), current.wanted
    if not found or _allows(found, wanted.turn.model):
        return
    default = None if wanted.names_model else _default(current.services, found)
    if default is None:
        raise _refusal(current, found, wanted.turn.model)
    current.model_request = replace(wanted, turn=replace(wanted.turn, model=default))


def require(current: CurrentRequest, model: Model) -> None:
    """ApiError (403) if the caller may not use the model."""
    found = allowances(current)
    if not _allows(found, model):
        raise _refusal(current, found, model)


def allows(current: CurrentRequest, model: Model) -> bool:
    """Whether the caller may use the model."""
    return _allows(allowances(current), model)


def allowed(current: CurrentRequest, models: Mapping[str, str]) -> dict[str, str]:
    """Those that the caller may use, of models by slug."""
    found = allowances(current)
    return {slug: name for slug, name in models.items() if all(each.has(slug) for each in found)}


def allowances(current: CurrentRequest) -> list[Allowance]:
    """What bounds the caller; empty if every model is allowed."""
    services, principal = current.services, current.principal
    found = []
    plans = services.policy.plans if services.policy else {}
    if any(KEYWORD in plan.keywords for plan in plans.values()):
        plan = plans[services.limiter.present_plan()]
        if KEYWORD in plan.keywords:
            found.append(Allowance(f"The {plan.title} plan", plan.keywords[KEYWORD]))
    if principal is not None and principal.models:
        found.append(Allowance("This API key", principal.models))
    return found


def _allows(found: Iterable[Allowance], model: Model) -> bool:
    return all(allowance.has(model.name, model.slug) for allowance in found)


def _default(services: Services, found: Sequence[Allowance]) -> Model | None:
    """An allowed model for a request that names none: a provider's default, or else the first one
    in the order of the patterns."""
    available = services.conversation.available_models
    ranked = [slug for slug in services.catalogue.defaults.values() if slug in available]
    for pattern in found[-1].patterns:
        ranked += [slug for slug in available if fnmatchcase(slug, pattern)]
    for slug in ranked:
        if all(each.has(slug) for each in found):
            return services.conversation.model(slug)
    return None


def _refusal(current: CurrentRequest, found: Sequence[Allowance], model: Model) -> ApiError:
    """The error with the models that are allowed, of all available ones; with the patterns if these
    are none."""
    refusing = next(each for each in found if not each.has(model.name, model.slug))
    available = dict.fromkeys(current.services.conversation.available_models, "")
    listed = ", ".join(allowed(current, available)) or " and ".join(
        ", ".join(allowance.patterns) for allowance in found
    )
    return ApiError(
        403,
        "model_not_allowed",
        f'{refusing.owner} does not allow the model "{model.name}". Choose one of: {listed}.',
        param="model",
    )


def _shown(value: object) -> str:
    return repr(value)[:PATTERN_MAX_CHARACTERS]
