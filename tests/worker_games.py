"""Team environments for the tests of worker processes: every dtype in the observation, and faults on demand."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor

FAULT = 3
"""The action that brings about the fault which a `FaultyTeam` was made for."""


class FaultyTeam(gym.Env[dict[str, np.ndarray], np.ndarray]):
    """Two agents, random pictures and numbers, episodes of random length that end in both ways, infos now and then.

    :param fault: what the action `FAULT` of the first agent does: ``"raise"``, ``"die"`` by SIGKILL, ``"exit"``,
        ``"stop"`` by SIGSTOP, ``"hang"`` forever, ``"lambda"`` in the info, ``"shape"`` of the observation
    :param poison: a file; while it exists, resets raise, and so does making the game if its text is ``"make"``
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 7}

    def __init__(self, index: int = 0, fault: str = "raise", poison: str | None = None, n_numbers: int = 3) -> None:
        self.index, self.fault, self.poison = index, fault, None if poison is None else Path(poison)
        self.render_mode = "rgb_array"
        self.options_seen: Any = None
        self.kept_actions: list[np.ndarray] = []
        self.observation_space = spaces.Dict(
            {
                "obs": spaces.Box(0, 255, (2, 4, 4, 3), np.uint8),
                "state": spaces.Box(-np.inf, np.inf, (n_numbers,), np.float32),
                "action_mask": spaces.MultiBinary((2, 4)),
                "marks": spaces.Box(-np.inf, np.inf, (2,), np.float64),
            }
        )
        self.action_space = spaces.MultiDiscrete([4, 4])
        if self.poison is not None and self.poison.exists() and self.poison.read_text() == "make":
            raise OSError("the game is broken")

    def _observe(self) -> dict[str, np.ndarray]:
        return {
            "obs": self.np_random.integers(0, 256, (2, 4, 4, 3)).astype(np.uint8),
            "state": self.np_random.normal(size=self.observation_space["state"].shape).astype(np.float32),
            "action_mask": self.np_random.integers(0, 2, (2, 4)).astype(np.int8),
            "marks": self.np_random.normal(size=2),
        }

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        if self.poison is not None and self.poison.exists():
            raise ValueError("the reset is poisoned")
        self.options_seen = options
        # np_random_seed is that of the last seeded reset, however it was seeded.
        return self._observe(), {"seed": self.np_random_seed, "options": options}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        self.kept_actions.append(action)
        if action[0] == FAULT:
            self._fail()
        draw = self.np_random.random()
        info: dict[str, Any] = {"draw": np.array([draw])} if draw > 0.5 else {}
        if action[0] == FAULT and self.fault == "lambda":
            info["callback"] = lambda: None
        observation = self._observe()
        if action[0] == FAULT and self.fault == "shape":
            observation["state"] = np.zeros((2, 9), np.float32)
        return observation, float(draw + action.sum()), bool(draw < 0.05), bool(0.05 < draw < 0.1), info

    def _fail(self) -> None:
        if self.fault == "raise":
            raise ZeroDivisionError(f"game {self.index} divides by zero")
        if self.fault == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "exit":
            os._exit(7)
        if self.fault == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        while self.fault == "hang":
            pass

    def render(self) -> np.ndarray:
        return np.full((4, 4, 3), self.index, np.uint8)

    # ---- for env_method

    def plus(self, number: int, *, times: int = 1) -> int:
        return (self.index + number) * times

    def complain(self, how: str) -> None:
        if how == "local":

            class LocalError(Exception):
                pass

            raise LocalError("of a class that cannot be sent")
        raise KeyError(how)

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def pid(self) -> int:
        return os.getpid()

    def threads(self) -> tuple[str, int]:
        return os.environ["OMP_NUM_THREADS"], sys.modules["torch"].get_num_threads()


class Maker:
    """Makes a `FaultyTeam` in a ``Monitor``, and keeps its log when it does so again."""

    def __init__(self, index: int, log: str | None = None, **kwargs: Any) -> None:
        self.index, self.log, self.kwargs = index, log, kwargs

    def __call__(self) -> Monitor:
        return Monitor(FaultyTeam(self.index, **self.kwargs), self.log)

    def remake(self) -> Monitor:
        return Monitor(FaultyTeam(self.index, **self.kwargs), self.log, override_existing=False)


def is_running(pid: int) -> bool:
    """Whether the process is there, and no mere entry that its parent has not read yet."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def all_gone(pids: list[int], seconds: float = 10.0) -> bool:
    """Whether all processes end in time."""
    deadline = time.monotonic() + seconds
    while any(is_running(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
