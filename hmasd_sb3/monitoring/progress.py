"""How far a training is and how long it will take, for people who watch a log file rather than a terminal."""

from __future__ import annotations

import time

from stable_baselines3.common.callbacks import BaseCallback

LONGEST_SILENCE = 300.0
"""Seconds."""


class Pace:
    """The one clock of all lines about a training's progress, and when there was a line last.

    Time is taken between two updates alone: a rollout without its update would promise too much.
    """

    def __init__(self) -> None:
        self._started = 0.0
        self._first_timestep = 0
        self._steps = 0
        self._seconds = 0.0
        self.last_line = 0.0
        """Time of the last line, or of the start."""
        self.last_step = -1
        """Environment steps of the last line; -1 if there was none."""

    def start(self, timestep: int) -> None:
        """The training begins, or goes on, with so many environment steps taken."""
        self._started = self.last_line = time.perf_counter()
        self._first_timestep = timestep
        self._steps, self._seconds, self.last_step = 0, 0.0, -1

    def between_updates(self, timestep: int) -> None:
        """So many environment steps are taken and learnt from."""
        self._steps, self._seconds = timestep - self._first_timestep, time.perf_counter() - self._started

    def print(self, timestep: int, total: int, results: str = "") -> None:
        """Print a line, such as "     32,000 steps: 10%, about 1:05 left, 4,400 steps per second".

        :param timestep: environment steps so far
        :param total: environment steps of the whole training
        :param results: to be told beside
        """
        self.last_line, self.last_step = time.perf_counter(), timestep
        parts = [f"{min(1.0, timestep / total):.0%}", *([results] if results else [])]
        if self._steps > 0 and total > timestep:
            left = self._seconds * (total - timestep) / self._steps
            parts += [f"about {clock(left)} left", steps_per_second(self._steps, self._seconds)]
        print(f"{timestep:>11,} steps: {', '.join(parts)}", flush=True)


class ProgressLines(BaseCallback):
    """Prints a line now and then: steps, share, speed, time left.

    :param every: environment steps between two lines, at least one update apart
    :param quiet: print nothing, as something else shows the progress
    :param seconds: so long after a line there is another one, however few steps were taken
    :param pace: shared with what else prints such lines, which then stand for those of this callback; None: nothing does
    """

    def __init__(self, every: int, quiet: bool = False, seconds: float = LONGEST_SILENCE, pace: Pace | None = None) -> None:
        super().__init__()
        self.every = every
        self.quiet = quiet
        self.seconds = seconds
        self.pace = pace or Pace()
        self._first_timestep = 0
        self._before = 0
        """Environment steps at the end of the last update."""

    def _on_training_start(self) -> None:
        self._first_timestep = self._before = self.num_timesteps = self.model.num_timesteps
        self.pace.start(self.num_timesteps)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        # Between two updates, where checkpoints are written too.
        self.pace.between_updates(self.num_timesteps)
        before, self._before = self._before, self.num_timesteps
        if self.quiet or self.pace.last_step > before:  # of this rollout there has been a line
            return
        silent = time.perf_counter() - self.pace.last_line
        if self.num_timesteps // self.every > before // self.every or (
            silent >= self.seconds and self.num_timesteps > self._first_timestep
        ):
            self.pace.print(self.num_timesteps, int(self.model._total_timesteps))


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
