"""Where the time of training goes, and what the arithmetic alone would take.

    python benchmarks/profile_training.py --setting paper default 32x32

Public functions are wrapped in clocks; each second of the processor counts for the innermost clock that runs. The bound
beside each part is what its matrix products would take at the speed at which this machine multiplies matrices of a
network's own shape: (environment steps of a minibatch, hidden size) times (hidden size, 3 x hidden size), the GRU's.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from arithmetic import acting_flops, evaluation_flops, multiplication_rate, update_flops
from measuring import Results, new_figure, output_options, publish, save_figure, table

import hmasd_sb3.hmasd as algorithm
from hmasd_sb3 import HMASD, make_team_vec_env, paper_settings
from hmasd_sb3.policies.policy import NETWORKS

N_ENVS = 32
SETTINGS: dict[str, dict[str, Any]] = {
    "paper": paper_settings("alice_and_bob", N_ENVS),
    "default": {},
    "32x32": {**paper_settings("alice_and_bob", N_ENVS), "n_steps": 32, "batch_size": 32 * N_ENVS},
}
"""Arguments by name; "32x32" is the paper's setting with shorter rollouts."""
LEARNING = ("batches, forward pass, loss", "backward pass", "optimizer step")


class Clocks:
    """Processor seconds by part, without those of parts that run inside."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._running: list[str] = []
        self._since = 0.0

    def _turn(self) -> None:
        """Book the time since the last turn."""
        now = time.process_time()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now

    def timed(self, name: str | Callable[[str], str], function: Callable[..., Any]) -> Callable[..., Any]:
        """The function under a clock.

        :param name: of the part, or what makes it of the name of the part around it
        """

        def run(*args: Any, **kwargs: Any) -> Any:
            self._turn()
            self._running.append(name if isinstance(name, str) else name(self._running[-1] if self._running else ""))
            try:
                return function(*args, **kwargs)
            finally:
                self._turn()
                self._running.pop()

        return run

    def wrap(self, owner: Any, attribute: str, name: str | Callable[[str], str]) -> None:
        """Put a function of a module or object under a clock."""
        setattr(owner, attribute, self.timed(name, getattr(owner, attribute)))


def watch(model: HMASD, clocks: Clocks) -> Callable[[], None]:
    """Put everything that takes time under clocks.

    :return: takes them off the package's functions again
    """
    functions = {"evaluate_rollout": "rewards, values, advantages"}
    functions |= {"log_rollout": "report and log", "log_update": "report and log"}
    functions |= {f"update_{network}": f"update {network}: {LEARNING[0]}" for network in NETWORKS}
    originals = {name: getattr(algorithm, name) for name in functions}
    for name, part in functions.items():
        clocks.wrap(algorithm, name, part)
    clocks.wrap(model, "dump_logs", "report and log")
    clocks.wrap(model.env, "step", "environment step")
    clocks.wrap(model.policy, "act", "acting: the rest")
    clocks.wrap(model.policy.actor, "act", "acting: low level")
    clocks.wrap(model.policy.coordinator, "assign", "acting: coordinator")
    clocks.wrap(model.rollout_buffer, "add", "buffer")
    clocks.wrap(model.rollout_buffer, "finish", "buffer")
    for network in NETWORKS:
        flat = model.policy.flat(network)
        clocks.wrap(flat, "accumulate", f"update {network}: {LEARNING[1]}")
        # Clipping and step come after the backward pass, in the same call.
        clocks.wrap(flat, "step", f"update {network}: {LEARNING[2]}")
    clocks.wrap(model, "learn", "cycle, callbacks, checks")

    def release() -> None:
        for name, function in originals.items():
            setattr(algorithm, name, function)

    return release


def profile(setting: str, iterations: int) -> dict[str, Any]:
    """Processor seconds and operations per iteration of each part, and the machine's speed."""
    th.set_num_threads(1)
    env = make_team_vec_env("AliceAndBob-v0", N_ENVS, seed=0)
    model = HMASD("MlpPolicy", env, seed=0, device="cpu", **SETTINGS[setting])
    rollout = model.n_steps * model.n_envs
    model.learn(2 * rollout, log_interval=10**9)
    start = time.process_time()
    model.learn(iterations * rollout, log_interval=10**9)
    unwatched = (time.process_time() - start) / iterations
    clocks, assignments, repetitions = Clocks(), [], defaultdict(list)
    release = watch(model, clocks)
    model.after_update = []
    for _ in range(iterations):
        model.learn(rollout, log_interval=10**9)
        assignments.append(int(model.rollout_buffer.assigned.sum()))
        logged = model.logger.name_to_value
        for network, name, planned in (
            ("coordinator", "epochs", model.skill_n_epochs),
            ("actor", "gradient_steps", logged["train/critic_gradient_steps"]),
        ):
            repetitions[network].append(logged[f"train/{network}_{name}"] / planned)
    release()
    decided = round(float(np.mean(assignments)))
    done = {network: float(np.mean(shares)) for network, shares in repetitions.items()}  # early stops leave some out
    flops = {name: value * done.get(name, 1.0) for name, value in update_flops(model, decided).items()}
    flops |= {f"acting: {name}": float(value) for name, value in acting_flops(model, decided).items()}
    flops["rewards, values, advantages"] = float(evaluation_flops(model, decided))
    minibatch = round(rollout * model.n_epochs / max(1.0, logged["train/critic_gradient_steps"]))
    hidden = model.policy.hidden_size
    return {
        "seconds": {name: value / iterations for name, value in clocks.seconds.items()},
        "unwatched": unwatched,
        "rollout": rollout,
        "flops": flops,
        "rate": multiplication_rate(minibatch, hidden, 3 * hidden),
        "rate_acting": multiplication_rate(N_ENVS * model.policy.spec.n_agents, hidden, 3 * hidden),
        "rate_large": multiplication_rate(1024, 1024, 1024),
    }


