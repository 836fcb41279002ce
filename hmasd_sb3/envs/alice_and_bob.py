"""Alice and Bob: two agents who must help each other to two diamonds, as a PettingZoo ParallelEnv.

The rules are in `alice_and_bob_rules`, the pictures in `alice_and_bob_render`; this file is the PettingZoo side of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from numpy.typing import NDArray
from pettingzoo import ParallelEnv

from hmasd_sb3.envs.alice_and_bob_render import draw_frame, draw_text
from hmasd_sb3.envs.alice_and_bob_rules import ACTIONS, AGENTS, TEAM_REWARD, FloatArray, World
from hmasd_sb3.envs.generators import generator_state, restored_generator
from hmasd_sb3.envs.plain_state import checked_entries, checked_like, checked_type

RENDER_MODES = ("rgb_array", "ansi")
RENDER_FPS = 6
STATE_KEYS = ("cells", "collected", "steps", "running", "generator")

StepReturn = tuple[dict[str, FloatArray], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]]


def check_render_mode(render_mode: str | None) -> None:
    """Refuse a render mode the game does not have.

    :raises ValueError: naming the modes there are
    """
    if render_mode is not None and render_mode not in RENDER_MODES:
        raise ValueError(f"render_mode must be None or one of {list(RENDER_MODES)}; got {render_mode!r}")


def check_max_steps(max_steps: int) -> None:
    """Refuse a time limit that would end an episode before its first step.

    :raises ValueError: if ``max_steps`` is smaller than 1
    """
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1; got {max_steps}")


class AliceAndBobParallelEnv(ParallelEnv):  # type: ignore[misc]
    """Two agents, two buttons, two diamonds; a diamond comes loose only while the other agent holds its button.

    - **Map**: ``size`` x ``size`` free cells inside walls. Blue button top left, red button top right, red diamond
      bottom left, blue diamond bottom right.
    - **Start**: each agent on a uniformly random cell; they may share one.
    - **Actions**: ``Discrete(4)``: up, down, left, right; with ``allow_stay`` a fifth, stay. Bumping into the wall
      stands still.
    - **Collecting**: after each step, a diamond is collected if one agent stands on it while the other stands on the
      button of its colour. It stays collected.
    - **Reward**: 1.0 for the *team* at the step on which both diamonds are in hand. Each agent is given its half,
      0.5, so that the sum over the agents is exactly 1.0.
    - **End**: terminated once both diamonds are in hand, else truncated (and not terminated) after ``max_steps`` steps.
      On the last step every agent's info holds ``is_success``: whether both diamonds were collected.
    - **Observation** of an agent: float32 in [0, 1], (size * size + 2,): its own cell one-hot, then 1 for a red and 1
      for a blue diamond in hand. ``state()``: both cells one-hot, then the same two flags.

    Beyond PettingZoo's API the game says what a skill should be recognised by: `discriminator_obs` and
    `discriminator_state` with their spaces: coordinates scaled to [-1, 1] and the flags as -1 or 1.

    :param size: free cells along each side, at least 2
    :param max_steps: time limit of an episode in steps, at least 1
    :param allow_stay: whether there is a fifth action that stands still
    :param render_mode: ``"rgb_array"``, ``"ansi"`` or None
    :raises ValueError: if one of these is out of range
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (PettingZoo's convention for this attribute)
        "name": "alice_and_bob_v0",
        "render_modes": list(RENDER_MODES),
        "render_fps": RENDER_FPS,
        "is_parallelizable": True,
        "fixed_agents": True,  # nobody leaves before the end, so a team of these needs no agent mask
    }

    def __init__(
        self,
        size: int = 8,
        max_steps: int = 100,
        allow_stay: bool = False,
        render_mode: str | None = None,
    ) -> None:
        check_render_mode(render_mode)
        check_max_steps(max_steps)
        self.world = World.create(size, allow_stay)
        self.size = size
        self.max_steps = max_steps
        self.allow_stay = allow_stay
        self.render_mode = render_mode

        self.possible_agents = list(AGENTS)
        self.agents: list[str] = []

        position_size = self.world.positions.shape[1]
        # One space object per agent, not one shared: seeding an agent's action space must not seed its partner's.
        self.observation_spaces = {agent: _unit_box(position_size + 2) for agent in AGENTS}
        self.action_spaces = {agent: spaces.Discrete(self.world.n_actions) for agent in AGENTS}
        self.state_space = _unit_box(2 * position_size + 2)
        self._discriminator_obs_spaces = {agent: spaces.Box(-1.0, 1.0, (4,), np.float32) for agent in AGENTS}
        self.discriminator_state_space = spaces.Box(-1.0, 1.0, (6,), np.float32)

        self._np_random: np.random.Generator | None = None
        self._cells = np.zeros(2, dtype=np.int64)
        self._collected = np.zeros(2, dtype=np.bool_)
        self._steps = 0

    def observation_space(self, agent: str) -> spaces.Box:
        """The space of one agent's observation; the same object at every call."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Discrete:
        """The space of one agent's action; the same object at every call."""
        return self.action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, FloatArray], dict[str, dict[str, Any]]]:
        """Start an episode.

        :param seed: starts the random stream anew; without one, the stream goes on
        :param options: ``{"positions": {"alice": (x, y), "bob": (x, y)}}`` places agents by hand, others are
            drawn; x counts columns, y rows, from the top left. Other entries are ignored.
        :return: observations and (empty) infos, by agent
        :raises ValueError: if a position lies outside the room or is for somebody else
        """
        if seed is not None or self._np_random is None:
            self._np_random, _ = seeding.np_random(seed)
        self._cells = self.world.draw_start(self._np_random)
        for agent, (x, y) in ((options or {}).get("positions") or {}).items():
            if agent not in AGENTS:
                raise ValueError(f"options['positions'] places {' and '.join(AGENTS)}; got {agent!r}")
            self._cells[AGENTS.index(agent)] = self.world.cell(x, y)
        self._collected = np.zeros(2, dtype=np.bool_)
        self._steps = 0
        self.agents = list(AGENTS)
        return self._observe(), {agent: {} for agent in AGENTS}

    def step(self, actions: dict[str, int]) -> StepReturn:
        """Let both agents act at once.

        :param actions: one action per agent
        :return: observations, rewards, terminations, truncations and infos, by agent
        :raises RuntimeError: if no episode is running
        :raises ValueError: if an agent's action is missing or does not exist
        """
        if not self.agents:
            raise RuntimeError("no episode is running: call reset() before step()")
        self._cells = self.world.moves[self._cells, [self._checked_action(actions, agent) for agent in AGENTS]]
        self._collected = self.world.collect(self._cells, self._collected)
        self._steps += 1

        terminated = bool(self._collected.all())
        truncated = not terminated and self._steps >= self.max_steps
        if terminated or truncated:
            self.agents = []
        share = TEAM_REWARD / len(AGENTS) if terminated else 0.0
        infos: dict[str, dict[str, Any]] = {
            agent: {"is_success": terminated} if terminated or truncated else {} for agent in AGENTS
        }
        return (
            self._observe(),
            dict.fromkeys(AGENTS, share),
            dict.fromkeys(AGENTS, terminated),
            dict.fromkeys(AGENTS, truncated),
            infos,
        )

    def state(self) -> FloatArray:
        """The global state, (2 * size * size + 2,) float32 in [0, 1]."""
        return self.world.state(self._cells, self._collected)

    def discriminator_obs(self, agent: str) -> FloatArray:
        """What an individual skill should be recognised by: x, y in [-1, 1], red and blue in hand as -1 or 1; (4,)."""
        mine: FloatArray = self.world.discriminator_observations(self._cells, self._collected)[AGENTS.index(agent)]
        return mine

    def discriminator_obs_space(self, agent: str) -> spaces.Box:
        """The space of `discriminator_obs`."""
        return self._discriminator_obs_spaces[agent]

    def discriminator_state(self) -> FloatArray:
        """What a team skill should be recognised by: both agents' scaled x, y and the diamonds as -1 or 1; (6,)."""
        return self.world.discriminator_state(self._cells, self._collected)

    def render(self) -> NDArray[np.uint8] | str | None:
        """The present situation, as the ``render_mode`` given at construction says.

        :return: (H, W, 3) uint8 for ``"rgb_array"``, text for ``"ansi"``, None without a render mode
        """
        if self.render_mode == "rgb_array":
            return draw_frame(self.world, self._cells, self._collected)
        if self.render_mode == "ansi":
            return draw_text(self.world, self._cells, self._collected)
        return None

    def close(self) -> None:
        """Nothing is held open."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides how the game goes on, as plain data: the episode and the random stream."""
        return {
            "cells": self._cells.copy(),
            "collected": self._collected.copy(),
            "steps": self._steps,
            "running": bool(self.agents),
            "generator": generator_state(self._np_random),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another game was, which must have been made with the same arguments.

        :param state: from `state_dict`
        :raises ValueError: if it does not fit; nothing is changed then
        """
        checked_entries(state, STATE_KEYS, type(self).__name__)
        cells = self.world.checked_cells(checked_like(state["cells"], self._cells, "'cells'"))
        collected = checked_like(state["collected"], self._collected, "'collected'")
        steps, running = checked_type(state["steps"], int, "'steps'"), checked_type(state["running"], bool, "'running'")
        self._np_random = restored_generator(state["generator"])
        self._cells, self._collected, self._steps = cells, collected, steps
        self.agents = list(AGENTS) if running else []

    def _observe(self) -> dict[str, FloatArray]:
        return dict(zip(AGENTS, self.world.observations(self._cells, self._collected), strict=True))

    def _checked_action(self, actions: dict[str, int], agent: str) -> int:
        if agent not in actions:
            raise ValueError(f"every agent must act at every step; the action of {agent!r} is missing")
        action = actions[agent]
        if not 0 <= action < self.world.n_actions:
            names = ", ".join(f"{i} {name}" for i, name in enumerate(ACTIONS[: self.world.n_actions]))
            raise ValueError(f"{agent!r} was given the action {action}; there are {names}")
        return int(action)


def _unit_box(size: int) -> spaces.Box:
    return spaces.Box(0.0, 1.0, (size,), np.float32)


def parallel_env(**kwargs: Any) -> AliceAndBobParallelEnv:
    """Make the game under PettingZoo's usual name; takes the arguments of `AliceAndBobParallelEnv`."""
    return AliceAndBobParallelEnv(**kwargs)
