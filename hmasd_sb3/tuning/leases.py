"""Who is at work on a study: locks that the system, or the database server, lifts when a process ends, however it does.

Optuna's own heartbeat knows a dead worker by its silence, after minutes, and journal files have none. A lock tells at once,
and needs no clock.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

from hmasd_sb3.running.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_EXCLUSIVE = "exclusive"


class Leases(Protocol):
    """Locks by name, kept beside a storage."""

    def exclusive(self) -> Any:
        """A context in which no other process is in one of the same storage."""

    def hold(self, name: str) -> None:
        """Take a lock for as long as this process lives, or until :meth:`close`."""

    def is_held(self, name: str) -> bool:
        """Whether a living process holds a lock."""

    def close(self) -> None:
        """Give back what this process holds."""


class FileLeases:
    """Locks on files in a folder. Over a network they are as good as the file system's.

    :param folder: made when it is first needed
    :raises InputError: on systems without POSIX locks
    """

    def __init__(self, folder: Path) -> None:
        if fcntl is None:
            raise InputError(
                "This system has no POSIX file locks, by which dead workers are known: use --storage postgresql://..."
            )
        self._folder = folder
        self._held: dict[str, IO[str]] = {}

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """A context in which no other process is in one of the same folder."""
        with self._open(_EXCLUSIVE) as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            yield

    def hold(self, name: str) -> None:
        """Take a lock for as long as this process lives; processes that are forked from it do not hold it on."""
        file = self._open(name)
        fcntl.lockf(file, fcntl.LOCK_EX)
        self._held[name] = file

    def is_held(self, name: str) -> bool:
        """Whether a living process holds a lock."""
        if name in self._held:
            return True  # to open and close the file once more would lift this process' own lock
        if not self._path(name).exists():
            return False
        with self._open(name) as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                return True
        self._path(name).unlink(missing_ok=True)
        return False

    def close(self) -> None:
        """Give back what this process holds."""
        for name, file in self._held.items():
            self._path(name).unlink(missing_ok=True)
            file.close()
        self._held = {}

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.lock"

    def _open(self, name: str) -> IO[str]:
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._path(name).open("a", encoding="utf-8")


class PostgresLeases:
    """Advisory locks of a PostgreSQL server, which belong to a connection and end with it.

    :param engine: SQLAlchemy's
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._connection: Any = None
        self._held: set[str] = set()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """A context in which no other process is in one of the same database."""
        self._ask("pg_advisory_lock", _EXCLUSIVE)
        try:
            yield
        finally:
            self._ask("pg_advisory_unlock", _EXCLUSIVE)

    def hold(self, name: str) -> None:
        """Take a lock for as long as this process, and its connection, lives."""
        self._ask("pg_advisory_lock", name)
        self._held.add(name)

    def is_held(self, name: str) -> bool:
        """Whether a living process holds a lock."""
        if name in self._held:
            return True
        free = bool(self._ask("pg_try_advisory_lock", name))
        if free:
            self._ask("pg_advisory_unlock", name)
        return not free

    def close(self) -> None:
        """Give back what this process holds."""
        if self._connection is not None:
            self._connection.invalidate()  # closed, not put back into the pool with its locks
            self._connection.close()
        self._connection, self._held = None, set()

    def _ask(self, function: str, name: str) -> Any:
        from sqlalchemy import text

        if self._connection is None:
            self._connection = self._engine.connect()
        key = int.from_bytes(hashlib.blake2b(f"hmasd tune {name}".encode(), digest_size=8).digest(), signed=True)
        return self._connection.execute(text(f"select {function}(:key)"), {"key": key}).scalar()
