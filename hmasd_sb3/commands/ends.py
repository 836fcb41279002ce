"""How commands end when something is wrong: one line for the person, an exit code for programs."""

from __future__ import annotations

import sys
import traceback
from typing import Any

from hmasd_sb3.running.errors import BROKE_DOWN, FAILED, NON_FINITE


def report(error: Exception) -> int:
    """Say what ended a training, and give the exit code for it."""
    from hmasd_sb3.policies.flat import NonFiniteError
    from hmasd_sb3.running.blame import raised_by_environment
    from hmasd_sb3.validation import InvalidTransitionError
    from hmasd_sb3.wrappers import WorkerError

    if isinstance(error, NonFiniteError | InvalidTransitionError):
        return fail(NON_FINITE, str(error))
    if isinstance(error, WorkerError):
        return fail(BROKE_DOWN, str(error))
    traceback.print_exception(error)
    if raised_by_environment(error):
        return fail(BROKE_DOWN, f"an environment raised {type(error).__name__}: {error}")
    return fail(FAILED, f"{type(error).__name__}: {error}")


def fail(code: int, message: Any) -> int:
    """Print one line of error; returns the code."""
    print(f"Error: {message}", file=sys.stderr, flush=True)
    return code
