"""How far a training is and how long it will take, for people who watch a log file rather than a terminal."""

from __future__ import annotations

import time

from stable_baselines3.common.callbacks import BaseCallback

LONGEST_SILENCE = 300.0
"""Seconds."""


class ProgressLines(BaseCallback):
    """Prints a line now and then: steps, share, speed, time left.

    :param every: environment steps between two lines, at least one update apart
    :param quiet: print nothing, as something else shows the progress
    :param seconds: so long after a line there is another one, however few steps were taken
    """

    def __init__(self, every: int, quiet: bool = False, seconds: float = LONGEST_SILENCE) -> None:
        super().__init__()
        self.every = every
        self.quiet = quiet
        self.seconds = seconds
        self._last_line = 0.0
        self._started = 0.0
        self._first_timestep = 0
        self._next = 0

    def _on_training_start(self) -> None:
        self._started = self._last_line = time.perf_counter()
        self._first_timestep = self.num_timesteps = self.model.num_timesteps
        self._next = self._following(self.num_timesteps)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        # Between two updates, where checkpoints are written too.
        silent = time.perf_counter() - self._last_line
        if self.num_timesteps >= self._next or (silent >= self.seconds and self.num_timesteps > self._first_timestep):
            self._next = self._following(self.num_timesteps)
            self._last_line = time.perf_counter()
            if not self.quiet:
                print(self.line(), flush=True)

    def line(self) -> str:
        """Such as "     32,000 steps: 10%, about 1:05 left, 4,400 steps per second"."""
        total = int(self.model._total_timesteps)
        done = self.num_timesteps - self._first_timestep
        text = f"{self.num_timesteps:>11,} steps: {min(1.0, self.num_timesteps / total):.0%}"
        if done > 0 and total > self.num_timesteps:
            seconds = (time.perf_counter() - self._started) * (total - self.num_timesteps) / done
            text += f", about {clock(seconds)} left, {steps_per_second(done, time.perf_counter() - self._started)}"
        return text

    def _following(self, timestep: int) -> int:
        return (timestep // self.every + 1) * self.every


def steps_per_second(steps: int, seconds: float) -> str:
    """Such as "4,400 steps per second" or "0.7 steps per second"."""
    speed = steps / max(seconds, 1e-9)
    return f"{speed:,.0f} steps per second" if speed >= 10 else f"{speed:.1f} steps per second"


def clock(seconds: float) -> str:
    """Days, hours, minutes and seconds, such as "2 days 1:02:03", "1:02:03" or "2:03"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} day{'s' if days > 1 else ''} {hours}:{minutes:02d}:{rest:02d}"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
