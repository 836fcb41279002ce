"""The synchronised cycle: collect one batch with one policy version, then update, then the next version.

In the order in which it happens::

    collect_rollouts   enable_data_collection(); decide, step, store_step until should_sync_update(); disable_data_collection()
    train              sync_update(): learn from the batch; next policy version

Knows the policy's acting, the buffer and the gate; knows no loss and no hyperparameter of the update.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv

from hmasd_sb3.buffers import SkillRolloutBuffer
from hmasd_sb3.policies.flat import NonFiniteError
from hmasd_sb3.policies.policy import HMASDPolicy
from hmasd_sb3.sync import SyncError, SyncGate
from hmasd_sb3.type_aliases import SkillState, TeamDecision, TerminalRow
from hmasd_sb3.validation import InvalidTransitionError, check_learn_arguments, check_transition

Self = TypeVar("Self", bound="SynchronisedAlgorithm")


class SynchronisedAlgorithm(OnPolicyAlgorithm):
    """An on-policy algorithm whose every update sees samples of exactly one policy version.

    A person who drives their own environments runs the cycle by hand with the methods that ``learn`` itself uses::

        model.start_cycle(total_timesteps)          # resets model.env
        while model.num_timesteps < total_timesteps:
            model.enable_data_collection()
            while not model.should_sync_update():
                decision = model.decide()
                model.store_step(decision, *model.env.step(model.policy.to_env_actions(decision.actions)))
            model.disable_data_collection()
            model.sync_update()
    """

    policy: HMASDPolicy  # type: ignore[assignment]
    rollout_buffer: SkillRolloutBuffer  # type: ignore[assignment]
    skill_at_rollout_end: str
    skill_state: SkillState | None = None
    """Skills, timers and memories of the training environments, carried from step to step."""
    segment_ends: dict[str, np.ndarray]
    """Reason -> (B,) number of skill segments that ended for it in each environment, in the last rollout learnt from."""
    after_update: list[Callable[[], None]]
    """Called between two rollouts, when nothing is half done: the moment for checkpoints. Emptied when ``learn`` starts."""
    _gate: SyncGate
    _callback: BaseCallback | None = None
    """That of the present or last ``learn``."""
    _n_iterations: int = 0
    _schedule_timesteps: int | None = None
    _paused: bool = False
    """Whether the rollout in the buffer was closed in good order, so that collecting can go on with it."""
    _mid_step: bool = False
    """Whether the environments have moved on, but their step is not stored: they and ``_last_obs`` do not fit together."""

    @property
    def policy_version(self) -> int:
        """Number of updates that the policy has behind it; every rollout carries the version that made it."""
        return self._gate.policy_version

    def should_sync_update(self) -> bool:
        """Whether a full synchronised batch (``n_steps * n_envs`` environment steps) has been collected."""
        return self._gate.should_sync()

    def enable_data_collection(self) -> None:
        """Begin a rollout with the current policy; an unfinished one is dropped."""
        self._paused = False
        self.policy.set_training_mode(False)
        self._gate.open()
        self.rollout_buffer.reset()
        assert self.skill_state is not None
        if self.skill_at_rollout_end == "reassign":
            self.skill_state = self.skill_state._replace(steps_left=np.zeros_like(self.skill_state.steps_left))

    def disable_data_collection(self) -> None:
        """End the rollout: no sample is accepted until collection is enabled again."""
        self._gate.close()

    def start_cycle(self, total_timesteps: int, reset_num_timesteps: bool = True) -> None:
        """Get ready to run the cycle by hand: reset environments, counters and logger as ``learn`` does.

        :param total_timesteps: environment steps planned, for the schedules
        :param reset_num_timesteps: False goes on with the counters and environments as they are, or as a loaded file has them
        """
        self._setup_learn(total_timesteps, None, reset_num_timesteps, type(self).__name__)
        self._continue_run()

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        if self.env is None:
            raise ValueError("There is no environment to learn in: pass one to load(path, env=...) or to set_env(env).")
        self._check_before_learning()
        self.after_update = []
        self._schedule_timesteps = None
        if self._mid_step:
            self._last_obs = None  # an error broke off a step, so only a reset brings environments and observation together
            self._mid_step = False
        if reset_num_timesteps or self._last_obs is None:
            self._paused = False
        if reset_num_timesteps:
            self._n_iterations = 0
        total_timesteps, self._callback = super()._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
        )
        return total_timesteps, self._callback

    def _check_before_learning(self) -> None:
        """Refuse settings that make training impossible, before anything has begun."""

    def _continue_run(self) -> None:
        """After everything is set up: put back what a loaded run had beyond it."""

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        super()._update_current_progress_remaining(num_timesteps, self._schedule_timesteps or total_timesteps)

    # ------------------------------------------------------------------ learning

    def learn(
        self: Self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "HMASD",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
        schedule_timesteps: int | None = None,
    ) -> Self:
        """Train for at least ``total_timesteps`` environment steps (all agents acting once in one environment is one).

        :param total_timesteps: environment steps of this call
        :param callback: called at every step
        :param log_interval: rollouts between two lines of the log
        :param tb_log_name: name of the run in the TensorBoard log
        :param reset_num_timesteps: False goes on with the run: this model's own, or the one that a loaded file holds, exactly
            as if there had been no interruption
        :param progress_bar: show progress and time left (needs tqdm and rich)
        :param schedule_timesteps: environment steps, counted from the run's start, over which schedules go from 1 to 0; by
            default to the end of this call. With it, a run cut into several calls is the same as one in a single call
        :raises ValueError: for a number out of its range, or if the schedules were to end before this call does
        :raises TypeError: if ``callback`` is none
        """
        check_learn_arguments(total_timesteps, callback, log_interval, schedule_timesteps)
        end = total_timesteps + (0 if reset_num_timesteps else self.num_timesteps)
        if schedule_timesteps is not None and schedule_timesteps < end:
            raise ValueError(
                f"schedule_timesteps={schedule_timesteps} ends before the training does, at {end} environment "
                "steps from its start. Give the length of the whole run, earlier calls included."
            )
        total_timesteps, callback = self._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
        )
        self._schedule_timesteps = schedule_timesteps
        callback.on_training_start(locals(), globals())
        self._continue_run()
        # A rollout that was complete when a stop came still has its update before it.
        while self.num_timesteps < total_timesteps or (self._paused and self.should_sync_update()):
            if not self._learn_once(callback, log_interval):
                break
        callback.on_training_end()
        return self

    def _learn_once(self, callback: BaseCallback, log_interval: int | None) -> bool:
        """One turn of the cycle: collect, log, update; False when a callback asks for the end."""
        assert self.env is not None
        if not self.collect_rollouts(self.env, callback, self.rollout_buffer, n_rollout_steps=self.n_steps):
            return False
        self._n_iterations += 1
        self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
        if log_interval is not None and self._n_iterations % log_interval == 0:
            self.dump_logs(self._n_iterations)
        self.train()
        for hook in self.after_update:
            hook()
        return True

    @abstractmethod
    def sync_update(self) -> None:
        """Learn from the collected batch and move on to the next policy version."""

    def train(self) -> None:
        """One synchronised update (called by ``learn``)."""
        self.sync_update()

    def collect_rollouts(  # type: ignore[override]
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: SkillRolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Collect one synchronised batch; see the base class for the arguments.

        :return: False if a callback asked to stop. The unfinished batch is kept: the next call goes on with it, unless the
            environments have been reset in between
        :raises InvalidTransitionError: when an environment returns NaN or infinity
        """
        self.policy.set_training_mode(False)
        if self._paused:
            self._paused = False
            self._gate.reopen()
        else:
            self.enable_data_collection()
        assert isinstance(self._last_obs, dict)
        try:
            check_transition(self._last_obs, None, self.num_timesteps)  # a reset may have come just before
        except InvalidTransitionError:
            self._last_obs = None  # another reset may be better, and this one is no place to go on from
            raise
        callback.on_rollout_start()
        while not self.should_sync_update():
            decision = self.decide()
            self._mid_step = True
            new_obs, rewards, dones, infos = env.step(self.policy.to_env_actions(decision.actions))
            self.store_step(decision, new_obs, rewards, dones, infos)
            self._mid_step = False
            callback.update_locals(locals())
            if not callback.on_step():
                self.disable_data_collection()
                self._paused = True
                return False
        self.disable_data_collection()
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def decide(self) -> TeamDecision:
        """Skills and actions of every environment for the observations at hand (``_last_obs``).

        :raises SyncError: before the environments were reset
        """
        if not isinstance(self._last_obs, dict):
            raise SyncError("There is no observation to decide on yet. Call start_cycle(total_timesteps) first.")
        assert self.skill_state is not None
        observation = obs_as_tensor(self._last_obs, self.device)
        assert isinstance(observation, dict)
        starts = np.asarray(self._last_episode_starts, dtype=bool)
        return self.policy.act(observation, self.skill_state, starts)._replace(policy_version=self.policy_version)

    def store_step(
        self,
        decision: TeamDecision,
        new_obs: Any,
        rewards: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """Put one step of every environment into the rollout, count it and move on to the next observation.

        :param decision: what :meth:`decide` returned
        :param new_obs: observations after the step, arrays with axis B
        :param rewards: (B,)
        :param dones: (B,) bool
        :param infos: one dict per environment, as SB3's vector environments return them. A row that ended with
            ``transition_lost`` has lost its true successor: the step is stored, but nothing is learnt from it
        :raises InvalidTransitionError: when something is not finite
        :raises SyncError: when the sample may not enter this rollout
        """
        timestep = self.num_timesteps + self.n_envs
        _check_decision(decision, self.num_timesteps)
        check_transition(new_obs, rewards, timestep)
        dones = np.asarray(dones, dtype=bool)
        truncated, lost = np.zeros_like(dones), np.zeros_like(dones)
        terminal_rows: list[TerminalRow] = []
        if dones.any():
            self._update_info_buffer(infos, dones)
            for env_index in np.flatnonzero(dones).tolist():
                lost[env_index] = bool(infos[env_index].get("transition_lost", False))
                # Nobody knows how an episode went on that was lost, so it has not come to its end.
                truncated[env_index] = lost[env_index] or bool(infos[env_index].get("TimeLimit.truncated", False))
                last = infos[env_index].get("terminal_observation")
                if last is not None:
                    check_transition(
                        {key: np.asarray(value)[None] for key, value in last.items()},
                        None,
                        timestep,
                        "terminal_observation",
                        env_index,
                    )
                    terminal_rows.append(TerminalRow(self.rollout_buffer.pos, env_index, last))
        self.rollout_buffer.add(
            self._last_obs,  # type: ignore[arg-type]
            decision,
            rewards,
            self._last_episode_starts,  # type: ignore[arg-type]
            dones & ~truncated,
            truncated,
            terminal_rows,
            lost,
        )
        self.num_timesteps = timestep
        self._last_obs = new_obs
        self._last_episode_starts = dones
        self.skill_state = decision.state


def _check_decision(decision: TeamDecision, timestep: int) -> None:
    """Refuse actions of networks that have lost their numbers.

    :raises NonFiniteError: naming network, environment and timestep
    """
    for network, log_probs in (("actor", decision.log_probs), ("coordinator", decision.skill_log_probs)):
        if not np.isfinite(log_probs.sum()):
            bad = ~np.isfinite(log_probs).all(axis=1)
            if bad.any():
                raise NonFiniteError(
                    f"The {network} gave NaN or infinity in environment {np.flatnonzero(bad)[0]} at timestep {timestep}. "
                    "Look at the size of that environment's observations, or lower the learning rate."
                )
