"""How many cores there are to use."""

from __future__ import annotations

import os
from pathlib import Path


def usable_cores() -> float:
    """Cores that this process may use, by affinity and by the limits of a container."""
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    for path, read in ((Path("/sys/fs/cgroup/cpu.max"), _quota_v2), (Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), _quota_v1)):
        try:
            quota = read(path)
        except (OSError, ValueError):  # no container, or none that tells
            continue
        if quota is not None:
            cores = min(cores, quota)
    return cores


def _quota_v2(path: Path) -> float | None:
    limit, period = path.read_text(encoding="utf-8").split()
    return None if limit == "max" else int(limit) / int(period)


def _quota_v1(path: Path) -> float | None:
    limit = int(path.read_text(encoding="utf-8"))
    return None if limit < 0 else limit / int(path.with_name("cpu.cfs_period_us").read_text(encoding="utf-8"))
