"""Evaluation during training that reports in one line, keeps time, and can be cut short."""

import time
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.vec_env import VecEnv

from hmasd_sb3.monitoring.stopping import StopRequest


class _CutShort(Exception):
    """Leaves ``evaluate_policy`` in the middle; never seen outside this file."""


class ReportingEvalCallback(EvalCallback):
    """
    SB3's ``EvalCallback`` with one printed line per evaluation.

    It adds up the time that evaluations take, so that it can be told apart from training time, and ends both the
    evaluation and the training at the next step once a stop is requested.

    :param eval_env: environments to evaluate on
    :param stop: the request to ask about
    :param n_eval_episodes: episodes per evaluation
    :param eval_freq: calls of the callback (vectorised steps) between two evaluations
    :param log_path: folder for ``evaluations.npz``
    """

    def __init__(self, eval_env: VecEnv, stop: StopRequest, *, n_eval_episodes: int, eval_freq: int, log_path: str) -> None:
        super().__init__(
            eval_env,
            n_eval_episodes=n_eval_episodes,
            eval_freq=eval_freq,
            log_path=log_path,
            deterministic=True,
            verbose=0,
        )
        self.seconds = 0.0
        """Wall-clock seconds spent in evaluations so far."""
        self._stop = stop
        self._started = 0.0
        self._first_timestep = 0

    @property
    def timesteps(self) -> list[int]:
        """Environment steps (E,) at which evaluations were made."""
        return self.evaluations_timesteps

    @property
    def success_rates(self) -> list[float]:
        """Success rate (E,) of each evaluation; empty if the game reports no success."""
        if len(self.evaluations_successes) != len(self.evaluations_timesteps):
            return []
        return [float(np.mean(successes)) for successes in self.evaluations_successes]

    def _on_training_start(self) -> None:
        super()._on_training_start()
        self._started = time.perf_counter()
        self._first_timestep = self.model.num_timesteps

    def _on_step(self) -> bool:
        n_evaluations = len(self.evaluations_timesteps)
        started = time.perf_counter()
        try:
            go_on = super()._on_step()
        except _CutShort:
            go_on = False
        if len(self.evaluations_timesteps) > n_evaluations:
            self._report()
        self.seconds += time.perf_counter() - started
        return go_on

    def _log_success_callback(self, locals_: dict[str, Any], globals_: dict[str, Any]) -> None:
        if self._stop.requested:
            raise _CutShort
        super()._log_success_callback(locals_, globals_)

    def _report(self) -> None:
        parts = []
        if self.success_rates:
            parts.append(f"success {self.success_rates[-1]:.2f}")
        parts += [f"return {self.last_mean_reward:.2f}", f"length {np.mean(self.evaluations_length[-1]):.1f}"]
        remaining = int(self.model._total_timesteps) - self.num_timesteps
        if remaining > 0:  # also said where no progress bar tells it, as in a log file
            elapsed = time.perf_counter() - self._started
            minutes, seconds = divmod(round(elapsed * remaining / (self.num_timesteps - self._first_timestep)), 60)
            parts.append(f"about {minutes}:{seconds:02d} left")
        print(f"{self.num_timesteps:>11,} steps: {', '.join(parts)}", flush=True)
