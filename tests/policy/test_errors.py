"""All mistakes of both inputs in one error, in order, each with its sentence."""

from pathlib import Path

import pytest

from tests.policy.conftest import Load, error_of

HERE = Path(__file__).parent


def test_sentences(load: Load) -> None:
    """The whole sentence of every kind of mistake, once: mistakes.toml gives mistakes.txt."""
    text = (HERE / "mistakes.toml").read_text(encoding="utf-8")
    expected = (HERE / "mistakes.txt").read_text(encoding="utf-8")
    assert error_of(lambda: load(text, default_strategy="fixed-window")) == expected.rstrip("\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "version = 2",
            "policy.toml:1: version: found 2 (a whole number); allowed: 1, the version",
        ),
        ("version = true", "policy.toml:1: version: found true; allowed: 1"),
        ("version = 1.0", "policy.toml:1: version: found 1.0 (a number with a fraction); allowed"),
        ('version = "1"', "policy.toml:1: version: found '1' (a string); allowed: 1"),
        ('default = ["5/minute"]', 'policy.toml: "version" is missing. Write version = 1'),
        ("", 'policy.toml: "version" is missing. Write version = 1 as the first line.'),
    ],
)
def test_version(load: Load, text: str, expected: str) -> None:
    """A file of another version, or of none, is refused."""
    assert expected in error_of(lambda: load(text))


def test_all_mistakes_at_once(load: Load) -> None:
    """One error has a line for each mistake: the file's by their lines, then app.config's."""
    text = (
        'version = 3\nplans = 1\n[blueprints.chat]\nlimits = ["x"]\n[[default]]\nburst = true\n'
        '[[application]]\nlimit = "x/day"\n'
    )
    first, *lines = error_of(lambda: load(text, {"chat": "5/minute", "pay": []})).splitlines()
    assert first == "8 mistakes in the configured limits:"
    assert [line.split(": ")[0] for line in lines] == [
        "  policy.toml:1",
        "  policy.toml:2",
        "  policy.toml:4",
        "  policy.toml:5",
        "  policy.toml:6",
        "  policy.toml:8",
        '  app.config["RATELIMIT_BLUEPRINTS"]["chat"]',
        '  app.config["RATELIMIT_BLUEPRINTS"]["pay"]',
    ]


def test_one_mistake_is_one_line(load: Load) -> None:
    """A mistake leads to no others: beside a misspelt strategy, the burst is not checked."""
    text = 'version = 1\n[[default]]\nlimit = "5/minute"\nburst = 2\nstrategy = "bucket"\n'
    assert len(error_of(lambda: load(text, default_strategy="fixed-window")).splitlines()) == 2


def test_default_strategy_without_burst(load: Load) -> None:
    """A burst without a strategy is checked against the extension's default strategy, if known."""
    text = 'version = 1\n[[default]]\nlimit = "5/minute"\nburst = 2\n'
    assert load(text).default[0].options.burst == 2
    assert load(text, default_strategy="token-bucket").default[0].options.burst == 2
    message = error_of(lambda: load(text, default_strategy="fixed-window"))
    assert "policy.toml:4: default[0].burst: 5 per 60 s: burst=2" in message


def test_the_default_strategy_and_its_name_are_one(load: Load) -> None:
    """Whether a limit's strategy is written or is the default, its bucket is the same."""
    text = 'version = 1\ndefault = ["5/minute", {limit = "9/minute", strategy = "fixed-window"}]'
    load(text, default_strategy="sliding-window")
    message = error_of(lambda: load(text, default_strategy="fixed-window"))
    assert "applies together with" in message
