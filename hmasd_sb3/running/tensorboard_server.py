"""A TensorBoard server that lives as long as the process that started it, and no longer."""

from __future__ import annotations

import errno
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from hmasd_sb3.running.errors import InputError

START_SECONDS = 60.0
"""How long the server may take to answer."""
STOP_SECONDS = 5.0
_HOST = "localhost"
_SERVES = re.compile(rb" at http://[^/\s]+:(\d+)/")
"""What TensorBoard says once it listens. That a port answers would not do: another run's server may be there."""

# Its input is a pipe that nothing is ever written to: it closes when the process at the other end is gone, however that
# came about (also by SIGKILL, and on every system). One process does everything, so none can be left behind.
_PROGRAM = """
import os, threading

def follow():
    while os.read(0, 1):
        pass
    os._exit(0)

threading.Thread(target=follow, daemon=True).start()
from tensorboard.main import run_main
run_main()
"""


class TensorBoardServer:
    """TensorBoard over one folder, as a context manager; ready to be looked at once it is entered.

    :param logdir: the folder, which need not exist yet
    :param port: None: the first one from 6006 on that is free, which TensorBoard looks for itself: only so do several runs
        that begin at the same moment get one each
    :raises InputError: if the package is missing or the port is taken
    """

    def __init__(self, logdir: Path, port: int | None = None) -> None:
        self.logdir = logdir
        check_can_serve(port)
        self.port = port
        """Once it is entered, the one it listens on."""
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Where to look at it."""
        return f"http://{_HOST}:{self.port}/"

    def __enter__(self) -> TensorBoardServer:
        options: dict[str, Any] = {"logdir": self.logdir.absolute(), "host": _HOST, "load_fast": "false"}
        if self.port is not None:
            options["port"] = self.port
        command = [sys.executable, "-c", _PROGRAM, *(f"--{name}={value}" for name, value in options.items())]
        # Both go on in one file: in this mode the server writes at its end, wherever it is being read.
        with tempfile.TemporaryFile("a+b") as said:
            # In a session of its own Ctrl-C does not reach it: it serves until the run has ended.
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said, start_new_session=True
            )
            try:
                self._wait_until_it_serves(said)
            except BaseException:
                self.stop()
                raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the server; once is enough, more does no harm."""
        if self._process is None:
            return
        process, self._process = self._process, None
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _wait_until_it_serves(self, said: IO[bytes]) -> None:
        assert self._process is not None
        end = time.monotonic() + START_SECONDS
        while self._process.poll() is None:
            if found := _SERVES.search(_read(said)):
                self.port = int(found[1])
                return
            if time.monotonic() > end:
                raise InputError(f"--tensorboard: the server did not answer within {START_SECONDS:g} s.")
            time.sleep(0.05)
        lines = _read(said).decode(errors="replace").strip().splitlines() or ["it said nothing"]
        raise InputError(f"--tensorboard: the server ended with exit code {self._process.returncode}: {lines[-1]}")


def check_can_serve(port: int | None) -> None:
    """Look at what can be known before a server is started.

    :raises InputError: if the package is missing or the port is taken
    """
    try:
        import tensorboard  # noqa: F401
    except ImportError as error:
        raise InputError('--tensorboard: needs the package "tensorboard": pip install "hmasd-sb3[demo]"') from error
    if port is not None and not _is_free(port):
        raise InputError(f"--tensorboard-port {port}: is in use by another program, or not allowed. Choose another.")


def _read(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


def _is_free(port: int) -> bool:
    """Whether the port can be listened on, at every address that the host's name stands for."""
    for family, kind, protocol, _, address in socket.getaddrinfo(_HOST, port, type=socket.SOCK_STREAM):
        try:
            with socket.socket(family, kind, protocol) as one:
                if os.name == "posix":  # or a server that has just ended would still count
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                one.bind(address)
        except PermissionError:
            return False
        except OSError as error:
            if error.errno in _NO_SUCH_ADDRESS:  # a name of IPv6 on a machine without
                continue
            return False
    return True


_NO_SUCH_ADDRESS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
