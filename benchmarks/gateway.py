"""chatapp over a mock provider, beside a view that calls the provider's official SDK."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import cycle, product
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness import Plot, Result, Row, Session, alternate, columns
from benchmarks.load import drive, get, post_request
from benchmarks.mock_upstream import MODEL, mock_upstream
from benchmarks.servers import ROOT, end, free_port, gunicorn, wait_for

PATH = "/v1/chat/completions"
MODES = ("plain", "streamed")
ROOM = 1_000_000
UPSTREAM, SDK = "upstream alone", "official SDK in a view, no limits"
UNLIMITED, CHATAPP = "chatapp, limits disabled", "chatapp, all limits"
LITELLM = "LiteLLM proxy, no limits, no keys"
BODY = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Say something kind about rate limits, please."}],
    "max_completion_tokens": 100,
}


class Target(NamedTuple):
    port: int
    workers: int  # that share its connections; 1 if it does not tell them apart
    process: int = 0  # of which it and its workers descend; 0 if that is not measured


def run(session: Session) -> Result:
    scale = session.scale
    cells: dict[str, Callable[[], tuple[float, ...]]] = {}
    with targets(session) as (running, key):
        for mode, connections in product(MODES, scale.connections):
            for name, target in running.items():
                cells[cell(name, mode, connections)] = partial(
                    load, target, key, mode, connections, scale.seconds
                )
        found = alternate(cells, scale.rounds)
        names = list(running)
    rates, p50s, p99s, firsts = columns(found, "higher", "lower", "lower", "lower")

    def row(mode: str, connections: int, name: str) -> Row:
        own, upstream, sdk = (cell(each, mode, connections) for each in (name, UPSTREAM, SDK))
        return {
            "gateway": name,
            "answer": mode,
            "connections": connections,
            "requests/s": rates.best(own),
            "of the SDK view": None if name == UPSTREAM else rates.ratio(own, sdk)[0],
            "p50 ms": p50s.best(own),
            "added": p50s.best(own) - p50s.best(upstream),
            "p99 ms": p99s.median(own),
            "first byte ms": firsts.best(own),
            "added first byte": firsts.best(own) - firsts.best(upstream),
        }

    lone, several = scale.connections[:2]
    rate = f"chatapp, {several} connections: requests/s, relative to the SDK view's"
    added = f"chatapp, {lone} connection: p50 added to the upstream's, relative to the SDK view's"
    return Result(
        title="chatapp as a gateway",
        notes=(
            "gunicorn with gunicorn.conf.py, 2 workers, over a mock provider that answers at once. "
            "'Added' is over the upstream at the same number of connections, in ms. Client, "
            "gateway, provider and storage share the machine."
        ),
        rows=[row(*each) for each in product(MODES, scale.connections, names)],
        figures=[
            rates.figure(
                rate,
                cell(CHATAPP, "plain", several),
                cell(SDK, "plain", several),
                "at least",
                0.9,
            ),
            p50s.figure(
                added,
                cell(CHATAPP, "plain", lone),
                cell(SDK, "plain", lone),
                "at most",
                1,
                over=cell(UPSTREAM, "plain", lone),
            ),
        ],
        plot=Plot(
            "Requests per second, plain answers",
            "requests/s",
            lines={
                name: {n: rates.best(cell(name, "plain", n)) for n in scale.connections}
                for name in names
                if name != UPSTREAM
            },
            x="connections",
        ),
        rounds={
            "requests/s": rates.values,
            "p50 ms": p50s.values,
            "first byte ms": firsts.values,
        },
    )


def cell(name: str, mode: str, connections: int) -> str:
    return f"{name} | {mode} | {connections}"


def load(
    target: Target, key: str, mode: str, connections: int, seconds: float
) -> tuple[float, float, float, float]:
    """Requests per second; in ms the median, the 99th percentile and the median first byte."""
    body = {**BODY, "stream": mode == "streamed"}
    request = post_request(PATH, json.dumps(body).encode(), Authorization=f"Bearer {key}")
    found = drive(
        target.port,
        cycle([request]),
        connections=connections,
        seconds=seconds,
        workers=min(target.workers, connections),
    )
    times = sorted(found.times)
    return (
        found.per_second,
        statistics.median(times) * 1e3,
        times[int(len(times) * 0.99)] * 1e3,
        statistics.median(found.first_bytes) * 1e3,
    )


# -- what runs -------------------------------------------------------------------------------------


@contextmanager
def targets(session: Session, *, paced: bool = False) -> Iterator[tuple[dict[str, Target], str]]:
    """The running gateways by name, and chatapp's API key. ``paced``: streams are slow."""
    with ExitStack() as stack:
        upstream = stack.enter_context(mock_upstream(paced=paced))
        base_url = f"http://127.0.0.1:{upstream}/v1"
        environment = chatapp_environment(session, base_url)
        key = new_key(environment, session.folder)
        applications = {
            SDK: ("sdk_gateway", environment),
            UNLIMITED: ("chatapp_gateway", {**environment, "RATELIMIT_ENABLED": "false"}),
            CHATAPP: ("chatapp_gateway", environment),
        }
        running = {UPSTREAM: Target(upstream, 1)}
        for name, (application, variables) in applications.items():
            server = gunicorn(
                application, variables, session.folder, "--config", str(ROOT / "gunicorn.conf.py")
            )
            port, process = stack.enter_context(server)
            running[name] = Target(port, 2, process)
        if session.litellm:
            server = litellm(session.litellm, base_url, session.folder)
            port, process = stack.enter_context(server)
            running[LITELLM] = Target(port, 1, process)
        else:
            session.skipped.append(f"{LITELLM}: give its command with --litellm")
        yield running, key


