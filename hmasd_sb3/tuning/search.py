"""Carries out ``hmasd tune``: the study, its workers, what is said meanwhile, and the files at the end."""

from __future__ import annotations

import os
import re
import shlex
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hmasd_sb3 import paper_settings
from hmasd_sb3.monitoring.stopping import StopRequest
from hmasd_sb3.running.config import Request, RunConfig, read_request
from hmasd_sb3.running.errors import BROKE_DOWN, DONE, FAILED, SIGNAL_BASE, InputError
from hmasd_sb3.running.options import TrainOptions
from hmasd_sb3.tuning.confirm import candidates, chosen_trial, confirmed, open_confirmation
from hmasd_sb3.tuning.objective import AGGREGATES, ERROR, METRICS, SECONDS, Objective
from hmasd_sb3.tuning.plots import plot_study
from hmasd_sb3.tuning.pool import STORAGE_VARIABLE, Pool, WorkerOptions
from hmasd_sb3.tuning.report import confirmation_table, counts, state_of, summary, table, write_files
from hmasd_sb3.tuning.space import SearchSpace
from hmasd_sb3.tuning.storage import open_storage
from hmasd_sb3.tuning.study import CRASHED, DEFAULTS, RETRY_OF, SharedStudy, Spec, load_study, open_study
from hmasd_sb3.tuning.training import Training
from hmasd_sb3.tuning.workers import PRUNERS, SAMPLERS, describe_failure, make_pruner, make_sampler, work

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

_TICK = 0.3
_ENDED = ("complete", "pruned", "crashed", "killed", "interrupted")


@dataclass(frozen=True)
class TuneOptions:
    """The options of ``hmasd tune``."""

    env: str | None = None
    config: Path | None = None
    assignments: list[str] = field(default_factory=list)
    total_timesteps: int | None = None
    n_envs: int | None = None
    n_workers: int | None = None
    trials: int = 50
    workers: int = 1
    seeds: int = 3
    n_evaluations: int = 8
    eval_episodes: int = 32
    aggregate: str = "mean"
    metric: str = "auto"
    deterministic: bool = False
    search: list[str] = field(default_factory=list)
    sampler: str = "tpe"
    pruner: str = "median"
    seed: int = 0
    defaults_first: bool = True
    paper_first: str | None = None
    vary: int | None = None
    confirm: int = 3
    confirm_seeds: int = 8
    max_failures: int = 3
    timeout: float | None = None
    study: str | None = None
    storage: str | None = None
    out: Path | None = None


@dataclass(frozen=True)
class _Command:
    """The options, read and checked."""

    options: TuneOptions
    spec: Spec
    n_workers: int | None
    study: str
    storage: str
    out: Path
    deadline: float | None
    """``time.time()`` after which no trial is begun."""
    first_trials: dict[str, dict[str, Any]]
    note: str
    """Lines about what was taken without being asked for."""


def tune(options: TuneOptions, stop: StopRequest) -> tuple[int, dict[str, Any]]:
    """Search until the study has as many trials as are wanted.

    :param stop: listens for signals
    :return: the exit code, and the study as plain values
    :raises InputError: if the command is wrong; nothing was started then
    """
    command = _read(options)
    place = open_storage(command.storage)
    _quieten_optuna()
    shared, is_new = open_study(place, command.study, command.spec, command.first_trials)
    try:
        _make_folder(command.out)
        shared.put_away_dead()
        if command.note:
            _say(command.note)
        how = "New study" if is_new else "Going on with the study"
        _say(f"{how} {command.study!r} in {place.shown}: {shared.n_finished()} of {options.trials} trials are done.")
        code = DONE
        if shared.n_finished() < options.trials:
            with stop.deferred():
                code = _supervise(shared, command, stop)
            shared.put_away_dead()
        if code == DONE and options.confirm and shared.n_finished() >= options.trials and candidates(shared, options.confirm):
            with stop.deferred():
                code = _confirm(shared, command, stop)
        _conclude(shared, command, code)
        return code, summary(shared)
    finally:
        place.leases.close()


