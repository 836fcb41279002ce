"""HMASDPolicy: coordinator, actor, critic and discriminators under SB3's policy interface.

Knows spaces and torch; knows no buffer and no algorithm. The skill state belongs to the caller, never to the policy, so
evaluating in the middle of collection cannot disturb training.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.common.utils import get_device

from hmasd_sb3.normalization import ValueNorm, to_float
from hmasd_sb3.policies.coordinator import SkillCoordinator, TransformerCoordinator
from hmasd_sb3.policies.discoverer import RecurrentActor, RecurrentCritic
from hmasd_sb3.policies.discriminators import SkillDiscriminators
from hmasd_sb3.policies.features import is_picture
from hmasd_sb3.policies.flat import FlatOptimizer
from hmasd_sb3.policies.spec import TeamSpaceError, TeamSpec, discriminator_space, first_agent
from hmasd_sb3.saving.archive import ModelFileError, UntrustedFileError, read_archive, write_archive
from hmasd_sb3.saving.plain import PlainWriter, read_plain
from hmasd_sb3.saving.trees import tree_from_bytes, tree_to_bytes
from hmasd_sb3.type_aliases import SkillState, TeamDecision, TensorDict
from hmasd_sb3.validation import check_policy_kwargs

Self = TypeVar("Self", bound="HMASDPolicy")

NETWORKS = ("coordinator", "actor", "critic", "discriminators")
_MODEL_ARGUMENTS = ("skill_interval", "n_team_skills", "n_agent_skills")
"""Arguments that the algorithm gives, beside ``policy_kwargs``."""


class HMASDPolicy(BasePolicy):
    """Hierarchical policy of a team.

    :param observation_space: Dict with ``obs`` (N, ...), ``state`` (S,) or a picture, and optionally ``action_mask``,
        ``agent_mask``, ``discriminator_obs``, ``discriminator_state``
    :param action_space: MultiDiscrete([A] * N) or Box of shape (N, A)
    :param lr_schedule: learning rate of coordinator, actor and critic
    :param skill_interval: k, steps between assignments
    :param n_team_skills: n_Z
    :param n_agent_skills: n_z
    :param hidden_size: width of every network
    :param critic_sees_agent_skills: V_l^i(s, Z, z^1..z^N) instead of the paper's V_l(s, Z)
    :param log_std_init: initial log standard deviation of continuous actions, in units where they span [-1, 1]
    :param value_norm: normalise value targets by their running statistics
    :param value_norm_beta: weight of the past at each rollout
    :param coordinator_class: see :class:`~hmasd_sb3.policies.coordinator.SkillCoordinator`
    :param coordinator_kwargs: e.g. ``n_heads``, ``n_blocks``
    :param features_extractor_class: SB3 feature extractor, applied to each agent's observation, and to the state if that is
        a picture; every network has its own. None: inputs as they are. What has two or three axes per agent is a picture,
        and is given to it with its channels first (one channel if there are two axes)
    :param features_extractor_kwargs: its arguments
    :param optimizer_class: element-wise optimizer, used once per network
    :param optimizer_kwargs: its arguments; Adam's epsilon defaults to 1e-5
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        skill_interval: int = 50,
        n_team_skills: int = 2,
        n_agent_skills: int = 4,
        hidden_size: int = 64,
        critic_sees_agent_skills: bool = True,
        log_std_init: float = -0.5,
        value_norm: bool = True,
        value_norm_beta: float = 0.9,
        coordinator_class: type[SkillCoordinator] = TransformerCoordinator,
        coordinator_kwargs: dict[str, Any] | None = None,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.spec = TeamSpec.from_spaces(observation_space, action_space, features_extractor_class, features_extractor_kwargs)
        if not (isinstance(coordinator_class, type) and issubclass(coordinator_class, SkillCoordinator)):
            raise ValueError(f"coordinator_class must be a subclass of SkillCoordinator, got {coordinator_class!r}.")
        if isinstance(hidden_size, bool) or not isinstance(hidden_size, int):
            raise ValueError(f"hidden_size must be a whole number of at least 1, got {hidden_size!r}.")
        if hidden_size < 1:
            raise ValueError(f"hidden_size must be at least 1, got {hidden_size}.")
        if not 0.0 <= value_norm_beta < 1.0:
            raise ValueError(f"value_norm_beta must be in [0, 1), got {value_norm_beta}.")
        assert isinstance(observation_space, spaces.Dict)
        if optimizer_kwargs is None:
            optimizer_kwargs = {"eps": 1e-5} if optimizer_class is th.optim.Adam else {}
        super().__init__(observation_space, action_space, optimizer_class=optimizer_class, optimizer_kwargs=optimizer_kwargs)
        self.skill_interval = skill_interval
        self.n_team_skills = n_team_skills
        self.n_agent_skills = n_agent_skills
        self.hidden_size = hidden_size
        self._initial_lr = float(lr_schedule(1.0))
        self._own_kwargs: dict[str, Any] = dict(
            critic_sees_agent_skills=critic_sees_agent_skills,
            log_std_init=log_std_init,
            value_norm=value_norm,
            value_norm_beta=value_norm_beta,
            coordinator_class=coordinator_class,
            coordinator_kwargs=coordinator_kwargs,
            features_extractor_class=features_extractor_class,
            features_extractor_kwargs=features_extractor_kwargs,
        )
        self.coordinator = coordinator_class(
            self.spec, n_team_skills, n_agent_skills, **{"hidden_size": hidden_size, **(coordinator_kwargs or {})}
        )
        self.actor = RecurrentActor(self.spec, n_agent_skills, hidden_size, log_std_init)
        self.critic = RecurrentCritic(self.spec, n_team_skills, n_agent_skills, hidden_size, critic_sees_agent_skills)
        seen_state = discriminator_space(observation_space, "state")
        assert isinstance(seen_state, spaces.Box)
        self.discriminators = SkillDiscriminators(
            seen_state,
            first_agent(discriminator_space(observation_space, "obs")),
            n_team_skills,
            n_agent_skills,
            hidden_size,
            features_extractor_class,
            features_extractor_kwargs,
        )
        self.high_value_norm = ValueNorm(value_norm_beta, value_norm)
        self.low_value_norm = ValueNorm(value_norm_beta, value_norm)
        self._flat: dict[str, FlatOptimizer] = {}

    def build_optimizers(self) -> None:
        """One optimizer per network; call after the policy has been moved to its device."""
        self._flat = {
            name: FlatOptimizer(getattr(self, name), name, self._initial_lr, self.optimizer_class, self.optimizer_kwargs)
            for name in NETWORKS
        }

    def flat(self, network: str) -> FlatOptimizer:
        """Flat optimizer of ``coordinator``, ``actor``, ``critic`` or ``discriminators``."""
        return self._flat[network]

    @property
    def coordinator_optimizer(self) -> th.optim.Optimizer:
        """Optimizer of the skill coordinator."""
        return self._flat["coordinator"].optimizer

    @property
    def actor_optimizer(self) -> th.optim.Optimizer:
        """Optimizer of the low-level actor."""
        return self._flat["actor"].optimizer

    @property
    def critic_optimizer(self) -> th.optim.Optimizer:
        """Optimizer of the low-level critic."""
        return self._flat["critic"].optimizer

    @property
    def discriminators_optimizer(self) -> th.optim.Optimizer:
        """Optimizer of both discriminators."""
        return self._flat["discriminators"].optimizer

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return dict(
            observation_space=self.observation_space,
            action_space=self.action_space,
            lr_schedule=self._dummy_schedule,
            skill_interval=self.skill_interval,
            n_team_skills=self.n_team_skills,
            n_agent_skills=self.n_agent_skills,
            hidden_size=self.hidden_size,
            optimizer_class=self.optimizer_class,
            optimizer_kwargs=self.optimizer_kwargs,
            **self._own_kwargs,
        )

    # ------------------------------------------------------------------ files

    def save(self, path: str | pathlib.Path) -> None:
        """Save the policy alone, without optimizers and training state, as plain data.

        :param path: ".zip" is added to a path without suffix
        :raises ValueError: if it was made with something that is no plain data
        """
        writer = PlainWriter()
        arguments = {name: value for name, value in self._get_constructor_parameters().items() if name != "lr_schedule"}
        written = {name: writer.write(value, name) for name, value in arguments.items()}
        if writer.left_out:
            raise ValueError(f"{sorted(writer.left_out)} cannot be stored as plain data. Save the whole model instead.")
        parts = {"constructor.json": json.dumps(written).encode(), "policy.pth": tree_to_bytes(self.state_dict())}
        write_archive(path, "policy", f"{type(self).__module__}:{type(self).__qualname__}", parts)

    @classmethod
    def load(cls: type[Self], path: str | pathlib.Path, device: th.device | str = "auto", trust: bool = False) -> Self:
        """Load what :meth:`save` wrote. No code from the file is run, unless ``trust`` allows it.

        :param path: what was given to ``save``
        :param device: where the networks go
        :param trust: also read a policy in Stable-Baselines3's pickled format, which can run any code that it contains
        :raises FileNotFoundError: if there is no such file
        :raises ModelFileError: if it is damaged, something else, or needs ``trust``
        """
        try:
            parts = read_archive(path, "policy").parts
        except UntrustedFileError:
            if not trust:
                raise
            return super().load(str(path), device)
        try:
            arguments = read_plain(json.loads(parts["constructor.json"]))
            own = {name: arguments[name] for name in arguments if name not in ("observation_space", "action_space")}
            check_policy_kwargs(cls, {name: value for name, value in own.items() if name not in _MODEL_ARGUMENTS})
            policy = cls(lr_schedule=cls._dummy_schedule, **arguments)
            policy.load_state_dict(tree_from_bytes(parts["policy.pth"]))
        except Exception as error:  # no code of the file was run, but anything may be wrong with what it says
            raise ModelFileError(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error
        return policy.to(get_device(device))

    # ------------------------------------------------------------------ acting

    def initial_skill_state(self, n_envs: int) -> SkillState:
        """Nothing assigned yet, memory empty."""
        n_agents = self.spec.n_agents
        return SkillState(
            np.zeros(n_envs, dtype=np.int64),
            np.zeros((n_envs, n_agents), dtype=np.int64),
            np.zeros(n_envs, dtype=np.int64),
            np.zeros((n_envs, n_agents, self.hidden_size), dtype=np.float32),
        )

    def flat_obs(self, observation: TensorDict) -> th.Tensor:
        """(..., N, *obs_shape) -> (..., N, O) float32."""
        obs = observation["obs"]
        n_leading = obs.dim() - len(self.observation_space["obs"].shape or ()) + 1  # type: ignore[index]
        return to_float(obs).flatten(n_leading)

    def act(
        self, observation: TensorDict, state: SkillState, episode_start: np.ndarray, deterministic: bool = False
    ) -> TeamDecision:
        """One step of every team: assign skills where they ran out, then act.

        This is the only place where skill timers advance.

        :param observation: tensors with a leading axis B
        :param state: what the previous step returned
        :param episode_start: (B,) bool, rows that begin an episode: their skills and memory are void
        :param deterministic: most likely skills and actions
        """
        team_skill, agent_skills, steps_left = (array.copy() for array in state[:3])
        hidden = state.hidden
        if episode_start.any():
            hidden = np.where(episode_start[:, None, None], np.float32(0.0), hidden)
            steps_left[episode_start] = 0
        present = observation["agent_mask"].bool() if self.spec.has_agent_mask else None
        if present is not None and bool(present.all()):
            present = None
        with th.no_grad():
            obs = self.flat_obs(observation)
            assigned = steps_left == 0
            skill_log_probs = np.zeros((len(assigned), 1 + self.spec.n_agents), dtype=np.float32)
            if assigned.any():
                rows = th.from_numpy(np.flatnonzero(assigned)).to(obs.device)
                choice = self.coordinator.assign(
                    to_float(observation["state"][rows]).flatten(1),
                    obs[rows],
                    deterministic,
                    agent_mask=None if present is None else present[rows],
                )
                team_skill[assigned] = choice.team_skill.cpu().numpy()
                agent_skills[assigned] = choice.agent_skills.cpu().numpy()
                skill_log_probs[assigned] = choice.log_probs.cpu().numpy()
                steps_left[assigned] = self.skill_interval
            actions, log_probs, next_hidden = self._low_level(observation, obs, agent_skills, hidden, deterministic)
        if present is not None:
            # Who joins, or comes back, begins with an empty memory.
            next_hidden *= present.cpu().numpy()[..., None]
        next_state = SkillState(team_skill, agent_skills, steps_left - 1, next_hidden)
        return TeamDecision(actions, log_probs, assigned, skill_log_probs, hidden, next_state)

    def _low_level(
        self, observation: TensorDict, obs: th.Tensor, agent_skills: np.ndarray, hidden: np.ndarray, deterministic: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        n_rows, n_agents = agent_skills.shape
        mask = observation["action_mask"].flatten(0, 1).bool() if self.spec.has_action_mask else None
        actions, log_probs, next_hidden = self.actor.act(
            obs.flatten(0, 1),
            th.from_numpy(agent_skills).to(obs.device).flatten(),
            th.from_numpy(hidden).to(obs.device).flatten(0, 1),
            mask,
            deterministic,
        )
        return (
            actions.cpu().numpy().reshape(n_rows, n_agents, *self.spec.action_shape),
            log_probs.cpu().numpy().reshape(n_rows, n_agents),
            next_hidden.cpu().numpy().reshape(n_rows, n_agents, -1),
        )

    def to_env_actions(self, actions: np.ndarray) -> np.ndarray:
        """Scored actions -> actions for the game: continuous ones are clipped to [-1, 1] and stretched to the bounds."""
        if not self.spec.continuous:
            return actions
        clipped = self.unscale_action(np.clip(actions, -1.0, 1.0))
        assert isinstance(self.action_space, spaces.Box)
        # Float rounding of the stretch may step over a bound by one unit in the last place.
        bounded: np.ndarray = np.clip(clipped, self.action_space.low, self.action_space.high)
        return bounded.astype(self.action_space.dtype)

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Actions for one observation or a batch of them.

        :param observation: Dict of arrays, with or without a leading axis B
        :param state: what the previous call returned; None at the start
        :param episode_start: (B,) bool; rows that are True get new skills and an empty memory
        :param deterministic: most likely skills and actions
        :return: actions for the game ((B, N, *A), or without B as the observation came), and the state to pass next time
        :raises ValueError: if the observation is no Dict of a team, or ``state`` belongs to another number of teams
        """
        self.set_training_mode(False)
        if not isinstance(observation, dict):
            raise ValueError(
                f"predict() needs the team's Dict observation, got {type(observation).__name__}. "
                "Gymnasium's reset() returns (obs, info): pass only obs."
            )
        assert isinstance(self.observation_space, spaces.Dict)
        if set(observation) != set(self.observation_space.spaces):
            needed = sorted(self.observation_space.spaces)
            raise ValueError(f"The observation has the keys {sorted(observation)}, this model needs {needed}.")
        tensors, vectorized = self.obs_to_tensor(observation)
        assert isinstance(tensors, dict)
        n_envs = tensors["state"].shape[0]
        skill_state = self.initial_skill_state(n_envs) if state is None else SkillState(*state)
        if skill_state.team_skill.shape != (n_envs,):
            raise ValueError(
                f"The skill state belongs to {skill_state.team_skill.shape[0]} teams, the observation to {n_envs}. "
                "Pass state=None when the number of environments changes."
            )
        starts = np.zeros(n_envs, dtype=bool) if episode_start is None else np.asarray(episode_start, dtype=bool)
        decision = self.act(tensors, skill_state, starts.reshape(n_envs), deterministic)
        actions = self.to_env_actions(decision.actions)
        return (actions if vectorized else actions[0]), decision.state

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """First action of an episode (required by the base class; ``predict`` carries the skill state)."""
        assert isinstance(observation, dict)
        n_envs = observation["state"].shape[0]
        decision = self.act(observation, self.initial_skill_state(n_envs), np.ones(n_envs, dtype=bool), deterministic)
        return th.from_numpy(self.to_env_actions(decision.actions))


class HMASDCnnPolicy(HMASDPolicy):
    """HMASD for agents that see pictures: every network reads them through a convolutional network of its own.

    ``obs`` (N, H, W), (N, H, W, C) or (N, C, H, W); a state that is a picture is read the same way. Arguments as
    :class:`HMASDPolicy`, with SB3's :class:`NatureCNN` as feature extractor unless another is given.

    :raises TeamSpaceError: if the agents do not see pictures
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        **kwargs: Any,
    ) -> None:
        spec = TeamSpec.from_spaces(observation_space, action_space)
        if not is_picture(spec.obs_space):
            raise TeamSpaceError(
                f"CnnPolicy is for pictures, an 'obs' of shape (n_agents, height, width[, channels]); got that of "
                f"{spec.n_agents} agents with {spec.obs_space.shape} each. Use 'MlpPolicy'."
            )
        super().__init__(observation_space, action_space, lr_schedule, **{"features_extractor_class": NatureCNN, **kwargs})


POLICIES: dict[str, type[HMASDPolicy]] = {
    "MlpPolicy": HMASDPolicy,
    "MultiInputPolicy": HMASDPolicy,
    "CnnPolicy": HMASDCnnPolicy,
}
"""What the names that SB3 knows stand for here."""
