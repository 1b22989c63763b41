"""docs/gateway/tutorial.md: every step of it, in order, in a copy of the project.

- A block `sh` runs in one shell, and prints the block `text` after it; without one, nothing.
- A block `diff FILE` changes the file.
- The items of a list are done in the browser, which then shows what the picture after them shows.

Any other form of a step fails. TUTORIAL_SCREENSHOTS=1 takes new pictures.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.docs.commands import comparable
from tests.e2e.page.conftest import Opener
from tests.e2e.page.test_layout import violations
from tests.gunicorn_master import OURS, ROOT
from tests.servers import eventually, free_port

DOCUMENT = ROOT / "docs" / "gateway" / "tutorial.md"
FOLDER = DOCUMENT.with_suffix("")
#: What runs.
PROJECT = ("chatapp", "ratelimit_ext", "gunicorn.conf.py", "wsgi.py")
#: Texts on the page of each picture, in the document's order.
PICTURES = {
    "denials": ("Most denied identities", "30 per 1 minute", "10 used", "4 more like this"),
    "shadow": ("plan: 6/day", "100 per 1 day is enforced", "21.4 %", "bob 3"),
    "simulation": ("instance/policy.toml: 42 admitted, 8,648 denied", "runaway", "$86.49"),
    "user": ("12 of 20 requests", "60 %", "plan: 20/day until"),
}
#: A little more than the width at which a document is shown.
WIDTH = 1100
HEIGHT = 780
#: Where the last part ends that fits.
BOTTOM = """
    Math.max(...[...document.querySelectorAll("main > *")]
    .map(part => part.getBoundingClientRect().bottom).filter(bottom => bottom < innerHeight))
"""
ALL_BYTES = 600_000
STEP = re.compile(
    r"^```(?P<info>[^\n]*)\n(?P<text>(?s:.*?))^```$"
    r"|^(?:\d+\.|[-*]) (?P<item>.*)$"
    r"|^!\[[^\]]+\]\(tutorial/(?P<picture>\w+)\.png\)$",
    re.MULTILINE,
)
#: Steps in any other form.
UNKNOWN = re.compile(r"```|~~~|!\[|<img|^ {4}|^\t|^ *\d+[.)] ", re.MULTILINE)


class Shell:
    """A bash that runs one block after the other."""

    def __init__(self, directory: Path, **variables: str) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
        self.directory = directory
        self.port = free_port()
        self._process = subprocess.Popen(
            ["/usr/bin/env", "bash"],
            cwd=directory,
            env={**clean, "PORT": str(self.port), **variables},
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, block: str) -> str:
        """What the block prints. A block that fails, fails the test."""
        output, status = (self.directory.with_name(name) for name in ("output", "status"))
        status.unlink(missing_ok=True)
        assert self._process.stdin is not None
        self._process.stdin.write(f"{{\n{block}}} </dev/null >{output} 2>&1\necho $? >{status}\n")
        self._process.stdin.flush()
        eventually(lambda: status.exists() and status.read_text(), within_s=120)
        assert status.read_text() == "0\n", f"{block}\n{output.read_text()}"
        return output.read_text()

    def close(self) -> None:
        """End it and what it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        self._process.communicate()


