"""A run under a supervisor: which folder it gets, and what each of its processes is told to do."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from hmasd_sb3.monitoring.checkpoints import CheckpointFolder
from hmasd_sb3.running.command_line import MODULE, resume_arguments, resume_command, start_arguments
from hmasd_sb3.running.errors import DONE, WRONG_INPUT
from hmasd_sb3.running.folder import RunFolder, new_folder
from hmasd_sb3.running.options import TrainOptions
from hmasd_sb3.running.plan import AUTO, Plan, make_plan
from hmasd_sb3.running.train import make_server, serve
from hmasd_sb3.supervisor import Supervisor


def train_supervised(options: TrainOptions, on_folder: Callable[[RunFolder], None] | None = None) -> int:
    """As :func:`~hmasd_sb3.running.train.train`, in a process that is started again when it breaks down.

    :param options: with ``max_restarts`` of at least 1
    :param on_folder: told the run's folder once it is known
    :return: the exit code
    :raises InputError: if the command is wrong; nothing was written then
    """
    plan = make_plan(options)
    if plan.done:
        print(plan.note, flush=True)
        if on_folder is not None and plan.folder is not None:
            on_folder(plan.folder)
        return DONE
    if plan.folder is None and plan.note:
        print(plan.note, flush=True)
    server = make_server(options)
    folder = plan.folder or new_folder(plan.config, options.run_dir)
    if on_folder is not None:
        on_folder(folder)
    first = _first_arguments(folder, options, plan)

    def command() -> list[str]:
        arguments, first[:] = list(first), []
        if not arguments:
            arguments = resume_arguments(folder.path, options) if folder.holds_run else start_arguments(folder.path, options)
        return [sys.executable, "-m", MODULE, *arguments, "--supervised", str(options.max_restarts)]

    def newest() -> Path | None:
        return CheckpointFolder(folder.checkpoints).newest() if folder.checkpoints.is_dir() else None

    with ExitStack() as stack:
        if server is not None:  # one for all attempts, so that its address stays
            serve(server, folder, stack)
        stdout = sys.stderr.fileno() if options.json else None
        with Supervisor(command, newest, options.max_restarts, stdout=stdout) as supervisor:
            code = supervisor.run()
    folder.remove_if_unused()  # the training found something wrong before it wrote anything
    if code not in (DONE, WRONG_INPUT) and folder.holds_run:
        print(f"To go on:\n\n    {resume_command(folder.path, options)}\n", flush=True)
    return code


def _first_arguments(folder: RunFolder, options: TrainOptions, plan: Plan) -> list[str]:
    """What the first process is told: the one that may raise the total, or go back to an earlier checkpoint."""
    if plan.folder is None:
        return start_arguments(folder.path, options)
    target = folder.path if options.resume == AUTO else Path(str(options.resume))
    arguments = resume_arguments(target, options)
    return [*arguments, *replace(options, env=None, from_run=None).arguments_of_settings()]
