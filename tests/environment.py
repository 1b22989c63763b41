"""A new environment of Python, with packages of the index."""

import subprocess
import venv
from pathlib import Path


def environment(tmp_path: Path, *packages: object) -> Path:
    """Return the folder of its commands, which has ``python``."""
    venv.create(tmp_path / "venv", with_pip=True, symlinks=True)
    commands = tmp_path / "venv" / "bin"
    install = [commands / "python", "-m", "pip", "install", "--quiet", *map(str, packages)]
    subprocess.run(install, check=True, timeout=900)
    return commands
