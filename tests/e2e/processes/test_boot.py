"""gunicorn when workers cannot boot, and when it is reloaded often: those that serve stay."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.command import run
from tests.gunicorn_master import ROOT, Master, gunicorn
from tests.servers import alive, eventually

COUNTER = (ROOT / "tests" / "e2e" / "apps" / "counter.py").read_text()
WORKERS = 2
BROKEN = 'raise RuntimeError("the schema is newer")\n'
CONFIG = f"""
import runpy
ours = runpy.run_path("{ROOT / "gunicorn.conf.py"}")
globals().update({{name: value for name, value in ours.items() if not name.startswith("_")}})
"""


@pytest.fixture
def module(tmp_path: Path) -> Path:
    """The application, as a file that a test may change."""
    file = tmp_path / "changing.py"
    file.write_text(COUNTER)
    return file


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """gunicorn's settings, as a file that a test may change."""
    file = tmp_path / "settings.py"
    file.write_text(CONFIG)
    return file


@pytest.fixture
def master(module: Path, config: Path, tmp_path: Path) -> Iterator[Master]:
    options = {"PYTHONPATH": str(module.parent), "GUNICORN_CMD_ARGS": f"--config {config}"}
    with gunicorn("changing:app", tmp_path, **options) as master:
        eventually(lambda: master.log.count("Worker is ready") == WORKERS)
        yield master


def version(master: Master) -> int:
    answer = master.request("/")
    assert answer.status == 200, master.log
    return answer.body["version"]


def failures(master: Master) -> int:
    """How often a worker could not start, as the log says it."""
    return master.log.count("A worker cannot start: RuntimeError: the schema is newer")


def test_a_worker_that_cannot_boot_is_tried_again(master: Master, module: Path) -> None:
    """The others serve meanwhile, and the log names the reason each time."""
    module.write_text(BROKEN)
    dead, other = master.workers()
    os.kill(dead, signal.SIGKILL)
    eventually(lambda: failures(master) >= 2)
    assert version(master) == 1
    assert master.workers() == [other]
    module.write_text(COUNTER)
    eventually(lambda: len(master.workers()) == 2 and master.log.count("Worker is ready") == 3)
    assert other in master.workers()


def test_a_reload_to_code_that_cannot_boot_keeps_the_old_workers(
    master: Master, module: Path
) -> None:
    """They serve with the old code until new ones can, without another HUP."""
    old = set(master.workers())
    module.write_text(BROKEN)
    master.signal(signal.SIGHUP)
    eventually(lambda: failures(master) >= 2)
    assert version(master) == 1
    assert old <= set(master.workers())
    module.write_text(COUNTER.replace("VERSION = 1", "VERSION = 2"))
    eventually(lambda: not any(map(alive, old)))
    assert version(master) == 2


def test_a_corrected_reload_does_not_wait(master: Master, module: Path) -> None:
    """A HUP starts workers at once, also if the ones of the last could not start."""
    module.write_text(BROKEN)
    master.signal(signal.SIGHUP)
    eventually(lambda: failures(master) >= 3)
    module.write_text(COUNTER.replace("VERSION = 1", "VERSION = 2"))
    tried = failures(master)
    master.signal(signal.SIGHUP)
    eventually(lambda: "Reloaded: the new workers serve." in master.log)
    assert failures(master) <= tried + WORKERS  # those that had read the mistake before
    # An old worker may take one more call before it sees its signal.
    eventually(lambda: version(master) == 2)


@pytest.mark.parametrize("text", ["workers = 1 +\n", "raise SystemExit(7)\n"])
def test_a_reload_with_invalid_settings_changes_nothing(
    master: Master, config: Path, text: str
) -> None:
    """gunicorn itself would end."""
    config.write_text(text)
    old = master.workers()
    master.signal(signal.SIGHUP)
    eventually(lambda: "Nothing was reloaded" in master.log)
    assert version(master) == 1
    assert master.workers() == old
    config.write_text(CONFIG)
    master.signal(signal.SIGHUP)
    eventually(lambda: not any(map(alive, old)))
    eventually(master.is_serving)


def test_a_failing_hook_does_not_end_the_master(master: Master, config: Path) -> None:
    """A version whose settings do not fit the running master leaves its workers alone."""
    config.write_text(f"{CONFIG}\ndef pre_fork(server, worker):\n    raise KeyError('of a hook')\n")
    old = master.workers()
    master.signal(signal.SIGHUP)
    eventually(lambda: "of a hook" in master.log)
    assert version(master) == 1
    assert master.workers() == old
    config.write_text(CONFIG)
    eventually(lambda: master.log.count("KeyError: 'of a hook'") > 1)
    master.signal(signal.SIGHUP)
    eventually(lambda: not any(map(alive, old)))


@pytest.mark.slow
def test_a_corrected_reload_does_not_wait_for_workers_that_hang(
    master: Master, module: Path, config: Path
) -> None:
    """Which gunicorn kills after two minutes."""
    config.write_text(f"{CONFIG}\nmaster.LONGEST_START_S = 1.0\n")
    old = set(master.workers())
    module.write_text(f"{COUNTER}\nimport time\ntime.sleep(600)\n")
    master.signal(signal.SIGHUP)
    eventually(lambda: len(master.workers()) == 4)
    hanging = set(master.workers()) - old
    module.write_text(COUNTER.replace("VERSION = 1", "VERSION = 2"))
    master.signal(signal.SIGHUP)
    eventually(lambda: "Reloaded: the new workers serve." in master.log)
    # An old worker may take one more call before it sees its signal.
    eventually(lambda: version(master) == 2)
    eventually(lambda: not any(map(alive, old | hanging)))


@pytest.mark.slow
def test_reloads_are_joined(master: Master, module: Path) -> None:
    """HUPs during a reload wait for its end together; the last one counts."""
    for number in range(2, 7):
        module.write_text(COUNTER.replace("VERSION = 1", f"VERSION = {number}"))
        seen = master.log.count("Handling signal: hup")
        master.signal(signal.SIGHUP)
        eventually(lambda seen=seen: master.log.count("Handling signal: hup") > seen)
    eventually(lambda: {version(master) for _ in range(8)} == {6})
    assert master.log.count("Booting worker") < 2 + 5 * 2


def test_a_stop_comes_before_reloads(master: Master) -> None:
    """A TERM with HUPs ahead of it starts no worker."""
    os.kill(master.pid, signal.SIGSTOP)
    for number in (signal.SIGHUP, signal.SIGTERM):
        master.signal(number)
    os.kill(master.pid, signal.SIGCONT)
    assert master.process.wait(60) == 0
    assert master.log.count("Booting worker") == 2


def test_a_first_start_that_fails_ends(tmp_path: Path) -> None:
    """Nothing serves that could stay: the status and the reason are for the supervisor."""
    (tmp_path / "broken.py").write_text(BROKEN)
    ended = run(tmp_path, "gunicorn", "broken:app", PYTHONPATH=str(tmp_path), WEB_CONCURRENCY="2")
    assert ended.returncode == 3
    assert "Reason: RuntimeError: the schema is newer" in ended.stderr
