"""Environment steps per second of many teams side by side, by how they are vectorised.

    python benchmarks/vectorisation.py --rounds 7 --output vectorisation.md

Ways take turns within a round, so that a busy machine hits all of them alike. One environment step is all agents of
one environment acting once; SuperSuit's rows are agents, so it takes as many of them for one step. Starting is timed in
a process of its own, imports of the workers included, those of the program itself not. Every library has its own
default start method.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pistonball draws its observations, and needs no screen for it
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

import numpy as np
import supersuit
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from hmasd_sb3.envs.alice_and_bob import parallel_env as alice_and_bob
from hmasd_sb3.wrappers import GymVectorTeamVecEnv, make_team_vec_env
from hmasd_sb3.wrappers.vec import TeamMaker
from hmasd_sb3.wrappers.workers import WorkerTeamVecEnv


def pistonball() -> Any:
    """Five pistons that see pictures; a physics engine moves the ball."""
    from pettingzoo.butterfly import pistonball_v6

    return pistonball_v6.parallel_env(n_pistons=5, continuous=False)


def pursuit() -> Any:
    """Eight pursuers, whose step takes some milliseconds of Python and little memory."""
    from pettingzoo.sisl.pursuit.pursuit import parallel_env

    return parallel_env()


class Game(NamedTuple):
    """A game and how many steps of it make a round."""

    make: Callable[[], Any]
    n_agents: int
    n_actions: int
    steps: int
    env_id: str | None = None
    """If it brings its own vectorisation."""


GAMES = {
    "alice_and_bob": Game(alice_and_bob, 2, 4, 150, "AliceAndBob-v0"),
    "pursuit": Game(pursuit, 8, 5, 3),
    "pistonball": Game(pistonball, 5, 3, 6),
}


def super_suit(game: Game, n_envs: int, n_cpus: int) -> Any:
    """SuperSuit's own way, rows being agents."""
    rows = supersuit.pettingzoo_env_to_vec_env_v1(game.make())
    return supersuit.concat_vec_envs_v1(rows, n_envs, num_cpus=n_cpus, base_class="stable_baselines3")


def ways(game: Game, n_envs: int, n_workers: int) -> dict[str, Callable[[], Any]]:
    """By name, how to make the environments."""
    makers: list[Any] = [TeamMaker(game.make, {}, (), i) for i in range(n_envs)]
    found: dict[str, Callable[[], Any]] = {
        # First, so that the fork server of this process has the imports ready for SubprocVecEnv's 32 processes too.
        f"WorkerTeamVecEnv, {n_workers} workers": lambda: WorkerTeamVecEnv(makers, n_workers),
        f"WorkerTeamVecEnv, {n_workers} workers, restarting": lambda: WorkerTeamVecEnv(
            makers, n_workers, restart_workers=True
        ),
        "DummyVecEnv": lambda: DummyVecEnv(makers),
        "SubprocVecEnv": lambda: SubprocVecEnv(makers),
        "AsyncVectorEnv": lambda: GymVectorTeamVecEnv(
            AsyncVectorEnv(makers, shared_memory=True, autoreset_mode=AutoresetMode.SAME_STEP)
        ),
        "SuperSuit, in the main process": lambda: super_suit(game, n_envs, 0),
        f"SuperSuit, {n_workers} processes": lambda: super_suit(game, n_envs, n_workers),
    }
    env_id = game.env_id
    if env_id is not None:
        found["the game's own vectorisation"] = lambda: make_team_vec_env(env_id, n_envs, seed=0)
    return found


def rate(venv: Any, actions: np.ndarray, n_envs: int) -> float:
    """Environment steps per second over these actions, (T, n_envs, n_agents)."""
    flat = not isinstance(venv.observation_space, spaces.Dict)
    start = time.perf_counter()
    for chosen in actions:
        venv.step(chosen.reshape(-1) if flat else chosen)
    return len(actions) * n_envs / (time.perf_counter() - start)


def start_seconds(game_name: str, way: str, args: argparse.Namespace) -> float:
    """Seconds until the first observations, in a fresh process."""
    command = [sys.executable, __file__, "--time-start", game_name, way, "--n-envs", str(args.n_envs)]
    command += ["--workers", str(args.workers)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def measure(name: str, args: argparse.Namespace) -> list[str]:
    """The table of one game."""
    game = GAMES[name]
    makers = ways(game, args.n_envs, args.workers)
    starts = {way: start_seconds(name, way, args) for way in makers} if args.start_times else {}
    venvs = {}
    rng = np.random.default_rng(0)
    for way, make in makers.items():
        venvs[way] = make()
        venvs[way].reset()
        rate(venvs[way], rng.integers(0, game.n_actions, (3, args.n_envs, game.n_agents)), args.n_envs)  # warm-up
    rates: dict[str, list[float]] = {way: [] for way in venvs}
    for _ in range(args.rounds):
        actions = rng.integers(0, game.n_actions, (game.steps, args.n_envs, game.n_agents))
        for way, venv in venvs.items():
            rates[way].append(rate(venv, actions, args.n_envs))
    for venv in venvs.values():
        venv.close()
    base = np.array(rates["DummyVecEnv"])
    lines = [
        f"{name}, {args.n_envs} environments, {args.rounds} rounds of {game.steps} steps each",
        "",
        "| | steps/s median | min | max | × DummyVecEnv | start, s |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for way in venvs:
        own = np.array(rates[way])
        started = f"{starts[way]:.1f}" if way in starts else "–"
        lines.append(
            f"| {way} | {np.median(own):.0f} | {own.min():.0f} | {own.max():.0f} | {np.median(own / base):.2f} | {started} |"
        )
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", nargs="+", choices=list(GAMES), default=list(GAMES))
    parser.add_argument("--n-envs", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-start-times", dest="start_times", action="store_false")
    parser.add_argument("--output", type=Path, help="write the tables there as well")
    parser.add_argument("--time-start", nargs=2, metavar=("GAME", "WAY"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.time_start:
        name, way = args.time_start
        make = ways(GAMES[name], args.n_envs, args.workers)[way]
        start = time.perf_counter()
        venv = make()
        venv.reset()
        print(time.perf_counter() - start)
        venv.close()
        return
    lines = [line for name in args.games for line in measure(name, args)]
    print("\n".join(lines))
    if args.output is not None:
        args.output.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
