"""Memory that is free again, given back to the system."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable


def release_free_memory() -> None:
    """Have the C library give back what it keeps of freed memory.

    An update's temporaries have other sizes every time. The GNU C library keeps what fits none of them, which grows with the
    number of updates. Elsewhere (macOS, Windows, musl) there is nothing to ask for, and nothing is done.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim
