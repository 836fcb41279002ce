"""A TensorBoard server that lives as long as the process that started it, and no longer."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import IO

from hmasd_sb3.running.errors import InputError

USUAL_PORTS = range(6006, 6016)
START_SECONDS = 60.0
"""How long the server may take to answer."""
STOP_SECONDS = 5.0
_HOST = "localhost"

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
    :param port: None: the first free one of TensorBoard's usual ones, or any other
    :raises InputError: if the package is missing or the port is taken
    """

    def __init__(self, logdir: Path, port: int | None = None) -> None:
        self.logdir = logdir
        check_can_serve(port)
        self.port = _free_port() if port is None else port
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Where to look at it."""
        return f"http://{_HOST}:{self.port}/"

    def __enter__(self) -> TensorBoardServer:
        options = {"logdir": self.logdir.absolute(), "host": _HOST, "port": self.port, "load_fast": "false"}
        command = [sys.executable, "-c", _PROGRAM, *(f"--{name}={value}" for name, value in options.items())]
        with tempfile.TemporaryFile() as said:
            # In a session of its own Ctrl-C does not reach it: it serves until the run has ended.
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said, start_new_session=True
            )
            try:
                self._wait_until_it_answers(said)
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

    def _wait_until_it_answers(self, said: IO[bytes]) -> None:
        assert self._process is not None
        end = time.monotonic() + START_SECONDS
        while self._process.poll() is None:
            try:
                with socket.create_connection((_HOST, self.port), timeout=1.0):
                    return
            except OSError:
                if time.monotonic() > end:
                    raise InputError(f"--tensorboard: the server did not answer within {START_SECONDS:g} s.") from None
                time.sleep(0.05)
        said.seek(0)
        lines = said.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
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


def _free_port() -> int:
    for port in USUAL_PORTS:
        if _is_free(port):
            return port
    with socket.socket() as one:
        one.bind((_HOST, 0))
        return int(one.getsockname()[1])


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
