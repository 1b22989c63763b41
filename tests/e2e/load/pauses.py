"""For how long processes could not run: a bound in seconds is for what a server does, and not for
what a busy machine leaves undone."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

EVERY_S = 0.01


class Pauses:
    """Within the block, watches this process and these others: whether they are stopped, or wait
    for a processor."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = pids
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)
        #: When each look began and ended, and how long one of the processes did not run meanwhile.
        self._looks: list[tuple[float, float, float]] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def during(self, began: float, ended: float) -> float:
        """The seconds of pauses between these moments, by the monotonic clock."""
        return sum(lost for begin, end, lost in self._looks if begin < ended and end > began)

    def _run(self) -> None:
        last, waited = time.monotonic(), self._waited()
        while not self._end.wait(EVERY_S):
            now, before = time.monotonic(), waited
            waited = self._waited()
            others = [
                now - last if self._is_stopped(pid) else waited[pid] - before[pid]
                for pid in self._pids
            ]
            self._looks.append((last, now, sum(others) + max(0.0, now - last - 2 * EVERY_S)))
            last = now

    def _waited(self) -> dict[int, float]:
        """The seconds for which their main threads have waited for a processor."""
        texts = {pid: Path(f"/proc/{pid}/schedstat").read_text() for pid in self._pids}
        return {pid: int(text.split()[1]) / 1e9 for pid, text in texts.items()}

    def _is_stopped(self, pid: int) -> bool:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
