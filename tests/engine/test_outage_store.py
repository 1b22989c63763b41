"""What the workers of a host have in common while the storage is down, and what outlives them."""

import fcntl
import multiprocessing
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ratelimit_ext.core.change import Change
from ratelimit_ext.core.charge import Charge, Hold
from ratelimit_ext.core.errors import StorageUnavailable
from ratelimit_ext.core.limit import Limit
from ratelimit_ext.engine import outage_store
from ratelimit_ext.engine.breaker import Breaker
from ratelimit_ext.engine.engine import Workers
from ratelimit_ext.engine.memory import SWEEP_EVERY, MemoryEngine
from ratelimit_ext.engine.outage import OutageEngine
from ratelimit_ext.engine.outage_store import OutageStore, outage_path
from tests.strategies.world import DAY, RATES

LEASE = 120_000_000
CHARGE = [Charge(Limit(10, DAY), "ada")]
DOLLARS = Limit(5_000_000, DAY, unit="usd", on_failure="local")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return outage_path(tmp_path / "settlements", "redis://host")


def worker_of(path: Path, storage: Any = None, *, count: int = 2, here: int = 2) -> OutageEngine:
    workers = Workers(count, here)
    worker = OutageEngine(storage or MemoryEngine(), lambda _: "local", workers)
    worker.is_deciding = True
    worker.share(path)
    return worker


def admitted(worker: OutageEngine, calls: int, charges: list[Charge] = CHARGE) -> int:
    return sum(worker.admit(charges).admitted for _ in range(calls))


def left(engine: Any, limit: Limit = CHARGE[0].limit, key: str = "ada") -> int:
    remaining: int = engine.admit([Charge(limit, key, 0)], take=False).verdicts[0].remaining
    return remaining


def hand_back_at_once(workers: list[OutageEngine], storage: MemoryEngine) -> None:
    with ThreadPoolExecutor(len(workers)) as pool:
        list(pool.map(lambda worker: worker.hand_back(storage, within_s=9), workers))


@pytest.mark.parametrize("strategy", RATES)
def test_the_workers_of_a_host_have_one_share(path: Path, strategy: str) -> None:
    """Also one worker alone may give all of it, and each sees what another has given."""
    charges = [Charge(Limit(10, DAY, strategy), "ada")]
    first, second = worker_of(path), worker_of(path)
    assert admitted(first, 7, charges) == 7
    assert admitted(second, 7, charges) == 3
    assert admitted(first, 7, charges) == 0


@pytest.mark.parametrize("strategy", RATES)
def test_hosts_divide_the_amount(tmp_path: Path, strategy: str) -> None:
    """By their workers, of all."""
    charges = [Charge(Limit(12, DAY, strategy), "ada")]
    hosts = [worker_of(tmp_path / f"{here}.sqlite", count=6, here=here) for here in (1, 2, 3)]
    assert [admitted(host, 12, charges) for host in hosts] == [2, 4, 6]


@pytest.mark.parametrize("strategy", RATES)
def test_two_hosts_hand_back_what_each_has_admitted(tmp_path: Path, strategy: str) -> None:
    """Each gives its part of what was left, and has a call in flight. All workers return at once,
    one of each host in the place of a dead one, and the amount is used up once."""
    storage, limit = MemoryEngine(), Limit(100, DAY, strategy, unit="tokens")
    paths, hold = [tmp_path / host for host in ("one", "two")], Hold(2**40 + 7, LEASE)
    storage.admit([Charge(limit, "ada", 40)])
    calls = []
    for path in paths:
        known = Breaker(storage)  # type: ignore[arg-type]
        first = known.outage = worker_of(path, storage, count=4)
        known.admit([Charge(limit, "ada", 0)])
        calls.append(first.admit([Charge(limit, "ada", 20)], hold=hold).verdicts[0])
        hold = hold._replace(id=hold.id + 1)
        assert admitted(worker_of(path, storage, count=4), 30, [Charge(limit, "ada")]) == 10
    workers = [worker_of(path, storage, count=4) for path in (*paths, *paths)]
    hand_back_at_once(workers, storage)
    assert all(worker.is_handed_back for worker in workers)
    assert left(storage, limit) == 0
    holds = hold._replace(id=hold.id - 2), hold._replace(id=hold.id - 1)
    for worker, verdict, held in zip(workers, calls, holds, strict=False):
        assert worker.settle([Change.settle(verdict, held, 5)]) == 1
    assert left(storage, limit) == 30


