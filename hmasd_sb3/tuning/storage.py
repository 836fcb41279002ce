"""Where studies are kept: a journal file, SQLite or PostgreSQL, and the locks beside it."""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hmasd_sb3.monitoring.optional import import_optional
from hmasd_sb3.running.errors import InputError
from hmasd_sb3.tuning.leases import FileLeases, Leases, PostgresLeases

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

_DRIVERS = {"psycopg": "postgresql+psycopg", "psycopg2": "postgresql+psycopg2"}
_SQLITE_WAIT = 60.0
"""Seconds that a process waits for another one's write."""


@dataclass(frozen=True)
class Place:
    """A storage that is open."""

    storage: BaseStorage
    leases: Leases
    shown: str
    """What was asked for, without a password."""


def open_storage(where: str) -> Place:
    """Open a storage, and make it if there is none.

    :param where: the path of a journal file, or a URL ``sqlite:///file.db`` or ``postgresql://user@host/database``
    :raises InputError: if it is none of these, a package is missing, or the file or server cannot be used
    """
    _optuna()
    scheme, colon, rest = where.partition("://")
    if not colon:
        return _open_journal(where)
    if scheme == "sqlite":
        return _open_sqlite(where, rest)
    if re.fullmatch(r"postgres(ql)?(\+psycopg2?)?", scheme):
        return _open_postgres(where)
    raise InputError(
        f"--storage {hidden(where)}: must be the path of a journal file, or begin with sqlite:/// or postgresql://."
    )


def hidden(where: str) -> str:
    """A storage's URL without the password."""
    return re.sub(r"(password=)[^&\s]*", r"\1***", re.sub(r"(://[^:/@]*):.*@", r"\1:***@", where))


def _optuna() -> Any:
    try:
        return import_optional("optuna", purpose="hmasd tune", extra="tuning")
    except ImportError as error:
        raise InputError(str(error)) from error


def _open_journal(where: str) -> Place:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

    path = Path(where)
    leases = FileLeases(Path(f"{where}.workers"))
    try:
        if not where.strip() or path.is_dir():
            raise InputError(f"--storage {where!r}: must name a file.")
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = JournalFileSymlinkLock(where)
        with leases.exclusive():
            if path.exists():
                _drop_half_line(path, lock)
            storage = JournalStorage(JournalFileBackend(where, lock_obj=lock))
    except OSError as error:
        raise InputError(f"--storage {where}: cannot be used: {error.strerror}.") from error
    except (ValueError, KeyError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"--storage {where}: is no journal file of Optuna, or was damaged ({error}).") from error
    return Place(storage, leases, where)


def _drop_half_line(path: Path, lock: Any) -> None:
    """Cut off a last line that a crash left half written: the next one would be glued to it, and make the file unreadable."""
    with path.open("r+b") as file:
        if _complete(file):
            return
        lock.acquire()
        try:
            if not _complete(file):  # nobody is writing it right now
                file.seek(0)
                content = file.read()
                file.truncate(content.rfind(b"\n") + 1)
                os.fsync(file.fileno())
        finally:
            lock.release()


def _complete(file: Any) -> bool:
    if file.seek(0, os.SEEK_END) == 0:
        return True
    file.seek(-1, os.SEEK_END)
    return bool(file.read() == b"\n")


def _open_sqlite(where: str, rest: str) -> Place:
    path = Path(rest.removeprefix("/"))
    if not rest.startswith("/") or not path.name or ":memory:" in rest or "?" in rest:
        raise InputError(f"--storage {where}: must name a file, as in sqlite:///study.db; workers share it.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--storage {where}: its folder cannot be made: {error.strerror}.") from error
    leases = FileLeases(Path(f"{path}.workers"))
    return Place(_open_database(where, where, leases, connect_args={"timeout": _SQLITE_WAIT}), leases, where)


def _open_postgres(where: str) -> Place:
    from sqlalchemy import create_engine
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    installed = [url for package, url in _DRIVERS.items() if importlib.util.find_spec(package) is not None]
    if not installed:
        raise InputError('--storage postgresql://: needs the package "psycopg": pip install "hmasd-sb3[postgresql]"')
    try:
        url = make_url(where)
        if "+" not in url.drivername:
            url = url.set(drivername=installed[0])
        engine = create_engine(url, pool_pre_ping=True)
        leases = PostgresLeases(engine)
        storage = _open_database(url.render_as_string(hide_password=False), hidden(where), leases, pool_pre_ping=True)
    except (SQLAlchemyError, ImportError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(_refused(hidden(where), error)) from error
    return Place(storage, leases, hidden(where))


def _open_database(url: str, shown: str, leases: Leases, **engine_kwargs: Any) -> BaseStorage:
    from optuna.exceptions import StorageInternalError
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import SQLAlchemyError

    try:
        # One at a time: processes that make the same tables at once kill each other.
        with leases.exclusive():
            return RDBStorage(url, engine_kwargs=engine_kwargs)
    except (SQLAlchemyError, StorageInternalError, RuntimeError, OSError) as error:
        raise InputError(_refused(shown, error)) from error


def _refused(shown: str, error: Exception) -> str:
    """One line of what can be many, without a password."""
    reason = getattr(error, "orig", None) or error.__cause__ or error
    lines = [line.strip() for line in str(reason).splitlines() if line.strip()]
    return f"--storage {shown}: cannot be used: {hidden(lines[0] if lines else type(reason).__name__).rstrip('.:')}."