def bound(found: dict[str, Any], part: str) -> float | None:
    """Seconds that the matrix products of a part would take; None where none are counted."""
    flops = found["flops"].get(part)
    if flops is None:
        return None
    return float(flops / found["rate_acting" if part.startswith("acting") else "rate"])


def parts(found: dict[str, Any]) -> dict[str, float]:
    """Seconds by part; those of an update together."""
    together: dict[str, float] = defaultdict(float)
    for name, seconds in found["seconds"].items():
        together[name.partition(":")[0].removeprefix("update ") if name.startswith("update ") else name] += seconds
    return dict(together)


def report(setting: str, found: dict[str, Any], iterations: int) -> list[str]:
    """Both tables of one setting."""
    seconds = parts(found)
    total = sum(seconds.values())
    rows, bounds = [], 0.0
    for name, own in sorted(seconds.items(), key=lambda entry: -entry[1]):
        least = bound(found, name)
        bounds += least or 0.0
        label = f"update: {name}" if name in NETWORKS else name
        rows.append([label, f"{1e3 * own:.0f}", f"{own / total:.0%}", "–" if least is None else f"{1e3 * least:.0f}"])
    rows.append(["all", f"{1e3 * total:.0f}", "100%", f"{1e3 * bounds:.0f}"])
    steps = []
    for network in NETWORKS:
        kinds = [found["seconds"].get(f"update {network}: {kind}", 0.0) for kind in LEARNING]
        steps.append([network, *(f"{1e3 * value:.0f}" for value in kinds), f"{1e3 * (bound(found, network) or 0.0):.0f}"])
    rates = [f"{found[name] / 1e9:.0f}" for name in ("rate", "rate_acting", "rate_large")]
    unwatched = found["unwatched"]
    return [
        f"{setting}: CPU-milliseconds per update of {found['rollout']} environment steps, mean of {iterations} (without "
        f"clocks {1e3 * unwatched:.0f}, which is {found['rollout'] / unwatched:,.0f} environment steps per CPU-second)",
        "",
        *table(["part", "CPU-ms", "share", "arithmetic alone"], rows),
        "",
        *table(["update of", *LEARNING, "arithmetic alone"], steps),
        "",
        f"{sum(found['flops'].values()) / 1e9:.1f} billion floating-point operations in matrix products. This machine does "
        f"{rates[0]} billion per CPU-second at a minibatch's shape, {rates[1]} at that of acting, and {rates[2]} with large "
        "square matrices.",
        "",
    ]


def plot(results: dict[str, Any], path: Path) -> None:
    """Parts beside their bounds, one panel per setting."""
    figure = new_figure(7.5, 1 + 2.4 * len(results))
    for axes, (setting, found) in zip(figure.subplots(len(results), 1, squeeze=False)[:, 0], results.items(), strict=True):
        seconds = dict(sorted(parts(found).items(), key=lambda entry: entry[1]))
        places = np.arange(len(seconds))
        axes.barh(places, [1e3 * own for own in seconds.values()], 0.8, color="tab:orange", label="measured")
        axes.barh(places, [1e3 * (bound(found, name) or 0.0) for name in seconds], 0.4, color="tab:blue", label="arithmetic")
        axes.set_yticks(places, list(seconds), fontsize=7)
        axes.set_title(f"{setting}: CPU-milliseconds per update of {found['rollout']} environment steps", fontsize=8)
        axes.legend(fontsize=7, loc="lower right")
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--iterations", type=int, default=10)
    output_options(parser)
    args = parser.parse_args()
    results = Results(args.out / "profile.json", {"iterations": args.iterations}, args.resume)
    found = {name: results.measured(name, partial(profile, name, args.iterations)) for name in args.setting}
    publish(args.out, "profile", [line for name, own in found.items() for line in report(name, own, args.iterations)])
    plot(found, args.out / "profile.png")


if __name__ == "__main__":
    main()
