"""A PostgreSQL server of one's own, on a loopback port, for as long as a test lasts."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

INSTALLED = Path("/usr/lib/postgresql")
"""Where Debian has it, one folder per version."""
PASSWORD = "not-for-your-eyes"


def binary(name: str) -> str | None:
    """Path of a program of PostgreSQL, or None if it is not installed."""
    newest_first = sorted(INSTALLED.glob(f"*/bin/{name}"), key=lambda path: float(path.parts[-3]), reverse=True)
    return shutil.which(name) or next(map(str, newest_first), None)


def why_not() -> str | None:
    """Why no server can be started here; None if one can."""
    missing = [name for name in ("initdb", "pg_ctl") if binary(name) is None]
    if missing:
        return f"PostgreSQL is not installed: no {' and no '.join(missing)} (Debian's package: postgresql)"
    if os.geteuid() == 0 and _ordinary_user() is None:
        return "PostgreSQL does not run as root, and there is neither a user postgres nor nobody"
    return None


@contextmanager
def server() -> Iterator[str]:
    """Start a server with an empty database, and stop it in the end.

    :return: URL of the database, with a password
    """
    with tempfile.TemporaryDirectory(prefix="hmasd-postgres-") as name:
        folder = Path(name)
        data, secret, port = folder / "data", folder / "secret", free_port()
        secret.write_text(PASSWORD)
        become: list[str] = []
        if os.geteuid() == 0:
            user = _ordinary_user()
            assert user is not None
            become = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
            for path in (folder, secret):
                os.chown(path, user.pw_uid, user.pw_gid)
        identity = ["--username=tester", f"--pwfile={secret}", "--auth=scram-sha-256"]
        _run(folder, *become, str(binary("initdb")), "-D", str(data), "--no-sync", *identity)
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        control = [*become, str(binary("pg_ctl")), "-D", str(data), "-w"]
        _run(folder, *control, "-l", str(folder / "log"), "-o", options, "start")
        try:
            yield f"postgresql://tester:{PASSWORD}@127.0.0.1:{port}/postgres"
        finally:
            _run(folder, *control, "-m", "immediate", "stop")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _ordinary_user() -> pwd.struct_passwd | None:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    return None


def _run(folder: Path, *command: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)
    log = folder / "log"
    said = f"{done.stdout}{done.stderr}{log.read_text() if log.exists() else ''}"
    assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}: {said}"
