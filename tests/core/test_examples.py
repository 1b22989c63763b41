"""The examples in docstrings hold."""

import doctest
import importlib
import pkgutil

import pytest

import ratelimit_ext.core
import ratelimit_ext.strategies.guards

PACKAGES = (ratelimit_ext.core, ratelimit_ext.strategies, ratelimit_ext.strategies.guards)
MODULES = [
    module.name
    for package in PACKAGES
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_hold(name: str) -> None:
    """Each module's examples print what they say; every algorithm has one."""
    results = doctest.testmod(importlib.import_module(name))
    assert results.failed == 0
    is_algorithm = ".strategies." in name and not name.endswith(
        ("strategy", "reservations", "guards")
    )
    assert results.attempted > 0 or not is_algorithm
