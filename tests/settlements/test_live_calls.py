"""The calls of a killed process are ended by another process, at once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import redis

from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import Charge, Hold
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.settlements import journal
from ratelimit_ext.settlements.journal import CELL, JournalFile
from tests.settlements.test_journal import DiskBench, Process, files

DAY_US = 86_400_000_000
TOKENS = Limit(1000, DAY_US, unit="tokens", name="tokens")
SLOTS = Limit(8, 1_000_000, "concurrency", unit="calls", name="slots")
CHARGES = [Charge(TOKENS, "T:{ä\n}", 100), Charge(SLOTS, "S:{a}"), Charge(Limit(9, DAY_US), "C")]
LEASE_US = 1_200_000_000


@pytest.fixture
def bench(redis_client: redis.Redis, tmp_path: Path) -> DiskBench:
    return DiskBench(redis_client, tmp_path / "settlements")


class Worker(Process):
    """A process with calls in flight."""

    def begin(self, number: int, charges: list[Charge] = CHARGES) -> list[Any]:
        """One more call; returns what its end settles."""
        hold = Hold(number, LEASE_US)
        self.queue.begin(self.engine, hold, charges)
        verdicts = self.engine.admit(charges, hold=hold).verdicts
        return [Change.settle(each, hold, 0) for each in verdicts if each.charge.limit.held]

    def finish(self, settlements: list[Any]) -> None:
        self.send(settlements)
        self.queue.end(self.engine, settlements[0].hold)


def left(bench: DiskBench) -> list[int]:
    looks = [charge._replace(cost=0) for charge in CHARGES[:2]]
    return [verdict.remaining for verdict in bench.engine.admit(looks, take=False).verdicts]


def test_what_a_killed_process_held_is_free_at_once(
    bench: DiskBench, caplog: pytest.LogCaptureFixture
) -> None:
    """Slots and estimates, except for what its calls are known to have spent. Calls that were over,
    and those of a living process, are not touched."""
    killed, alive, following = (Worker(bench) for _ in range(3))
    kept = alive.begin(7)
    for number in range(20, 25):
        killed.finish(killed.begin(number))
    renewed, _ = killed.begin(1), killed.begin(2)
    renewal = renewed[0]._replace(verb="renew", numbers=(renewed[0].charge.cost, 30))
    bench.engine.settle([renewal])
    assert left(bench) == [700, 5]
    assert following.start() == 0
    killed.die()
    assert following.start() == 2
    assert following.queue.send_waiting() == 0
    assert left(bench) == [1000 - 100 - 30, 7]
    assert "Ending 2 calls of a process that was killed" in caplog.text
    assert len(files(bench.directory)) == 1
    alive.finish(kept)
    assert left(bench) == [1000 - 30, 8]


def test_calls_of_a_killed_process_cost_their_estimates(bench: DiskBench) -> None:
    """If their holds say so. Their slots are free at once."""
    killed, hold = Worker(bench), Hold(1, LEASE_US, keeps=1)
    killed.queue.begin(killed.engine, hold, CHARGES)
    killed.engine.admit(CHARGES, hold=hold)
    assert left(bench) == [900, 7]
    killed.die()
    following = Worker(bench)
    assert (following.start(), following.queue.send_waiting()) == (1, 0)
    assert left(bench) == [900, 8]


def test_a_call_that_was_on_its_way_holds_nothing(bench: DiskBench) -> None:
    """Its admission arrives when its process has ended and its hold was released."""
    killed, hold = Worker(bench), Hold(1, LEASE_US)
    killed.queue.begin(killed.engine, hold, CHARGES)
    killed.die()
    following = Worker(bench)
    assert (following.start(), following.queue.send_waiting()) == (1, 0)
    bench.engine.admit(CHARGES, hold=hold)
    assert left(bench) == [1000, 8]


def test_a_process_that_stops_leaves_its_file_only_if_calls_go_on(bench: DiskBench) -> None:
    """One without calls leaves nothing; the calls of a killed one are not looked for without it."""
    worker = Worker(bench)
    settlements = worker.begin(1)
    (file,) = files(bench.directory)
    assert (bench.directory.stat().st_mode & 0o777, file.stat().st_mode & 0o777) == (0o700, 0o600)
    worker.queue.close(0)
    assert files(bench.directory) == [file]
    worker.finish(settlements)
    worker.queue.close(0)
    assert list(bench.directory.iterdir()) == []


def test_old_calls_of_another_storage_are_removed(
    bench: DiskBench, caplog: pytest.LogCaptureFixture
) -> None:
    """As its storage has forgotten them by then. Recent ones are left to a process that uses it."""
    killed = Worker(bench, "redis://elsewhere/0")
    killed.begin(1)
    killed.die()
    (file,) = files(bench.directory)
    for changed_at, stays in ((bench.clock.now_s, True), (bench.clock.now_s - 9999, False)):
        os.utime(file, (changed_at, changed_at))
        following = Worker(bench)
        following.start()
        following.queue.send_waiting()
        assert bool(files(bench.directory)) == stays
    assert "belong to the storage redis://elsewhere/0" in caplog.text
    assert left(bench) == [900, 7]


def test_a_call_is_two_writes_of_its_own_cell(
    bench: DiskBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many calls there were: nothing else is read, written, listed or locked, and the file
    has the size of the most calls at once."""
    worker = Worker(bench)
    worker.finish(worker.begin(1))
    written: list[tuple[int, int]] = []
    put = JournalFile.put

    def noted(file: JournalFile, cell: int, data: bytes) -> None:
        written.append((cell, len(data)))
        put(file, cell, data)

    monkeypatch.setattr(JournalFile, "put", noted)
    for number in range(2, 5):
        worker.finish(worker.begin(number))
    assert [(cell, size > 1) for cell, size in written] == [(1, True), (1, False)] * 3
    (file,) = files(bench.directory)
    assert file.stat().st_size <= 2 * CELL