@pytest.mark.parametrize("strategy", RATES)
def test_a_worker_goes_on_where_another_has_ended(path: Path, strategy: str) -> None:
    """Whatever ended it, and however many follow."""
    charges = [Charge(Limit(10, DAY, strategy), "ada")]
    assert [admitted(worker_of(path), 4, charges) for _ in range(4)] == [4, 4, 2, 0]


def test_a_killed_worker_has_lost_nothing(path: Path) -> None:
    """Not what it had decided, and the others do not wait for it: it dies in the middle of a
    transaction."""
    (end, ours), context = multiprocessing.Pipe(), multiprocessing.get_context("fork")

    def serve() -> None:
        worker = worker_of(path)
        end.send(admitted(worker, 4))
        worker._store.run(lambda: os.kill(os.getpid(), signal.SIGKILL))

    process = context.Process(target=serve)
    process.start()
    assert ours.recv() == 4
    process.join()
    assert process.exitcode == -signal.SIGKILL
    storage = MemoryEngine()
    successor = worker_of(path, storage)
    assert not successor.is_handed_back
    assert admitted(successor, 9) == 6
    assert successor.hand_back(storage, within_s=9)
    assert left(storage) == 0


def test_a_worker_that_is_stopped_is_waited_for(path: Path, monkeypatch: Any) -> None:
    """In the middle of a decision, for seconds, as a busy machine does. Without the others, the
    next one would give a share for itself."""
    worker, now = worker_of(path), 1000.0
    assert admitted(worker, 10) == 10
    stopped = sqlite3.connect(path, isolation_level=None)
    stopped.execute("BEGIN IMMEDIATE")

    def sleep(_: float) -> None:
        nonlocal now
        now += 1.0
        if now == 1004.0:
            stopped.execute("COMMIT")

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    assert admitted(worker, 1) == 0
    stopped.close()


