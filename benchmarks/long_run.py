"""Memory over a long training: does it end with what it had after its first five updates?

    python benchmarks/long_run.py --setting default            # 3,000,000 steps of AliceAndBob
    python benchmarks/long_run.py --setting cheap --total-timesteps 300000

The process's resident memory is read after every update. "cheap" does the same with small networks that learn little per
rollout. The exit code is 1 if memory has grown by more than ``--limit-mb``, from after the fifth update to after the last.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch as th
from measuring import Results, count, new_figure, output_options, publish, save_figure, status_mb, table

from hmasd_sb3 import HMASD, make_team_vec_env, paper_settings

N_ENVS = 32
FIRST_UPDATES = 5
"""Updates after which all that lasts has been allocated."""
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": paper_settings("alice_and_bob", N_ENVS),
    "cheap": {
        "n_epochs": 1,
        "batch_size": 100 * N_ENVS,
        "skill_n_epochs": 1,
        "discriminator_n_updates": 1,
        "policy_kwargs": {"hidden_size": 16},
    },
}


def train(setting: str, total_timesteps: int) -> dict[str, Any]:
    """Train, and read the memory after every update.

    :return: ``steps`` and ``mb`` after each update, ``peak_mb`` of the process, ``seconds``
    :raises ValueError: if there are fewer than six updates
    """
    th.set_num_threads(1)
    env = make_team_vec_env("AliceAndBob-v0", N_ENVS, seed=0)
    model = HMASD("MlpPolicy", env, seed=0, device="cpu", **SETTINGS[setting])
    if total_timesteps <= FIRST_UPDATES * model.n_steps * N_ENVS:
        raise ValueError(f"{total_timesteps} environment steps are too few: memory after update {FIRST_UPDATES} is compared.")
    steps: list[int] = []
    megabytes: list[float] = []
    update = model.sync_update

    def sync_update() -> None:
        update()
        steps.append(model.num_timesteps)
        megabytes.append(status_mb("VmRSS"))

    model.sync_update = sync_update  # type: ignore[method-assign]
    start = time.perf_counter()
    model.learn(total_timesteps)
    return {"steps": steps, "mb": megabytes, "peak_mb": status_mb("VmHWM"), "seconds": time.perf_counter() - start}


def growth(megabytes: list[float]) -> float:
    """MB gained from after the fifth update to after the last."""
    return megabytes[-1] - megabytes[FIRST_UPDATES - 1]


def samples(n_updates: int, n_samples: int = 10) -> list[int]:
    """Indices of updates for a table: after the fifth, the last, and some between at equal distances."""
    first, last = FIRST_UPDATES - 1, n_updates - 1
    return sorted({round(first + (last - first) * number / (n_samples - 1)) for number in range(n_samples)})


def report(setting: str, found: dict[str, Any], limit: float) -> list[str]:
    """The table, and the verdict."""
    steps, megabytes = found["steps"], found["mb"]
    rows = [
        [count(at + 1), count(steps[at]), f"{megabytes[at]:.1f}", f"{growth(megabytes[: at + 1]):+.1f}"]
        for at in samples(len(megabytes))
    ]
    gained = growth(megabytes)
    return [
        f"Setting {setting}, {count(steps[-1])} environment steps in {count(found['seconds'])} seconds",
        "",
        *table(["after update", "environment steps", "memory, MB", f"since update {FIRST_UPDATES}"], rows),
        "",
        f"Memory {'grew too much' if gained > limit else 'did not grow'}: {gained:+.1f} MB, at most {limit:g} are allowed. "
        f"The process had {found['peak_mb']:.0f} MB at its highest.",
        "",
    ]


def plot(found: dict[str, Any], path: Path) -> None:
    """Memory over environment steps."""
    figure = new_figure(6.0, 3.0)
    axes = figure.subplots()
    axes.plot(found["steps"], found["mb"], color="tab:orange")
    axes.axhline(found["mb"][FIRST_UPDATES - 1], color="gray", linestyle=":", label=f"after update {FIRST_UPDATES}")
    axes.set_ylim(0.0, 1.2 * max(found["mb"]))
    axes.set_xlabel("environment steps")
    axes.set_ylabel("resident memory, MB")
    axes.legend()
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", choices=list(SETTINGS), default="default")
    parser.add_argument("--total-timesteps", type=int, default=3_000_000)
    parser.add_argument("--limit-mb", type=float, default=5.0)
    output_options(parser)
    args = parser.parse_args()
    results = Results(args.out / "long_run.json", {"total_timesteps": args.total_timesteps}, args.resume)
    found = results.measured(args.setting, lambda: train(args.setting, args.total_timesteps))
    publish(args.out, "long_run", report(args.setting, found, args.limit_mb))
    plot(found, args.out / "long_run.png")
    if growth(found["mb"]) > args.limit_mb:
        sys.exit(1)


if __name__ == "__main__":
    main()
