"""A run under a supervisor: which folder it gets, and what each of its processes is told to do."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from hmasd_sb3.monitoring.checkpoints import CheckpointFolder
from hmasd_sb3.running.command_line import MODULE, resume_arguments, resume_command, start_arguments
from hmasd_sb3.running.errors import DONE, WRONG_INPUT
from hmasd_sb3.running.folder import RunFolder, new_folder
from hmasd_sb3.running.options import TrainOptions
from hmasd_sb3.running.plan import AUTO, Plan, make_plan
from hmasd_sb3.supervisor import Supervisor


def train_supervised(options: TrainOptions) -> int:
    """As :func:`~hmasd_sb3.running.train.train`, in a process that is started again when it breaks down.

    :param options: with ``max_restarts`` of at least 1
    :return: the exit code
    :raises InputError: if the command is wrong; nothing was written then
    """
    plan = make_plan(options)
    if plan.done:
        print(plan.note, flush=True)
        return DONE
    if plan.folder is None and plan.note:
        print(plan.note, flush=True)
    folder = plan.folder or new_folder(plan.config, options.run_dir)
    first = _first_arguments(folder, options, plan)

    def command() -> list[str]:
        arguments, first[:] = list(first), []
        if not arguments:
            arguments = resume_arguments(folder.path, options) if folder.holds_run else start_arguments(folder.path, options)
        return [sys.executable, "-m", MODULE, *arguments, "--supervised", str(options.max_restarts)]

    def newest() -> Path | None:
        return CheckpointFolder(folder.checkpoints).newest() if folder.checkpoints.is_dir() else None

    with Supervisor(command, newest, options.max_restarts) as supervisor:
        code = supervisor.run()
    if folder.path.is_dir() and not any(folder.path.iterdir()):
        folder.path.rmdir()  # the training found something wrong before it wrote anything
    elif code not in (DONE, WRONG_INPUT) and folder.holds_run:
        print(f"To go on:\n\n    {resume_command(folder.path, options)}\n", flush=True)
    return code


def _first_arguments(folder: RunFolder, options: TrainOptions, plan: Plan) -> list[str]:
    """What the first process is told: the one that may raise the total, or go back to an earlier checkpoint."""
    if plan.folder is None:
        return start_arguments(folder.path, options)
    target = folder.path if options.resume == AUTO else Path(str(options.resume))
    arguments = resume_arguments(target, options)
    return [*arguments, *replace(options, env=None).arguments_of_settings()]