def test_a_file_has_room_for_so_many_calls(
    bench: DiskBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond them the oldest is forgotten until its lease ends. All charges of a call are noted,
    also if they do not fit into a cell."""
    monkeypatch.setattr(journal, "MOST_CALLS", 3)
    killed = Worker(bench)
    long = [Charge(TOKENS, f"T:{{{n}{'x' * 900}}}", 1) for n in range(9)]
    calls = [killed.begin(number, [*CHARGES, *long]) for number in range(1, 6)]
    killed.finish(calls[0])
    killed.die()
    following = Worker(bench)
    assert (following.start(), following.queue.send_waiting()) == (3, 0)
    assert left(bench) == [900, 7]
    verdicts = bench.engine.admit([each._replace(cost=0) for each in long], take=False).verdicts
    assert {verdict.remaining for verdict in verdicts} == {999}


def test_a_directory_that_cannot_be_written_stops_no_call(
    bench: DiskBench, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged once, and slots of a killed process are free when their leases end. As soon as
    it can be written, calls are noted again."""
    bench.directory.write_text("a file")
    worker = Worker(bench)
    for number in (1, 2):
        worker.finish(worker.begin(number))
    assert left(bench) == [1000, 8]
    assert [record.name for record in caplog.records] == ["ratelimit_ext"]
    assert "stay taken until their leases end" in caplog.text
    bench.directory.unlink()
    worker.begin(3)
    assert len(files(bench.directory)) == 1


def test_a_call_may_begin_after_the_end_of_the_process(bench: DiskBench) -> None:
    """It is in a new file, and never in one that has got the descriptor of the old one."""
    worker = Worker(bench)
    worker.finish(worker.begin(1))
    worker.queue.close(0)
    other = bench.directory.with_name("other")
    with other.open("wb"):
        settlements = worker.begin(2)
        (file,) = files(bench.directory)
        worker.finish(settlements)
        worker.queue.close(0)
    assert other.read_bytes() == b""
    assert not file.exists()
