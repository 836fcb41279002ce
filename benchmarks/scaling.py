"""How the cost of an environment step grows with agents, environments, hidden size and skill interval.

    python benchmarks/scaling.py --sweep agents envs hidden interval

One thread, default settings but for what is varied, on a game that costs next to nothing. Per point one update warms up and
the median of some further ones counts. The "exponent" of a point is that of the growth since the point before it: 1 is
linear, and an exponent of the cost in agents above 1.1 is flagged.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as th
from measuring import Results, count, new_figure, output_options, publish, save_figure, table
from synthetic_teams import synthetic_teams

from hmasd_sb3 import HMASD

WORSE_THAN_LINEAR = 1.1


class Point(NamedTuple):
    """What is varied, at its usual values."""

    agents: int = 2
    envs: int = 16
    hidden: int = 64
    interval: int = 50


N_STEPS = 50
SWEEPS = {
    "agents": (2, 4, 8, 16, 32, 64),
    "envs": (1, 8, 32, 128, 512),
    "hidden": (32, 64, 128, 256),
    "interval": (1, 5, 10, 25, 50, 100),
}
TITLES = {"agents": "agents", "envs": "environments", "hidden": "hidden size", "interval": "skill interval"}


def cost(point: Point, updates: int) -> dict[str, float]:
    """CPU-microseconds per environment step, of collecting and of learning, medians over some updates."""
    model = HMASD(
        "MlpPolicy",
        synthetic_teams(point.envs, point.agents),
        n_steps=N_STEPS,
        skill_interval=point.interval,
        # No early stop: a rollout's luck would decide how much work there is.
        target_kl=None,
        skill_target_kl=None,
        policy_kwargs={"hidden_size": point.hidden},
        seed=0,
        device="cpu",
    )
    seconds: dict[str, list[float]] = {"collecting": [], "learning": []}
    started = [0.0]
    update = model.sync_update

    def sync_update() -> None:
        middle = time.process_time()
        update()
        seconds["collecting"].append(middle - started[0])
        seconds["learning"].append(time.process_time() - middle)
        started[0] = time.process_time()

    model.sync_update = sync_update  # type: ignore[method-assign]
    model.start_cycle((1 + updates) * N_STEPS * point.envs)
    started[0] = time.process_time()
    model.learn((1 + updates) * N_STEPS * point.envs, log_interval=10**9, reset_num_timesteps=False)
    steps = N_STEPS * point.envs
    return {kind: 1e6 * float(np.median(values[1:])) / steps for kind, values in seconds.items()}


def exponents(values: Sequence[float], costs: Sequence[float]) -> list[float | None]:
    """Of the growth from each point to the next, ``d log(cost) / d log(value)``; none for the first."""
    points = list(zip(values, costs, strict=True))
    return [None, *(math.log(after[1] / before[1]) / math.log(after[0] / before[0]) for before, after in pairwise(points))]


def worse_than_linear(exponent: float | None) -> bool:
    """Whether cost grows faster than what is varied."""
    return exponent is not None and exponent > WORSE_THAN_LINEAR


def report(sweep: str, points: dict[int, dict[str, float]]) -> list[str]:
    """The table of one sweep, and what is flagged."""
    totals = [found["collecting"] + found["learning"] for found in points.values()]
    rows, flagged = [], []
    growth = exponents(list(points), totals)
    for (value, found), total, exponent in zip(points.items(), totals, growth, strict=True):
        grown = "–" if exponent is None else f"{exponent:.2f}"
        if sweep == "agents" and worse_than_linear(exponent):
            grown += " (!)"
            flagged.append(str(value))
        cells = [f"{found[kind]:.0f}" for kind in ("collecting", "learning")]
        rows.append([str(value), *cells, f"{total:.0f}", count(1e6 / total), grown])
    header = [TITLES[sweep], "collecting", "learning", "CPU-µs per step", "steps per CPU-s", "exponent"]
    usual = [f"{TITLES[name]} {value}" for name, value in Point()._asdict().items() if name != sweep]
    lines = [f"By {TITLES[sweep]}; {', '.join(usual)}, {N_STEPS} steps per update", "", *table(header, rows), ""]
    if sweep == "agents":
        verdict = f"(!) Worse than linear at {', '.join(flagged)} agents." if flagged else "Nowhere worse than linear."
        lines += [f"{verdict} (Exponents up to {WORSE_THAN_LINEAR} count as linear.)", ""]
    return lines


def plot(results: dict[str, dict[int, dict[str, float]]], path: Path) -> None:
    """Cost per environment step over each quantity, logarithmic axes."""
    figure = new_figure(3.0 * len(results), 3.0)
    for axes, (sweep, points) in zip(figure.subplots(1, len(results), squeeze=False)[0], results.items(), strict=True):
        values = list(points)
        kinds = {kind: np.array([found[kind] for found in points.values()]) for kind in ("collecting", "learning")}
        axes.loglog(values, sum(kinds.values()), "o-", color="black", label="all")
        for kind, costs in kinds.items():
            axes.loglog(values, costs, "o--", markersize=3, label=kind)
        if sweep in ("agents", "hidden"):
            first = sum(own[0] for own in kinds.values())
            axes.loglog(values, [first * value / values[0] for value in values], ":", color="gray", label="linear")
        axes.set_xticks(values, [str(value) for value in values], fontsize=7)
        axes.minorticks_off()
        axes.tick_params(labelsize=7)
        axes.set_xlabel(TITLES[sweep], fontsize=8)
        axes.legend(fontsize=6)
    figure.supylabel("CPU-µs per environment step", fontsize=8)
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", nargs="+", choices=list(SWEEPS), default=list(SWEEPS))
    parser.add_argument("--updates", type=int, default=3, help="updates measured per point")
    parser.add_argument("--points", type=int, help="only so many first points of each sweep")
    output_options(parser)
    args = parser.parse_args()
    th.set_num_threads(1)
    results = Results(args.out / "scaling.json", {"updates": args.updates}, args.resume)
    found: dict[str, dict[int, dict[str, float]]] = {}
    for sweep in args.sweep:
        found[sweep] = {}
        for value in SWEEPS[sweep][: args.points]:
            changed: dict[str, Any] = {sweep: value}
            measure = partial(cost, Point()._replace(**changed), args.updates)
            found[sweep][value] = results.measured(f"{sweep} {value}", measure)
    publish(args.out, "scaling", [line for sweep, points in found.items() for line in report(sweep, points)])
    plot(found, args.out / "scaling.png")


if __name__ == "__main__":
    main()
