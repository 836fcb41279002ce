"""The synchronised cycle: collect one batch with one policy version, then update, then the next version.

In the order in which it happens::

    collect_rollouts   enable_data_collection(); decide, step, store_step until should_sync_update(); disable_data_collection()
    train              sync_update(): learn from the batch; next policy version

Knows the policy's acting, the buffer and the gate; knows no loss and no hyperparameter of the update.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv

from hmasd_sb3.buffers import SkillRolloutBuffer
from hmasd_sb3.policies.policy import HMASDPolicy
from hmasd_sb3.sync import SyncGate
from hmasd_sb3.type_aliases import SkillState, TeamDecision, TerminalRow
from hmasd_sb3.validation import check_transition


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
    _gate: SyncGate

    @property
    def policy_version(self) -> int:
        """Number of updates that the policy has behind it; every rollout carries the version that made it."""
        return self._gate.policy_version

    def should_sync_update(self) -> bool:
        """Whether a full synchronised batch (``n_steps * n_envs`` environment steps) has been collected."""
        return self._gate.should_sync()

    def enable_data_collection(self) -> None:
        """Begin a rollout with the current policy; an unfinished one is dropped."""
        self._gate.open()
        self.rollout_buffer.reset()
        assert self.skill_state is not None
        if self.skill_at_rollout_end == "reassign":
            self.skill_state = self.skill_state._replace(steps_left=np.zeros_like(self.skill_state.steps_left))

    def disable_data_collection(self) -> None:
        """End the rollout: no sample is accepted until collection is enabled again."""
        self._gate.close()

    def start_cycle(self, total_timesteps: int) -> None:
        """Get ready to run the cycle by hand: reset environments, counters and logger as ``learn`` does.

        :param total_timesteps: environment steps planned, for the schedules
        """
        self._setup_learn(total_timesteps, tb_log_name=type(self).__name__)

    def _setup_learn(self, *args: Any, **kwargs: Any) -> Any:
        if self.env is None:
            raise ValueError("There is no environment to learn in: pass one to load(path, env=...) or to set_env(env).")
        return super()._setup_learn(*args, **kwargs)

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

        :return: False if a callback asked to stop; the unfinished batch is then dropped
        :raises InvalidTransitionError: when an environment returns NaN or infinity
        """
        self.policy.set_training_mode(False)
        self.enable_data_collection()
        assert isinstance(self._last_obs, dict)
        check_transition(self._last_obs, None, self.num_timesteps)  # a reset may have come just before
        callback.on_rollout_start()
        while not self.should_sync_update():
            decision = self.decide()
            new_obs, rewards, dones, infos = env.step(self.policy.to_env_actions(decision.actions))
            self.store_step(decision, new_obs, rewards, dones, infos)
            callback.update_locals(locals())
            if not callback.on_step():
                self.disable_data_collection()
                return False
        self.disable_data_collection()
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def decide(self) -> TeamDecision:
        """Skills and actions of every environment for the observations at hand (``_last_obs``)."""
        assert isinstance(self._last_obs, dict)
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
