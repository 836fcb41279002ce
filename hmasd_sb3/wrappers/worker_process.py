"""What runs in a worker process of `WorkerTeamVecEnv`: some of the environments, one after the other.

A worker answers every request with exactly one message; while it makes its environments it also says which one is next.
Observations, rewards and dones go through `SharedRows`; a message holds only what is no array.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium as gym
from numpy.typing import NDArray
from stable_baselines3.common.env_util import is_wrapped

from hmasd_sb3.wrappers.row_states import check_row, restore_row, row_state
from hmasd_sb3.wrappers.shared_rows import NOBODY, SharedRows, receive_rows

THREAD_LIMITS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NUMEXPR_NUM_THREADS")
ORPHAN_SECONDS = 2.0
"""How long a worker whose parent is gone may still take to close its environments."""

_logger = logging.getLogger("hmasd_sb3")


class Making(NamedTuple):
    """Said before an environment is made."""

    row: int


class Ready(NamedTuple):
    """All environments are made, and their spaces are these."""

    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]


class Failure(NamedTuple):
    """An environment raised."""

    row: int
    summary: str
    """The error's type and text, one line."""
    traceback: str


class Report(NamedTuple):
    """What a step or reset brought besides arrays; rows with nothing to say are left out."""

    infos: list[tuple[int, dict[str, Any]]]
    reset_infos: list[tuple[int, dict[str, Any]]]
    failures: list[Failure]


class Results(NamedTuple):
    """What a call returned, environment by environment."""

    values: list[Any]


class Raised(NamedTuple):
    """A call raised, or its result cannot be sent."""

    failure: Failure
    error: bytes | None
    """The exception, pickled; None if it cannot be."""


class Start(NamedTuple):
    """One environment to be reset.

    ``anew``: whether to make it anew before.
    """

    row: int
    seed: int | None
    options: dict[str, Any]
    anew: bool


@dataclass(frozen=True)
class WorkerTask:
    """What a worker is told when it starts."""

    index: int
    first_row: int
    env_fns: bytes
    """Functions that make the environments, one per row, by cloudpickle."""
    again: bool
    """Whether these environments were made before, by a worker that is gone."""
    keep_going: bool
    """Whether to go on with the other environments after one has raised."""


