"""Many JaxMARL games at once as one Gymnasium vector environment over teams, and one of them alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from hmasd_sb3.envs.generators import generator_state, restored_generator
from hmasd_sb3.envs.jaxmarl_games import JaxMARLGame, JaxTree, Transition, import_extra, jaxmarl_game
from hmasd_sb3.envs.plain_state import checked_entries, checked_type
from hmasd_sb3.envs.resets import rows_to_reset
from hmasd_sb3.wrappers.jaxmarl_states import KEY_IMPLEMENTATION, restored_running, tree_state

TeamObservation = dict[str, NDArray[Any]]
RENDER_FPS = 8
_RUNNING = ("keys", "states", "observations")


class JaxMARLVectorEnv(VectorEnv[TeamObservation, NDArray[Any], NDArray[Any]]):
    """B teams playing one of JaxMARL's games, all stepped by one compiled call.

    A finished game starts anew within the same step (`AutoresetMode.SAME_STEP`): its row of the returned observation is the
    first of the next episode, and ``infos["final_obs"]`` and ``infos["final_info"]`` hold the last one's, in the layout of
    ``gymnasium.vector.SyncVectorEnv``. Infos are empty at other steps.

    Row i plays like `JaxMARLTeamEnv` with the same seed, whatever B is. Only the last digits of floats may differ, as JAX
    compiles each B for itself. Observations are NumPy arrays of the caller's own.

    JAX computes on its default device. Where that is a GPU that PyTorch uses too, set the environment variable
    ``XLA_PYTHON_CLIENT_PREALLOCATE=false``, or JAX takes most of its memory at the start.

    :param game: a JaxMARL name that `jaxmarl_game` knows, e.g. ``"overcooked"``, or a `JaxMARLGame`
    :param num_envs: number of teams, B
    :param render_mode: ``"rgb_array"`` or None
    :param game_kwargs: arguments of the game, if it was named
    :raises ImportError: if the extra ``jaxmarl`` is not installed
    :raises ValueError: if one of these is out of range, or the game has no pictures
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (Gymnasium's convention for this attribute)
        "render_modes": ["rgb_array"],
        "render_fps": RENDER_FPS,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(self, game: str | JaxMARLGame, num_envs: int = 1, render_mode: str | None = None, **game_kwargs: Any) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1; got {num_envs}")
        self.game = _find_game(game, game_kwargs)
        _check_render_mode(self.game, render_mode)
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.single_observation_space = self.game.observation_space
        self.single_action_space = self.game.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

        # One random stream per row, so that a row's episodes depend on its own seed alone. All None before the first reset.
        self._keys: JaxTree = None
        self._states: JaxTree = None
        self._observations: JaxTree = None

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[TeamObservation, dict[str, Any]]:
        """Start an episode in every row, or in some.

        :param seed: an int s seeds row i with s + i; a sequence has one seed, or None, per row; without a seed every row's
            random stream goes on
        :param options: ``{"reset_mask": (B,) bool}`` restarts the marked rows alone; other entries are ignored
        :return: the observations of all rows, and an empty dict
        :raises ValueError: if there are not B seeds or B mask entries, or the game's observations do not fit their spaces
        :raises RuntimeError: if the first reset leaves rows out
        """
        seeds, mask = rows_to_reset(seed, options, self.num_envs)

        first = self._keys is None
        if first and not mask.all():
            raise RuntimeError("no episode is running yet: the first reset must start all rows")
        self._seed(seeds, mask)
        started = self.game.batched.start(self._keys)
        if first:
            _check_observations(self.game, self.observation_space, started[2])
            self._keys, self._states, self._observations = started
        else:
            running = (self._keys, self._states, self._observations)
            self._keys, self._states, self._observations = _choose_rows(mask, started, running)
        return _to_numpy(self._observations), {}

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[TeamObservation, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Let all agents of all teams act at once.

        :param actions: (B, N) integers, or (B, N, A) floats
        :return: observations; rewards, terminations and truncations, each (B,); infos, empty unless a game ended
        :raises RuntimeError: before the first reset
        :raises ValueError: if an action does not exist or the shape is wrong
        """
        if self._states is None:
            raise RuntimeError("no episode is running: call reset() before step()")
        actions = _checked_actions(actions, self.single_action_space, (self.num_envs,))
        self._keys, self._states, self._observations, played = self.game.batched.step_and_restart(
            self._keys, self._states, actions
        )
        observations = _to_numpy(self._observations)
        terminations, truncations = np.array(played.terminated), np.array(played.truncated)
        done = terminations | truncations
        infos: dict[str, Any] = _final_infos(played, done) if done.any() else {}
        rewards = np.array(played.reward, dtype=np.float64)
        return observations, rewards, terminations, truncations, infos

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """One picture per row with the render mode ``rgb_array``; None without a render mode.

        :raises RuntimeError: before the first reset
        """
        if self.render_mode is None:
            return None
        return tuple(_draw(self.game, self._states, row) for row in range(self.num_envs))

    def close_extras(self, **kwargs: Any) -> None:
        """Nothing is held open."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides how the games go on, as plain data: JAX's arrays and random keys."""
        running = (self._keys, self._states, self._observations)
        return {name: tree_state(tree) for name, tree in zip(_RUNNING, running, strict=True)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where as many other games were, which must have been made with the same arguments.

        :param state: from `state_dict`
        :raises ValueError: if it does not fit; nothing is changed then
        """
        checked_entries(state, _RUNNING, type(self).__name__)
        self._keys, self._states, self._observations = restored_running(self.game, self.num_envs, state, _RUNNING)

    def _seed(self, seeds: list[int | None], mask: NDArray[np.bool_]) -> None:
        """Begin the random streams of the marked rows that were given a seed, and of all that have none yet."""
        if self._keys is None:
            self._keys = _keys([_fresh_seed() if seed is None else seed for seed in seeds])
            return
        mask = mask & np.array([seed is not None for seed in seeds])
        if mask.any():
            self._keys = _choose_rows(mask, _keys([seed or 0 for seed in seeds]), self._keys)


class JaxMARLTeamEnv(gym.Env[TeamObservation, NDArray[Any]]):
    """One team playing one of JaxMARL's games; see `JaxMARLVectorEnv`, which is the fast way to play many.

    :param game: a JaxMARL name that `jaxmarl_game` knows, e.g. ``"overcooked"``, or a `JaxMARLGame`
    :param render_mode: ``"rgb_array"`` or None
    :param game_kwargs: arguments of the game, if it was named
    :raises ImportError: if the extra ``jaxmarl`` is not installed
    :raises ValueError: if one of these is out of range, or the game has no pictures
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": RENDER_FPS}  # noqa: RUF012

    def __init__(self, game: str | JaxMARLGame, render_mode: str | None = None, **game_kwargs: Any) -> None:
        self.game = _find_game(game, game_kwargs)
        _check_render_mode(self.game, render_mode)
        self.render_mode = render_mode
        self.observation_space = self.game.observation_space  # type: ignore[assignment]
        self.action_space = self.game.action_space
        # As in the vector environment, with an axis of length 1.
        self._keys: JaxTree = None
        self._states: JaxTree = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[TeamObservation, dict[str, Any]]:
        """Start an episode.

        :param seed: begins the random stream anew; without one it goes on
        :param options: ignored
        :return: the observation and an empty info
        :raises ValueError: if the game's observation does not fit its space
        """
        super().reset(seed=seed)
        first = self._keys is None
        if seed is not None or first:
            self._keys = _keys([_fresh_seed() if seed is None else seed])
        self._keys, self._states, observations = self.game.batched.start(self._keys)
        if first:
            _check_observations(self.game, batch_space(self.game.observation_space, 1), observations)
        return _row(observations, 0), {}

    def step(self, action: NDArray[Any]) -> tuple[TeamObservation, float, bool, bool, dict[str, Any]]:
        """Let every agent act once.

        :param action: (N,) integers, or (N, A) floats
        :return: observation, team reward, terminated, truncated, info
        :raises RuntimeError: if no episode is running
        :raises ValueError: if an action does not exist or the shape is wrong
        """
        if self._states is None:
            raise RuntimeError("no episode is running: call reset() before step()")
        actions = _checked_actions(np.asarray(action)[None], self.game.action_space, (1,))
        self._keys, played = self.game.batched.step(self._keys, self._states, actions)
        self._states = played.state
        terminated, truncated = bool(played.terminated[0]), bool(played.truncated[0])
        info = {key: value[0].item() for key, value in played.final_info.items()} if terminated or truncated else {}
        return _row(played.observation, 0), float(played.reward[0]), terminated, truncated, info

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides how the game goes on, as plain data: JAX's arrays and random keys."""
        return {
            "keys": tree_state(self._keys),
            "states": tree_state(self._states),
            "generator": generator_state(self._np_random),
            "seed": self._np_random_seed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another game was, which must have been made with the same arguments.

        :param state: from `state_dict`
        :raises ValueError: if it does not fit; nothing is changed then
        """
        checked_entries(state, ("keys", "states", "generator", "seed"), type(self).__name__)
        seed = checked_type(state["seed"], (int, type(None)), "'seed'")
        generator = restored_generator(state["generator"])
        self._keys, self._states, _ = restored_running(self.game, 1, state, ("keys", "states"))
        self._np_random, self._np_random_seed = generator, seed

    def render(self) -> NDArray[np.uint8] | None:
        """A picture with the render mode ``rgb_array``, else None.

        :raises RuntimeError: before the first reset
        """
        return None if self.render_mode is None else _draw(self.game, self._states, 0)


def _find_game(game: str | JaxMARLGame, game_kwargs: dict[str, Any]) -> JaxMARLGame:
    if isinstance(game, str):
        return jaxmarl_game(game, **game_kwargs)
    if not isinstance(game, JaxMARLGame):
        raise TypeError(f"game must be a JaxMARL name or a JaxMARLGame; got {type(game).__name__}")
    if game_kwargs:
        raise TypeError(f"the arguments {sorted(game_kwargs)} are for a game given by name; {game.name!r} is made already")
    return game


def _check_render_mode(game: JaxMARLGame, render_mode: str | None) -> None:
    if render_mode not in (None, "rgb_array"):
        raise ValueError(f"render_mode must be 'rgb_array' or None; got {render_mode!r}")
    if render_mode is not None and game.draw is None:
        raise ValueError(f"{game.name!r} cannot be drawn; leave render_mode at None")


def _checked_actions(actions: NDArray[Any], space: spaces.Space[Any], rows: tuple[int]) -> NDArray[Any]:
    """Actions of all rows as the game takes them: int32, or float32 if continuous.

    :raises ValueError: naming the value that is no action
    """
    actions = np.asarray(actions)
    shape = (*rows, *(space.shape or ()))
    if isinstance(space, spaces.MultiDiscrete):
        if actions.shape != shape or actions.dtype.kind not in "iu":
            raise ValueError(f"actions must be integers of the shape {shape}; got {actions.dtype} of {actions.shape}")
        outside = (actions < 0) | (actions >= space.nvec)
        if outside.any():
            row, agent = np.argwhere(outside)[0]
            raise ValueError(
                f"agent {agent} of environment {row} was given the action {actions[row, agent]}; there are "
                f"0..{space.nvec[agent] - 1}"
            )
        return actions.astype(np.int32)
    if actions.shape != shape or not np.isfinite(actions).all():
        raise ValueError(f"actions must be finite numbers of the shape {shape}; got {actions.shape}: {actions}")
    return actions.astype(np.float32)


def _check_observations(game: JaxMARLGame, space: spaces.Space[Any], observations: dict[str, JaxTree]) -> None:
    """Refuse a game whose observations differ from its spaces in keys, shapes or dtypes."""
    assert isinstance(space, spaces.Dict)
    wanted = {key: (box.shape, str(box.dtype)) for key, box in space.spaces.items()}
    met = {key: (tuple(value.shape), str(value.dtype)) for key, value in observations.items()}
    if wanted != met:
        raise ValueError(f"the observations of {game.name!r} must have the shapes and dtypes {wanted}; they have {met}")


def _keys(seeds: Sequence[int]) -> JaxTree:
    """(B,) random keys; for seeds below 2**32 the same as ``jax.random.key`` makes by default.

    :raises ValueError: if a seed is negative or needs more than 64 bits
    """
    for seed in seeds:
        if not 0 <= seed < 2**64:
            raise ValueError(f"a seed must be from 0 to 2**64 - 1; got {seed}")
    words = np.array([[seed >> 32, seed & 0xFFFFFFFF] for seed in seeds], dtype=np.uint32)
    return import_extra("jax").random.wrap_key_data(words, impl=KEY_IMPLEMENTATION)


def _fresh_seed() -> int:
    return int(seeding.np_random()[0].integers(2**63))


def _choose_rows(mask: NDArray[np.bool_], new: JaxTree, old: JaxTree) -> JaxTree:
    """The marked rows of ``new``, the others of ``old``."""
    jax = import_extra("jax")

    def choose(one: JaxTree, other: JaxTree) -> JaxTree:
        return jax.numpy.where(mask.reshape(mask.shape + (1,) * (one.ndim - 1)), one, other)

    return jax.tree.map(choose, new, old)


def _to_numpy(observations: dict[str, JaxTree]) -> TeamObservation:
    """Copies, as views of JAX's arrays cannot be written to."""
    return {key: np.array(value) for key, value in observations.items()}


def _row(observations: dict[str, JaxTree], row: int) -> TeamObservation:
    return {key: np.array(value)[row] for key, value in observations.items()}


def _final_infos(played: Transition, done: NDArray[np.bool_]) -> dict[str, Any]:
    """What Gymnasium's own vector environments report of finished rows."""
    last = {key: np.asarray(value) for key, value in played.observation.items()}
    final_obs = np.full(len(done), None, dtype=object)
    for row in np.flatnonzero(done).tolist():
        final_obs[row] = {key: value[row].copy() for key, value in last.items()}
    final_info: dict[str, Any] = {}
    for key, value in played.final_info.items():
        # Rows that play on have no such entry; Gymnasium fills in zeros there.
        final_info[key] = np.where(done, np.asarray(value), np.zeros((), np.asarray(value).dtype))
        final_info[f"_{key}"] = done.copy()
    return {"final_obs": final_obs, "_final_obs": done, "final_info": final_info, "_final_info": done.copy()}


def _draw(game: JaxMARLGame, states: JaxTree, row: int) -> NDArray[np.uint8]:
    if states is None:
        raise RuntimeError("there is nothing to draw yet: call reset() before render()")
    assert game.draw is not None
    return game.draw(import_extra("jax").tree.map(lambda leaf: np.asarray(leaf[row]), states))
