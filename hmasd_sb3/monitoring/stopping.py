"""A clean end for a long training: Ctrl-C and SIGTERM become a request that the training loop asks about."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, TypeAlias

from stable_baselines3.common.callbacks import BaseCallback

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_Handler: TypeAlias = Any  # what signal.signal returns and takes: a callable, a constant or None


class StopRequest:
    """
    Listens for SIGINT (Ctrl-C) and SIGTERM while used as a context manager.

    Inside :meth:`deferred` the first signal only sets :attr:`requested`; a second one, and any signal outside, raises
    ``KeyboardInterrupt``. Outside the main thread, where Python allows no signal handlers, it listens for nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self.number: signal.Signals | None = None
        """The first signal that came."""
        self._deferred = False
        self._previous: dict[signal.Signals, _Handler] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """A stretch of code that asks about :attr:`requested` by itself and is not to be torn apart."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # Nothing is printed here: the signal may have interrupted a print, and standard streams are not re-entrant.
        if self.number is None:
            self.number = signal.Signals(number)
        if self._deferred and not self.requested:
            self.requested = True
            return
        raise KeyboardInterrupt


def show_cursor() -> None:
    """A progress bar hides the terminal's cursor and has no chance to show it again when torn out of its loop."""
    if sys.stdout.isatty():
        sys.stdout.write("\x1b[?25h")


class StopRequestCallback(BaseCallback):
    """
    Ends ``learn()`` at the first environment step after a stop was requested.

    :param stop: the request to ask about
    """

    def __init__(self, stop: StopRequest) -> None:
        super().__init__()
        self._stop = stop

    def _on_step(self) -> bool:
        return not self._stop.requested
