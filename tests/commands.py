"""Helpers of the tests of the command line: small runs, in this process and in others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch as th

from hmasd_sb3 import HMASD, cli

TESTS = Path(__file__).parent
SMALL = [
    *(
        "--n-envs",
        "4",
        "--eval-freq",
        "96",
        "--eval-episodes",
        "4",
        "--checkpoint-freq",
        "48",
        "--no-tensorboard",
        "--no-check",
    ),
    *("--set", "n_steps=12", "--set", "n_epochs=1", "--set", "skill_n_epochs=1", "--set", "skill_interval=5"),
    *("--set", "sequence_length=4", "--set", "discriminator_n_updates=1", "--set", "discriminator_batch_size=16"),
    *("--set", "policy_kwargs={hidden_size: 16}", "--set", "device=cpu"),
]
"""A run whose updates take milliseconds: 48 environment steps each."""
FAULTY = [*SMALL, "--eval-freq", "0", "--env", "cli_games:FaultyTeam"]


def hmasd(*arguments: str) -> int:
    """Run the command in this process; its exit code."""
    try:
        cli.app(args=[str(argument) for argument in arguments])
    except SystemExit as end:
        return int(end.code or 0)
    raise AssertionError("the command ended without an exit code")


def train(*arguments: str) -> int:
    return hmasd("train", *SMALL, *arguments)


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """The command in a process of its own, working in ``folder``."""
    paths = [str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, "-m", "hmasd_sb3.cli", "train", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
    )


def wait_until(condition: Callable[[], Any], process: subprocess.Popen[str] | None = None, seconds: float = 60.0) -> Any:
    """Wait for something to be true, and return it; fails if ``process`` ends before."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        if process is not None and process.poll() is not None:
            raise AssertionError(f"ended with {process.returncode} before: {process.communicate()}")
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s")


def checkpoints(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("checkpoint_*.zip"), key=step_of)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.stem.partition("_")[2])


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def without_times(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What two equal runs have in common."""
    return [{k: v for k, v in line.items() if not k.startswith("time/") and not k.endswith("_time")} for line in lines]


def files_below(path: Path) -> list[str]:
    return sorted(str(file.relative_to(path)) for file in path.rglob("*"))


def same_parameters(one: Path, other: Path) -> bool:
    first, second = (HMASD.load(path, device="cpu").policy.state_dict() for path in (one, other))
    return first.keys() == second.keys() and all(th.equal(first[name], second[name]) for name in first)


def assert_same_metrics(one: Path, other: Path) -> None:
    first, second = without_times(metrics(one)), without_times(metrics(other))
    assert len(first) == len(second)
    for mine, yours in zip(first, second, strict=True):
        assert mine == yours


def break_off(run: Path, step: int) -> None:
    """What a run looks like that was killed somewhat after its checkpoint at ``step``."""
    (run / "model.zip").unlink()
    for path in checkpoints(run):
        if step_of(path) > step:
            path.unlink()


def children_of(pid: int) -> list[int]:
    result = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(text) for text in result.stdout.split()]


def alive(pid: int) -> bool:
    """Whether a process is at work (and no zombie)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
