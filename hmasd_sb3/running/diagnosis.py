"""What a computer has and lacks for training, and the command that brings what is missing."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal, NamedTuple

import hmasd_sb3
from hmasd_sb3.running.cores import usable_cores
from hmasd_sb3.running.folder import RUNS, git_commit
from hmasd_sb3.running.requirements import Requirements, read_requirements, states_of
from hmasd_sb3.running.versions import installed_version

_CORE_MODULES = ("torch", "numpy", "gymnasium", "pettingzoo", "supersuit", "stable_baselines3", "hmasd_sb3.hmasd")
_SAFE_TORCH = "2.6"
_LEAST_DISK = 2**30
"""Bytes; a run of a few days writes some hundred MB of checkpoints and logs."""
_LEAST_SHARED_MEMORY = 128 * 2**20
"""Bytes; containers often have 64 MB, which a few pictures fill."""

Level = Literal["ok", "note", "warning", "error"]


class Fact(NamedTuple):
    """One line of the report."""

    topic: str
    level: Level
    """An "error" keeps the core from working."""
    text: str
    remedy: str = ""


def diagnose() -> list[Fact]:
    """Look at everything."""
    requirements = read_requirements()
    facts = [
        Fact("system", "ok", f"{platform.platform()}, Python {platform.python_version()} ({sys.executable})"),
        _own_version(requirements),
        *_core(requirements),
        *_imports(),
        *_computing(),
        *_extras(requirements),
        *_known_bad(),
        *_places(),
    ]
    return facts


def core_works(facts: list[Fact]) -> bool:
    """Whether training is possible."""
    return not any(fact.level == "error" for fact in facts)


def _own_version(requirements: Requirements | None) -> Fact:
    text = f"hmasd-sb3 {hmasd_sb3.__version__} in {Path(hmasd_sb3.__file__).parent}"
    if requirements is None:
        remedy = "Its requirements are not known then: pip install -e . in the checkout."
        return Fact("versions", "warning", f"{text}, not installed.", remedy)
    if requirements.source != "installed":
        return Fact("versions", "note", f"{text}, {requirements.source}.")
    return Fact("versions", "ok", text)


def _core(requirements: Requirements | None) -> list[Fact]:
    if requirements is None:
        return []
    try:
        states = states_of(requirements.core, requirements)
    except ImportError:
        return [
            Fact("versions", "error", "packaging is not installed, by which versions are compared.", "pip install packaging")
        ]
    return [
        Fact("versions", "ok", f"{state.name} {state.installed}")
        if state.fits
        else Fact("versions", "error", f"{state} is needed.", f'pip install "{state.name}{state.wanted}"')
        for state in states
    ]


def _imports() -> list[Fact]:
    """Installed is not working: what the core is made of is imported."""
    facts = []
    for name in _CORE_MODULES:
        try:
            importlib.import_module(name)
        except Exception as error:  # a broken installation raises what it likes
            text = f"import {name} fails: {type(error).__name__}: {' '.join(str(error).split())}"
            package = name.partition(".")[0].replace("_", "-")
            facts.append(Fact("imports", "error", text, f"pip install --force-reinstall {package}"))
    return facts or [Fact("imports", "ok", "all of the core can be imported")]


def _computing() -> list[Fact]:
    cores = usable_cores()
    facts = [Fact("cores", "ok", f"{cores:g} of {os.cpu_count()} usable")]
    try:
        import torch as th
    except Exception:  # told above
        return facts
    omp = os.environ.get("OMP_NUM_THREADS")
    threads = f"threads of torch: {th.get_num_threads()}; OMP_NUM_THREADS is {'not set' if omp is None else omp}"
    if th.get_num_threads() > 1 and omp is None:
        remedy = (
            "`hmasd train` uses one, as networks this small wait longer for threads than they compute. In programs of your "
            "own: torch.set_num_threads(1)."
        )
        facts.append(Fact("threads", "note", f"{threads}.", remedy))
    else:
        facts.append(Fact("threads", "ok", threads))
    if th.cuda.is_available():
        names = ", ".join(th.cuda.get_device_name(index) for index in range(th.cuda.device_count()))
        facts.append(Fact("devices", "ok", f"CUDA {th.version.cuda}: {names}"))
    else:
        facts.append(Fact("devices", "ok", "the processor alone, torch sees no CUDA device"))
    return facts


def _extras(requirements: Requirements | None) -> list[Fact]:
    if requirements is None:
        return []
    facts = []
    for name, texts in requirements.extras.items():
        try:
            states = states_of(texts, requirements, name)
        except ImportError:  # told above
            return []
        lacking = [state for state in states if not state.fits]
        if not states:
            facts.append(Fact("extras", "note", f"{name}: has nothing for Python {platform.python_version()}"))
        elif lacking:
            text = f"{name}: lacks {', '.join(str(state) for state in lacking)}"
            facts.append(Fact("extras", "note", text, f'pip install "hmasd-sb3[{name}]"'))
        else:
            facts.append(Fact("extras", "ok", f"{name}: {', '.join(f'{state.name} {state.installed}' for state in states)}"))
    return facts


def _known_bad() -> list[Fact]:
    """Versions that go together badly, though every one of them is allowed."""
    try:
        from packaging.version import Version
    except ImportError:  # told above
        return []
    torch, pandas, zoo = (installed_version(name) for name in ("torch", "pandas", "rl_zoo3"))
    facts = []
    if torch is not None and Version(torch) < Version(_SAFE_TORCH):
        text = f"torch {torch} can be brought to run code by a model file's weights."
        facts.append(Fact("known trouble", "error", text, f'pip install "torch>={_SAFE_TORCH}"'))
    if zoo is not None and pandas is not None and Version(pandas) >= Version("3"):
        text = f"RL Zoo {zoo} cannot draw its plots with pandas {pandas}."
        facts.append(Fact("known trouble", "warning", text, 'pip install "pandas<3"'))
    return facts


def _places() -> list[Fact]:
    facts = [_writable()]
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        text = f"{_size(free)} free in {shared}, where --n-workers keeps its arrays"
        remedy = "In a container: docker run --shm-size=1g." if free < _LEAST_SHARED_MEMORY else ""
        facts.append(Fact("shared memory", "warning" if remedy else "ok", text, remedy))
    if shutil.which("git") is None:
        facts.append(Fact("git", "note", "there is no git, so runs do not note the commit", "Install git."))
    else:
        commit = git_commit()
        facts.append(Fact("git", "ok", f"working directory at {commit}" if commit else "working directory in no repository"))
    return facts


def _writable() -> Fact:
    """Whether runs can be written; by doing so."""
    place = RUNS if RUNS.is_dir() else Path()
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        text = f"{place.absolute()} cannot be written to ({error.strerror})."
        return Fact("runs", "error", text, "Work in another folder, or give --run-dir.")
    free = shutil.disk_usage(place).free
    text = f"{place.absolute()} can be written to, {_size(free)} free"
    remedy = "Make room: a training that cannot write a checkpoint goes on without." if free < _LEAST_DISK else ""
    return Fact("runs", "warning" if remedy else "ok", text, remedy)


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.1f} GB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.0f} MB"


def as_dict(facts: list[Fact]) -> dict[str, Any]:
    """Everything, for JSON."""
    return {"core_works": core_works(facts), "facts": [fact._asdict() for fact in facts]}
