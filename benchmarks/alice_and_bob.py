"""Success of HMASD on AliceAndBob over several seeds, from the sparse team reward alone.

    python benchmarks/alice_and_bob.py --seeds 100 101 102            # the defaults
    python benchmarks/alice_and_bob.py --seeds 100 --settings paper   # the paper's settings
    python benchmarks/alice_and_bob.py --seeds 100 --set skill_interval=25 --set skill_n_epochs=10

One line of JSON per seed; a summary at the end. Training time leaves evaluations out.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy

from hmasd_sb3 import HMASD, make_team_vec_env, paper_settings

ENV, N_ENVS, TARGET = "AliceAndBob-v0", 32, 0.95


class Evaluations(BaseCallback):
    """Success rate over ``n_episodes`` episodes, every ``every`` environment steps."""

    def __init__(self, env: Any, every: int, n_episodes: int) -> None:
        super().__init__()
        self.env, self.every, self.n_episodes = env, every, n_episodes
        self.history: list[tuple[int, float]] = []
        self.seconds = 0.0
        self.ratio_deviation = {"actor": 0.0, "coordinator": 0.0}
        self.most_timers = 0

    def success(self, deterministic: bool = True) -> float:
        start = time.perf_counter()
        # The return of an episode is 1 on success and 0 otherwise.
        mean, _ = evaluate_policy(self.model, self.env, self.n_episodes, deterministic=deterministic, warn=False)
        self.seconds += time.perf_counter() - start
        return round(float(mean), 3)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        # What the update before this rollout logged: how far its very first PPO ratios were from 1.
        for network, largest in self.ratio_deviation.items():
            logged = self.logger.name_to_value.get(f"sync/{network}_first_ratio_deviation", 0.0)
            self.ratio_deviation[network] = max(largest, float(logged))
        # Environments whose episodes ended at different times have different skill timers.
        self.most_timers = max(self.most_timers, len(np.unique(self.model.skill_state.steps_left)))
        if self.num_timesteps >= self.every * (len(self.history) + 1):
            self.history.append((self.num_timesteps, self.success()))


def run(
    seed: int, total_timesteps: int, every: int, n_episodes: int, env_kwargs: dict[str, Any], **kwargs: Any
) -> dict[str, Any]:
    """Train one seed and say when and how well it succeeded."""
    env = make_team_vec_env(ENV, n_envs=N_ENVS, seed=seed, env_kwargs=env_kwargs)
    eval_env = make_team_vec_env(ENV, n_envs=N_ENVS, seed=1_000_000 + seed, env_kwargs=env_kwargs)
    model = HMASD("MlpPolicy", env, seed=seed, device="cpu", **kwargs)
    evaluations = Evaluations(eval_env, every, n_episodes)
    start = time.perf_counter()
    model.learn(total_timesteps, callback=evaluations, log_interval=10**9)
    seconds = time.perf_counter() - start - evaluations.seconds
    history = [*evaluations.history, (model.num_timesteps, evaluations.success())]
    return {
        "seed": seed,
        "first_step_at_target": next((step for step, success in history if success >= TARGET), None),
        "final": history[-1][1],
        "final_sampled": evaluations.success(deterministic=False),
        "seconds": round(seconds, 1),
        "steps_per_second": round(model.num_timesteps / seconds),
        "largest_first_ratio_deviation": evaluations.ratio_deviation,
        "most_different_skill_timers": evaluations.most_timers,
        "history": history,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--total-timesteps", type=int, default=320_000)
    parser.add_argument("--every", type=int, default=32_000, help="environment steps between evaluations")
    parser.add_argument("--episodes", type=int, default=100, help="episodes per evaluation")
    parser.add_argument("--settings", choices=["default", "paper"], default="default")
    parser.add_argument("--allow-stay", action="store_true", help="give the agents a fifth action")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="override an argument of HMASD")
    args = parser.parse_args()
    th.set_num_threads(1)
    kwargs = paper_settings("alice_and_bob", N_ENVS) if args.settings == "paper" else {}
    for assignment in args.set:
        name, value = assignment.split("=", 1)
        try:
            kwargs[name] = json.loads(value)
        except json.JSONDecodeError:  # a plain word such as reassign
            kwargs[name] = value
    env_kwargs = {"allow_stay": True} if args.allow_stay else {}
    results = []
    for seed in args.seeds:
        results.append(run(seed, args.total_timesteps, args.every, args.episodes, env_kwargs, **kwargs))
        print(json.dumps(results[-1]), flush=True)
    finals = np.array([result["final"] for result in results])
    reached = sum(result["first_step_at_target"] is not None for result in results)
    print(
        f"{reached} of {len(finals)} seeds reach {TARGET}, {(finals >= TARGET).sum()} end there; "
        f"mean final success {finals.mean():.3f}"
    )


if __name__ == "__main__":
    main()