def run_worker(connection: Any, parents_end: Any, task: WorkerTask) -> None:
    """Serve the parent until it closes the pipe or ends.

    :param connection: this end of the pipe
    :param parents_end: the other end if it was inherited, to be closed; else None
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C belongs to the parent, which then ends this process
    if parents_end is not None:
        parents_end.close()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _use_one_thread()
    worker = _Worker(connection, task)
    try:
        worker.serve()
    except (EOFError, ConnectionError):
        pass  # the parent has closed its end, or is gone: time to go
    finally:
        worker.close()


class _Worker:
    """The environments of one worker process, and the requests it can answer."""

    def __init__(self, connection: Any, task: WorkerTask) -> None:
        self.connection, self.task = connection, task
        self.env_fns: list[Any] = []
        self.envs: list[gym.Env[Any, Any]] = []
        self.shared: SharedRows

    def serve(self) -> None:
        """Make the environments, then answer requests.

        :raises EOFError: when the parent closes the pipe
        """
        if not self._make_all():
            self.connection.recv()  # the parent knows, and will close the pipe
        self.shared = receive_rows(self.connection)
        requests: dict[str, Any] = {"step": self.step, "reset": self.reset, "call": self.call}
        while True:
            name, *arguments = pickle.loads(self.connection.recv_bytes())
            requests[name](*arguments)

    def close(self) -> None:
        """Close the environments."""
        for offset, env in enumerate(self.envs):
            self._close_one(env, self.task.first_row + offset)

    # ---- requests

    def step(self, buffer: int, actions: NDArray[Any] | None) -> None:
        """Step all environments and restart those that are done.

        :param buffer: where observations go
        :param actions: if they are not in shared memory
        """
        shared, report = self.shared, Report([], [], [])
        if actions is None:
            first = self.task.first_row
            # A copy, since a game may keep its action, and the next ones are written to the same place.
            actions = shared.actions[first : first + len(self.envs)].copy()
        for offset, env in enumerate(self.envs):
            row = self._enter(offset)
            try:
                self._step_one(env, row, actions[offset], buffer, report)
            except Exception as error:
                report.failures.append(_failure(row, error))
                if not self.task.keep_going:
                    break
        self._leave()
        self._send_report(report)

    def reset(self, buffer: int, starts: list[Start]) -> None:
        """Reset some environments."""
        report = Report([], [], [])
        for start in starts:
            offset = start.row - self.task.first_row
            self._enter(offset)
            try:
                if start.anew:
                    self._close_one(self.envs[offset], start.row)
                    self.envs[offset] = self._make(offset, again=True)
                options = {"options": start.options} if start.options else {}
                observation, info = self.envs[offset].reset(seed=start.seed, **options)
                self._write(buffer, start.row, observation)
                if info:
                    report.reset_infos.append((start.row, info))
            except Exception as error:
                report.failures.append(_failure(start.row, error))
                if not self.task.keep_going:
                    break
        self._leave()
        self._send_report(report)

    def call(self, what: str, rows: list[int], arguments: bytes) -> None:
        """Get or set an attribute, or call a method, of some environments.

        :param arguments: by cloudpickle
        """
        values: list[Any] = []
        row = rows[0]
        try:
            given = pickle.loads(arguments)
            for row in rows:
                offset = row - self.task.first_row
                self._enter(offset)
                values.append(_CALLS[what](self.envs[offset], *given))
            answer = pickle.dumps(Results(values), pickle.HIGHEST_PROTOCOL)
        except Exception as error:
            answer = pickle.dumps(Raised(_failure(row, error), _pickled_error(error)))
        self._leave()
        self.connection.send_bytes(answer)

    # ---- single environments

    def _make_all(self) -> bool:
        """Whether all environments could be made; the parent is told what came of it."""
        row = self.task.first_row
        try:
            self.env_fns = pickle.loads(self.task.env_fns)
            for offset in range(len(self.env_fns)):
                row = self.task.first_row + offset
                self._send(Making(row))
                self.envs.append(self._make(offset, self.task.again))
            self._check_alike()
        except Exception as error:
            self._send(_failure(row, error))
            return False
        self._send(Ready(self.envs[0].observation_space, self.envs[0].action_space))
        return True

    def _make(self, offset: int, again: bool) -> gym.Env[Any, Any]:
        make = self.env_fns[offset]
        if again:
            # Some do not do the same the second time: a log must be continued, not started anew.
            make = getattr(make, "remake", make)
        env = make()
        if not isinstance(env, gym.Env):
            raise TypeError(f"the function for environment {self.task.first_row + offset} made {env!r}, no gymnasium.Env")
        if again and offset < len(self.envs):
            self._check_spaces(env, self.task.first_row + offset)
        return env

    def _check_alike(self) -> None:
        for offset, env in enumerate(self.envs):
            self._check_spaces(env, self.task.first_row + offset)
        games = [getattr(env.unwrapped, "parallel_env", env).unwrapped for env in self.envs]
        if len({id(game) for game in games}) != len(games):
            raise ValueError(
                "the functions returned the same game more than once, so the copies would share its state. "
                "Make a new game at every call, as in `lambda: game.parallel_env()`."
            )

    def _check_spaces(self, env: gym.Env[Any, Any], row: int) -> None:
        first = self.envs[0]
        check_same_spaces(self.task.first_row, (first.observation_space, first.action_space), row, env)

    def _step_one(self, env: gym.Env[Any, Any], row: int, action: Any, buffer: int, report: Report) -> None:
        observation, reward, terminated, truncated, info = env.step(action)
        done = terminated or truncated
        info["TimeLimit.truncated"] = truncated and not terminated
        reset_info: dict[str, Any] | None = None
        if done:
            info["terminal_observation"] = observation
            observation, reset_info = env.reset()
        self._write(buffer, row, observation)
        self.shared.rewards[row] = reward
        self.shared.dones[row] = done
        # Only now, that nothing can raise any more: a report on a row is whole or missing.
        if len(info) > 1 or info["TimeLimit.truncated"]:
            report.infos.append((row, info))
        if reset_info is not None:
            report.reset_infos.append((row, reset_info))

    def _write(self, buffer: int, row: int, observation: dict[str, Any]) -> None:
        for key, array in self.shared.observations[buffer].items():
            array[row] = observation[key]

    def _close_one(self, env: gym.Env[Any, Any], row: int) -> None:
        try:
            env.close()
        except Exception:
            # Nothing depends on it any more, and the others are to be closed too.
            _logger.warning("closing environment %d raised", row, exc_info=True)

    # ---- messages

    def _enter(self, offset: int) -> int:
        """Note which environment is at work, in case the process dies in it."""
        row = self.task.first_row + offset
        self.shared.at_work[self.task.index] = row
        return row

    def _leave(self) -> None:
        self.shared.at_work[self.task.index] = NOBODY

    def _send(self, message: Any) -> None:
        self.connection.send_bytes(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))

    def _send_report(self, report: Report) -> None:
        try:
            message = pickle.dumps(report, pickle.HIGHEST_PROTOCOL)
        except Exception:
            message = pickle.dumps(_sendable(report), pickle.HIGHEST_PROTOCOL)
        self.connection.send_bytes(message)


def check_same_spaces(row: int, expected: tuple[gym.Space[Any], gym.Space[Any]], other: int, env: Any) -> None:
    """Refuse an environment whose spaces are not those of the first.

    :param row: of the first
    :param expected: its observation and action space
    :param other: row of the second
    :param env: whatever has its ``observation_space`` and ``action_space``
    :raises ValueError: if they differ
    """
    for kind, first, second in zip(
        ("observation", "action"), expected, (env.observation_space, env.action_space), strict=True
    ):
        if first != second:
            raise ValueError(
                f"all environments must have the same {kind} space, but environment {row} has {first} and environment "
                f"{other} has {second}. Make them all with the same arguments."
            )


def _sendable(report: Report) -> Report:
    """The report with failures in place of the infos that cannot be sent."""
    failures = list(report.failures)
    kept: list[list[tuple[int, dict[str, Any]]]] = []
    for infos in (report.infos, report.reset_infos):
        kept.append([])
        for row, info in infos:
            try:
                pickle.dumps(info, pickle.HIGHEST_PROTOCOL)
            except Exception as error:
                failures.append(_failure(row, TypeError(f"the info {info!r} cannot be sent to the parent process: {error}")))
            else:
                kept[-1].append((row, info))
    return Report(kept[0], kept[1], failures)


def _failure(row: int, error: Exception) -> Failure:
    summary = f"{type(error).__name__}: {error}".splitlines()[0]
    return Failure(row, summary, "".join(traceback.format_exception(error)))


def _pickled_error(error: Exception) -> bytes | None:
    try:
        data = pickle.dumps(error)
        pickle.loads(data)  # many can be written but not read, as their __init__ takes other arguments
    except Exception:
        return None
    return data


def _has_attr(env: gym.Env[Any, Any], name: str) -> bool:
    try:
        env.get_wrapper_attr(name)
    except AttributeError:
        return False
    return True


def _call_method(env: gym.Env[Any, Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return env.get_wrapper_attr(name)(*args, **kwargs)


_CALLS: dict[str, Any] = {
    "get_attr": lambda env, name: env.get_wrapper_attr(name),
    "has_attr": _has_attr,
    "set_attr": setattr,
    "env_method": _call_method,
    "env_is_wrapped": is_wrapped,
    "row_state": row_state,
    "check_row": check_row,
    "restore_row": restore_row,
}


# ---- the process


@contextmanager
def one_thread_environment() -> Iterator[None]:
    """Let processes started meanwhile load their numerical libraries with one thread each."""
    before = {name: os.environ.get(name) for name in THREAD_LIMITS}
    os.environ.update(dict.fromkeys(THREAD_LIMITS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _use_one_thread() -> None:
    """Workers share the processor with each other already."""
    os.environ.update(dict.fromkeys(THREAD_LIMITS, "1"))
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def _end_with_parent() -> None:
    """Wait for the parent's end, however it comes, and follow it even out of a game that never returns."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    time.sleep(ORPHAN_SECONDS)  # an idle worker sees the pipe close and ends by itself
    os._exit(1)
