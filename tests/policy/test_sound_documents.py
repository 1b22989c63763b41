"""No limit of a sound document is dropped, and each has its place."""

import json
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ratelimit_ext.policy import load_policy
from ratelimit_ext.policy.policy import Policy
from tests.policy.conftest import error_of

NAMES = st.sampled_from(["chat", "pay", "admin", "outer.inner", "a b", "ä", 'quote"d'])
STRINGS = st.sampled_from(["5/minute", "9/day", "1/second", "100 per 30 seconds"])
KEYWORDS = st.fixed_dictionaries(
    {"limit": STRINGS},
    optional={
        "strategy": st.sampled_from(["token-bucket", "sliding-window", "fixed-window"]),
        "key": st.sampled_from(["ip", "user", "tests.policy.functions:tenant"]),
        "cost": st.integers(0, 1),
        "mode": st.sampled_from(["enforce", "shadow"]),
        "methods": st.lists(st.sampled_from(["GET", "post"]), min_size=1),
        "per_method": st.booleans(),
        "error_message": st.sampled_from(["No.", "Zu viel: später"]),
    },
)


def lists(layer: str, **more: st.SearchStrategy[Any]) -> st.SearchStrategy[list[dict[str, Any]]]:
    """Lists of limits, each with a name of its own; those of different layers apply together."""
    limits = st.lists(st.tuples(KEYWORDS, st.fixed_dictionaries({}, optional=more)), min_size=1)
    return limits.map(
        lambda entries: [
            {**common, **extra, "name": f"{layer}-{position}"}
            for position, (common, extra) in enumerate(entries)
        ]
    )


ROUTE = st.fixed_dictionaries({"limits": lists("route")})
ROUTES = st.dictionaries(NAMES, ROUTE, max_size=2)
BLUEPRINTS = st.dictionaries(
    NAMES,
    st.fixed_dictionaries(
        {"limits": lists("blueprint", shared=st.booleans(), override_defaults=st.booleans())},
        optional={"routes": ROUTES},
    ),
    max_size=3,
)
GROUP = st.fixed_dictionaries(
    {
        "members": st.lists(NAMES, min_size=1, unique=True),
        "limits": lists("group", shared=st.booleans(), override_defaults=st.booleans()),
    }
)
DOCUMENTS = st.fixed_dictionaries(
    {"version": st.just(1)},
    optional={
        "application": lists("application"),
        "default": lists("default", shared=st.booleans()),
        "blueprints": BLUEPRINTS,
        # One alone: the limits of two with the same member would need other names.
        "groups": st.dictionaries(st.sampled_from(["calls", "a b"]), GROUP, max_size=1),
        # A route below a blueprint has a dot in its endpoint, and these have none.
        "routes": st.dictionaries(st.sampled_from(["index", "about"]), ROUTE, max_size=2),
    },
)


def toml(document: dict[str, Any]) -> str:
    """The document as TOML: strings, numbers and lists are written as in JSON."""
    return "\n".join(f"{key} = {inline(value)}" for key, value in document.items()) + "\n"


def inline(value: object) -> str:
    if isinstance(value, dict):
        entries = ", ".join(f"{json.dumps(key)} = {inline(v)}" for key, v in value.items())
        return f"{{{entries}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(inline, value))}]"
    return json.dumps(value)


def strings_of(document: dict[str, Any]) -> list[str]:
    entries = [*document.get("application", ()), *document.get("default", ())]
    tables = [*document.get("blueprints", {}).values(), *document.get("routes", {}).values()]
    tables += document.get("groups", {}).values()
    for table in tables:
        entries += table["limits"]
        for route in table.get("routes", {}).values():
            entries += route["limits"]
    return sorted(entry["limit"] for entry in entries)


def read(text: str, directory: Path) -> Policy:
    file = directory / "policy.toml"
    file.write_text(text, encoding="utf-8")
    return load_policy(file=file, blueprints=None, default_strategy="fixed-window")


@settings(max_examples=100)
@given(document=DOCUMENTS)
def test_no_limit_is_dropped(tmp_path_factory: Any, document: dict[str, Any]) -> None:
    """A sound document loads, and its policy has every limit, each with a place of its own."""
    policy = read(toml(document), tmp_path_factory.mktemp("policy"))
    limits = policy.all_limits()
    assert sorted(limit.text for limit in limits) == strings_of(document)
    assert len({limit.source for limit in limits}) == len(limits)


@settings(max_examples=100)
@given(document=DOCUMENTS)
def test_an_added_mistake_is_the_only_one(tmp_path_factory: Any, document: dict[str, Any]) -> None:
    """The same document with one wrong key has one mistake, at its line."""
    text = toml(document) + '[plan.pro]\ntitle = "Pro"\n'
    line = text.count("\n") - 1
    first, only = error_of(lambda: read(text, tmp_path_factory.mktemp("policy"))).split("\n")
    assert first == "1 mistake in the configured limits:"
    assert f"policy.toml:{line}: plan: unknown key" in only
