"""Killed at random moments and resumed each time, a training ends as the one that was left alone, to the last bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from killing import SAVE_FREQ

HERE = Path(__file__).parent


def run(folder: Path, kills: int, total_timesteps: int, seed: int, timeout: float) -> dict[str, Any]:
    path = os.pathsep.join([str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(HERE / "killing.py"), str(folder), str(kills), str(seed), str(total_timesteps)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def check(result: dict[str, Any], kills: int, total_timesteps: int) -> None:
    alone, killed = result["alone"], result["killed"]
    assert result["lives"] == kills + 1
    assert len(result["lost"]) == kills
    assert 0 < max(result["lost"]) <= SAVE_FREQ, "no more is lost than lies between two checkpoints"
    assert alone["steps"] >= total_timesteps
    assert len(alone["evaluations"]["timesteps"]) > 5, "there must be something to compare"
    assert alone["best"] > 0
    # Part by part, so that a failure says where the two went apart.
    assert killed["metrics"] == alone["metrics"]
    assert killed["evaluations"] == alone["evaluations"]
    assert killed["best"] == alone["best"]
    assert killed["digest"] == alone["digest"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="each life of the training is forked, to start quickly")
def test_twenty_five_kills_change_nothing(tmp_path: Path) -> None:
    check(run(tmp_path, 25, 12_800, seed=25, timeout=900), 25, 12_800)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="each life of the training is forked, to start quickly")
def test_a_hundred_kills_change_nothing(tmp_path: Path) -> None:
    check(run(tmp_path, 100, 51_200, seed=100, timeout=3600), 100, 51_200)
