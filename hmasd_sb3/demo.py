"""
Trains a team, shows how well it plays and what its skills do: ``python -m hmasd_sb3.demo``.

Everything goes into one new folder, ``runs/<game>-seed<seed>-<time>/``. Ctrl-C (or SIGTERM) ends the training at the
next step and keeps the model trained so far.
"""

import argparse
import json
import os
import platform
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import stable_baselines3
import torch as th
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

import hmasd_sb3
from hmasd_sb3 import HMASD, make_team_vec_env
from hmasd_sb3.monitoring import plot_learning_curve, record_episode
from hmasd_sb3.monitoring.evaluation import ReportingEvalCallback
from hmasd_sb3.monitoring.optional import import_optional
from hmasd_sb3.monitoring.stopping import StopRequest, StopRequestCallback, show_cursor

EXIT_REFUSED = 2
EXIT_INTERRUPTED = 130
SUCCESS_TARGET = 0.95
"""Success rate from which on the game counts as solved."""
# Far enough apart that no two of the three groups of environments ever share a seed.
_EVAL_SEED_OFFSET = 10_000
_FINAL_SEED_OFFSET = 20_000


@dataclass(frozen=True)
class Settings:
    """What the command line decides."""

    env: str  # registered id or "package.module:factory"
    seed: int
    total_timesteps: int  # environment steps
    n_envs: int
    eval_freq: int  # environment steps
    eval_episodes: int
    out: Path | None  # a folder for the run; None: a new one below runs/