def run_worker(text: str, stop: StopRequest) -> int:
    """Be one of the workers that :func:`tune` starts.

    :param text: its :class:`~hmasd_sb3.tuning.pool.WorkerOptions`
    """
    options = WorkerOptions.from_text(text)
    place = open_storage(os.environ[STORAGE_VARIABLE])
    _quieten_optuna()
    shared = load_study(place, options.study, options.first_number, options.n_variations, options.entropy[0])
    shared.study.sampler = make_sampler(options.sampler, [*options.entropy, len(shared.trials())])
    spec = shared.spec
    shared.study.pruner = make_pruner(options.pruner, spec.total_timesteps, spec.n_evaluations)
    with stop.deferred():
        objective = spec.objective(options.n_workers, stop)
        code = work(shared, objective, options.n_trials, options.max_failures, stop, options.deadline)
    place.leases.close()
    return BROKE_DOWN if code == FAILED else code


def _quieten_optuna() -> None:
    """Leave only its warnings: what there is to say about trials is said here."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)


def _read(options: TuneOptions) -> _Command:
    """Check all that can be checked before anything is started."""
    for name, value, known in (
        ("--sampler", options.sampler, SAMPLERS),
        ("--pruner", options.pruner, PRUNERS),
        ("--aggregate", options.aggregate, tuple(AGGREGATES)),
        ("--metric", options.metric, METRICS),
    ):
        if value not in known:
            raise InputError(f"{name} {value}: must be one of {', '.join(known)}.")
    request = read_request(
        TrainOptions(
            env=options.env,
            config=options.config,
            assignments=options.assignments,
            total_timesteps=options.total_timesteps,
            n_envs=options.n_envs,
            n_workers=options.n_workers,
        )
    )
    config = request.config
    try:
        fixed, first = _divide(config.hyperparameters, request.hyperparameters, options.search or None)
    except ValueError as error:
        raise InputError(str(error)) from error
    spec = Spec(
        env=config.env,
        total_timesteps=request.given.get("total_timesteps", 100_000),
        n_envs=config.n_envs,
        policy=config.policy,
        normalize=config.normalize,
        env_kwargs=config.env_kwargs,
        seeds=list(range(options.seeds)),
        n_evaluations=options.n_evaluations,
        n_eval_episodes=options.eval_episodes,
        aggregate=options.aggregate,
        metric=options.metric,
        deterministic=options.deterministic,
        fixed=fixed,
        search=options.search or None,
    )
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", config.env)
    out = options.out or Path("runs") / f"tune-{name}"
    try:
        objective = spec.objective(config.n_workers)
        first_trials = _first_trials(options, request, objective.space, first)
        _try_out(objective)
    except (ValueError, TypeError, ImportError, FileNotFoundError) as error:
        raise InputError(" ".join(str(error).split())) from error
    study = options.study or f"hmasd-{name}"
    storage = options.storage or str(out / "study.journal")
    deadline = None if options.timeout is None else time.time() + options.timeout
    return _Command(options, spec, config.n_workers, study, storage, out, deadline, first_trials, request.note)


def _make_folder(out: Path) -> None:
    """What is written at the end should not be found impossible then."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written to: {error.strerror}.") from error


