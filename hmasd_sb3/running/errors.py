"""What can be wrong with a command before anything is started, and what a run's end is called."""

from __future__ import annotations

DONE = 0
FAILED = 1
WRONG_INPUT = 2
NON_FINITE = 3
BROKE_DOWN = 4
SIGNAL_BASE = 128
"""Added to a signal's number, as shells do: 130 for SIGINT, 143 for SIGTERM."""

NEVER_RESTARTED = (DONE, WRONG_INPUT, 130, 143)
"""Exit codes after which a new attempt would be pointless or unwanted."""


class InputError(ValueError):
    """A command or a file it names is wrong; nothing was started. The text is one line that says what to change."""
