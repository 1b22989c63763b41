"""Tasks that run one at a time, in virtual time.

A task is a greenlet. It runs until it waits, for time or for another task; then the seed chooses
which of those that can run goes on. If none can, the clock is set forward. The same choices make
the same run.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol
from unittest import mock

from greenlet import GreenletExit, getcurrent, greenlet

START_S = 1_800_000_000.0
#: The shortest sleep of a busy machine: who polls takes a step for each.
SHORTEST_S = 0.01
#: A run that takes more steps does not end.
MOST_STEPS = 20_000


class Endless(AssertionError):
    """A run that does not end."""


class Choices:
    """What a seed chooses. The choice at each position is that of the seed, or with ``kept`` 0 at
    all positions that are not kept; 0 is always the calm one. ``made`` has those that were not."""

    def __init__(self, seed: int, kept: frozenset[int] | None = None) -> None:
        self._chance = random.Random(seed)
        self._kept = kept
        self.count = 0
        self.made: list[int] = []

    def choose(self, weights: Sequence[float]) -> int:
        """Return a place in the weights, each of which is a probability; the rest is that of 0."""
        drawn, place = self._chance.random(), 0
        for number, weight in enumerate(weights, 1):
            if drawn < weight:
                place = number
                break
            drawn -= weight
        return self._noted(place)

    def among(self, count: int, *, often: float = 1.0) -> int:
        """Return a number below ``count``; one other than 0 only as often."""
        drawn = self._chance.random()
        place = int(drawn / often * count) if count > 1 and drawn < often else 0
        return self._noted(place)

    def _noted(self, place: int) -> int:
        position = self.count
        self.count += 1
        if self._kept is not None and position not in self._kept:
            return 0
        if place:
            self.made.append(position)
        return place


class Deviations(Choices):
    """The calm choice everywhere, but for some positions. ``widths`` is how many choices there were
    at each."""

    def __init__(self, others: dict[int, int]) -> None:
        super().__init__(0)
        self._others = others
        self.widths: list[int] = []

    def choose(self, weights: Sequence[float]) -> int:
        return self.among(len(weights) + 1)

    def among(self, count: int, *, often: float = 1.0) -> int:
        self.widths.append(count)
        place = self._others.get(len(self.widths) - 1, 0)
        return self._noted(min(place, count - 1))


class Owner(Protocol):
    """A process. Its tasks end with it."""

    is_alive: bool

    def enter(self) -> None:
        """One of its tasks goes on: what is one object for each process is that of this one."""
        ...


class Task:
    def __init__(self, owner: Owner | None, work: Callable[[], object], name: str) -> None:
        self.owner = owner
        self.name = name
        self.work = work
        self.is_over = self.waits = False
        #: How often it has waited: a timer of an earlier wait is over.
        self.turn = 0
        self.greenlet: Any = None


class Scheduler:
    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self.now_s = START_S
        self.steps = 0
        self.errors: list[BaseException] = []
        self.is_over = False
        self._ready: list[Task] = []
        self._timers: list[tuple[float, int, Task, int]] = []
        self._numbers = itertools.count()
        self._tasks: list[Task] = []
        self._current: Task | None = None
        self._main: Any = None
        #: Called before the clock is set forward, with the instant.
        self.before_time: Callable[[float], object] = lambda _: None

    @property
    def owner(self) -> Owner | None:
        return None if self._current is None else self._current.owner

    @property
    def current(self) -> Task | None:
        return self._current

    # -- tasks ---------------------------------------------------------------------------------

    def start(self, work: Callable[[], object], *, owner: Owner | None, name: str) -> Task:
        task = Task(owner, work, name)
        self._tasks.append(task)
        self._ready.append(task)
        return task

    def wait(self, until_s: float = math.inf) -> None:
        """Let the current task wait until :meth:`go_on`, or until that instant."""
        self.check()
        task = self._current
        if task is None:  # outside of tasks nothing waits
            return
        task.turn += 1
        task.waits = True
        if until_s < math.inf:
            heapq.heappush(self._timers, (until_s, next(self._numbers), task, task.turn))
        self._main.switch()

    def check(self) -> None:
        """End a task that would wait after the end of the run."""
        if self.is_over and getcurrent() is not self._main:
            raise GreenletExit

    def go_on(self, task: Task) -> None:
        if task.waits:
            task.waits = False
            self._ready.append(task)

    def sleep(self, seconds: float) -> None:
        self.wait(self.now_s + max(0.0, seconds))

    def pause(self, *, often: float = 0.05) -> None:
        """Other tasks may run here."""
        if self._current is not None and not self.is_over and self.choices.among(2, often=often):
            self.sleep(0.0)

    def run(self, *, until: Callable[[], bool], within_s: float) -> bool:
        """Run tasks until that is so; returns false if it is not in time."""
        ends = self.now_s + within_s
        self._main = getcurrent()
        while not until():
            if self.errors:
                raise self.errors[0]
            if not self._ready and not self._next_time(ends):
                return False
            place = self.choices.among(len(self._ready), often=0.2) if len(self._ready) > 1 else 0
            self._switch(self._ready.pop(place))
        return True

    def _next_time(self, ends: float) -> bool:
        while self._timers:
            at, _, task, turn = self._timers[0]
            if task.turn != turn or not task.waits:
                heapq.heappop(self._timers)
                continue
            if at > ends:
                break
            if at > self.now_s:
                self.before_time(at)
                self.now_s = at
            heapq.heappop(self._timers)
            self.go_on(task)
            return True
        self.now_s = max(self.now_s, ends)
        return False

    def _switch(self, task: Task) -> None:
        if task.is_over or (task.owner is not None and not task.owner.is_alive):
            return
        self.steps += 1
        if self.steps > MOST_STEPS:
            raise Endless(f"it takes more than {MOST_STEPS} steps; at last {task.name}")
        if task.greenlet is None:
            task.greenlet = greenlet(lambda: self._run(task))
        if task.owner is not None:
            task.owner.enter()
        self._current = task
        try:
            task.greenlet.switch()
        finally:
            self._current = None

    def _run(self, task: Task) -> None:
        try:
            task.work()
        except GreenletExit:
            pass
        except BaseException as error:  # noqa: BLE001 - raised by `run`
            self.errors.append(error)
        task.is_over = True

    def end(self) -> None:
        """End all tasks, those of killed processes, too. What they do now has no effect."""
        self.is_over = True
        for task in self._tasks:
            if task.greenlet is not None and not task.is_over:
                task.greenlet.throw(GreenletExit)
        self._tasks.clear()

    # -- what the standard library has ---------------------------------------------------------

    @contextmanager
    def instead_of_time_and_threads(self) -> Iterator[None]:
        """Clocks, sleep, locks and threads that are made in the block are the simulator's."""
        scheduler = self
        replaced = {
            (time, "time"): lambda: scheduler.now_s,
            (time, "monotonic"): lambda: scheduler.now_s,
            (time, "perf_counter"): lambda: scheduler.now_s,
            (time, "sleep"): lambda seconds: scheduler.sleep(seconds and max(SHORTEST_S, seconds)),
            (threading, "Lock"): lambda: Lock(scheduler),
            (threading, "RLock"): lambda: Lock(scheduler, may_repeat=True),
            (threading, "Event"): lambda: Event(scheduler),
            (threading, "Condition"): lambda lock=None: Condition(scheduler, lock),
            (threading, "Thread"): lambda **how: Thread(scheduler, **how),
        }
        with instead_of(replaced):
            yield


