"""Which models a caller may use: those that the plan allows (`models = […]` in the policy) and, if
the API key has models of its own, the key too.

A pattern, such as `gpt-5*`, matches the requested name, with or without its upstream, as in
`azure/gpt-5`, or the model's slug in models.toml. What an upstream calls a model matches nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Final, NamedTuple

from chatapp.catalogue import Catalogue, Model
from chatapp.web.current_request import CurrentRequest
from chatapp.web.errors import ApiError

#: The keyword of a plan.
KEYWORD: Final = "models"
PATTERN_MAX_CHARACTERS: Final = 100
PATTERNS_MOST: Final = 100
ALLOWED: Final = 'a list of names such as ["gpt-5*", "claude-haiku*"]'


class Allowance(NamedTuple):
    """The models that a plan or a key allows; ``owner`` begins a sentence."""

    owner: str
    patterns: Sequence[str]

    def has(self, names: Iterable[str]) -> bool:
        return any(fnmatchcase(name, pattern) for name in names for pattern in self.patterns)


def patterns(value: object) -> tuple[str, ...]:
    """Return the patterns of a list; ValueError if it is empty, or has anything but names."""
    if not isinstance(value, list) or not 0 < len(value) <= PATTERNS_MOST:
        raise ValueError(f"found {_shown(value)}; allowed: {ALLOWED}.")
    for entry in value:
        is_name = isinstance(entry, str) and entry.isprintable() and entry.split() == [entry]
        if not (is_name and len(entry) <= PATTERN_MAX_CHARACTERS):
            raise ValueError(f"found {_shown(entry)} in the list; allowed: {ALLOWED}.")
    return tuple(value)


def unknown(patterns: Collection[str], catalogue: Catalogue) -> list[str]:
    """Return those that match no model of the catalogue: misspelt ones, or not listed."""
    unmatched = [pattern for pattern in patterns if not matching([pattern], catalogue)]
    return [pattern for pattern in unmatched if not Allowance("", [pattern]).has(catalogue.slugs)]


def matching(patterns: Sequence[str], catalogue: Catalogue) -> dict[str, str]:
    """Return the listed models that the patterns match, each with its upstream."""
    listed, allowance = catalogue.upstreams.items(), Allowance("", patterns)
    return {slug: name for slug, name in listed if allowance.has(names_of_slug(slug, name))}


def check(current: CurrentRequest) -> None:
    """ApiError (403) if the caller may not use the model of the request. If the request names none
    and the default is not allowed, it gets one that is."""
    wanted = current.wanted
    if allows(current, wanted.turn.model):
        return
    default = None if wanted.names_model else _other_default(current)
    if default is None:
        raise _refusal(current, wanted.turn.model)
    current.model_request = wanted._replace(turn=wanted.turn._replace(model=default))


def default(current: CurrentRequest) -> Model | None:
    """Return the caller's model if a request names none; None if they may use no available one."""
    model = current.services.router.model(None)
    return model if allows(current, model) else _other_default(current)


def require(current: CurrentRequest, model: Model) -> None:
    """ApiError (403) if the caller may not use the model."""
    if not allows(current, model):
        raise _refusal(current, model)


def allows(current: CurrentRequest, model: Model) -> bool:
    if not (bounds := allowances(current)):
        return True
    names = names_of_call(model, current.services.catalogue)
    return all(allowance.has(names) for allowance in bounds)


def allowed(current: CurrentRequest, models: Mapping[str, str]) -> dict[str, str]:
    """Return those that the caller may use, of models by slug."""
    bounds = allowances(current)
    return {
        slug: upstream
        for slug, upstream in models.items()
        if all(allowance.has(names_of_slug(slug, upstream)) for allowance in bounds)
    }


def allowances(current: CurrentRequest) -> list[Allowance]:
    """Return what bounds the caller; empty if every model is allowed."""
    services, principal = current.services, current.principal
    bounds = []
    plans = services.policy.plans if services.policy else {}
    if [plan for plan in plans.values() if KEYWORD in plan.keywords]:
        # Without limits, the extension has no policy, and knows no plan.
        plan = plans[services.known_plan(services.limiter.current.plan) or ""]
        if KEYWORD in plan.keywords:
            bounds.append(Allowance(f"The {plan.title} plan", plan.keywords[KEYWORD]))
    if principal is not None and principal.models:
        bounds.append(Allowance("This API key", principal.models))
    return bounds


def names_of_call(model: Model, catalogue: Catalogue) -> set[str]:
    """Return what patterns match of the model of a call."""
    return names_of_slug(model.slug, model.upstream, _requested(model, catalogue))


def _requested(model: Model, catalogue: Catalogue) -> str:
    """Return the name by which callers know the model at its upstream."""
    if model.slug in catalogue.sent_names:
        return model.slug.removeprefix(f"{model.upstream}/")
    return model.name


def names_of_slug(slug: str, upstream: str, name: str = "") -> set[str]:
    """Return what patterns match of a model; without a name that of its slug."""
    name = name or slug.removeprefix(f"{upstream}/")
    return {slug, name, f"{upstream}/{name}"}


def _other_default(current: CurrentRequest) -> Model | None:
    """Return an allowed model for a request that names none: an upstream's default, or else the
    first one in the order of the patterns."""
    router, bounds = current.services.router, allowances(current)
    catalogue = router.catalogue
    available = router.available_models.items()
    names = {s: names_of_slug(s, name) for s, name in available if s not in catalogue.embedding}
    ranked = [slug for slug in catalogue.defaults.values() if slug in names]
    for pattern in bounds[-1].patterns:
        ranked += [slug for slug in names if Allowance("", [pattern]).has(names[slug])]
    for slug in ranked:
        if all(allowance.has(names[slug]) for allowance in bounds):
            return router.model(slug)
    return None


def _refusal(current: CurrentRequest, model: Model) -> ApiError:
    """Return the error with the available models that are allowed, or else with the patterns."""
    catalogue, bounds = current.services.catalogue, allowances(current)
    names = names_of_call(model, catalogue)
    refusing = next(allowance for allowance in bounds if not allowance.has(names))
    name, available = _requested(model, catalogue), current.services.router.available_models
    listed = ", ".join(allowed(current, available)) or " and ".join(
        ", ".join(allowance.patterns) for allowance in bounds
    )
    return ApiError(
        403,
        "model_not_allowed",
        f'{refusing.owner} does not allow the model "{name}". Choose one of: {listed}.',
        param="model",
    )


def _shown(value: object) -> str:
    return repr(value)[:PATTERN_MAX_CHARACTERS]
