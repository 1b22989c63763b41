"""The scanner finds the line of every key, and stops at nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit_ext.policy.key_lines import key_lines, line_of
from ratelimit_ext.policy.place import Path

DOCUMENT = '''\
version = 1
# [plans.comment]
[[application]]
limit = """
120/minute
[not.a.table]
"""
burst = 20

[[application]]
limit = "5/second"
[application.inner]
deep.er = 1

[blueprints."my.chat"]
plans = true # [[no]]
limits = [
    "30/minute", "40/hour",
    # between
    {limit = "1/day", burst = 2},
    {limit = """
2/day"""}, "3/day",
]
[blueprints."my.chat".routes.post]
limits = ["1/second",
          "2/minute"]
nested = [
  [
    1,
    2,
  ],
  3,
]
'''

LINES: dict[Path, int] = {
    ("version",): 1,
    ("application",): 3,
    ("application", 0): 3,
    ("application", 0, "limit"): 4,
    ("application", 0, "burst"): 8,
    ("application", 1): 10,
    ("application", 1, "limit"): 11,
    ("application", 1, "inner"): 12,
    ("application", 1, "inner", "deep", "er"): 13,
    ("blueprints",): 15,
    ("blueprints", "my.chat", "plans"): 16,
    ("blueprints", "my.chat", "limits"): 17,
    ("blueprints", "my.chat", "limits", 0): 18,
    ("blueprints", "my.chat", "limits", 1): 18,
    ("blueprints", "my.chat", "limits", 2): 20,
    ("blueprints", "my.chat", "limits", 2, "burst"): 20,
    ("blueprints", "my.chat", "limits", 3): 21,
    ("blueprints", "my.chat", "limits", 3, "limit"): 21,
    # It stands on the line where the element before it ends: that one's beginning is told.
    ("blueprints", "my.chat", "limits", 4): 21,
    ("blueprints", "my.chat", "routes"): 24,
    ("blueprints", "my.chat", "routes", "post"): 24,
    ("blueprints", "my.chat", "routes", "post", "limits", 0): 25,
    ("blueprints", "my.chat", "routes", "post", "limits", 1): 26,
    ("blueprints", "my.chat", "routes", "post", "nested", 0): 28,
    ("blueprints", "my.chat", "routes", "post", "nested", 1): 32,
}


@pytest.mark.parametrize("path", LINES, ids=str)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"], ids=["lf", "crlf"])
def test_the_line_of_a_key(path: Path, line_end: str) -> None:
    """Each key has its line: in tables, arrays of tables, long strings and lists over lines."""
    assert line_of(key_lines(DOCUMENT.replace("\n", line_end)), path) == LINES[path]


def test_an_unknown_path_has_the_line_around_it() -> None:
    """A path that is not in the document, as that of a missing key, has its table's line."""
    lines = key_lines(DOCUMENT)
    assert line_of(lines, ("application", 1, "strategy")) == 10
    assert line_of(lines, ("plans",)) == 0
    assert line_of(lines, ()) == 0


@given(
    st.lists(
        st.sampled_from(
            [
                "[a]",
                "[[a]]",
                "[a.b]",
                "[[a.b]]",
                "a = 1",
                "b.c = [",
                "]",
                '"""',
                "1,",
                "# x",
                "{",
                "}",
            ]
        ),
        max_size=12,
    ).map("\n".join)
    | st.text(max_size=60)
)
def test_no_text_stops_the_scanner(text: str) -> None:
    """Whatever the text, valid or not, lines lie within it."""
    assert all(1 <= line <= text.count("\n") + 1 for line in key_lines(text).values())


def test_a_long_list_costs_no_minute() -> None:
    """A value over very many lines is given up, not scanned for ever."""
    text = "a = 1\nb = [\n" + "  1,\n" * 20_000 + "]\nc = 2\n"
    lines = key_lines(text)
    assert lines[("a",)] == 1
    assert line_of(lines, ("b", 7)) == 0
