"""Carries out ``hmasd tune``: the study, its workers, what is said meanwhile, and the files at the end."""

from __future__ import annotations

import os
import shlex
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hmasd_sb3.monitoring.stopping import StopRequest
from hmasd_sb3.running.errors import BROKE_DOWN, DONE, FAILED, SIGNAL_BASE, InputError
from hmasd_sb3.tuning.command import Command, TuneOptions, read_command
from hmasd_sb3.tuning.confirm import accept_confirmation, candidates, chosen_trial, has_ended, open_confirmation
from hmasd_sb3.tuning.objective import ERROR, SECONDS
from hmasd_sb3.tuning.plots import plot_study
from hmasd_sb3.tuning.pool import STORAGE_VARIABLE, Pool, WorkerOptions
from hmasd_sb3.tuning.report import confirmation_table, counts, state_of, summary, table, write_files
from hmasd_sb3.tuning.storage import open_storage
from hmasd_sb3.tuning.study import CONFIRMS, CRASHED, DEFAULTS, ORIGIN, RETRY_OF, SharedStudy, load_study, open_study
from hmasd_sb3.tuning.workers import describe_failure, make_pruner, make_sampler, work

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

_TICK = 0.3


def tune(options: TuneOptions, stop: StopRequest) -> tuple[int, dict[str, Any]]:
    """Search until the study has as many trials as are wanted.

    :param stop: listens for signals
    :return: the exit code, and the study as plain values
    :raises InputError: if the command is wrong; nothing was started then
    """
    command = read_command(options)
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
        code, is_done = DONE, False
        if shared.n_finished() < options.trials:
            _say(_extent(options, any(trial.user_attrs.get(ORIGIN) == DEFAULTS for trial in shared.trials())))
            with stop.deferred():
                code = _supervise(shared, command, stop)
            shared.put_away_dead()
        if code == DONE and shared.n_finished() >= options.trials:
            is_done = True
            if options.confirm and candidates(shared, options.confirm):
                with stop.deferred():
                    code, is_done = _confirm(shared, command, stop)
        _conclude(shared, command, code, is_done)
        return code, summary(shared)
    finally:
        place.leases.close()


def _extent(options: TuneOptions, with_defaults: bool) -> str:
    text = f"Trainings: {options.seeds} per trial"
    if options.confirm:
        whom = f"the best {options.confirm}{' and the defaults' if with_defaults else ''}"
        text += f"; then {options.confirm_seeds} for each of {whom}, on new seeds"
    return f"{text}."


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


def _make_folder(out: Path) -> None:
    """What is written at the end should not be found impossible then."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written to: {error.strerror}.") from error


def _supervise(shared: SharedStudy, command: Command, stop: StopRequest) -> int:
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


def _confirm(shared: SharedStudy, command: Command, stop: StopRequest) -> tuple[int, bool]:
    """Train the best trials again, on new seeds.

    :return: the exit code, and whether all have ended
    """
    options = command.options
    again, wanted = open_confirmation(shared, options.confirm, options.confirm_seeds)
    again.put_away_dead()
    if again.n_finished() < wanted:
        seeds = ", ".join(map(str, again.spec.seeds))
        _say(f"Training the best again, {wanted} in all, on seeds {seeds} that they were not chosen by.")
        options = replace(options, trials=wanted, pruner="none")
        code = _supervise(again, replace(command, study=again.study.study_name, options=options), stop)
        again.put_away_dead()
        if code == DONE and has_ended(again) and not again.n_finished():
            code = BROKE_DOWN
        if code == BROKE_DOWN:
            _say(f"Stopped. {describe_failure(again)}")
        if code != DONE:
            return code, False
    return DONE, accept_confirmation(shared, again)


def _line(trial: FrozenTrial, shared: SharedStudy, done: int, wanted: int, seconds_each: float) -> str:
    state = state_of(trial)
    what = f"trial {_number(trial):>3} {state}"
    if state in ("complete", "pruned"):
        what += f": {trial.value:.4g} in {trial.user_attrs.get(SECONDS, 0.0):.0f} s"
        what += f", pruned at step {trial.last_step:,}" if state == "pruned" and trial.last_step is not None else ""
    else:
        what += f": {str(trial.user_attrs.get(ERROR, 'no error was kept')).splitlines()[0][:200]}"
        again = [_number(one) for one in shared.trials() if one.user_attrs.get(RETRY_OF) == trial.number]
        what += f" (tried again{f' as trial {again[0]}' if again[0] != _number(trial) else ''})" if again else ""
    parts = [what, f"{done} of {wanted}"]
    parts += [f"best {best.value:.4g} (trial {_number(best)})" for best in shared.ranked()[:1]]
    if done < wanted:
        minutes, seconds = divmod(round(seconds_each * (wanted - done)), 60)
        parts.append(f"about {minutes}:{seconds:02d} left")
    return " | ".join(parts)


def _number(trial: FrozenTrial) -> int:
    """By which people know it: one that was trained again has the number that it had in the search."""
    return int(trial.user_attrs.get(CONFIRMS, trial.number))


def _conclude(shared: SharedStudy, command: Command, code: int, is_done: bool) -> None:
    options = command.options
    if code in (FAILED, BROKE_DOWN) and counts(shared).get(CRASHED) and shared.n_finished() < options.trials:
        _say(f"Stopped. {describe_failure(shared)}")
    ends = ", ".join(f"{number} {state}" for state, number in sorted(counts(shared).items()))
    _say(f"Trials: {ends or 'none'}.")
    files = write_files(shared, command.out)
    try:
        files += plot_study(shared, command.out)
    except ImportError as error:
        _say(f"No pictures: {error}")
    again = confirmation_table(shared)
    for line in [*table(shared), *(["The best, trained again on new seeds:", *again] if again else [])]:
        _say(line)
    chosen = chosen_trial(shared)
    if options.confirm and not again and chosen is not None:
        _say("Chosen by the seeds of the search alone, which favour the lucky: the best were not trained again on new ones.")
    _say(f"Written: {', '.join(str(path) for path in files)}")
    if not is_done and (code == DONE or code >= SIGNAL_BASE):
        is_late = code == DONE and command.deadline is not None and time.time() >= command.deadline
        _say(f"{'The time was up. ' if is_late else ''}The same command goes on.")
    if chosen is not None:
        arguments = ["hmasd", "train", "--config", str(command.out / "best.yml"), "--env", command.spec.env]
        _say(f"To train with the best:\n\n    {shlex.join(arguments)}\n")


def _say(text: str) -> None:
    print(text, flush=True)