def _divide(
    in_force: dict[str, Any], given: dict[str, Any], search: list[str] | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Which arguments are fixed, and which only say where the search begins.

    Those of a file that comes with the package do the latter, but for those that are not searched.

    :param in_force: arguments of ``HMASD`` that a training would have
    :param given: those of them that somebody set
    """
    searched = SearchSpace(fixed=given, only=search).ranges
    begin = {name: value for name, value in in_force.items() if name not in given and name in searched}
    return {name: value for name, value in in_force.items() if name not in begin}, begin


def _first_trials(
    options: TuneOptions, request: Request, space: SearchSpace, first: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """What a new study tries first; settings that were given hold for all trials."""
    first_trials: dict[str, dict[str, Any]] = {DEFAULTS: first} if options.defaults_first else {}
    if options.paper_first is not None:
        given, n_envs = request.hyperparameters, request.config.n_envs
        paper = paper_settings(options.paper_first, n_envs)
        paper["batch_size"] = given.get("n_steps", paper["n_steps"]) * n_envs  # all of a rollout at once
        paper = {name: value for name, value in paper.items() if name not in given}
        space.params_of(paper, n_envs)
        first_trials["paper's setting"] = paper
    return first_trials


def _try_out(objective: Objective) -> None:
    """Make game and model once: what is wrong with them would break every trial."""
    config = RunConfig(**{**vars(objective.config), "hyperparameters": objective.space.fixed})
    Training(config, objective.deterministic).close()


def _supervise(shared: SharedStudy, command: _Command, stop: StopRequest) -> int:
    options = command.options
    started = time.time()
    worker = WorkerOptions(
        study=command.study,
        n_trials=options.trials,
        max_failures=options.max_failures,
        first_number=shared.first_number,
        sampler=options.sampler,
        pruner=options.pruner,
        n_variations=options.trials * 2 // 3 if options.vary is None else options.vary,
        entropy=[options.seed],
        n_workers=command.n_workers,
        deadline=command.deadline,
    )
    known = {trial.number for trial in shared.trials() if trial.state.is_finished()}
    done_before = shared.n_finished()
    with Pool(command.storage, worker, options.workers) as pool:
        told = False
        while pool.pids:
            time.sleep(_TICK)
            if stop.requested and not told:
                told = True
                assert stop.number is not None
                _say("Stopping: trials that are at work go back into the queue. Once more to stop at once.")
                pool.stop(SIGNAL_BASE + stop.number)
            ended = [trial for trial in shared.trials() if trial.state.is_finished() and trial.number not in known]
            known |= {trial.number for trial in ended}
            done = shared.n_finished()
            for trial in ended:
                _say(_line(trial, shared, done, options.trials, (time.time() - started) / max(done - done_before, 1)))
            for line in pool.look(progress=bool(ended)):
                _say(line)
                shared.put_away_dead()
    code = DONE if pool.code is None else pool.code
    return SIGNAL_BASE + stop.number if stop.number is not None and shared.n_finished() < options.trials else code


def _confirm(shared: SharedStudy, command: _Command, stop: StopRequest) -> int:
    """Train the best trials again, on new seeds."""
    options = command.options
    again, wanted = open_confirmation(shared, options.confirm, options.confirm_seeds)
    again.put_away_dead()
    if again.n_finished() >= wanted:
        return DONE
    seeds = ", ".join(map(str, again.spec.seeds))
    _say(f"Training the best again, {wanted} in all, on seeds {seeds} that they were not chosen by.")
    options = replace(options, trials=wanted, pruner="none")
    code = _supervise(again, replace(command, study=again.study.study_name, options=options), stop)
    again.put_away_dead()
    if again.last_failure() is not None and (code != DONE or not again.n_finished()):
        _say(f"Stopped. {describe_failure(again)}")
        return BROKE_DOWN if code == DONE else code
    return code


def _line(trial: FrozenTrial, shared: SharedStudy, done: int, wanted: int, seconds_each: float) -> str:
    state = state_of(trial)
    what = f"trial {trial.number:>3} {state}"
    if state in ("complete", "pruned"):
        what += f": {trial.value:.4g} in {trial.user_attrs.get(SECONDS, 0.0):.0f} s"
        what += f", pruned at step {trial.last_step:,}" if state == "pruned" and trial.last_step is not None else ""
    else:
        what += f": {str(trial.user_attrs.get(ERROR, 'no error was kept')).splitlines()[0][:200]}"
        again = [one.number for one in shared.trials() if one.user_attrs.get(RETRY_OF) == trial.number]
        what += f" (tried again as trial {again[0]})" if again else ""
    parts = [what, f"{done} of {wanted}"]
    parts += [f"best {best.value:.4g} (trial {best.number})" for best in shared.ranked()[:1]]
    if done < wanted:
        minutes, seconds = divmod(round(seconds_each * (wanted - done)), 60)
        parts.append(f"about {minutes}:{seconds:02d} left")
    return " | ".join(parts)


def _conclude(shared: SharedStudy, command: _Command, code: int) -> None:
    if code in (FAILED, BROKE_DOWN) and counts(shared).get(CRASHED) and shared.n_finished() < command.options.trials:
        _say(f"Stopped. {describe_failure(shared)}")
    ends = ", ".join(f"{number} {state}" for state, number in sorted(counts(shared).items()))
    _say(f"Trials: {ends or 'none'}.")
    files = write_files(shared, command.out)
    try:
        files += plot_study(shared.study, command.out)
    except ImportError as error:
        _say(f"No pictures: {error}")
    again = confirmation_table(shared)
    for line in [*table(shared), *(["The best, trained again on new seeds:", *again] if again else [])]:
        _say(line)
    if command.options.confirm and not confirmed(shared) and chosen_trial(shared) is not None:
        _say("Chosen by the seeds of the search alone, which favour the lucky: the best were not trained again on new ones.")
    _say(f"Written: {', '.join(str(path) for path in files)}")
    if chosen_trial(shared) is not None:
        arguments = ["hmasd", "train", "--config", str(command.out / "best.yml"), "--env", command.spec.env]
        _say(f"To train with the best:\n\n    {shlex.join(arguments)}\n")


def _say(text: str) -> None:
    print(text, flush=True)
