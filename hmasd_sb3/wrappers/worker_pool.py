"""The workers of one vector environment together: what they are asked, what they answer, and who failed."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from hmasd_sb3.wrappers.shared_rows import NOBODY, SharedBlock, SharedRows, make_layout
from hmasd_sb3.wrappers.team_spaces import check_team_spaces
from hmasd_sb3.wrappers.worker_handle import (
    CLOSE_SECONDS,
    WorkerError,
    WorkerHandle,
    collect,
    end_workers,
    error_from_failure,
    error_from_loss,
    find_context,
)
from hmasd_sb3.wrappers.worker_process import Failure, Raised, Ready, Report, Start, check_same_spaces

Faults = dict[int, WorkerError]
"""By environment, what went wrong; one error may have hit several."""


class WorkerPool:
    """Processes that hold neighbouring environments each, and the memory they share.

    :param env_fns: functions that make the environments
    :param n_workers: number of processes
    :param keep_going: whether a worker goes on with its other environments after one has raised
    :param timeout: seconds to wait for an answer
    :param start_method: of processes; None for the best there is
    """

    def __init__(
        self,
        env_fns: Sequence[Callable[[], gym.Env[Any, Any]]],
        n_workers: int,
        keep_going: bool,
        timeout: float,
        start_method: str | None,
    ) -> None:
        self.keep_going, self.timeout = keep_going, timeout
        self.n_steps = 0
        self._block: SharedBlock | None = None
        context = find_context(start_method)
        self.workers: list[WorkerHandle] = []
        for index, rows in enumerate(split(len(env_fns), n_workers)):
            pickled = cloudpickle.dumps([env_fns[row] for row in rows])
            self.workers.append(WorkerHandle(context, index, rows, pickled, keep_going))
        self.worker_of = [worker for worker in self.workers for _ in worker.rows]

    @property
    def shared(self) -> SharedRows:
        """The shared arrays."""
        assert self._block is not None
        return self._block.rows

    # ---- life

    def start(self, n_buffers: int) -> tuple[spaces.Dict, spaces.Space[Any]]:
        """Start all workers, and return the spaces of their environments.

        :param n_buffers: how many observations of each environment to keep
        :raises WorkerError: if an environment cannot be made
        :raises ValueError: if they differ or are no teams
        """
        for worker in self.workers:
            worker.start(again=False)
        faults, ready = self._await_ready(self.workers, hasty=True)
        for error in faults.values():
            raise error
        observation_space, action_space = ready[0]
        for worker in self.workers[1:]:
            check_same_spaces(0, (observation_space, action_space), worker.rows.start, ready[worker.index])
        check_team_spaces(observation_space, action_space)
        assert isinstance(observation_space, spaces.Dict)
        layout = make_layout(observation_space, action_space, len(self.worker_of), len(self.workers), n_buffers)
        self._block = SharedBlock(layout)
        for worker in self.workers:
            worker.send_block(self._block)
        return observation_space, action_space

    def restart_gone(self) -> Faults:
        """Start those workers again that are gone, with all their environments, which still have to be reset.

        :return: what went wrong with that
        """
        gone = [worker for worker in self.workers if not worker.alive]
        for worker in gone:
            self.shared.at_work[worker.index] = NOBODY
            worker.start(again=True)
        faults, _ = self._await_ready(gone)
        assert self._block is not None
        for worker in gone:
            if worker.alive:
                worker.send_block(self._block)
        return faults

    def close(self) -> None:
        """End all workers."""
        end_workers(self.workers)
        if self._block is not None:
            self._block.close()

    # ---- requests

    def step(self, buffer: int, actions: NDArray[Any]) -> None:
        """Begin a step of all environments.

        :param buffer: where their observations are to go
        """
        self.n_steps += 1
        shared = self.shared
        fits = actions.shape == shared.actions.shape and actions.dtype == shared.actions.dtype
        if fits:
            shared.actions[:] = actions
        for worker in self._up():
            # Anything else than the space's own kind of array is passed on as it is: the game is to judge it.
            worker.send(_message("step", buffer, None if fits else actions[worker.rows.start : worker.rows.stop]))

    def reset(self, buffer: int, starts: list[Start]) -> None:
        """Begin to reset some environments.

        :param buffer: where their observations are to go
        """
        # All are written before any is sent: if one cannot be, no worker has heard of it. Options may hold anything.
        messages = {
            worker.index: cloudpickle.dumps(("reset", buffer, [start for start in starts if start.row in worker.rows]))
            for worker in self._up()
            if any(start.row in worker.rows for start in starts)
        }
        for index, message in messages.items():
            self.workers[index].send(message)

    def take(self, doing: str) -> tuple[list[Report], Faults]:
        """Wait until a step or reset is over.

        :param doing: says in errors what this is
        :return: the reports, and what went wrong, also with workers that were gone before
        """
        reports: list[Report] = list(collect(self.workers, self.timeout, hasty=not self.keep_going).values())
        faults: Faults = {}
        for worker in self.workers:
            if not worker.alive:
                faults.update(dict.fromkeys(worker.rows, self._loss(worker, doing)))
        for report in reports:
            for failure in report.failures:
                faults[failure.row] = error_from_failure(failure, doing, self.n_steps)
        return reports, faults

    def drop_answers(self) -> None:
        """Wait for answers that nobody wants any more."""
        collect(self.workers, self.timeout)

    def call(self, what: str, rows: list[int], *arguments: Any) -> list[Any]:
        """Ask single environments.

        :return: one value per row, in their order
        :raises Exception: whatever a game raises, if it can be sent
        :raises WorkerError: if it cannot, or a worker is gone
        """
        asked = [worker for worker in self.workers if any(row in worker.rows for row in rows)]
        pickled = cloudpickle.dumps(arguments)
        for worker in asked:
            if worker.alive:
                worker.send(_message("call", what, [row for row in rows if row in worker.rows], pickled))
        answers = collect(asked, self.timeout)
        # States are long, and tell nothing here.
        doing = f"in {what} of {arguments[0]!r}" if arguments and not isinstance(arguments[0], dict) else f"in {what}"
        for worker in asked:
            if not worker.alive:
                raise self._loss(worker, doing)
        for index in sorted(answers):
            answer = answers[index]
            if isinstance(answer, Raised):
                error = error_from_failure(answer.failure, doing, self.n_steps)
                if answer.error is None:
                    raise error
                raise pickle.loads(answer.error) from error
        values = {index: iter(answer.values) for index, answer in answers.items()}
        return [next(values[self.worker_of[row].index]) for row in rows]

    # ---- parts

    def _up(self) -> list[WorkerHandle]:
        return [worker for worker in self.workers if worker.alive]

    def _await_ready(self, workers: list[WorkerHandle], hasty: bool = False) -> tuple[Faults, dict[int, Ready]]:
        """Wait until workers that were started have made their environments.

        :param hasty: whether the first fault is enough
        """
        faults: Faults = {}
        ready: dict[int, Ready] = {}
        answers = collect(workers, self.timeout, hasty)
        doing = "while being made"
        for worker in workers:
            answer = answers.get(worker.index)
            if isinstance(answer, Ready):
                ready[worker.index] = answer
            elif isinstance(answer, Failure):
                error = error_from_failure(answer, doing, self.n_steps)
                worker.lose(f"environment {answer.row} could not be made", CLOSE_SECONDS)
                faults.update(dict.fromkeys(worker.rows, error))
            elif not worker.alive:
                faults.update(dict.fromkeys(worker.rows, self._loss(worker, doing)))
        return faults, ready

    def _loss(self, worker: WorkerHandle, doing: str) -> WorkerError:
        at_work = NOBODY if self._block is None else int(self.shared.at_work[worker.index])
        return error_from_loss(worker, at_work, doing, self.n_steps)


def split(n_envs: int, n_workers: int) -> list[range]:
    """Neighbouring environments for each worker; the first ones have one more if the numbers do not divide."""
    size, rest = divmod(n_envs, n_workers)
    stops = np.cumsum([size + (index < rest) for index in range(n_workers)]).tolist()
    return [range(start, stop) for start, stop in zip([0, *stops[:-1]], stops, strict=True)]


def checked_timeout(seconds: float) -> float:
    """The seconds themselves.

    :raises ValueError: if they are not positive
    """
    if not seconds > 0:
        raise ValueError(f"worker_timeout must be a positive number of seconds; got {seconds}")
    return seconds


def checked_n_workers(n_workers: int | None, n_envs: int) -> int:
    """The number of worker processes; by default one per processor, at most one per environment.

    :raises ValueError: if it is out of range, or there are no environments
    """
    if n_envs < 1:
        raise ValueError("env_fns must hold at least one function that makes an environment")
    if n_workers is None:
        # What this process may use, which in a container is less than what there is.
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
        return min(n_envs, usable)
    if isinstance(n_workers, bool) or not isinstance(n_workers, (int, np.integer)) or not 1 <= n_workers <= n_envs:
        raise ValueError(f"n_workers must be an integer from 1 to the number of environments, {n_envs}; got {n_workers!r}")
    return int(n_workers)


def _message(name: str, *arguments: Any) -> bytes:
    return pickle.dumps((name, *arguments), pickle.HIGHEST_PROTOCOL)
