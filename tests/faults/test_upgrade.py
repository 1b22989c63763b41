"""Workers of revision 81a8acf and of this one serve together, on one storage."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from tests.e2e.gunicorn_master import Master, served
from tests.faults import traffic
from tests.faults.conftest import Record
from tests.faults.load import Load, Phase, Request
from tests.servers import Server, free_port
from tests.upgrades.record import ROOT, tree_of
from tests.upgrades.test_upgrades import REVISION, has_history


@pytest.mark.fault(
    breaks="An instance of revision 81a8acf serves beside one of this version",
    to_do="Nothing: [upgrades](../operate/upgrades.md) names what differs.",
    before="48 of 28 for a caller",
)
def test_an_upgrade_beside(storage: Server, record: Record, tmp_path: Path) -> None:
    """Half of the requests go to each, then all to the new one."""
    if not has_history():
        pytest.skip(f"git has no {REVISION} here: run `git fetch --unshallow`")
    trees = tree_of(REVISION, tmp_path), ROOT
    with ExitStack() as stack:
        old, new = [
            stack.enter_context(instance(tree, storage.uri, tmp_path / str(number)))
            for number, tree in enumerate(trees)
        ]

        def request(number: int, phase: Phase) -> Request:
            """Each caller's requests go to both in turn."""
            is_new = {"before": False, "during": number // 8 % 2 == 1, "after": True}[phase]
            return replace(traffic.traffic(number, phase), port=(new if is_new else old).port)

        with Load(old.port, request, per_s=traffic.PER_S) as load:
            load.run(traffic.BEFORE_S)
            with load.fault():
                load.run(traffic.FAULT_S)
            load.run(traffic.AFTER_S)
    traffic.assert_unnoticed(load)
    assert len(load.answers.of(None, "during").values("x-worker")) == 4
    record(load)


def instance(tree: Path, uri: str, own: Path) -> AbstractContextManager[Master]:
    """Two workers of the version in this directory."""
    own.mkdir()
    port = free_port()
    variables = {
        "PORT": str(port),
        "WEB_CONCURRENCY": "2",
        "RATELIMIT_STORAGE_URI": uri,
        "RATELIMIT_SETTLEMENTS_DIR": str(own / "settlements"),
        "GUNICORN_VALID_FILES": str(own / "valid-files"),
        "PYTHONDONTWRITEBYTECODE": "1",
        **traffic.PATIENT,
    }
    command = ["gunicorn", "tests.faults.application:create_app()"]
    return served(command, port=port, log=own / "log", variables=variables, directory=tree)
