"""How far a reader goes: the files of one decision, and the arrows between the files of `web`.

Both grow by one helper or one import at a time, which no other check sees. A commit that needs
more raises the number here, and says why. How many functions a call takes is counted beside what
takes them: tests/web/test_extension.py and tests/chatapp/web/test_current_request.py.
"""

import ast
from pathlib import Path

from flask import Flask

import ratelimit_ext
from ratelimit_ext import Limiter
from tests.called import called

ROOT = Path(__file__).resolve().parents[2]
#: Of one decision in memory, steady, with headers. There were 18, and 13 with algorithms in Python:
#: now memory, too, writes the words of a script (arguments.py). With Redis, there are three more.
MOST_FILES = 14
#: There were 121, in a package of as many files.
MOST_ARROWS = 82


def test_a_decision_touches_few_files() -> None:
    """A reader follows a request through them."""
    app = Flask("example")
    limiter = Limiter(lambda: "ada", app=app, storage_uri="memory://", headers_enabled=True)

    @app.get("/")
    @limiter.limit("500/minute")
    @limiter.limit("700/hour")
    def view() -> str:
        return "ok"

    client = app.test_client()
    client.get("/")  # compiles the route
    with called(ratelimit_ext) as codes:
        assert client.get("/").headers["X-RateLimit-Remaining"] == "498"
    files = {Path(code.co_filename).relative_to(ROOT).as_posix() for code in codes}
    assert 0 < len(files) <= MOST_FILES, sorted(files)


def test_the_files_of_web_know_few_others() -> None:
    """Each arrow is a file that imports another of the package."""
    package = ROOT / "ratelimit_ext" / "web"
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for path in package.rglob("*.py")
    }
    arrows = {
        (module, found)
        for module, path in modules.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
        for found in (node.module or "", *(f"{node.module}.{name.name}" for name in node.names))
        if found in modules
    }
    assert 0 < len(arrows) <= MOST_ARROWS, len(arrows)