def chatapp_environment(session: Session, base_url: str) -> dict[str, str]:
    policy = session.folder / "policy.toml"
    policy.write_text(roomy((ROOT / "chatapp" / "policy.toml").read_text()))
    return {
        "OPENAI_API_KEY": "sk-mock",
        "OPENAI_BASE_URL": base_url,
        "RATELIMIT_STORAGE_URI": session.uri,
        "RATELIMIT_POLICY_FILE": str(policy),
        "DATABASE_URL": f"sqlite:///{session.folder / 'chatapp.db'}",
        "WEB_CONCURRENCY": "2",
        "PYTHONPATH": str(ROOT),
    }


def roomy(policy: str) -> str:
    """The same limits with amounts that no benchmark exhausts."""
    return re.sub(r'^(limit = "|burst = )\d+', rf"\g<1>{ROOM}", policy, flags=re.MULTILINE)


def new_key(environment: dict[str, str], folder: Path) -> str:
    """An API key of chatapp; the first one turns accounts on."""
    command = [sys.executable, "-m", "flask", "--app", "wsgi", "chat", "keys", "create"]
    made = subprocess.run(
        [*command, "--user", "benchmark"],
        cwd=folder,
        env={"PATH": os.environ.get("PATH", os.defpath), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if made.returncode != 0:
        raise SystemExit(made.stderr)
    return made.stdout.strip()


@contextmanager
def litellm(command: str, base_url: str, folder: Path) -> Iterator[tuple[int, int]]:
    """LiteLLM's proxy with two workers; it is installed apart, since it needs another `openai`. Its
    port, and the id of its process."""
    port = free_port()
    model = {"model": f"openai/{MODEL}", "api_base": base_url, "api_key": "sk-mock"}
    settings = {
        "model_list": [{"model_name": MODEL, "litellm_params": model}],
        # It takes every key, so that only the gateway is measured.
        "general_settings": {"dangerously_permit_weak_or_unset_master_key": True},
    }
    config = folder / "litellm.yaml"
    config.write_text(json.dumps(settings))  # JSON is YAML
    options = ["--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(
        # Its start takes longer than its supervisor allows a busy machine.
        [command, *options, "--num_workers", "2", "--timeout_worker_healthcheck", "120"],
        cwd=folder,
        env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},  # fetches nothing
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: get(port, "/health/liveliness"), process, "litellm")
        yield port, process.pid
    finally:
        end(process)
