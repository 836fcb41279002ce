"""Training throughput (collection + update) of HMASD beside SB3 PPO and sb3-contrib RecurrentPPO on AliceAndBob.

    python benchmarks/throughput.py --setting all --threads 1 default

Every pair of setting and number of threads has a process of its own, in which the systems take turns round by round, so
that a busy machine hits all of them alike: ratios are taken within a round. Peak memory comes from one further process per
system. An environment step is all agents of one environment acting once.

The settings are the paper's amount of work at 32 environments x 100 steps per update ("paper": 15 epochs, one minibatch,
hidden size 64), the same at 32 x 32 ("32x32"), and HMASD's defaults ("default": 5 epochs, 4 minibatches) beside rivals that
still do the paper's work, and beside RecurrentPPO with epochs and minibatches like HMASD's.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as th
from measuring import (
    DEFAULT_THREADS,
    Results,
    count,
    fresh_process,
    new_figure,
    output_options,
    publish,
    save_figure,
    status_mb,
    table,
)
from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm

from hmasd_sb3 import HMASD, make_team_vec_env, paper_settings

N_ENVS = 32
BASE = "RecurrentPPO"
"""The system that all others are compared with."""

Maker = Callable[[], BaseAlgorithm]


def hmasd(n_steps: int, paper: bool) -> Maker:
    """HMASD with the paper's settings or its defaults."""

    def make() -> BaseAlgorithm:
        kwargs: dict[str, Any] = {"n_steps": n_steps}
        if paper:
            kwargs = {**paper_settings("alice_and_bob", N_ENVS), **kwargs, "batch_size": n_steps * N_ENVS}
        return HMASD("MlpPolicy", make_team_vec_env("AliceAndBob-v0", N_ENVS, seed=0), seed=0, device="cpu", **kwargs)

    return make


def rival(algorithm: type[PPO] | type[RecurrentPPO], n_steps: int, n_epochs: int = 15, minibatches: int = 1) -> Maker:
    """A joint policy over the whole team, hidden size 64."""

    def make() -> BaseAlgorithm:
        env = make_team_vec_env("AliceAndBob-v0", N_ENVS, seed=0)
        kwargs: dict[str, Any] = {"policy_kwargs": {"net_arch": [64, 64]}}
        if algorithm is RecurrentPPO:
            kwargs["policy_kwargs"]["lstm_hidden_size"] = 64
        policy = "MultiInputLstmPolicy" if algorithm is RecurrentPPO else "MultiInputPolicy"
        batch_size = n_steps * N_ENVS // minibatches
        return algorithm(
            policy, env, n_steps=n_steps, batch_size=batch_size, n_epochs=n_epochs, seed=0, device="cpu", **kwargs
        )

    return make


class Setting(NamedTuple):
    """Systems that take turns."""

    title: str
    n_steps: int
    systems: dict[str, Maker]

    @property
    def rollout(self) -> int:
        """Environment steps per update."""
        return self.n_steps * N_ENVS


def paper_work(n_steps: int) -> dict[str, Maker]:
    """Everybody with 15 epochs of one minibatch."""
    return {"HMASD": hmasd(n_steps, True), "PPO": rival(PPO, n_steps), BASE: rival(RecurrentPPO, n_steps)}


SETTINGS = {
    "paper": Setting("32 x 100, all with 15 epochs and 1 minibatch", 100, paper_work(100)),
    "default": Setting(
        "32 x 100, HMASD's defaults",
        100,
        {
            "HMASD, defaults": hmasd(100, False),
            "PPO": rival(PPO, 100),
            BASE: rival(RecurrentPPO, 100),
            f"{BASE}, 5 epochs, 4 minibatches": rival(RecurrentPPO, 100, 5, 4),
        },
    ),
    "32x32": Setting("32 x 32, all with 15 epochs and 1 minibatch", 32, paper_work(32)),
}