@contextmanager
def instead_of(replaced: Mapping[tuple[Any, str], Any]) -> Iterator[None]:
    """Replace functions of modules in the block, for this thread: those that an earlier test has
    left behind go on."""
    here = threading.get_ident()

    def of_thread(new: Callable[..., Any], old: Callable[..., Any]) -> Callable[..., Any]:
        def chosen(*words: Any, **options: Any) -> Any:
            return (new if threading.get_ident() == here else old)(*words, **options)

        return chosen

    with ExitStack() as stack:
        for place, new in replaced.items():
            stack.enter_context(mock.patch.object(*place, of_thread(new, getattr(*place))))
        yield


class Lock:
    """A lock of tasks; ``may_repeat`` of an owner that may take it again."""

    def __init__(self, scheduler: Scheduler, *, may_repeat: bool = False) -> None:
        self._scheduler = scheduler
        self._may_repeat = may_repeat
        self._owner: Task | None = None
        self._depth = 0
        self._waiting: list[Task] = []

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        scheduler, task = self._scheduler, self._scheduler.current
        if scheduler.is_over or (self._depth and self._may_repeat and self._owner is task):
            self._depth += 1
            return True
        if blocking:
            scheduler.pause(often=0.02)
        ends = scheduler.now_s + timeout if timeout >= 0 else math.inf
        while self._depth:
            if not blocking or task is None or scheduler.now_s >= ends:
                return False
            self._waiting.append(task)
            scheduler.wait(ends)
            if task in self._waiting:
                self._waiting.remove(task)
        self._owner, self._depth = task, 1
        return True

    def release(self) -> None:
        self._depth = max(0, self._depth - 1)
        if not self._depth:
            self._owner = None
            if self._waiting and not self._scheduler.is_over:
                self._scheduler.go_on(self._waiting.pop(0))

    def locked(self) -> bool:
        return bool(self._depth)

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class Condition(Lock):
    def __init__(self, scheduler: Scheduler, _: object = None) -> None:
        super().__init__(scheduler, may_repeat=True)
        self._notified: list[Task] = []

    def wait(self, timeout: float | None = None) -> bool:
        scheduler, task, depth = self._scheduler, self._scheduler.current, self._depth
        scheduler.check()
        if task is None:
            return False
        self._notified.append(task)
        self._depth = 1
        self.release()
        scheduler.wait(math.inf if timeout is None else scheduler.now_s + timeout)
        was_notified = task not in self._notified
        if not was_notified:
            self._notified.remove(task)
        self.acquire()
        self._depth = depth
        return was_notified

    def wait_for(self, predicate: Callable[[], bool], timeout: float | None = None) -> bool:
        ends = None if timeout is None else self._scheduler.now_s + timeout
        while not (result := predicate()):
            left = None if ends is None else ends - self._scheduler.now_s
            if (left is not None and left <= 0) or self._scheduler.current is None:
                break
            self.wait(left)
        return result

    def notify(self, count: int = 1) -> None:
        for _ in range(min(count, len(self._notified))):
            self._scheduler.go_on(self._notified.pop(0))

    def notify_all(self) -> None:
        self.notify(len(self._notified))


class Event:
    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._is_set = False
        self._waiting: list[Task] = []

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        while self._waiting:
            self._scheduler.go_on(self._waiting.pop(0))

    def clear(self) -> None:
        self._is_set = False

    def wait(self, timeout: float | None = None) -> bool:
        scheduler, task = self._scheduler, self._scheduler.current
        scheduler.check()
        if not self._is_set and task is not None:
            self._waiting.append(task)
            scheduler.wait(math.inf if timeout is None else scheduler.now_s + max(0.0, timeout))
            if task in self._waiting:
                self._waiting.remove(task)
        return self._is_set


class Thread:
    def __init__(
        self,
        scheduler: Scheduler,
        *,
        target: Callable[..., object],
        args: Sequence[Any] = (),
        name: str = "",
        daemon: bool = True,
    ) -> None:
        self._scheduler = scheduler
        self._work = lambda: target(*args)
        self._task: Task | None = None
        self.name, self.daemon = name, daemon

    def start(self) -> None:
        if self._scheduler.is_over:
            raise RuntimeError("can't start new thread at interpreter shutdown")
        self._task = self._scheduler.start(self._work, owner=self._scheduler.owner, name=self.name)

    def is_alive(self) -> bool:
        return self._task is not None and not self._task.is_over
