"""Run benchmarks and write their results: `python -m benchmarks all --quick`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from contextlib import chdir
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import against, report
from benchmarks.harness import SCALES, Session, document, save
from benchmarks.servers import ROOT, storage

NAMES = (
    *("request_cost", "throughput", "hot_key", "server_time", "memory", "gateway", "streams"),
    "sizing",
)
#: Gateways of others, each installed apart.
GATEWAYS = {"litellm": "LiteLLM proxy", "portkey": "Portkey gateway"}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="+", choices=["all", *NAMES], metavar="NAME")
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument(
        "--quick", action="store_const", const="quick", dest="scale", help="under 10 minutes"
    )
    parser.add_argument(
        "--server", default="valkey", help="valkey (default), or a server's command or path"
    )
    parser.add_argument(
        "--pinned", action="store_true", help="client, application and storage on one CPU"
    )
    for name, title in GATEWAYS.items():
        parser.add_argument(f"--{name}", metavar="COMMAND", help=f"also measure this {title}")
    parser.add_argument(
        "--against", metavar="REVISION", help="measure in turns with it, and write no results"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "benchmarks")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends the servers, too
    for name in [name for name in os.environ if name.startswith("RATELIMIT_")]:
        del os.environ[name]
    if options.pinned:  # what is started inherits it
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    names, output = NAMES if "all" in options.names else options.names, options.output.resolve()
    gateways = {name: command for name in GATEWAYS if (command := getattr(options, name))}
    if options.against:
        ours = ["--scale", options.scale, "--server", options.server]
        ours += [f"--{name}={command}" for name, command in gateways.items()]
        ours += ["--pinned"] if options.pinned else []
        for name in names:
            print(
                f"## {name}", against.compare(name, options.against, ours), sep="\n\n", flush=True
            )
        return
    for name in names:
        began = time.monotonic()
        # Applications without a file have their instance path in the working directory.
        with (
            storage(options.server) as (uri, client),
            TemporaryDirectory() as folder,
            chdir(folder),
        ):
            session = Session(SCALES[options.scale], uri, client, Path(folder), gateways)
            result = import_module(f"benchmarks.{name}").run(session)
            found = document(name, result, session, pinned=options.pinned)
        path = save(output, found)
        path.with_suffix(".svg").write_text(report.svg(result.plot))
        print(report.section(found), report.table(report.figures(found)), sep="\n\n")
        print(f"\n{time.monotonic() - began:.0f} s, {path}\n", flush=True)
    (output / "README.md").write_text(report.page(output, NAMES))


if __name__ == "__main__":
    main()