def test_a_call_that_a_locked_file_holds_is_settled_when_it_is_free(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its settlement found no hold in the storage and was forgotten: its slot stayed taken, and it
    cost its estimate."""
    monkeypatch.setattr(outage_store, "BUSY_S", 0.05)
    monkeypatch.setattr(outage_store, "LOOK_S", 0.0)
    storage, limit, hold = MemoryEngine(), Limit(9, DAY, unit="tokens"), Hold(7, LEASE)
    worker = worker_of(path, storage)
    (call,) = worker.admit([Charge(limit, "ada", 5)], hold=hold).verdicts
    locked = sqlite3.connect(path, isolation_level=None)
    locked.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageUnavailable):
        worker.settle([Change.settle(call, hold, 2)])
    locked.execute("COMMIT")
    locked.close()
    assert worker.settle([Change.settle(call, hold, 2)]) == 1
    assert worker.hand_back(storage, within_s=5)
    assert left(storage, limit) == 7


def test_a_host_with_all_workers_refills_at_the_whole_rate(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its share is the limit, for each of its workers: four tokens an hour, and not two."""
    now_s = [time.monotonic()]
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    worker, charges = worker_of(path), [Charge(Limit(4, DAY // 24, "token-bucket"), "ada")]
    assert admitted(worker, 5, charges) == 4
    now_s[0] += 1_800
    assert admitted(worker, 4, charges) == 2


class Interrupted(MemoryEngine):
    """Something happens once between a charge and its reply."""

    meanwhile: Any = None

    def settle(self, changes: Any, **more: Any) -> int:
        applied = super().settle(changes, **more)
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        return applied


class Away(MemoryEngine):
    def settle(self, changes: Any, **more: Any) -> int:
        raise StorageUnavailable("away")


def test_a_worker_that_was_stopped_while_it_sent_removes_no_later_batch(path: Path) -> None:
    """Others have sent everything meanwhile, and put something else on its way. It had the number
    of the former batch, and was lost."""
    storage = Interrupted()
    stopped, other = worker_of(path, storage), worker_of(path, storage)

    def meanwhile() -> None:
        assert other.hand_back(storage, within_s=5)
        assert admitted(other, 4) == 4
        with pytest.raises(StorageUnavailable):
            other.hand_back(Away(), within_s=5)

    assert admitted(stopped, 3) == 3
    storage.meanwhile = meanwhile
    assert stopped.hand_back(storage, within_s=5)
    assert left(storage) == 3


def test_a_call_that_only_waited_in_an_outage_is_settled_in_the_storage(path: Path) -> None:
    """Its ticket has its id as a hold has. It was taken for one: the slot in the storage stayed
    taken until the lease ended."""
    limit = Limit(1, DAY, "concurrency", unit="calls", wait=20_000_000)
    storage, charge, hold = MemoryEngine(), Charge(limit, "ada"), Hold(7 << 40, LEASE, 0)
    worker = worker_of(path, storage)
    (other,) = worker.admit([charge], hold=Hold(8, LEASE)).verdicts
    assert not worker.admit([charge], hold=hold).admitted  # it waits
    (call,) = storage.admit([charge], hold=hold).verdicts
    assert worker.settle([Change.settle(other, Hold(8, LEASE), 0)]) == 1
    assert worker.settle([Change.settle(call, hold, 0)]) == 1
    assert left(storage, limit) == 1


def test_two_changes_of_one_bucket_leave_it_there(path: Path) -> None:
    """In one settlement, as of two calls of a worker that was killed: the bucket was full again."""
    worker, limit = worker_of(path), Limit(9, DAY, unit="tokens")
    holds = [Hold(7, LEASE), Hold(8, LEASE)]
    calls = [worker.admit([Charge(limit, "ada", 4)], hold=hold).verdicts[0] for hold in holds]
    changes = [Change.settle(*call, 3) for call in zip(calls, holds, strict=True)]
    assert worker.settle(changes) == 2
    assert left(worker, limit) == 3


@pytest.mark.parametrize("strategy", RATES)
def test_a_file_that_was_locked_is_used_again(
    path: Path, monkeypatch: Any, caplog: pytest.LogCaptureFixture, strategy: str
) -> None:
    """While it is locked, each worker has its own share, without what was used before. When it is
    free, what they decided alone is noted there and charged once; a call that began alone is
    settled."""
    monkeypatch.setattr(outage_store, "BUSY_S", 0.0)
    monkeypatch.setattr(outage_store, "LOOK_S", 0.0)
    charges, storage = [Charge(Limit(10, DAY, strategy), "ada")], MemoryEngine()
    first, second = worker_of(path, storage), worker_of(path, storage)
    assert admitted(first, 2, charges) == 2
    locked = sqlite3.connect(path, isolation_level=None)
    locked.execute("BEGIN IMMEDIATE")
    assert [admitted(worker, 9, charges) for worker in (first, second)] == [3, 3]
    hold = Hold(7, LEASE)
    (verdict,) = first.admit([Charge(DOLLARS, "usd", 500)], hold=hold).verdicts
    assert not first.is_handed_back
    locked.execute("COMMIT")
    locked.close()
    assert [admitted(worker, 3, charges) for worker in (second, first, second)] == [3, 0, 0]
    assert first.settle([Change.settle(verdict, hold, 120)]) == 1
    assert first.hand_back(storage, within_s=9)
    assert second.is_handed_back
    assert left(storage, charges[0].limit) == 0
    assert left(storage, DOLLARS, "usd") == DOLLARS.amount - 120
    words = [record.getMessage() for record in caplog.records]
    assert [" has been locked " in word for word in words] == [True, True, False, False]
    assert [" is free again" in word for word in words] == [False, False, True, True]


def test_a_batch_of_a_worker_alone_is_sent_from_the_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was on its way when the file was free again, and its worker may end."""
    monkeypatch.setattr(outage_store, "BUSY_S", 0.0)
    monkeypatch.setattr(outage_store, "LOOK_S", 0.0)
    storage, alone = MemoryEngine(), worker_of(path)
    assert admitted(alone, 2) == 2
    locked = sqlite3.connect(path, isolation_level=None)
    locked.execute("BEGIN IMMEDIATE")
    for count in (2, 1):
        assert admitted(alone, count) == count
        with pytest.raises(StorageUnavailable):
            alone.hand_back(Away(), within_s=9)
    locked.execute("COMMIT")
    locked.close()
    assert not alone.is_handed_back  # it returns to the file
    assert worker_of(path).hand_back(storage, within_s=9)
    assert left(storage) == 5


def test_a_call_may_be_settled_by_the_successor(path: Path) -> None:
    """From the settlement that its worker has left on disk. What it spent is charged once."""
    storage, hold = MemoryEngine(), Hold(7, LEASE)
    first = worker_of(path, storage)
    (verdict,) = first.admit([Charge(DOLLARS, "usd", 500)], hold=hold).verdicts
    first.settle([Change.renew(verdict, hold, 30)])
    second = worker_of(path, storage)
    assert second.settle([Change.settle(verdict, hold, 120)]) == 1
    assert second.hand_back(storage, within_s=9)
    assert first.hand_back(storage, within_s=9)
    assert left(storage, DOLLARS, "usd") == DOLLARS.amount - 120


def test_members_take_turns_in_all_workers(path: Path) -> None:
    """Of two slots, both of one member, the next is another's, though both have a call in line that
    came later."""
    words: dict[str, Any] = {"unit": "calls", "wait": 60_000_000, "fair": True}
    limit = Limit(2, 1_000_000, "concurrency", **words)
    first, second = worker_of(path), worker_of(path)
    calls = {
        number: (Charge(limit.of_member(name), "slots"), Hold(number, LEASE))
        for number, name in enumerate("aaab", 1)
    }
    for number, (charge, hold) in calls.items():
        placed = hold._replace(waited_us=0)
        assert first.admit([charge], hold=placed).admitted == (number <= 2)

    def begins(*numbers: int) -> list[bool]:
        return [
            second.admit([charge], hold=hold._replace(waited_us=1)).admitted
            for charge, hold in map(calls.__getitem__, numbers)
        ]

    def over(number: int) -> None:
        charge, hold = calls[number]
        assert first.settle([Change(charge, hold, "settle", (hold.id, 0))])

    assert begins(3, 4) == [False, False]
    over(1)
    assert begins(3, 4) == [False, True]
    over(2)
    assert begins(3) == [True]


def test_what_is_on_its_way_is_sent_by_the_successor(path: Path) -> None:
    """A worker dies after the storage was charged, and before it has noted so."""

    class Dies(MemoryEngine):
        def settle(self, *words: Any, **more: Any) -> int:
            super().settle(*words, **more)
            raise SystemExit

    storage = Dies()
    first = worker_of(path, storage)
    assert admitted(first, 4) == 4
    with pytest.raises(SystemExit):
        first.hand_back(storage, within_s=9)
    assert not worker_of(path).is_handed_back

    class Serves(MemoryEngine):
        def settle(self, *words: Any, **more: Any) -> int:
            return MemoryEngine.settle(storage, *words, **more)

    assert worker_of(path).hand_back(Serves(), within_s=9)
    assert left(storage) == 6
    assert first.is_handed_back


def test_two_workers_that_hand_back_at_once_charge_once(path: Path) -> None:
    """Both send what was decided, under the same marker."""
    storage, both = MemoryEngine(), threading.Barrier(2)
    admitted(worker_of(path), 4)

    class Slow(MemoryEngine):
        def settle(self, *words: Any, **more: Any) -> int:
            both.wait(9)
            return storage.settle(*words, **more)

    workers = [worker_of(path) for _ in range(2)]
    hand_back_at_once(workers, Slow())
    assert left(storage) == 6
    assert all(worker.is_handed_back for worker in workers)


def test_what_no_longer_matters_is_not_sent(path: Path) -> None:
    """Its window was over before the next worker came."""
    limit = Limit(10, 60_000_000)
    now_us = DAY
    worker, storage = worker_of(path), MemoryEngine()
    worker.admit([Charge(limit, "ada", 4)], now_us=now_us)
    assert worker.hand_back(storage, within_s=9)
    assert left(storage, limit) == 10


# -- what workers knew before ------------------------------------------------------------------


class Known:
    """A worker that has asked the storage before."""

    def __init__(self, path: Path, storage: MemoryEngine) -> None:
        self.breaker = Breaker(storage)  # type: ignore[arg-type]
        self.outage = self.breaker.outage = worker_of(path, storage)

    def before(self, charge: Charge) -> None:
        self.breaker.admit([charge])


@pytest.mark.parametrize("strategy", RATES)
def test_what_one_worker_knows_is_known_to_all(path: Path, strategy: str) -> None:
    """A caller on one connection has met only this one; the others, and those that follow, give it
    no more than it has left."""
    storage, limit = MemoryEngine(), Limit(300, DAY, strategy)
    knows, other = Known(path, storage), Known(path, storage)
    knows.before(Charge(limit, "ada", 280))
    knows.before(Charge(limit, "bob", 300))
    knows.outage.publish()
    assert admitted(other.outage, 30, [Charge(limit, "ada")]) == 20
    assert admitted(worker_of(path), 30, [Charge(limit, "bob")]) == 0
    assert other.outage.hand_back(storage, within_s=9)
    assert left(storage, limit) == 0


def test_an_answer_from_before_the_hand_back_does_not_undo_it(path: Path) -> None:
    """The other worker has it from before the first outage, and is first asked in the second. What
    was admitted in the first is not in it."""
    storage, charge = MemoryEngine(), CHARGE[0]
    first, other = Known(path, storage), Known(path, storage)
    first.before(charge)
    other.before(charge._replace(cost=0))
    assert admitted(first.outage, 3) == 3
    assert first.outage.hand_back(storage, within_s=9)
    assert left(storage) == 6
    assert admitted(other.outage, 9) == 6


def test_who_stops_leaves_what_it_knows_and_has_decided(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """To the others of its host if the storage is down, else to the storage; alone it can only say
    that it is lost."""
    storage, limit = MemoryEngine(), Limit(300, DAY)
    knows, decides = Known(path, storage), worker_of(path, storage)
    knows.before(Charge(limit, "ada", 280))
    knows.outage.leave(storage, is_down=True)
    assert admitted(decides, 30, [Charge(limit, "ada")]) == 20
    decides.leave(storage, is_down=True)
    assert not knows.outage.is_handed_back
    decides.leave(storage, is_down=False)
    assert knows.outage.is_handed_back
    assert left(storage, limit) == 0
    assert not caplog.records
    alone = OutageEngine(storage, lambda _: "local", Workers())
    assert admitted(alone, 3) == 3
    alone.leave(storage, is_down=True)
    assert "are lost because the process is exiting" in caplog.text


@pytest.mark.parametrize("is_late", [False, True])
def test_the_latest_verdict_counts(path: Path, is_late: bool) -> None:
    """Whichever worker had it, also if the other has decided by then."""
    storage, limit = MemoryEngine(), Limit(300, DAY)
    early, late = Known(path, storage), Known(path, storage)
    early.before(Charge(limit, "ada", 100))
    late.before(Charge(limit, "ada", 150))
    first, second = (late, early) if is_late else (early, late)
    assert admitted(first.outage, 10, [Charge(limit, "ada")]) == 10
    assert left(second.outage, limit) == 40
    assert second.outage.hand_back(storage, within_s=9)
    assert left(storage, limit) == 40


@pytest.mark.parametrize("strategy", RATES)
def test_all_workers_have_one_clock(path: Path, strategy: str, monkeypatch: Any) -> None:
    """If the machine's is set in an outage, a worker that starts then gives nothing more."""
    charges = [Charge(Limit(10, DAY // 24, strategy), "ada")]
    assert admitted(worker_of(path), 12, charges) == 10
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 7200)
    assert admitted(worker_of(path), 1, charges) == 0


# -- the file ------------------------------------------------------------------------------------


def test_the_file_is_private(path: Path) -> None:
    """It has the names of callers."""
    admitted(worker_of(path), 1)
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert {each.stat().st_mode & 0o777 for each in path.parent.iterdir()} == {0o600}


def test_there_is_none_before_an_outage(path: Path) -> None:
    """While the storage decides, nothing is written."""
    worker = worker_of(path)
    assert worker.is_handed_back
    assert not path.parent.exists()


def test_each_storage_and_boot_has_its_own(tmp_path: Path, monkeypatch: Any) -> None:
    """A reboot would make instants of the old one wrong; its file goes after a day."""
    paths = {outage_path(tmp_path, "redis://host"), outage_path(tmp_path, "redis://other")}
    (tmp_path / "boot").write_text("another")
    monkeypatch.setattr(outage_store, "_BOOT_ID", tmp_path / "boot")
    old = outage_path(tmp_path, "redis://host")
    monkeypatch.setattr(outage_store, "_BOOT_ID", tmp_path / "no such file")
    new = outage_path(tmp_path, "redis://host")
    assert len(paths | {old, new}) == 4
    old.touch()
    admitted(worker_of(new), 1)
    assert old.exists()
    os.utime(old, (0, 0))
    admitted(worker_of(new), 1)
    assert not old.exists()
    assert new.exists()


@pytest.mark.parametrize("damage", [b"no database", b"\xff" * 100_000])
def test_a_damaged_file_is_begun_anew(
    path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """By one worker; the others take the new one."""
    path.parent.mkdir()
    path.write_bytes(damage)
    first, second = worker_of(path), worker_of(path)
    assert (admitted(first, 4), admitted(second, 9)) == (4, 6)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "is recreated" in caplog.text


def test_a_file_that_is_damaged_again_is_used_no_more(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A disk that damages it would cost each decision a new file. The worker decides alone."""
    path.parent.mkdir()
    path.write_bytes(b"no database")
    worker = worker_of(path)
    assert admitted(worker, 4) == 4
    with sqlite3.connect(path) as database:
        database.execute("UPDATE buckets SET state = 'damage'")
    database.close()
    assert admitted(worker, 4) == 4
    assert (worker._store.path, "is recreated" in caplog.text) == (None, True)
    assert len([record for record in caplog.records if "is recreated" in record.message]) == 1


def test_a_file_that_another_worker_has_begun_anew_stays(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Both had opened the damaged one. The second finds the damage later, in what it still has
    open, and goes on with the new file."""
    first, second = worker_of(path), worker_of(path)
    assert admitted(first, 1) + admitted(second, 1) == 2
    with sqlite3.connect(path) as database:
        database.execute("UPDATE buckets SET state = 'damage'")
    database.close()
    assert (admitted(first, 4), admitted(second, 9)) == (4, 6)
    assert len([record for record in caplog.records if "is recreated" in record.message]) == 1


def test_a_file_is_opened_by_one_worker_at_a_time(path: Path, monkeypatch: Any) -> None:
    """Another one that finds damage may be about to remove it."""
    tried: list[int] = []

    def remove_old(*_: object) -> None:
        tried.append(os.open(path.parent, os.O_RDONLY))
        with pytest.raises(BlockingIOError):
            fcntl.flock(tried[0], fcntl.LOCK_EX | fcntl.LOCK_NB)

    monkeypatch.setattr(OutageStore, "_remove_old", remove_old)
    assert admitted(worker_of(path), 1) == 1
    fcntl.flock(tried[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(tried[0])


@pytest.mark.parametrize("place", ["state", "changed"])
def test_nothing_that_is_read_runs(
    path: Path, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A state is bytes that the scripts read, and other values are plain; anything else is
    damage."""
    admitted(worker_of(path), 4)

    class Code:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(path.with_name("ran")),)

    with sqlite3.connect(path) as database:
        database.execute(f"UPDATE buckets SET {place} = ?", [pickle.dumps(Code())])  # noqa: S608
    database.close()
    worker = worker_of(path)
    assert worker.hand_back(MemoryEngine(), within_s=9)
    assert admitted(worker, 12) == 10
    damage = {"state": "not the state of a bucket", "changed": "a value is unreadable"}
    assert damage[place] in caplog.text
    assert not path.with_name("ran").exists()


@pytest.mark.parametrize("what", ["no directory", "read-only"])
def test_without_a_file_a_worker_decides_alone(
    path: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It has its own share then, and says so once."""
    if what == "no directory":
        path.parent.write_text("a file")
    workers = [worker_of(path), worker_of(path)]
    if what == "read-only":
        for worker in workers:
            assert worker.is_handed_back
            worker._store.run(lambda: None)
            worker._store._all("PRAGMA query_only = 1")
    assert [admitted(worker, 9) for worker in workers] == [5, 5]
    assert len(caplog.records) == 2
    assert "is not shared with other workers" in caplog.text
    storage = MemoryEngine()
    assert all(worker.hand_back(storage, within_s=9) for worker in workers)
    assert left(storage) == 0


def test_no_bucket_that_matters_is_forgotten_below_the_bound(path: Path, monkeypatch: Any) -> None:
    """However often all of them are read for those that are over."""
    monkeypatch.setattr(outage_store, "SWEEP_EVERY", 3)
    worker = worker_of(path)
    assert admitted(worker, 12) == 10
    assert admitted(worker, 12, [Charge(CHARGE[0].limit, "bob")]) == 10
    assert admitted(worker, 12) == 0


@pytest.mark.parametrize("bound", ["MOST_BUCKETS", "MOST_ALONE"])
def test_it_is_bounded(path: Path, monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    """The oldest buckets are forgotten: of a file, and of a worker without one, in its memory."""
    monkeypatch.setattr(outage_store, bound, 100)
    worker, limit = worker_of(path), Limit(2, DAY, unit="tokens")
    if bound == "MOST_ALONE":
        worker._store.path = None
    for number in range(2 * SWEEP_EVERY):
        worker.admit([Charge(limit, f"identity {number}")], hold=Hold(number + 1, LEASE))
    names = worker._store.run(lambda: worker._store.named("identity"))
    assert len(names) == 101
    assert f"identity {2 * SWEEP_EVERY - 1}" in names


def test_a_forked_child_has_a_connection_of_its_own(path: Path) -> None:
    """The parent goes on with its own."""
    worker = worker_of(path)
    assert admitted(worker, 2) == 2
    child = os.fork()
    if not child:
        worker.forget()
        os._exit(admitted(worker, 3))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert admitted(worker, 9) == 5


def test_many_processes_take_the_amount_and_no_more(path: Path) -> None:
    """All at once, from a file that does not exist before."""
    code = (
        "import sys; from pathlib import Path; from tests.engine.test_outage_store import *\n"
        "worker = worker_of(Path(sys.argv[1]))\n"
        "print(admitted(worker, 60, [Charge(Limit(100, DAY, 'sliding-window'), 'ada')]))"
    )
    command = [sys.executable, "-c", code, str(path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    counts = [int(process.communicate(timeout=60)[0]) for process in processes]
    assert sum(counts) == 100


def test_a_dropped_bucket_leaves_no_row(path: Path) -> None:
    """While nothing of it is to be handed back."""
    storage = MemoryEngine()
    worker = worker_of(path, storage)
    assert admitted(worker, 1) == 1
    assert worker.hand_back(storage, within_s=10)
    store = worker._store
    assert store.run(lambda: store.named("")) == ["ada"]
    store.run(lambda: store.drop(["ada"]))
    assert store.run(lambda: store.named("")) == []


def test_a_transaction_holds_up_no_other_engine(path: Path) -> None:
    """Another worker may have the file for seconds: the limits in memory do not wait for it."""
    call = threading.Thread(target=MemoryEngine().admit, args=(CHARGE,))

    def decide() -> bool:
        call.start()
        call.join(60)
        return call.is_alive()

    assert not worker_of(path)._store.run(decide)
