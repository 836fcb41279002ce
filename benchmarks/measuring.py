"""What the programs that measure speed and memory share: fresh processes, results kept in files, tables, the machine.

Every program writes ``<name>.md`` (the tables), ``<name>.json`` (all numbers) and its plots into its ``--out`` folder. A part
is written down as soon as it is measured, so that ``--resume`` goes on after an interruption.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
"""Where results go by default; not under version control."""

LIBRARIES = ("torch", "numpy", "gymnasium", "stable-baselines3", "sb3-contrib")
"""Whose versions are told where they are installed."""

DEFAULT_THREADS = "default"
"""Number of torch threads: whatever torch chooses."""


def output_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--out`` and ``--resume``."""
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for tables, numbers and plots")
    parser.add_argument("--resume", action="store_true", help="keep what an interrupted run with the same options measured")


def status_mb(name: str) -> float:
    """A size in ``/proc/self/status``, in MB.

    :param name: e.g. ``VmRSS``, or ``VmHWM`` for its highest value so far
    :raises RuntimeError: on systems other than Linux
    """
    path = Path("/proc/self/status")
    for line in path.read_text(encoding="ascii").splitlines() if path.exists() else []:
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {name}; memory can be measured on Linux alone.")


def thread_environment(threads: str) -> dict[str, str]:
    """Environment variables of a process with so many torch threads.

    :param threads: a number, or ``DEFAULT_THREADS``
    """
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    return environment if threads == DEFAULT_THREADS else {**environment, "OMP_NUM_THREADS": threads}


def fresh_process(script: str, arguments: Sequence[str], threads: str = "1", environment: dict[str, str] | None = None) -> Any:
    """Run a script in a process of its own; what it prints last is read as JSON. Its errors appear where ours do.

    :param script: path of the Python file
    :param arguments: its arguments
    :param threads: torch threads, a number or ``DEFAULT_THREADS``
    :param environment: further environment variables
    :raises subprocess.CalledProcessError: if it fails
    """
    command = [sys.executable, script, *arguments]
    variables = {**thread_environment(threads), **(environment or {})}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=variables)
    return json.loads(done.stdout.splitlines()[-1])


class Results:
    """Measured parts by name, in a JSON file that is rewritten after each.

    :param path: of the JSON file
    :param options: what was measured with; results of other options are not taken over
    :param resume: take over the parts that the file holds
    """

    def __init__(self, path: Path, options: dict[str, Any], resume: bool) -> None:
        self.path = path
        self.options = json.loads(json.dumps(options))  # as they will be read back
        self.parts: dict[str, Any] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if resume and path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["options"] != self.options:
                raise SystemExit(
                    f"{path} was measured with {found['options']}, not with {self.options}. Give the same options, "
                    "or leave out --resume to measure anew."
                )
            self.parts = found["parts"]

    def measured(self, name: str, measure: Callable[[], Any]) -> Any:
        """What is kept under a name, measured now if there is nothing yet."""
        if name not in self.parts:
            print(f"{self.path.stem}: {name} ...", file=sys.stderr, flush=True)
            self.parts[name] = json.loads(json.dumps(measure()))
            written = self.path.with_suffix(".part")
            content = {"machine": machine(), "options": self.options, "parts": self.parts}
            written.write_text(json.dumps(content, indent=1), encoding="utf-8")
            written.replace(self.path)
        return self.parts[name]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table: first column to the left, the others to the right.

    :raises ValueError: if a row has not as many cells as the header
    """
    if wrong := [row for row in rows if len(row) != len(header)]:
        raise ValueError(f"The table has {len(header)} columns, but a row has {len(wrong[0])}: {wrong[0]}.")
    lines = ["|".join(["", *(f" {cell} " for cell in cells), ""]) for cells in (header, *rows)]
    return [lines[0], "|---|" + "---:|" * (len(header) - 1), *lines[1:]]


def count(number: float) -> str:
    """A large number with commas."""
    return f"{number:,.0f}"


def machine() -> list[str]:
    """What was measured on: processor, memory, versions."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []:
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = [f"{name} {metadata.version(name)}" for name in LIBRARIES if util.find_spec(name.replace("-", "_"))]
    software = [platform.system(), f"Python {platform.python_version()}", *versions]
    lines = [f"{model}, {cores} cores to use", ", ".join(software)]
    if hasattr(os, "sysconf"):
        gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        lines[0] += f", {gigabytes:.0f} GB of memory"
    return lines


def publish(out: Path, name: str, lines: Sequence[str]) -> None:
    """Print the tables and write them to ``<out>/<name>.md``, below what they were measured on."""
    text = "\n".join([*(f"{line}  " for line in machine()), "", *lines]).rstrip() + "\n"
    print(text, end="", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.md").write_text(text, encoding="utf-8")


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib figure that needs no screen."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure small enough for the documentation."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
