"""`chatapp`: the gateway, installed, by one command. `chatapp --help` says how.

What it keeps is in `$XDG_DATA_HOME/chatapp`, where a server and the commands find it alike, unless
a setting such as CHATAPP_DATABASE_URL names another place.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

#: Where what it keeps is, by the setting: the names are those in instance/ of a checkout.
PLACES: Final = {
    "RATELIMIT_EMBEDDED_DIR": "ratelimit",
    "RATELIMIT_SETTLEMENTS_DIR": "settlements",
    "GUNICORN_VALID_FILES": "valid-files",
}
HELP: Final = """\
chatapp                    Serve on 127.0.0.1:8000. What follows `serve` are options of gunicorn:
chatapp serve --workers 4  GUNICORN_HOST, PORT and other settings are environment variables.
chatapp chat --help        Manage users, keys, plans and alerts; report usage.
chatapp ratelimit --help   Manage limits: who was denied and why, blocks, checks of a policy.

It keeps accounts, the ledger and the embedded storage in {home}.
"""


def main() -> None:
    """Become gunicorn or flask, with the files that are installed beside this one."""
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    home = Path(data, "chatapp").absolute()
    words = sys.argv[1:] or ["serve"]
    if words[0] in {"-h", "--help", "help"}:
        sys.stdout.write(HELP.format(home=home))
        return
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    for setting, place in PLACES.items():
        os.environ.setdefault(setting, str(home / place))
    if not os.environ.get("DATABASE_URL"):
        os.environ.setdefault("CHATAPP_DATABASE_URL", f"sqlite:///{home / 'chatapp.db'}")
    conf = Path(__file__).with_name("gunicorn.conf.py")
    served = ["gunicorn", "--config", str(conf), *words[1:], "chatapp.wsgi:app"]
    command = served if words[0] == "serve" else ["flask", "--app", "chatapp.wsgi", *words]
    os.execv(sys.executable, [sys.executable, "-m", *command])


if __name__ == "__main__":
    main()
