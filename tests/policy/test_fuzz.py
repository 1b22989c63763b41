"""Any document, setting or file gives a policy or a ConfigurationError."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ratelimit_ext.core.errors import ConfigurationError
from ratelimit_ext.policy import load_policy, schema
from ratelimit_ext.policy.errors import Mistakes, Place
from ratelimit_ext.policy.nesting import Nesting
from ratelimit_ext.policy.policy import Policy
from ratelimit_ext.policy.toml_file import TomlFile
from tests.policy import functions

KEYWORDS = [word for word in schema.LimitTable.model_fields if word != "limit"]
# Words that a policy knows are drawn often, so that the depths behind them are reached.
WORDS = st.sampled_from(
    [
        *("version", "application", "default", "blueprints", "routes", "plans", "limits", "limit"),
        *("groups", "members"),
        *("chat", "chat.post", "starter", "pro", "title", "next", "5/minute", "1/day;2/hour"),
        *("9/month", "0/day", "token-bucket", "fixed-window", "moving-window", "shadow", "day"),
        *("month", "UTC", "Europe/Berlin", "POST", "HEAD", "user", "requests", ":", "a:b", "a.b:c"),
        *("tests.policy.functions:tenant", "tests.policy.functions:", "\udcff", *KEYWORDS),
    ]
)
TEXTS = WORDS | st.text(max_size=8)
SCALARS = (
    TEXTS
    | st.booleans()
    | st.integers(-2, 20)
    | st.integers()
    | st.just(1 << 1000)
    | st.floats()
    | st.dates()
    | st.times()
    | st.datetimes()
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=5),
    max_leaves=20,
)
FUNCTIONS = st.sampled_from(
    [functions.tenant, functions.takes_response, functions.asynchronous, functions.Keys, max, type]
)
# What a file cannot hold, and app.config can.
PYTHON_VALUES = st.recursive(
    SCALARS | FUNCTIONS | st.none() | st.binary(max_size=3) | st.builds(object),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(TEXTS | st.integers() | st.none(), inner, max_size=5)
    ),
    max_leaves=20,
)
LIMITS = st.lists(
    TEXTS
    | st.fixed_dictionaries(
        {"limit": st.sampled_from(["5/minute", "9/month", "1/day;2/hour"]) | VALUES},
        optional=dict.fromkeys(KEYWORDS, VALUES),
    ),
    max_size=3,
)
ROUTES = st.dictionaries(TEXTS, st.fixed_dictionaries({}, optional={"limits": LIMITS}), max_size=2)
DOCUMENTS = st.fixed_dictionaries(
    {"version": st.just(1) | VALUES},
    optional={
        "application": LIMITS | VALUES,
        "default": LIMITS | VALUES,
        "routes": ROUTES | VALUES,
        "blueprints": VALUES
        | st.dictionaries(
            TEXTS,
            st.fixed_dictionaries(
                {}, optional={"plans": st.booleans(), "limits": LIMITS, "routes": ROUTES}
            ),
            max_size=3,
        ),
        "groups": VALUES
        | st.dictionaries(
            TEXTS,
            st.fixed_dictionaries(
                {"members": st.lists(TEXTS, max_size=3) | VALUES},
                optional={"plans": st.booleans(), "limits": LIMITS},
            ),
            max_size=3,
        ),
        "plans": VALUES
        | st.dictionaries(
            TEXTS,
            st.fixed_dictionaries({"limits": LIMITS}, optional={"next": TEXTS, "title": VALUES}),
            max_size=3,
        ),
    },
)


def read(document: dict[str, Any]) -> Policy:
    """The policy of a document, past the parser: hypothesis writes values and not text."""
    mistakes = Mistakes()
    nesting = Nesting("fixed-window", mistakes)
    place = Place(TomlFile("policy.toml", document))
    nesting.add_document(schema.read(schema.Document, place, mistakes), place)
    nesting.check()
    mistakes.raise_if_any()
    return nesting.policy()


#: Pydantic's own words, never shown.
PYDANTIC = ("Input should", "Field required", "should have", "not permitted", "Value error")


def outcome(load: Callable[[], Policy]) -> Policy | str:
    """The policy, or the error's message. Anything else that is raised fails the test."""
    try:
        return load()
    except ConfigurationError as error:
        return str(error)


@settings(max_examples=200)
@given(DOCUMENTS | st.dictionaries(TEXTS, VALUES, max_size=5))
def test_no_document_does_anything_else(document: dict[str, Any]) -> None:
    """Any document becomes a policy with every limit in it, or one error of whole lines."""
    read_as = outcome(lambda: read(document))
    if isinstance(read_as, Policy):
        assert len(read_as.all_limits()) == count_limits(document)
        return
    first, *lines = read_as.split("\n")
    assert first.endswith("in the configured limits:")
    assert lines
    assert all(line.startswith("  policy.toml: ") and line.isprintable() for line in lines)
    assert not any(words in line for line in lines for words in PYDANTIC)


def count_limits(value: object) -> int:
    """How many limits a sound document states: the entries of its lists of limits."""
    if not isinstance(value, dict):
        return 0
    lists = [value.get(key, []) for key in ("application", "default", "limits")]
    # In the table of a blueprint, route or group, "plans" is a truth value and not a table.
    named = [value.get(key) for key in ("blueprints", "routes", "groups", "plans")]
    tables = [table for tables in named if isinstance(tables, dict) for table in tables.values()]
    return sum(map(len, lists)) + sum(map(count_limits, tables))


@settings(max_examples=200)
@given(st.dictionaries(TEXTS, LIMITS | PYTHON_VALUES, max_size=4) | PYTHON_VALUES)
def test_no_setting_does_anything_else(blueprints: Any) -> None:
    """Any value of RATELIMIT_BLUEPRINTS becomes a policy or the error."""
    read_as = outcome(lambda: load_policy(file=None, blueprints=blueprints))
    assert isinstance(read_as, Policy) or 'app.config["RATELIMIT_BLUEPRINTS"]' in read_as


LINES = st.sampled_from(
    [
        *("version = 1", "[[application]]", "[blueprints.chat]", "[[blueprints.chat.limits]]"),
        *("[groups.calls]", 'members = ["chat", "chat.post"]', "[[groups.calls.limits]]"),
        *("[plans.pro]", "[[plans.pro.limits]]", 'limit = "5/minute"', 'limits = ["5/minute",'),
        *("]", '"""', "plans = true", 'name = "a"', "burst = 3", "\ufeff"),
    ]
)
CONTENTS = st.lists(LINES | st.text(max_size=12), max_size=12).map("\n".join).map(str.encode)


@settings(max_examples=150)
@given(CONTENTS | st.binary(max_size=40))
def test_no_file_does_anything_else(content: bytes) -> None:
    """Any content of the file becomes a policy or the error."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "policy.toml")
        file.write_bytes(content)
        read_as = outcome(lambda: load_policy(file=file, blueprints=None))
    assert isinstance(read_as, Policy) or str(file) in read_as
