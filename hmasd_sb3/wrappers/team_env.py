"""A PettingZoo game of equal agents as one ordinary Gymnasium environment whose single actor is the team.

That makes every tool for single-agent environments (Monitor, vector environments, checkers, evaluation) apply to teams.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from pettingzoo import AECEnv, ParallelEnv

from hmasd_sb3.wrappers.team_spaces import (
    ACTION_MASK,
    DISCRIMINATOR_OBS,
    DISCRIMINATOR_STATE,
    INNER_MASK,
    INNER_OBS,
    OBS,
    STATE,
    check_equal_spaces,
    checked_array,
    flat_float_box,
    float_for_double,
    read_agent_spaces,
    stacked_box,
    team_action_space,
    unbounded_box,
)

TeamObservation = dict[str, NDArray[Any]]
RewardRule = Literal["sum", "mean"] | Callable[[dict[Any, float]], float]


class TeamEnv(gym.Env[TeamObservation, NDArray[Any]]):
    """A PettingZoo ``ParallelEnv`` of N equal agents as a ``gymnasium.Env`` with one row per team.

    **Observation**, a Dict; agents always in the order of ``possible_agents``:

    - ``obs``, (N, ...): the agents' observations. float64 becomes float32, other dtypes stay.
    - ``state``, (S,) float32: ``state()`` of the game, flattened, or all observations joined if it has none.
    - ``action_mask``, (N, A) MultiBinary, if the game has masks: in the agents' observations (a Dict of ``observation``
      and ``action_mask``) or under ``action_mask`` in their infos. 1 is legal.
    - ``discriminator_obs``, (N, D), and ``discriminator_state``, (D',), both float32, if the game defines
      ``discriminator_obs(agent)`` with ``discriminator_obs_space(agent)`` and ``discriminator_state()`` with
      ``discriminator_state_space``: what skills should be recognised by, where that is not what policies see.

    **Action**: ``MultiDiscrete([A] * N)`` or Box (N, A). A masked action is refused, not replaced.

    **Reward**: one number per step, the sum of the agents' rewards unless ``reward`` says otherwise.

    **End**: all agents end together. ``terminated`` is True if every agent terminated; ``truncated`` is True if every
    agent is done, not all of them terminated, and so at least one was truncated. They are never both True.

    **Info**: empty, but for ``is_success`` where an agent's info has it: whether it is True for all that report it.

    Values are passed on unchanged: nothing is clipped or filled in. The game is reset once while it is being wrapped,
    to see what its infos and its state look like.

    :param parallel_env: the game; an instance of its own, not shared with another team
    :param reward: ``"sum"``, ``"mean"``, or a function from the agents' rewards, by agent, to the team's
    :raises TypeError: if ``parallel_env`` is no ``ParallelEnv``
    :raises ValueError: if the game breaks a convention named in the error
    """

    def __init__(self, parallel_env: ParallelEnv, *, reward: RewardRule = "sum") -> None:
        _check_is_parallel_env(parallel_env)
        if not callable(reward) and reward not in ("sum", "mean"):
            raise ValueError(f"reward must be 'sum', 'mean' or a function of the agents' rewards; got {reward!r}")
        self.parallel_env = parallel_env
        self.possible_agents: list[Any] = _possible_agents(parallel_env)
        self.n_agents = len(self.possible_agents)
        self.metadata = dict(getattr(parallel_env, "metadata", None) or {})
        self.metadata.setdefault("render_modes", [])
        self.render_mode: str | None = getattr(parallel_env, "render_mode", None)

        self._reward_rule = reward
        self._agent_spaces = read_agent_spaces(parallel_env, self.possible_agents)
        self.action_space = team_action_space(self._agent_spaces.action, self.n_agents)

        _, infos = parallel_env.reset()
        self._check_all_present()
        self._mask_in_infos = not self._agent_spaces.mask_in_obs and self._infos_hold_masks(infos)
        self._has_mask = self._agent_spaces.mask_in_obs or self._mask_in_infos
        self._has_state = True
        self._has_discriminator_obs = callable(getattr(parallel_env, "discriminator_obs", None))
        self._has_discriminator_state = callable(getattr(parallel_env, "discriminator_state", None))
        self._spaces = self._read_spaces()
        self.observation_space = spaces.Dict(dict(self._spaces))  # type: ignore[assignment]

        self._legal = np.ones((0, 0), dtype=np.int8)  # (N, A) of the present observation, if the game has masks
        self._running = False
        self._first_reset = True

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[TeamObservation, dict[str, Any]]:
        """Start an episode.

        :param seed: handed to the game
        :param options: handed to the game
        :return: the observation and the info (empty unless an agent's info holds ``is_success``)
        """
        super().reset(seed=seed)
        observations, infos = self.parallel_env.reset(seed=seed, options=options)
        self._check_all_present()
        self._running = True
        team_observation = self._team_observation(observations, infos, last=False)
        if self._first_reset:
            self._first_reset = False
            self._warn_if_outside(team_observation)
        return team_observation, _team_info(self.possible_agents, infos)

    def step(self, action: NDArray[Any]) -> tuple[TeamObservation, float, bool, bool, dict[str, Any]]:
        """Let every agent act once.

        :param action: (N,) integers, or (N, A) floats
        :return: observation, team reward, terminated, truncated, info
        :raises RuntimeError: if no episode is running
        :raises ValueError: if an action is illegal, an agent leaves before the others, or the game returns something
            that is not what its spaces declare
        """
        if not self._running:
            raise RuntimeError("no episode is running: call reset() before step()")
        actions = self._agent_actions(action)
        observations, rewards, terminations, truncations, infos = self.parallel_env.step(actions)
        terminated, truncated = self._team_end(terminations, truncations)
        last = terminated or truncated
        self._running = not last
        return (
            self._team_observation(observations, infos, last),
            self._team_reward(rewards),
            terminated,
            truncated,
            _team_info(self.possible_agents, infos),
        )

    def render(self) -> Any:
        """Whatever the game renders."""
        return self.parallel_env.render()

    def close(self) -> None:
        """Close the game."""
        self.parallel_env.close()

    # ---- at construction

    def _read_spaces(self) -> dict[str, spaces.Space[Any]]:
        """The team's observation space; needs a game that has been reset."""
        obs, action, _ = self._agent_spaces
        found: dict[str, spaces.Space[Any]] = {OBS: stacked_box(obs, self.n_agents, float_for_double(obs.dtype))}
        found[STATE] = self._read_state_space(obs)
        if self._has_mask and isinstance(action, spaces.Discrete):
            found[ACTION_MASK] = spaces.MultiBinary((self.n_agents, int(action.n)))
        if self._has_discriminator_obs:
            space_of = getattr(self.parallel_env, "discriminator_obs_space", None)
            if not callable(space_of):
                raise ValueError("the game defines discriminator_obs(agent) but not discriminator_obs_space(agent): add it.")
            by_agent = {agent: space_of(agent) for agent in self.possible_agents}
            check_equal_spaces(self.possible_agents, by_agent, "discriminator observation")
            flat = flat_float_box(_checked_box(by_agent[self.possible_agents[0]], "discriminator_obs_space(agent)"))
            found[DISCRIMINATOR_OBS] = stacked_box(flat, self.n_agents, np.float32)
        if self._has_discriminator_state:
            space = getattr(self.parallel_env, "discriminator_state_space", None)
            found[DISCRIMINATOR_STATE] = flat_float_box(_checked_box(space, "discriminator_state_space"))
        return found

    def _read_state_space(self, obs: spaces.Box) -> spaces.Box:
        """The declared state space, or one like the state at hand, or the joined observations' if there is no state."""
        try:
            state = self.parallel_env.state()
        except NotImplementedError:
            self._has_state = False
            return flat_float_box(stacked_box(obs, self.n_agents, np.float32))
        declared = getattr(self.parallel_env, "state_space", None)
        if declared is not None:
            return flat_float_box(_checked_box(declared, "state_space"))
        return unbounded_box((np.asarray(state).size,))

    def _infos_hold_masks(self, infos: dict[Any, Any]) -> bool:
        """Whether the infos of a reset carry action masks: of every agent, or of none.

        :raises ValueError: if only some agents have one
        """
        without = [agent for agent in self.possible_agents if INNER_MASK not in infos.get(agent, {})]
        if not isinstance(self._agent_spaces.action, spaces.Discrete) or len(without) == self.n_agents:
            return False
        if without:
            raise ValueError(f"the infos of some agents carry an 'action_mask', but not those of {without}: give it to all.")
        return True

    def _check_all_present(self) -> None:
        missing = [agent for agent in self.possible_agents if agent not in self.parallel_env.agents]
        if missing:
            raise ValueError(
                f"every agent must take part from the first step on, but reset() left out {missing}. Let "
                "possible_agents name the agents of this game alone, or keep absent agents in with blank observations."
            )

    def _warn_if_outside(self, observation: TeamObservation) -> None:
        """Say so, once, if the game's first observation lies outside its own spaces; it is passed on as it is."""
        for key, value in observation.items():
            if not self._spaces[key].contains(value):
                warnings.warn(
                    f"'{key}' of the first observation lies outside its space {self._spaces[key]}: its values run from "
                    f"{value.min()} to {value.max()}. It is passed on unchanged; correct the space or the game.",
                    stacklevel=3,
                )

    # ---- at each step

    def _agent_actions(self, action: NDArray[Any]) -> dict[Any, Any]:
        """One legal action per agent as its own space has it: int counted from ``start``, or an array of its dtype."""
        space = self._agent_spaces.action
        array = np.asarray(action)
        if array.shape != self.action_space.shape:
            raise ValueError(f"a team's action must have the shape {self.action_space.shape}; got {array.shape}")
        if isinstance(space, spaces.Discrete):
            self._check_legal(array, int(space.n))
            start = int(space.start)
            return {agent: start + int(a) for agent, a in zip(self.possible_agents, array.tolist(), strict=True)}
        if not np.isfinite(array).all():
            raise ValueError(f"a team's action must be finite numbers; got {array}")
        # A copy, as a game may keep or change what it is given.
        return dict(zip(self.possible_agents, np.array(array, dtype=space.dtype), strict=True))

    def _check_legal(self, actions: NDArray[Any], n_actions: int) -> None:
        if actions.dtype.kind not in "iu":
            raise ValueError(f"a team's action must be integers; got {actions.dtype}")
        for index, agent in enumerate(self.possible_agents):
            a = actions[index]
            if not 0 <= a < n_actions:
                raise ValueError(f"{agent!r} has the actions 0..{n_actions - 1}; got {a}")
            if self._has_mask and not self._legal[index, a]:
                legal = np.flatnonzero(self._legal[index]).tolist()
                raise ValueError(f"the action mask forbids {agent!r} the action {a}; legal now: {legal}")

    def _team_end(self, terminations: dict[Any, bool], truncations: dict[Any, bool]) -> tuple[bool, bool]:
        """(terminated, truncated) of the team.

        :raises ValueError: if only some agents are done
        """
        agents = self.possible_agents
        unreported = [agent for agent in agents if agent not in terminations or agent not in truncations]
        over = [agent for agent in agents if agent not in unreported and (terminations[agent] or truncations[agent])]
        if len(over) == len(agents):
            terminated = all(terminations[agent] for agent in agents)
            return terminated, not terminated
        left = over or unreported or [agent for agent in agents if agent not in self.parallel_env.agents]
        if left:
            raise ValueError(
                f"all agents must stay until the team's episode ends, but {left} left before the others. Keep "
                "them in the game, with blank observations and no reward, until the last step; for games with "
                "Box spaces supersuit.black_death_v3 does so."
            )
        return False, False

    def _team_reward(self, rewards: dict[Any, float]) -> float:
        try:
            by_agent = {agent: float(rewards[agent]) for agent in self.possible_agents}
        except KeyError as error:
            raise ValueError(f"the game returned no reward for {error.args[0]!r}; give 0.0 where there is none.") from None
        if callable(self._reward_rule):
            return float(self._reward_rule(by_agent))
        total = sum(by_agent.values())
        return total if self._reward_rule == "sum" else total / self.n_agents

    def _team_observation(self, observations: dict[Any, Any], infos: dict[Any, Any], last: bool) -> TeamObservation:
        team: TeamObservation = {OBS: self._stacked_observations(observations)}
        if self._has_state:
            team[STATE] = self._flat(self.parallel_env.state(), STATE, "state()")
        else:
            team[STATE] = team[OBS].ravel().astype(np.float32)
        if self._has_mask:
            self._legal = self._masks(observations, infos, last)
            team[ACTION_MASK] = self._legal.copy()
        if self._has_discriminator_obs:
            shape = self._spaces[DISCRIMINATOR_OBS].shape[1:]  # type: ignore[index]
            rows = [np.ravel(self.parallel_env.discriminator_obs(agent)) for agent in self.possible_agents]
            team[DISCRIMINATOR_OBS] = np.stack(
                [checked_array(row, shape, np.dtype(np.float32), "discriminator_obs(agent)") for row in rows]
            )
        if self._has_discriminator_state:
            value = self.parallel_env.discriminator_state()
            team[DISCRIMINATOR_STATE] = self._flat(value, DISCRIMINATOR_STATE, "discriminator_state()")
        return team

    def _stacked_observations(self, observations: dict[Any, Any]) -> NDArray[Any]:
        """(N, ...) from the agents' observations, without their masks."""
        space = self._spaces[OBS]
        assert space.shape is not None
        assert space.dtype is not None
        out = np.empty(space.shape, dtype=space.dtype)
        for index, agent in enumerate(self.possible_agents):
            if agent not in observations:
                raise ValueError(
                    f"the game returned no observation for {agent!r}; every agent needs one, at the last step too."
                )
            value = observations[agent][INNER_OBS] if self._agent_spaces.mask_in_obs else observations[agent]
            out[index] = checked_array(value, space.shape[1:], space.dtype, f"the observation of {agent!r}")
        return out

    def _flat(self, value: Any, key: str, what: str) -> NDArray[Any]:
        shape = self._spaces[key].shape
        assert shape is not None
        # A copy even if nothing has to be converted: games may return the array they go on writing to.
        return checked_array(np.ravel(value), shape, np.dtype(np.float32), what).copy()

    def _masks(self, observations: dict[Any, Any], infos: dict[Any, Any], last: bool) -> NDArray[np.int8]:
        """(N, A) masks. After the last step nobody acts: a mask may then be blank, and a missing one allows everything.

        :raises ValueError: if an agent that is to act has no mask or no legal action
        """
        shape = self._spaces[ACTION_MASK].shape
        assert shape is not None
        out = np.ones(shape, dtype=np.int8)
        for index, agent in enumerate(self.possible_agents):
            source = observations[agent] if self._agent_spaces.mask_in_obs else infos.get(agent, {})
            if INNER_MASK in source:
                out[index] = checked_array(source[INNER_MASK], shape[1:], np.dtype(np.int8), f"the mask of {agent!r}")
            elif not last:
                raise ValueError(f"{agent!r} was given no 'action_mask' this time; the game must give one at every step.")
            if not last and not out[index].any():
                raise ValueError(f"the action mask of {agent!r} allows no action; an agent that is to act needs one.")
        return out


def _check_is_parallel_env(env: Any) -> None:
    if isinstance(env, ParallelEnv):
        return
    if isinstance(env, AECEnv):
        hint = "convert the turn-based game with pettingzoo.utils.conversions.aec_to_parallel first"
    elif callable(env):
        hint = "call the factory and pass the game it makes"
    else:
        hint = "pass a pettingzoo.ParallelEnv"
    raise TypeError(f"TeamEnv wraps a PettingZoo ParallelEnv; got {type(env).__name__}: {hint}.")


def _possible_agents(env: ParallelEnv) -> list[Any]:
    agents = list(getattr(env, "possible_agents", None) or ())
    if not agents:
        raise ValueError("the game must list its agents in 'possible_agents', before its first reset; it lists none.")
    return agents


def _checked_box(space: Any, what: str) -> spaces.Box:
    if not isinstance(space, spaces.Box):
        raise ValueError(f"{what} must be a gymnasium.spaces.Box; got {space!r}")
    return space


def _team_info(agents: list[Any], infos: dict[Any, Any]) -> dict[str, Any]:
    """``is_success`` if any agent reports it, else nothing."""
    reports = [infos[agent]["is_success"] for agent in agents if agent in infos and "is_success" in infos[agent]]
    return {"is_success": all(bool(report) for report in reports)} if reports else {}
