"""Helpers of the tests of RL Zoo's programs: small experiments, in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hmasd_sb3.commands.zoo import run

SMALL = """\
AliceAndBob-v0:
  n_timesteps: 192
  n_envs: 4
  policy: MlpPolicy
  env_kwargs: {size: 5}
  n_steps: 12
  n_epochs: 1
  skill_n_epochs: 1
  skill_interval: 5
  sequence_length: 4
  discriminator_n_updates: 1
  discriminator_batch_size: 16
  learning_rate: lin_1e-3_1e-4
  ent_coef: lin_0.02
  gamma: 9e-1
  policy_kwargs: "dict(hidden_size=16)"
"""
"""Updates take milliseconds: 48 environment steps each."""


def zoo(program: str, *arguments: Any) -> int:
    """Run one of RL Zoo's programs in this process; its exit code."""
    return run([program, *(str(argument) for argument in arguments)])


def train(*arguments: Any, conf: str = "small.yml") -> int:
    """A small experiment below ``logs/``, without evaluations unless asked for."""
    return zoo("train", "--env", "AliceAndBob-v0", "-conf", conf, "--eval-freq", "-1", "--seed", "3", *arguments)


def newest(logs: Path, env: str = "AliceAndBob-v0") -> Path:
    """The folder of the last experiment."""
    return max((logs / "hmasd").glob(f"{env}_*"), key=lambda path: int(path.name.rpartition("_")[2]))
