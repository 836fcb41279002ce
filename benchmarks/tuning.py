"""A study of AliceAndBob by two workers, one of which is killed, and what it chooses against the paper's setting.

    python benchmarks/tuning.py                       # 24 trials of 100,000 steps per seed, journal file and PostgreSQL
    python benchmarks/tuning.py --storages journal --trials 4 --total-timesteps 19200 --new-seeds 1 --episodes 8

Seeds of the comparison take no part in the search. Everything has the same number of environment steps per seed. PostgreSQL is
a private server on a loopback port, stopped in the end; without the package its part is left out, which is said.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import torch as th
from measuring import Results, count, output_options, publish, table

from hmasd_sb3 import paper_settings
from hmasd_sb3.running.config import RunConfig
from hmasd_sb3.tuning.confirm import chosen_trial, confirmed
from hmasd_sb3.tuning.report import confirmation_table, state_of
from hmasd_sb3.tuning.storage import open_storage
from hmasd_sb3.tuning.study import ORIGIN, RETRY_OF, WORKER, load_study
from hmasd_sb3.tuning.training import Training

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import postgres

ENV, N_ENVS, STUDY, FIRST_NEW_SEED = "AliceAndBob-v0", 32, "benchmark", 1000


@contextmanager
def storage_of(kind: str, folder: Path) -> Iterator[str]:
    """What ``--storage`` is given."""
    if kind == "postgresql":
        with postgres.server() as url:
            yield url
    else:
        yield str(folder / "study.journal") if kind == "journal" else f"sqlite:///{folder}/study.db"


def search(kind: str, args: argparse.Namespace) -> dict[str, Any]:
    """Carry out a study, kill a worker in the middle of a trial, and say how it went."""
    with tempfile.TemporaryDirectory() as name, storage_of(kind, Path(name)) as storage:
        sizes = {"--trials": args.trials, "--total-timesteps": args.total_timesteps, "--seeds": args.seeds}
        command = [sys.executable, "-m", "hmasd_sb3.cli", "tune", "--env", ENV, "--storage", storage, "--study", STUDY]
        command += [str(part) for option in sizes.items() for part in option]
        command += ["--workers", str(args.workers), "--out", f"{name}/out", "--set", "device=cpu"]
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=sys.stderr)
        try:
            killed = kill_one(storage, process, args.trials // 4)
            code = process.wait()
        finally:
            process.kill()
            process.wait()
        seconds = time.perf_counter() - started
        shared = load_study(open_storage(storage), STUDY, 0)
        trials, best = shared.trials(), chosen_trial(shared)
        assert best is not None
        states = [state_of(trial) for trial in trials]
        return {
            "exit_code": code,
            "minutes": seconds / 60,
            "states": {state: states.count(state) for state in sorted(set(states))},
            "killed": killed,
            "retried_as": [trial.number for trial in trials if trial.user_attrs.get(RETRY_OF) == killed],
            "best": {
                "number": best.number,
                "origin": best.user_attrs.get(ORIGIN, "sampler"),
                "value": best.value,
                "again": next((again.value for trial, again in confirmed(shared) if trial.number == best.number), None),
                "hyperparameters": best.user_attrs["hyperparameters"],
            },
            "trials": [(trial.number, state_of(trial), trial.value, trial.user_attrs.get(ORIGIN)) for trial in trials],
            "luckiest": max(float(trial.value or 0.0) for trial in trials if trial.state.name == "COMPLETE"),
            "confirmed": confirmation_table(shared),
            "defaults": next(
                (t.value for t in trials if t.user_attrs.get(ORIGIN) == "defaults" and t.value is not None), None
            ),
        }


def load(storage: str) -> optuna.Study:
    return optuna.load_study(study_name=STUDY, storage=open_storage(storage).storage)


def kill_one(storage: str, process: subprocess.Popen[bytes], after: int) -> int:
    """Kill the worker of a trial that was evaluated at least once; the trial's number."""
    study: optuna.Study | None = None
    while process.poll() is None:
        time.sleep(0.2)
        try:
            study = load(storage) if study is None else study
        except KeyError:  # not made yet
            continue
        trials = study.get_trials(deepcopy=False)
        halfway = [trial for trial in trials if trial.state.name == "RUNNING" and trial.intermediate_values]
        if halfway and sum(trial.state.is_finished() for trial in trials) >= after:
            os.kill(int(halfway[0].user_attrs[WORKER].split("-")[-2]), signal.SIGKILL)
            return halfway[0].number
    raise SystemExit(f"hmasd tune ended with {process.returncode} before a worker could be killed.")


