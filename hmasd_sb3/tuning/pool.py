"""The worker processes of one ``hmasd tune``: started, started again when they die, stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

from hmasd_sb3.running.errors import BROKE_DOWN, DONE, FAILED, WRONG_INPUT
from hmasd_sb3.supervisor import describe_end

STORAGE_VARIABLE = "HMASD_TUNE_STORAGE"
"""The storage's URL goes to workers this way: arguments, in which a password would be, are there for everyone to read."""
IDLE_RESTARTS = 3
"""So many restarts in a row without a trial that ended, and no worker is started again."""
_MODULE = "hmasd_sb3.cli"
_SECONDS_TO_END = 10.0


@dataclass(frozen=True)
class WorkerOptions:
    """What a worker is told; everything else is in the study."""

    study: str
    n_trials: int
    max_failures: int
    first_number: int
    sampler: str
    pruner: str
    n_variations: int
    entropy: list[int]
    n_workers: int | None
    deadline: float | None

    def as_text(self) -> str:
        """For the command line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> WorkerOptions:
        """What :meth:`as_text` wrote."""
        return cls(**json.loads(text))


class Pool:
    """Worker processes, as a context manager that leaves none behind.

    :param storage: for :func:`~hmasd_sb3.tuning.storage.open_storage`
    :param options: of every worker; their entropy gets the number of the process behind it
    :param size: how many at once
    """

    def __init__(self, storage: str, options: WorkerOptions, size: int) -> None:
        self.code: int | None = None
        """Why no worker is started again: an exit code; None as long as there is no reason."""
        self._environment = {**os.environ, STORAGE_VARIABLE: storage, "OMP_NUM_THREADS": "1"}
        self._options = options
        self._started = 0
        self._idle = 0
        self._size = size
        self._children: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Pool:
        self._children = [self._start() for _ in range(self._size)]
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def pids(self) -> list[int]:
        """Of the workers that are at work."""
        return [child.pid for child in self._children]

    def look(self, progress: bool) -> list[str]:
        """See who has ended, and start those again that died.

        :param progress: whether a trial has ended since the last look
        :return: what there is to say
        """
        self._idle = 0 if progress else self._idle
        said: list[str] = []
        for child in list(self._children):
            code = child.poll()
            if code is None:
                continue
            self._forget(child)
            if code == DONE or self.code is not None:
                continue
            if code in (WRONG_INPUT, BROKE_DOWN):
                self.stop(code)
                continue
            self._idle += 1
            what = f"worker {child.pid} {describe_end(code)}"
            if self._idle > IDLE_RESTARTS:
                said.append(f"{what}. {IDLE_RESTARTS} restarts in a row without a trial that ended: giving up.")
                self.stop(FAILED)
            else:
                said.append(f"{what}; another takes its place.")
                self._children.append(self._start())
        return said

    def stop(self, code: int) -> None:
        """Ask all to end; the first reason given stays."""
        self.code = code if self.code is None else self.code
        for child in self._children:
            child.send_signal(signal.SIGTERM)

    def end(self) -> None:
        """End all, at once if they do not within some seconds."""
        for child in self._children:
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
        limit = time.monotonic() + _SECONDS_TO_END
        for child in list(self._children):
            try:
                child.wait(max(limit - time.monotonic(), 0.0))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            self._forget(child)

    def _start(self) -> subprocess.Popen[bytes]:
        options = WorkerOptions(**{**asdict(self._options), "entropy": [*self._options.entropy, self._started]})
        self._started += 1
        command = [sys.executable, "-m", _MODULE, "tune", "--worker", options.as_text()]
        # A session of its own keeps Ctrl-C from reaching workers twice; its input, a pipe, closes when this process ends.
        return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, env=self._environment)

    def _forget(self, child: subprocess.Popen[Any]) -> None:
        assert child.stdin is not None
        child.stdin.close()
        self._children.remove(child)