class Browser:
    """What the reader does and sees in a browser."""

    def __init__(self, open_page: Opener, directory: Path) -> None:
        self._open_page = open_page
        self._directory = directory
        self._pages: dict[str, Page] = {}

    def do(self, item: str) -> None:
        """An item of a list."""
        if found := re.fullmatch(r"Open <(http://[^/>]+)(/[^>]*)>", item):
            self._open(found[1], found[2])
        elif found := re.fullmatch(r"Open `([\w./]+)`", item):
            self._open((self._directory / found[1]).as_uri(), "")
        elif found := re.fullmatch(r"Enter `([^`]+)` in \*\*([^*]+)\*\*", item):
            self.page.get_by_label(found[2], exact=True).fill(found[1])
        elif found := re.fullmatch(r"Click \*\*([^*]+)\*\*", item):
            link = self.page.get_by_role("link", name=found[1], exact=True)
            self.page.get_by_role("button", name=found[1], exact=True).or_(link).click()
        else:
            pytest.fail(f"Not a step in the browser: {item}")

    def _open(self, site: str, path: str) -> None:
        """Each site has a tab, which keeps the session."""
        if site not in self._pages:
            size = {"width": WIDTH, "height": HEIGHT}
            self._pages[site] = self._open_page(site, viewport=size, color_scheme="light")
        self.page = self._pages[site]
        self.page.goto(site + path)

    def see(self, picture: str) -> None:
        """Workers write every two seconds: the page is loaded again until it has all texts."""
        for each in PICTURES[picture]:
            for _ in range(6):
                with contextlib.suppress(AssertionError):
                    expect(self.page.locator("body")).to_contain_text(each, timeout=1000)
                    break
                self.page.reload()
            expect(self.page.locator("body")).to_contain_text(each)
        assert violations(self.page) == []
        file = FOLDER / f"{picture}.png"
        if os.environ.get("TUTORIAL_SCREENSHOTS") == "1":
            file.parent.mkdir(exist_ok=True)
            height = self.page.evaluate(BOTTOM) + 15
            clip = {"x": 0, "y": 0, "width": WIDTH, "height": height}
            self.page.screenshot(path=file, clip=clip)
        assert file.exists()


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """In a copy of the project, with the environment that the README's command makes."""
    directory = tmp_path / "clone"
    directory.mkdir()
    for name in PROJECT:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, directory / name)
    (directory / ".venv").symlink_to(sys.prefix)
    # A pause of a busy machine is no outage.
    shell = Shell(directory, RATELIMIT_DEADLINE_SECONDS="5")
    yield shell
    shell.close()


def change(file: Path, diff: str) -> None:
    """Apply a block `diff`: its context and what it removes are found once."""
    lines = diff.splitlines(keepends=True)
    assert all(line[0] in " +-" for line in lines), diff
    before, after = ("".join(line[1:] for line in lines if line[0] != sign) for sign in "+-")
    text = file.read_text()
    assert text.count(before) == 1, diff
    file.write_text(text.replace(before, after))


def test_every_step_is_one_that_runs() -> None:
    """There is no other form of a block, a list or a picture, and no output without its command."""
    text = DOCUMENT.read_text()
    assert UNKNOWN.findall(STEP.sub("", text)) == []
    steps = list(STEP.finditer(text))
    languages = [None if step["info"] is None else step["info"].split(" ")[0] for step in steps]
    assert set(languages) == {"sh", "text", "diff", None}
    assert {before for before, each in pairwise(languages) if each == "text"} == {"sh"}
    assert [step["picture"] for step in steps if step["picture"]] == list(PICTURES)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="needs the program `curl` on PATH")
def test_the_tutorial_runs(shell: Shell, open_page: Opener) -> None:
    """From the first step to the last, each shows what the document says."""
    browser = Browser(open_page, shell.directory)
    steps = list(STEP.finditer(DOCUMENT.read_text().replace(":8000", f":{shell.port}")))
    for step, after in pairwise([*steps, None]):
        language, _, file = (step["info"] or "").partition(" ")
        if language == "sh":
            output = after["text"] if after is not None and after["info"] == "text" else ""
            assert comparable(shell.run(step["text"])) == comparable(output)
        elif language == "diff":
            change(shell.directory / file, step["text"])
        elif step["item"]:
            browser.do(step["item"])
        elif step["picture"]:
            browser.see(step["picture"])


def test_its_pictures_are_small() -> None:
    """Each has the width of the document, and the folder has no others."""
    files = sorted(FOLDER.iterdir())
    assert [file.name for file in files] == sorted(f"{name}.png" for name in PICTURES)
    raw = [file.read_bytes() for file in files]
    assert [int.from_bytes(each[16:20]) for each in raw] == [WIDTH] * len(PICTURES)
    assert sum(map(len, raw)) < ALL_BYTES
