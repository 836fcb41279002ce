"""Teams that break down when a test wants them to, for runs started by the command."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from teams import RandomTeam


class FaultyTeam(RandomTeam):
    """A team of noise with a fault at its ``at``-th step.

    :param fault: "raise", "exit", "nan", "kill" (SIGKILL), "sleep"
    :param once: a file that remembers that it has happened; None: it happens every time
    :param at: step of this environment, over all episodes of this process; 0: never
    """

    def __init__(self, fault: str = "raise", at: int = 0, once: str | None = None) -> None:
        super().__init__()
        self.fault, self.at, self.once = fault, at, once
        self.steps_taken = 0

    def step(self, action: Any) -> Any:
        self.steps_taken += 1
        observation, reward, terminated, truncated, info = super().step(action)
        if self.steps_taken == self.at and not (self.once and Path(self.once).exists()):
            if self.once:
                Path(self.once).touch()
            if self.fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault == "sleep":
                Path("asleep").touch()
                time.sleep(60)
            if self.fault == "nan":
                observation["obs"] = np.full_like(observation["obs"], np.nan)
            if self.fault == "exit":
                sys.exit(0)
            if self.fault == "raise":
                raise RuntimeError("the game broke")
        return observation, reward, terminated, truncated, info


class SlowTeam(RandomTeam):
    """A team of noise that takes its time, so that there is some to do something to its trial."""

    def step(self, action: Any) -> Any:
        time.sleep(0.003)
        return super().step(action)


class PickyTeam(RandomTeam):
    """A team of noise that breaks down when it is seeded with a number.

    :param refused: that number; with 4 environments, seed 4 reaches the last of a training with seed 1
    :param unless: a file with which it does not
    """

    def __init__(self, refused: int, unless: str = "mended") -> None:
        super().__init__()
        self.refused, self.unless = refused, unless

    def reset(self, **kwargs: Any) -> Any:
        if kwargs.get("seed") == self.refused and not Path(self.unless).exists():
            raise RuntimeError(f"seed {self.refused} is no good")
        return super().reset(**kwargs)


class DrawnTeam(RandomTeam):
    """A team of noise that draws pictures, but opens no window.

    :param modes: the render modes that it tells
    """

    def __init__(self, render_mode: str | None = None, modes: tuple[str, ...] = ("rgb_array",), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.metadata = {"render_modes": list(modes)}
        self.render_mode = render_mode

    def render(self) -> Any:
        return np.zeros((64, 64, 3), dtype=np.uint8)


def refusing() -> RandomTeam:
    raise ValueError("this game\ncannot be made")


def talkative() -> RandomTeam:
    """Greets, also by way of a process of its own, as programs of C do."""
    print("a game of many words", flush=True)
    os.system("echo a game of many words")
    return RandomTeam()


class SlowToBegin(RandomTeam):
    """A team of noise that takes its time at its first step, as what is compiled does, or at resets.

    :param first: seconds of the first step
    :param reset: seconds of every reset
    """

    def __init__(self, first: float = 0.0, reset: float = 0.0) -> None:
        super().__init__()
        self.first, self.wait = first, reset

    def reset(self, **kwargs: Any) -> Any:
        time.sleep(self.wait)
        return super().reset(**kwargs)

    def step(self, action: Any) -> Any:
        time.sleep(self.first)
        self.first = 0.0
        return super().step(action)
