"""The table of docs/operate/settings.md, which is made of the settings' own: `python -m
tests.docs.test_settings` writes it."""

from __future__ import annotations

import re
from pathlib import Path

from chatapp.settings import PREFIX, Settings
from ratelimit_ext import SETTINGS

FILE = Path(__file__).resolve().parents[2] / "docs" / "operate" / "settings.md"
HEAD = "| variable | default | meaning |\n| --- | --- | --- |\n"
TABLE = re.compile(rf"(?<=<!-- of the code -->\n){re.escape(HEAD)}(?:\|.*\n)*")


def table() -> str:
    """A row for each setting of chatapp, and for those of the extension that have a meaning."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = field.get_default(call_default_factory=True)
        shown = field.json_schema_extra["shown"] or plain(default)  # type: ignore[call-overload,index]
        rows.append((f"{PREFIX}{name.upper()}", shown, field.description))
    rows += [(name, each.default, each.meaning) for name, each in SETTINGS.items() if each.meaning]
    return HEAD + "".join(f"| `{name}` | {shown} | {meaning} |\n" for name, shown, meaning in rows)


def plain(default: object) -> str:
    """A default as the environment has it."""
    match default:
        case bool():
            return str(default).lower()
        case int() | float():
            return f"{default:g}"
        case tuple():
            return ",".join(map(str, default))
        case dict():
            return "`{}`"
        case _:
            return ""


def test_the_document_has_the_settings_of_the_code() -> None:
    """Adding a setting is one edit, and this script."""
    (found,) = TABLE.findall(FILE.read_text())
    assert found == table()


if __name__ == "__main__":
    FILE.write_text(TABLE.sub(lambda _: table(), FILE.read_text()))
