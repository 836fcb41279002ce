"""Commands of this package as a person, or a supervisor, has to type them."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

from hmasd_sb3.running.options import TrainOptions

MODULE = "hmasd_sb3.cli"


def resume_arguments(folder: Path, options: TrainOptions) -> list[str]:
    """Arguments that go on with a run."""
    return ["train", "--resume", str(folder), *options.arguments_of_run()]


def start_arguments(run_dir: Path, options: TrainOptions) -> list[str]:
    """Arguments that start a run in a folder."""
    return ["train", *options.arguments_of_settings(), "--run-dir", str(run_dir), *options.arguments_of_run()]


def typed_command(options: TrainOptions) -> str:
    """The command as it was given: every option that says something, but none of the supervisor's own."""
    arguments = ["train"]
    if options.resume is not None:
        arguments += ["--resume", options.resume]
    arguments += options.arguments_of_settings()
    if options.run_dir is not None:
        arguments += ["--run-dir", str(options.run_dir)]
    arguments += options.arguments_of_run()
    if restarts := options.supervised or options.max_restarts:
        arguments += ["--max-restarts", str(restarts)]
    return shlex.join(["hmasd", *arguments])


def resume_command(folder: Path, options: TrainOptions) -> str:
    """The command that goes on with a run, ready to be pasted into a shell."""
    arguments = resume_arguments(folder, options)
    restarts = options.supervised or options.max_restarts
    if restarts:
        arguments += ["--max-restarts", str(restarts)]
    program = ["hmasd"] if shutil.which("hmasd") else [sys.executable, "-m", MODULE]
    return shlex.join([*program, *arguments])
