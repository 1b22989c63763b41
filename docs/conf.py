"""The site of the documents: `python -m sphinx -W -c docs . build/site`.

The sources are the repository's own, so that a link leads to the same page on a code host and on
the site. docs/README.md is the table of contents: a page that it does not name fails the build.
"""

from __future__ import annotations

import gc
import re
import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

gc.disable()  # the documents stay until they are written: searching them is half of a build's time
ROOT = Path(__file__).resolve().parents[1]
INDEX = "docs/README"
sys.path.insert(0, str(ROOT))

project = "ratelimit_ext and chatapp"
project_copyright = "its authors, under the MIT licence"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_click"]
root_doc = "README"
include_patterns = ["*.md", "docs/**.md", "docs/**.rst", "benchmarks/README.md", ".github/C*.md"]
exclude_patterns = [".[!g]*", ".git", "build", "chatapp", "instance", "ratelimit_ext", "tests"]

html_theme = "furo"
html_title = project
html_copy_source = False
html_show_sphinx = False
smartquotes = False  # `--json` is an option
html_search_scorer = str(ROOT / "docs" / "site" / "scorer.js")
pygments_dark_style = "github-dark"  # the theme's own underlines modules as if they were links
# The files of these folders: a style for wide tables, and the address `/`.
html_static_path = ["site/static"]
html_css_files = ["tables.css"]
html_extra_path = ["site/root"]

myst_heading_anchors = 4  # as a code host makes them
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
maximum_signature_line_length = 80
# Highlighting guesses at outputs, diffs and files that no lexer reads whole.
suppress_warnings = ["misc.highlighting_failure"]


def contents() -> str:
    """Return the table of contents: docs/README.md's links, under its headings."""
    trees = []
    for part in (ROOT / f"{INDEX}.md").read_text().split("\n## ")[1:]:
        caption, _, text = part.partition("\n")
        targets = re.findall(r"\]\(([\w./-]+)\.(?:md|rst)\)", text)
        pages = [(ROOT / "docs" / each).resolve().relative_to(ROOT).as_posix() for each in targets]
        trees.append(f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(pages))
    return "".join(f"\n{tree}\n```\n" for tree in [f"```{{toctree}}\n:hidden:\n\n{INDEX}", *trees])


def add_contents(app: Sphinx, page: str, source: list[str]) -> None:
    """Add the table of contents to the first page of the site, and the list of decisions."""
    if page == root_doc:
        app.env.note_dependency(f"{INDEX}.md")
        source[0] += contents()
    elif page == "docs/decisions/README":
        source[0] += "\n```{toctree}\n:glob:\n\n0*\n```\n"


def skips_field(*event: Any) -> bool | None:
    """Leave out the fields of named tuples, which the signature lists."""
    return True if (event[3].__doc__ or "").startswith("Alias for field number") else None


def readable_signature(*event: Any) -> tuple[str, str] | None:
    """Write defaults as Python does: Sphinx shows a signature that it cannot parse as raw text."""
    if not event[5]:
        return None
    signature = re.sub(r"<f(?:actory|unction).*?>+", "...", event[5])
    return re.sub(r"<(?:class ')?([\w.|]+)[^>]*>", r"\1", signature), event[6]


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", add_contents)
    app.connect("autodoc-skip-member", skips_field)
    app.connect("autodoc-process-signature", readable_signature)
