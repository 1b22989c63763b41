"""Keywords that an application adds to plans."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from ratelimit_ext.policy import load_policy
from ratelimit_ext.policy.policy import Policy
from tests.policy.conftest import error_of


def colour(value: object) -> str:
    if value not in ("red", "blue"):
        raise ValueError(f"found {value!r}; allowed: red, blue.")
    return str(value).upper()


PLANS = """version = 1
[blueprints.chat]
plans = true
[plans.free]
limits = [{{ name = "plan", limit = "5/day" }}]
{line}
"""


@dataclass(frozen=True)
class OneOf:
    """A check without a hash, as a list has none."""

    words: list[str]

    def __call__(self, value: object) -> object:
        if value not in self.words:
            raise ValueError(f"allowed: {self.words}")
        return value


def load_plans(tmp_path: Path, line: str, check: Callable[[object], object] = colour) -> Policy:
    file = tmp_path / "policy.toml"
    file.write_text(PLANS.format(line=line))
    return load_policy(file=file, blueprints=None, plan_keywords={"colour": check})


def test_a_plan_has_the_applications_keywords(tmp_path: Path) -> None:
    """As the function returns them; only those that are written."""
    assert load_plans(tmp_path, 'colour = "red"').plans["free"].keywords == {"colour": "RED"}
    assert load_plans(tmp_path, "").plans["free"].keywords == {}


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('colour = "green"', "plans.free.colour: found 'green'; allowed: red, blue."),
        ('color = "red"', "default, price, upgrade_url, limits, colour. Did you mean 'colour'?"),
    ],
)
def test_a_mistake_in_the_applications_keyword_has_a_line(
    tmp_path: Path, line: str, sentence: str
) -> None:
    """Like one in the extension's own."""
    message = error_of(lambda: load_plans(tmp_path, line))
    assert "policy.toml:6" in message
    assert sentence in message


def test_the_check_of_a_keyword_needs_no_hash(tmp_path: Path) -> None:
    """It may be any object that can be called."""
    for word in ("red", "blue"):
        found = load_plans(tmp_path, f'colour = "{word}"', OneOf([word])).plans["free"]
        assert found.keywords == {"colour": word}


def test_limits_in_app_config_have_the_applications_keywords() -> None:
    """As those of a file; other words are unknown."""
    limits = {"chat": [{"limit": "5/day", "area": "red"}]}
    policy = load_policy(file=None, blueprints=limits, limit_keywords={"area": colour})
    assert policy.targets["chat"][0].keywords == (("area", "RED"),)
    message = error_of(lambda: load_policy(file=None, blueprints=limits))
    assert "['area']: unknown key; allowed: limit, " in message.replace('"', "'")
