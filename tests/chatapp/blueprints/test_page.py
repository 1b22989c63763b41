"""GET /: the page as the server sends it. tests/e2e/page uses it in a browser."""

import hashlib
import re
from pathlib import Path

import pytest
from flask.testing import FlaskClient

import chatapp
from chatapp.accounts.store import Accounts
from chatapp.database.connection import Database
from tests.chatapp.conftest import AppMaker

STATIC = Path(chatapp.__file__).parent / "static"


@pytest.mark.parametrize("path", ["/", "/reference"])
def test_a_page_runs_only_its_own_scripts(client: FlaskClient, path: str) -> None:
    """The policy forbids foreign and inline scripts, and the page needs none."""
    response = client.get(path)
    assert response.status_code == 200
    policy = response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    html = response.text
    assert not re.search(r"<script(?![^>]*\bsrc=)", html), "an inline script"
    assert not re.search(r"\son\w+=|\sstyle=|<style", html), "an inline handler or style"
    links = re.findall(r'(?:src|href)="([^"]+)"', html)
    assert links
    for link in links:
        assert link.startswith("/static/") or link in {"/reference", "openapi.json"}
        assert client.get(link).status_code == 200


def test_every_module_is_asked_for_at_once(client: FlaskClient) -> None:
    """Those that the page imports, at any depth; on a slow network each level is a round trip."""
    named = set(re.findall(r'modulepreload" href="/static/([^"]+)"', client.get("/").text))
    sources = [(STATIC / name).read_text() for name in {"chat.js", *named} if "vendor" not in name]
    imported = re.findall(r'^import (?:.* from )?"\./([^"]+)"', "\n".join(sources), re.MULTILINE)
    assert named == set(imported)


def test_the_page_names_the_model_that_answers(client: FlaskClient) -> None:
    """The offline model is shown before the first message."""
    assert "<strong>offline</strong>" in client.get("/").text


def test_the_script_never_makes_markup_of_text(client: FlaskClient) -> None:
    """A reply becomes HTML in one place, where DOMPurify has made a tree of it."""
    scripts = sorted(STATIC.glob("*.js"))
    assert scripts
    for script in scripts:
        source = client.get(f"/static/{script.name}").text
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|srcdoc", source
        )
        assert source.count("DOMPurify.sanitize(") == (script.name == "markdown.js")


def test_vendored_files_are_unchanged_and_licensed() -> None:
    """Each has its version, its licence and the digest of the project's own file."""
    rows = (STATIC / "vendor" / "README.md").read_text().splitlines()
    for file in sorted((STATIC / "vendor").iterdir()):
        if file.suffix in {".LICENSE", ".md"}:
            continue
        [row] = [row for row in rows if f"`{file.name}`" in row]
        assert hashlib.sha256(file.read_bytes()).hexdigest() in row
        [licence] = re.findall(r"`([\w.-]+\.LICENSE)`", row)
        assert (STATIC / "vendor" / licence).stat().st_size > 1000
        [version] = re.findall(r"\| (\d+\.\d+(?:\.\d+)?) \|", row)
        source = file.read_text(errors="replace")
        assert file.suffix == ".woff2" or version in source[:300] + source[-2000:]


def test_the_page_asks_for_a_user_id_or_a_key(make_app: AppMaker, database_url: str) -> None:
    """A user id while accounts are off, a key once they are on; never both."""
    html = make_app().test_client().get("/").text
    assert ('id="user-id"' in html, 'id="api-key"' in html) == (True, False)
    Accounts(Database(database_url)).create_key("alice", plan=None, default_plan="starter")
    html = make_app().test_client().get("/").text
    assert ('id="user-id"' in html, 'id="api-key"' in html) == (False, True)
    assert re.search(r'<input id="api-key" type="password"', html)
