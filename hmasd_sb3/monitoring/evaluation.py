"""Evaluation during training that reports in one line, keeps time, and can be cut short."""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.vec_env import VecEnv

from hmasd_sb3.monitoring.progress import Pace
from hmasd_sb3.monitoring.stopping import StopRequest


class _CutShort(Exception):
    """Leaves ``evaluate_policy`` in the middle; never seen outside this file."""


class ReportingEvalCallback(EvalCallback):
    """
    SB3's ``EvalCallback`` with one printed line per evaluation, which also tells the progress.

    It adds up the time that evaluations take, so that it can be told apart from training time, and ends both the
    evaluation and the training at the next step once a stop is requested.

    :param eval_env: environments to evaluate on
    :param stop: the request to ask about
    :param n_eval_episodes: episodes per evaluation
    :param eval_freq: calls of the callback (vectorised steps) between two evaluations
    :param log_path: folder for ``evaluations.npz``
    :param seed: every evaluation plays episodes that follow from this number and from how many evaluations came before. One
        that was cut short is then made up for, in full, when training goes on from a checkpoint. None: episodes follow from
        ``eval_env`` alone, and an evaluation that was cut short is left out
    :param pace: shared with what else prints lines about the progress; None: nothing does
    """

    def __init__(
        self,
        eval_env: VecEnv,
        stop: StopRequest,
        *,
        n_eval_episodes: int,
        eval_freq: int,
        log_path: str,
        seed: int | None = None,
        pace: Pace | None = None,
    ) -> None:
        super().__init__(
            eval_env,
            n_eval_episodes=n_eval_episodes,
            eval_freq=eval_freq,
            log_path=log_path,
            deterministic=True,
            verbose=0,
        )
        self._evaluations = Path(log_path) / "evaluations.npz"
        # The base class writes here; the file then takes the place of the old one, so that no crash leaves half of it.
        self.log_path = str(self._evaluations.with_name(".evaluations.partial"))
        self.seconds = 0.0
        """Wall-clock seconds spent in evaluations so far."""
        self._stop = stop
        self._seed = seed
        self._owed = False
        self._pace = pace or Pace()

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
        self._pace.start(self.model.num_timesteps)

    def state_dict(self) -> dict[str, Any]:
        """What a training that goes on from a checkpoint has to know beside the evaluations themselves."""
        return {"seconds": self.seconds, "owed": self._owed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was asked."""
        self.seconds, self._owed = float(state["seconds"]), bool(state["owed"])

    def _on_rollout_start(self) -> None:
        self._pace.between_updates(self.model.num_timesteps)
        if self._owed:  # the networks are still those that were to be evaluated
            self.num_timesteps = self.model.num_timesteps
            if not self._on_step():
                # One step more, and the evaluation would be one of another moment: nothing may be saved any more.
                raise KeyboardInterrupt

    def _on_step(self) -> bool:
        n_evaluations = len(self.evaluations_timesteps)
        started = time.perf_counter()
        if self._seed is not None and self.n_calls % self.eval_freq == 0:
            self.eval_env.seed(self._seed + n_evaluations * self.eval_env.num_envs)
        try:
            go_on = super()._on_step()
            self._owed = False
        except _CutShort:
            go_on = False
            self._owed = self._seed is not None
        if len(self.evaluations_timesteps) > n_evaluations:
            self._put_in_place(Path(f"{self.log_path}.npz"))
            self._report()
        self.seconds += time.perf_counter() - started
        return go_on

    def _put_in_place(self, written: Path) -> None:
        with written.open("r+b") as file:
            os.fsync(file.fileno())  # else a power cut may leave the new name without its content
        os.replace(written, self._evaluations)

    def _log_success_callback(self, locals_: dict[str, Any], globals_: dict[str, Any]) -> None:
        if self._stop.requested:
            raise _CutShort
        super()._log_success_callback(locals_, globals_)

    def _report(self) -> None:
        parts = []
        if self.success_rates:
            parts.append(f"success {self.success_rates[-1]:.2f}")
        parts += [f"return {self.last_mean_reward:.2f}", f"length {np.mean(self.evaluations_length[-1]):.1f}"]
        # The time left is also said where no progress bar tells it, as in a log file.
        self._pace.print(self.num_timesteps, int(self.model._total_timesteps), ", ".join(parts))
