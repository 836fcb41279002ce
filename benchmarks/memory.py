"""Peak memory and time of one update, by ``micro_batch_size``.

    python benchmarks/memory.py --output memory.md

Every setting runs in a fresh process: one rollout and one update to warm up, another rollout, and then the update that is
measured. Memory is what the process's resident set grows by during that update, at its highest: Linux keeps that mark as
``VmHWM`` in ``/proc/self/status`` and sets it back to the present size when 5 is written to ``/proc/self/clear_refs``. It
is read after each part of the update, so the table also says which part is the largest. The allocator gives large
blocks back at once (``MALLOC_MMAP_THRESHOLD_``), as what it kept of the warm-up would hide what is taken again. Since that
costs time, seconds of the processor are taken in further processes without it, in rounds, each setting once per round; the
median counts. To be quick, every network makes two gradient steps per update.

Each rollout is one minibatch, so that ``micro_batch_size=None`` needs most. The games are AliceAndBob, and noise: a team of
16 agents, and one of two agents that see pictures of 64 x 64 x 3 bytes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from measuring import fresh_process, status_mb
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

import hmasd_sb3.hmasd as algorithm
from hmasd_sb3 import HMASD, make_team_vec_env

PARTS = {
    "evaluate_rollout": "rewards, values",
    "log_rollout": "report",
    "update_coordinator": "coordinator",
    "update_actor": "actor",
    "update_critic": "critic",
    "update_discriminators": "discriminators",
}
"""Functions that make up an update, and what the table calls them."""


class NoiseTeam(gym.Env[dict[str, np.ndarray], np.ndarray]):
    """A team that observes noise, in episodes of 100 steps."""

    def __init__(self, n_agents: int, obs_space: spaces.Box) -> None:
        self.observation_space = spaces.Dict(
            obs=spaces.Box(
                np.broadcast_to(obs_space.low, (n_agents, *obs_space.shape)),
                np.broadcast_to(obs_space.high, (n_agents, *obs_space.shape)),
                dtype=obs_space.dtype,  # type: ignore[arg-type]
            ),
            state=spaces.Box(-1.0, 1.0, (64,), np.float32),
        )
        self.action_space = spaces.MultiDiscrete([5] * n_agents)
        self.clock = 0

    def _observe(self) -> dict[str, np.ndarray]:
        space = self.observation_space["obs"]
        shape = space.shape or ()
        if space.dtype == np.uint8:
            obs = np.frombuffer(self.np_random.bytes(int(np.prod(shape))), np.uint8).reshape(shape)
        else:
            obs = self.np_random.random(shape, np.float32)
        return {"obs": obs, "state": self.np_random.random(64, np.float32)}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.clock = 0
        return self._observe(), {}

    def step(self, action: np.ndarray) -> Any:
        self.clock += 1
        return self._observe(), float(action.sum() == 0), False, self.clock == 100, {}


def noise(n_envs: int, n_agents: int, obs_space: spaces.Box) -> VecEnv:
    """Copies of a :class:`NoiseTeam`."""
    return DummyVecEnv([lambda: NoiseTeam(n_agents, obs_space) for _ in range(n_envs)])


class Case(NamedTuple):
    """A game, the rollout that is learnt from, and further arguments."""

    title: str
    make: Callable[[int], VecEnv]
    n_envs: int
    n_steps: int
    policy: str = "MlpPolicy"

    @property
    def rollout(self) -> int:
        """Environment steps per update."""
        return self.n_envs * self.n_steps


CASES = {
    "alice_and_bob": Case("AliceAndBob", lambda n: make_team_vec_env("AliceAndBob-v0", n, seed=0), 32, 400),
    "agents": Case("16 agents", lambda n: noise(n, 16, spaces.Box(-1.0, 1.0, (64,), np.float32)), 32, 100),
    "pictures": Case(
        "2 agents, pictures", lambda n: noise(n, 2, spaces.Box(0, 255, (64, 64, 3), np.uint8)), 32, 32, "CnnPolicy"
    ),
}


def watch(peaks: dict[str, float]) -> None:
    """From now on every part of an update notes its highest resident set, in MB."""

    def watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            result = function(*args, **kwargs)
            peaks[name] = status_mb("VmHWM")
            return result

        return run

    for name in PARTS:
        setattr(algorithm, name, watched(name, getattr(algorithm, name)))


def one_setting(case: Case, n_pieces: int) -> dict[str, float]:
    """Processor seconds of an update, and MB that it and each of its parts add, in this process."""
    th.set_num_threads(1)
    micro_batch_size = None if n_pieces == 1 else case.rollout // n_pieces
    model = HMASD(
        case.policy,
        case.make(case.n_envs),
        n_steps=case.n_steps,
        batch_size=case.rollout,
        micro_batch_size=micro_batch_size,
        target_kl=None,
        skill_target_kl=None,
        skill_interval=10,
        n_epochs=2,
        skill_n_epochs=2,
        discriminator_n_updates=2,
        seed=0,
        device="cpu",
    )
    model.learn(case.rollout, log_interval=10**9)
    peaks: dict[str, float] = {}
    measured: dict[str, float] = {}
    update = model.sync_update

    def sync_update() -> None:
        watch(peaks)
        before, start = status_mb("VmRSS"), time.process_time()
        update()
        measured["seconds"] = time.process_time() - start
        measured.update({name: peak - before for name, peak in peaks.items()})

    model.sync_update = sync_update  # type: ignore[method-assign]
    model.learn(case.rollout, log_interval=10**9)
    return measured


def alone(name: str, n_pieces: int, give_back: bool) -> dict[str, float]:
    """:func:`one_setting` in a process of its own."""
    environment = {"MALLOC_MMAP_THRESHOLD_": "65536"} if give_back else {}
    return dict(fresh_process(__file__, ["--one", name, str(n_pieces)], environment=environment))


def measure(name: str, args: argparse.Namespace) -> list[str]:
    """The table of one game."""
    case = CASES[name]
    memory = {count: alone(name, count, give_back=True) for count in args.pieces}
    seconds: dict[int, list[float]] = {count: [] for count in args.pieces}
    for _ in range(args.rounds):
        for count in args.pieces:
            seconds[count].append(alone(name, count, give_back=False)["seconds"])
    lines = [
        f"{case.title}, {case.n_envs} x {case.n_steps} = {case.rollout} environment steps, one minibatch",
        "",
        f"| `micro_batch_size` | peak, MB | {' | '.join(PARTS.values())} | CPU-s per update |",
        f"|{'---:|' * (len(PARTS) + 3)}",
    ]
    for count in args.pieces:
        size = "None" if count == 1 else str(case.rollout // count)
        parts = [memory[count][part] for part in PARTS]
        cells = [f"{value:.0f}" for value in [max(parts), *parts]]
        lines.append(f"| {size} | {' | '.join(cells)} | {np.median(seconds[count]):.2f} |")
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--pieces", nargs="+", type=int, default=[1, 2, 4, 8, 16], help="1 is micro_batch_size=None")
    parser.add_argument("--rounds", type=int, default=3, help="updates timed per setting")
    parser.add_argument("--output", type=Path, help="write the tables there as well")
    parser.add_argument("--one", nargs=2, metavar=("GAME", "PIECES"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one_setting(CASES[args.one[0]], int(args.one[1]))))
        return
    lines = [line for name in args.games for line in measure(name, args)]
    print("\n".join(lines))
    if args.output is not None:
        args.output.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
