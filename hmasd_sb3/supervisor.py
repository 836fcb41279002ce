"""Runs a training in a process of its own and starts it again from its last checkpoint when it breaks down."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from hmasd_sb3.running.errors import NEVER_RESTARTED, SIGNAL_BASE

LONGEST_PAUSE = 60.0
"""Seconds."""
IDLE_RESTARTS = 3
"""So many restarts in a row without a new checkpoint end it."""
ORPHAN_SECONDS = 30.0
"""How long a training whose supervisor is gone may take to save a checkpoint."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_TICK = 0.1


class Supervisor:
    """Keeps a training alive, as a context manager that listens for SIGINT and SIGTERM and hands them on.

    :param command: called before every start; returns the command to run
    :param newest: the newest good checkpoint, by which progress is judged
    :param max_restarts: how often the training may be started again
    :param pause: waits so many seconds; for tests
    :param stdout: file descriptor that the training prints to; None: this process' own
    """

    def __init__(
        self,
        command: Callable[[], Sequence[str]],
        newest: Callable[[], Path | None],
        max_restarts: int,
        pause: Callable[[float], None] | None = None,
        stdout: int | None = None,
    ) -> None:
        self.command = command
        self.newest = newest
        self.max_restarts = max_restarts
        self.stopped_by: signal.Signals | None = None
        """The first signal that came."""
        self._pause = pause or self._wait
        self._stdout = stdout
        self._child: subprocess.Popen[bytes] | None = None
        self._to_hand_on = 0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Supervisor:
        self._previous = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._child is not None and self._child.poll() is None:  # an error of the supervisor's own
            self._child.kill()
            self._child.wait()

    def run(self) -> int:
        """Run the training to its end.

        :return: the exit code of the last process, or 128 and the signal's number if one asked for the end
        """
        restarts, failures, idle = 0, 0, 0
        while True:
            before = step_of(self.newest())
            code = self._run_once()
            if self.stopped_by is not None and code not in NEVER_RESTARTED:
                return SIGNAL_BASE + self.stopped_by
            if code in NEVER_RESTARTED:
                return SIGNAL_BASE + self.stopped_by if self.stopped_by is not None and code >= SIGNAL_BASE else code
            checkpoint = self.newest()
            advanced = step_of(checkpoint) > before
            failures = 1 if advanced else failures + 1
            idle = 0 if advanced or restarts == 0 else idle + 1
            what = f"The training {describe_end(code)}"
            if restarts == self.max_restarts:
                return self._give_up(code, f"{what}. It was started again {restarts} times, as often as allowed.")
            if idle == IDLE_RESTARTS:
                return self._give_up(code, f"{what}. {IDLE_RESTARTS} restarts in a row brought no new checkpoint: giving up.")
            restarts += 1
            seconds = min(LONGEST_PAUSE, 2.0 ** (failures - 1))
            origin = "the beginning, as there is no checkpoint yet" if checkpoint is None else str(checkpoint)
            _say(f"{what}. Restart {restarts} of {self.max_restarts} in {seconds:g} s, from {origin}.")
            self._pause(seconds)
            if self.stopped_by is not None:
                return SIGNAL_BASE + self.stopped_by

    def _run_once(self) -> int:
        # A session of its own keeps Ctrl-C from reaching the training twice: by the terminal and by this process. Its
        # input is a pipe that nothing is ever written to: it closes when this process ends, however that comes about.
        self._child = subprocess.Popen(
            list(self.command()), stdin=subprocess.PIPE, stdout=self._stdout, start_new_session=True
        )
        try:
            while True:
                while self._to_hand_on:
                    self._to_hand_on -= 1
                    # Python itself answers SIGINT with a traceback while it is still importing; SIGTERM just ends it.
                    self._child.send_signal(signal.SIGTERM)
                try:
                    return self._child.wait(timeout=_TICK)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            assert self._child.stdin is not None
            if self._child.poll() is not None:
                self._child.stdin.close()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.stopped_by is None:
            self.stopped_by = signal.Signals(number)
        self._to_hand_on += 1

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self.stopped_by is None and time.monotonic() < end:
            time.sleep(min(_TICK, seconds))

    def _give_up(self, code: int, text: str) -> int:
        _say(text)
        return code if code >= 0 else SIGNAL_BASE - code


def step_of(checkpoint: Path | None) -> int:
    """The environment step in the name of a checkpoint, ``checkpoint_<step>.zip``; -1 if there is none."""
    found = None if checkpoint is None else re.match(r"checkpoint_(\d+)\.", checkpoint.name)
    return int(found[1]) if found else -1


def describe_end(code: int) -> str:
    """What an exit code says, such as "was killed by SIGKILL"."""
    if code in (SIGNAL_BASE + signal.SIGINT, SIGNAL_BASE + signal.SIGTERM):
        return f"was stopped by {signal.Signals(code - SIGNAL_BASE).name}"
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = " (by hand, or by the system because memory ran out)" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"


def end_with_supervisor() -> None:
    """In the training's process: ask it to stop, with a checkpoint, when its supervisor is gone; end it if it does not."""
    threading.Thread(target=_watch_input, daemon=True).start()


def _watch_input() -> None:
    while os.read(sys.__stdin__.fileno() if sys.__stdin__ is not None else 0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(ORPHAN_SECONDS)
    os._exit(SIGNAL_BASE + signal.SIGTERM)


def _say(text: str) -> None:
    print(f"Supervisor: {text}", file=sys.stderr, flush=True)
