"""One training of a trial: a seed's model and environments, trained in stretches by the standard ``learn()`` and evaluated."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import sync_envs_normalization

from hmasd_sb3.hmasd import HMASD
from hmasd_sb3.monitoring.stopping import StopRequest, StopRequestCallback
from hmasd_sb3.running.config import RunConfig
from hmasd_sb3.running.environments import EVAL_SEED_OFFSET, make_evaluation_env, make_training_env
from hmasd_sb3.running.hyperparameters import build_hyperparameters
from hmasd_sb3.saving.generators import global_generators_state, restore_global_generators, seed_everything


@dataclass(frozen=True)
class Evaluation:
    """Outcome of some episodes."""

    returns: list[float]
    successes: list[bool]
    """Of those episodes that report ``is_success``."""

    def measure(self, metric: str) -> float:
        """Success rate or mean return.

        :param metric: "success", "return", or "auto" for success where the game reports it
        :raises ValueError: if the game does not report success, or does so in some of the episodes only
        """
        reported, n_episodes = len(self.successes), len(self.returns)
        if metric == "return" or (metric == "auto" and not reported):
            return float(np.mean(self.returns))
        if reported != n_episodes:
            raise ValueError(
                f"metric={metric!r}: {reported} of {n_episodes} episodes reported 'is_success' at their end, so their rate is "
                "not known. Let the game report it at the end of every episode, or use metric='return'."
            )
        return float(np.mean(self.successes))


class PauseAt(BaseCallback):
    """Makes ``learn()`` return at an environment step; a later call goes on in the middle of the rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.target = 0

    def _on_step(self) -> bool:
        return self.model.num_timesteps < self.target


class Training:
    """A seed's training. Each has the global random generators to itself, as if it were the only one in this process, so
    that it is the very training that ``hmasd train`` with the same settings and seed is.

    :param config: everything that decides it
    :param deterministic: whether evaluations take the most likely skills and actions rather than draw them
    :param stop: asked at every step
    :raises ValueError: if game or model refuse what they are given
    """

    def __init__(self, config: RunConfig, deterministic: bool, stop: StopRequest | None = None) -> None:
        self.config = config
        self.deterministic = deterministic
        self.stop = stop
        self._pause = PauseAt()
        with ExitStack() as stack:
            self.env = make_training_env(config)
            stack.callback(self.env.close)
            self.eval_env = make_evaluation_env(config)
            stack.callback(self.eval_env.close)
            settings = build_hyperparameters(config.hyperparameters)
            self.model = HMASD(config.policy, self.env, seed=config.seed, **settings)
            self.close = stack.pop_all().close
        self._generators = global_generators_state()

    def train_until(self, timesteps: int) -> None:
        """Go on to an environment step (with B environments: to the first one from there on that B divides)."""
        model = self.model
        self._pause.target = timesteps
        callbacks: list[BaseCallback] = [self._pause]
        callbacks += [] if self.stop is None else [StopRequestCallback(self.stop)]
        restore_global_generators(self._generators)
        model.learn(
            self.config.total_timesteps - model.num_timesteps,
            callback=callbacks,
            log_interval=None,  # type: ignore[arg-type]
            reset_num_timesteps=model.num_timesteps == 0,
        )
        self._generators = global_generators_state()

    def evaluate(self, number: int) -> Evaluation:
        """Play episodes that follow from the seed and from the number of the evaluation, and change nothing else."""
        seed_everything([self.config.seed, number])
        self.eval_env.seed(self.config.seed + EVAL_SEED_OFFSET + number * self.eval_env.num_envs)
        if self.model.get_vec_normalize_env() is not None:
            sync_envs_normalization(self.env, self.eval_env)
        successes: list[bool] = []

        def note_success(local: dict[str, Any], _: dict[str, Any]) -> None:
            if local["done"] and local["info"].get("is_success") is not None:
                successes.append(bool(local["info"]["is_success"]))

        returns, _ = evaluate_policy(
            self.model,
            self.eval_env,
            n_eval_episodes=self.config.eval_episodes,
            deterministic=self.deterministic,
            callback=note_success,
            return_episode_rewards=True,
            warn=False,
        )
        assert isinstance(returns, list)
        return Evaluation([float(value) for value in returns], successes)
