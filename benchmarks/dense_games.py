"""HMASD on games with dense rewards: does training beat the untrained policy by more than seeds differ?

    python benchmarks/dense_games.py --game simple_speaker_listener --seeds 0 1 2

Not what skills are for, but what a team must survive: continuous actions, agents that differ in what they see and do
(simple_speaker_listener), agents that die (knights_archers_zombies). Mean return over evaluation episodes (team reward:
sum of the agents' rewards), before and after training, per seed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from mpe2 import simple_speaker_listener_v4, simple_spread_v3
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

from hmasd_sb3 import HMASD, make_team_vec_env

SETTINGS: dict[str, Any] = {
    "n_steps": 100,
    "n_team_skills": 2,
    "n_agent_skills": 3,
    # Rewards are dense, so diversity need not lead the way.
    "team_diversity_coef": 0.01,
    "agent_diversity_coef": 0.01,
    # Nothing but the time limit, or everybody's death, ends these games.
    "skill_timeout_bootstrap": True,
}


def knights_archers_zombies() -> Any:
    """Two knights and two archers who die one by one; a point for each zombie they kill."""
    from pettingzoo.butterfly.knights_archers_zombies.knights_archers_zombies import parallel_env

    return parallel_env(max_cycles=300, spawn_delay=5, max_zombies=20)


GAMES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    # Episodes of 25 steps: skills last five of them.
    "simple_spread": (simple_spread_v3.parallel_env, {"skill_interval": 5}),
    "simple_spread_continuous": (lambda: simple_spread_v3.parallel_env(continuous_actions=True), {"skill_interval": 5}),
    "simple_speaker_listener": (simple_speaker_listener_v4.parallel_env, {"skill_interval": 5}),
    "knights_archers_zombies": (knights_archers_zombies, {"skill_interval": 25}),
}
"""How to make each, and what is set for it beside `SETTINGS`."""


def make_env(game: str, n_envs: int, seed: int) -> VecEnv:
    """Vectorised teams."""
    return make_team_vec_env(GAMES[game][0], n_envs=n_envs, seed=seed)


def run(seed: int, game: str, total_timesteps: int, n_episodes: int) -> dict[str, Any]:
    """Train one seed; the same evaluation seed serves before and after."""
    model = HMASD("MlpPolicy", make_env(game, 32, seed), seed=seed, device="cpu", **SETTINGS, **GAMES[game][1])

    def mean_return(deterministic: bool) -> float:
        env = make_env(game, 10, 1_000_000 + seed)
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
    parser.add_argument("--game", choices=list(GAMES), required=True)
    parser.add_argument("--total-timesteps", type=int, default=200_000)
    parser.add_argument("--episodes", type=int, default=100)
    args = parser.parse_args()
    th.set_num_threads(1)
    results = []
    for seed in args.seeds:
        results.append(run(seed, args.game, args.total_timesteps, args.episodes))
        print(json.dumps(results[-1]), flush=True)
    for kind in ("deterministic", "sampled"):
        before, after = (np.array([result[when][kind] for result in results]) for when in ("before", "after"))
        # The best untrained policy counts: a margin over the sampled one alone would be too easy.
        print(
            f"{args.game}, {kind}: untrained {before.mean():.1f} (seeds {before.min():.1f} to {before.max():.1f}), "
            f"trained {after.mean():.1f} (seeds {after.min():.1f} to {after.max():.1f}), "
            f"margin {after.mean() - before.mean():.1f}, "
            f"spread over seeds {max(np.ptp(before), np.ptp(after)):.1f}"
        )


if __name__ == "__main__":
    main()
