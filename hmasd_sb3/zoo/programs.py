"""RL Zoo's own programs, run with HMASD registered."""

from __future__ import annotations

import importlib
import os
import re
import runpy
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata, util
from pathlib import Path
from typing import Any
from unittest.mock import patch

from hmasd_sb3.running.errors import DONE, InputError
from hmasd_sb3.zoo.registration import ALGO, INSTALL, import_zoo, register

PROGRAMS: dict[str, tuple[str, str | None, str]] = {
    "train": ("rl_zoo3.train", "train", "Train, or search for hyperparameters (-optimize)."),
    "enjoy": ("rl_zoo3.enjoy", "enjoy", "Play with a trained model, in a window or with --no-render."),
    "record-video": ("rl_zoo3.record_video", None, "Play with a trained model and write a video."),
    "record-training": ("rl_zoo3.record_training", None, "Write one video of all checkpoints (needs ffmpeg)."),
    "plot-train": ("rl_zoo3.plots.plot_train", "plot_train", "Plot returns or successes during training."),
    "all-plots": ("rl_zoo3.plots.all_plots", "all_plots", "Plot and tabulate evaluations of several runs."),
    "plot-from-file": ("rl_zoo3.plots.plot_from_file", "plot_from_file", "Plot what all-plots wrote to a file."),
}
"""Each program's module, function (None: the module itself is the program), and what it does."""
PLOTS = ("plot-train", "all-plots", "plot-from-file")
FIGURES = "--save-figures"
"""An option of our own for the plotting programs."""
_NEEDS = {
    "plot": ("matplotlib", "pandas", "scipy", "seaborn"),
    "video": ("moviepy",),
    "search": ("pandas",),
    "log": ("tensorboard",),
}


def run_program(name: str, arguments: Sequence[str]) -> int:
    """Run one of :data:`PROGRAMS`, as from its own command line.

    :param name: underscores count as hyphens
    :param arguments: its options; ``--algo hmasd`` is the default where there is such an option
    :return: the exit code
    :raises InputError: for an unknown program, wrong settings, or a missing package
    """
    name = name.replace("_", "-")
    if name not in PROGRAMS:
        raise InputError(f"There is no program {name!r}; there are {', '.join(PROGRAMS)}.")
    arguments = list(arguments)
    _check_packages(name, arguments)
    module_name, function, _ = PROGRAMS[name]
    register()
    arguments += _defaults(name, arguments)
    packages = _take_gym_packages(arguments) if function is None else []
    if not _has(arguments, "--num-threads", least=5):
        import torch as th

        # Networks this small spend longer waiting for each other's threads than computing.
        th.set_num_threads(1)
    with (
        _saved_figures(name, arguments),
        _refused_if_empty(name),
        patch.object(sys, "argv", [f"hmasd zoo {name}", *arguments]),
    ):
        try:
            if function is None:
                _run_module(module_name, packages)
            else:
                _function(module_name, function)()
        except SystemExit as end:  # of argparse
            return end.code if isinstance(end.code, int) else DONE if end.code is None else 1
        except (AssertionError, ValueError) as error:
            if name == "plot-from-file" and "empty sequence" in str(error):
                raise InputError("plot-from-file needs at least two runs of each algorithm and game.") from error
            if isinstance(error, InputError) or not _raised_by_zoo_itself(error):
                raise
            raise InputError(_plain(error)) from error
    return DONE


def _plain(error: BaseException) -> str:
    """One line about what RL Zoo refused, and for an unknown game what it does not say."""
    text = " ".join(str(error).split())
    if "not found in gym registry" not in text:
        return text
    text = text.removesuffix(", you maybe meant 'no close match found...'?")
    return (
        f"{text.rstrip('.?')}. A game of your own needs an id and --gym-packages, see 'A game of your own' in docs/zoo.md; "
        "hmasd train --env package.module:function needs none."
    )


def _defaults(name: str, arguments: Sequence[str]) -> list[str]:
    """What is added to the arguments, where nothing else is said."""
    if name in PLOTS:
        return []
    added = [] if _has(arguments, "--algo") else ["--algo", ALGO]
    ours = added or ALGO in arguments or f"--algo={ALGO}" in arguments
    # RL Zoo's own default is its folder of agents to download, of which HMASD has none.
    if ours and name != "train" and not (_has(arguments, "--folder") or any(text.startswith("-f") for text in arguments)):
        added += ["-f", "logs"]
    return added


def _function(module_name: str, function: str) -> Callable[[], None]:
    import_zoo(module_name)
    # rl_zoo3.plots has functions under the names of its modules.
    program: Callable[[], None] = getattr(sys.modules[module_name], function)
    register()  # the module may hold copies of its own
    return program


