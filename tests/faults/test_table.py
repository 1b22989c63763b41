"""The page for people on call lists what is tested."""

from tests.faults import table
from tests.faults.conftest import IN_EVERY_RUN


def test_the_table_lists_exactly_the_scenarios() -> None:
    """Each scenario has its row, in order; `python -m tests.faults` writes them."""
    assert list(table.listed()) == table.scenarios()


def test_every_run_has_what_it_names() -> None:
    """A scenario that gets another name is not skipped from then on."""
    assert not IN_EVERY_RUN - {name for module in table.modules() for name in vars(module)}
