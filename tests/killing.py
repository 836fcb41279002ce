"""A training on AliceAndBob that is killed by SIGKILL again and again, and one that is left alone.

``python killing.py FOLDER KILLS SEED TIMESTEPS`` prints, as JSON, how both ended. Each life of the killed training is a
process of its own, forked from this one before it has touched torch's or the games' state, so that a life costs no import.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from resumable import digest, is_clocked
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.logger import Logger

from hmasd_sb3 import HMASD, make_team_vec_env
from hmasd_sb3.monitoring import CheckpointFolder, TrainingCheckpoint
from hmasd_sb3.monitoring.metrics_log import JsonLinesOutput

N_ENVS, N_STEPS = 8, 16
SAVE_FREQ = 2 * N_ENVS * N_STEPS
"""A whole number of rollouts, so that a kill must never cost more environment steps than this."""
SETTINGS: dict[str, Any] = {
    "n_steps": N_STEPS,
    "n_epochs": 2,
    "skill_n_epochs": 2,
    "skill_interval": 6,
    "discriminator_n_updates": 3,
    "policy_kwargs": {"hidden_size": 16},
    "seed": 3,
    "device": "cpu",
}
"""Episodes are longer than rollouts and no multiple of them, as are skills."""


class TellSteps(BaseCallback):
    """Lets another process see how far training has come."""

    def __init__(self, told: Any) -> None:
        super().__init__()
        self.told = told

    def _on_step(self) -> bool:
        self.told.value = self.num_timesteps
        return True


def train(folder: Path, total_timesteps: int, told: Any, began_at: Any) -> None:
    """Train to the end, from the newest checkpoint in the folder if there is one, and write down the outcome."""
    th.set_num_threads(1)
    folder.mkdir(exist_ok=True)
    game = {"size": 3, "max_steps": 40}
    env = make_team_vec_env("AliceAndBob-v0", N_ENVS, seed=0, env_kwargs=game)
    newest = CheckpointFolder(folder / "checkpoints").newest()
    model = HMASD("MlpPolicy", env, **SETTINGS) if newest is None else HMASD.load(newest, env=env, device="cpu")
    began_at.value = model.num_timesteps
    model.set_logger(Logger(str(folder), [JsonLinesOutput(folder / "metrics.jsonl")]))
    evaluation = EvalCallback(
        make_team_vec_env("AliceAndBob-v0", 3, seed=50, env_kwargs=game),
        n_eval_episodes=4,
        eval_freq=70,
        deterministic=False,
        log_path=str(folder),
        verbose=0,
    )
    callbacks = [TellSteps(told), evaluation, TrainingCheckpoint(folder / "checkpoints", save_freq=SAVE_FREQ)]
    model.learn(total_timesteps - model.num_timesteps, callback=callbacks, reset_num_timesteps=newest is None)
    outcome = {"digest": digest(model), "best": evaluation.best_mean_reward, "steps": model.num_timesteps}
    (folder / "outcome.json").write_text(json.dumps(outcome))


def read_outcome(folder: Path) -> dict[str, Any]:
    """Everything that two trainings are compared by."""
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timeless = [{name: value for name, value in one.items() if not is_clocked(name)} for one in metrics]
    with np.load(folder / "evaluations.npz") as evaluations:
        played = {name: evaluations[name].tolist() for name in evaluations.files}
    return {**json.loads((folder / "outcome.json").read_text()), "metrics": timeless, "evaluations": played}


def main(folder: str, kills: str, seed: str, total_timesteps: str) -> None:
    """Train once undisturbed and once with kills spread at random over the whole training."""
    total, rng = int(total_timesteps), random.Random(int(seed))
    context = multiprocessing.get_context("fork")
    told, began_at = context.RawValue("q", 0), context.RawValue("q", 0)
    alone, killed = Path(folder) / "alone", Path(folder) / "killed"
    undisturbed = context.Process(target=train, args=(alone, total, told, began_at))
    undisturbed.start()
    undisturbed.join()
    assert undisturbed.exitcode == 0
    moments = sorted(rng.uniform(0, 0.95 * total) for _ in range(int(kills)))
    lives, reached, lost = 0, 0, []
    for moment in [*moments, None]:
        told.value = -1
        life = context.Process(target=train, args=(killed, total, told, began_at))
        life.start()
        lives += 1
        if moment is None:
            life.join()
            assert life.exitcode == 0, life.exitcode
            lost.append(reached - began_at.value)
            break
        while told.value < moment and life.is_alive():
            time.sleep(0.001)
        # Not only between steps: anywhere in an update, an evaluation or the writing of a checkpoint that may follow.
        time.sleep(rng.uniform(0.0, 0.12))
        assert life.is_alive(), f"it was to be killed at step {moment} of {total}, but has ended ({life.exitcode})"
        os.kill(life.pid, signal.SIGKILL)
        life.join()
        if lives > 1:
            lost.append(reached - began_at.value)
        reached = told.value
    print(json.dumps({"lives": lives, "lost": lost, "alone": read_outcome(alone), "killed": read_outcome(killed)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