def _run_module(name: str, packages: list[str]) -> None:
    """Run a module that is a program, not a function.

    :param packages: modules that register games, imported before; other programs have the option ``--gym-packages``
    """
    for package in packages:
        importlib.import_module(package)
    utils = import_zoo("rl_zoo3.utils")
    create_test_env, call = utils.create_test_env, subprocess.call

    def with_files_env_kwargs(*args: Any, **kwargs: Any) -> Any:
        # The program asks for the command line's alone, and a model fits no other environment than its own.
        from_file = (kwargs.get("hyperparams") or {}).get("env_kwargs") or {}
        return create_test_env(*args, **{**kwargs, "env_kwargs": {**from_file, **(kwargs.get("env_kwargs") or {})}})

    def call_registered(command: Any, *args: Any, **kwargs: Any) -> int:
        # The program starts another one in a process of its own, where HMASD has to be known too.
        if isinstance(command, list) and command[:3] == ["python", "-m", "rl_zoo3.record_video"]:
            command = [sys.executable, "-m", "hmasd_sb3.zoo", "record-video", *command[3:]]
            command += ["--gym-packages", *packages] if packages else []
        return call(command, *args, **kwargs)

    with patch.object(utils, "create_test_env", with_files_env_kwargs), patch.object(subprocess, "call", call_registered):
        runpy.run_module(name, run_name="__main__", alter_sys=False)


def _check_packages(name: str, arguments: Sequence[str]) -> None:
    """Say at once what is missing, rather than after hours of work.

    :raises InputError: naming the package and the command that installs it
    """
    import_zoo("rl_zoo3")
    needed = list(_NEEDS["plot"] if name in PLOTS else _NEEDS["video"] if name.startswith("record") else ())
    if "-optimize" in arguments or _has(arguments, "--optimize-hyperparameters", least=10):
        needed += _NEEDS["search"]
    if "-tb" in arguments or _has(arguments, "--tensorboard-log"):
        needed += _NEEDS["log"]
    if _asks_for_help(arguments):
        return
    for package in needed:
        if util.find_spec(package) is None:
            raise InputError(f'hmasd zoo {name} needs the package "{package}", which is not installed: {INSTALL}')
    if name in PLOTS and int(metadata.version("pandas").partition(".")[0]) >= 3:
        raise InputError(f"hmasd zoo {name} needs pandas below 3, this is {metadata.version('pandas')}: {INSTALL}")
    if name == "record-training" and shutil.which("ffmpeg") is None:
        raise InputError("hmasd zoo record-training needs the program ffmpeg, which the system's package manager installs.")


def _asks_for_help(arguments: Sequence[str]) -> bool:
    return "-h" in arguments or "--help" in arguments


def _has(arguments: Sequence[str], option: str, least: int = 4) -> bool:
    """Whether an option was given, in full, shortened to ``least`` characters at least, or with a value after ``=``."""
    return any(
        len(text) >= least and option.startswith(text)
        for text in (argument.partition("=")[0] for argument in arguments)
        if text.startswith("--")
    )


def _raised_by_zoo_itself(error: BaseException) -> bool:
    """Whether RL Zoo refused something, such as an unknown id, rather than something that it called."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and str(frames[-1].f_globals.get("__name__", "")).startswith(("rl_zoo3.train", "rl_zoo3.utils"))


@contextmanager
def _saved_figures(name: str, arguments: list[str]) -> Iterator[None]:
    """Write figures into the folder of ``--save-figures``, which is taken out of the arguments, instead of showing them."""
    if name not in PLOTS or _asks_for_help(arguments):
        yield
        return
    folder = _take_option(arguments, FIGURES)
    pyplot = import_zoo("matplotlib.pyplot")
    if folder is None:
        if pyplot.get_backend().lower() == "agg" and not _has(arguments, "--no-display", least=6):
            print(f"There is no display to show figures on: {FIGURES} FOLDER writes them to files.", flush=True)
        yield
        return
    pyplot.switch_backend("agg")
    Path(folder).mkdir(parents=True, exist_ok=True)
    yield
    for number in pyplot.get_fignums():
        figure = pyplot.figure(number)
        label = re.sub(r"[^A-Za-z0-9_.-]+", "-", figure.get_label() or f"figure-{number}")
        path = os.path.join(folder, f"{label}.png")
        figure.savefig(path, dpi=120)
        print(f"Written: {path}", flush=True)
    pyplot.close("all")


@contextmanager
def _refused_if_empty(name: str) -> Iterator[None]:
    """Refuse an empty picture, which ``plot-train`` would show or write.

    :raises InputError: if there is no curve
    """
    if name != "plot-train":
        yield
        return
    pyplot = import_zoo("matplotlib.pyplot")
    legend = pyplot.legend  # called once, when all curves are drawn

    def legend_of_something() -> None:
        if not pyplot.gca().lines:
            pyplot.close()
            raise InputError(
                "plot-train: there is nothing to draw: no run found has as many episodes as the rolling window (-w N, 100 "
                "unless given)."
            )
        legend()

    with patch.object(pyplot, "legend", legend_of_something):
        yield


def _take_option(arguments: list[str], option: str) -> str | None:
    for place, argument in enumerate(arguments):
        if argument == option:
            if place + 1 == len(arguments):
                raise InputError(f"{option} needs the name of a folder.")
            value = arguments[place + 1]
            del arguments[place : place + 2]
            return value
        if argument.startswith(f"{option}="):
            del arguments[place]
            return argument.partition("=")[2]
    return None


def _take_gym_packages(arguments: list[str]) -> list[str]:
    if "--gym-packages" not in arguments:
        return []
    start = arguments.index("--gym-packages")
    end = start + 1
    while end < len(arguments) and not arguments[end].startswith("-"):
        end += 1
    packages = arguments[start + 1 : end]
    del arguments[start:end]
    return packages
