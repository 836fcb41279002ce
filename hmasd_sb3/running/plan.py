"""What a command comes down to: a new run, a run to go on with, or nothing left to do."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from hmasd_sb3.monitoring.checkpoints import CheckpointFolder
from hmasd_sb3.running.config import Request, RunConfig, check_no_contradiction, read_request
from hmasd_sb3.running.errors import InputError
from hmasd_sb3.running.folder import RunFolder, check_unused, runs_of
from hmasd_sb3.running.options import TrainOptions
from hmasd_sb3.supervisor import step_of

AUTO = "auto"


@dataclass(frozen=True)
class Plan:
    """What is to be done. Making one changes no file."""

    config: RunConfig
    folder: RunFolder | None
    """The run to go on with; None for a new one."""
    checkpoint: Path | None
    """What to go on from; None to begin at the beginning."""
    note: str
    """Lines for the person who started the command."""
    done: bool = False
    """Whether the run has come to its end already."""
    warnings: tuple[str, ...] = ()
    """What the person should know, though it is no error."""
    places: dict[str, str] = field(default_factory=dict)
    """Where arguments of the game were given, by name."""


def make_plan(options: TrainOptions) -> Plan:
    """Decide what a command comes down to.

    :raises InputError: if the command, a file it names or the run it names is wrong
    """
    base, warnings = _run_to_repeat(options)
    if options.resume is None or (options.resume == AUTO and options.run_dir is None):
        request = read_request(options, base)
        raised = "total_timesteps" in request.given
        runs = [] if options.resume is None else runs_of(request.config, may_be_longer=raised)
        for folder in runs:
            if not folder.finished:
                return _go_on(folder, request, None)
        if options.run_dir is not None:
            check_unused(options.run_dir)
        note = "" if options.resume is None else _why_new(runs)
        return _new(request, _joined(note, request.note), warnings)
    folder, checkpoint = _named_run(options)
    if options.resume == AUTO and not folder.holds_run:
        check_unused(folder.path)
        request = read_request(options, base)
        return _new(request, _joined(f"{folder.path} holds no run yet: a new one begins.", request.note), warnings)
    # Without --env, a file's settings are looked up for the game of the run.
    own = folder.read_config()
    request = read_request(replace(options, env=own.env if options.env is None and base is None else options.env), base)
    if options.env is None and base is None:
        request.given.pop("env", None)
    return _go_on(folder, request, checkpoint)


def _why_new(runs: list[RunFolder]) -> str:
    """What to say where there is none to go on with.

    :param runs: complete runs of the same command, newest first
    """
    if runs:
        return f"{runs[0].path} of this command is complete: a new one begins."
    return "No unfinished run below runs/ was started by this command: a new one begins."


def _joined(*notes: str) -> str:
    return "\n".join(note for note in notes if note)


def _new(request: Request, note: str, warnings: tuple[str, ...]) -> Plan:
    return Plan(request.config, None, None, note, warnings=warnings, places=request.places)


def _run_to_repeat(options: TrainOptions) -> tuple[RunConfig | None, tuple[str, ...]]:
    """The config of the run that ``--from`` names, and what is not as it was then.

    :raises InputError: if it names none, or goes together with what decides the run too
    """
    if options.from_run is None:
        return None, ()
    if options.config is not None:
        raise InputError("--from and --config both say what the settings are; give one of them.")
    if options.resume is not None and (options.resume != AUTO or options.run_dir is None):
        raise InputError(
            "--from begins a new run and --resume goes on with one: with --from, only --resume auto --run-dir DIR."
        )
    folder = RunFolder(options.from_run)
    if not folder.path.is_dir():
        raise InputError(f"--from {folder.path}: there is no such folder.")
    config = folder.read_config()
    warnings = [
        f"other versions than those of {folder.path}, so results may differ: {text}." for text in folder.changed_versions()
    ]
    commit = folder.changed_commit()
    if commit is not None:
        warnings.append(f"another git commit than that of {folder.path}, so results may differ: {commit}.")
    if options.env not in (None, config.env) and config.env_kwargs:
        warnings.append(
            f"the arguments {config.env_kwargs} that {config.env} had in {folder.path} are not those of {options.env}, which "
            "gets none but by --set 'env_kwargs={...}'."
        )
        config = replace(config, env_kwargs={})
    return config, tuple(warnings)


def _named_run(options: TrainOptions) -> tuple[RunFolder, Path | None]:
    """The run that ``--resume`` and ``--run-dir`` name, and the checkpoint if a file was named."""
    if options.resume == AUTO:
        assert options.run_dir is not None
        return RunFolder(options.run_dir), None
    path = Path(str(options.resume))
    if not path.exists():
        raise InputError(f"--resume {path}: there is no such checkpoint or run folder. (--resume auto finds the newest run.)")
    folder, checkpoint = (RunFolder(path), None) if path.is_dir() else (RunFolder(path.parent.parent), path)
    if checkpoint is not None and RunFolder(path.parent).holds_run:
        raise InputError(f"--resume {path}: is no checkpoint; give the run's folder, {path.parent}.")
    if not folder.holds_run:
        what = "is no folder of a run: there is no config.json in it"
        if checkpoint is not None:
            what = f"lies in no folder of a run: there is no {folder.config_file}"
        raise InputError(f"--resume {path}: {what}.")
    if options.run_dir is not None and options.run_dir.resolve() != folder.path.resolve():
        raise InputError(f"--run-dir {options.run_dir} and --resume {path} name two runs; give one of them.")
    return folder, checkpoint


def _go_on(folder: RunFolder, request: Request, checkpoint: Path | None) -> Plan:
    own = folder.read_config()
    config = check_no_contradiction(request, own, str(folder.path))
    goes_back = checkpoint is not None and step_of(checkpoint) < own.total_timesteps
    if folder.finished and config.total_timesteps == own.total_timesteps and not goes_back:
        note = f"The run in {folder.path} is complete: {own.total_timesteps:,} environment steps, {folder.model}."
        return Plan(config, folder, None, f"{note} (--total-timesteps may be raised.)", done=True)
    if checkpoint is None:
        checkpoint = CheckpointFolder(folder.checkpoints).newest()
    if checkpoint is None:
        if any(folder.checkpoints.glob("checkpoint_*.zip")):
            raise InputError(f"{folder.checkpoints}: every checkpoint in it is damaged. Start a new run without --resume.")
        if folder.finished or folder.has_results:
            raise InputError(
                f"{folder.checkpoints}: holds no checkpoint any more, though the run had come further. Put one back, or start "
                "a new run without --resume."
            )
        return Plan(config, folder, None, f"The run in {folder.path} has no checkpoint yet: it begins again.")
    return Plan(config, folder, checkpoint, "")
