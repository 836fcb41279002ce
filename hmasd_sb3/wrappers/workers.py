"""Teams in worker processes: several environments per worker, arrays in shared memory, faults reported or repaired."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvObs, VecEnvStepReturn

from hmasd_sb3.envs.plain_state import checked_entries, checked_like, checked_type
from hmasd_sb3.wrappers.reset_orders import checked_reset_orders, reset_orders, set_reset_orders
from hmasd_sb3.wrappers.worker_handle import WorkerError
from hmasd_sb3.wrappers.worker_pool import Faults, WorkerPool, checked_n_workers, checked_timeout
from hmasd_sb3.wrappers.worker_process import Start

FRUITLESS_RESTARTS = 3
"""How often in a row an environment is restarted that fails before it has finished a step."""

_STATE_KEYS = (
    "rows",
    "resets",
    "own_seeds",
    "fruitless",
    "restarts_by_env",
    "n_restarts",
    "n_steps",
    "has_begun",
    "observations",
)

_logger = logging.getLogger("hmasd_sb3")


class WorkerTeamVecEnv(VecEnv):
    """Team environments in a few worker processes, each with several of them. Steps equal those of ``DummyVecEnv``.

    **Faults.** If a game raises, or a worker dies or falls silent, a `WorkerError` tells which environment in which step
    and why, and all workers are ended. With ``restart_workers`` the environment is made anew instead, or the worker
    with all its environments. What the interrupted step would have brought is unknown, so these rows are marked: reward
    0, done, and the info

    - ``"TimeLimit.truncated"``: True
    - ``"terminal_observation"``: the last observation before that step
    - ``"transition_lost"``: True; whoever learns from transitions must leave this one out
    - ``"worker_error"``: what happened, in short

    Their new episodes are seeded with ``SeedSequence([the environment's last given seed, its number of restarts])``.
    A fault while environments are reset loses no transition: the restarted ones take part in that reset. Before the
    first reset is over, and if an environment was restarted `FRUITLESS_RESTARTS` times in a row without finishing a
    step, the error is raised all the same.

    An error in `get_attr`, `set_attr`, `env_method` or `env_is_wrapped` comes out as it is, caused by a `WorkerError`
    with its traceback, and ends nothing.

    :param env_fns: functions that make the environments, sent by cloudpickle. One that has a method ``remake`` is
        restarted by that, so that it can continue its log file instead of starting it anew.
    :param n_workers: number of processes; by default one per processor this process may use, at most one per
        environment. Each holds neighbouring environments, their numbers differ by one at most.
    :param restart_workers: whether to repair faults
    :param worker_timeout: seconds that a worker may take for an answer: for making one environment, or for one step,
        reset or call of all of its environments
    :param start_method: ``"forkserver"``, ``"spawn"`` or ``"fork"``; by default the first of them there is
    :raises ValueError: if an argument is out of range, the environments are no teams, or they differ
    :raises WorkerError: if an environment cannot be made

    ``n_restarts`` counts the faults repaired; ``restarts_by_env``, (B,), how often each environment was made anew.
    """

    def __init__(
        self,
        env_fns: Sequence[Callable[[], gym.Env[Any, Any]]],
        n_workers: int | None = None,
        *,
        restart_workers: bool = False,
        worker_timeout: float = 300.0,
        start_method: str | None = None,
    ) -> None:
        n_envs = len(env_fns)
        n_workers = checked_n_workers(n_workers, n_envs)
        worker_timeout = checked_timeout(worker_timeout)
        self.restart_workers = restart_workers
        self.n_restarts = 0
        self.restarts_by_env = np.zeros(n_envs, dtype=np.int64)
        self._told: list[list[str]] = []  # where in the game the faults were that have been logged
        self._fruitless = np.zeros(n_envs, dtype=np.int64)  # restarts since the last finished step
        self._own_seeds: list[int | None] = [None] * n_envs
        # Two buffers keep what was observed before a step until the step is over.
        self._n_buffers = 2 if restart_workers else 1
        self._buffer = 0
        self._stepping = False
        self._has_begun = False  # whether a first reset has been completed
        self._closed: str | None = None  # why no request can be answered any more
        self._pool = WorkerPool(env_fns, n_workers, restart_workers, worker_timeout, start_method)
        try:
            super().__init__(n_envs, *self._pool.start(self._n_buffers))
            self.metadata = self.get_attr("metadata", 0)[0]
        except BaseException:
            self._shut("they could not be made")
            raise

    @property
    def worker_pids(self) -> list[int]:
        """The process id of each worker."""
        return [worker.process.pid for worker in self._pool.workers]

    @property
    def worker_timeout(self) -> float:
        """Seconds that a worker may take for an answer; may be changed."""
        return self._pool.timeout

    @worker_timeout.setter
    def worker_timeout(self, seconds: float) -> None:
        self._pool.timeout = checked_timeout(seconds)

    # ---- playing

    def reset(self) -> VecEnvObs:
        """Restart all environments, with the seeds and options set before by `seed` and `set_options`, which count once.

        :return: the first observations
        :raises WorkerError: if an environment cannot be reset
        """
        self._check_open()
        self._pool.drop_answers()  # to a step that is not wanted any more
        self._stepping = False
        for row, seed in enumerate(self._seeds):
            if seed is not None:
                self._own_seeds[row] = int(seed)
        self._flip()
        faults = self._reset_rows([Start(row, self._seeds[row], self._options[row], False) for row in range(self.num_envs)])
        self._repair(faults, self._options)
        self._has_begun = True
        self._reset_seeds()
        self._reset_options()
        return self._observations()

    def step_async(self, actions: NDArray[Any]) -> None:
        """Let the workers begin a step.

        :param actions: (B, N) integers or (B, N, A) floats
        :raises RuntimeError: if a step is under way, or the environments were never reset or are closed
        :raises ValueError: if there is not one action per environment
        """
        self._check_open()
        self._check_idle()
        if not self._has_begun:
            raise RuntimeError("call reset() before step()")
        if len(actions) != self.num_envs:
            raise ValueError(f"there must be one action for each of the {self.num_envs} environments; got {len(actions)}")
        self._stepping = True
        self._flip()
        self._pool.step(self._buffer, np.asarray(actions))

    def step_wait(self) -> VecEnvStepReturn:
        """Wait for the step.

        :return: observations; rewards (B,) float32; dones (B,); one info per environment
        :raises WorkerError: if an environment failed and is not to be restarted
        :raises RuntimeError: if no step is under way
        """
        self._check_open()
        if not self._stepping:
            raise RuntimeError("no step is under way: call step_async() first")
        reports, faults = self._pool.take(f"in its step {self._pool.n_steps}")
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": False} for _ in range(self.num_envs)]
        for report in reports:
            for row, info in report.infos:
                infos[row] = info
            for row, info in report.reset_infos:
                self.reset_infos[row] = info
        self._repair(faults, [{}] * self.num_envs)
        shared = self._pool.shared
        rewards, dones = shared.rewards.copy(), shared.dones.copy()
        for row, error in faults.items():
            rewards[row], dones[row] = 0.0, True
            before = shared.observations[self._buffer - 1]
            infos[row] = {
                "TimeLimit.truncated": True,
                "terminal_observation": {key: array[row].copy() for key, array in before.items()},
                "transition_lost": True,
                "worker_error": _headline(error),
            }
        if self._fruitless.any():
            self._fruitless[[row for row in range(self.num_envs) if row not in faults]] = 0
        self._stepping = False
        return self._observations(), rewards, dones, infos

    def close(self) -> None:
        """Close the environments and end the workers, within seconds; more than once is harmless."""
        self._shut("close() was called")

    # ---- single environments

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """One picture per environment, or None for each if the render mode is not ``rgb_array``."""
        if self.render_mode != "rgb_array":
            warnings.warn(f"pictures need the render mode 'rgb_array'; it is {self.render_mode!r}", stacklevel=2)
            return [None] * self.num_envs
        return self._call("env_method", None, "render", (), {})

    def has_attr(self, attr_name: str) -> bool:
        """Whether all environments have this attribute; it need not be one that can be sent."""
        return all(self._call("has_attr", None, attr_name))

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """A copy of an attribute of each environment.

        :raises AttributeError: if one has none of that name
        """
        return self._call("get_attr", indices, attr_name)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of each environment to a copy of the value."""
        self._call("set_attr", indices, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of each environment, and return copies of the results."""
        return self._call("env_method", indices, method_name, method_args, method_kwargs)

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Whether each environment is inside such a wrapper."""
        return self._call("env_is_wrapped", indices, wrapper_class)

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides how the environments go on, as plain data: theirs, and what restarts depend on.

        :raises EnvStateError: if a game cannot give its state
        :raises RuntimeError: if a step is under way, or the environments are closed
        :raises WorkerError: if a worker is gone
        """
        return {
            "rows": self._call("row_state", None),
            "resets": reset_orders(self),
            "own_seeds": list(self._own_seeds),
            "fruitless": self._fruitless.copy(),
            "restarts_by_env": self.restarts_by_env.copy(),
            "n_restarts": self.n_restarts,
            "n_steps": self._pool.n_steps,
            "has_begun": self._has_begun,
            # A fault in the next step is reported with these.
            "observations": self._observations(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where other environments were, without a reset. The number of workers may be another.

        :param state: from `state_dict`
        :raises EnvStateError: if an environment cannot take its part
        :raises ValueError: if another part does not fit; nothing is changed then
        :raises RuntimeError: if a step is under way, or the environments are closed
        :raises WorkerError: if a worker is gone
        """
        self._check_open()
        self._check_idle()
        checked_entries(state, _STATE_KEYS, type(self).__name__)
        rows, resets = _list_per_row(state, "rows", self.num_envs), checked_reset_orders(self, state["resets"])
        own_seeds = _list_per_row(state, "own_seeds", self.num_envs)
        counts = [checked_like(state[key], self._fruitless, repr(key)) for key in ("fruitless", "restarts_by_env")]
        n_restarts, n_steps = (checked_type(state[key], int, repr(key)) for key in ("n_restarts", "n_steps"))
        has_begun = checked_type(state["has_begun"], bool, "'has_begun'")
        shared = self._pool.shared.observations[self._buffer]
        checked_entries(state["observations"], shared, "'observations'")
        observations = {key: checked_like(state["observations"][key], array, repr(key)) for key, array in shared.items()}
        for what in ("check_row", "restore_row"):
            for row, row_state in enumerate(rows):
                self._call(what, row, row_state)
        for key, array in observations.items():
            shared[key][:] = array
        set_reset_orders(self, resets)
        self._own_seeds, (self._fruitless, self.restarts_by_env) = list(own_seeds), counts
        self.n_restarts, self._pool.n_steps, self._has_begun = n_restarts, n_steps, has_begun

    # ---- requests

    def _call(self, what: str, indices: VecEnvIndices, *arguments: Any) -> list[Any]:
        """Ask single environments; one value per index, in their order."""
        self._check_open()
        self._check_idle()
        chosen: Iterable[int] = self._get_indices(indices)
        rows = [range(self.num_envs)[index] for index in chosen]
        try:
            return self._pool.call(what, rows, *arguments)
        except WorkerError as error:
            # What the next step can repair need not end the others; nor does a game's own error.
            if error.worker_traceback is None and not self.restart_workers:
                self._give_up(error)
            raise

    def _flip(self) -> None:
        self._buffer = (self._buffer + 1) % self._n_buffers

    def _observations(self) -> dict[str, NDArray[Any]]:
        # Copies: the workers go on writing to these.
        return {key: array.copy() for key, array in self._pool.shared.observations[self._buffer].items()}

    def _reset_rows(self, starts: list[Start]) -> Faults:
        """Reset environments, note their infos, and return what went wrong with them."""
        self._pool.reset(self._buffer, starts)
        reports, faults = self._pool.take(f"while being reset, after {self._pool.n_steps} steps")
        for start in starts:
            self.reset_infos[start.row] = {}
        for report in reports:
            for row, info in report.reset_infos:
                self.reset_infos[row] = info
        return faults

    # ---- faults

    def _repair(self, faults: Faults, options: Sequence[dict[str, Any]]) -> None:
        """Restart what has failed, again and again if need be, until all take part in this step or reset.

        :param faults: left as they are
        :param options: for the reset, by environment
        :raises WorkerError: if faults are not to be repaired, or not any more
        """
        while faults:
            self._admit(faults)
            alive = {row for row in faults if self._pool.worker_of[row].alive}
            unmade = self._pool.restart_gone()
            starts = [
                Start(row, self._restart_seed(row), options[row], anew=row in alive) for row in faults if row not in unmade
            ]
            faults = self._reset_rows(starts) | unmade

    def _admit(self, faults: Faults) -> None:
        """Count and log the restarts to come.

        :raises WorkerError: if there are to be none
        """
        faults = dict(sorted(faults.items()))
        rows = list(faults)
        if not (self.restart_workers and self._has_begun):
            raise self._give_up(faults[rows[0]])
        for row, error in faults.items():
            if self._fruitless[row] >= FRUITLESS_RESTARTS:
                error.args = (
                    f"environment {row} was restarted {FRUITLESS_RESTARTS} times in a row without finishing a step, and "
                    f"has failed again:\n{error}",
                )
                raise self._give_up(error)
        self._fruitless[rows] += 1
        self.restarts_by_env[rows] += 1
        for error in {id(error): error for error in faults.values()}.values():
            self.n_restarts += 1
            hit = [row for row in rows if faults[row] is error]
            # A fault of the game comes again and again: where it happens is told once.
            place = [line for line in (error.worker_traceback or "").splitlines() if line.startswith("  File")]
            text = f"{_headline(error)} (there as before)" if place and place in self._told else error
            if place not in self._told:
                self._told.append(place)
            _logger.warning("restart %d, of the environments %s: %s", self.n_restarts, hit, text)

    def _give_up(self, error: WorkerError) -> WorkerError:
        """End all workers; the error is to be raised."""
        self._shut(f"of this error: {_headline(error)}")
        return error

    def _restart_seed(self, row: int) -> int:
        """A seed that depends on the environment's own and on how often it was restarted; below 2**31 for all games."""
        own = self._own_seeds[row]
        if own is None:  # never seeded; drawn as VecEnv.seed does
            own = self._own_seeds[row] = int(np.random.randint(2**31 - 1))
        return int(np.random.SeedSequence([own, int(self.restarts_by_env[row])]).generate_state(1)[0] >> 1)

    def _check_open(self) -> None:
        if self._closed is not None:
            raise RuntimeError(f"these environments are closed, because {self._closed}. Make new ones.")

    def _check_idle(self) -> None:
        if self._stepping:
            raise RuntimeError("a step is under way: call step_wait() first, or reset() to drop it")

    def _shut(self, reason: str) -> None:
        if self._closed is None:
            self._closed = reason
            self._pool.close()


def _headline(error: WorkerError) -> str:
    """The error's first line."""
    return str(error).splitlines()[0]


def _list_per_row(state: dict[str, Any], key: str, n_envs: int) -> list[Any]:
    values: list[Any] = checked_type(state[key], list, repr(key))
    if len(values) != n_envs:
        raise ValueError(f"{key!r} must have one entry per environment, {n_envs}; got {len(values)}")
    return values
