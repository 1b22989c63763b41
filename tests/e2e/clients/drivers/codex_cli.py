"""Codex, not interactive, in the current folder."""

from __future__ import annotations

import json
import os
from pathlib import Path

from driver import SCHEMA, Request, command, run

CONFIG = """\
model_provider = "gateway"
check_for_update_on_startup = false

[analytics]
enabled = false

[model_providers.gateway]
name = "gateway"
base_url = "{url}"
env_key = "GATEWAY_KEY"
wire_api = "responses"
"""


def codex(request: Request, *options: str) -> str:
    folder = Path(os.environ["HOME"], ".codex")
    folder.mkdir(exist_ok=True)
    (folder / "config.toml").write_text(CONFIG.format(url=request.upstream_url))
    # Codex's sandbox needs user namespaces, which containers rarely have.
    skip = ("--skip-git-repo-check", "--sandbox", "danger-full-access")
    words = ("codex", "exec", "--model", request.model, *skip, *options, request.prompt)
    return command(*words, GATEWAY_KEY=request.key)


def stream(request: Request) -> str:
    return codex(request)


def tools(request: Request) -> str:
    """It writes a file, reads it, and ends."""
    text = codex(request)
    assert Path("note.txt").read_text() == "7 degrees", text
    return text


def structured(request: Request) -> str:
    Path("schema.json").write_text(json.dumps(SCHEMA))
    return codex(request, "--output-schema", "schema.json")


if __name__ == "__main__":
    run(command("codex", "--version").split()[-1], stream, tools, structured)
