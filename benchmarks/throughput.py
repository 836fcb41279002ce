"""Training throughput (collection + update) on AliceAndBob, 32 environments, one torch thread.

    python benchmarks/throughput.py --rounds 5

Systems take turns within a round, so that a busy machine hits all of them alike: compare within a round. Environment
steps count all agents acting once in one environment as one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm

from hmasd_sb3 import HMASD, make_team_vec_env, paper_settings

N_ENVS, N_STEPS = 32, 100
ROLLOUT = N_ENVS * N_STEPS


def hmasd(**kwargs: Any) -> BaseAlgorithm:
    """HMASD with the given arguments."""
    return HMASD("MlpPolicy", make_team_vec_env("AliceAndBob-v0", n_envs=N_ENVS, seed=0), seed=0, device="cpu", **kwargs)


def rival(algorithm: Callable[..., BaseAlgorithm], policy: str) -> BaseAlgorithm:
    """A joint PPO over the whole team with the paper's amount of work: 15 epochs, one minibatch, hidden size 64."""
    env = make_team_vec_env("AliceAndBob-v0", n_envs=N_ENVS, seed=0)
    kwargs: dict[str, Any] = {"policy_kwargs": {"net_arch": [64, 64]}}
    if algorithm is RecurrentPPO:
        kwargs["policy_kwargs"]["lstm_hidden_size"] = 64
    return algorithm(policy, env, n_steps=N_STEPS, batch_size=ROLLOUT, n_epochs=15, seed=0, device="cpu", **kwargs)


SYSTEMS: dict[str, Callable[[], BaseAlgorithm]] = {
    "HMASD, default": hmasd,
    "HMASD, paper (15 epochs, 1 minibatch)": lambda: hmasd(**paper_settings("alice_and_bob", N_ENVS)),
    "SB3 PPO": lambda: rival(PPO, "MultiInputPolicy"),
    "sb3-contrib RecurrentPPO": lambda: rival(RecurrentPPO, "MultiInputLstmPolicy"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=4, help="updates per system and round")
    args = parser.parse_args()
    th.set_num_threads(1)
    models = {name: make() for name, make in SYSTEMS.items()}
    for model in models.values():
        model.learn(ROLLOUT, log_interval=10**9)  # warm-up
    wall: dict[str, list[float]] = {name: [] for name in models}
    cpu: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(args.rounds):
        for name, model in models.items():
            start, start_cpu = time.perf_counter(), time.process_time()
            model.learn(args.iterations * ROLLOUT, log_interval=10**9)
            wall[name].append(args.iterations * ROLLOUT / (time.perf_counter() - start))
            cpu[name].append(args.iterations * ROLLOUT / (time.process_time() - start_cpu))
    print(f"{N_ENVS} x {N_STEPS} steps per update, {args.rounds} rounds of {args.iterations} updates, 1 thread")
    base = np.array(cpu["sb3-contrib RecurrentPPO"])
    print(f"{'system':40s} {'steps/s min':>11s} {'median':>8s} {'max':>8s} {'per CPU-s':>10s} {'x RecurrentPPO':>15s}")
    for name in models:
        rates, ratio = np.array(wall[name]), float(np.median(np.array(cpu[name]) / base))
        print(
            f"{name:40s} {rates.min():11.0f} {np.median(rates):8.0f} {rates.max():8.0f} "
            f"{np.median(cpu[name]):10.0f} {ratio:15.2f}"
        )


if __name__ == "__main__":
    main()
