"""Limits by configuration: a TOML file and ``app.config`` to one value, :class:`Policy`.

Knows no Flask. Every mistake is found at load, and all of them are told in one
:class:`~ratelimit_ext.core.errors.ConfigurationError`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from ratelimit_ext.core.spelling import did_you_mean
from ratelimit_ext.policy.consistency import check_plans, check_together
from ratelimit_ext.policy.document import DocumentReader
from ratelimit_ext.policy.draft import Draft
from ratelimit_ext.policy.errors import Mistakes
from ratelimit_ext.policy.limit_reader import LimitReader
from ratelimit_ext.policy.place import Place
from ratelimit_ext.policy.plan import Plan
from ratelimit_ext.policy.plan_sentence import period_words, plan_sentence
from ratelimit_ext.policy.policy import Policy
from ratelimit_ext.policy.policy_limit import PolicyLimit
from ratelimit_ext.policy.targets import read_targets
from ratelimit_ext.policy.toml_file import read
from ratelimit_ext.policy.uses import Uses

__all__ = [
    "Mistakes",
    "Plan",
    "Policy",
    "PolicyLimit",
    "Uses",
    "did_you_mean",
    "load_policy",
    "period_words",
    "plan_sentence",
]


def load_policy(
    *,
    file: str | os.PathLike[str] | None,
    blueprints: Mapping[str, Any] | None,
    default_strategy: str | None = None,
    check: Callable[[Uses, Mistakes], None] = lambda _uses, _mistakes: None,
) -> Policy:
    """The policy of ``RATELIMIT_POLICY_FILE`` and ``RATELIMIT_BLUEPRINTS``; both apply.

    ``default_strategy`` is the extension's: with it, ``burst`` and
    ``anchor`` of limits that name no strategy are checked against it. ``check`` adds the mistakes
    in the names that the application has to know. Raises
    :class:`~ratelimit_ext.core.errors.ConfigurationError` with all mistakes.
    """
    mistakes, draft = Mistakes(), Draft()
    reader = LimitReader(default_strategy, mistakes)
    plan_places: dict[str, Place] | None = {}
    if file is not None:
        source = read(file, mistakes)
        document = DocumentReader(reader, draft, mistakes)
        if source is not None:
            document.read(source.document, Place(source))
        # Of a file that cannot be read, nobody knows which plans it has.
        plan_places = None if source is None else document.plan_places
    if blueprints is not None:
        read_targets(blueprints, reader, draft, mistakes)
    check_together(draft, default_strategy, mistakes)
    if plan_places is not None:
        check_plans(draft, plan_places, mistakes)
    policy = draft.policy()
    check(policy.uses, mistakes)
    mistakes.raise_if_any()
    return policy
