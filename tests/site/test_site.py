"""The site of the documents: built strictly, with every public name and every command."""

from __future__ import annotations

import re
import subprocess
import sys
import zlib
from pathlib import Path

import click
import pytest

import ratelimit_ext
from chatapp.cli.chat import chat
from ratelimit_ext.cli import ratelimit

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
#: README's command that builds the site: its options and its source.
COMMAND = re.compile(
    r"^<!-- site command -->\n```sh\n.* -m sphinx (-W .*) build/site$", re.MULTILINE
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site by README's command, without a warning: no page is left out, no link of it leads
    nowhere."""
    target = tmp_path_factory.mktemp("site")
    [options] = COMMAND.findall((ROOT / "README.md").read_text())
    ours = f"-q --keep-going -d {target}/.cache"
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *f"{ours} {options} {target}".split()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return target


def command_paths(command: click.Command, path: str) -> list[str]:
    """The whole names of a command and those below it."""
    below = command.commands.items() if isinstance(command, click.Group) else ()
    return [path, *(each for name, one in below for each in command_paths(one, f"{path} {name}"))]


def test_the_reference_has_every_public_name(site: Path) -> None:
    """Each of ``ratelimit_ext.__all__`` has an entry to link to and to search for."""
    inventory = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    entries = {line.split()[0] for line in zlib.decompress(inventory).decode().splitlines()}
    assert not [name for name in ratelimit_ext.__all__ if f"ratelimit_ext.{name}" not in entries]


def test_the_reference_has_every_command(site: Path) -> None:
    """Each command of an operator has a heading of its own."""
    page = (site / "docs" / "reference" / "commands.html").read_text()
    paths = command_paths(ratelimit, "flask ratelimit") + command_paths(chat, "flask chat")
    assert len(paths) > 40
    assert not [path for path in paths if f'href="#{path.replace(" ", "-")}"' not in page]


def test_the_reference_reads_as_python(site: Path) -> None:
    """No signature shows the generator's markup, and no field a text that says nothing."""
    pages = (site / "docs" / "reference").glob("*.html")
    raw = re.compile(r"~\w+\.|&lt;factory&gt;|Alias for field number")
    assert not [page.name for page in pages if raw.search(page.read_text())]
