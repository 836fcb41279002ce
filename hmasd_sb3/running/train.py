"""Carries out a plan: environments, model, callbacks and logs; training; the end, whichever it is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import HumanOutputFormat, KVWriter, Logger
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from hmasd_sb3.hmasd import HMASD
from hmasd_sb3.monitoring.checkpoints import TrainingCheckpoint
from hmasd_sb3.monitoring.evaluation import ReportingEvalCallback
from hmasd_sb3.monitoring.metrics_log import JsonLinesOutput, ResumedTensorBoardOutput
from hmasd_sb3.monitoring.progress import Pace, ProgressLines
from hmasd_sb3.monitoring.stopping import StopRequest, StopRequestCallback
from hmasd_sb3.running.command_line import resume_command, typed_command
from hmasd_sb3.running.config import RunConfig, why_refused
from hmasd_sb3.running.env_check import check_before_training
from hmasd_sb3.running.environments import EVAL_SEED_OFFSET, make_evaluation_env, make_training_env
from hmasd_sb3.running.errors import DONE, SIGNAL_BASE, InputError
from hmasd_sb3.running.files import replace_atomically
from hmasd_sb3.running.folder import RunFolder, new_folder
from hmasd_sb3.running.hyperparameters import build_hyperparameters
from hmasd_sb3.running.options import TrainOptions
from hmasd_sb3.running.plan import Plan, make_plan
from hmasd_sb3.running.tensorboard_server import TensorBoardServer

CHECKPOINT_FREQ = 32_000
KEEP_CHECKPOINTS = 3


@dataclass
class Session:
    """All that a training consists of."""

    folder: RunFolder
    config: RunConfig
    options: TrainOptions
    model: HMASD
    evaluation: ReportingEvalCallback | None
    checkpoint: TrainingCheckpoint
    pace: Pace


def train(options: TrainOptions, stop: StopRequest, on_folder: Callable[[RunFolder], None] | None = None) -> int:
    """Start a run, or go on with one, until it is complete or a stop is requested.

    :param options: what the command line asks for
    :param stop: listens for signals
    :param on_folder: told the run's folder once it is known
    :return: the exit code: 0, or 128 and the number of the signal that asked for the stop
    :raises InputError: if the command is wrong; nothing was written then
    :raises BaseException: whatever training raises; checkpoints written before are kept
    """
    plan = make_plan(options)
    if plan.done:
        print(plan.note, flush=True)
        if on_folder is not None and plan.folder is not None:
            on_folder(plan.folder)
        return DONE
    with_tensorboard = _use_tensorboard(options.tensorboard)
    server = make_server(options) if options.supervised is None else None  # else the supervisor has one
    with ExitStack() as stack:
        if plan.folder is not None:
            stack.enter_context(plan.folder.locked())
        model, eval_env = _build(plan, stack)
        if plan.note:
            print(plan.note, flush=True)
        for warning in plan.warnings:
            print(f"Warning: {warning}", file=sys.stderr, flush=True)
        state_told = plan.folder is None and options.check and check_before_training(plan.config)
        folder = plan.folder or new_folder(plan.config, options.run_dir)
        if plan.folder is None:
            stack.enter_context(folder.locked())
        if server is not None:
            serve(server, folder, stack)
        if on_folder is not None:
            on_folder(folder)
        _prepare(folder, plan, options)
        logger = _make_logger(folder, model.num_timesteps, with_tensorboard, options.verbose)
        stack.callback(logger.close)
        model.set_logger(logger)
        pace = Pace()
        session = Session(
            folder,
            plan.config,
            options,
            model,
            _make_evaluation(eval_env, plan.config, folder, stop, pace),
            _checkpoint(folder, options, state_told),
            pace,
        )
        with stop.deferred():
            _announce(session, plan)
            try:
                return _run(session, stop, anew=plan.checkpoint is None)
            except BaseException:
                print("\nThe training broke off. Checkpoints written before are kept.", flush=True)
                _say_how_to_go_on(session)
                raise


def _build(plan: Plan, stack: ExitStack) -> tuple[HMASD, VecEnv | None]:
    """Environments and model; nothing is written.

    :raises InputError: if the game or the model refuses what was asked for
    """
    config = plan.config
    try:
        env = make_training_env(config)
        stack.callback(env.close)
        eval_env = make_evaluation_env(config) if config.eval_freq else None
        if eval_env is not None:
            stack.callback(eval_env.close)
        if plan.checkpoint is not None:
            return HMASD.load(plan.checkpoint, env=env, device=config.hyperparameters.get("device", "auto")), eval_env
        return HMASD(config.policy, env, seed=config.seed, **build_hyperparameters(config.hyperparameters)), eval_env
    except (ValueError, TypeError, ImportError, FileNotFoundError) as error:
        raise InputError(why_refused(error, plan.places)) from error


def make_server(options: TrainOptions) -> TensorBoardServer | None:
    """The TensorBoard server that was asked for, not started yet.

    :raises InputError: if there can be none
    """
    if options.tensorboard_port is not None and not options.tensorboard:
        raise InputError("--tensorboard-port is for --tensorboard, which starts a server; it was not given.")
    return TensorBoardServer(Path(), options.tensorboard_port) if options.tensorboard else None


def serve(server: TensorBoardServer, folder: RunFolder, stack: ExitStack) -> None:
    """Start the server over a run's folder, until the stack is left.

    :raises InputError: if it does not start; a folder that holds nothing yet is removed
    """
    server.logdir = folder.tensorboard
    try:
        stack.enter_context(server)
    except BaseException:
        folder.remove_if_unused()
        raise
    print(f"TensorBoard is at {server.address} until the run ends.", flush=True)


def _prepare(folder: RunFolder, plan: Plan, options: TrainOptions) -> None:
    """Bring the folder into the state in which the training goes on."""
    if plan.folder is None:
        folder.checkpoints.mkdir()
        folder.write_config(plan.config, typed_command(options))
        return
    for change in folder.changed_versions():
        print(
            f"Warning: other versions than at the run's start, so results may differ: {change}.", file=sys.stderr, flush=True
        )
    folder.keep_model()
    if plan.config != folder.read_config():
        folder.write_config(plan.config, typed_command(options))
    if plan.checkpoint is None:
        folder.forget_progress()


def _use_tensorboard(wanted: bool | None) -> bool:
    """Whether to write TensorBoard logs: by default if the package is there.

    :raises InputError: if they are asked for and it is not
    """
    if wanted is False:
        return False
    try:
        import tensorboard  # noqa: F401
    except ImportError as error:
        if wanted:
            raise InputError('--tensorboard: needs the package "tensorboard": pip install "hmasd-sb3[demo]"') from error
        return False
    return True


def _make_logger(folder: RunFolder, timesteps: int, with_tensorboard: bool, verbose: bool) -> Logger:
    # The one with a state comes first, so that it has the same place with and without the others.
    formats: list[KVWriter] = [JsonLinesOutput(folder.metrics)]
    if with_tensorboard:
        formats.append(ResumedTensorBoardOutput(folder.tensorboard, timesteps + 1))
    if verbose:
        formats.append(HumanOutputFormat(sys.stdout))
    return Logger(str(folder.path), formats)


def _make_evaluation(
    eval_env: VecEnv | None, config: RunConfig, folder: RunFolder, stop: StopRequest, pace: Pace
) -> ReportingEvalCallback | None:
    if eval_env is None:
        return None
    return ReportingEvalCallback(
        eval_env,
        stop,
        n_eval_episodes=config.eval_episodes,
        eval_freq=max(config.eval_freq // config.n_envs, 1),
        log_path=str(folder.path),
        seed=config.seed + EVAL_SEED_OFFSET,
        pace=pace,
    )


def _checkpoint(folder: RunFolder, options: TrainOptions, state_told: bool) -> TrainingCheckpoint:
    return TrainingCheckpoint(
        folder.checkpoints,
        save_freq=options.checkpoint_freq or CHECKPOINT_FREQ,
        keep_last=options.keep_checkpoints or KEEP_CHECKPOINTS,
        tell_lost_state=not state_told,
    )


def _announce(session: Session, plan: Plan) -> None:
    config, model = session.config, session.model
    if plan.checkpoint is not None:
        print(f"Going on from {plan.checkpoint}, step {model.num_timesteps:,} of {config.total_timesteps:,}.", flush=True)
    else:
        print(f"Training on {config.env} for {config.total_timesteps:,} environment steps, seed {config.seed}.")
        _announce_no_evaluation(config, model)
    print(f"Results go to {session.folder.path}. Ctrl-C stops and saves a checkpoint.", flush=True)


def _announce_no_evaluation(config: RunConfig, model: HMASD) -> None:
    """Say so if evaluations are wanted, and the run is over before the first."""
    rollout = model.n_steps * config.n_envs
    steps = -(-config.total_timesteps // rollout) * rollout  # it ends with a whole one
    if config.eval_freq and max(config.eval_freq // config.n_envs, 1) * config.n_envs > steps:
        print(f"Note: no evaluation: --eval-freq {config.eval_freq} is beyond {steps:,} steps.")


def _run(session: Session, stop: StopRequest, anew: bool) -> int:
    config, model = session.config, session.model
    remaining = config.total_timesteps - model.num_timesteps
    bar = _can_show_bar() and not session.options.json
    # Always the same ones in the same order, by which a checkpoint knows them again.
    callbacks: list[BaseCallback] = [StopRequestCallback(stop)]
    callbacks += [] if session.evaluation is None else [session.evaluation]
    every = session.options.checkpoint_freq or CHECKPOINT_FREQ
    callbacks += [session.checkpoint, ProgressLines(every, quiet=bar, pace=session.pace)]
    # Also with no step left to take: a stop may have come between the last step and the last update.
    model.learn(max(remaining, 0), callback=callbacks, reset_num_timesteps=anew, progress_bar=bar)
    if not _complete(session):
        assert stop.number is not None
        print(f"\nStopped at step {model.num_timesteps:,} of {config.total_timesteps:,}, with a checkpoint.", flush=True)
        _say_how_to_go_on(session)
        return SIGNAL_BASE + stop.number
    _finish(session)
    return DONE


def _say_how_to_go_on(session: Session) -> None:
    if session.options.supervised is None:  # else the supervisor does
        print(f"To go on:\n\n    {resume_command(session.folder.path, session.options)}\n", flush=True)


def _complete(session: Session) -> bool:
    """Whether all steps were taken and learnt from."""
    return session.model.num_timesteps >= session.config.total_timesteps and not session.model.should_sync_update()


def _finish(session: Session) -> None:
    normalizer: Any = session.model.get_vec_normalize_env()
    if isinstance(normalizer, VecNormalize):
        replace_atomically(session.folder.normalizer, lambda path: normalizer.save(str(path)))
    session.model.save(session.folder.model)  # the last of the files: it marks the run as complete
    print(f"Complete: {session.model.num_timesteps:,} environment steps. The model is {session.folder.model}.", flush=True)


def _can_show_bar() -> bool:
    """Whether SB3's progress bar has a terminal to be on and the packages it needs."""
    if not sys.stdout.isatty():
        return False
    try:
        import rich  # noqa: F401
        import tqdm  # noqa: F401
    except ImportError:
        return False
    return True
