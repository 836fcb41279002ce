"""Playing a saved model: which file, which environment, and what is to be told of it."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from hmasd_sb3.hmasd import HMASD
from hmasd_sb3.monitoring.checkpoints import CheckpointFolder
from hmasd_sb3.monitoring.evaluate import SkillEvaluation, evaluate_skills
from hmasd_sb3.monitoring.optional import import_optional
from hmasd_sb3.monitoring.skill_usage import plot_skill_usage
from hmasd_sb3.monitoring.video import agent_names, record_episode
from hmasd_sb3.running.config import RunConfig, read_request, why_refused
from hmasd_sb3.running.environments import SAVED_SEED_OFFSET, make_playing_env
from hmasd_sb3.running.errors import InputError
from hmasd_sb3.running.folder import RunFolder
from hmasd_sb3.running.options import EvalOptions, TrainOptions
from hmasd_sb3.running.team_sizes import team_sizes
from hmasd_sb3.running.yaml_file import read_assignment
from hmasd_sb3.saving.archive import ModelFileError

_MAY_BE_SET = ("env_kwargs", "normalize")


@dataclass(frozen=True)
class Played:
    """What was played, and what came of it."""

    model: Path
    timesteps: int
    """Environment steps that the model was trained for."""
    env: str
    seed: int
    n_envs: int
    deterministic: bool
    agents: tuple[str, ...]
    result: SkillEvaluation
    gif: Path | None
    plot: Path | None


def evaluate_saved(options: EvalOptions) -> Played:
    """Load a model and play it. Nothing is trained, and the file stays as it is.

    :raises InputError: if there is no such model, no environment for it, or statistics that it needs are missing
    """
    _ask_for_packages(options)
    path, config = find_model(options)
    for option, file, suffix in (("--gif", options.gif, ".gif"), ("--plot", options.plot, ".png")):
        if file is not None:
            _make_room(option, file, suffix)
    seed = config.seed + SAVED_SEED_OFFSET if options.seed is None else options.seed
    n_envs = 1 if options.render else min(options.n_envs, options.episodes)
    with ExitStack() as stack:
        try:
            env = make_playing_env(config, n_envs, seed, "human" if options.render else None)
            stack.callback(env.close)
            model = _load(path, env)
        except (ValueError, TypeError, ImportError, OSError, ModelFileError) as error:
            text = why_refused(error, {})
            shown = options.render and "render" in text
            raise InputError(f"--render: {text}. (--gif writes an episode instead.)" if shown else text) from error
        if options.render:
            _check_window(env)
        _check_statistics(model, config, path)
        if options.gif is not None:  # first, as what cannot be shown should not cost minutes of play
            set_random_seed(seed)
            _record(model, env, config, options, seed, stack)
        set_random_seed(seed)  # sampled actions are those of this seed, whatever happened before
        result = evaluate_skills(
            model, env, options.episodes, deterministic=not options.stochastic, seed=seed, render=options.render
        )
        n_agents = model.policy.spec.n_agents
        names = agent_names(env, n_agents)
        if options.plot is not None and result.usage is not None:
            plot_skill_usage(result.usage, options.plot, f"Skills on {config.env}, {options.episodes} episodes", list(names))
        return Played(
            path,
            model.num_timesteps,
            config.env,
            seed,
            n_envs,
            not options.stochastic,
            names,
            result,
            options.gif,
            options.plot,
        )


def find_model(options: EvalOptions) -> tuple[Path, RunConfig]:
    """The model file that is meant, and the config that tells its environment.

    :raises InputError: if there is none
    """
    path = options.path
    if path.is_dir():
        folder: RunFolder | None = RunFolder(path)
        path = _model_of(RunFolder(path), options.best)
    elif not path.exists():
        raise InputError(f"{path}: there is no such model file or run folder.")
    else:
        if options.best:
            raise InputError(f"--best is for a run's folder, and {path} is a file.")
        # A model that still lies where its run put it.
        folder = next((RunFolder(place) for place in (path.parent, path.parent.parent) if RunFolder(place).holds_run), None)
    base = RunConfig() if folder is None else folder.read_config()
    if folder is None and options.env is None:
        raise InputError(f"{path} lies in no folder of a run, so its environment is not known: give it by --env.")
    if options.env is not None and options.env != base.env:
        base = replace(base, env=options.env, env_kwargs={})
    for text in options.assignments:
        name = read_assignment(text)[0]
        if name not in _MAY_BE_SET:
            raise InputError(f"--set {text}: only {' and '.join(_MAY_BE_SET)} can be set here, as nothing is trained.")
    asked = TrainOptions(env=options.env, assignments=options.assignments, from_run=path)
    return path, replace(read_request(asked, base).config, n_workers=options.n_workers)


def _model_of(folder: RunFolder, best: bool) -> Path:
    if not folder.holds_run:
        raise InputError(f"{folder.path} is no folder of a run: there is no {folder.config_file.name} in it.")
    kept = CheckpointFolder(folder.checkpoints)
    if best:
        found = kept.best()
        if found is None:
            raise InputError(f"--best: there is no {folder.checkpoints / 'best.zip'}; {_why_no_best(folder)}.")
        return found
    if folder.finished:
        return folder.model
    newest = kept.all()[-1:]
    hint = f" Give one of its checkpoints, such as {newest[0]}" if newest else " It has no checkpoint yet"
    raise InputError(f"{folder.path}: the run is not complete, so there is no {folder.model.name}.{hint}, or --best.")


def _why_no_best(folder: RunFolder) -> str:
    eval_freq = folder.read_config().eval_freq
    if eval_freq == 0:
        return "the run makes no evaluations, by --eval-freq 0"
    if folder.finished and not folder.evaluations.exists():
        return f"the run was complete before its first evaluation, which --eval-freq {eval_freq} puts beyond its end"
    return "the run has made no evaluation yet"


def _load(path: Path, env: VecEnv) -> HMASD:
    """The model in a file, to be played in an environment.

    :raises ValueError: if it was trained for other sizes, which are named, or cannot be loaded
    """
    try:
        return HMASD.load(path, env=env)
    except ValueError as error:
        if "spaces do not match" not in str(error):
            raise
        model = HMASD.load(path)
        had = team_sizes(model.observation_space, model.action_space)
        has = team_sizes(env.observation_space, env.action_space)
        if had == has:  # of other bounds or types, which the spaces themselves tell
            raise
        raise InputError(f"{path}: the model was trained for {had}; this game has {has}.") from error


def _check_window(env: VecEnv) -> None:
    """Refuse ``--render`` for a game that would show nothing.

    :raises InputError: if the game has no window
    """
    (metadata,) = env.get_attr("metadata")
    modes = list((metadata or {}).get("render_modes") or [])
    # Some games tell no modes at all, but take one.
    if "human" in modes or (not modes and env.render_mode == "human"):
        return
    remedy = "; use --gif" if "rgb_array" in modes else ""
    raise InputError(f"--render: the game has no render mode 'human' (it has {', '.join(modes) or 'none'}){remedy}.")


def _check_statistics(model: HMASD, config: RunConfig, path: Path) -> None:
    """Refuse to play with other numbers than the model was trained on."""
    saved = (model._saved_run or {}).get("env")
    had = saved is not None and saved["normalizer"] is not None
    if config.normalize is False and had:
        raise InputError(
            f"{path} was trained behind a VecNormalize: give the folder of its run, or its arguments by --set normalize=..."
        )
    if config.normalize is not False and not had:
        raise InputError(f"{path} holds no statistics of VecNormalize, though normalize={config.normalize} asks for them.")


def _record(model: HMASD, env: VecEnv, config: RunConfig, options: EvalOptions, seed: int, stack: ExitStack) -> None:
    assert options.gif is not None
    try:
        shown = make_playing_env(config, 1, seed, "rgb_array")
        stack.callback(shown.close)
        # Not by SB3's sync_envs_normalization, which wants both wrapped alike.
        trained, own = unwrap_vec_normalize(env), unwrap_vec_normalize(shown)
        if trained is not None and own is not None:
            own.obs_rms, own.ret_rms = trained.obs_rms, trained.ret_rms
        record_episode(model, shown, options.gif, deterministic=not options.stochastic, seed=seed)
    except (ValueError, TypeError, ImportError) as error:
        raise InputError(f"--gif: {' '.join(str(error).split())}") from error


def _make_room(option: str, file: Path, suffix: str) -> None:
    """Make the folder that a file is to be written into.

    :param option: what asked for the file
    :param suffix: of the only format that is written
    :raises InputError: if the file cannot be written, or its name promises another format
    """
    if file.suffix.lower() != suffix:
        raise InputError(f"{option} {file}: the name must end in {suffix}, as no other format is written.")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        raise InputError(f"{option} {file}: cannot be written: {error.strerror}.") from error
    if file.is_dir():
        raise InputError(f"{option} {file}: is a folder, not a file.")


def _ask_for_packages(options: EvalOptions) -> None:
    """A missing package should not come to light after minutes of play."""
    try:
        if options.gif is not None:
            import_optional("imageio.v3", purpose="--gif", extra="demo")
        if options.plot is not None:
            import_optional("matplotlib.figure", purpose="--plot", extra="demo")
    except ImportError as error:
        raise InputError(str(error)) from error


def as_dict(played: Played) -> dict[str, Any]:
    """Everything, for JSON."""
    result, usage = played.result, played.result.usage
    return {
        "model": played.model,
        "timesteps": played.timesteps,
        "env": played.env,
        "seed": played.seed,
        "n_envs": played.n_envs,
        "deterministic": played.deterministic,
        "episodes": len(result.returns),
        "mean_return": result.mean_return,
        "std_return": result.std_return,
        "return_interval": result.return_interval,
        "success_rate": result.success_rate,
        "success_interval": result.success_interval,
        "mean_length": result.mean_length,
        "std_length": float(result.lengths.std()),
        "truncated": float(result.truncated.mean()),
        "returns": result.returns,
        "lengths": result.lengths,
        "successes": result.successes,
        "agents": played.agents,
        "skills": None if usage is None else usage._asdict(),
        "gif": played.gif,
        "plot": played.plot,
    }


def lines(played: Played) -> list[str]:
    """What a person reads."""
    result = played.result
    how = "most probable skills and actions" if played.deterministic else "sampled skills and actions"
    spread = _between(result.return_interval, "bootstrap")
    out = [
        f"{played.model}, trained for {played.timesteps:,} environment steps, on {played.env}",
        f"{len(result.returns)} episodes, {how}, seed {played.seed}, {played.n_envs} environments side by side",
        "",
        f"  mean return     {result.mean_return:8.3f} ± {result.std_return:.3f}{spread}",
    ]
    if result.success_rate is None:
        out.append("  success rate    not reported by this game")
    else:
        out.append(f"  success rate    {result.success_rate:8.3f}{_between(result.success_interval, 'Wilson')}")
    out.append(
        f"  episode length  {result.mean_length:8.1f} ± {result.lengths.std():.1f}, "
        f"{result.lengths.min()} to {result.lengths.max()}; {result.truncated.mean():.0%} ended by a time limit"
    )
    return out + ([] if result.usage is None else ["", *_table(played)])


def _between(interval: tuple[float, float] | None, kind: str) -> str:
    return "" if interval is None else f", 95 % interval {interval[0]:.3f} to {interval[1]:.3f} ({kind})"


def _table(played: Played) -> list[str]:
    """Skill usage: one row for the team, one per agent."""
    usage = played.result.usage
    assert usage is not None
    width = max(5, *(len(name) for name in played.agents))
    n_columns = max(len(usage.team_steps), usage.agent_steps.shape[1])
    head = "".join(f"{skill:>14}" for skill in range(n_columns))
    rows = [("team", usage.team_shares, usage.team_assigned)]
    rows += list(zip(played.agents, usage.agent_shares, usage.agent_assigned, strict=True))
    out = [f"  {'skill':<{width}}{head}   (share of steps, times assigned)"]
    for name, shares, assigned in rows:
        cells = "".join(f"{share:>7.0%} {f'({count:,})':>6}" for share, count in zip(shares, assigned, strict=True))
        out.append(f"  {name:<{width}}{cells}")
    return out
