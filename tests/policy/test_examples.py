"""The examples in docstrings hold."""

import doctest
import importlib
import pkgutil

import pytest

import ratelimit_ext.policy

MODULES = [
    module.name
    for module in pkgutil.iter_modules(ratelimit_ext.policy.__path__, "ratelimit_ext.policy.")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_hold(name: str) -> None:
    """Each module's examples print what they say."""
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples() -> None:
    """The modules above are found, and some have examples."""
    attempted = [doctest.testmod(importlib.import_module(name)).attempted for name in MODULES]
    assert sum(attempted) >= 5
