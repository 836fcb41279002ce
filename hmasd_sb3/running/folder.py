"""The folder of one run: its files, its config, who is at work in it."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hmasd_sb3.running.config import RunConfig
from hmasd_sb3.running.errors import InputError
from hmasd_sb3.running.files import write_json
from hmasd_sb3.running.versions import OWN as _OWN_VERSIONS
from hmasd_sb3.running.versions import installed_version, versions

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

RUNS = Path("runs")
_LOCK = ".lock"


class RunFolder:
    """Where a run keeps what it makes.

    :param path: the folder; need not exist yet
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.json"
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.evaluations = path / "evaluations.npz"
        self.tensorboard = path / "tensorboard"
        self.model = path / "model.zip"
        self.normalizer = path / "vecnormalize.pkl"

    @property
    def holds_run(self) -> bool:
        """Whether a run was started here."""
        return self.config_file.exists()

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end."""
        return self.model.exists()

    @property
    def has_results(self) -> bool:
        """Whether the run has come so far that something was logged or evaluated, which is later than its first checkpoint."""
        return self.evaluations.exists() or (self.metrics.exists() and self.metrics.stat().st_size > 0)

    def read_config(self) -> RunConfig:
        """What decides the run.

        :raises InputError: if there is no run, or its file was damaged
        """
        values = self._read()["run"]
        try:
            return RunConfig.from_dict(values)
        except InputError as error:
            raise InputError(f"{self.config_file}: {error}") from error

    def write_config(self, config: RunConfig, command: str | None = None) -> None:
        """Keep what decides the run, with the versions of what computes it.

        :param command: what was typed; those typed before stay, as the length of a run may be raised
        """
        commands = self._read().get("commands", []) if self.holds_run else []
        write_json(
            self.config_file,
            {
                "run": config.as_dict(),
                "commands": [*commands, *([] if command is None else [command])],
                "versions": versions(config.env),
                "git_commit": git_commit(),
                "written": time.strftime("%F %T%z"),
            },
        )

    def changed_versions(self) -> list[str]:
        """What was of another version when the run's config was written, such as "torch 2.12.0, now 2.13.0"."""
        content = self._read()
        before = content.get("versions", {})
        now = {**{name: installed_version(name) for name in before if name not in _OWN_VERSIONS}, **versions(None)}
        return [f"{name} {before.get(name)}, now {version}" for name, version in now.items() if before.get(name) != version]

    def changed_commit(self) -> str | None:
        """What the commit was, if it was another than now or is none; such as "abc... before, def... now"."""
        before, now = self._read().get("git_commit"), git_commit()
        if before == now and not (now or "").endswith("-dirty"):
            return None
        return f"{before or 'none'} then, {now or 'none'} now"

    def remove_if_unused(self) -> None:
        """Remove the folder if nothing was written into it."""
        if self.path.is_dir() and {file.name for file in self.path.iterdir()} <= {_LOCK}:
            (self.path / _LOCK).unlink(missing_ok=True)
            self.path.rmdir()

    def keep_model(self) -> None:
        """Put the model that a run ended with under another name, since the run goes on."""
        if self.finished:
            self.model.rename(self.path / f"model_{self.read_config().total_timesteps}.zip")

    def forget_progress(self) -> None:
        """Remove what a run that has to start from the beginning wrote before its first checkpoint."""
        for path in (self.metrics, self.evaluations):
            path.unlink(missing_ok=True)
        if self.tensorboard.is_dir():
            for events in self.tensorboard.glob("events.out.tfevents.*"):
                events.unlink()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training in this folder; the system lifts it when the process ends, however it does.

        :raises InputError: if a process is at work here
        """
        with (self.path / _LOCK).open("a") as file:
            if fcntl is not None:
                try:
                    # A lock of the process: workers that are forked from it do not hold it on.
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except (BlockingIOError, PermissionError) as error:
                    raise InputError(f"{self.path}: another process is training in this folder right now.") from error
            yield

    def busy(self) -> bool:
        """Whether a process is training here right now. Not to be asked by the one that is."""
        try:
            with self.locked():
                return False
        except InputError:
            return True

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(self.config_file.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise InputError(f"{self.path} holds no run: there is no {self.config_file.name} in it.") from error
        except (OSError, ValueError) as error:
            raise InputError(f"{self.config_file} cannot be read: {error}.") from error
        if not isinstance(content, dict) or not isinstance(content.get("run"), dict):
            raise InputError(f"{self.config_file} is no config of a run.")
        return content


def new_folder(config: RunConfig, run_dir: Path | None) -> RunFolder:
    """Make the folder of a new run.

    :param run_dir: an absent or empty folder; None: a new one below ``runs/``
    :raises InputError: if ``run_dir`` holds anything, or no folder can be made
    """
    try:
        return RunFolder(_make_unique(config) if run_dir is None else _make_named(run_dir))
    except OSError as error:
        raise InputError(f"The run's folder {error.filename} cannot be made: {error.strerror}.") from error


def _make_named(run_dir: Path) -> Path:
    check_unused(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    return run_dir


def _make_unique(config: RunConfig) -> Path:
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", config.env)
    stem = RUNS / f"{name}-seed{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder, copies = stem, 1
    while True:
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:  # another run began in the same second
            copies += 1
            folder = stem.with_name(f"{stem.name}-{copies}")


def check_unused(run_dir: Path) -> None:
    """Refuse a folder whose files a new run could overwrite.

    :raises InputError: naming the folder, and how to go on with a run that is in it
    """
    if run_dir.exists() and not run_dir.is_dir():
        raise InputError(f"--run-dir {run_dir}: is a file, not a folder.")
    if RunFolder(run_dir).holds_run:
        raise InputError(f"--run-dir {run_dir}: holds a run already. Add --resume auto to go on with it, or choose another.")
    if run_dir.is_dir() and any(run_dir.iterdir()):
        raise InputError(f"--run-dir {run_dir}: holds files already, which a run could overwrite. Choose another.")


def runs_of(config: RunConfig, may_be_longer: bool) -> list[RunFolder]:
    """The runs below ``runs/`` that a command of this config started and that no process is at work on, newest first.

    :param may_be_longer: whether the config's ``total_timesteps`` may be above that of a run that is not complete
    """
    found: list[tuple[float, RunFolder]] = []
    for file in RUNS.glob("*/config.json"):
        folder = RunFolder(file.parent)
        try:
            own = folder.read_config()
        except InputError as error:
            print(f"Passed over: {error}", flush=True)
            continue
        long = config.total_timesteps
        shipped = "total_timesteps" in own.shipped and "total_timesteps" in config.shipped
        shorter = may_be_longer and own.total_timesteps < long and not folder.finished
        if own.same_run(config) and (shipped or own.total_timesteps == long or shorter) and not folder.busy():
            found.append((file.stat().st_mtime, folder))
    return [folder for _, folder in sorted(found, key=lambda pair: pair[0], reverse=True)]


def git_commit() -> str | None:
    """The commit checked out in the working directory, with "-dirty" if files differ; None outside of a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):  # no git here, or a repository too large to ask
        return None
    return result.stdout.strip() if result.returncode == 0 else None