def play(hyperparameters: dict[str, Any], seed: int, args: argparse.Namespace) -> dict[str, float]:
    """Success of one seed after the budget, over episodes of seeds of their own."""
    outcome = {}
    config = RunConfig(
        seed=seed,
        total_timesteps=args.total_timesteps,
        n_envs=N_ENVS,
        eval_episodes=args.episodes,
        hyperparameters={**hyperparameters, "device": "cpu"},
    )
    training = Training(config, deterministic=False)
    training.train_until(args.total_timesteps)
    for name, deterministic in (("sampled", False), ("deterministic", True)):
        training.deterministic = deterministic
        outcome[name] = training.evaluate(0).measure("success")
    training.close()
    return outcome


def configurations_of(results: Results, studies: list[str]) -> dict[str, dict[str, Any]]:
    """What is compared, by name: the same once, whether one study chose it, or several, or all of them the defaults."""
    configurations: dict[str, dict[str, Any]] = {"paper's setting": paper_settings("alice_and_bob", N_ENVS), "defaults": {}}
    for kind in studies:
        best = results.parts[kind]["best"]
        if best["origin"] != "defaults" and best["hyperparameters"] not in configurations.values():
            configurations[f"best of {kind}"] = best["hyperparameters"]
    return configurations


def lines_of(results: Results, studies: list[str], configurations: list[str], seeds: list[int]) -> list[str]:
    """The tables."""
    header = ["study", "minutes", "trials by end", "killed", "tried again as", "lost", "value of defaults", "highest value"]
    header += ["chosen", "its value", "on new seeds"]
    rows = []
    for kind in studies:
        part = results.parts[kind]
        states = part["states"]
        lost = states.get("running", 0) + (states.get("killed", 0) != len(part["retried_as"]))
        ends = ", ".join(f"{number} {state}" for state, number in states.items())
        retried = ", ".join(map(str, part["retried_as"]))
        defaults = "none" if part["defaults"] is None else f"{part['defaults']:.2f}"
        best = part["best"]
        chosen = [f"trial {best['number']} ({best['origin']})", f"{best['value']:.2f}"]
        chosen.append("none" if best["again"] is None else f"{best['again']:.2f}")
        highest = f"{part['luckiest']:.2f}"
        rows.append(
            [kind, f"{part['minutes']:.1f}", ends, str(part["killed"]), retried, str(lost), defaults, highest, *chosen]
        )
    lines = [*table(header, rows), ""]
    rows = []
    for name in configurations:
        row = [name]
        for how in ("sampled", "deterministic"):
            values = [results.parts[f"{name}, seed {seed}"][how] for seed in seeds]
            row += [" ".join(f"{value:.2f}" for value in values), f"{statistics.mean(values):.2f}"]
        rows.append(row)
    lines += table(["configuration", "sampled, by new seed", "mean", "deterministic, by new seed", "mean"], rows)
    for kind in studies:
        lines += ["", f"Trained again by {kind}:", "", *(f"    {line.strip()}" for line in results.parts[kind]["confirmed"])]
        lines += ["", f"Best of {kind}: `{json.dumps(results.parts[kind]['best']['hyperparameters'])}`"]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--storages", nargs="+", choices=["journal", "sqlite", "postgresql"], default=["journal", "postgresql"]
    )
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--total-timesteps", type=int, default=100_000, help="per trial and seed")
    parser.add_argument("--seeds", type=int, default=3, help="per trial; the budget is that of each")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--new-seeds", type=int, default=10, help="to compare the best configurations by")
    parser.add_argument("--episodes", type=int, default=100, help="per new seed")
    output_options(parser)
    args = parser.parse_args()
    th.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    studies = list(args.storages)
    if "postgresql" in studies and (reason := postgres.why_not()):
        print(f"Left out: {reason}", file=sys.stderr, flush=True)
        studies.remove("postgresql")
    options = {name: value for name, value in vars(args).items() if name not in ("out", "resume", "storages")}
    results = Results(args.out / "tuning.json", options, args.resume)
    for kind in studies:
        results.measured(kind, lambda kind=kind: search(kind, args))  # type: ignore[misc]
    configurations = configurations_of(results, studies)
    seeds = [FIRST_NEW_SEED + number for number in range(args.new_seeds)]
    for seed in seeds:
        for name, hyperparameters in configurations.items():
            results.measured(f"{name}, seed {seed}", lambda h=hyperparameters, s=seed: play(h, s, args))  # type: ignore[misc]
    lines = [
        f"{ENV}, {args.trials} trials, {count(args.total_timesteps)} environment steps for each of a trial's {args.seeds} "
        f"seeds, {args.workers} workers of which one was killed by SIGKILL. Success over {args.episodes} episodes after as "
        "many steps.",
        "",
        *lines_of(results, studies, list(configurations), seeds),
    ]
    publish(args.out, "tuning", lines)


if __name__ == "__main__":
    main()
