"""HMASD on mpe2's simple_spread_v3: does training beat the untrained policy by more than seeds differ?

    python benchmarks/simple_spread.py --seeds 0 1 2 --actions discrete

Mean return over evaluation episodes (team reward: sum of the agents' rewards), before and after training, per seed.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
import torch as th
from mpe2 import simple_spread_v3
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

from hmasd_sb3 import HMASD, make_team_vec_env

SETTINGS: dict[str, Any] = {
    # Episodes of 25 steps: skills last five of them. Rewards are dense, so diversity need not lead the way.
    "n_steps": 100,
    "skill_interval": 5,
    "n_team_skills": 2,
    "n_agent_skills": 3,
    "team_diversity_coef": 0.01,
    "agent_diversity_coef": 0.01,
}


def make_env(continuous: bool, n_envs: int, seed: int) -> VecEnv:
    """Vectorised teams of three agents."""
    return make_team_vec_env(lambda: simple_spread_v3.parallel_env(continuous_actions=continuous), n_envs=n_envs, seed=seed)


def run(seed: int, continuous: bool, total_timesteps: int, n_episodes: int) -> dict[str, Any]:
    """Train one seed; the same evaluation seed serves before and after."""
    model = HMASD("MlpPolicy", make_env(continuous, 32, seed), seed=seed, device="cpu", **SETTINGS)

    def mean_return(deterministic: bool) -> float:
        env = make_env(continuous, 10, 1_000_000 + seed)
        return float(evaluate_policy(model, env, n_episodes, deterministic=deterministic, warn=False)[0])

    before = {"deterministic": mean_return(True), "sampled": mean_return(False)}
    start = time.perf_counter()
    model.learn(total_timesteps, log_interval=10**9)
    seconds = time.perf_counter() - start
    after = {"deterministic": mean_return(True), "sampled": mean_return(False)}
    return {"seed": seed, "before": before, "after": after, "seconds": round(seconds, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--actions", choices=["discrete", "continuous"], required=True)
    parser.add_argument("--total-timesteps", type=int, default=200_000)
    parser.add_argument("--episodes", type=int, default=100)
    args = parser.parse_args()
    th.set_num_threads(1)
    results = []
    for seed in args.seeds:
        results.append(run(seed, args.actions == "continuous", args.total_timesteps, args.episodes))
        print(json.dumps(results[-1]), flush=True)
    for kind in ("deterministic", "sampled"):
        before, after = (np.array([result[when][kind] for result in results]) for when in ("before", "after"))
        # The best untrained policy counts: a margin over the sampled one alone would be too easy.
        print(
            f"{args.actions}, {kind}: untrained {before.mean():.1f} (seeds {before.min():.1f} to {before.max():.1f}), "
            f"trained {after.mean():.1f} (seeds {after.min():.1f} to {after.max():.1f}), "
            f"margin {after.mean() - before.mean():.1f}, "
            f"spread over seeds {max(np.ptp(before), np.ptp(after)):.1f}"
        )


if __name__ == "__main__":
    main()