def take_turns(setting: Setting, rounds: int, iterations: int) -> dict[str, dict[str, list[float]]]:
    """Environment steps per second and per CPU-second of every system, by round, in this process."""
    models = {name: make() for name, make in setting.systems.items()}
    steps = iterations * setting.rollout
    for model in models.values():
        model.learn(setting.rollout, log_interval=10**9)  # warm-up
    rates: dict[str, dict[str, list[float]]] = {name: {"wall": [], "cpu": []} for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            start, start_cpu = time.perf_counter(), time.process_time()
            model.learn(steps, log_interval=10**9)
            rates[name]["wall"].append(steps / (time.perf_counter() - start))
            rates[name]["cpu"].append(steps / (time.process_time() - start_cpu))
    return rates


def peak_memory(setting: Setting, system: str) -> dict[str, float]:
    """MB of this process at its highest over two updates, and before the model was made."""
    before = status_mb("VmRSS")
    model = setting.systems[system]()
    for _ in range(2):
        model.learn(setting.rollout, log_interval=10**9)
    return {"imports": before, "peak": status_mb("VmHWM")}


def rows(rates: dict[str, Any], memory: dict[str, Any]) -> list[list[str]]:
    """Table cells of one setting.

    :param rates: from :func:`take_turns`
    :param memory: from :func:`peak_memory` by system; may be empty
    """
    cells = []
    for name, found in rates.items():
        wall, cpu = np.array(found["wall"]), np.array(found["cpu"])
        ratios = [float(np.median(own / np.array(rates[BASE][kind]))) for kind, own in (("wall", wall), ("cpu", cpu))]
        peak = f"{memory[name]['peak']:.0f}" if name in memory else "–"
        speeds = [count(value) for value in (wall.min(), np.median(wall), wall.max(), np.median(cpu))]
        cells.append([name, *speeds, *(f"{ratio:.2f}" for ratio in ratios), peak])
    return cells


HEADER = ["system", "steps/s, min", "median", "max", "per CPU-s", f"× {BASE}", "the same in CPU-s", "peak, MB"]


def plot(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Bars of median steps per second, with lines from minimum to maximum; one panel per setting and threads."""
    columns = min(len(results), len(SETTINGS))
    lines = -(-len(results) // columns)
    figure = new_figure(1 + 3.2 * columns, 3.4 * lines)
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes in panels[len(results) :]:
        axes.remove()
    for axes, (title, rates) in zip(panels, results.items(), strict=False):
        wall = [np.array(found["wall"]) for found in rates.values()]
        medians = [float(np.median(own)) for own in wall]
        ranges = [[median - own.min() for median, own in zip(medians, wall, strict=True)]]
        ranges.append([own.max() - median for median, own in zip(medians, wall, strict=True)])
        colours = ["tab:orange" if name.startswith("HMASD") else "tab:gray" for name in rates]
        axes.bar(range(len(rates)), medians, yerr=ranges, capsize=3, color=colours)
        labels = [name.replace(", ", ",\n") for name in rates]
        axes.set_xticks(range(len(rates)), labels, fontsize=6)
        axes.tick_params(axis="y", labelsize=7)
        axes.set_title(title, fontsize=8)
    figure.supylabel("environment steps per second", fontsize=8)
    save_figure(figure, path)


def measure(key: str, threads: str, args: argparse.Namespace, results: Results) -> tuple[str, Any, Any]:
    """Title, rates and memory of one setting with so many threads, from fresh processes."""
    setting, alone = SETTINGS[key], threads == "1"
    rounds, iterations = (args.rounds, args.iterations) if alone else (args.default_rounds, 1)
    turns = ["--measure", key, "", "--rounds", str(rounds), "--iterations", str(iterations)]
    rates = results.measured(f"{key}, threads {threads}", lambda: fresh_process(__file__, turns, threads))
    memory = {
        name: results.measured(f"{key}, memory of {name}", partial(fresh_process, __file__, ["--measure", key, name]))
        for name in (setting.systems if args.memory and alone else ())
    }
    number = "1 thread" if alone else "torch's default number of threads"
    return f"{setting.title}, {number}; {rounds} rounds of {iterations} updates", rates, memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", choices=[*SETTINGS, "all"], default="all")
    parser.add_argument("--threads", nargs="+", choices=["1", DEFAULT_THREADS], default=["1"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=2, help="updates per system and round")
    # Threads that wait for a busy core make every operation take milliseconds, so a few updates must do.
    parser.add_argument("--default-rounds", type=int, default=2, help="rounds with torch's default threads, one update each")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="leave peak memory out")
    parser.add_argument("--measure", nargs=2, metavar=("SETTING", "SYSTEM"), help=argparse.SUPPRESS)
    output_options(parser)
    args = parser.parse_args()
    if args.measure:  # in a process of its own
        if "OMP_NUM_THREADS" in os.environ:
            th.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        setting, system = SETTINGS[args.measure[0]], args.measure[1]
        found = peak_memory(setting, system) if system else take_turns(setting, args.rounds, args.iterations)
        print(json.dumps(found))
        return
    options = {"rounds": args.rounds, "iterations": args.iterations, "default_rounds": args.default_rounds}
    results = Results(args.out / "throughput.json", options, args.resume)
    lines, plotted = [], {}
    for threads in args.threads:
        for key in SETTINGS if args.setting == "all" else [args.setting]:
            title, rates, memory = measure(key, threads, args, results)
            lines += [title, "", *table(HEADER, rows(rates, memory)), ""]
            plotted[title.partition(";")[0].replace(", ", "\n")] = rates
    publish(args.out, "throughput", lines)
    plot(plotted, args.out / "throughput.png")


if __name__ == "__main__":
    main()
