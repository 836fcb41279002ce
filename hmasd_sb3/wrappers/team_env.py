"""A PettingZoo game as one ordinary Gymnasium environment whose single actor is the team.

That makes every tool for single-agent environments (Monitor, vector environments, checkers, evaluation) apply to teams.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from pettingzoo import ParallelEnv

from hmasd_sb3.envs.generators import generator_state, restored_generator
from hmasd_sb3.envs.plain_state import checked_entries, checked_like, checked_type
from hmasd_sb3.wrappers.agents import AgentActions, AgentObservations
from hmasd_sb3.wrappers.black_death import game_layers, repair_black_death
from hmasd_sb3.wrappers.game_answers import (
    agents_spaces,
    check_is_parallel_env,
    dicts_by_agent,
    one_number,
    possible_agents,
    team_info,
)
from hmasd_sb3.wrappers.game_states import game_state, restore_game
from hmasd_sb3.wrappers.masks import ActionMasks
from hmasd_sb3.wrappers.team_spaces import (
    ACTION_MASK,
    AGENT_MASK,
    DISCRIMINATOR_OBS,
    DISCRIMINATOR_STATE,
    OBS,
    STATE,
    rows_of,
)
from hmasd_sb3.wrappers.views import DiscriminatorViews, StateRule, StateView

TeamObservation = dict[str, NDArray[Any]]
_RESET = ("observations", "infos")
_STEP = ("observations", "rewards", "terminations", "truncations", "infos")
_STATE_KEYS = ("game", "present", "legal", "running", "first_reset", "generator", "seed")
RewardRule = Literal["sum", "mean"] | Callable[[dict[Any, float]], float]


class TeamEnv(gym.Env[TeamObservation, NDArray[Any]]):
    """A PettingZoo ``ParallelEnv`` of N agents as a ``gymnasium.Env`` with one row per team.

    **Observation**, a Dict; agents always in the order of ``possible_agents``:

    - ``obs``, (N, ...): the agents' observations, zeros for an agent that is not there (bounds are widened to hold them).
      Boxes of one shape keep it, and their dtype (but float64 becomes float32); all other spaces are flattened by
      ``gymnasium.spaces.flatten`` and padded with zeros to the longest, (N, O) float32.
    - ``state``, (S,) float32, or a picture in uint8: ``state()`` of the game, or all observations joined if it has none.
    - ``agent_mask``, (N,) MultiBinary: 1 for the agents that are there; at an episode's last observation, for those that
      were there until the end. Left out where ``agent_mask=False``.
    - ``action_mask``, (N, A) MultiBinary, if the game has masks, in the agents' observations (a Dict with the key
      ``action_mask``) or under ``action_mask`` in their infos; or if agents have unequal numbers of actions. 1 is legal.
      Agents that are not there may do anything, as it has no effect.
    - ``discriminator_obs``, (N, D), and ``discriminator_state``, (D',), both float32, if the game defines
      ``discriminator_obs(agent)`` with ``discriminator_obs_space(agent)`` and ``discriminator_state()`` with
      ``discriminator_state_space``: what skills should be recognised by, where that is not what policies see.

    **Action**: ``MultiDiscrete([A] * N)`` or Box (N, A), A being the number of actions, or of an action's components, of
    the agent that has most. A masked action is refused, not replaced; superfluous components of a Box are not looked at.

    **Reward**: one number per step, the sum of the agents' rewards unless ``reward`` says otherwise.

    **End**: the team's episode ends when no agent is left. ``terminated`` is True if every agent that was there until the
    end terminated, else ``truncated`` is True. They are never both True.

    **Info**: empty, but for ``is_success`` where an agent's info has it: whether it is True for all that report it.

    Values are passed on unchanged: nothing is clipped or filled in. The game is reset once while it is being wrapped,
    to see what its infos and its state look like. SuperSuit's ``black_death_v3`` is taken out of its wrappers, as it hides
    who is dead and how an episode ended.

    :param parallel_env: the game; an instance of its own, not shared with another team
    :param reward: ``"sum"``, ``"mean"`` (over the agents that were given one), or a function from the rewards, by agent,
        to the team's
    :param state: None: as above; ``"joined"``: the joined observations even if the game has a ``state()``; or a function
        from the game to an array
    :param agent_mask: whether agents may leave early or join late. None: yes, unless the game's ``metadata`` has
        ``"fixed_agents": True``. Where they may not, one that does is an error.
    :raises TypeError: if ``parallel_env`` is no ``ParallelEnv``
    :raises ValueError: if the game breaks a convention named in the error
    """

    def __init__(
        self,
        parallel_env: ParallelEnv,
        *,
        reward: RewardRule = "sum",
        state: StateRule = None,
        agent_mask: bool | None = None,
    ) -> None:
        check_is_parallel_env(parallel_env)
        if not callable(reward) and reward not in ("sum", "mean"):
            raise ValueError(f"reward must be 'sum', 'mean' or a function of the agents' rewards; got {reward!r}")
        if not callable(state) and state not in (None, "joined"):
            raise ValueError(f"state must be None, 'joined' or a function of the game; got {state!r}")
        self.parallel_env, _ = repair_black_death(parallel_env)
        parallel_env = self.parallel_env
        self.possible_agents: list[Any] = possible_agents(parallel_env)
        self.n_agents = len(self.possible_agents)
        self._known = set(self.possible_agents)
        self.metadata = dict(getattr(parallel_env, "metadata", None) or {})
        self.metadata.setdefault("render_modes", [])
        self.render_mode: str | None = getattr(parallel_env, "render_mode", None)
        self.agents_may_leave = not self.metadata.get("fixed_agents", False) if agent_mask is None else agent_mask

        self._reward_rule = reward
        self._observations = AgentObservations(
            agents_spaces(parallel_env, "observation_space", self.possible_agents), with_absent=self.agents_may_leave
        )
        self._actions = AgentActions(agents_spaces(parallel_env, "action_space", self.possible_agents))
        self.action_space = self._actions.space
        _, infos = dicts_by_agent(parallel_env.reset(), _RESET, "reset()")
        self._present = self._who_is_there()
        """(N,) bool, who is to act."""
        self._masks = ActionMasks(self.possible_agents, self._observations, self._actions, infos, self._present)
        self._state = StateView(parallel_env, state, self._observations.space)
        self._views = DiscriminatorViews(parallel_env, self.possible_agents, with_absent=self.agents_may_leave)
        self._spaces = self._read_spaces()
        self.observation_space = spaces.Dict(dict(self._spaces))  # type: ignore[assignment]
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
        result = self.parallel_env.reset(seed=seed, options=options)
        observations, infos = dicts_by_agent(result, _RESET, "reset()")
        self._present = self._who_is_there()
        self._running = True
        team_observation = self._team_observation(observations, infos, self._present, last=False)
        if self._first_reset:
            self._first_reset = False
            self._warn_if_outside(team_observation)
        return team_observation, team_info(self.possible_agents, infos)

    def step(self, action: NDArray[Any]) -> tuple[TeamObservation, float, bool, bool, dict[str, Any]]:
        """Let every agent that is there act once.

        :param action: (N,) integers, or (N, A) floats
        :return: observation, team reward, terminated, truncated, info
        :raises RuntimeError: if no episode is running
        :raises ValueError: if an action is illegal, an agent leaves or joins although none may, or the game returns
            something that is not what its spaces declare
        """
        if not self._running:
            raise RuntimeError("no episode is running: call reset() before step()")
        acted = self._present
        actions = self._actions.decode(action, self._masks.legal, acted)
        observations, rewards, terminations, truncations, infos = dicts_by_agent(
            self.parallel_env.step(actions), _STEP, "step()"
        )
        self._check_ends_reported(acted, terminations, truncations)
        team_reward = self._team_reward(acted, rewards)
        present = self._who_goes_on(terminations, truncations)
        last = not present.any()
        if not (last or self.agents_may_leave):
            self._check_same_agents(acted, present)
        if last:
            self._running = False
            terminated = all(terminations[self.possible_agents[row]] for row in rows_of(acted))
        self._present = present
        return (
            self._team_observation(observations, infos, acted if last else present, last),
            team_reward,
            last and terminated,
            last and not terminated,
            team_info(self.possible_agents, infos),
        )

    def render(self) -> Any:
        """Whatever the game renders."""
        return self.parallel_env.render()

    def close(self) -> None:
        """Close the game."""
        self.parallel_env.close()

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides how the team goes on, as plain data: its own state and that of the game.

        :raises EnvStateError: if the game, or a wrapper of it, has no ``state_dict()`` and ``load_state_dict(state)``
        """
        return {
            "game": game_state(self.parallel_env),
            "present": self._present.copy(),
            "legal": self._masks.legal.copy(),
            "running": self._running,
            "first_reset": self._first_reset,
            "generator": generator_state(self._np_random),
            "seed": self._np_random_seed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another team was, whose game was made with the same arguments; no reset is needed.

        :param state: from `state_dict`
        :raises EnvStateError: if the game cannot take its part
        :raises ValueError: if the team's own part does not fit; nothing is changed then
        """
        checked_entries(state, _STATE_KEYS, type(self).__name__)
        present = checked_like(state["present"], self._present, "'present'")
        legal = checked_like(state["legal"], self._masks.legal, "'legal'")
        running, first_reset = (checked_type(state[key], bool, repr(key)) for key in ("running", "first_reset"))
        seed = checked_type(state["seed"], (int, type(None)), "'seed'")
        generator = restored_generator(state["generator"])
        restore_game(self.parallel_env, state["game"])
        self._present, self._masks.legal = present, legal
        self._running, self._first_reset = running, first_reset
        self._np_random, self._np_random_seed = generator, seed

    # ---- attributes

    def has_wrapper_attr(self, name: str) -> bool:
        """Whether the team, the game, or a wrapper of the game has such an attribute."""
        return self._owner(name) is not None

    def get_wrapper_attr(self, name: str) -> Any:
        """An attribute of the team, else of the game or a wrapper of it; this is what ``VecEnv.get_attr`` asks for.

        :raises AttributeError: if there is none of that name
        """
        owner = self._owner(name)
        if owner is None:
            raise AttributeError(f"neither the team nor its game has {name!r}")
        return getattr(owner, name)

    def set_wrapper_attr(self, name: str, value: Any, *, force: bool = True) -> bool:
        """Set an attribute where it is.

        :param force: make a new one, in the team, if there is none
        :return: whether it was set
        """
        owner = self._owner(name) or (self if force else None)
        if owner is None:
            return False
        setattr(owner, name, value)
        return True

    def _owner(self, name: str) -> Any:
        """The outermost layer that has the attribute itself; wrappers also show those of what they are around."""
        layers = [self, *game_layers(self.parallel_env)]
        for layer in layers:
            if name in vars(layer) or hasattr(type(layer), name):
                return layer
        return layers[-1] if hasattr(layers[-1], name) else None

    # ---- at construction

    def _read_spaces(self) -> dict[str, spaces.Space[Any]]:
        found: dict[str, spaces.Space[Any]] = {OBS: self._observations.space, STATE: self._state.space}
        if self.agents_may_leave:
            found[AGENT_MASK] = spaces.MultiBinary(self.n_agents)
        if self._masks.exist:
            found[ACTION_MASK] = spaces.MultiBinary(self._actions.own.shape)
        if self._views.obs_space is not None:
            found[DISCRIMINATOR_OBS] = self._views.obs_space
        if self._views.state_space is not None:
            found[DISCRIMINATOR_STATE] = self._views.state_space
        return found

    def _warn_if_outside(self, observation: TeamObservation) -> None:
        """Say so, once, if the game's first observation lies outside its own spaces; it is passed on as it is."""
        for key, value in observation.items():
            if not self._spaces[key].contains(value):
                warnings.warn(
                    f"'{key}' of the first observation lies outside its space {self._spaces[key]}: its values run from "
                    f"{value.min()} to {value.max()}. It is passed on unchanged; correct the space or the game.",
                    stacklevel=3,
                )

    # ---- who is there

    def _who_is_there(self) -> NDArray[np.bool_]:
        """(N,) bool after a reset.

        :raises ValueError: if nobody is, or somebody is missing who may not be
        """
        listed = self._listed()
        present = np.array([agent in listed for agent in self.possible_agents])
        if not present.any():
            raise ValueError("reset() left the game without agents: its 'agents' are empty. Fill them at every reset.")
        if not (present.all() or self.agents_may_leave):
            self._check_same_agents(np.ones_like(present), present)
        return present

    def _listed(self) -> set[Any]:
        """The game's present ``agents``.

        :raises ValueError: if one of them is not among the possible agents
        """
        listed = set(self.parallel_env.agents)
        if not listed <= self._known:
            raise ValueError(
                f"the game's 'agents' name {sorted(listed - self._known, key=str)}, whom its 'possible_agents' did not name "
                f"when it was wrapped: {self.possible_agents}. List all that may ever appear there."
            )
        return listed

    def _who_goes_on(self, terminations: Mapping[Any, bool], truncations: Mapping[Any, bool]) -> NDArray[np.bool_]:
        """(N,) bool after a step: listed and not done. Games may go on listing agents that are."""
        listed = self._listed()
        return np.array(
            [a in listed and not (terminations.get(a, False) or truncations.get(a, False)) for a in self.possible_agents]
        )

    def _check_ends_reported(
        self, acted: NDArray[np.bool_], terminations: Mapping[Any, bool], truncations: Mapping[Any, bool]
    ) -> None:
        for row in rows_of(acted):
            agent = self.possible_agents[row]
            if agent not in terminations or agent not in truncations:
                raise ValueError(
                    f"the game did not say whether {agent!r}, who has just acted, is done: step() must return a "
                    "termination and a truncation for every agent that acted."
                )
            if agent not in self.parallel_env.agents and not (terminations[agent] or truncations[agent]):
                raise ValueError(
                    f"the game took {agent!r} out of 'agents' without a termination or truncation. Report one of them for "
                    "an agent that leaves."
                )

    def _check_same_agents(self, before: NDArray[np.bool_], now: NDArray[np.bool_]) -> None:
        """Refuse a change of agents where there may be none."""
        if (before == now).all():
            return
        gone = [self.possible_agents[row] for row in rows_of(before & ~now)]
        come = [self.possible_agents[row] for row in rows_of(now & ~before)]
        raise ValueError(
            f"this game's agents were said to stay (by agent_mask=False or metadata['fixed_agents']), but {gone} left and "
            f"{come} joined before the end of the team's episode. Use TeamEnv(game, agent_mask=True), or "
            "make_team_vec_env(..., team_kwargs=dict(agent_mask=True))."
        )

    # ---- at each step

    def _team_reward(self, acted: NDArray[np.bool_], rewards: Mapping[Any, float]) -> float:
        for row in rows_of(acted):
            if self.possible_agents[row] not in rewards:
                raise ValueError(
                    f"the game returned no reward for {self.possible_agents[row]!r}; give 0.0 where there is none."
                )
        # Some games go on rewarding agents that have left, and that is the team's too.
        by_agent = {agent: one_number(agent, rewards[agent]) for agent in self.possible_agents if agent in rewards}
        if callable(self._reward_rule):
            return float(self._reward_rule(by_agent))
        total = sum(by_agent.values())
        return total if self._reward_rule == "sum" else total / len(by_agent)

    def _team_observation(
        self, observations: Mapping[Any, Any], infos: Mapping[Any, Any], present: NDArray[np.bool_], last: bool
    ) -> TeamObservation:
        """The team's observation, with the rows of those that are ``present``."""
        obs = self._observations.encode(observations, present)
        team: TeamObservation = {OBS: obs, STATE: self._state.read(obs)}
        if self.agents_may_leave:
            team[AGENT_MASK] = present.astype(np.int8)
        legal = self._masks.read(observations, infos, present, last)
        if self._masks.exist:
            team[ACTION_MASK] = legal.copy()
        if self._views.obs_space is not None:
            team[DISCRIMINATOR_OBS] = self._views.read_obs(present)
        if self._views.state_space is not None:
            team[DISCRIMINATOR_STATE] = self._views.read_state()
        return team
