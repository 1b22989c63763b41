"""A client per process, shared by its threads and never by a forked child."""

import os
import subprocess
import sys
import threading
from pathlib import Path

from chatapp.per_process import PerProcess

ROOT = Path(__file__).resolve().parents[3]


def test_many_threads_share_one_client() -> None:
    """Threads that ask at the same time get the same client."""
    made: list[object] = []
    start = threading.Barrier(16)

    def create() -> object:
        made.append(object())
        return made[-1]

    client: PerProcess[object] = PerProcess(create)
    seen: list[object] = []

    def ask() -> None:
        start.wait()
        seen.append(client.get())

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert seen == made * 16


def test_a_forked_child_makes_its_own_client() -> None:
    """A child never uses its parent's sockets."""
    client: PerProcess[object] = PerProcess(object)
    ours = client.get()
    child = os.fork()
    if child == 0:
        os._exit(0 if client.get() is not ours else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert client.get() is ours


def test_each_process_closes_what_it_made() -> None:
    """At its end, once; a child does not close what its parent made."""
    program = """
import os
from chatapp.per_process import PerProcess
made = PerProcess(os.getpid, close=lambda pid: print(pid == os.getpid(), flush=True))
PerProcess(os.getpid, close=lambda _: print("never made"))
made.get()
if os.fork() == 0:
    exit()
os.wait()
if os.fork() == 0:
    made.get()
    exit()
os.wait()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.split() == ["True", "True"]
