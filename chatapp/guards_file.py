"""The built-in guards of guards.toml: limits that apply with every policy.

They reach the extension through RATELIMIT_BLUEPRINTS, so that an operator's file holds only plans
and limits. A limit of the same name in the policy replaces a guard.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final

GUARDS_FILE: Final = Path(__file__).with_name("guards.toml")
BLUEPRINTS: Final = "RATELIMIT_BLUEPRINTS"
#: The scope of their buckets, which all endpoints share.
SCOPE: Final = "guards"
#: The group of all that calls models, here and in a policy.
CALLS: Final = "calls"


@contextmanager
def added(config: MutableMapping[str, Any], policy_file: str | Path | None) -> Iterator[None]:
    """Add the guards to the configuration while the extension reads it. No policy, no guards."""
    blueprints = config.get(BLUEPRINTS)
    if policy_file and isinstance(blueprints, Mapping | None):
        config[BLUEPRINTS] = _with_guards(blueprints or {}, _document(policy_file))
    try:
        yield
    finally:
        config[BLUEPRINTS] = blueprints  # None counts as not set


def call_members() -> set[str]:
    return {*_groups()[CALLS]["members"]}


def calls(endpoints: Iterable[str]) -> list[str]:
    members = call_members()
    return [endpoint for endpoint in endpoints if members & {endpoint, endpoint.rpartition(".")[0]}]


@cache
def _groups() -> dict[str, Any]:
    groups: dict[str, Any] = tomllib.loads(GUARDS_FILE.read_text("utf-8"))["groups"]
    return groups


def _with_guards(rules: Mapping[str, object], policy: Mapping[str, object]) -> dict[str, object]:
    replaced = {*_names(rules), *_names(policy)}
    merged = dict(rules)
    for group in _groups().values():
        guards = [
            {**limit, "scope": SCOPE} for limit in group["limits"] if limit["name"] not in replaced
        ]
        for member in group["members"] if guards else ():
            match merged.get(member, []):
                case list() | tuple() as limits:
                    merged[member] = [*limits, *guards]
                case {"limits": list() | tuple() as limits, **others}:
                    merged[member] = {**others, "limits": [*limits, *guards]}
                case dict() as table if "limits" not in table:
                    merged[member] = {**table, "limits": guards}
                case _:
                    pass  # a mistake, which the extension reports
    return merged


def _document(file: str | Path) -> dict[str, object]:
    """Return the policy file; empty if it cannot be read, which the extension reports."""
    try:
        return tomllib.loads(Path(file).read_bytes().decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return {}


def _names(value: object) -> Iterator[str]:
    if isinstance(value, list | tuple):
        for entry in value:
            yield from _names(entry)
    elif isinstance(value, Mapping):
        if isinstance(value.get("name"), str):
            yield value["name"]
        for entry in value.values():
            yield from _names(entry)
