"""Which random histories a test plays: a few in each run, and more in the long tier.

`SEEDS=10000` plays so many there, `FIRST_SEED=4000` begins with that one.
"""

from __future__ import annotations

import os

import pytest


def seeds(few: int, part: int = 1) -> pytest.MarkDecorator:
    """Give a test its `seeds`, a range; in the long tier a ``part``-th, if one takes that long."""
    first = int(os.environ.get("FIRST_SEED", "0"))
    many = int(os.environ.get("SEEDS", "2000")) // part
    params = [
        pytest.param(range(first, first + few), id="few"),
        pytest.param(range(first, first + many), id="many", marks=pytest.mark.slow),
    ]
    return pytest.mark.parametrize("seeds", params)
