"""A providers file of a running gunicorn: keys and upstreams change at a HUP."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chatapp.upstream_server import FIRST, SECOND, UpstreamServer
from tests.e2e.command import run
from tests.gunicorn_master import Master, gunicorn
from tests.servers import eventually

FILE = """
version = 1
[upstreams.acme]
protocol = "openai"
base_url = "{url}/v1"
keys = ["file:{key}", "env:ACME_KEY_2"]
patterns = ["acme-*"]
price = "free"
"""
CHECK = ("flask", "--app", "wsgi", "chat", "providers", "check")


@pytest.fixture
def file(provider: UpstreamServer, tmp_path: Path) -> Path:
    """A valid file whose first key is in the file `key` beside it."""
    file, key = tmp_path / "upstreams.toml", tmp_path / "key"
    key.write_text(FIRST)
    file.write_text(FILE.format(url=provider.url, key=key))
    return file


@pytest.fixture
def master(file: Path, tmp_path: Path) -> Iterator[Master]:
    with gunicorn("wsgi:app", tmp_path, CHATAPP_PROVIDERS_FILE=str(file)) as master:
        eventually(lambda: len(master.workers()) == 2)
        eventually(lambda: master.log.count("Booting worker") == 2 and asked(master) == 200)
        yield master
    assert "secret-of" not in master.log


def asked(master: Master, model: str = "acme-1") -> int:
    body = {"message": "ping", "model": model}
    return master.request("/chat", body).status


@pytest.mark.slow
def test_a_reload_with_a_mistake_keeps_the_last_valid_file(
    master: Master, file: Path, provider: UpstreamServer
) -> None:
    """The mistake is logged with its line; a corrected file takes effect at the next reload, with
    its keys."""
    valid = file.read_text()
    assert set(provider.keys()) == {FIRST}
    file.write_text(valid.replace('"free"', '"fre"'))
    master.reload()
    assert f"{file}:8: upstreams.acme.price is a string; write" in master.log
    assert "The providers file is invalid; the last valid one stays in use." in master.log
    assert asked(master) == 200
    (file.parent / "key").write_text(SECOND)
    file.write_text(valid.replace('["acme-*"]', '["acme-*", "new-*"]'))
    master.reload()
    provider.calls.clear()
    assert asked(master, "new-1") == 200
    assert provider.keys() == [SECOND]


@pytest.mark.parametrize("way", ["argument", "variable"])
def test_a_file_is_checked_before_it_is_used(file: Path, tmp_path: Path, way: str) -> None:
    """`chat providers check`: 0 with the upstreams and the keys that are missing here, or 1 and
    every mistake with its line."""
    words = [str(file)] if way == "argument" else []
    variables = {"CHATAPP_DEFAULT_MODEL": "acme/acme-1"}
    if not words:
        variables["CHATAPP_PROVIDERS_FILE"] = str(file)
    valid = run(tmp_path, *CHECK, *words, **variables)
    assert (valid.returncode, valid.stderr) == (0, "")
    assert valid.stdout == f"{file} is valid: acme (2 keys, ACME_KEY_2 is missing).\n"
    file.write_text(file.read_text().replace("price", "prize").replace("base_url", "base_ulr"))
    checked = run(tmp_path, *CHECK, *words, **variables)
    assert (checked.returncode, checked.stdout) == (1, "")
    assert checked.stderr.count(f"{file}:") == 2
