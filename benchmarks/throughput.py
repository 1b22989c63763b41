"""Requests per second through gunicorn, all allowed and all denied."""

from __future__ import annotations

from functools import partial
from itertools import cycle

from benchmarks.applications import STORAGE
from benchmarks.harness import Figure, Plot, Result, Session, alternate, columns
from benchmarks.load import drive, get_request
from benchmarks.servers import gunicorn, script_calls

CONNECTIONS = 16
CALLERS = 1_000
BARE, SCRIPT, HERE = "bare route", "script view", "ratelimit_ext"
DENIED = "ratelimit_ext, one caller denied"
SHARED = "ratelimit_ext, 1,000 callers denied by one shared limit"
PATHS = {
    BARE: ("/bare", 200),
    SCRIPT: ("/script", 200),
    "Flask-Limiter": ("/flask-limiter", 200),
    HERE: ("/here", 200),
    "Flask-Limiter, one caller denied": ("/flask-limiter-denied", 429),
    DENIED: ("/here-denied", 429),
    SHARED: ("/here-shared", 429),
}
# It runs in a temporary folder, without gunicorn.conf.py.
OPTIONS = "--workers 2 --worker-class gthread --threads 8 --keep-alive 75 --no-control-socket"


def run(session: Session) -> Result:
    environment = {STORAGE: session.uri}
    with gunicorn("all_views", environment, session.folder, *OPTIONS.split()) as (port, _):
        for path, _ in PATHS.values():  # uses up the limits of one a day
            drive(port, requests(path), connections=1, seconds=0)
        contenders = {
            name: partial(measure, session, port, path, status)
            for name, (path, status) in PATHS.items()
        }
        found = alternate(contenders, session.scale.rounds)
    rates, scripts = columns(found, "higher", "lower")
    allowed = "gunicorn, all allowed: requests/s, relative to the script view's"
    denied = "gunicorn, one caller denied: requests/s, relative to a bare route's"
    shared = "1,000 callers denied by one exhausted shared limit: scripts per request"
    return Result(
        title="Requests per second through gunicorn",
        notes=(
            f"2 workers of 8 threads (gthread), {CONNECTIONS} connections; client, workers and "
            "storage share the machine. Three limits with headers."
        ),
        rows=[
            {
                "view": name,
                "requests/s": rates.best(name),
                "median": rates.median(name),
                "of the bare route": rates.ratio(name, BARE)[0],
                "of the script view": rates.ratio(name, SCRIPT)[0],
                "scripts per request": scripts.median(name),
            }
            for name in PATHS
        ],
        figures=[
            rates.figure(allowed, HERE, SCRIPT, "at least", 0.95),
            rates.figure(denied, DENIED, BARE, "at least", 0.85),
            Figure(shared, scripts.median(SHARED), "at most", 0.05),
        ],
        plot=Plot("Requests per second", "requests/s", {name: rates.best(name) for name in PATHS}),
        rounds={"requests/s": rates.values, "scripts per request": scripts.values},
    )


def measure(session: Session, port: int, path: str, status: int) -> tuple[float, float]:
    """Requests per second, and scripts per request."""
    session.client.config_resetstat()
    load = drive(
        port,
        requests(path),
        connections=CONNECTIONS,
        seconds=session.scale.seconds,
        status=status,
        workers=2,
    )
    return load.per_second, script_calls(session.client) / len(load.times)


def requests(path: str) -> cycle[bytes]:
    """The same request, by one thousand callers in turn."""
    return cycle([get_request(path, **{"X-Caller": f"caller-{i}"}) for i in range(CALLERS)])
