"""HMASD: hierarchical multi-agent skill discovery as a Stable-Baselines3 algorithm.

Hyperparameters, set-up, the order of an update, saving and loading. Collecting is in ``cycle.py``, what an update computes
in ``rollouts.py`` (rewards, values, advantages) and ``updates.py`` (one function per network).
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule, update_learning_rate
from stable_baselines3.common.vec_env import VecEnv

from hmasd_sb3.buffers import SkillRolloutBuffer
from hmasd_sb3.memory import release_free_memory
from hmasd_sb3.persistence import PersistentAlgorithm
from hmasd_sb3.policies.flat import NonFiniteError
from hmasd_sb3.policies.policy import NETWORKS, POLICIES, HMASDPolicy
from hmasd_sb3.policies.spec import TeamSpec, arriving_space
from hmasd_sb3.reporting import InertTeamSkillWatch, log_rollout, log_update
from hmasd_sb3.rollouts import ReturnSettings, evaluate_rollout
from hmasd_sb3.schedules import ConfusionGatedNoise
from hmasd_sb3.sync import SyncGate
from hmasd_sb3.type_aliases import UpdateStats
from hmasd_sb3.updates import (
    DiscriminatorSettings,
    PPOSettings,
    update_actor,
    update_coordinator,
    update_critic,
    update_discriminators,
)
from hmasd_sb3.validation import (
    SCHEDULED,
    check_batch_size,
    check_device,
    check_hyperparameters,
    check_policy_kwargs,
    check_scheduled,
    resolve_batch_size,
    resolve_policy,
)
from hmasd_sb3.wrappers import as_team_vec_env, make_team_vec_env


class HMASD(PersistentAlgorithm):
    """Hierarchical Multi-Agent Skill Discovery (Yang et al., NeurIPS 2023).

    Every float marked *schedule* may also be a function of the remaining progress (1 at the start, 0 at the end).
    Where the defaults differ from the paper, ``docs/defaults.md`` says why; ``hmasd_sb3.paper_settings`` has the paper's.

    :param policy: "MlpPolicy", "CnnPolicy" for agents that see pictures, or a subclass of ``HMASDPolicy``
    :param env: vector environment of teams, SuperSuit pipeline, team environment, PettingZoo game, or registered id
    :param learning_rate: of coordinator, actor and critic (*schedule*)
    :param n_steps: steps of every environment per update; one synchronised batch is ``n_steps * n_envs``
    :param batch_size: environment steps per low-level minibatch (about: chunks are kept whole); must divide the batch.
        None: a quarter of it, half or all where that is no whole number. As a *schedule* it need not divide: there are as
        many minibatches as bring their size closest to its value
    :param n_epochs: passes of actor and critic over a rollout
    :param gamma: discount per environment step at the low level
    :param gae_lambda: GAE factor at both levels
    :param clip_range: PPO clip at both levels (*schedule*)
    :param clip_range_vf: value clip in normalised units, or None (*schedule*)
    :param normalize_advantage: centre and scale advantages over the rollout
    :param ent_coef: lambda_l, entropy of the low-level policy (*schedule*)
    :param vf_coef: weight of the value losses
    :param max_grad_norm: gradient clipping, per network
    :param target_kl: stop the actor's update beyond 1.5 times this KL, or None
    :param skill_interval: k, steps between skill assignments
    :param n_team_skills: n_Z
    :param n_agent_skills: n_z
    :param team_reward_coef: lambda_e, team reward in the low-level reward (*schedule*)
    :param team_diversity_coef: lambda_D, weight of log q_D(Z|s') (*schedule*)
    :param agent_diversity_coef: lambda_d, weight of log q_d(z^i|o'^i, Z) (*schedule*)
    :param skill_ent_coef: lambda_h, entropy of the coordinator (*schedule*)
    :param skill_n_epochs: passes of the coordinator over a rollout's assignments
    :param skill_gamma: discount per assignment at the high level
    :param skill_target_kl: as ``target_kl``, for the coordinator
    :param skill_advantage_floor: least divisor when high-level advantages are normalised (team reward units)
    :param skill_timeout_bootstrap: bootstrap V_h where a time limit cuts an episode off. Off by default: where success ends
        an episode, running out of time is a failed attempt. Turn it on for games that only a time limit ends. (The low
        level always bootstraps there.)
    :param skill_at_rollout_end: "continue": a running skill goes on in the next rollout, its tail is no decision to
        learn from; "reassign": new skills at each rollout's start
    :param sequence_length: longest sequence that recurrent gradients run through (at most ``n_steps``)
    :param critic_chance_offset: start the low-level critic at the return of indistinguishable skills
    :param huber_delta: delta of the Huber value loss, normalised units
    :param discriminator_learning_rate: (*schedule*)
    :param discriminator_n_updates: gradient steps of the discriminators per rollout
    :param discriminator_batch_size: environment steps per such gradient step
    :param discriminator_noise: Gaussian noise on the discriminators' scaled training inputs (*schedule*); by default it
        follows how well skills can be told apart, see :class:`~hmasd_sb3.ConfusionGatedNoise`
    :param micro_batch_size: environment steps (for the coordinator: assignments) whose gradient is computed at once; those
        of a minibatch's pieces are summed, which changes its memory and not its result. None: a minibatch at once
    :param on_nan: what happens when a loss, gradient, observation or reward is NaN or infinite. "stop": an error that names
        it; "rollback": training goes back to its last good checkpoint, with half the learning rates. Needs a
        :class:`~hmasd_sb3.monitoring.TrainingCheckpoint` among the callbacks
    :param max_rollbacks: how often it may go back before it stops after all
    :param stats_window_size: episodes over which rollout statistics are averaged
    :param tensorboard_log: folder of the TensorBoard log, or None
    :param policy_kwargs: further arguments of the policy class
    :param verbose: 0 silent, 1 info, 2 debug
    :param seed: of Python, NumPy, torch, minibatches and environments
    :param device: "cpu", "cuda" or "auto"
    :raises ValueError: for an argument out of its range, a space that is not a team's, or an unknown policy
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = POLICIES  # type: ignore[assignment]

    def __init__(
        self,
        policy: str | type[HMASDPolicy],
        env: GymEnv | str | Any,
        learning_rate: float | Schedule = LinearSchedule(1e-3, 5e-5, 1.0),  # noqa: B008  (stateless)
        n_steps: int = 100,
        batch_size: int | Schedule | None = None,
        n_epochs: int = 5,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule = 0.2,
        clip_range_vf: float | Schedule | None = None,
        normalize_advantage: bool = True,
        ent_coef: float | Schedule = LinearSchedule(0.03, 0.01, 1.0),  # noqa: B008
        vf_coef: float = 1.0,
        max_grad_norm: float = 10.0,
        target_kl: float | None = 0.03,
        skill_interval: int = 50,
        n_team_skills: int = 2,
        n_agent_skills: int = 4,
        team_reward_coef: float | Schedule = 1.0,
        team_diversity_coef: float | Schedule = 0.1,
        agent_diversity_coef: float | Schedule = 0.2,
        skill_ent_coef: float | Schedule = LinearSchedule(0.05, 0.01, 1.0),  # noqa: B008
        skill_n_epochs: int = 15,
        skill_gamma: float = 0.99,
        skill_target_kl: float | None = 0.05,
        skill_advantage_floor: float = 0.1,
        skill_timeout_bootstrap: bool = False,
        skill_at_rollout_end: str = "continue",
        sequence_length: int = 10,
        critic_chance_offset: bool = True,
        huber_delta: float = 10.0,
        discriminator_learning_rate: float | Schedule = LinearSchedule(1e-3, 1e-4, 1.0),  # noqa: B008
        discriminator_n_updates: int = 15,
        discriminator_batch_size: int = 2048,
        discriminator_noise: float | Schedule = ConfusionGatedNoise(),  # noqa: B008  (copied below)
        micro_batch_size: int | None = None,
        on_nan: str = "stop",
        max_rollbacks: int = 3,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        policy_class = resolve_policy(policy, self.policy_aliases, HMASDPolicy)
        check_policy_kwargs(policy_class, policy_kwargs)
        check_device(device)
        super().__init__(
            policy_class,
            make_team_vec_env(env, n_envs=1) if isinstance(env, str) else env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,  # type: ignore[arg-type]
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            use_sde=False,
            sde_sample_freq=-1,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            device=device,
            seed=seed,
            _init_setup_model=False,
        )
        self.batch_size = batch_size
        self.n_epochs = n_epochs
        self.clip_range = clip_range
        self.clip_range_vf = clip_range_vf
        self.normalize_advantage = normalize_advantage
        self.target_kl = target_kl
        self.skill_interval = skill_interval
        self.n_team_skills = n_team_skills
        self.n_agent_skills = n_agent_skills
        self.team_reward_coef = team_reward_coef
        self.team_diversity_coef = team_diversity_coef
        self.agent_diversity_coef = agent_diversity_coef
        self.skill_ent_coef = skill_ent_coef
        self.skill_n_epochs = skill_n_epochs
        self.skill_gamma = skill_gamma
        self.skill_target_kl = skill_target_kl
        self.skill_advantage_floor = skill_advantage_floor
        self.skill_timeout_bootstrap = skill_timeout_bootstrap
        self.skill_at_rollout_end = skill_at_rollout_end
        self.sequence_length = sequence_length
        self.critic_chance_offset = critic_chance_offset
        self.huber_delta = huber_delta
        self.discriminator_learning_rate = discriminator_learning_rate
        self.discriminator_n_updates = discriminator_n_updates
        self.discriminator_batch_size = discriminator_batch_size
        self.on_nan = on_nan
        self.max_rollbacks = max_rollbacks
        self.discriminator_noise = copy.deepcopy(discriminator_noise)  # its state, if any, is this model's own
        self.micro_batch_size = micro_batch_size
        if _init_setup_model:
            if self.env is None:
                raise ValueError("HMASD needs an environment; only HMASD.load(path) works without one.")
            self._setup_model()
            check_batch_size(self.batch_size, self.n_steps, self.n_envs)

    # ------------------------------------------------------------------ set-up

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        """Accept PettingZoo games and check that what comes is a team, before anything is built on it.

        Unlike the base class this never transposes images: the first axis of ``obs`` counts agents, not channels.
        """
        vec_env = as_team_vec_env(env, monitor_wrapper)
        TeamSpec.from_spaces(vec_env.observation_space, vec_env.action_space)
        return vec_env

    def _setup_model(self) -> None:
        check_hyperparameters({**self.__dict__, "stats_window_size": self._stats_window_size})
        # NumPy's whole numbers are not taken everywhere.
        self.seed, self._stats_window_size = None if self.seed is None else int(self.seed), int(self._stats_window_size)
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        self._schedules = {name: FloatSchedule(getattr(self, name)) for name in SCHEDULED if getattr(self, name) is not None}
        self._rng = np.random.default_rng(self.seed)
        assert isinstance(self.observation_space, spaces.Dict)
        normalizer = self._vec_normalize_env
        normalized = normalizer.norm_obs_keys if normalizer is not None and normalizer.norm_obs else None
        observation_space = arriving_space(self.observation_space, normalized or ())
        self.policy = self.policy_class(  # type: ignore[assignment]
            observation_space,
            self.action_space,
            self.lr_schedule,
            skill_interval=self.skill_interval,
            n_team_skills=self.n_team_skills,
            n_agent_skills=self.n_agent_skills,
            **self.policy_kwargs,
        )
        self.policy = self.policy.to(self.device)
        self.policy.build_optimizers()
        self._gate = SyncGate(self.n_envs, self.n_steps, policy_version=self._n_updates)
        self.rollout_buffer = SkillRolloutBuffer(
            self.n_steps,
            self.n_envs,
            self.policy.spec.n_agents,
            self.policy.spec.action_shape,
            observation_space,
            self.policy.hidden_size,
            self._gate,
            self.device,
        )
        if self.skill_state is None or len(self.skill_state.team_skill) != self.n_envs:
            self.skill_state = self.policy.initial_skill_state(self.n_envs)
        self._critic_hidden = th.zeros(self.n_envs, self.policy.hidden_size, device=self.device)
        self._inert_watch = InertTeamSkillWatch()
        self.segment_ends = {}

    def scheduled(self, name: str) -> float:
        """Value in force now of a hyperparameter that takes a schedule.

        :raises ValueError: if the schedule has left the range that the hyperparameter allows
        """
        return check_scheduled(name, self._schedules[name](self._current_progress_remaining))

    def enable_data_collection(self) -> None:
        """Begin a rollout with the current policy; an unfinished one is dropped."""
        if self._gate.samples_collected:
            # The critic has not followed the steps of the rollout that is dropped, so it starts afresh.
            self._critic_hidden.zero_()
        super().enable_data_collection()

    # ------------------------------------------------------------------ updating

    def sync_update(self) -> None:
        """Update all networks from the collected batch and move on to the next policy version.

        :raises SyncError: while collection is enabled, or before the batch is complete
        :raises NonFiniteError: when a loss or gradient is NaN or infinite
        """
        self._gate.begin_update()
        assert isinstance(self._last_obs, dict)
        self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
        self.rollout_buffer.finish(self._last_obs)
        try:
            self._learn_from_rollout()
        except NonFiniteError as error:
            self._gate.abandon_update()
            self._critic_hidden.zero_()  # it has not followed the steps of this rollout
            raise NonFiniteError(f"Update {self.policy_version + 1}, timestep {self.num_timesteps}: {error}") from error

    def _learn_from_rollout(self) -> None:
        self._critic_hidden, reward_stats = evaluate_rollout(
            self.policy, self.rollout_buffer, self._critic_hidden, self._return_settings()
        )
        self.segment_ends = self.rollout_buffer.segment_end_counts()
        report = log_rollout(self.logger, self.policy, self.rollout_buffer, self._gate, reward_stats, self.micro_batch_size)
        if "team_accuracy" in report:  # else nothing happened that skills could be recognised by
            if isinstance(self.discriminator_noise, ConfusionGatedNoise):
                self.discriminator_noise.observe(report["agent_worst_accuracy"])
            if self.n_team_skills > 1 and self.scheduled("team_diversity_coef") > 0.0:
                self._inert_watch.look(report)
        self.policy.set_training_mode(True)
        self._set_learning_rates()
        stats = self._update_networks()
        self._n_updates += 1
        self._gate.finish_update()
        log_update(self.logger, self.policy, stats, self._gate)
        release_free_memory()

    def _return_settings(self) -> ReturnSettings:
        return ReturnSettings(
            gamma=self.gamma,
            skill_gamma=self.skill_gamma,
            gae_lambda=self.gae_lambda,
            team_reward_coef=self.scheduled("team_reward_coef"),
            team_diversity_coef=self.scheduled("team_diversity_coef"),
            agent_diversity_coef=self.scheduled("agent_diversity_coef"),
            critic_chance_offset=self.critic_chance_offset,
            skill_timeout_bootstrap=self.skill_timeout_bootstrap,
            normalize_advantage=self.normalize_advantage,
            skill_advantage_floor=self.skill_advantage_floor,
            micro_batch_size=self.micro_batch_size,
        )

    def _ppo_settings(self, n_epochs: int, ent_coef: str, target_kl: float | None) -> PPOSettings:
        return PPOSettings(
            n_epochs=n_epochs,
            batch_size=resolve_batch_size(self.batch_size, self.n_steps, self.n_envs, self._current_progress_remaining),
            sequence_length=min(self.sequence_length, self.n_steps),
            clip_range=self.scheduled("clip_range"),
            clip_range_vf=None if self.clip_range_vf is None else self.scheduled("clip_range_vf"),
            ent_coef=self.scheduled(ent_coef),
            vf_coef=self.vf_coef,
            huber_delta=self.huber_delta,
            max_grad_norm=self.max_grad_norm,
            target_kl=target_kl,
            micro_batch_size=self.micro_batch_size,
        )

    def _set_learning_rates(self) -> None:
        for network in NETWORKS:
            schedule = "discriminator_learning_rate" if network == "discriminators" else "learning_rate"
            learning_rate = self.scheduled(schedule) * self._learning_rate_scale
            update_learning_rate(self.policy.flat(network).optimizer, learning_rate)
            self.logger.record(f"train/{schedule}", learning_rate)

    def _update_networks(self) -> dict[str, UpdateStats]:
        high = self._ppo_settings(self.skill_n_epochs, "skill_ent_coef", self.skill_target_kl)
        low = self._ppo_settings(self.n_epochs, "ent_coef", self.target_kl)
        discriminating = DiscriminatorSettings(
            self.discriminator_n_updates,
            self.discriminator_batch_size,
            self.scheduled("discriminator_noise"),
            self.max_grad_norm,
            self.micro_batch_size,
        )
        learner = (self.policy, self.rollout_buffer)
        stats = {
            "coordinator": update_coordinator(*learner, high),
            "actor": update_actor(*learner, low, self._rng),
            "critic": update_critic(*learner, low, self._rng),
            "discriminators": update_discriminators(*learner, discriminating, self._rng),
        }
        minibatches = stats["critic"].values["gradient_steps"] / self.n_epochs
        self.logger.record("train/batch_size", self.n_steps * self.n_envs / minibatches)
        return stats

    def _check_before_learning(self) -> None:
        super()._check_before_learning()
        # Not checked by load(): a model may be loaded with fewer environments only to be evaluated.
        check_batch_size(self.batch_size, self.n_steps, self.n_envs)

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", *(f"policy.{network}_optimizer" for network in NETWORKS)], []
