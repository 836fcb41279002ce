"""How far a training is and how long it will take, for people who watch a log file rather than a terminal."""

from __future__ import annotations

import time

from stable_baselines3.common.callbacks import BaseCallback


class ProgressLines(BaseCallback):
    """Prints a line now and then: steps, share, time left.

    :param every: environment steps between two lines, at least one update apart
    :param quiet: print nothing, as something else shows the progress
    """

    def __init__(self, every: int, quiet: bool = False) -> None:
        super().__init__()
        self.every = every
        self.quiet = quiet
        self._started = 0.0
        self._first_timestep = 0
        self._next = 0

    def _on_training_start(self) -> None:
        self._started = time.perf_counter()
        self._first_timestep = self.num_timesteps = self.model.num_timesteps
        self._next = self._following(self.num_timesteps)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        # Between two updates, where checkpoints are written too.
        if self.num_timesteps >= self._next:
            self._next = self._following(self.num_timesteps)
            if not self.quiet:
                print(self.line(), flush=True)

    def line(self) -> str:
        """Such as "     32,000 steps: 10 %, about 1:05 left"."""
        total = int(self.model._total_timesteps)
        done = self.num_timesteps - self._first_timestep
        text = f"{self.num_timesteps:>11,} steps: {min(1.0, self.num_timesteps / total):.0%}"
        if done > 0 and total > self.num_timesteps:
            seconds = (time.perf_counter() - self._started) * (total - self.num_timesteps) / done
            text += f", about {clock(seconds)} left"
        return text

    def _following(self, timestep: int) -> int:
        return (timestep // self.every + 1) * self.every


def clock(seconds: float) -> str:
    """Hours, minutes and seconds, such as "1:02:03" or "2:03"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
