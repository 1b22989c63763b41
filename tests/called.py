"""Which functions of Python a block calls."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType, FrameType, ModuleType


@contextmanager
def called(*packages: ModuleType) -> Iterator[list[CodeType]]:
    """The code of each call of this thread within the block, in order; with packages, theirs."""
    codes: list[CodeType] = []
    folders = tuple(f"{each.__path__[0]}/" for each in packages) or ""

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(folders):
            codes.append(frame.f_code)

    before = sys.getprofile()
    gc.disable()  # it would end what other tests have left, such as a stream, within the block
    sys.setprofile(note)
    try:
        yield codes
    finally:
        sys.setprofile(before)
        gc.enable()
