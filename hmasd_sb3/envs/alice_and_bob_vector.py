"""Many games of Alice and Bob at once, in NumPy: the same teams as `TeamEnv` makes of the single game, only faster.

No Python loop over games, except over those that start anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from hmasd_sb3.envs.alice_and_bob import RENDER_FPS, RENDER_MODES, check_max_steps, check_render_mode
from hmasd_sb3.envs.alice_and_bob_render import draw_frame, draw_text
from hmasd_sb3.envs.alice_and_bob_rules import ACTIONS, AGENTS, TEAM_REWARD, BoolArray, CellArray, World
from hmasd_sb3.envs.generators import generator_state, restored_generator
from hmasd_sb3.envs.plain_state import checked_entries, checked_like, checked_type
from hmasd_sb3.envs.resets import rows_to_reset

BatchObservation = dict[str, NDArray[Any]]
STATE_KEYS = ("cells", "collected", "steps", "running", "generators")


class AliceAndBobVectorEnv(VectorEnv[BatchObservation, NDArray[Any], NDArray[Any]]):
    """B teams playing Alice and Bob; see `AliceAndBobParallelEnv` for the rules.

    A finished game starts anew within the same step (`AutoresetMode.SAME_STEP`): its row of the returned observation is
    the first of the next episode, and ``infos["final_obs"]`` and ``infos["final_info"]`` hold the last one's, in the
    layout of ``gymnasium.vector.SyncVectorEnv``. Row i plays exactly like a single game of the same seed.

    Observations, shapes with B first: ``obs`` (B, 2, C + 2), ``state`` (B, 2 * C + 2), ``discriminator_obs`` (B, 2, 4),
    ``discriminator_state`` (B, 6), all float32, C = size * size. Actions: (B, 2) integers.

    :param num_envs: number of teams, B
    :param size: free cells along each side, at least 2
    :param max_steps: time limit of an episode in steps, at least 1
    :param allow_stay: whether there is a fifth action that stands still
    :param render_mode: ``"rgb_array"``, ``"ansi"`` or None
    :raises ValueError: if one of these is out of range
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (Gymnasium's convention for this attribute)
        "name": "alice_and_bob_v0",
        "render_modes": list(RENDER_MODES),
        "render_fps": RENDER_FPS,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        size: int = 8,
        max_steps: int = 100,
        allow_stay: bool = False,
        render_mode: str | None = None,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1; got {num_envs}")
        check_render_mode(render_mode)
        check_max_steps(max_steps)
        self.world = World.create(size, allow_stay)
        self.num_envs = num_envs
        self.size = size
        self.max_steps = max_steps
        self.allow_stay = allow_stay
        self.render_mode = render_mode
        self.possible_agents = list(AGENTS)
        self.n_agents = len(AGENTS)

        self.single_observation_space = _team_space(self.world)
        self.single_action_space = spaces.MultiDiscrete([self.world.n_actions] * self.n_agents)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

        # One random stream per row, so that a row's episodes depend on its own seed alone.
        self._rngs: list[np.random.Generator | None] = [None] * num_envs
        self._cells = np.zeros((num_envs, self.n_agents), dtype=np.int64)
        self._collected = np.zeros((num_envs, 2), dtype=np.bool_)
        self._steps = np.zeros(num_envs, dtype=np.int64)
        self._running = False

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[BatchObservation, dict[str, Any]]:
        """Start an episode in every row, or in some.

        :param seed: an int s seeds row i with s + i; a sequence has one seed, or None, per row; without a seed every
            row's random stream goes on
        :param options: ``{"reset_mask": (B,) bool}`` restarts the marked rows alone; other entries are ignored
        :return: the observations of all rows, and an empty dict
        :raises ValueError: if there are not B seeds or B mask entries
        """
        seeds, mask = rows_to_reset(seed, options, self.num_envs)
        for row in np.flatnonzero(mask):
            self._start(int(row), seeds[row])
        self._running = True
        return self._observe(self._cells, self._collected), {}

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[BatchObservation, NDArray[np.float64], BoolArray, BoolArray, dict[str, Any]]:
        """Let all agents of all teams act at once.

        :param actions: (B, 2) integers
        :return: observations; rewards, terminations and truncations, each (B,); infos, empty unless a game ended
        :raises RuntimeError: before the first reset
        :raises ValueError: if an action does not exist or the shape is wrong
        """
        if not self._running:
            raise RuntimeError("no episode is running: call reset() before step()")
        actions = self._checked_actions(actions)
        self._cells = self.world.moves[self._cells, actions]
        self._collected = self.world.collect(self._cells, self._collected)
        self._steps += 1

        terminations = self._collected[:, 0] & self._collected[:, 1]
        truncations = (self._steps >= self.max_steps) & ~terminations
        rewards = terminations.astype(np.float64) * TEAM_REWARD
        observations = self._observe(self._cells, self._collected)
        done = terminations | truncations
        infos: dict[str, Any] = {}
        if done.any():
            infos = self._restart(np.flatnonzero(done), done, terminations, observations)
        return observations, rewards, terminations, truncations, infos

    def render(self) -> tuple[Any, ...] | None:
        """One frame per row, as the ``render_mode`` given at construction says; None without a render mode."""
        if self.render_mode is None:
            return None
        draw = draw_frame if self.render_mode == "rgb_array" else draw_text
        return tuple(draw(self.world, *row) for row in zip(self._cells, self._collected, strict=True))

    def close_extras(self, **kwargs: Any) -> None:
        """Nothing is held open."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides how the games go on, as plain data: the episodes and the rows' random streams."""
        return {
            "cells": self._cells.copy(),
            "collected": self._collected.copy(),
            "steps": self._steps.copy(),
            "running": self._running,
            "generators": [generator_state(rng) for rng in self._rngs],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where as many other games were, which must have been made with the same arguments.

        :param state: from `state_dict`
        :raises ValueError: if it does not fit; nothing is changed then
        """
        checked_entries(state, STATE_KEYS, type(self).__name__)
        cells = self.world.checked_cells(checked_like(state["cells"], self._cells, "'cells'"))
        collected = checked_like(state["collected"], self._collected, "'collected'")
        steps = checked_like(state["steps"], self._steps, "'steps'")
        running = checked_type(state["running"], bool, "'running'")
        generators = checked_type(state["generators"], (list, tuple), "'generators'")
        if len(generators) != self.num_envs:
            raise ValueError(f"'generators' must hold one per row, {self.num_envs}; got {len(generators)}")
        self._rngs = [restored_generator(one) for one in generators]
        self._cells, self._collected, self._steps, self._running = cells, collected, steps, running

    def _start(self, row: int, seed: int | None) -> None:
        rng = self._rngs[row]
        if seed is not None or rng is None:
            self._rngs[row] = rng = seeding.np_random(seed)[0]
        self._cells[row] = self.world.draw_start(rng)
        self._collected[row] = False
        self._steps[row] = 0

    def _restart(
        self, rows: NDArray[np.int64], done: BoolArray, success: BoolArray, observations: BatchObservation
    ) -> dict[str, Any]:
        """Start the finished rows anew, in place in ``observations``, and report how they ended.

        :param rows: indices of the finished rows
        :param done: (B,) the same as a mask
        :param success: (B,) whether both diamonds were collected
        :return: infos with ``final_obs`` and ``final_info``
        """
        final_obs = np.full(self.num_envs, None, dtype=object)
        for row in rows.tolist():
            # Copied before the first observation of the next episode is written over it.
            final_obs[row] = {key: value[row].copy() for key, value in observations.items()}
            self._start(row, None)
        for key, value in self._observe(self._cells[rows], self._collected[rows]).items():
            observations[key][rows] = value
        return {
            "final_obs": final_obs,
            "_final_obs": done,
            "final_info": {"is_success": success & done, "_is_success": done.copy()},
            "_final_info": done.copy(),
        }

    def _observe(self, cells: CellArray, collected: BoolArray) -> BatchObservation:
        """New arrays at every call, as callers keep them."""
        return {
            "discriminator_obs": self.world.discriminator_observations(cells, collected),
            "discriminator_state": self.world.discriminator_state(cells, collected),
            "obs": self.world.observations(cells, collected),
            "state": self.world.state(cells, collected),
        }

    def _checked_actions(self, actions: NDArray[Any]) -> NDArray[Any]:
        actions = np.asarray(actions)
        if actions.shape != self._cells.shape or actions.dtype.kind not in "iu":
            raise ValueError(
                f"actions must be integers of the shape {self._cells.shape}; got {actions.dtype} of {actions.shape}"
            )
        if actions.min() < 0 or actions.max() >= self.world.n_actions:
            row, agent = np.argwhere((actions < 0) | (actions >= self.world.n_actions))[0]
            names = ", ".join(f"{i} {name}" for i, name in enumerate(ACTIONS[: self.world.n_actions]))
            raise ValueError(
                f"{AGENTS[agent]!r} of environment {row} was given the action {actions[row, agent]}; there are {names}"
            )
        return actions


def _team_space(world: World) -> spaces.Dict:
    """What `TeamEnv` makes of the single game's spaces."""
    position_size = world.positions.shape[1]
    return spaces.Dict(
        {
            "obs": spaces.Box(0.0, 1.0, (len(AGENTS), position_size + 2), np.float32),
            "state": spaces.Box(0.0, 1.0, (2 * position_size + 2,), np.float32),
            "discriminator_obs": spaces.Box(-1.0, 1.0, (len(AGENTS), 4), np.float32),
            "discriminator_state": spaces.Box(-1.0, 1.0, (6,), np.float32),
        }
    )