@dataclass(frozen=True)
class Summary:
    """What a run reached; written to ``summary.json``."""

    env: str
    seed: int
    n_envs: int
    env_steps: int
    success_rate: float | None  # None if the game reports no success
    mean_return: float
    mean_episode_length: float
    eval_episodes: int
    train_seconds: float  # without evaluations
    eval_seconds: float  # evaluations during training
    env_steps_per_second: float  # of training time
    first_solved_timesteps: int | None  # first evaluation that reached the target; None if none did
    versions: dict[str, str]


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run the demo.

    :param arguments: command line without the program's name; ``None``: that of the process
    :return: exit code: 0 when the run is complete, however well it went; 2 when a package is missing or the folder is in
        use, and nothing was started; 130 when it was interrupted
    """
    settings = _parse(arguments)
    # Networks this small spend longer waiting for each other's threads than computing.
    th.set_num_threads(1)
    with StopRequest() as stop:
        try:
            return _run(settings, stop)
        except KeyboardInterrupt:
            show_cursor()
            print("\nInterrupted. Files written before are kept.", flush=True)
            return EXIT_INTERRUPTED


def _parse(arguments: Sequence[str] | None) -> Settings:
    parser = argparse.ArgumentParser(prog="python -m hmasd_sb3.demo", description="Train HMASD and show what it learned.")
    parser.add_argument("--env", default="AliceAndBob-v0", help="registered id or package.module:factory")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--total-timesteps", type=_positive, default=320_000, help="environment steps to train for")
    parser.add_argument("--n-envs", type=_positive, default=32, help="environments stepped together")
    parser.add_argument("--eval-freq", type=_positive, default=32_000, help="environment steps between evaluations")
    parser.add_argument("--eval-episodes", type=_positive, default=100, help="episodes per evaluation")
    parser.add_argument("--out", type=Path, default=None, help="folder for the results, new or empty (default: below runs/)")
    return Settings(**vars(parser.parse_args(arguments)))


def _positive(text: str) -> int:
    if not text.replace("_", "").isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return int(text)


def _run(settings: Settings, stop: StopRequest) -> int:
    _require_packages()
    folder = _make_folder(settings)
    train_env = make_team_vec_env(settings.env, n_envs=settings.n_envs, seed=settings.seed)
    eval_env = _make_eval_env(settings, _EVAL_SEED_OFFSET)
    model = HMASD("MlpPolicy", train_env, seed=settings.seed, tensorboard_log=str(folder / "tensorboard"))
    evaluation = ReportingEvalCallback(
        eval_env,
        stop,
        n_eval_episodes=settings.eval_episodes,
        eval_freq=max(settings.eval_freq // settings.n_envs, 1),
        log_path=str(folder),
    )
    with stop.deferred():
        print(f"Training on {settings.env} for {settings.total_timesteps:,} environment steps, seed {settings.seed}.")
        print(f"Results go to {folder}. Ctrl-C stops early and keeps the model.", flush=True)
        started = time.perf_counter()
        model.learn(settings.total_timesteps, callback=[StopRequestCallback(stop), evaluation], progress_bar=True)
        seconds = time.perf_counter() - started
        if model.num_timesteps < settings.total_timesteps:
            return _stop_early(model, settings, folder)
        model.save(folder / "model.zip")
    if stop.requested:  # during the last update: the training is complete, the rest is not wanted
        raise KeyboardInterrupt
    summary = _summarise(model, settings, evaluation, seconds)
    _write_json(folder / "summary.json", asdict(summary))
    notes = _draw(model, settings, folder)
    for env in (train_env, eval_env):
        env.close()
    _print_summary(summary, folder, notes)
    return 0


def _require_packages() -> None:
    """Asked for first: a missing package should not come to light after minutes of training."""
    try:
        for module in ("matplotlib", "imageio", "tensorboard", "tqdm", "rich"):
            import_optional(module, purpose="The demo", extra="demo")
    except ImportError as error:
        _refuse(str(error))


def _refuse(why: str) -> NoReturn:
    print(f"Error: {why}", file=sys.stderr, flush=True)
    sys.exit(EXIT_REFUSED)


def _make_folder(settings: Settings) -> Path:
    """A folder that holds nothing yet, so that no earlier result is ever written over."""
    if settings.out is not None:
        settings.out.mkdir(parents=True, exist_ok=True)
        if any(settings.out.iterdir()):
            _refuse(f"{settings.out} already holds files, which this run could overwrite: choose another --out")
        return settings.out
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", settings.env)
    stem = Path("runs") / f"{name}-seed{settings.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder, copies = stem, 1
    while True:
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:  # another run began in the same second
            copies += 1
            folder = stem.with_name(f"{stem.name}-{copies}")


def _make_eval_env(settings: Settings, seed_offset: int) -> VecEnv:
    n_envs = min(settings.n_envs, settings.eval_episodes)
    return make_team_vec_env(settings.env, n_envs=n_envs, seed=settings.seed + seed_offset)


def _stop_early(model: HMASD, settings: Settings, folder: Path) -> int:
    path = folder / "model_interrupted.zip"
    model.save(path)
    remaining = settings.total_timesteps - model.num_timesteps
    print(f"\nStopped after {model.num_timesteps:,} of {settings.total_timesteps:,} environment steps.")
    print(f"The model so far is in {path}. To go on from there:\n")
    print("    from hmasd_sb3 import HMASD, make_team_vec_env")
    print(f"    env = make_team_vec_env({settings.env!r}, n_envs={settings.n_envs}, seed={settings.seed})")
    print(f"    model = HMASD.load({str(path)!r}, env=env)")
    print(f"    model.learn({remaining:_}, reset_num_timesteps=False)", flush=True)
    return EXIT_INTERRUPTED


def _write_json(path: Path, content: dict[str, Any]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)


def _summarise(model: HMASD, settings: Settings, evaluation: ReportingEvalCallback, seconds: float) -> Summary:
    """Evaluate the final model on environments it has never met, and put everything together."""
    print("Evaluating the final model ...", flush=True)
    successes: list[bool] = []

    def note_success(local: dict[str, Any], _: dict[str, Any]) -> None:
        if local["done"] and local["info"].get("is_success") is not None:
            successes.append(bool(local["info"]["is_success"]))

    env = _make_eval_env(settings, _FINAL_SEED_OFFSET)
    returns, lengths = evaluate_policy(
        model,
        env,
        n_eval_episodes=settings.eval_episodes,
        deterministic=True,
        return_episode_rewards=True,
        callback=note_success,
    )
    env.close()
    solved = [
        step for step, rate in zip(evaluation.timesteps, evaluation.success_rates, strict=False) if rate >= SUCCESS_TARGET
    ]
    train_seconds = seconds - evaluation.seconds
    return Summary(
        env=settings.env,
        seed=settings.seed,
        n_envs=settings.n_envs,
        env_steps=model.num_timesteps,
        success_rate=float(np.mean(successes)) if successes else None,
        mean_return=float(np.mean(returns)),
        mean_episode_length=float(np.mean(lengths)),
        eval_episodes=settings.eval_episodes,
        train_seconds=train_seconds,
        eval_seconds=evaluation.seconds,
        env_steps_per_second=model.num_timesteps / train_seconds,
        first_solved_timesteps=solved[0] if solved else None,
        versions={
            "python": platform.python_version(),
            "hmasd-sb3": hmasd_sb3.__version__,
            "stable-baselines3": stable_baselines3.__version__,
            "torch": th.__version__,
            "numpy": np.__version__,
        },
    )


def _draw(model: HMASD, settings: Settings, folder: Path) -> list[str]:
    """Write the pictures; return what to tell about those that could not be made."""
    notes = []
    evaluations = folder / "evaluations.npz"
    if evaluations.exists():
        title = f"HMASD on {settings.env}, seed {settings.seed}"
        plot_learning_curve(evaluations, folder / "learning_curve.png", title, SUCCESS_TARGET)
    else:
        notes.append("no learning_curve.png: the run was shorter than --eval-freq")
    try:
        env = make_team_vec_env(
            settings.env,
            n_envs=1,
            seed=settings.seed + _FINAL_SEED_OFFSET,
            vec_env_cls=DummyVecEnv,
            env_kwargs={"render_mode": "rgb_array"},
        )
        record_episode(model, env, folder / "episode.gif")
        env.close()
    # A game of one's own may be unable to draw itself in any way it likes; the trained model is no worse for it.
    except Exception as error:
        notes.append(f"no episode.gif: {type(error).__name__}: {error}")
    return notes


def _print_summary(summary: Summary, folder: Path, notes: list[str]) -> None:
    episodes = f"{summary.eval_episodes} episodes, deterministic, fresh environments"
    print(f"\n{summary.env}, seed {summary.seed}")
    if summary.success_rate is not None:
        print(f"  success rate     {summary.success_rate:.2f} ({episodes})")
        print(f"  mean return      {summary.mean_return:.2f}")
    else:
        print(f"  mean return      {summary.mean_return:.2f} ({episodes}; this game reports no success)")
    print(f"  episode length   {summary.mean_episode_length:.1f} steps")
    print(f"  trained for      {summary.env_steps:,} environment steps")
    print(f"  training time    {summary.train_seconds:.1f} s, without the {summary.eval_seconds:.1f} s of evaluations")
    print(f"  training speed   {summary.env_steps_per_second:,.0f} environment steps per second")
    if summary.success_rate is not None:
        first = summary.first_solved_timesteps
        reached = "in no evaluation" if first is None else f"first in the evaluation at {first:,} environment steps"
        print(f"  success >= {SUCCESS_TARGET:g}  {reached}")
        if summary.success_rate < SUCCESS_TARGET:
            print(f"The final model does not solve the game: its success rate is below {SUCCESS_TARGET:g}.")
    print(f"\nFiles in {folder}:")
    for path in sorted(folder.iterdir()):
        print(f"  {path.name}{'/' if path.is_dir() else ''}")
    for note in notes:
        print(f"  ({note})")
    print(f"Curves of everything logged: tensorboard --logdir {folder / 'tensorboard'}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
