"""What a program may want to know of a run, read from its folder."""

from __future__ import annotations

from typing import Any

import numpy as np

from hmasd_sb3.monitoring.checkpoints import CheckpointFolder
from hmasd_sb3.running.folder import RunFolder
from hmasd_sb3.supervisor import step_of


def run_answer(folder: RunFolder) -> dict[str, Any]:
    """Where everything is, how far the run is and how good it has become."""
    config = folder.read_config()
    kept = CheckpointFolder(folder.checkpoints)
    newest = kept.all()[-1:] if folder.checkpoints.is_dir() else []
    best = kept.best() if folder.checkpoints.is_dir() else None
    return {
        "folder": folder.path,
        "env": config.env,
        "seed": config.seed,
        "complete": folder.finished,
        "timesteps": step_of(newest[0]) if newest else 0,
        "total_timesteps": config.total_timesteps,
        "model": folder.model if folder.finished else None,
        "checkpoint": newest[0] if newest else None,
        "best_model": best,
        **_evaluations(folder),
    }


def _evaluations(folder: RunFolder) -> dict[str, Any]:
    """The last evaluation and the best one; None where there was none."""
    if not folder.evaluations.exists():
        return {"last_evaluation": None, "best_evaluation": None}
    with np.load(folder.evaluations) as data:
        arrays = {name: np.asarray(data[name]) for name in data.files}
    means = arrays["results"].mean(axis=1)
    with_success = "successes" in arrays and arrays["successes"].shape == arrays["results"].shape

    def one(index: int) -> dict[str, Any]:
        return {
            "timesteps": int(arrays["timesteps"][index]),
            "mean_return": float(means[index]),
            "success_rate": float(arrays["successes"][index].mean()) if with_success else None,
        }

    return {"last_evaluation": one(-1), "best_evaluation": one(int(means.argmax()))}
