"""Many slow streams at once: how many are served, how soon they begin, and what they cost."""

from __future__ import annotations

import selectors
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.gateway import CHATAPP, LITELLM, SDK, Target, requests, targets
from benchmarks.harness import Figure, Plot, Result, Row, Session
from benchmarks.load import SILENCE_S, Connection, cpu_s, descendants, get
from benchmarks.mock_upstream import DELAY_MS, PER_S

#: Clients come within this time, in seconds.
RAMP_S = 1.0
PROBE_S = 0.1
#: The status of an answer that did not come, or not to its end.
LOST = 0
CPU, FIRST = "CPU ms per stream and s", "first byte p99 ms"


@dataclass
class Streams:
    """What became of the streams: seconds to the first byte, and refusals by status."""

    first_bytes: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    refused_s: list[float] = field(default_factory=list)
    health_s: list[float] = field(default_factory=list)
    cpu_s: float = 0.0
    memory_mb: float = 0.0

    def row(self, name: str, streams: int, seconds: float) -> Row:
        served = self.statuses[200]
        return {
            "gateway": name,
            "streams": streams,
            "served": served,
            "refused": sum(self.statuses.values()) - served - self.statuses[LOST],
            "lost": self.statuses[LOST],
            "first byte p50 ms": _ms(self.first_bytes, 0.5),
            FIRST: _ms(self.first_bytes, 0.99),
            "refusal p99 ms": _ms(self.refused_s, 0.99),
            "health p99 ms": _ms(self.health_s, 0.99),
            CPU: 1e3 * self.cpu_s / (served * seconds) if served else None,
            "MB": self.memory_mb,
        }


def run(session: Session) -> Result:
    scale = session.scale
    rows: list[Row] = []
    lines: dict[str, dict[int, float]] = {}
    rounds: dict[str, dict[str, list[float]]] = {CPU: {}, FIRST: {}}
    with targets(session, paced=True) as (running, key):
        for name in [name for name in (SDK, CHATAPP, LITELLM) if name in running]:
            for streams in scale.streams:
                found = load(running[name], key, streams, scale.stream_s)
                row = found.row(name, streams, scale.stream_s)
                rows.append(row)
                lines.setdefault(name, {})[streams] = float(row[FIRST] or 0)
                for quantity, values in rounds.items():
                    values[f"{name} | {streams}"] = [float(row[quantity] or 0)]
    own = [row for row in rows if row["gateway"] == CHATAPP]
    good = [row for row in own if row["served"] == row["streams"] and _is_prompt(row)]
    most = max((int(row["streams"] or 0) for row in good), default=0)
    return Result(
        title="Slow streams at once",
        notes=(
            f"Each answer begins after {DELAY_MS} ms, which are part of the first byte's, and has "
            f"{PER_S} tokens a second for {scale.stream_s:g} s; each prompt is another. The "
            f"clients come within {RAMP_S:g} s. gunicorn with gunicorn.conf.py and 2 workers. "
            "Client, gateway, provider and storage share the machine. CPU is that of the gateway's "
            "processes, memory the sum of their peaks. An answer that is cut off, or silent for "
            f"{SILENCE_S:.0f} s, is lost."
        ),
        rows=rows,
        figures=[
            Figure(
                "chatapp: streams at once, first byte p99 ≤ 1 s, health p99 ≤ 0.5 s",
                most,
                "at least",
                1000,
            )
        ],
        plot=Plot("First byte, 99th percentile", "ms", lines=lines, x="streams"),
        rounds=rounds,
    )


def _is_prompt(row: Row) -> bool:
    first, health = row[FIRST], row["health p99 ms"]
    return (
        isinstance(first, float) and first <= 1000 and isinstance(health, float) and health <= 500
    )


def _ms(times: list[float], part: float) -> float | None:
    """That percentile in milliseconds; None without times."""
    return sorted(times)[int(len(times) * part)] * 1e3 if times else None


def load(target: Target, key: str, streams: int, seconds: float) -> Streams:
    """Send so many requests for a stream, and read all answers to their end."""
    found = Streams()
    calls = requests(key, stream=True, max_completion_tokens=int(seconds * PER_S))
    processes = descendants(target.process)
    before = sum(map(cpu_s, processes))
    with probing(target.port, found.health_s), selectors.DefaultSelector() as selector:
        begin, sent = time.perf_counter(), 0
        while sent < streams or selector.get_map():
            due = min(streams, int((time.perf_counter() - begin) / RAMP_S * streams) + 1)
            while sent < due:
                sent += 1
                try:
                    connection = Connection(target.port)
                    connection.send(next(calls))
                except OSError:
                    found.statuses[LOST] += 1
                else:
                    selector.register(connection.socket, selectors.EVENT_READ, connection)
            ready = selector.select(0.01 if sent < streams else SILENCE_S)
            if not ready and sent == streams:
                found.statuses[LOST] += len(selector.get_map())
                for each in list(selector.get_map().values()):
                    selector.unregister(each.fileobj)
                    each.data.socket.close()
            for each, _ in ready:
                note(found, each.data, selector)
    found.cpu_s = sum(map(cpu_s, processes)) - before
    found.memory_mb = sum(map(peak_mb, processes))
    return found


def note(found: Streams, connection: Connection, selector: selectors.BaseSelector) -> None:
    """Take what has arrived."""
    try:
        if not connection.receive():
            return
    except ConnectionError:
        found.statuses[LOST] += 1
    else:
        found.statuses[connection.status] += 1
        took_s = (connection.first_byte_at or time.perf_counter()) - connection.sent_at
        (found.first_bytes if connection.status == 200 else found.refused_s).append(took_s)
    selector.unregister(connection.socket)
    connection.socket.close()


@contextmanager
def probing(port: int, times: list[float]) -> Iterator[None]:
    """Ask for the server's health all the time, and keep what each answer took."""
    is_over = threading.Event()

    def probe() -> None:
        while not is_over.wait(PROBE_S):
            begin = time.perf_counter()
            with suppress(OSError):  # it counts as long as it took
                get(port, "/healthz")
            times.append(time.perf_counter() - begin)

    thread = threading.Thread(target=probe)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def peak_mb(process: int) -> float:
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024
