"""What others have made: licences of dependencies, and files of the pages that come from elsewhere.

`python -m tests.architecture.test_supply_chain` writes the list of licences, with a question mark
for one that no metadata states. Look it up then.
"""

from __future__ import annotations

import hashlib
import re
from importlib import metadata
from pathlib import Path

from tests.architecture.test_lock import locked

ROOT = Path(__file__).resolve().parents[2]
LIST = ROOT / ".ci" / "licences.txt"
COPIES = ROOT / "chatapp" / "static" / "vendor"
#: Those that let anyone use, change and pass on, with the notice; by the SPDX's names.
ALLOWED = {"Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "MIT", "MIT-0", "PSF-2.0"}
#: What older metadata has in place of a name of the SPDX.
WORDS = {
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "MIT License": "MIT",
    "MIT OR Apache-2.0": "MIT OR Apache-2.0",
    "MIT style": "MIT",
}


def deployed() -> set[str]:
    """The libraries of the lock, those of other systems included."""
    return {pin.name for pin, _ in locked(".ci/requirements.lock")}


def stated(name: str) -> str | None:
    """The licence by the metadata of the installed library; None if it is not installed."""
    try:
        found = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return None
    if expression := found.get("License-Expression"):
        return str(expression)
    classifiers = [str(each) for each in found.get_all("Classifier", [])]
    words = [each.rpartition(" :: ")[2] for each in classifiers if each.startswith("License")]
    for word in (str(found.get("License") or "").strip(), *words):
        if word in WORDS:
            return WORDS[word]
    return "?"


def listed() -> dict[str, str]:
    rows = (line.split(maxsplit=1) for line in LIST.read_text().splitlines())
    return {name: licence.strip() for name, licence in rows}


def test_every_library_has_a_known_licence() -> None:
    """The list has each library of the lock, with a licence that allows what an MIT one does."""
    rows = listed()
    assert rows.keys() == deployed(), "python -m tests.architecture.test_supply_chain"
    for name, licence in rows.items():
        assert {*re.split(r" AND | OR ", licence)} <= ALLOWED, (name, licence)
        assert stated(name) in (licence, None), name


def test_files_of_others_are_unchanged() -> None:
    """Each is in the table beside it, with its project, version and licence, and has the SHA-256
    that the table states."""
    table = (COPIES / "README.md").read_text()
    row = re.compile(r"^\| `(\S+)` \| <https://.+?\| (\S+) \| (.+?) \| (\w+) \|$", re.MULTILINE)
    rows = row.findall(table)
    files = {each.name for each in COPIES.iterdir()} - {"README.md"}
    assert {name for name, *_ in rows} == {name for name in files if not name.endswith(".LICENSE")}
    for name, version, licence, digest in rows:
        assert re.fullmatch(r"[\d.]+", version), name
        assert hashlib.sha256((COPIES / name).read_bytes()).hexdigest() == digest, name
        [text] = re.findall(r"`(\S+\.LICENSE)`", licence)
        assert (COPIES / text).stat().st_size > 200, text


if __name__ == "__main__":
    known = listed() if LIST.exists() else {}
    found = {name: stated(name) or known.get(name, "?") for name in sorted(deployed())}
    LIST.write_text("".join(f"{name:<24}{licence}\n" for name, licence in found.items()))
