"""SuperSuit's vector environments, with one row per agent, as a Stable-Baselines3 ``VecEnv`` with one row per team."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from pettingzoo import ParallelEnv
from stable_baselines3.common.vec_env import DummyVecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvObs, VecEnvStepReturn
from supersuit.vector import ProcConcatVec

from hmasd_sb3.envs.plain_state import checked_entries
from hmasd_sb3.wrappers.states import collect_venv, restore_venv
from hmasd_sb3.wrappers.supersuit_games import (
    GameCopy,
    check_games,
    copies_of,
    find_pipeline,
    mark_taken,
    stop_workers,
    take_games,
)
from hmasd_sb3.wrappers.team_env import TeamEnv
from hmasd_sb3.wrappers.workers import WorkerTeamVecEnv


class SuperSuitTeamVecEnv(VecEnv):
    """The teams of a SuperSuit pipeline, one row per team, in the order of its rows.

    Takes what ``concat_vec_envs_v1(pettingzoo_env_to_vec_env_v1(game), n_teams, num_cpus, base_class)`` returns, for any
    ``num_cpus``, either base class that is maintained, or ``pettingzoo_env_to_vec_env_v1(game)`` alone.

    The pipeline's rows are not regrouped: its games are taken out, with all wrappers on them, and each is run as a
    `TeamEnv`. Rows have lost what a team needs (the game's state, who is dead, which end it was, whose info it is), and
    the seeds are beyond reach from outside. With ``num_cpus`` of 0 or 1 the games are those of the pipeline, in this process.
    Else its worker processes are asked for theirs, once; they end, and as many new ones take over. In both cases
    the pipeline itself is used up: do not step or reset it any more. What changes:

    - team i is seeded with ``seed + i``. Without a seed, one is drawn from NumPy's global generator: SuperSuit's copies of
      one game would all begin alike;
    - ``TimeLimit.truncated`` tells a time limit from an ending by the rules, and ``dones`` are bool;
    - ``terminal_observation`` is the team's, with its own state and masks, and infos of the restart are in ``reset_infos``;
    - every row has its own info;
    - attributes and methods can be reached: first the team's, then those of the game and its wrappers;
    - ``black_death_v3`` is taken out, see `repair_black_death`.

    An attribute that is read from a worker process is a copy. ``sticky_actions_v0`` and ``nan_random_v0`` draw a fresh
    stream from the operating system at every restart without a seed, so they repeat in the first episode only.

    :param venv: the pipeline, before any ``VecMonitor`` or other wrapper, which belong around this class
    :param game: the game given to ``pettingzoo_env_to_vec_env_v1``, with its wrappers; only needed if worker processes
        cannot hand theirs over. Copied.
    :raises TypeError: if ``venv`` is no such pipeline
    :raises ValueError: if its rows are not teams of one game, the game cannot be a team, or worker processes do not hand
        their games over
    """

    def __init__(self, venv: Any, *, game: ParallelEnv | None = None) -> None:
        pipeline = find_pipeline(venv)
        copies = take_games(pipeline) if game is None else copies_of(game, pipeline)
        check_games(copies, int(pipeline.num_envs))
        self._teams = _run_teams(copies, pipeline)
        mark_taken(pipeline)
        self._closed = False
        super().__init__(self._teams.num_envs, self._teams.observation_space, self._teams.action_space)
        metadata = self._teams.get_attr("metadata", indices=0)[0]
        if "render_fps" in metadata:
            self.metadata["render_fps"] = metadata["render_fps"]
        self.seed(int(np.random.randint(2**31 - 1)))

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Give team i the seed ``seed + i`` at the next reset.

        :param seed: the first team's; drawn at random if None
        :return: the seeds
        """
        return self._teams.seed(seed)

    def set_options(self, options: list[dict[str, Any]] | dict[str, Any] | None = None) -> None:
        """Options for the next reset.

        :param options: for all games alike, or one dict per team
        """
        self._teams.set_options(options)

    def reset(self) -> VecEnvObs:
        """Restart all teams, with the seeds and options set before, which count once.

        :return: the first observations
        """
        observations = self._teams.reset()
        self.reset_infos = list(self._teams.reset_infos)
        return observations

    def step_async(self, actions: NDArray[Any]) -> None:
        """Start a step.

        :param actions: (B, N) integers or (B, N, A) floats
        """
        self._teams.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Finish the step.

        :return: observations; rewards (B,) float32; dones (B,) bool; one info per team
        """
        observations, rewards, dones, infos = self._teams.step_wait()
        self.reset_infos = list(self._teams.reset_infos)
        return observations, np.asarray(rewards, dtype=np.float32), dones, list(infos)

    def close(self) -> None:
        """Close the games and end the worker processes."""
        if not self._closed:
            self._closed = True
            self._teams.close()

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """One picture per team, or None for each if the render mode is not ``rgb_array``."""
        if self.render_mode != "rgb_array":
            return [None] * self.num_envs
        return self._teams.get_images()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute of every team, or of its game.

        :raises AttributeError: if there is none of that name
        """
        self._check_has(attr_name)
        return self._teams.get_attr(attr_name, indices)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an existing attribute where it is: in the team, its game, or a wrapper of the game.

        :raises AttributeError: if there is none of that name
        """
        self._check_has(attr_name)
        self._teams.env_method("set_wrapper_attr", attr_name, value, indices=indices)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of every team, or of its game.

        :return: one result per team
        :raises AttributeError: if there is none of that name
        """
        self._check_has(method_name)
        return self._teams.env_method(method_name, *method_args, indices=indices, **method_kwargs)

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Whether a Gymnasium wrapper is around the teams: never, as pipelines wrap games."""
        return self._teams.env_is_wrapped(wrapper_class, indices)

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides how the teams go on, as plain data.

        :raises EnvStateError: if a game, or a wrapper of it, cannot give its state
        """
        return {"teams": collect_venv(self._teams)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where other teams were, without a reset. Both pipelines must have been made with ``num_cpus`` of 0 or 1, or
        both with more.

        :param state: from `state_dict`
        :raises EnvStateError: if the teams cannot take it
        :raises ValueError: if it is of something else
        """
        checked_entries(state, ("teams",), type(self).__name__)
        restore_venv(self._teams, state["teams"])

    def _check_has(self, name: str) -> None:
        """Asked first, so that the error names what was looked for and where."""
        if not all(self._teams.env_method("has_wrapper_attr", name)):
            raise AttributeError(f"neither the teams nor their games have an attribute or method {name!r}")


@dataclass(frozen=True)
class _TeamMaker:
    """Makes a team of a game, or of its pickle; with a pickle it can be sent to another process."""

    game: ParallelEnv | bytes

    def __call__(self) -> TeamEnv:
        game = cloudpickle.loads(self.game) if isinstance(self.game, bytes) else self.game
        return TeamEnv(game)


def _run_teams(copies: list[GameCopy], pipeline: Any) -> VecEnv:
    makers = [_TeamMaker(copy.game) for copy in copies]
    if not isinstance(pipeline, ProcConcatVec):
        return DummyVecEnv(list(makers))
    # Made once here first, so that a game that cannot be a team leaves the pipeline as it was.
    makers[0]().close()
    n_workers = len(pipeline.procs)
    stop_workers(pipeline)
    return _in_workers(list(makers), n_workers)


def _in_workers(makers: list[Callable[[], gym.Env[Any, Any]]], n_workers: int) -> VecEnv:
    """Teams in worker processes, started as SuperSuit starts its own: a script that ran with those runs with these."""
    return WorkerTeamVecEnv(makers, n_workers, start_method=multiprocessing.get_start_method())
